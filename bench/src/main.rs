//! Benchmarks: ours beside peers in the same run, printing ratios. Started by `./dev bench`, which brings the servers.

mod bulk;
mod client;
mod fairness;
mod history;
mod ledger;
mod past;
mod provision;
mod purge;
mod queue;
mod resources;
mod servers;
mod stats;
mod workspaces;

use clap::{Parser, Subcommand};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(about = "Longshore's benchmarks", version)]
struct Arguments {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Subcommand)]
enum Bench {
    /// The job engine beside other queues: no-op jobs, on the same servers in the same run.
    Queue(Box<queue::QueueArguments>),
    /// Ours as one of the processes that `queue` measures.
    #[command(hide = true)]
    QueueProcess(queue::ProcessArguments),
    /// How long the single job of a new tenant waits behind the backlogs of others.
    Fairness(fairness::FairnessArguments),
    /// Jobs that come and go beside a long history and beside none, and what dropping its old part costs.
    History(history::HistoryArguments),
    /// Many dead jobs retried with one request: exactly those, over a killed worker, while others look at workspaces.
    Bulk(bulk::BulkArguments),
    /// Workspaces through the whole system beside the same engine calls made raw.
    Provision(provision::ProvisionArguments),
    /// A tree of workspaces purged, beside the removal of its containers and volumes made raw.
    Purge(purge::PurgeArguments),
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("LONGSHORE_LOG")
                .unwrap_or_else(|_| "warn,sqlx::query=error".into()),
        )
        .init();
    match Arguments::parse().bench {
        Bench::Queue(arguments) => queue::run(*arguments).await,
        Bench::QueueProcess(arguments) => queue::serve(arguments).await,
        Bench::Fairness(arguments) => fairness::run(arguments).await,
        Bench::History(arguments) => history::run(arguments).await,
        Bench::Bulk(arguments) => bulk::run(arguments).await,
        Bench::Provision(arguments) => provision::run(arguments).await,
        Bench::Purge(arguments) => purge::run(arguments).await,
    }
}
