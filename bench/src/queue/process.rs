//! A process that enqueues or runs jobs of one system, steered by one JSON object a line on its standard input.
//!
//! `prepare` makes what the system keeps jobs in, `fill` enqueues `jobs` of them in bulk, `one` enqueues a single one as a
//! request would, `start` begins to run jobs and `stop` ends that. Each is answered with `done`, `begin` and `end`. In
//! between the process tells in `ran` how many jobs it ran so far and in `last` when the last of them began. Times are
//! nanoseconds of `CLOCK_MONOTONIC`. Ours, the Node peers and apalis all speak this, so all are measured alike.

use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

/// How long anything may take before the run is given up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1_200);

/// Bytes of payload in each job.
pub(crate) const PAYLOAD: usize = 200;

#[derive(Serialize, Deserialize)]
pub(crate) struct Instruction {
    #[serde(rename = "do")]
    pub(crate) what: String,
    pub(crate) jobs: usize,
    pub(crate) payload: usize,
}

/// Jobs run so far, and when the last began.
#[derive(Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Ran {
    #[serde(rename = "ran")]
    pub(crate) count: u64,
    pub(crate) last: u64,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Answer {
    pub(crate) done: String,
    pub(crate) begin: u64,
    pub(crate) end: u64,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Answer(Answer),
    Ran(Ran),
}

pub(crate) struct Process {
    child: Child,
    input: ChildStdin,
    answers: mpsc::Receiver<Answer>,
    pub(crate) ran: watch::Receiver<Ran>,
}

impl Process {
    pub(crate) fn spawn(mut command: Command) -> anyhow::Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        let input = child.stdin.take().context("no standard input")?;
        let output = child.stdout.take().context("no standard output")?;
        let (answer, answers) = mpsc::channel(1);
        let (tell, ran) = watch::channel(Ran::default());
        tokio::spawn(async move {
            if let Err(error) = read(output, answer, tell).await {
                eprintln!("a process of a system: {error:#}");
            }
        });
        Ok(Self {
            child,
            input,
            answers,
            ran,
        })
    }

    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    pub(crate) async fn call(&mut self, what: &str, jobs: usize) -> anyhow::Result<Answer> {
        let mut line = serde_json::to_string(&Instruction {
            what: what.to_owned(),
            jobs,
            payload: PAYLOAD,
        })?;
        line.push('\n');
        self.input.write_all(line.as_bytes()).await?;
        let answer = timeout(PATIENCE, self.answers.recv())
            .await
            .with_context(|| format!("no answer to {what}"))?
            .with_context(|| format!("it ended at {what}"))?;
        anyhow::ensure!(answer.done == what, "{what} was answered {}", answer.done);
        Ok(answer)
    }

    /// Closes its input, which ends it.
    pub(crate) async fn end(self) -> anyhow::Result<()> {
        let Self {
            mut child, input, ..
        } = self;
        drop(input);
        let status = timeout(Duration::from_secs(30), child.wait())
            .await
            .context("it did not end")??;
        anyhow::ensure!(status.success(), "it ended with {status}");
        Ok(())
    }
}

async fn read(
    output: ChildStdout,
    answer: mpsc::Sender<Answer>,
    tell: watch::Sender<Ran>,
) -> anyhow::Result<()> {
    let mut lines = BufReader::new(output).lines();
    while let Some(line) = lines.next_line().await? {
        // What libraries write on standard output is none of ours.
        match serde_json::from_str(&line) {
            Ok(Line::Answer(answered)) => answer.send(answered).await?,
            Ok(Line::Ran(ran)) => {
                tell.send_replace(ran);
            }
            Err(_) => eprintln!("{line}"),
        }
    }
    Ok(())
}
