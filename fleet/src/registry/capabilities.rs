//! What agents declare to do themselves, as their latest heartbeat said. In memory, per process: after a restart the
//! next beat brings it back.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use longshore_base::WorkspaceId;

/// The agent judges its own health.
pub(super) const STATUS_MGMT: &str = "status_mgmt";

/// The block `runtime_metadata` of a heartbeat.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuntimeMetadata {
    /// What the agent does itself.
    pub capabilities: BTreeMap<String, bool>,
    /// Its own silence window; not positive means none.
    pub idle_timeout_seconds: Option<i64>,
}

impl RuntimeMetadata {
    pub(super) fn declares(&self, capability: &str) -> bool {
        self.capabilities.get(capability).copied().unwrap_or(false)
    }

    fn says_anything(&self) -> bool {
        self.idle_timeout().is_some() || self.capabilities.values().any(|declared| *declared)
    }

    fn idle_timeout(&self) -> Option<Duration> {
        let seconds = self.idle_timeout_seconds.filter(|seconds| *seconds > 0)?;
        u64::try_from(seconds).ok().map(Duration::from_secs)
    }
}

/// The latest declarations.
#[derive(Debug, Default)]
pub struct Capabilities {
    declared: Mutex<HashMap<WorkspaceId, RuntimeMetadata>>,
}

impl Capabilities {
    /// Whether the agent declared a capability.
    #[must_use]
    pub fn has(&self, id: WorkspaceId, capability: &str) -> bool {
        self.declared()
            .get(&id)
            .is_some_and(|metadata| metadata.declares(capability))
    }

    /// The agent's own silence window.
    #[must_use]
    pub fn idle_timeout(&self, id: WorkspaceId) -> Option<Duration> {
        self.declared().get(&id)?.idle_timeout()
    }

    /// Takes over what a heartbeat said; one that says nothing clears what was said before.
    pub(super) fn record(&self, id: WorkspaceId, metadata: Option<&RuntimeMetadata>) {
        match metadata.filter(|metadata| metadata.says_anything()) {
            Some(metadata) => self.declared().insert(id, metadata.clone()),
            None => self.declared().remove(&id),
        };
    }

    fn declared(&self) -> MutexGuard<'_, HashMap<WorkspaceId, RuntimeMetadata>> {
        self.declared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_declaration_wins_and_silence_clears_it() {
        let capabilities = Capabilities::default();
        let id = WorkspaceId::random();
        let says = |name: &str, on, timeout| RuntimeMetadata {
            capabilities: BTreeMap::from([(name.to_owned(), on)]),
            idle_timeout_seconds: timeout,
        };
        capabilities.record(id, Some(&says("session", true, Some(60))));
        assert!(capabilities.has(id, "session"));
        assert_eq!(capabilities.idle_timeout(id), Some(Duration::from_secs(60)));
        capabilities.record(id, Some(&says("retry", true, Some(0))));
        assert!(!capabilities.has(id, "session"));
        assert_eq!(capabilities.idle_timeout(id), None);
        capabilities.record(id, None);
        assert!(!capabilities.has(id, "retry"));
        assert!(!capabilities.has(WorkspaceId::random(), "retry"));
    }
}
