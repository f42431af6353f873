//! `bench fairness`: how long a newcomer's single job waits behind the backlogs of other tenants, in time and in starts.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use async_trait::async_trait;
use longshore_base::{JobId, schema};
use longshore_ledger::{Executor, RunContext, Verdict, enqueue, enqueue_many};
use tokio::sync::Notify;

use crate::ledger::{Ledger, job};
use crate::servers::Servers;
use crate::stats::{ms, percentile};

const DATABASE: &str = "bench";
/// Jobs of the tenants that were there before, all together.
const BACKLOG: usize = 10_000;
/// Starts after which the engine knows how long its jobs take.
const WARM_UP: usize = 50;

#[derive(clap::Args)]
pub(crate) struct FairnessArguments {
    /// A server of the benchmark's own: it changes settings and drops databases.
    #[arg(long, env = "BENCH_DATABASE_URL")]
    database_url: String,
    /// A Redis of the benchmark's own: it is emptied.
    #[arg(long, env = "BENCH_REDIS_URL")]
    redis_url: String,
    /// Which competing tenant the newcomer is: 2 joins one that has all the backlog.
    #[arg(long, value_delimiter = ',', default_values_t = [2_usize, 50])]
    newcomers: Vec<usize>,
    /// Newcomers, one after the other.
    #[arg(long, default_value_t = 200)]
    trials: usize,
    /// Jobs at the same time.
    #[arg(long, default_value_t = 8)]
    slots: usize,
    /// How long a job runs, in milliseconds.
    #[arg(long, default_value_t = 200)]
    job_ms: u64,
}

/// Remembers when each job began, then takes its time.
struct Sleep {
    time: Duration,
    starts: Mutex<Vec<(JobId, Instant)>>,
    started: Notify,
}

#[async_trait]
impl Executor for Sleep {
    async fn run(&self, ctx: &RunContext) -> Verdict {
        if let Ok(mut starts) = self.starts.lock() {
            starts.push((ctx.job().id, Instant::now()));
        }
        self.started.notify_one();
        tokio::time::sleep(self.time).await;
        Verdict::Done(None)
    }
}

impl Sleep {
    /// Waits until a question about all starts so far has an answer.
    async fn wait<T>(&self, ask: impl Fn(&[(JobId, Instant)]) -> Option<T>) -> anyhow::Result<T> {
        let answered = async {
            loop {
                let answer = self.starts.lock().ok().and_then(|starts| ask(&starts));
                match answer {
                    Some(answer) => break answer,
                    None => self.started.notified().await,
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(120), answered)
            .await
            .context("a job did not start within two minutes")
    }
}

pub(crate) async fn run(arguments: FairnessArguments) -> anyhow::Result<()> {
    let mut servers = Servers::connect(&arguments.database_url, &arguments.redis_url).await?;
    servers.print_settings().await?;
    println!(
        "{BACKLOG} jobs of {} ms wait for {} slots; {} newcomers ask for one job each",
        arguments.job_ms, arguments.slots, arguments.trials
    );
    for &newcomer in &arguments.newcomers {
        servers.reset_redis(None).await?;
        let url = servers.create_database(DATABASE).await?;
        let ledger = Ledger::connect(url.as_str(), &arguments.redis_url).await?;
        measure(&arguments, &ledger, newcomer).await?;
        drop(ledger);
        servers.drop_database(DATABASE).await?;
    }
    Ok(())
}

async fn measure(
    arguments: &FairnessArguments,
    ledger: &Ledger,
    newcomer: usize,
) -> anyhow::Result<()> {
    schema::MIGRATOR.run(&ledger.pools.work).await?;
    let tenants = newcomer.saturating_sub(1).max(1);
    for tenant in 0..tenants {
        let name = format!("old-{tenant}");
        let keys: Vec<String> = (0..BACKLOG / tenants)
            .map(|number| format!("{name}-{number}"))
            .collect();
        let mut tx = ledger.pools.work.begin().await?;
        enqueue_many(&mut tx, &job(&name, String::new(), 0), &keys).await?;
        tx.commit().await?;
    }
    let sleep = Arc::new(Sleep {
        time: Duration::from_millis(arguments.job_ms),
        starts: Mutex::default(),
        started: Notify::new(),
    });
    let engine = ledger.start(sleep.clone(), arguments.slots).await?;
    sleep
        .wait(|starts| (starts.len() >= WARM_UP).then_some(()))
        .await?;
    let (mut waits, mut before) = (Vec::new(), Vec::new());
    for trial in 0..arguments.trials {
        let name = format!("new-{trial}");
        let mut tx = ledger.pools.work.begin().await?;
        let enqueued = enqueue(&mut tx, job(&name, name.clone(), 0)).await?;
        tx.commit().await?;
        let asked = Instant::now();
        ledger.admitter.poke(&enqueued.queue);
        let (wait, earlier) = sleep
            .wait(|starts| {
                let (_, own) = *starts.iter().find(|(id, _)| *id == enqueued.job_id)?;
                let earlier = starts.iter().filter(|(_, at)| *at > asked && *at < own);
                Some((own.saturating_duration_since(asked), earlier.count()))
            })
            .await?;
        waits.push(wait);
        before.push(earlier);
    }
    engine.stop(Duration::from_secs(5)).await;
    before.sort_unstable();
    println!(
        "newcomer as tenant {newcomer:>3}: enqueue to start p50 {} p99 {}; starts before its own: median {}, most {}",
        ms(percentile(&mut waits, 0.5)),
        ms(percentile(&mut waits, 0.99)),
        before.get(before.len() / 2).copied().unwrap_or_default(),
        before.last().copied().unwrap_or_default()
    );
    Ok(())
}
