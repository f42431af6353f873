//! Which jobs a pass takes: as many as there is room and limits allow, fairly chosen, with all their slots.

use std::time::{Duration, Instant};

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

/// Looking from the first job on takes at most one part in this many of a reader's time, and happens at most so often.
const FIRST_SHARE: u32 = 8;
const FIRST_PERIOD: Duration = Duration::from_millis(100);

/// How far a reader has come in the only tenant of its queue. A backlog leaves entries of its index behind that are dead
/// until the next vacuum; with a million of them each pass would spend most of its time walking past. So a pass goes on
/// where the last one came to, and looks from the first job on only now and then: for what was enqueued in a transaction
/// that took long, has come back, or is more urgent. Where it finds less than it wants, the next one looks there too.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    tenant: String,
    /// Priority and number of the last job that was seen.
    last: Option<(i16, i64)>,
    /// When a pass looked from the first job on, and how long that took.
    from_first: Option<(Instant, Duration)>,
}

impl Progress {
    /// After which job a pass looks; after none from the first one on.
    fn begin(&self, tenant: &str) -> Option<(i16, i64)> {
        let (at, took) = self.from_first?;
        let is_due = at.elapsed() >= FIRST_PERIOD.max(took.saturating_mul(FIRST_SHARE));
        self.last.filter(|_| self.tenant == tenant && !is_due)
    }

    /// Notes how far a pass came that looked from there on; `last` if there may be more behind it.
    fn note(
        &mut self,
        tenant: &str,
        from: Option<(i16, i64)>,
        took: Duration,
        last: Option<(i16, i64)>,
    ) {
        if from.is_none() {
            self.from_first = Some((Instant::now(), took));
            tenant.clone_into(&mut self.tenant);
        }
        self.last = last;
    }
}

/// Picks at most `size` ready jobs, and lets those wait for their keys that did not get all of them.
pub(super) async fn pick(
    tx: &mut PgConnection,
    queue: &str,
    mut size: i64,
    room: &Room,
    progress: &mut Progress,
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
    let picked = fill(tx, queue, size, room, progress).await?;
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
    progress: &mut Progress,
) -> Result<Picked, LedgerError> {
    match &room.tenant {
        // What is due was not ready when the tenants were looked at.
        _ if room.others || room.due => {
            let held = (
                room.held_tenants.as_slice(),
                room.held_workspaces.as_slice(),
            );
            let chosen = fairness::choose(tx, queue, size, held).await?;
            let (mut picked, _) = take(tx, Take::These(&chosen.ids())).await?;
            chosen.count(tx, queue, &picked.ids).await?;
            // Where others have locked all of them, a pass at once would find the same.
            picked.more = picked.ids.len() + picked.blocked.len() > 0;
            Ok(picked)
        }
        None => Ok(Picked::default()),
        Some(only) if room.held_tenants.contains(only) => Ok(Picked::default()),
        Some(only) => {
            let from = progress.begin(only);
            let next = Take::Next {
                queue,
                tenant: only,
                from,
                size,
                held_workspaces: &room.held_workspaces,
            };
            let began = Instant::now();
            let (mut picked, last) = take(tx, next).await?;
            let found_all = (picked.ids.len() + picked.blocked.len()) as i64 == size;
            progress.note(only, from, began.elapsed(), last.filter(|_| found_all));
            picked.more = found_all || from.is_some();
            Ok(picked)
        }
    }
}

/// Which jobs to take.
#[derive(Clone, Copy)]
enum Take<'a> {
    /// Chosen ones, in this order.
    These(&'a [Uuid]),
    /// The next ones of the only tenant there is.
    Next {
        queue: &'a str,
        tenant: &'a str,
        /// After which one, by priority and number.
        from: Option<(i16, i64)>,
        size: i64,
        held_workspaces: &'a [Uuid],
    },
}

/// Locks jobs and gives them their slots; answers the priority and number of the last one too.
///
/// Of several that want the same key only the first one reaches for any of its keys. Did each take what it gets, two with
/// the same two keys could end with one each, and would again in every later pass. `NOT IN` says *scheduled* and *ready*
/// in a way that keeps the planner on the primary key: the partial index of ready jobs it would read as a whole.
async fn take(
    tx: &mut PgConnection,
    which: Take<'_>,
) -> Result<(Picked, Option<(i16, i64)>), LedgerError> {
    const FIRST: (i16, i64) = (i16::MIN, i64::MIN);
    let (ids, queue, tenant, from, size, held) = match which {
        Take::These(ids) => (Some(ids), "", "", FIRST, 0, &[][..]),
        Take::Next {
            queue,
            tenant,
            from,
            size,
            held_workspaces,
        } => (
            None,
            queue,
            tenant,
            from.unwrap_or(FIRST),
            size,
            held_workspaces,
        ),
    };
    let rows = sqlx::query!(
        r#"WITH picked AS (
               SELECT id, keys, priority, seq FROM jobs
               WHERE id = ANY (coalesce($1, ARRAY(
                   SELECT id FROM jobs WHERE queue = $2 AND state = 'scheduled' AND wait = 'ready' AND tenant = $3
                     AND (priority, seq) > ($6, $7) AND (workspace_id IS NULL OR workspace_id <> ALL ($5))
                   ORDER BY priority, seq LIMIT $4
               ))) AND state NOT IN ('queued', 'running') AND wait NOT IN ('key', 'time')
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
           SELECT picked.id AS "id!", picked.priority AS "priority!", picked.seq AS "seq!",
               coalesce(slots.held, 0) = cardinality(picked.keys) AS "whole!"
           FROM picked LEFT JOIN slots ON slots.job_id = picked.id
           ORDER BY array_position($1, picked.id), picked.priority, picked.seq"#,
        ids,
        queue,
        tenant,
        size,
        held,
        from.0,
        from.1,
    )
    .fetch_all(&mut *tx)
    .await
    .map_err(LedgerError::database("taking slots for jobs"))?;
    let last = rows.last().map(|row| (row.priority, row.seq));
    let (whole, blocked): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| row.whole);
    let picked = Picked {
        ids: whole.into_iter().map(|row| row.id).collect(),
        blocked: blocked.into_iter().map(|row| row.id).collect(),
        more: false,
    };
    Ok((picked, last))
}

/// Takes back the slots of jobs that did not get all of theirs, and lets those wait for their keys whose holder is still
/// there. The lock on the holder's slot makes its end come after our commit, where it will find the waiter.
async fn park_blocked(tx: &mut PgConnection, blocked: &[Uuid]) -> Result<(), LedgerError> {
    sqlx::query!(
        "DELETE FROM job_slots WHERE key = ANY (ARRAY(SELECT unnest(keys) FROM jobs WHERE id = ANY($1))) AND job_id = ANY($1)",
        blocked
    )
    .execute(&mut *tx)
    .await
    .map_err(LedgerError::database("returning slots"))?;
    sqlx::query!(
        r#"WITH held AS (
               SELECT key FROM job_slots WHERE key = ANY (ARRAY(SELECT unnest(keys) FROM jobs WHERE id = ANY($1))) FOR KEY SHARE
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

#[cfg(test)]
mod tests {
    use super::*;

    const LAST: Option<(i16, i64)> = Some((0, 7));

    fn looked_from_first(took: Duration) -> Progress {
        let mut progress = Progress::default();
        progress.note("a", None, took, LAST);
        progress
    }

    #[test]
    fn a_pass_goes_on_where_the_last_one_came_to() {
        assert_eq!(Progress::default().begin("a"), None);
        // It took so long that the next look from the first job on is far away.
        let mut progress = looked_from_first(Duration::from_secs(3600));
        assert_eq!(progress.begin("a"), LAST);
        assert_eq!(
            progress.begin("b"),
            None,
            "of another tenant nothing is known"
        );
        progress.note("a", LAST, Duration::ZERO, Some((0, 9)));
        assert_eq!(progress.begin("a"), Some((0, 9)));
    }

    #[test]
    fn it_looks_from_the_first_job_on_where_there_was_too_little_and_now_and_then() {
        let mut progress = looked_from_first(Duration::from_secs(3600));
        progress.note("a", LAST, Duration::ZERO, None);
        assert_eq!(progress.begin("a"), None);
        let mut progress = looked_from_first(Duration::ZERO);
        progress.from_first = Instant::now()
            .checked_sub(FIRST_PERIOD)
            .map(|at| (at, Duration::ZERO));
        assert_eq!(progress.begin("a"), None);
    }
}
