//! `effect`: does nothing but tell, step by step, what it is doing to a process that writes it down. For tests of the job
//! engine only: it is there with the cargo feature `failpoints` alone.
//!
//! Each run takes a fencing number, opens a connection to the sink its arguments name, and sends one line of JSON for its
//! begin, each step and its end. The sink answers `ok`, or `fenced` to a run that comes with a lower number than it has
//! seen for one of the keys.

use std::time::Duration;

use async_trait::async_trait;
use longshore_base::failpoint::is_later_version;
use longshore_ledger::{
    Backoff, Executor, Fenced, Jitter, JobError, KindSpec, Policy, RunContext, Verdict,
};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

/// The kind's name.
pub const KIND: &str = "effect";
/// Its queues are these places', so that jobs of one key can come through two queues.
pub const PLACES: &[&str] = &["left", "right"];

const POLICY: Policy = Policy {
    max_attempts: 4,
    backoff: Backoff {
        base: Duration::from_millis(200),
        cap: Duration::from_secs(1),
        jitter: Jitter::Full,
    },
    timeout: Duration::from_secs(60),
    deadline: Duration::from_secs(24 * 3600),
    concurrency: 8,
};

/// What is to be done.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Args {
    /// Where the sink listens.
    pub sink: String,
    /// Steps of a run.
    pub steps: u32,
    /// Time between two of them.
    pub step_ms: u64,
    /// How it is to end.
    pub plan: Plan,
}

/// How runs are to end.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Plan {
    /// Well.
    Succeed,
    /// With an error, until this many attempts have failed.
    Fail(i32),
    /// With the process, until this many workers have died of it.
    Die(i32),
    /// With an error for good.
    Permanent,
    /// With a panic.
    Panic,
}

/// A kind that only a later version of this program has. That reads arguments of version 2 as well; they are the same.
pub const LATER_KIND: &str = "effect-later";

/// The kinds this version has.
pub(crate) fn kinds() -> impl Iterator<Item = &'static str> {
    std::iter::once(KIND).chain(is_later_version().then_some(LATER_KIND))
}

/// What every process knows of a kind.
pub(crate) fn spec(name: &'static str) -> KindSpec {
    KindSpec {
        name,
        args_versions: if is_later_version() { &[1, 2] } else { &[1] },
        policy: POLICY,
        hooks: None,
    }
}

/// Runs them.
pub(crate) struct EffectExecutor;

#[async_trait]
impl Executor for EffectExecutor {
    async fn run(&self, ctx: &RunContext) -> Verdict {
        match perform(ctx).await {
            Ok(verdict) => verdict,
            Err(Trouble::Fenced(Fenced::Lost(_)) | Trouble::Refused) => Verdict::GiveBack,
            // The chaos is about Postgres, so this is nobody's failure.
            Err(Trouble::Fenced(Fenced::Database { .. })) => {
                Verdict::Snooze(Duration::from_millis(200), "no database".into())
            }
            Err(Trouble::Sink(error)) => Verdict::Permanent(JobError::new("no sink", &error)),
        }
    }
}

enum Trouble {
    Fenced(Fenced),
    /// The sink has seen a later run of one of the keys.
    Refused,
    Sink(std::io::Error),
}

impl From<Fenced> for Trouble {
    fn from(fenced: Fenced) -> Self {
        Self::Fenced(fenced)
    }
}

impl From<std::io::Error> for Trouble {
    fn from(error: std::io::Error) -> Self {
        Self::Sink(error)
    }
}

async fn perform(ctx: &RunContext) -> Result<Verdict, Trouble> {
    let job = ctx.job();
    let args: Args = match job.read_args() {
        Ok(args) => args,
        Err(unreadable) => return Ok(Verdict::Permanent(unreadable)),
    };
    let mut tx = ctx.begin().await?;
    let fence = tx.fencing_number().await?;
    tx.commit().await?;
    let mut sink = Sink {
        link: BufReader::new(TcpStream::connect(&args.sink).await?),
        run: serde_json::json!({
            "job": job.id.to_string(), "keys": job.keys, "fence": fence, "attempt": job.attempt, "crashes": job.crashes,
            "pid": std::process::id(),
        }),
    };
    sink.tell("begin", 0).await?;
    for step in 1..=args.steps {
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(args.step_ms)) => {}
            () = ctx.stopping() => {
                sink.tell("stopped", step).await?;
                return Ok(ctx.stopped_verdict());
            }
        }
        sink.tell("step", step).await?;
        if let Plan::Die(deaths) = args.plan
            && job.crashes < deaths
        {
            std::process::abort();
        }
    }
    let failure = match args.plan {
        Plan::Fail(failures) if job.attempt < failures => {
            Verdict::Retry(JobError::plain("failed as planned"))
        }
        Plan::Permanent => Verdict::Permanent(JobError::plain("failed for good as planned")),
        Plan::Panic => {
            sink.tell("failed", args.steps).await?;
            panic!("as planned");
        }
        Plan::Succeed | Plan::Fail(_) | Plan::Die(_) => {
            sink.tell("end", args.steps).await?;
            return Ok(Verdict::Done(None));
        }
    };
    sink.tell("failed", args.steps).await?;
    Ok(failure)
}

struct Sink {
    link: BufReader<TcpStream>,
    run: serde_json::Value,
}

impl Sink {
    async fn tell(&mut self, what: &str, step: u32) -> Result<(), Trouble> {
        self.run["what"] = what.into();
        self.run["step"] = step.into();
        let line = format!("{}\n", self.run);
        self.link.get_mut().write_all(line.as_bytes()).await?;
        let mut answer = String::new();
        self.link.read_line(&mut answer).await?;
        match answer.trim() {
            "ok" => Ok(()),
            "fenced" => Err(Trouble::Refused),
            _ => Err(Trouble::Sink(std::io::ErrorKind::InvalidData.into())),
        }
    }
}
