//! Which jobs a pass takes: as many as there is room and limits allow, fairly chosen, with all their slots.

use sqlx::PgConnection;
use uuid::Uuid;

use super::{Room, fairness};
use crate::LedgerError;
use crate::control::{room_by_limits, spend, split_queue};
use crate::job::Wait;

/// Jobs that have their slots now; their rows are locked.
#[derive(Default)]
pub(super) struct Picked {
    /// In the order they should run.
    pub(super) ids: Vec<Uuid>,
    /// Whether there may be more to take at once.
    pub(super) more: bool,
    /// Jobs that did not get all their slots.
    blocked: Vec<Uuid>,
}

/// Picks at most `size` ready jobs, and lets those wait for their keys that did not get all of them.
pub(super) async fn pick(
    tx: &mut PgConnection,
    queue: &str,
    mut size: i64,
    room: &Room,
) -> Result<Picked, LedgerError> {
    let (kind, _) = split_queue(queue);
    if size > 0
        && room.limited
        && let Some(most) = room_by_limits(tx, kind).await?
    {
        size = size.min(most);
    }
    if size <= 0 {
        return Ok(Picked::default());
    }
    let picked = fill(tx, queue, size, room).await?;
    if room.limited {
        spend(tx, kind, picked.ids.len()).await?;
    }
    if !picked.blocked.is_empty() {
        park_blocked(tx, &picked.blocked).await?;
    }
    Ok(picked)
}

async fn fill(
    tx: &mut PgConnection,
    queue: &str,
    size: i64,
    room: &Room,
) -> Result<Picked, LedgerError> {
    match &room.tenant {
        // What is due was not ready when the tenants were looked at.
        _ if room.others || room.due => {
            let held = (
                room.held_tenants.as_slice(),
                room.held_workspaces.as_slice(),
            );
            let chosen = fairness::choose(tx, queue, size, held).await?;
            let mut picked = take(tx, Take::These(&chosen.ids())).await?;
            chosen.count(tx, queue, &picked.ids).await?;
            // Where others have locked all of them, a pass at once would find the same.
            picked.more = picked.ids.len() + picked.blocked.len() > 0;
            Ok(picked)
        }
        None => Ok(Picked::default()),
        Some(only) if room.held_tenants.contains(only) => Ok(Picked::default()),
        Some(only) => {
            let first = Take::First {
                queue,
                tenant: only,
                size,
                held_workspaces: &room.held_workspaces,
            };
            let mut picked = take(tx, first).await?;
            picked.more = (picked.ids.len() + picked.blocked.len()) as i64 == size;
            Ok(picked)
        }
    }
}

/// Which jobs to take.
#[derive(Clone, Copy)]
enum Take<'a> {
    /// Chosen ones, in this order.
    These(&'a [Uuid]),
    /// The first ones of the only tenant there is.
    First {
        queue: &'a str,
        tenant: &'a str,
        size: i64,
        held_workspaces: &'a [Uuid],
    },
}

/// Locks jobs and gives them their slots.
///
/// Of several that want the same key only the first one reaches for any of its keys. Did each take what it gets, two with
/// the same two keys could end with one each, and would again in every later pass.
async fn take(tx: &mut PgConnection, which: Take<'_>) -> Result<Picked, LedgerError> {
    let (ids, queue, tenant, size, held) = match which {
        Take::These(ids) => (Some(ids), "", "", 0, &[][..]),
        Take::First {
            queue,
            tenant,
            size,
            held_workspaces,
        } => (None, queue, tenant, size, held_workspaces),
    };
    let rows = sqlx::query!(
        r#"WITH picked AS (
               SELECT id, keys, priority, seq FROM jobs
               WHERE id = ANY (coalesce($1, ARRAY(
                   SELECT id FROM jobs WHERE queue = $2 AND state = 'scheduled' AND wait = 'ready' AND tenant = $3
                     AND (workspace_id IS NULL OR workspace_id <> ALL ($5))
                   ORDER BY priority, seq LIMIT $4
               ))) AND state = 'scheduled' AND wait = 'ready'
               ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
           ), wanted AS (
               SELECT id, key, row_number() OVER (PARTITION BY key ORDER BY array_position($1, id), priority, seq) AS place
               FROM picked, unnest(keys) AS key
           ), taken AS (
               INSERT INTO job_slots (key, job_id)
               SELECT key, id FROM wanted WHERE id NOT IN (SELECT id FROM wanted WHERE place > 1) ORDER BY key
               ON CONFLICT DO NOTHING RETURNING job_id
           ), slots AS (
               SELECT job_id, count(*) AS held FROM taken GROUP BY job_id
           )
           SELECT picked.id AS "id!", coalesce(slots.held, 0) = cardinality(picked.keys) AS "whole!"
           FROM picked LEFT JOIN slots ON slots.job_id = picked.id
           ORDER BY array_position($1, picked.id), picked.priority, picked.seq"#,
        ids,
        queue,
        tenant,
        size,
        held,
    )
    .fetch_all(&mut *tx)
    .await
    .map_err(LedgerError::database("taking slots for jobs"))?;
    let (whole, blocked): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| row.whole);
    Ok(Picked {
        ids: whole.into_iter().map(|row| row.id).collect(),
        blocked: blocked.into_iter().map(|row| row.id).collect(),
        more: false,
    })
}

/// Takes back the slots of jobs that did not get all of theirs, and lets those wait for their keys whose holder is still
/// there. The lock on the holder's slot makes its end come after our commit, where it will find the waiter.
async fn park_blocked(tx: &mut PgConnection, blocked: &[Uuid]) -> Result<(), LedgerError> {
    sqlx::query!("DELETE FROM job_slots WHERE job_id = ANY($1)", blocked)
        .execute(&mut *tx)
        .await
        .map_err(LedgerError::database("returning slots"))?;
    sqlx::query!(
        r#"WITH held AS (
               SELECT key FROM job_slots WHERE key IN (SELECT unnest(keys) FROM jobs WHERE id = ANY($1)) FOR KEY SHARE
           )
           UPDATE jobs SET wait = $2, revision = revision + 1
           WHERE id = ANY($1) AND EXISTS (SELECT 1 FROM held WHERE held.key = ANY(jobs.keys))"#,
        blocked,
        Wait::Key as Wait,
    )
    .execute(&mut *tx)
    .await
    .map_err(LedgerError::database("parking jobs behind their keys"))?;
    Ok(())
}
