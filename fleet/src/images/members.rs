//! What a rollout could take, what it took, and how far its rings are: the rows of its workspaces.

use longshore_base::{JobId, WorkspaceId};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{Member, Part, Rollout, Seen, Tally, up};
use crate::status::WorkspaceStatus;
use crate::workspace::Workspace;
use crate::{Fleet, FleetError};

/// The workspaces that could be taken now, in the order in which every rollout takes them: those that are up on another
/// digest.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn list_candidates(
    tx: &mut PgConnection,
    rollout: &Rollout,
    limit: i64,
) -> Result<Vec<WorkspaceId>, FleetError> {
    Ok(sqlx::query_scalar!(
        r#"SELECT id AS "id: WorkspaceId" FROM workspaces w
           WHERE runtime = $1 AND status = ANY($2) AND runtime_image_digest IS DISTINCT FROM $3
                 AND NOT EXISTS (SELECT 1 FROM image_rollout_workspaces m
                                 WHERE m.rollout_id = $4 AND m.workspace_id = w.id)
           ORDER BY md5(id::text), id LIMIT $5"#,
        rollout.template_name,
        &up() as &[WorkspaceStatus],
        rollout.sha256_digest,
        rollout.id,
        limit,
    )
    .fetch_all(tx)
    .await?)
}

/// How far the ring is that a rollout takes.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn tally(tx: &mut PgConnection, rollout: &Rollout) -> Result<Tally, FleetError> {
    let candidates = sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM workspaces w
           WHERE runtime = $1 AND status = ANY($2) AND runtime_image_digest IS DISTINCT FROM $3
                 AND NOT EXISTS (SELECT 1 FROM image_rollout_workspaces m
                                 WHERE m.rollout_id = $4 AND m.workspace_id = w.id)"#,
        rollout.template_name,
        &up() as &[WorkspaceStatus],
        rollout.sha256_digest,
        rollout.id,
    )
    .fetch_one(&mut *tx)
    .await?;
    let soaked_seconds = sqlx::query_scalar!(
        "SELECT extract(epoch FROM longshore_now() - soaking_since)::bigint FROM image_rollouts WHERE id = $1",
        rollout.id
    )
    .fetch_one(&mut *tx)
    .await?;
    let mut tally = Tally {
        percent: i64::from(rollout.percent()),
        candidates,
        soaked_seconds,
        ..Tally::default()
    };
    for row in count_parts(tx, rollout.id).await? {
        let (ring, part, count) = row;
        if part != Part::Left {
            tally.members += count;
        }
        if ring == rollout.ring {
            match part {
                Part::Taken => tally.taken = count,
                Part::Up => tally.up = count,
                Part::Failed => tally.failed = count,
                Part::Left | Part::Restoring | Part::Restored | Part::Lost => {}
            }
        }
    }
    Ok(tally)
}

/// How many stand where, ring by ring.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn count_parts(
    conn: &mut PgConnection,
    id: Uuid,
) -> Result<Vec<(i32, Part, i64)>, FleetError> {
    let rows = sqlx::query!(
        r#"SELECT ring, part AS "part: Part", count(*) AS "count!" FROM image_rollout_workspaces
           WHERE rollout_id = $1 GROUP BY ring, part ORDER BY ring, part"#,
        id
    )
    .fetch_all(conn)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| (row.ring, row.part, row.count))
        .collect())
}

/// What a ring has come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingCounts {
    /// The share in percent that it completes.
    pub percent: i32,
    /// Under way, onto the digest or back.
    pub under_way: i64,
    /// Up on the digest.
    pub up: i64,
    /// Failed on it, or on the way back.
    pub failed: i64,
    /// Stopped by somebody meanwhile.
    pub left: i64,
    /// Back on what it was before.
    pub restored: i64,
}

/// What every ring of a rollout has come to.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn count_rings(
    conn: &mut PgConnection,
    rollout: &Rollout,
) -> Result<Vec<RingCounts>, FleetError> {
    let percents = rollout.rings.iter();
    let mut rings: Vec<_> = percents
        .map(|percent| RingCounts {
            percent: *percent,
            ..RingCounts::default()
        })
        .collect();
    for (ring, part, count) in count_parts(conn, rollout.id).await? {
        let ring = usize::try_from(ring).ok();
        let Some(ring) = ring.and_then(|ring| rings.get_mut(ring)) else {
            continue;
        };
        match part {
            Part::Taken | Part::Restoring => ring.under_way += count,
            Part::Up => ring.up += count,
            Part::Failed | Part::Lost => ring.failed += count,
            Part::Left => ring.left += count,
            Part::Restored => ring.restored += count,
        }
    }
    Ok(rings)
}

/// The members of some ring, or of all, that stand in these parts, with what they are now.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn list_members(
    tx: &mut PgConnection,
    fleet: &Fleet,
    rollout: &Rollout,
    ring: Option<i32>,
    parts: &[Part],
) -> Result<Vec<Member>, FleetError> {
    let limit = fleet.provision_timeout(&rollout.template_name);
    let rows = sqlx::query!(
        r#"SELECT m.workspace_id AS "workspace_id: WorkspaceId", m.part AS "part: Part", m.generation,
                  m.job_id AS "job_id: JobId", w.status AS "status: WorkspaceStatus", w.provision_generation,
                  w.runtime = $2 AS "same_runtime!", w.container_id IS NOT NULL AS "recorded!", w.runtime_image_digest,
                  coalesce(w.provision_started_at < longshore_now() - make_interval(secs => $5), false) AS "overdue!",
                  coalesce((SELECT max(at) FROM unnest(w.auto_restarted_at) AS at) > m.asked_at, false) AS "lost_since!",
                  w.last_sample_error
           FROM image_rollout_workspaces m JOIN workspaces w ON w.id = m.workspace_id
           WHERE m.rollout_id = $1 AND m.part = ANY($3) AND ($4::integer IS NULL OR m.ring = $4)
           ORDER BY m.workspace_id"#,
        rollout.id,
        rollout.template_name,
        parts as &[Part],
        ring,
        limit.as_secs_f64(),
    )
    .fetch_all(tx)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| Member {
            workspace_id: row.workspace_id,
            part: row.part,
            generation: row.generation,
            job_id: row.job_id,
            now: Seen {
                status: row.status,
                generation: row.provision_generation,
                same_runtime: row.same_runtime,
                recorded: row.recorded,
                digest: row.runtime_image_digest,
                overdue: row.overdue,
                lost_since: row.lost_since,
                error: row.last_sample_error,
            },
        })
        .collect())
}

/// Members of the present ring that have failed.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn list_failed(
    tx: &mut PgConnection,
    rollout: &Rollout,
) -> Result<Vec<WorkspaceId>, FleetError> {
    Ok(sqlx::query_scalar!(
        r#"SELECT workspace_id AS "id: WorkspaceId" FROM image_rollout_workspaces
           WHERE rollout_id = $1 AND ring = $2 AND part = $3 ORDER BY workspace_id"#,
        rollout.id,
        rollout.ring,
        Part::Failed as Part,
    )
    .fetch_all(tx)
    .await?)
}

/// At most `limit` members that are to go back and are not on the way yet, with what they ran before.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn list_restorable(
    tx: &mut PgConnection,
    rollout: &Rollout,
    limit: i64,
) -> Result<Vec<(WorkspaceId, Option<String>)>, FleetError> {
    let rows = sqlx::query!(
        r#"SELECT workspace_id AS "id: WorkspaceId", previous_digest FROM image_rollout_workspaces
           WHERE rollout_id = $1 AND part = ANY($2) ORDER BY workspace_id LIMIT $3"#,
        rollout.id,
        &[Part::Taken, Part::Up, Part::Failed] as &[Part],
        limit,
    )
    .fetch_all(tx)
    .await?;
    let rows = rows.into_iter();
    Ok(rows.map(|row| (row.id, row.previous_digest)).collect())
}

/// What was asked for a workspace.
#[derive(Clone, Debug)]
pub struct Taken<'a> {
    /// The workspace, its row locked and as it is before the restart.
    pub workspace: &'a Workspace,
    /// Onto what: `None` is what its runtime's pin or tag says.
    pub digest: Option<&'a str>,
    /// Where it stands now.
    pub part: Part,
    /// Its restart; `None` for one that may not be restarted.
    pub job_id: Option<JobId>,
    /// Why it is where it is.
    pub reason: Option<&'a str>,
}

/// Writes down that a workspace belongs to the present ring, or is asked for once more, and gives it its digest. What it ran
/// before the rollout is kept from the first time.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn take(
    tx: &mut PgConnection,
    rollout: &Rollout,
    taken: Taken<'_>,
) -> Result<(), FleetError> {
    let id = taken.workspace.id;
    sqlx::query!(
        "INSERT INTO image_rollout_workspaces (rollout_id, workspace_id, ring, part, previous_digest, generation, job_id,
                                               reason)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
         ON CONFLICT (rollout_id, workspace_id) DO UPDATE SET part = excluded.part, generation = excluded.generation,
             job_id = excluded.job_id, reason = excluded.reason, asked_at = longshore_now()",
        rollout.id,
        id as WorkspaceId,
        rollout.ring,
        taken.part as Part,
        taken.workspace.runtime_image_digest,
        taken.workspace.provision_generation,
        taken.job_id as Option<JobId>,
        taken.reason,
    )
    .execute(&mut *tx)
    .await?;
    match taken.digest {
        Some(digest) => {
            sqlx::query!(
                "INSERT INTO workspace_image_pins (workspace_id, template_name, sha256_digest) VALUES ($1, $2, $3)
                 ON CONFLICT (workspace_id) DO UPDATE SET template_name = excluded.template_name,
                     sha256_digest = excluded.sha256_digest, set_at = longshore_now()",
                id as WorkspaceId,
                rollout.template_name,
                digest,
            )
            .execute(tx)
            .await?;
        }
        None => {
            sqlx::query!(
                "DELETE FROM workspace_image_pins WHERE workspace_id = $1",
                id as WorkspaceId
            )
            .execute(tx)
            .await?;
        }
    }
    Ok(())
}

/// Writes down what became of a member.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn record_part(
    tx: &mut PgConnection,
    id: Uuid,
    workspace_id: WorkspaceId,
    part: Part,
    reason: Option<&str>,
) -> Result<(), FleetError> {
    sqlx::query!(
        "UPDATE image_rollout_workspaces SET part = $3, reason = $4 WHERE rollout_id = $1 AND workspace_id = $2",
        id,
        workspace_id as WorkspaceId,
        part as Part,
        reason,
    )
    .execute(tx)
    .await?;
    Ok(())
}
