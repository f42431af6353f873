//! Who is no longer there (`spec: lifecycle` §6.1, §6.2). The verdicts are Postgres' alone, from its own clock; a missing
//! key in Redis proves nothing.
//!
//! Whoever runs these must itself have been up for a full TTL, and heartbeats must have been accepted for as long
//! ([`is_intake_steady`]): after an outage everybody looks silent. And when a large
//! part of the fleet goes silent at once, the fault is more likely ours than theirs, so then nobody is given up
//! ([`MassGuard`]).

use std::time::Duration;

use longshore_base::WorkspaceId;
use longshore_events::{NewEvent, append, names};
use serde_json::json;
use sqlx::PgConnection;

use crate::FleetError;
use crate::status::{Change, WorkspaceStatus};
use crate::workspace::EXTERNAL;

/// When silence is too common to be believed: more than this many **and** more than this share of those watched.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MassGuard {
    /// Count that is always believed.
    pub count: usize,
    /// Share of the watched ones, 0 to 1, that is always believed.
    pub share: f64,
}

impl MassGuard {
    /// More than 5 and more than 20 %.
    pub const DEFAULT: Self = Self {
        count: 5,
        share: 0.2,
    };

    /// How many may go silent at once and are still believed, of so many.
    #[must_use]
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "fleets are far smaller than 2^52, and a share of a count is none below zero"
    )]
    pub fn most(self, watched: usize) -> usize {
        self.count.max((self.share * watched as f64) as usize)
    }

    fn trips(self, stale: usize, watched: usize) -> bool {
        stale > self.most(watched)
    }
}

/// What a pass found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// These went offline, each with its event.
    Expired(Vec<WorkspaceId>),
    /// Too many at once; nothing was changed.
    TooMany {
        /// Those that looked silent.
        stale: Vec<WorkspaceId>,
        /// Of how many.
        watched: usize,
    },
}

/// Longest gap between two words of those who accept heartbeats that is none, given the liveness TTL.
fn intake_gap(ttl: Duration) -> Duration {
    (ttl / 2).min(Duration::from_secs(15))
}

/// How often whoever accepts heartbeats says so, given the liveness TTL.
#[must_use]
pub fn intake_interval(ttl: Duration) -> Duration {
    intake_gap(ttl) / 3
}

/// Says that heartbeats are accepted now. After a gap it is as if that began now.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn record_intake(conn: &mut PgConnection, ttl: Duration) -> Result<(), FleetError> {
    sqlx::query!(
        r#"INSERT INTO heartbeat_intake AS i (since, seen_at) SELECT now, now FROM longshore_now() AS now
           ON CONFLICT (singleton) DO UPDATE
           SET seen_at = excluded.seen_at,
               since = CASE WHEN i.seen_at < excluded.seen_at - make_interval(secs => $1) THEN excluded.since ELSE i.since END"#,
        intake_gap(ttl).as_secs_f64(),
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Whether heartbeats have been accepted for a full TTL, and are now.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn is_intake_steady(conn: &mut PgConnection, ttl: Duration) -> Result<bool, FleetError> {
    let steady = sqlx::query_scalar!(
        r#"SELECT since <= now - make_interval(secs => $1) AND seen_at >= now - make_interval(secs => $2) AS "steady!"
           FROM heartbeat_intake, longshore_now() AS now"#,
        ttl.as_secs_f64(),
        intake_gap(ttl).as_secs_f64(),
    )
    .fetch_optional(conn)
    .await?;
    Ok(steady.unwrap_or(false))
}

/// Gives up managed workspaces that are up and have not beaten for longer than the liveness TTL. Those of `believed` do not
/// count for the guard: an operator looked and said so.
///
/// # Errors
/// [`FleetError`].
pub async fn expire_silent(
    tx: &mut PgConnection,
    ttl: Duration,
    guard: MassGuard,
    believed: &[WorkspaceId],
) -> Result<Expiry, FleetError> {
    let watched = sqlx::query!(
        r#"SELECT id AS "id: WorkspaceId",
                  last_heartbeat_at < (SELECT longshore_now()) - make_interval(secs => $3) AS "stale!"
           FROM workspaces WHERE status = ANY($1) AND runtime <> $2 AND last_heartbeat_at IS NOT NULL"#,
        Change::Lost.sources() as Vec<WorkspaceStatus>,
        EXTERNAL,
        ttl.as_secs_f64(),
    )
    .fetch_all(&mut *tx)
    .await?;
    let (stale, watched) = split(watched.iter().map(|row| (row.id, row.stale)));
    if is_doubtful(&stale, watched, guard, believed) {
        return Ok(Expiry::TooMany { stale, watched });
    }
    expire(tx, &stale, ttl).await
}

/// Gives up external workspaces that are up and have been silent for longer than `after`; one that never beat counts from
/// its last change. `believed` as with [`expire_silent`].
///
/// # Errors
/// [`FleetError`].
pub async fn expire_external(
    tx: &mut PgConnection,
    after: Duration,
    guard: MassGuard,
    believed: &[WorkspaceId],
) -> Result<Expiry, FleetError> {
    let watched = sqlx::query!(
        r#"SELECT id AS "id: WorkspaceId",
                  coalesce(last_heartbeat_at, updated_at) < (SELECT longshore_now()) - make_interval(secs => $3)
                      AS "stale!"
           FROM workspaces WHERE status = ANY($1) AND runtime = $2"#,
        Change::Lost.sources() as Vec<WorkspaceStatus>,
        EXTERNAL,
        after.as_secs_f64(),
    )
    .fetch_all(&mut *tx)
    .await?;
    let (stale, watched) = split(watched.iter().map(|row| (row.id, row.stale)));
    if is_doubtful(&stale, watched, guard, believed) {
        return Ok(Expiry::TooMany { stale, watched });
    }
    expire(tx, &stale, after).await
}

/// Those that are stale, and how many there are in all.
fn split(watched: impl ExactSizeIterator<Item = (WorkspaceId, bool)>) -> (Vec<WorkspaceId>, usize) {
    let all = watched.len();
    let stale = watched.filter_map(|(id, stale)| stale.then_some(id));
    (stale.collect(), all)
}

fn is_doubtful(
    stale: &[WorkspaceId],
    watched: usize,
    guard: MassGuard,
    believed: &[WorkspaceId],
) -> bool {
    let doubtful = stale.iter().filter(|id| !believed.contains(id)).count();
    guard.trips(doubtful, watched)
}

async fn expire(
    tx: &mut PgConnection,
    stale: &[WorkspaceId],
    after: Duration,
) -> Result<Expiry, FleetError> {
    let ids: Vec<_> = stale.iter().map(|id| id.0).collect();
    // A beat that came since the rows were read saves its workspace.
    let lost = sqlx::query_scalar!(
        r#"WITH held AS (
               SELECT id FROM workspaces
               WHERE id = ANY($1) AND status = ANY($2)
                 AND coalesce(last_heartbeat_at, updated_at)
                     < (SELECT longshore_now()) - make_interval(secs => $4)
               ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
           )
           UPDATE workspaces w SET status = $3, updated_at = longshore_now() FROM held WHERE w.id = held.id
           RETURNING w.id AS "id: WorkspaceId""#,
        &ids,
        Change::Lost.sources() as Vec<WorkspaceStatus>,
        WorkspaceStatus::Offline as WorkspaceStatus,
        after.as_secs_f64(),
    )
    .fetch_all(&mut *tx)
    .await?;
    for id in &lost {
        append_offline(tx, *id).await?;
    }
    Ok(Expiry::Expired(lost))
}

/// Gives up one workspace whose container was found gone. False, and nothing happens, when it is not up any more.
///
/// # Errors
/// [`FleetError`].
pub async fn mark_offline(tx: &mut PgConnection, id: WorkspaceId) -> Result<bool, FleetError> {
    let done = sqlx::query!(
        "UPDATE workspaces SET status = $2, updated_at = longshore_now() WHERE id = $1 AND status = ANY($3)",
        id as WorkspaceId,
        WorkspaceStatus::Offline as WorkspaceStatus,
        Change::Lost.sources() as Vec<WorkspaceStatus>,
    )
    .execute(&mut *tx)
    .await?;
    if done.rows_affected() == 0 {
        return Ok(false);
    }
    append_offline(tx, id).await?;
    Ok(true)
}

async fn append_offline(tx: &mut PgConnection, id: WorkspaceId) -> Result<(), FleetError> {
    let event = NewEvent {
        event_type: names::WORKSPACE_OFFLINE,
        workspace_id: Some(id),
        payload: json!({}),
    };
    Ok(append(tx, event).await?)
}

/// A managed workspace that is up, for the health check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunningWorkspace {
    /// Its id.
    pub id: WorkspaceId,
    /// Its runtime.
    pub runtime: String,
    /// Its container, on the Docker backend.
    pub container_id: Option<String>,
    /// The engine that is on.
    pub engine_id: Option<String>,
    /// Its instance, on the remote backend.
    pub instance_id: Option<String>,
    /// Which attempt brought it up.
    pub generation: i64,
}

/// The managed workspaces that are up.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn list_running(conn: &mut PgConnection) -> Result<Vec<RunningWorkspace>, FleetError> {
    Ok(sqlx::query_as!(
        RunningWorkspace,
        r#"SELECT id AS "id: WorkspaceId", runtime, container_id, engine_id, instance_id,
                  provision_generation AS generation
           FROM workspaces WHERE status = ANY($1) AND runtime <> $2 ORDER BY id"#,
        Change::Lost.sources() as Vec<WorkspaceStatus>,
        EXTERNAL,
    )
    .fetch_all(conn)
    .await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_and_a_large_share_together_are_not_believed() {
        let guard = MassGuard::DEFAULT;
        for (stale, watched, trips) in [
            (0, 0, false),
            (5, 5, false),
            (6, 6, true),
            (6, 29, true),
            (6, 30, false),
            (20, 100, false),
            (21, 100, true),
        ] {
            assert_eq!(guard.trips(stale, watched), trips, "{stale} of {watched}");
        }
    }
}
