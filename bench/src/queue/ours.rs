//! Longshore's ledger as one of the measured systems, in a process of its own like the others.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail};
use async_trait::async_trait;
use longshore_base::schema;
use longshore_ledger::{Engine, Executor, RunContext, Verdict, enqueue, enqueue_many};
use tokio::io::{AsyncBufReadExt as _, BufReader};

use super::process::{Answer, Instruction, Ran};
use crate::ledger::{Ledger, job};
use crate::resources::now;

/// Jobs one enqueue transaction writes while a backlog is built.
const CHUNK: usize = 5_000;
/// Whose jobs they are.
const TENANT: &str = "bench";
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
    /// Gives each job a key of its own.
    #[arg(long)]
    exclusive: bool,
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
    ledger: Ledger,
    noop: Arc<Noop>,
    concurrency: usize,
    exclusive: bool,
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
        let ledger = Ledger::connect(&arguments.database_url, &arguments.redis_url).await?;
        Ok(Self {
            ledger,
            noop: Arc::default(),
            concurrency: arguments.concurrency,
            exclusive: arguments.exclusive,
            enqueued: 0,
            engine: None,
        })
    }

    async fn carry_out(&mut self, instruction: &Instruction) -> anyhow::Result<()> {
        match instruction.what.as_str() {
            "prepare" => schema::MIGRATOR.run(&self.ledger.pools.work).await?,
            "fill" => self.fill(instruction.jobs, instruction.payload).await?,
            "one" => self.one(instruction.payload).await?,
            "start" => {
                let engine = self.ledger.start(self.noop.clone(), self.concurrency);
                self.engine = Some(engine.await?);
            }
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
            let keys: Vec<String> = (self.enqueued..next)
                .map(|number| self.key(number))
                .collect();
            let mut tx = self.ledger.pools.work.begin().await?;
            enqueue_many(&mut tx, &job(TENANT, String::new(), payload), &keys).await?;
            tx.commit().await?;
            self.enqueued = next;
        }
        Ok(())
    }

    /// As a request does it: enqueue, commit, poke.
    async fn one(&mut self, payload: usize) -> anyhow::Result<()> {
        let mut tx = self.ledger.pools.work.begin().await?;
        let enqueued = enqueue(&mut tx, job(TENANT, self.key(self.enqueued), payload)).await?;
        tx.commit().await?;
        self.ledger.admitter.poke(&enqueued.queue);
        self.enqueued += 1;
        Ok(())
    }

    /// None where it is empty.
    fn key(&self, number: usize) -> String {
        if self.exclusive {
            format!("bench:{number}")
        } else {
            String::new()
        }
    }
}
