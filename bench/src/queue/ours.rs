//! Longshore's ledger as one of the measured systems, in a process of its own like the others.

use std::collections::HashMap;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail};
use async_trait::async_trait;
use longshore_base::pools::{DatabaseConfig, Pools};
use longshore_base::{Secret, schema};
use longshore_ledger::{
    Admitter, Backoff, Engine, EngineConfig, Executor, HintConfig, Hints, Jitter, KindSpec, Kinds,
    NewJob, Policy, RunContext, Verdict, enqueue, enqueue_many,
};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio_util::sync::CancellationToken;

use super::process::{Answer, Instruction, Ran};
use crate::resources::now;

/// Jobs one enqueue transaction writes while a backlog is built.
const CHUNK: usize = 5_000;
/// How often it is told how many ran.
const TELL: Duration = Duration::from_millis(10);

#[derive(clap::Args)]
pub(crate) struct ProcessArguments {
    #[arg(long, env = "BENCH_DATABASE_URL")]
    database_url: String,
    #[arg(long, env = "BENCH_REDIS_URL")]
    redis_url: String,
    #[arg(long, env = "BENCH_CONCURRENCY")]
    concurrency: usize,
}

#[derive(Default)]
struct Noop {
    count: AtomicU64,
    last: AtomicU64,
}

#[async_trait]
impl Executor for Noop {
    async fn run(&self, _: &RunContext) -> Verdict {
        if let Ok(now) = now() {
            self.last.store(now, Ordering::Relaxed);
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        Verdict::Done(None)
    }
}

struct Ours {
    pools: Pools,
    hints: Hints,
    admitter: Admitter,
    noop: Arc<Noop>,
    concurrency: usize,
    enqueued: usize,
    engine: Option<Engine>,
}

pub(crate) async fn serve(arguments: ProcessArguments) -> anyhow::Result<()> {
    let mut ours = Ours::connect(&arguments).await?;
    tokio::spawn(tell(Arc::clone(&ours.noop)));
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        let instruction: Instruction = serde_json::from_str(&line)?;
        let begin = now()?;
        ours.carry_out(&instruction).await?;
        say(&Answer {
            done: instruction.what,
            begin,
            end: now()?,
        })?;
    }
    Ok(())
}

fn say(message: &impl serde::Serialize) -> anyhow::Result<()> {
    let mut line = serde_json::to_string(message)?;
    line.push('\n');
    std::io::stdout().lock().write_all(line.as_bytes())?;
    Ok(())
}

async fn tell(noop: Arc<Noop>) {
    let mut told = 0;
    loop {
        tokio::time::sleep(TELL).await;
        let count = noop.count.load(Ordering::Relaxed);
        let last = noop.last.load(Ordering::Relaxed);
        if count != told && say(&Ran { count, last }).is_ok() {
            told = count;
        }
    }
}

impl Ours {
    async fn connect(arguments: &ProcessArguments) -> anyhow::Result<Self> {
        let pools = Pools::connect(&DatabaseConfig {
            url: Secret::new(arguments.database_url.clone()),
            max_connections: 10,
        })
        .await?;
        let hints = Hints::new(&HintConfig {
            url: Secret::new(arguments.redis_url.clone()),
            prefix: "bench:".into(),
        })?;
        let admitter = Admitter::new(
            pools.control.clone(),
            hints.clone(),
            CancellationToken::new(),
        );
        Ok(Self {
            pools,
            hints,
            admitter,
            noop: Arc::default(),
            concurrency: arguments.concurrency,
            enqueued: 0,
            engine: None,
        })
    }

    async fn carry_out(&mut self, instruction: &Instruction) -> anyhow::Result<()> {
        match instruction.what.as_str() {
            "prepare" => schema::MIGRATOR.run(&self.pools.work).await?,
            "fill" => self.fill(instruction.jobs, instruction.payload).await?,
            "one" => self.one(instruction.payload).await?,
            "start" => self.engine = Some(self.start().await?),
            "stop" => {
                let engine = self.engine.take().context("nothing runs")?;
                engine.stop(Duration::from_secs(5)).await;
            }
            other => bail!("unknown instruction {other}"),
        }
        Ok(())
    }

    async fn fill(&mut self, jobs: usize, payload: usize) -> anyhow::Result<()> {
        let end = self.enqueued + jobs;
        while self.enqueued < end {
            let next = end.min(self.enqueued + CHUNK);
            let keys: Vec<String> = (self.enqueued..next).map(key).collect();
            let mut tx = self.pools.work.begin().await?;
            enqueue_many(&mut tx, &noop_job(String::new(), payload), &keys).await?;
            tx.commit().await?;
            self.enqueued = next;
        }
        Ok(())
    }

    /// As a request does it: enqueue, commit, poke.
    async fn one(&mut self, payload: usize) -> anyhow::Result<()> {
        let mut tx = self.pools.work.begin().await?;
        let enqueued = enqueue(&mut tx, noop_job(key(self.enqueued), payload)).await?;
        tx.commit().await?;
        self.admitter.poke(&enqueued.queue);
        self.enqueued += 1;
        Ok(())
    }

    async fn start(&self) -> anyhow::Result<Engine> {
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
        let executor: Arc<dyn Executor> = self.noop.clone();
        Ok(Engine::start(
            EngineConfig::default(),
            self.pools.clone(),
            kinds,
            HashMap::from([("noop", executor)]),
            (self.hints.clone(), self.admitter.clone()),
            &[("noop".into(), "noop")],
        )
        .await?)
    }
}

fn key(number: usize) -> String {
    format!("bench:{number}")
}

/// An exclusive job: with a key of its own, as all our kinds are.
fn noop_job(key: String, payload: usize) -> NewJob {
    NewJob {
        kind: "noop",
        queue: "noop".into(),
        tenant: "bench".into(),
        workspace_id: None,
        keys: vec![key],
        dedupe_key: None,
        args: serde_json::json!({ "payload": "x".repeat(payload) }),
        args_version: 1,
        priority: 0,
        delay: Duration::ZERO,
        deadline: Duration::from_secs(86_400),
        max_attempts: 3,
        created_by: "bench".into(),
    }
}
