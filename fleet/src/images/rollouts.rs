//! Rollouts: a digest on its way to the workspaces of a runtime (`spec: operations` §6). Rows and events; the job that
//! carries one out asks here what there is and writes here what it did.

use longshore_base::ids::ordered_uuid;
use longshore_base::{JobId, Timestamp};
use longshore_events::{NewEvent, append, names};
use serde_json::{Value, json};
use sqlx::PgConnection;
use uuid::Uuid;

use super::members::count_parts;
use super::pins::{change_pin, find_runtime_pin};
use super::{Part, shown_digest};
use crate::FleetError;

/// Where a rollout stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, sqlx::Type)]
#[sqlx(type_name = "image_rollout_state", rename_all = "snake_case")]
pub enum RolloutState {
    /// It takes workspaces, or waits for them.
    Running,
    /// Too much failed, or its job died; somebody has to decide.
    Held,
    /// What it took goes back.
    RollingBack,
    /// Its pin is set.
    Done,
    /// It was given up; what it took stays as it is.
    Aborted,
    /// What it took is back.
    RolledBack,
}

impl RolloutState {
    /// Every one, in the order of the database's enum.
    pub const ALL: [Self; 6] = [
        Self::Running,
        Self::Held,
        Self::RollingBack,
        Self::Done,
        Self::Aborted,
        Self::RolledBack,
    ];

    /// The name clients and the database know.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Held => "held",
            Self::RollingBack => "rolling_back",
            Self::Done => "done",
            Self::Aborted => "aborted",
            Self::RolledBack => "rolled_back",
        }
    }

    /// Whether it still decides about its runtime's image; of these a runtime has one at most.
    #[must_use]
    pub const fn is_open(self) -> bool {
        matches!(self, Self::Running | Self::Held | Self::RollingBack)
    }
}

/// A rollout.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    missing_docs,
    reason = "the columns; migrations/0015 says what they mean"
)]
pub struct Rollout {
    pub id: Uuid,
    pub template_name: String,
    pub sha256_digest: String,
    pub rings: Vec<i32>,
    pub max_failures: i32,
    pub soak_seconds: i32,
    pub state: RolloutState,
    pub reason: Option<String>,
    pub ring: i32,
    pub checked: bool,
    pub soaking_since: Option<Timestamp>,
    pub pinned: bool,
    pub previous_pin: Option<String>,
    pub job_id: Option<JobId>,
    pub created_by: String,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl Rollout {
    /// The share in percent that the present ring completes.
    #[must_use]
    pub fn percent(&self) -> i32 {
        usize::try_from(self.ring)
            .ok()
            .and_then(|ring| self.rings.get(ring))
            .copied()
            .unwrap_or(100)
    }
}

/// A rollout that is wanted.
#[derive(Clone, Debug)]
pub struct NewRollout<'a> {
    /// Of this runtime.
    pub runtime: &'a str,
    /// To this digest, 64 lower-case hexadecimal digits.
    pub digest: &'a str,
    /// In these shares, rising, 1 to 100.
    pub rings: Vec<i32>,
    /// So many of a ring may fail.
    pub max_failures: i32,
    /// So long a ring must stay up.
    pub soak_seconds: i32,
    /// Who wants it.
    pub by: &'a str,
    /// Why.
    pub reason: Option<&'a str>,
}

/// A rollout was not begun or changed.
#[derive(Debug, thiserror::Error)]
pub enum RolloutError {
    /// The runtime has one that is open.
    #[error("a rollout of this runtime is open; abort it or roll it back first")]
    Open,
    /// There is none.
    #[error("rollout not found")]
    Unknown,
    /// It is in a state in which that makes no sense.
    #[error("the rollout is {}", .0.as_str())]
    State(RolloutState),
    /// It was being taken back when it was held.
    #[error("the rollout was being taken back; roll it back again, or abort it")]
    GoingBack,
    /// A later one of the runtime has decided since.
    #[error("a later rollout of this runtime has begun")]
    Overtaken,
    /// The rows could not be read or written.
    #[error(transparent)]
    Fleet(#[from] FleetError),
}

impl From<sqlx::Error> for RolloutError {
    fn from(error: sqlx::Error) -> Self {
        Self::Fleet(error.into())
    }
}

/// Writes a rollout down, with its event. The caller requests its job in the same transaction.
///
/// # Errors
/// [`RolloutError`].
pub async fn create_rollout(
    tx: &mut PgConnection,
    new: NewRollout<'_>,
) -> Result<Rollout, RolloutError> {
    let id = ordered_uuid();
    let made = sqlx::query!(
        "INSERT INTO image_rollouts (id, template_name, sha256_digest, rings, max_failures, soak_seconds, created_by)
         VALUES ($1, $2, $3, $4, $5, $6, $7)
         ON CONFLICT (template_name) WHERE state IN ('running', 'held', 'rolling_back') DO NOTHING",
        id,
        new.runtime,
        new.digest,
        &new.rings,
        new.max_failures,
        new.soak_seconds,
        new.by,
    )
    .execute(&mut *tx)
    .await?;
    if made.rows_affected() == 0 {
        return Err(RolloutError::Open);
    }
    let rollout = load_rollout(tx, id).await?;
    let more = json!({ "rings": rollout.rings, "by": new.by, "reason": new.reason });
    tell(tx, names::ROLLOUT_STARTED, &rollout, more).await?;
    Ok(rollout)
}

/// A rollout.
///
/// # Errors
/// [`RolloutError::Unknown`], or the database's.
pub async fn load_rollout(conn: &mut PgConnection, id: Uuid) -> Result<Rollout, RolloutError> {
    sqlx::query_as!(
        Rollout,
        r#"SELECT id, template_name, sha256_digest, rings, max_failures, soak_seconds, state AS "state: RolloutState",
                  reason, ring, checked, soaking_since, pinned, previous_pin, job_id AS "job_id: JobId", created_by,
                  created_at, updated_at
           FROM image_rollouts WHERE id = $1"#,
        id
    )
    .fetch_optional(conn)
    .await?
    .ok_or(RolloutError::Unknown)
}

/// A rollout of this runtime, locked until the transaction ends.
///
/// # Errors
/// [`RolloutError::Unknown`], or the database's.
pub async fn lock_rollout(tx: &mut PgConnection, id: Uuid) -> Result<Rollout, RolloutError> {
    sqlx::query!("SELECT id FROM image_rollouts WHERE id = $1 FOR UPDATE", id)
        .fetch_optional(&mut *tx)
        .await?;
    load_rollout(tx, id).await
}

/// The open rollout of a runtime, else its last.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn find_newest_rollout(
    conn: &mut PgConnection,
    runtime: &str,
) -> Result<Option<Rollout>, FleetError> {
    let id = sqlx::query_scalar!(
        "SELECT id FROM image_rollouts WHERE template_name = $1
         ORDER BY state IN ('running', 'held', 'rolling_back') DESC, created_at DESC, id DESC LIMIT 1",
        runtime
    )
    .fetch_optional(&mut *conn)
    .await?;
    let Some(id) = id else { return Ok(None) };
    match load_rollout(conn, id).await {
        Ok(rollout) => Ok(Some(rollout)),
        Err(RolloutError::Fleet(error)) => Err(error),
        Err(_) => Ok(None),
    }
}

/// Writes down which job carries it out.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn record_job(tx: &mut PgConnection, id: Uuid, job_id: JobId) -> Result<(), FleetError> {
    sqlx::query!(
        "UPDATE image_rollouts SET job_id = $2 WHERE id = $1",
        id,
        job_id as JobId
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Writes down that an engine could fetch the digest.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn record_checked(tx: &mut PgConnection, id: Uuid) -> Result<(), FleetError> {
    sqlx::query!(
        "UPDATE image_rollouts SET checked = true, updated_at = longshore_now() WHERE id = $1",
        id
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Holds a rollout: nothing else is touched until somebody decides.
///
/// # Errors
/// [`FleetError`].
pub async fn record_held(
    tx: &mut PgConnection,
    rollout: &Rollout,
    reason: &str,
) -> Result<(), FleetError> {
    set_state(tx, rollout.id, RolloutState::Held, Some(reason)).await?;
    let more = json!({ "ring": rollout.ring + 1, "reason": reason });
    tell(tx, names::ROLLOUT_HELD, rollout, more).await
}

/// Lets a held rollout go on with its ring, which has to soak anew.
///
/// # Errors
/// [`RolloutError`]: it is not held, or was being taken back.
pub async fn record_resumed(
    tx: &mut PgConnection,
    rollout: &Rollout,
    by: &str,
    reason: Option<&str>,
) -> Result<(), RolloutError> {
    if rollout.state != RolloutState::Held {
        return Err(RolloutError::State(rollout.state));
    }
    let back = [Part::Restoring, Part::Restored, Part::Lost];
    let parts = count_parts(tx, rollout.id).await?;
    if parts.iter().any(|(_, part, _)| back.contains(part)) {
        return Err(RolloutError::GoingBack);
    }
    set_state(tx, rollout.id, RolloutState::Running, None).await?;
    sqlx::query!(
        "UPDATE image_rollouts SET soaking_since = NULL WHERE id = $1",
        rollout.id
    )
    .execute(&mut *tx)
    .await?;
    let more = json!({ "by": by, "reason": reason });
    tell(tx, names::ROLLOUT_RESUMED, rollout, more).await?;
    Ok(())
}

/// Gives a rollout up: what it took stays as it is.
///
/// # Errors
/// [`RolloutError::State`] for one that neither runs nor is held.
pub async fn record_aborted(
    tx: &mut PgConnection,
    rollout: &Rollout,
    by: &str,
    reason: Option<&str>,
) -> Result<(), RolloutError> {
    match rollout.state {
        RolloutState::Running | RolloutState::Held => {}
        // Sent again.
        RolloutState::Aborted => return Ok(()),
        state @ (RolloutState::RollingBack | RolloutState::Done | RolloutState::RolledBack) => {
            return Err(RolloutError::State(state));
        }
    }
    set_state(tx, rollout.id, RolloutState::Aborted, reason).await?;
    let more = json!({ "by": by, "reason": reason });
    tell(tx, names::ROLLOUT_ABORTED, rollout, more).await?;
    Ok(())
}

/// Begins to take a rollout back: a pin that it has set becomes what it was before.
///
/// # Errors
/// [`RolloutError`]: it is being taken back or is, or a later one has begun.
pub async fn begin_rollback(
    tx: &mut PgConnection,
    rollout: &Rollout,
    by: &str,
    reason: Option<&str>,
) -> Result<(), RolloutError> {
    if let RolloutState::RollingBack | RolloutState::RolledBack = rollout.state {
        return Err(RolloutError::State(rollout.state));
    }
    let newest = find_newest_rollout(tx, &rollout.template_name).await?;
    if newest.is_some_and(|newest| newest.id != rollout.id) {
        return Err(RolloutError::Overtaken);
    }
    if rollout.pinned {
        let pin = find_runtime_pin(tx, &rollout.template_name).await?;
        // Whoever has pinned something else since keeps that.
        if pin.as_deref() == Some(&*rollout.sha256_digest) {
            let to = rollout.previous_pin.as_deref();
            change_pin(tx, &rollout.template_name, to, reason, by).await?;
        }
    }
    set_state(tx, rollout.id, RolloutState::RollingBack, reason).await?;
    let more = json!({ "by": by, "reason": reason });
    tell(tx, names::ROLLOUT_ROLLING_BACK, rollout, more).await?;
    Ok(())
}

/// Everything that could be is back.
///
/// # Errors
/// [`FleetError`].
pub async fn finish_rollback(
    tx: &mut PgConnection,
    rollout: &Rollout,
    (restored, lost): (i64, i64),
) -> Result<(), FleetError> {
    let reason = rollout.reason.as_deref();
    set_state(tx, rollout.id, RolloutState::RolledBack, reason).await?;
    let more = json!({ "restored": restored, "lost": lost });
    tell(tx, names::ROLLOUT_ROLLED_BACK, rollout, more).await
}

/// The last ring has soaked: the runtime is pinned.
///
/// # Errors
/// [`FleetError`].
pub async fn finish_rollout(tx: &mut PgConnection, rollout: &Rollout) -> Result<(), FleetError> {
    let (runtime, digest) = (&rollout.template_name, &rollout.sha256_digest);
    let previous = find_runtime_pin(tx, runtime).await?;
    let note = format!("rollout {}", rollout.id);
    let by = &rollout.created_by;
    change_pin(tx, runtime, Some(digest), Some(&note), by).await?;
    sqlx::query!(
        "UPDATE image_rollouts SET pinned = true, previous_pin = $2 WHERE id = $1",
        rollout.id,
        previous
    )
    .execute(&mut *tx)
    .await?;
    set_state(tx, rollout.id, RolloutState::Done, None).await?;
    tell(tx, names::ROLLOUT_DONE, rollout, json!({})).await
}

async fn set_state(
    tx: &mut PgConnection,
    id: Uuid,
    state: RolloutState,
    reason: Option<&str>,
) -> Result<(), FleetError> {
    sqlx::query!(
        "UPDATE image_rollouts SET state = $2, reason = $3, updated_at = longshore_now() WHERE id = $1",
        id,
        state as RolloutState,
        reason
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// The ring that is taken soaks from now on.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn start_soak(tx: &mut PgConnection, id: Uuid) -> Result<(), FleetError> {
    sqlx::query!(
        "UPDATE image_rollouts SET soaking_since = now, updated_at = now FROM longshore_now() AS now WHERE id = $1",
        id
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// The next ring is taken from now on.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn next_ring(tx: &mut PgConnection, id: Uuid) -> Result<(), FleetError> {
    sqlx::query!(
        "UPDATE image_rollouts SET ring = ring + 1, soaking_since = NULL, updated_at = longshore_now() WHERE id = $1",
        id
    )
    .execute(tx)
    .await?;
    Ok(())
}

async fn tell(
    tx: &mut PgConnection,
    event_type: &'static str,
    rollout: &Rollout,
    more: Value,
) -> Result<(), FleetError> {
    let mut payload = more;
    payload["rollout_id"] = json!(rollout.id);
    payload["runtime"] = json!(rollout.template_name);
    payload["digest"] = json!(shown_digest(&rollout.sha256_digest));
    let event = NewEvent {
        event_type,
        workspace_id: None,
        payload,
    };
    Ok(append(tx, event).await?)
}
