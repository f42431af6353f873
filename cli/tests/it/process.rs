//! Running the binary, and waiting for what it does.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(30);

/// The binary with nothing of the developer's own settings.
pub(crate) fn longshore() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_longshore"));
    command
        .env_clear()
        .envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
    command
}

/// Runs to the end.
pub(crate) fn run(command: &mut Command) -> (Option<i32>, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = command.stdin(Stdio::null()).output().unwrap();
    (
        status.code(),
        String::from_utf8(stdout).unwrap(),
        String::from_utf8(stderr).unwrap(),
    )
}

/// Waits for a condition; fails with what was seen last.
pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let began = Instant::now();
    loop {
        match look() {
            Ok(found) => return found,
            Err(seen) if began.elapsed() > PATIENCE => panic!("{what}: {seen}"),
            Err(_) => std::thread::yield_now(),
        }
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// A `longshore up` of its own, in a directory of its own, without Docker.
pub(crate) struct Up {
    pub(crate) child: Child,
    output: TempDir,
    data: PathBuf,
}

impl Up {
    /// Starts one; `more` may add to the command.
    pub(crate) fn start(data: &Path, more: impl FnOnce(&mut Command)) -> Self {
        let output = tempfile::tempdir().unwrap();
        let file = |name| File::create(output.path().join(name)).unwrap();
        let mut command = longshore();
        command
            .args([
                "up",
                "--listen",
                "127.0.0.1:0",
                "--metrics-listen",
                "none",
                "--data",
            ])
            .arg(data)
            .env("DOCKER_HOST", "unix:///nonexistent/docker.sock")
            .stdin(Stdio::null())
            .stdout(file("out"))
            .stderr(file("err"));
        more(&mut command);
        Self {
            child: command.spawn().unwrap(),
            output,
            data: data.to_owned(),
        }
    }

    /// Starts one and waits until it serves.
    pub(crate) fn serving(data: &Path) -> Self {
        let mut up = Self::start(data, |_| ());
        up.until_it_serves();
        up
    }

    pub(crate) fn until_it_serves(&mut self) {
        until("`up` serves", || {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("`up` ended with {status}: {}", self.stderr());
            }
            if self.stdout().contains("Longshore is up at") {
                Ok(())
            } else {
                Err(self.stderr())
            }
        });
    }

    pub(crate) fn stdout(&self) -> String {
        std::fs::read_to_string(self.output.path().join("out")).unwrap()
    }

    pub(crate) fn stderr(&self) -> String {
        std::fs::read_to_string(self.output.path().join("err")).unwrap()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).unwrap();
        kill(Pid::from_raw(pid), signal).unwrap();
    }

    pub(crate) fn ended(&mut self) -> ExitStatus {
        until("`up` ends", || match self.child.try_wait().unwrap() {
            Some(status) => Ok(status),
            None => Err(self.stderr()),
        })
    }

    /// Asks it to stop and waits; answers status and time taken.
    pub(crate) fn stop(&mut self) -> (ExitStatus, Duration) {
        let began = Instant::now();
        self.signal(Signal::SIGTERM);
        (self.ended(), began.elapsed())
    }

    /// Ids of the Postgres and Redis processes that work below the data directory.
    pub(crate) fn servers(&self) -> Vec<i32> {
        servers_below(&self.data)
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        if self.child.try_wait().ok().flatten().is_none() {
            self.signal(Signal::SIGKILL);
            self.child.wait().ok();
        }
        // Those of an `up` that was killed.
        for pid in self.servers() {
            kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
        }
    }
}

/// The same, by where they work: `services.path` says where that is when it is not below the data directory.
pub(crate) fn servers_below(data: &Path) -> Vec<i32> {
    let mut homes = vec![data.canonicalize().unwrap_or_else(|_| data.to_owned())];
    if let Ok(elsewhere) = std::fs::read_to_string(data.join("services.path")) {
        homes.push(PathBuf::from(elsewhere.trim()));
    }
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid: &i32| {
            std::fs::read_link(format!("/proc/{pid}/cwd"))
                .is_ok_and(|cwd| homes.iter().any(|home| cwd.starts_with(home)))
        })
        .collect()
}
