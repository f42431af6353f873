//! Processes under test: started, read, signalled, and gone with the test.

use std::fs::File;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::wait::wait_until;

/// Of a log that is shown after a failure.
const LINES_SHOWN: usize = 150;

/// A process of this test. Its log goes to a file, which is shown when the test fails.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts a command whose output goes to `<place>/<name>.log`.
    #[must_use]
    pub fn start(name: &str, command: &mut Command, place: &Path) -> Self {
        let log = place.join(format!("{name}.log"));
        let file = File::create(&log).unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
        Self {
            name: name.to_owned(),
            child,
            log,
            ended: None,
        }
    }

    /// Its id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        assert!(self.ended.is_none(), "{} has ended", self.name);
        kill(Pid::from_raw(i32::try_from(self.pid()).unwrap()), signal).unwrap();
    }

    /// Kills it and waits until it is gone.
    pub fn kill(&mut self) {
        if self.status().is_none() {
            self.signal(Signal::SIGKILL);
            self.ended = Some(self.child.wait().unwrap());
        }
    }

    /// Asks it to end, and kills it if it does not in time. For destructors, which cannot await.
    pub fn end(&mut self, signal: Signal, limit: Duration) {
        if self.status().is_none() {
            self.signal(signal);
        }
        let began = Instant::now();
        while self.status().is_none() && began.elapsed() < limit {
            std::thread::park_timeout(Duration::from_millis(20));
        }
        self.kill();
    }

    /// How it ended, if it has.
    pub fn status(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().unwrap();
        }
        self.ended
    }

    /// Waits until it has ended.
    pub async fn ended(&mut self, deadline: Duration) -> ExitStatus {
        let what = format!("the end of {}", self.name);
        // `try_wait` wants the child for itself, so the closure cannot be async over it.
        let process = std::cell::RefCell::new(self);
        wait_until(&what, deadline, || {
            let status = process.borrow_mut().status();
            async move { status.ok_or_else(|| "it runs".to_owned()) }
        })
        .await
    }

    /// Waits until SIGKILL has ended it, as fail points do.
    pub async fn died(&mut self, deadline: Duration) {
        let status = self.ended(deadline).await;
        assert_eq!(
            status.signal(),
            Some(Signal::SIGKILL as i32),
            "{} ended otherwise: {status}",
            self.name
        );
    }

    /// Waits until SIGSTOP has stopped it.
    pub async fn stopped(&self, deadline: Duration) {
        let path = format!("/proc/{}/stat", self.pid());
        wait_until(&format!("{} to stop", self.name), deadline, || async {
            let stat = std::fs::read_to_string(&path).map_err(|error| error.to_string())?;
            // After the name in parentheses comes the state; `T` is stopped.
            let state = stat.rsplit(')').next().unwrap_or_default().trim_start();
            if state.starts_with('T') {
                Ok(())
            } else {
                Err(state.chars().take(1).collect())
            }
        })
        .await;
    }

    /// Everything it wrote.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The lines of its log that are events.
    #[must_use]
    pub fn log_lines(&self) -> Vec<LogLine> {
        self.log()
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok().map(LogLine))
            .collect()
    }

    /// The lines whose message is this.
    #[must_use]
    pub fn log_lines_saying(&self, message: &str) -> Vec<LogLine> {
        let mut lines = self.log_lines();
        lines.retain(|line| line.field("message") == message);
        lines
    }
}

/// One event of a log.
#[derive(Clone, Debug)]
pub struct LogLine(pub Value);

impl LogLine {
    /// A field as text; empty when it is not there.
    #[must_use]
    pub fn field(&self, name: &str) -> &str {
        self.0.get(name).and_then(Value::as_str).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.status().is_none() {
            self.kill();
        }
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let skipped = lines.len().saturating_sub(LINES_SHOWN);
            eprintln!(
                "---- {} (process {}), {skipped} lines left out ----",
                self.name,
                self.pid()
            );
            for line in &lines[skipped..] {
                eprintln!("{line}");
            }
        }
    }
}
