//! Named points at which a test can make a process die, stop or wait (`spec: jobs` §14).
//!
//! Without the cargo feature `failpoints` [`hit`] is empty. With it, `LONGSHORE_FAILPOINTS` says what happens where:
//! `name=action` pairs separated by `;`, an action being `die` (SIGKILL), `stop` (SIGSTOP), `sleep:MS` or
//! `gate:PATH` (wait until the file exists). `name*N=action` acts at the N-th hit only. `LONGSHORE_EFFECT_LATER`
//! makes the process play a later version of itself, `LONGSHORE_MANY` says from how many free slots on a worker takes
//! a backlog by itself, `LONGSHORE_PUBLISH_BUDGET_MS` how long a publish to Redis may take, and `LONGSHORE_CP_CALL_SECONDS`
//! how long a call to a remote control plane. This is the one place below the command line that reads the environment,
//! since it exists only in binaries made for tests.

/// Every point of this name in the source. The crash tests walk this list.
pub const POINTS: &[&str] = &[
    "admit.committed",
    "claim.committed",
    "provision.entered",
    "provision.prepared",
    "provision.token_issued",
    "docker.after_volumes",
    "docker.after_remove",
    "docker.after_create",
    "docker.after_configure",
    "docker.after_start",
    "provision.started",
    "provision.persisted",
    "instance.stopped",
    "restart.guarded",
    "restart.stopped",
    "restart.begun",
    "purge.entered",
    "purge.taken_down",
    "purge.rows_deleted",
    "finish.before",
    "reseal.part",
    "fanout.part",
    "rollout.moved",
];

/// Passes a named point. A no-op unless the feature is on and the test asked for this point.
#[cfg(not(feature = "failpoints"))]
#[inline]
pub async fn hit(_name: &'static str) {}

/// A number a test may change through the environment, where the feature is on.
#[cfg(not(feature = "failpoints"))]
#[inline]
#[must_use]
pub const fn number(_variable: &'static str, value: usize) -> usize {
    value
}

#[cfg(feature = "failpoints")]
pub use enabled::{hit, is_later_version, number};

#[cfg(feature = "failpoints")]
mod enabled {
    use std::collections::HashMap;
    use std::path::PathBuf;
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    enum Action {
        Signal(Signal),
        Sleep(Duration),
        Gate(PathBuf),
    }

    struct Armed {
        only_hit: Option<u32>,
        hits: AtomicU32,
        action: Action,
    }

    static ARMED: LazyLock<HashMap<String, Armed>> = LazyLock::new(|| {
        std::env::var("LONGSHORE_FAILPOINTS")
            .unwrap_or_default()
            .split(';')
            .filter(|entry| !entry.is_empty())
            .map(parse)
            .collect()
    });

    fn parse(entry: &str) -> (String, Armed) {
        let wrong = || -> ! {
            eprintln!("LONGSHORE_FAILPOINTS: cannot read `{entry}`");
            std::process::exit(2);
        };
        let Some((name, action)) = entry.split_once('=') else {
            wrong()
        };
        let (name, only_hit) = match name.split_once('*') {
            Some((name, nth)) => (name, Some(nth.parse().unwrap_or_else(|_| wrong()))),
            None => (name, None),
        };
        if !super::POINTS.contains(&name) {
            wrong();
        }
        let action = match action.split_once(':').unwrap_or((action, "")) {
            ("die", "") => Action::Signal(Signal::SIGKILL),
            ("stop", "") => Action::Signal(Signal::SIGSTOP),
            ("sleep", ms) => Action::Sleep(Duration::from_millis(
                ms.parse().unwrap_or_else(|_| wrong()),
            )),
            ("gate", path) if !path.is_empty() => Action::Gate(path.into()),
            _ => wrong(),
        };
        (
            name.to_owned(),
            Armed {
                only_hit,
                hits: AtomicU32::new(0),
                action,
            },
        )
    }

    /// Whether this process plays a later version of the program.
    #[must_use]
    pub fn is_later_version() -> bool {
        std::env::var_os("LONGSHORE_EFFECT_LATER").is_some()
    }

    /// A number a test may change through the environment: what this variable says, else the value.
    #[must_use]
    pub fn number(variable: &'static str, value: usize) -> usize {
        let said = std::env::var(variable).ok();
        said.and_then(|said| said.parse().ok()).unwrap_or(value)
    }

    /// Passes a named point; see the module.
    pub async fn hit(name: &'static str) {
        debug_assert!(super::POINTS.contains(&name), "{name} is not in POINTS");
        let Some(armed) = ARMED.get(name) else { return };
        let nth = armed.hits.fetch_add(1, Ordering::SeqCst) + 1;
        if armed.only_hit.is_some_and(|only| only != nth) {
            return;
        }
        tracing::warn!(failpoint = name, "fail point reached");
        match &armed.action {
            Action::Signal(signal) => {
                if let Err(error) = kill(Pid::this(), *signal) {
                    tracing::error!(%error, failpoint = name, "cannot signal this process");
                }
                // The signal is delivered to some thread of this process; no further step may slip past it.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Action::Sleep(time) => tokio::time::sleep(*time).await,
            Action::Gate(path) => {
                while !path.exists() {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
        }
    }
}
