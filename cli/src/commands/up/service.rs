//! A server run as a child: started, watched, started again when it dies, stopped when its turn comes.
//!
//! Each is the leader of a process group of its own: Ctrl-C on the terminal reaches `up` only, which then stops them in
//! the right order. Should one die by itself it is started again after a pause that grows with every death in a row.

use std::fs::File;
use std::io::ErrorKind;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use longshore_base::clock::Stopwatch;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::account::ServiceAccount;

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// For the kernel to take a killed process away.
const KILL_LIMIT: Duration = Duration::from_millis(500);
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// A server that ran this long was well; its next death is the first in a row.
const WELL: Duration = Duration::from_secs(60);

/// One kind of server.
pub(super) trait Service: Send + Sync + 'static {
    /// For the log.
    const NAME: &'static str;
    /// Signals that stop it, politest first; the time it is given is shared out among them.
    const STOP: &'static [Signal];

    /// How long a start may take; recovery after a crash counts in.
    const START_LIMIT: Duration;

    /// Where it writes what goes wrong.
    fn log(&self) -> &Path;

    /// Whether the process with this id serves.
    fn is_ready(&self, pid: u32) -> impl Future<Output = bool> + Send;

    /// Starts it and answers once it serves.
    fn launch(&self) -> impl Future<Output = anyhow::Result<Child>> + Send;
}

/// A server that is running and will be, until it is stopped.
pub(super) struct Running {
    name: &'static str,
    stop: CancellationToken,
    limit: tokio::sync::watch::Sender<Duration>,
    task: JoinHandle<()>,
}

impl Running {
    /// Starts a server. An error here is final: what never ran is not tried again.
    pub(super) async fn start<S: Service>(service: S) -> anyhow::Result<Self> {
        let child = service.launch().await?;
        let stop = CancellationToken::new();
        let (limit, patience) = tokio::sync::watch::channel(Duration::from_secs(5));
        let stopping = stop.clone();
        let task = tokio::spawn(async move {
            if let Some(mut child) = keep_running(&service, child, &stopping).await {
                let limit = *patience.borrow();
                end::<S>(&mut child, limit).await;
            }
        });
        Ok(Self {
            name: S::NAME,
            stop,
            limit,
            task,
        })
    }

    /// Stops it within the limit, gently at first. One that is just being started again is left to the next `up`.
    pub(super) async fn stop(self, limit: Duration) {
        self.limit.send_replace(limit);
        self.stop.cancel();
        match tokio::time::timeout(limit + KILL_LIMIT, self.task).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::error!(service = self.name, %error, "the task that watches it has failed");
            }
            Err(_) => tracing::warn!(
                service = self.name,
                "it is left running; the next start ends it"
            ),
        }
    }
}

/// A command for a server: its own process group, its directory, its user, nothing of our terminal.
pub(super) fn command(program: &Path, directory: &Path, account: &ServiceAccount) -> Command {
    let mut command = Command::new(program);
    command
        .current_dir(directory)
        .process_group(0)
        .stdin(Stdio::null())
        // Our settings hold secrets; the servers need none of them.
        .env_clear()
        .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
        .env("LC_ALL", "C");
    if let Some((uid, gid)) = account.ids() {
        command.uid(uid).gid(gid);
    }
    command
}

/// Opens a log anew; the one before stays beside it, for what a server said before it died.
pub(super) fn open_log(log: &Path) -> anyhow::Result<File> {
    match std::fs::rename(log, log.with_extension("log.1")) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot rename {}", log.display()));
        }
        _ => {}
    }
    File::create(log).with_context(|| format!("cannot write {}", log.display()))
}

/// Watches a child and replaces it when it dies. Answers the living one when told to stop, or none between two.
async fn keep_running<S: Service>(
    service: &S,
    first: Child,
    stop: &CancellationToken,
) -> Option<Child> {
    let mut child = first;
    let mut pause = FIRST_PAUSE;
    loop {
        let watch = Stopwatch::start();
        let ended = tokio::select! {
            () = stop.cancelled() => return Some(child),
            ended = child.wait() => ended,
        };
        tracing::error!(service = S::NAME, how = %describe(&ended), "it ended by itself and is started again");
        if watch.elapsed() > WELL {
            pause = FIRST_PAUSE;
        }
        child = loop {
            tokio::select! {
                () = stop.cancelled() => return None,
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
            match service.launch().await {
                Ok(child) => break child,
                Err(error) => tracing::error!(
                    service = S::NAME,
                    error = format!("{error:#}"),
                    "it does not start"
                ),
            }
        };
        tracing::info!(service = S::NAME, "it serves again");
    }
}

async fn end<S: Service>(child: &mut Child, limit: Duration) {
    let watch = Stopwatch::start();
    let share = limit / u32::try_from(S::STOP.len().max(1)).unwrap_or(1);
    for (nth, signal) in (1..).zip(S::STOP) {
        let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) else {
            return;
        };
        if let Err(error) = kill(Pid::from_raw(pid), *signal) {
            tracing::warn!(service = S::NAME, %error, "cannot signal it");
        }
        let until = share * nth;
        if tokio::time::timeout(until.saturating_sub(watch.elapsed()), child.wait())
            .await
            .is_ok()
        {
            tracing::debug!(service = S::NAME, took_ms = watch.elapsed_ms(), "stopped");
            return;
        }
        tracing::warn!(service = S::NAME, %signal, "it did not stop in time");
    }
    if let Err(error) = child.kill().await {
        tracing::error!(service = S::NAME, %error, "cannot kill it");
    }
}

/// Waits until it serves. Its death and the limit are errors that quote the end of its log.
pub(super) async fn until_ready<S: Service>(service: &S, child: &mut Child) -> anyhow::Result<()> {
    let watch = Stopwatch::start();
    let log = service.log();
    loop {
        if let Some(status) = child.try_wait()? {
            anyhow::bail!(
                "{} did not start ({status}): {} (its log: {})",
                S::NAME,
                last_words(log),
                log.display()
            );
        }
        if let Some(pid) = child.id()
            && service.is_ready(pid).await
        {
            return Ok(());
        }
        if watch.elapsed() > S::START_LIMIT {
            child
                .kill()
                .await
                .with_context(|| format!("cannot end {}", S::NAME))?;
            anyhow::bail!(
                "{} did not serve within {} s: {} (its log: {})",
                S::NAME,
                S::START_LIMIT.as_secs(),
                last_words(log),
                log.display()
            );
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// The last line of a log that says something went wrong, else its last line.
fn last_words(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text
        .lines()
        .rev()
        .take(20)
        .filter(|line| !line.trim().is_empty())
        .collect();
    lines
        .iter()
        .find(|line| {
            ["FATAL", "PANIC", "ERROR", "error", "Fatal"]
                .iter()
                .any(|word| line.contains(word))
        })
        .or_else(|| lines.first())
        .map_or_else(
            || "it wrote nothing".to_owned(),
            |line| line.trim().to_owned(),
        )
}

fn describe(ended: &std::io::Result<ExitStatus>) -> String {
    match ended {
        Ok(status) => status.to_string(),
        Err(error) => error.to_string(),
    }
}
