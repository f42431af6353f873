//! Heartbeats: an agent is alive, and how it does.
//!
//! A fleet beats hundreds of times a second, so a beat that says nothing new writes nothing for ten seconds. The row is
//! read without a lock and written under the status that was read; if that changed in between, the beat is judged
//! once more with the row held.

use longshore_base::{Secret, WorkspaceId, random};
use longshore_events::{BroadcastEvent, NewEvent, append, names};
use serde_json::{Value, json};
use sqlx::PgConnection;

use super::capabilities::{RuntimeMetadata, STATUS_MGMT};
use super::gate::{Call, GateError, Presented, pass};
use crate::status::{Beat, BeatReason, BeatTransition, WorkspaceStatus, heartbeat_transition};
use crate::workspace::{Workspace, lock_workspace};
use crate::{Fleet, FleetError};

const MAX_SPEND: i64 = 1_000_000_000_000;
/// Longer texts of an agent are cut before they are stored and told.
const MAX_TEXT_BYTES: usize = 8192;
/// A beat that changes nothing else is written at most this often.
const WRITE_EVERY_SECONDS: f64 = 10.0;

/// What an agent sends. A helper process may leave everything but the id at its zero value.
#[derive(Clone, Debug, Default)]
pub struct Heartbeat {
    /// Share of failed calls; clamped to 0…1.
    pub error_rate: f64,
    /// An example of a failure.
    pub sample_error: String,
    /// Tasks it works on.
    pub active_tasks: i64,
    /// How long it has been up.
    pub uptime_seconds: i64,
    /// What it is doing.
    pub current_task: String,
    /// Cents spent this month; zero says nothing.
    pub monthly_spend: i64,
    /// `wedged`, or empty.
    pub runtime_state: String,
    /// What it declares.
    pub metadata: Option<RuntimeMetadata>,
}

/// A heartbeat that was taken.
#[derive(Debug)]
pub struct Beaten {
    /// The workspace.
    pub id: WorkspaceId,
    /// What it did to the status.
    pub transition: Option<BeatTransition>,
    /// What the platform authenticates with, delivered with every beat.
    pub inbound_secret: Option<Secret<String>>,
    /// It could take another task.
    pub has_capacity: bool,
    seen: Seen,
    task_changed: bool,
    metadata: Option<RuntimeMetadata>,
}

impl Beaten {
    /// Does what must wait for the commit: presence, ephemeral events, declarations, and the poke for the event.
    pub async fn after_commit(&self, fleet: &Fleet) {
        let broadcast = |event_type, payload: Value| {
            fleet.bus.broadcast(BroadcastEvent {
                event_type,
                workspace_id: Some(self.id),
                payload,
            });
        };
        fleet.presence.mark_alive(self.id).await;
        if self.transition.is_some() {
            fleet.bus.poke();
        }
        let Seen {
            active_tasks,
            uptime_seconds,
            current_task,
            ..
        } = &self.seen;
        if self.task_changed {
            broadcast(
                names::TASK_UPDATED,
                json!({ "current_task": current_task, "active_tasks": active_tasks }),
            );
        }
        broadcast(
            names::WORKSPACE_HEARTBEAT,
            json!({ "active_tasks": active_tasks, "uptime_seconds": uptime_seconds }),
        );
        fleet.capabilities.record(self.id, self.metadata.as_ref());
    }
}

/// What a beat says, within bounds.
#[derive(Clone, Debug)]
struct Seen {
    error_rate: f64,
    sample_error: String,
    active_tasks: i32,
    uptime_seconds: i32,
    current_task: String,
    monthly_spend: Option<i64>,
}

impl Seen {
    fn of(fleet: &Fleet, beat: &Heartbeat) -> Self {
        let count = |number: i64| i32::try_from(number.max(0)).unwrap_or(i32::MAX);
        let spend = beat.monthly_spend.clamp(0, MAX_SPEND);
        let rate = if beat.error_rate.is_nan() {
            0.0
        } else {
            beat.error_rate.clamp(0.0, 1.0)
        };
        Self {
            error_rate: rate,
            sample_error: bounded(&fleet.redactor.clean(&beat.sample_error)),
            active_tasks: count(beat.active_tasks),
            uptime_seconds: count(beat.uptime_seconds),
            current_task: bounded(&fleet.redactor.clean(&beat.current_task)),
            monthly_spend: (spend > 0).then_some(spend),
        }
    }

    /// Whether storing it would change anything but the time.
    fn differs_from(&self, row: &Workspace) -> bool {
        let keeps_error = row.status == WorkspaceStatus::Failed;
        self.active_tasks != row.active_tasks
            || self.current_task != row.current_task
            || self.error_rate.to_bits() != row.last_error_rate.to_bits()
            || (!keeps_error && self.sample_error != row.last_sample_error)
            || self
                .monthly_spend
                .is_some_and(|spend| spend != row.monthly_spend)
            || (self.active_tasks == 0) != row.idle_since.is_some()
    }
}

fn bounded(text: &str) -> String {
    // Postgres stores no NUL, and a beat is not refused for one.
    text[..text.floor_char_boundary(MAX_TEXT_BYTES)].replace('\0', "")
}

/// Takes a heartbeat: columns, at most one change of status, its event. After the commit call
/// [`Beaten::after_commit`].
///
/// # Errors
/// [`GateError`].
pub async fn heartbeat(
    tx: &mut PgConnection,
    fleet: &Fleet,
    id: WorkspaceId,
    presented: &Presented,
    beat: Heartbeat,
) -> Result<Beaten, GateError> {
    let seen = Seen::of(fleet, &beat);
    let native_status = match &beat.metadata {
        Some(metadata) => metadata.declares(STATUS_MGMT),
        None => fleet.capabilities.has(id, STATUS_MGMT),
    };
    let judged = Beat {
        error_rate: seen.error_rate,
        runtime_state: &beat.runtime_state,
        native_status,
    };
    let mut row = pass(tx, fleet, id, presented, Call::Other).await?.workspace;
    let mut transition = heartbeat_transition(row.status, &judged);
    let mut stored = store(tx, &row, &seen, transition).await?;
    if stored.is_none() {
        row = lock_workspace(tx, id).await?.ok_or(GateError::NotFound)?;
        if row.status == WorkspaceStatus::Removed {
            return Err(GateError::Removed);
        }
        transition = heartbeat_transition(row.status, &judged);
        stored = store(tx, &row, &seen, transition).await?;
    }
    let inbound_secret = stored.ok_or(FleetError::NoWorkspace(id))?;
    if let Some(transition) = transition {
        append_event(tx, id, transition, &seen).await?;
    }
    Ok(Beaten {
        id,
        transition,
        inbound_secret: Some(inbound_secret),
        has_capacity: seen.active_tasks < row.max_concurrent_tasks,
        task_changed: seen.current_task != row.current_task,
        seen,
        metadata: beat.metadata,
    })
}

/// Writes the beat if there is anything to write, and reads the inbound secret. `None` when the status is no longer the
/// one that was judged.
async fn store(
    tx: &mut PgConnection,
    row: &Workspace,
    seen: &Seen,
    transition: Option<BeatTransition>,
) -> Result<Option<Secret<String>>, FleetError> {
    if transition.is_none() && !seen.differs_from(row) {
        let recent = find_recent(tx, row).await?;
        if recent.is_some() {
            return Ok(recent);
        }
    }
    let to = transition.map_or(row.status, |transition| transition.to);
    let sample_error = if row.status == WorkspaceStatus::Failed {
        // It is the reason of the failure.
        &row.last_sample_error
    } else {
        &seen.sample_error
    };
    let secret = sqlx::query_scalar!(
        r#"UPDATE workspaces
           SET status = $2, last_error_rate = $3, last_sample_error = $4, active_tasks = $5, uptime_seconds = $6,
               current_task = $7, monthly_spend = coalesce($8, monthly_spend),
               idle_since = CASE WHEN $5 > 0 THEN NULL ELSE coalesce(idle_since, longshore_now()) END,
               platform_inbound_secret = coalesce(platform_inbound_secret, $9), last_heartbeat_at = longshore_now()
           WHERE id = $1 AND status = $10
           RETURNING platform_inbound_secret AS "secret!""#,
        row.id as WorkspaceId,
        to as WorkspaceStatus,
        seen.error_rate,
        sample_error,
        seen.active_tasks,
        seen.uptime_seconds,
        seen.current_task,
        seen.monthly_spend,
        random::token(),
        row.status as WorkspaceStatus,
    )
    .fetch_optional(tx)
    .await?;
    Ok(secret.map(Secret::new))
}

/// The inbound secret, if a beat was written so recently that this one need not be.
async fn find_recent(
    tx: &mut PgConnection,
    row: &Workspace,
) -> Result<Option<Secret<String>>, FleetError> {
    let secret = sqlx::query_scalar!(
        r#"SELECT platform_inbound_secret AS "secret!" FROM workspaces
           WHERE id = $1 AND status = $2 AND platform_inbound_secret IS NOT NULL
             AND last_heartbeat_at > longshore_now() - make_interval(secs => $3)"#,
        row.id as WorkspaceId,
        row.status as WorkspaceStatus,
        WRITE_EVERY_SECONDS,
    )
    .fetch_optional(tx)
    .await?;
    Ok(secret.map(Secret::new))
}

async fn append_event(
    tx: &mut PgConnection,
    id: WorkspaceId,
    transition: BeatTransition,
    seen: &Seen,
) -> Result<(), FleetError> {
    let (event_type, payload) = match transition.reason {
        BeatReason::Wedged => (
            names::WORKSPACE_DEGRADED,
            json!({ "runtime_state": "wedged", "sample_error": seen.sample_error }),
        ),
        BeatReason::ErrorRate => (
            names::WORKSPACE_DEGRADED,
            json!({ "error_rate": seen.error_rate, "sample_error": seen.sample_error }),
        ),
        BeatReason::Recovered | BeatReason::Returned => (names::WORKSPACE_ONLINE, json!({})),
        BeatReason::FirstBeat => (
            names::WORKSPACE_ONLINE,
            json!({ "recovered_from": WorkspaceStatus::Provisioning.as_str() }),
        ),
    };
    let event = NewEvent {
        event_type,
        workspace_id: Some(id),
        payload,
    };
    Ok(append(tx, event).await?)
}
