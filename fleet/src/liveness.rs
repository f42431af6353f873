//! Who is no longer there (`spec: lifecycle` §6.1, §6.2). The verdicts are Postgres' alone, from its own clock; a missing
//! key in Redis proves nothing.
//!
//! Whoever runs these must itself have been up for a full TTL, and heartbeats must have been accepted for as long
//! ([`is_intake_steady`]): after an outage everybody looks silent. And when a large
//! part of the fleet goes silent at once, the fault is more likely ours than theirs, so then nobody is given up
//! ([`MassGuard`]).

use std::collections::HashSet;
use std::time::Duration;

use longshore_base::clock::now;
use longshore_base::{Timestamp, WorkspaceId};
use longshore_events::{NewEvent, append, names};
use serde_json::json;
use sqlx::PgConnection;

use crate::FleetError;
use crate::status::{Change, WorkspaceStatus};
use crate::workspace::EXTERNAL;

/// Rows that a sweep reads at once. With a limit every page is read in the order of an index, whatever the statistics say.
pub(crate) const PAGE: u16 = 500;

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
    let up = Change::Lost.sources();
    let quiet = list_quiet(tx, &up, Runs::Here, ttl).await?;
    let stale = quiet.into_iter().filter(|one| one.was_heard);
    let stale: Vec<_> = stale.map(|one| one.id).collect();
    expire(tx, Runs::Here, (stale, ttl), guard, believed).await
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
    let up = Change::Lost.sources();
    let quiet = list_quiet(tx, &up, Runs::Elsewhere, after).await?;
    let stale = quiet.into_iter().filter(|one| one.is_unchanged);
    let stale: Vec<_> = stale.map(|one| one.id).collect();
    expire(tx, Runs::Elsewhere, (stale, after), guard, believed).await
}

/// Where agents run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Runs {
    /// On what the platform controls.
    Here,
    /// On somebody's own machine.
    Elsewhere,
}

/// A workspace of which nothing was heard for a while, or ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Quiet {
    pub(crate) id: WorkspaceId,
    beat_minute: Timestamp,
    /// It has beaten before.
    was_heard: bool,
    /// Nor has its row changed in that time, if it never beat.
    is_unchanged: bool,
}

/// Those in these statuses of which nothing was heard for so long. Nothing else is read, however many there are.
pub(crate) async fn list_quiet(
    conn: &mut PgConnection,
    statuses: &[WorkspaceStatus],
    runs: Runs,
    for_longer_than: Duration,
) -> Result<Vec<Quiet>, FleetError> {
    let since = now(&mut *conn).await? - for_longer_than;
    let mut quiet: Vec<Quiet> = Vec::new();
    loop {
        let last = quiet.last();
        let page = sqlx::query_as!(
            Quiet,
            r#"SELECT q.id AS "id!: WorkspaceId", q.beat_minute AS "beat_minute!", q.was_heard AS "was_heard!",
                      q.is_unchanged AS "is_unchanged!"
               FROM unnest($1::workspace_status[]) AS one (status) CROSS JOIN LATERAL (
                   SELECT id, beat_minute, last_heartbeat_at IS NOT NULL AS was_heard,
                          coalesce(last_heartbeat_at, updated_at) < $2 AS is_unchanged
                   FROM workspaces
                   WHERE status = one.status AND beat_minute < $2 AND (beat_minute, id) > ($3, $4)
                     AND (runtime = $5) = $6 AND (last_heartbeat_at < $2 OR last_heartbeat_at IS NULL)
                   ORDER BY beat_minute, id LIMIT $7
               ) AS q ORDER BY q.beat_minute, q.id LIMIT $7"#,
            statuses as &[WorkspaceStatus],
            since,
            last.map_or(Timestamp::UNIX_EPOCH, |last| last.beat_minute),
            last.map_or(WorkspaceId::LEAST, |last| last.id) as WorkspaceId,
            EXTERNAL,
            runs == Runs::Elsewhere,
            i64::from(PAGE),
        )
        .fetch_all(&mut *conn)
        .await?;
        let is_last = page.len() < usize::from(PAGE);
        quiet.extend(page);
        if is_last {
            return Ok(quiet);
        }
    }
}

async fn expire(
    tx: &mut PgConnection,
    runs: Runs,
    (stale, after): (Vec<WorkspaceId>, Duration),
    guard: MassGuard,
    believed: &[WorkspaceId],
) -> Result<Expiry, FleetError> {
    let believed: HashSet<_> = believed.iter().collect();
    let doubtful = stale.iter().filter(|id| !believed.contains(id)).count();
    if doubtful > guard.count {
        let watched = count_up(tx, runs).await?;
        if guard.trips(doubtful, watched) {
            return Ok(Expiry::TooMany { stale, watched });
        }
    }
    if stale.is_empty() {
        return Ok(Expiry::Expired(stale));
    }
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
        &stale as &[WorkspaceId],
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

async fn count_up(conn: &mut PgConnection, runs: Runs) -> Result<usize, FleetError> {
    let count = sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM workspaces
           WHERE status = ANY($1) AND (runtime = $2) = $3 AND ($3 OR last_heartbeat_at IS NOT NULL)"#,
        Change::Lost.sources() as Vec<WorkspaceStatus>,
        EXTERNAL,
        runs == Runs::Elsewhere,
    )
    .fetch_one(conn)
    .await?;
    Ok(usize::try_from(count).unwrap_or_default())
}

/// Gives up one workspace whose container was found gone. False, and nothing happens, when it is not up any more, or was
/// brought up once more since it had this generation.
///
/// # Errors
/// [`FleetError`].
pub async fn mark_offline(
    tx: &mut PgConnection,
    id: WorkspaceId,
    generation: i64,
) -> Result<bool, FleetError> {
    let done = sqlx::query!(
        "UPDATE workspaces SET status = $2, updated_at = longshore_now()
         WHERE id = $1 AND status = ANY($3) AND provision_generation = $4",
        id as WorkspaceId,
        WorkspaceStatus::Offline as WorkspaceStatus,
        Change::Lost.sources() as Vec<WorkspaceStatus>,
        generation,
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
    /// Its instance, on the remote backend.
    pub instance_id: Option<String>,
    /// Which attempt brought it up.
    pub generation: i64,
}

/// The next of the managed workspaces that are up on an engine, or at a place that stands for one, behind an id: a page of
/// them, in the order of their ids. Empty once there are no more.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn list_running(
    conn: &mut PgConnection,
    engine_id: &str,
    after: WorkspaceId,
) -> Result<Vec<RunningWorkspace>, FleetError> {
    Ok(sqlx::query_as!(
        RunningWorkspace,
        r#"SELECT id AS "id: WorkspaceId", instance_id, provision_generation AS generation
           FROM workspaces
           WHERE engine_id = $1 AND status = ANY($2) AND id > $3 AND runtime <> $4 ORDER BY id LIMIT $5"#,
        engine_id,
        Change::Lost.sources() as Vec<WorkspaceStatus>,
        after as WorkspaceId,
        EXTERNAL,
        i64::from(PAGE),
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
