//! `bench queue`: no-op jobs through our ledger and through peers, on the same servers in the same run.
//!
//! docs/decisions/0010-how-peers-are-measured.md says what is measured and why so.

mod ours;
mod process;
mod report;
mod stage;
mod systems;

use std::path::PathBuf;

pub(crate) use ours::{ProcessArguments, serve};
use process::PAYLOAD;
use report::Rounds;
use stage::{Load, Measured, Stage};
use systems::{Peer, Programs, System, Table};

use crate::servers::{Servers, fsync_time};
use crate::stats::{median, ms};

/// The most jobs of a run that only asks how many processes are faster.
const TRIAL: usize = 20_000;
/// How often it is asked, each time with one process and with two.
const TRIALS: usize = 3;

#[derive(clap::Args)]
pub(crate) struct QueueArguments {
    /// A server of the benchmark's own: it changes settings and drops databases.
    #[arg(long, env = "BENCH_DATABASE_URL")]
    database_url: String,
    /// A Redis of the benchmark's own: it is emptied.
    #[arg(long, env = "BENCH_REDIS_URL")]
    redis_url: String,
    /// Where Postgres keeps its data, for the fsync time.
    #[arg(long, env = "BENCH_DATA_DIR", default_value = ".")]
    data_dir: PathBuf,
    /// Systems to measure ours beside.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Peer::Bullmq, Peer::GraphileWorker, Peer::PgBoss, Peer::ApalisPostgres])]
    peers: Vec<Peer>,
    /// Settings of the servers to measure under: what was confirmed survives a crash, or need not.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Table::Durable, Table::Volatile])]
    tables: Vec<Table>,
    /// Backlogs to run, in jobs.
    #[arg(long, value_delimiter = ',', default_values_t = [100_000_usize])]
    backlogs: Vec<usize>,
    /// Rounds; in each, every system has one turn.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Samples of the idle pick-up; none with 0.
    #[arg(long, default_value_t = 200)]
    idle_samples: usize,
    /// Jobs of ours at the same time.
    #[arg(long, default_value_t = 2048)]
    slots: usize,
    /// Jobs of a peer at the same time, over all its processes, where its documentation names no number of its own.
    #[arg(long, default_value_t = 512)]
    concurrency: usize,
    /// Worker processes of each peer; by default one or two, whichever is faster in the median of a few trials.
    #[arg(long)]
    processes: Option<usize>,
    /// Keeps a transaction with a snapshot open in the database while it is measured.
    #[arg(long)]
    hold_transaction: bool,
    #[command(flatten)]
    programs: Programs,
}

pub(crate) async fn run(arguments: QueueArguments) -> anyhow::Result<()> {
    let mut servers = Servers::connect(&arguments.database_url, &arguments.redis_url).await?;
    println!(
        "fdatasync of 8 KiB: {} (median of 200)",
        ms(fsync_time(&arguments.data_dir)?)
    );
    arguments.programs.print_versions().await?;
    println!(
        "jobs: no-op, {PAYLOAD} bytes of payload; those of ours (exclusive) have a key each, as all our kinds do; no peer's have"
    );
    println!(
        "jobs at the same time: {} of ours, {} of a peer whose documentation names no number",
        arguments.slots, arguments.concurrency
    );
    if arguments.hold_transaction {
        println!("a transaction is held open in the database while it is measured");
    }
    for &table in &arguments.tables {
        table_of(&arguments, &mut servers, table).await?;
    }
    Ok(())
}

async fn table_of(
    arguments: &QueueArguments,
    servers: &mut Servers,
    table: Table,
) -> anyhow::Result<()> {
    servers.set_durable(table == Table::Durable).await?;
    println!("\n== {}", table.describe());
    servers.print_settings().await?;
    let mut systems = Vec::new();
    for mut system in System::all(table, &arguments.peers) {
        match choose_processes(arguments, servers, &mut system).await {
            Ok(()) => systems.push(system),
            Err(error) if system.is_ours() => return Err(error),
            Err(error) => println!("left out: {}: {error:#}", system.name),
        }
    }
    for &backlog in &arguments.backlogs {
        backlog_of(arguments, servers, &systems, backlog).await?;
    }
    Ok(())
}

async fn backlog_of(
    arguments: &QueueArguments,
    servers: &mut Servers,
    systems: &[System],
    backlog: usize,
) -> anyhow::Result<()> {
    println!("\nbacklog of {backlog}");
    let load = arguments.load(backlog);
    let mut all: Vec<Rounds> = systems
        .iter()
        .map(|system| Rounds {
            name: system.name,
            processes: system.processes,
            is_ours: system.is_ours(),
            rounds: Vec::new(),
        })
        .collect();
    for round in 1..=arguments.rounds {
        for (system, rounds) in systems.iter().zip(&mut all) {
            match Stage::measure(servers, system, &arguments.programs, load).await {
                Ok(measured) => {
                    report::line(round, system.name, &measured);
                    rounds.rounds.push(measured);
                }
                Err(error) if system.is_ours() => return Err(error),
                Err(error) => println!("  round {round} {} failed: {error:#}", system.name),
            }
        }
    }
    all.retain(|system| !system.rounds.is_empty());
    report::print(&all);
    Ok(())
}

/// Takes one or two processes, whichever drains a small backlog faster in the median of [`TRIALS`], taken in turns: the
/// two are close to each other for some, and a single trial would choose by noise. Ours uses all cores with one.
async fn choose_processes(
    arguments: &QueueArguments,
    servers: &mut Servers,
    system: &mut System,
) -> anyhow::Result<()> {
    // Tells at once what cannot be started at all.
    system.command(&arguments.programs)?;
    if system.is_ours() {
        return Ok(());
    }
    if let Some(processes) = arguments.processes {
        system.processes = processes;
        return Ok(());
    }
    let smallest = arguments.backlogs.iter().copied().min();
    let load = Load {
        idle_samples: 0,
        ..arguments.load(TRIAL.min(smallest.unwrap_or(TRIAL)))
    };
    let mut rates = [Vec::new(), Vec::new()];
    for _ in 0..TRIALS {
        for (at, rates) in rates.iter_mut().enumerate() {
            system.processes = at + 1;
            let Measured { run_rate, .. } =
                Stage::measure(servers, system, &arguments.programs, load).await?;
            rates.push(run_rate);
        }
    }
    let [one, two] = rates.map(|rates| median(&rates));
    system.processes = if two > one { 2 } else { 1 };
    println!(
        "{}: {} of 1 or 2 processes ({one:.0} or {two:.0} jobs/s, medians of {TRIALS} trials)",
        system.name, system.processes
    );
    Ok(())
}

impl QueueArguments {
    fn load(&self, backlog: usize) -> Load {
        Load {
            backlog,
            slots: self.slots,
            concurrency: self.concurrency,
            idle_samples: self.idle_samples,
            hold_transaction: self.hold_transaction,
        }
    }
}
