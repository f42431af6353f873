//! apalis-postgres as a peer of `./dev bench queue`: `producer` or `worker`, steered by a JSON object a line on standard
//! input, answering one a line. `bench/src/queue/process.rs` describes what is said.
//!
//! Settings follow <https://docs.rs/apalis-postgres/1.0.0/apalis_postgres/struct.Config.html> and the crate's `basic` and
//! `pubsub` examples.

use std::env;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail};
use apalis::prelude::*;
use apalis_postgres::{Config, PgPool, PgTask, PostgresStorage, queries::push_tasks};
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::postgres::PgPoolOptions;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

const QUEUE: &str = "noop";
/// Jobs one transaction enqueues, as with ours.
const CHUNK: usize = 5_000;

#[derive(Debug, Serialize, Deserialize)]
struct Job {
    payload: String,
}

#[derive(Deserialize)]
struct Command {
    #[serde(rename = "do")]
    what: String,
    #[serde(default)]
    jobs: usize,
    #[serde(default)]
    payload: usize,
}

/// Runs so far, and when the last one began.
#[derive(Default)]
struct Runs {
    count: AtomicU64,
    last: AtomicU64,
}

struct Running {
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), WorkerError>>,
}

/// Nanoseconds of the clock all processes of the machine share.
fn now() -> anyhow::Result<u64> {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
    Ok(u64::try_from(Duration::from(time).as_nanos())?)
}

fn say(value: &serde_json::Value) {
    println!("{value}");
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let url = env::var("BENCH_DATABASE_URL").context("BENCH_DATABASE_URL is not set")?;
    let concurrency: usize = env::var("BENCH_CONCURRENCY")?.parse()?;
    let pool = PgPoolOptions::new()
        .max_connections(10)
        .connect(&url)
        .await?;
    let runs = Arc::new(Runs::default());
    tokio::spawn(tell(Arc::clone(&runs)));
    let mut running = None;
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        let command: Command = serde_json::from_str(&line)?;
        let begin = now()?;
        match command.what.as_str() {
            "prepare" => PostgresStorage::<()>::setup(&pool).await?,
            "fill" => fill(&pool, command.jobs, command.payload).await?,
            "one" => fill(&pool, 1, command.payload).await?,
            "start" => running = Some(start(&pool, concurrency, &runs, begin)),
            "stop" => {
                let Some(Running { stop, task }) = running.take() else {
                    bail!("nothing runs");
                };
                drop(stop);
                // A worker whose end was asked for may still answer with how it was ended.
                if let Ok(Err(error)) = tokio::time::timeout(Duration::from_secs(10), task).await? {
                    eprintln!("apalis: {error}");
                }
            }
            other => bail!("unknown command {other}"),
        }
        say(&json!({ "done": command.what, "begin": begin, "end": now()? }));
    }
    Ok(())
}

async fn fill(pool: &PgPool, jobs: usize, payload: usize) -> anyhow::Result<()> {
    let job = serde_json::to_vec(&Job {
        payload: "x".repeat(payload),
    })?;
    let mut left = jobs;
    while left > 0 {
        let tasks: Vec<PgTask> = (0..left.min(CHUNK))
            .map(|_| TaskBuilder::new(job.clone()).build())
            .collect();
        left -= tasks.len();
        let mut tx = pool.begin().await?;
        push_tasks(&mut *tx, QUEUE, tasks).await?;
        tx.commit().await?;
    }
    Ok(())
}

/// `batch_size` bounds what is fetched at once, and with it what runs at once: the buffer of outcomes is four batches.
/// `lock_tasks(false)` as in the `basic` example spares an update a job; results have to be kept, for without them no job
/// is ever marked done. The listener wakes an idle worker; the interval also carries outcomes home when no job follows.
fn start(pool: &PgPool, concurrency: usize, runs: &Arc<Runs>, begin: u64) -> Running {
    let config = Config::default()
        .queue(QUEUE)
        .batch_size(concurrency)
        .lock_tasks(false);
    let backend = PostgresStorage::<Job>::new(pool)
        .with_config(config)
        .with_pubsub()
        .poll_with_interval(Duration::from_millis(50));
    let worker = WorkerBuilder::new(format!("bench-{}-{begin}", std::process::id()))
        .backend(backend)
        .data(Arc::clone(runs))
        .parallelize(tokio::spawn)
        .build(noop);
    let (stop, stopped) = oneshot::channel::<()>();
    let task = tokio::spawn(worker.run_until(async move {
        // An error is the other end going away, which is what is waited for.
        stopped.await.or(Ok::<(), std::io::Error>(()))
    }));
    Running { stop, task }
}

async fn noop(_: Job, runs: Data<Arc<Runs>>) -> Result<(), BoxDynError> {
    runs.last.store(now()?, Ordering::Relaxed);
    runs.count.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

/// Tells how many ran, whenever that has changed.
async fn tell(runs: Arc<Runs>) {
    let mut told = 0;
    loop {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let count = runs.count.load(Ordering::Relaxed);
        if count != told {
            told = count;
            say(&json!({ "ran": count, "last": runs.last.load(Ordering::Relaxed) }));
        }
    }
}
