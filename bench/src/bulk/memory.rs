//! How much memory processes have in use while they work.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;

/// Between two samples.
const PERIOD: Duration = Duration::from_millis(100);

pub(super) struct Memory {
    watched: Arc<Mutex<Vec<Watched>>>,
    task: JoinHandle<()>,
}

struct Watched {
    name: &'static str,
    pid: u32,
    /// Resident KiB, one sample after the other.
    samples: Vec<u64>,
}

pub(super) struct Usage(Vec<Watched>);

impl Memory {
    pub(super) fn watch<const N: usize>(processes: [(&'static str, u32); N]) -> Self {
        let watched: Arc<Mutex<Vec<Watched>>> = Arc::default();
        let samples = Arc::clone(&watched);
        let task = tokio::spawn(async move {
            loop {
                sample(&mut samples.lock().unwrap_or_else(PoisonError::into_inner));
                tokio::time::sleep(PERIOD).await;
            }
        });
        let mut memory = Self { watched, task };
        for (name, pid) in processes {
            memory.also(name, pid);
        }
        memory
    }

    pub(super) fn also(&mut self, name: &'static str, pid: u32) {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        watched.push(Watched {
            name,
            pid,
            samples: Vec::new(),
        });
    }

    pub(super) async fn stop(self) -> Usage {
        self.task.abort();
        // Ends by the abort, which is what is wanted.
        let _aborted = self.task.await;
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        Usage(std::mem::take(&mut *watched))
    }
}

fn sample(watched: &mut [Watched]) {
    for process in watched {
        // One that was killed has none.
        process.samples.extend(resident(process.pid));
    }
}

fn resident(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

impl Usage {
    pub(super) fn print(&self) {
        for process in &self.0 {
            let mib = |kib: Option<&u64>| kib.copied().unwrap_or_default() as f64 / 1024.0;
            println!(
                "resident memory of {}: first {:.1} MiB, min {:.1}, max {:.1}, last {:.1} ({} samples)",
                process.name,
                mib(process.samples.first()),
                mib(process.samples.iter().min()),
                mib(process.samples.iter().max()),
                mib(process.samples.last()),
                process.samples.len()
            );
        }
    }
}
