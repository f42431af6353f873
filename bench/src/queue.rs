//! `bench queue`: throughput over backlogs, pick-up from idle, Redis' memory.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use async_trait::async_trait;
use longshore_base::pools::{DatabaseConfig, Pools};
use longshore_base::{Secret, ids, schema};
use longshore_ledger::{
    Admitter, Backoff, Engine, EngineConfig, Executor, HintConfig, Hints, Jitter, KindSpec, Kinds,
    NewJob, Policy, RunContext, Verdict, enqueue, enqueue_many,
};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::servers::{fsync_time, print_postgres, redis_memory};
use crate::stats::{median, ms, percentile};

/// Bytes of arguments in each job.
const PAYLOAD: usize = 200;
/// Jobs one enqueue transaction writes while a backlog is built.
const ENQUEUE_CHUNK: usize = 5_000;

#[derive(clap::Args)]
pub(crate) struct QueueArguments {
    /// A server to make the benchmark's database on.
    #[arg(long, env = "BENCH_DATABASE_URL")]
    database_url: String,
    /// The Redis to use.
    #[arg(long, env = "BENCH_REDIS_URL")]
    redis_url: String,
    /// Where Postgres keeps its data, for the fsync time.
    #[arg(long, env = "BENCH_DATA_DIR", default_value = ".")]
    data_dir: PathBuf,
    /// Backlogs to run, in jobs.
    #[arg(long, value_delimiter = ',', default_values_t = [10_000_usize, 100_000, 1_000_000])]
    backlogs: Vec<usize>,
    /// Runs of each backlog; the median is printed.
    #[arg(long, default_value_t = 3)]
    repeat: usize,
    /// Samples of the idle pick-up.
    #[arg(long, default_value_t = 500)]
    idle_samples: usize,
    /// Runs at the same time.
    #[arg(long, default_value_t = 512)]
    concurrency: usize,
}

struct Noop {
    ran: AtomicU64,
    last: Mutex<Option<Instant>>,
    started: Notify,
}

#[async_trait]
impl Executor for Noop {
    async fn run(&self, _: &RunContext) -> Verdict {
        let now = Instant::now();
        self.ran.fetch_add(1, Ordering::Relaxed);
        if let Ok(mut last) = self.last.try_lock() {
            *last = Some(now);
        }
        self.started.notify_one();
        Verdict::Done(None)
    }
}

struct Bench {
    pools: Pools,
    hints: Hints,
    admitter: Admitter,
    redis: redis::aio::MultiplexedConnection,
    concurrency: usize,
}

pub(crate) async fn run(arguments: QueueArguments) -> anyhow::Result<()> {
    let name = format!("bench_{}", ids::random_uuid().simple());
    let mut server = PgConnection::connect(&arguments.database_url)
        .await
        .context("cannot reach the benchmark's Postgres")?;
    sqlx::query(AssertSqlSafe(format!("CREATE DATABASE {name}")))
        .execute(&mut server)
        .await?;
    let outcome = measure(&arguments, &name).await;
    sqlx::query(AssertSqlSafe(format!("DROP DATABASE {name} WITH (FORCE)")))
        .execute(&mut server)
        .await?;
    outcome
}

async fn measure(arguments: &QueueArguments, name: &str) -> anyhow::Result<()> {
    let mut url: url::Url = arguments.database_url.parse()?;
    url.set_path(name);
    let pools = Pools::connect(&DatabaseConfig {
        url: Secret::new(url.to_string()),
        max_connections: 10,
    })
    .await?;
    schema::MIGRATOR.run(&pools.work).await?;
    let hints = Hints::new(&HintConfig {
        url: Secret::new(arguments.redis_url.clone()),
        prefix: format!("{name}:"),
    })?;
    let admitter = Admitter::new(
        pools.control.clone(),
        hints.clone(),
        CancellationToken::new(),
    );
    let redis = redis::Client::open(arguments.redis_url.as_str())?
        .get_multiplexed_async_connection()
        .await?;
    let mut bench = Bench {
        pools,
        hints,
        admitter,
        redis,
        concurrency: arguments.concurrency,
    };
    print_postgres(&bench.pools.work).await?;
    println!(
        "fdatasync of 8 KiB: {} (median of 200)",
        ms(fsync_time(&arguments.data_dir)?)
    );
    println!(
        "jobs: no-op, exclusive, distinct keys, {PAYLOAD} bytes of arguments; {} at the same time",
        arguments.concurrency
    );
    let mut medians = Vec::new();
    for &backlog in &arguments.backlogs {
        let mut rates = Vec::new();
        for _ in 0..arguments.repeat {
            rates.push(bench.drain(backlog).await?);
        }
        let middle = median(&rates);
        println!(
            "backlog {backlog:>9}: {middle:>8.0} jobs/s median of {} {rates:.0?}",
            rates.len()
        );
        medians.push(middle);
    }
    let middle = median(&medians);
    for (backlog, rate) in arguments.backlogs.iter().zip(&medians) {
        println!(
            "  spread at {backlog}: {:+.1} % of the middle backlog",
            (rate / middle - 1.0) * 100.0
        );
    }
    bench.idle(arguments.idle_samples).await
}

impl Bench {
    async fn engine(&self) -> anyhow::Result<(Engine, Arc<Noop>)> {
        let noop = Arc::new(Noop {
            ran: AtomicU64::new(0),
            last: Mutex::new(None),
            started: Notify::new(),
        });
        let policy = Policy {
            max_attempts: 3,
            backoff: Backoff {
                base: Duration::from_secs(1),
                cap: Duration::from_secs(60),
                jitter: Jitter::Full,
            },
            timeout: Duration::from_secs(60),
            deadline: Duration::from_secs(86_400),
            concurrency: self.concurrency,
        };
        let kinds = Kinds::default().with(KindSpec {
            name: "noop",
            args_versions: &[1],
            policy,
            hooks: None,
        });
        let executor: Arc<dyn Executor> = noop.clone();
        let engine = Engine::start(
            EngineConfig::default(),
            self.pools.clone(),
            kinds,
            HashMap::from([("noop", executor)]),
            (self.hints.clone(), self.admitter.clone()),
            &[("noop".into(), "noop")],
        )
        .await?;
        Ok((engine, noop))
    }

    /// Builds a backlog with no worker about, then lets one drain it. Jobs per second from the worker's start to the last end.
    async fn drain(&mut self, backlog: usize) -> anyhow::Result<f64> {
        sqlx::query("TRUNCATE jobs, job_slots, job_history, workers")
            .execute(&self.pools.work)
            .await?;
        let enqueue_start = Instant::now();
        for chunk in 0..backlog.div_ceil(ENQUEUE_CHUNK) {
            let from = chunk * ENQUEUE_CHUNK;
            let keys: Vec<String> = (from..(from + ENQUEUE_CHUNK).min(backlog))
                .map(|n| format!("bench:{n}"))
                .collect();
            let mut tx = self.pools.work.begin().await?;
            enqueue_many(&mut tx, &noop_job(""), &keys).await?;
            tx.commit().await?;
        }
        let enqueued = backlog as f64 / enqueue_start.elapsed().as_secs_f64();
        sqlx::query("VACUUM ANALYZE jobs")
            .execute(&self.pools.work)
            .await?;
        let idle_bytes = redis_memory(&mut self.redis).await?;
        let mut peak = idle_bytes;
        let start = Instant::now();
        let (engine, noop) = self.engine().await?;
        while (noop.ran.load(Ordering::Relaxed) as usize) < backlog {
            tokio::time::sleep(Duration::from_millis(20)).await;
            peak = peak.max(redis_memory(&mut self.redis).await?);
            anyhow::ensure!(
                start.elapsed() < Duration::from_secs(1200),
                "the backlog was not drained in 20 minutes"
            );
        }
        loop {
            let left: i64 =
                sqlx::query_scalar("SELECT count(*) FROM (SELECT 1 FROM jobs LIMIT 1) AS rest")
                    .fetch_one(&self.pools.work)
                    .await?;
            if left == 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let rate = backlog as f64 / start.elapsed().as_secs_f64();
        engine.stop(Duration::from_secs(5)).await;
        let succeeded: i64 =
            sqlx::query_scalar("SELECT count(*) FROM job_history WHERE outcome = 'succeeded'")
                .fetch_one(&self.pools.work)
                .await?;
        anyhow::ensure!(
            succeeded as usize == backlog,
            "{succeeded} of {backlog} jobs succeeded"
        );
        anyhow::ensure!(
            noop.ran.load(Ordering::Relaxed) as usize == backlog,
            "some job ran twice"
        );
        let after = redis_memory(&mut self.redis).await?;
        println!(
            "  {backlog} jobs: {rate:.0}/s, enqueued at {enqueued:.0}/s, redis {:+.2} MB at its peak, {:+.2} MB after",
            (peak as f64 - idle_bytes as f64) / 1e6,
            (after as f64 - idle_bytes as f64) / 1e6
        );
        Ok(rate)
    }

    /// Commit to the first line of the executor, one job at a time.
    async fn idle(&mut self, samples: usize) -> anyhow::Result<()> {
        sqlx::query("TRUNCATE jobs, job_slots, job_history, workers")
            .execute(&self.pools.work)
            .await?;
        let (engine, noop) = self.engine().await?;
        let mut waits = Vec::with_capacity(samples);
        for sample in 0..samples + 20 {
            let mut tx = self.pools.work.begin().await?;
            let enqueued = enqueue(&mut tx, noop_job(&format!("idle:{sample}"))).await?;
            tx.commit().await?;
            let committed = Instant::now();
            self.admitter.poke(&enqueued.queue);
            noop.started.notified().await;
            let started = noop
                .last
                .lock()
                .ok()
                .and_then(|last| *last)
                .context("no start was seen")?;
            if sample >= 20 {
                waits.push(started.saturating_duration_since(committed));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        engine.stop(Duration::from_secs(5)).await;
        println!(
            "idle, commit to first line: p50 {} p99 {} ({samples} samples)",
            ms(percentile(&mut waits, 0.5)),
            ms(percentile(&mut waits, 0.99))
        );
        Ok(())
    }
}

fn noop_job(key: &str) -> NewJob {
    NewJob {
        kind: "noop",
        queue: "noop".into(),
        tenant: "bench".into(),
        workspace_id: None,
        keys: vec![key.to_owned()],
        dedupe_key: None,
        args: serde_json::json!({ "payload": "x".repeat(PAYLOAD) }),
        args_version: 1,
        priority: 0,
        delay: Duration::ZERO,
        deadline: Duration::from_secs(86_400),
        max_attempts: 3,
        created_by: "bench".into(),
    }
}
