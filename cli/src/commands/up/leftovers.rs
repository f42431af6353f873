//! Servers a killed `up` left running. They are found by what they are, never by a process id alone, which may belong to
//! somebody else by now: a process of that program whose working directory is the very data directory we are about to
//! use. Postgres and Redis both work in theirs, and so does every backend of Postgres.
//!
//! They are ended rather than adopted: a clean stop takes a fraction of a second, and every server then is a child of
//! ours that we can wait for.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::bail;
use longshore_base::clock::Stopwatch;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const LOOK_AGAIN: Duration = Duration::from_millis(25);

/// A running process, as much as matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Process {
    pid: i32,
    parent: i32,
}

/// Ends what runs `program` in `directory`: by `polite` to the first of them, which ends the others; then harder.
pub(super) async fn end(directory: &Path, program: &str, polite: Signal) -> anyhow::Result<()> {
    let found = living(directory, program);
    if found.is_empty() {
        return Ok(());
    }
    tracing::info!(
        program,
        processes = found.len(),
        directory = %directory.display(),
        "ending what an earlier run left behind"
    );
    let stages = [
        (polite, Duration::from_secs(10)),
        (Signal::SIGQUIT, Duration::from_secs(3)),
        (Signal::SIGKILL, Duration::from_secs(3)),
    ];
    for (signal, patience) in stages {
        let processes = living(directory, program);
        let only_first = signal == polite;
        for process in &processes {
            let has_parent_here = processes.iter().any(|other| other.pid == process.parent);
            if only_first && has_parent_here {
                continue;
            }
            match kill(Pid::from_raw(process.pid), signal) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(error) => {
                    tracing::warn!(process = process.pid, %error, "cannot end a leftover")
                }
            }
        }
        let watch = Stopwatch::start();
        while watch.elapsed() < patience {
            if living(directory, program).is_empty() {
                return Ok(());
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
    let pids: Vec<String> = living(directory, program)
        .iter()
        .map(|process| process.pid.to_string())
        .collect();
    bail!(
        "{program} of an earlier run (process {}) still uses {} and does not end",
        pids.join(", "),
        directory.display()
    )
}

/// Whether any process runs `program` in `directory`.
pub(super) fn any(directory: &Path, program: &str) -> bool {
    !living(directory, program).is_empty()
}

fn living(directory: &Path, program: &str) -> Vec<Process> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid: i32| {
            let home = PathBuf::from(format!("/proc/{pid}"));
            let works_in = std::fs::read_link(home.join("cwd")).ok()?;
            let name = std::fs::read_to_string(home.join("comm")).ok()?;
            if works_in != directory || name.trim() != program {
                return None;
            }
            let status = std::fs::read_to_string(home.join("stat")).ok()?;
            Some(Process {
                pid,
                parent: parent(&status)?,
            })
        })
        .collect()
}

/// The parent's id in a line of `/proc/<pid>/stat`: the second field after the name, which may itself hold anything.
fn parent(stat: &str) -> Option<i32> {
    stat.rsplit_once(')')?
        .1
        .split_whitespace()
        .nth(1)?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn the_parent_is_read_behind_any_name() {
        assert_eq!(parent("12 (a) b (c) S 34 12 12 0"), Some(34));
        assert_eq!(parent("nonsense"), None);
    }

    #[tokio::test]
    async fn only_the_program_that_works_in_the_directory_is_ended() {
        let ours = tempfile::tempdir().unwrap();
        let other = tempfile::tempdir().unwrap();
        let sleep = |directory: &Path| {
            Command::new("sleep")
                .arg("60")
                .current_dir(directory)
                .spawn()
                .unwrap()
        };
        let (mut target, mut bystander) = (sleep(ours.path()), sleep(other.path()));
        let directory = ours.path().canonicalize().unwrap();
        let reaper = std::thread::spawn(move || target.wait().unwrap());
        end(&directory, "not-sleep", Signal::SIGTERM).await.unwrap();
        assert!(any(&directory, "sleep"));
        end(&directory, "sleep", Signal::SIGTERM).await.unwrap();
        assert!(!reaper.join().unwrap().success());
        assert!(bystander.try_wait().unwrap().is_none());
        bystander.kill().unwrap();
        bystander.wait().unwrap();
    }
}
