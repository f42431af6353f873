//! What processes cost: their time on the CPU, read from procfs, and the clock they share.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

/// Clock ticks a second in procfs: fixed by Linux' interface to programs, whatever the kernel runs at.
const TICKS: u64 = 100;

/// Asks a process to end.
pub(crate) fn terminate(pid: u32) -> anyhow::Result<()> {
    Ok(kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGTERM)?)
}

/// Nanoseconds of the clock that all processes of the machine share.
pub(crate) fn now() -> anyhow::Result<u64> {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
    Ok(u64::try_from(Duration::from(time).as_nanos())?)
}

/// CPU time of processes and all below them, the ended and waited for included.
pub(crate) fn cpu_time(roots: &[u32]) -> anyhow::Result<Duration> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    let mut ticks: HashMap<u32, u64> = HashMap::new();
    for entry in std::fs::read_dir("/proc")? {
        let Ok(pid) = entry?.file_name().to_string_lossy().parse::<u32>() else {
            continue;
        };
        // One that ended meanwhile has told its parent.
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
            continue;
        };
        let (parent, used) = parse_stat(&stat).context("cannot read /proc/PID/stat")?;
        children.entry(parent).or_default().push(pid);
        ticks.insert(pid, used);
    }
    let mut pending = roots.to_vec();
    let mut sum = 0;
    while let Some(pid) = pending.pop() {
        sum += ticks.get(&pid).copied().unwrap_or_default();
        pending.extend(children.get(&pid).into_iter().flatten());
    }
    Ok(Duration::from_millis(sum * 1_000 / TICKS))
}

/// Parent and used ticks (own and of waited-for children) of a line of `/proc/PID/stat`.
fn parse_stat(stat: &str) -> Option<(u32, u64)> {
    // The name, second, stands in brackets and may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let used = fields
        .get(11..15)?
        .iter()
        .map(|field| field.parse::<u64>().ok())
        .sum::<Option<u64>>()?;
    Some((fields.get(1)?.parse().ok()?, used))
}
