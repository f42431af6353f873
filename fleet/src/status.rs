//! The ten states of a workspace and every way from one to another.
//!
//! ```text
//!                register, first beat          error rate, wedged
//! provisioning ───────────────────────▶ online ◀────────────────▶ degraded
//!   │      ▲                              │ ▲  recovered             │
//!   │      └── restart, resume, wake      │ └─ beat ─┐              │
//!   ▼                                     ▼           │              ▼
//! failed ── register ─▶ online         offline ───────┘ ◀── silent, gone
//!
//! online, degraded ── idle ─▶ hibernating ── stopped ─▶ hibernated ── message ─▶ provisioning
//! any ── pause ─▶ paused ── resume ─▶ provisioning
//! awaiting_agent ── register ─▶ online      any ── delete ─▶ removed (nothing leaves it)
//! ```
//!
//! Decisions are plain functions over plain values; the SQL that carries one out repeats the status it was made on
//! ([`Change::sources`]), so that a concurrent delete always wins. Statuses reach SQL as bound values only.

use serde::{Deserialize, Serialize};

/// Where a workspace stands. The same ten names as the database's enum, which a test compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, sqlx::Type)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "workspace_status", rename_all = "snake_case")]
pub enum WorkspaceStatus {
    /// A start was requested; the agent has not been heard yet.
    Provisioning,
    /// Registered and beating.
    Online,
    /// Was up and is no longer seen.
    Offline,
    /// Beating, but failing.
    Degraded,
    /// Could not be brought up.
    Failed,
    /// A tombstone.
    Removed,
    /// Stopped by an operator.
    Paused,
    /// Stopped for idleness; wakes on the next message.
    Hibernated,
    /// Claimed for hibernation, the stop is under way.
    Hibernating,
    /// External, and nobody has connected yet.
    AwaitingAgent,
}

use WorkspaceStatus::{
    AwaitingAgent, Degraded, Failed, Hibernated, Hibernating, Offline, Online, Paused,
    Provisioning, Removed,
};

impl WorkspaceStatus {
    /// All of them, in the order of the database's enum.
    pub const ALL: [Self; 10] = [
        Provisioning,
        Online,
        Offline,
        Degraded,
        Failed,
        Removed,
        Paused,
        Hibernated,
        Hibernating,
        AwaitingAgent,
    ];

    /// The name clients and the database know.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Provisioning => "provisioning",
            Online => "online",
            Offline => "offline",
            Degraded => "degraded",
            Failed => "failed",
            Removed => "removed",
            Paused => "paused",
            Hibernated => "hibernated",
            Hibernating => "hibernating",
            AwaitingAgent => "awaiting_agent",
        }
    }

    /// Its agent was heard and is expected to beat on: what liveness and health checks watch.
    #[must_use]
    pub const fn is_up(self) -> bool {
        matches!(self, Online | Degraded)
    }
}

impl std::fmt::Display for WorkspaceStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What happens to a workspace, apart from heartbeats, which depend on what they say ([`heartbeat_transition`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The agent registered.
    Registered,
    /// Its bringing-up failed, ran out of time, or its machine reported a failed boot.
    ProvisionFailed,
    /// A failed bringing-up is to be tried again.
    ProvisionRetried,
    /// It is stopped and brought up again.
    Restarted,
    /// It was lost once more after too many automatic restarts.
    CrashLooped,
    /// No heartbeat for longer than the liveness TTL, or its container is gone.
    Lost,
    /// Deleted, alone or with an ancestor.
    Deleted,
    /// Stopped by an operator, alone or with an ancestor.
    Paused,
    /// A managed workspace is to run again; an external one goes where [`resumed_external`] says.
    Resumed,
    /// Chosen for hibernation.
    HibernationClaimed,
    /// What ran of it was stopped for hibernation.
    Hibernated,
    /// Somebody wants to talk to it.
    Woken,
}

impl Change {
    /// Every change, for tables.
    pub const ALL: [Self; 12] = [
        Self::Registered,
        Self::ProvisionFailed,
        Self::ProvisionRetried,
        Self::Restarted,
        Self::CrashLooped,
        Self::Lost,
        Self::Deleted,
        Self::Paused,
        Self::Resumed,
        Self::HibernationClaimed,
        Self::Hibernated,
        Self::Woken,
    ];

    /// The statuses this change may happen to: what the guard of its UPDATE binds.
    #[must_use]
    pub fn sources(self) -> Vec<WorkspaceStatus> {
        WorkspaceStatus::ALL
            .into_iter()
            .filter(|&from| transition(from, self).is_some())
            .collect()
    }
}

/// Where a change leads from a status; `None` leaves the workspace as it is.
#[must_use]
pub const fn transition(from: WorkspaceStatus, change: Change) -> Option<WorkspaceStatus> {
    match (change, from) {
        (_, Removed) => None,
        (
            Change::Registered,
            Provisioning | AwaitingAgent | Offline | Degraded | Failed | Online,
        ) => Some(Online),
        // A late registration must not undo a stop.
        (Change::Registered, Paused | Hibernating | Hibernated) => None,
        (Change::ProvisionFailed, Provisioning) => Some(Failed),
        (Change::ProvisionRetried, Failed | Provisioning) => Some(Provisioning),
        // What was stopped on purpose is resumed, not restarted.
        (Change::Restarted, Paused) => None,
        (Change::Restarted, _) => Some(Provisioning),
        (Change::CrashLooped, Offline) => Some(Failed),
        (Change::Lost, Online | Degraded) => Some(Offline),
        (
            Change::ProvisionFailed | Change::ProvisionRetried | Change::CrashLooped | Change::Lost,
            _,
        ) => None,
        (Change::Deleted, _) => Some(Removed),
        (Change::Paused, Paused) => None,
        (Change::Paused, _) => Some(Paused),
        (Change::Resumed, Paused) | (Change::Woken, Hibernated) => Some(Provisioning),
        (Change::HibernationClaimed, Online | Degraded) => Some(Hibernating),
        (Change::Hibernated, Hibernating) => Some(Hibernated),
        (Change::Resumed | Change::Woken | Change::HibernationClaimed | Change::Hibernated, _) => {
            None
        }
    }
}

/// Where an external workspace goes when it is resumed: nobody starts it, so it waits for the next beat of the agent it
/// had, or for its first one.
#[must_use]
pub const fn resumed_external(has_registered: bool) -> WorkspaceStatus {
    if has_registered {
        Offline
    } else {
        AwaitingAgent
    }
}

/// What the registration of an agent is answered, by status alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegisterVerdict {
    /// It goes online.
    Accept,
    /// It was stopped on purpose and stays so.
    Stopped,
    /// It is gone for good.
    Gone,
}

/// Judges a registration by the status of its workspace.
#[must_use]
pub const fn register_verdict(from: WorkspaceStatus) -> RegisterVerdict {
    match (from, transition(from, Change::Registered)) {
        (Removed, _) => RegisterVerdict::Gone,
        (_, Some(_)) => RegisterVerdict::Accept,
        (_, None) => RegisterVerdict::Stopped,
    }
}

/// Share of failed calls from which an agent counts as degraded.
const DEGRADED_FROM: f64 = 0.5;
/// Share of failed calls under which it counts as recovered. The gap keeps it from flapping.
const RECOVERED_BELOW: f64 = 0.1;

/// What a heartbeat says about its agent's health.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Beat<'a> {
    /// Share of failed calls, 0 to 1.
    pub error_rate: f64,
    /// `wedged`, or empty; anything else means nothing but "not recovered".
    pub runtime_state: &'a str,
    /// The agent judges its own health (capability `status_mgmt`).
    pub native_status: bool,
}

/// Why a heartbeat changes the status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BeatReason {
    /// The runtime says that it is stuck.
    Wedged,
    /// Too many calls fail.
    ErrorRate,
    /// Few enough calls fail again.
    Recovered,
    /// It had been given up and beats again.
    Returned,
    /// The first sign of life of a new start.
    FirstBeat,
}

/// A change of status by a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BeatTransition {
    /// The status it was judged on.
    pub from: WorkspaceStatus,
    /// The new one.
    pub to: WorkspaceStatus,
    /// Why.
    pub reason: BeatReason,
}

/// What a heartbeat does to a status: at most one thing.
#[must_use]
pub fn heartbeat_transition(from: WorkspaceStatus, beat: &Beat<'_>) -> Option<BeatTransition> {
    let judged = !beat.native_status;
    let (to, reason) = match from {
        Online if beat.runtime_state == "wedged" => (Degraded, BeatReason::Wedged),
        Online if judged && beat.error_rate >= DEGRADED_FROM => (Degraded, BeatReason::ErrorRate),
        Degraded
            if judged && beat.error_rate < RECOVERED_BELOW && beat.runtime_state.is_empty() =>
        {
            (Online, BeatReason::Recovered)
        }
        Offline => (Online, BeatReason::Returned),
        Provisioning => (Online, BeatReason::FirstBeat),
        Online | Degraded | Removed | Failed | Paused | Hibernating | Hibernated
        | AwaitingAgent => return None,
    };
    Some(BeatTransition { from, to, reason })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_the_same_for_people_json_and_the_database() {
        for status in WorkspaceStatus::ALL {
            let json = serde_json::to_value(status).unwrap();
            assert_eq!(json, status.as_str());
        }
    }

    #[test]
    fn each_change_leads_where_the_table_says() {
        let not_removed = WorkspaceStatus::ALL
            .into_iter()
            .filter(|&status| status != Removed)
            .collect();
        let not_stopped: Vec<_> = WorkspaceStatus::ALL
            .into_iter()
            .filter(|&status| status != Removed && status != Paused)
            .collect();
        let table: [(Change, WorkspaceStatus, Vec<WorkspaceStatus>); 12] = [
            (
                Change::Registered,
                Online,
                vec![
                    Provisioning,
                    Online,
                    Offline,
                    Degraded,
                    Failed,
                    AwaitingAgent,
                ],
            ),
            (Change::ProvisionFailed, Failed, vec![Provisioning]),
            (
                Change::ProvisionRetried,
                Provisioning,
                vec![Provisioning, Failed],
            ),
            (Change::Restarted, Provisioning, not_stopped.clone()),
            (Change::CrashLooped, Failed, vec![Offline]),
            (Change::Lost, Offline, vec![Online, Degraded]),
            (Change::Deleted, Removed, not_removed),
            (Change::Paused, Paused, not_stopped),
            (Change::Resumed, Provisioning, vec![Paused]),
            (
                Change::HibernationClaimed,
                Hibernating,
                vec![Online, Degraded],
            ),
            (Change::Hibernated, Hibernated, vec![Hibernating]),
            (Change::Woken, Provisioning, vec![Hibernated]),
        ];
        assert_eq!(table.clone().map(|(change, ..)| change), Change::ALL);
        for (change, to, sources) in table {
            assert_eq!(change.sources(), sources, "{change:?}");
            for from in WorkspaceStatus::ALL {
                let expected = sources.contains(&from).then_some(to);
                assert_eq!(transition(from, change), expected, "{change:?} from {from}");
            }
        }
    }

    #[test]
    fn a_registration_is_accepted_refused_or_too_late() {
        for status in WorkspaceStatus::ALL {
            let expected = match status {
                Removed => RegisterVerdict::Gone,
                Paused | Hibernating | Hibernated => RegisterVerdict::Stopped,
                _ => RegisterVerdict::Accept,
            };
            assert_eq!(register_verdict(status), expected, "{status}");
        }
    }

    #[test]
    fn heartbeats_lead_where_the_table_says() {
        use BeatReason::{ErrorRate, FirstBeat, Recovered, Returned, Wedged};
        let nothing = None;
        let to = |status, reason| Some((status, reason));
        let table = [
            // From, error rate, runtime state, native → to and why.
            (Online, 0.0, "", false, nothing),
            (Online, 0.0, "wedged", false, to(Degraded, Wedged)),
            (Online, 0.0, "wedged", true, to(Degraded, Wedged)),
            (Online, 0.9, "wedged", false, to(Degraded, Wedged)),
            (Online, 0.49, "", false, nothing),
            (Online, 0.5, "", false, to(Degraded, ErrorRate)),
            (Online, 0.5, "", true, nothing),
            (Degraded, 0.09, "", false, to(Online, Recovered)),
            (Degraded, 0.1, "", false, nothing),
            (Degraded, 0.0, "wedged", false, nothing),
            (Degraded, 0.0, "busy", false, nothing),
            (Degraded, 0.0, "", true, nothing),
            (Offline, 0.9, "wedged", false, to(Online, Returned)),
            (Provisioning, 0.9, "", false, to(Online, FirstBeat)),
            (Failed, 0.0, "", false, nothing),
            (AwaitingAgent, 0.0, "", false, nothing),
            (Paused, 0.0, "", false, nothing),
            (Hibernating, 0.0, "", false, nothing),
            (Hibernated, 0.0, "", false, nothing),
            (Removed, 0.0, "", false, nothing),
        ];
        for (from, error_rate, runtime_state, native_status, expected) in table {
            let beat = Beat {
                error_rate,
                runtime_state,
                native_status,
            };
            let got = heartbeat_transition(from, &beat).map(|change| (change.to, change.reason));
            assert_eq!(got, expected, "{from} {beat:?}");
        }
    }

    fn any_change() -> impl Strategy<Value = Change> {
        proptest::sample::select(Change::ALL.to_vec())
    }

    proptest! {
        #[test]
        fn nothing_leaves_removed(
            changes in proptest::collection::vec((any_change(), 0.0..=1.0_f64, "wedged|busy|", any::<bool>()), 0..20)
        ) {
            let mut status = Removed;
            for (change, error_rate, runtime_state, native_status) in changes {
                let beat = Beat { error_rate, runtime_state: &runtime_state, native_status };
                if let Some(next) = heartbeat_transition(status, &beat) {
                    status = next.to;
                }
                if let Some(next) = transition(status, change) {
                    status = next;
                }
                prop_assert_eq!(status, Removed);
            }
        }

        #[test]
        fn a_heartbeat_never_lifts_what_only_a_registration_or_an_operator_may(
            status in proptest::sample::select(vec![Failed, AwaitingAgent, Paused, Hibernating, Hibernated, Removed]),
            error_rate in 0.0..=1.0_f64, runtime_state in "wedged|busy|", native_status in any::<bool>(),
        ) {
            let beat = Beat { error_rate, runtime_state: &runtime_state, native_status };
            prop_assert_eq!(heartbeat_transition(status, &beat), None);
        }
    }
}
