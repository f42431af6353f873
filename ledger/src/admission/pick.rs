//! Which jobs a pass takes: as many as there is room and limits allow, fairly chosen, with all their slots.

use std::collections::{HashMap, HashSet};
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
    /// Whether the last pass found one tenant and no limits.
    alone: bool,
}

impl Progress {
    /// After which job a pass looks; after none from the first one on.
    fn begin(&self, tenant: &str) -> Option<(i16, i64)> {
        let (at, took) = self.from_first?;
        let is_due = at.elapsed() >= FIRST_PERIOD.max(took.saturating_mul(FIRST_SHARE));
        self.last.filter(|_| self.tenant == tenant && !is_due)
    }

    /// Whether the next pass may try to share the queue's lock.
    pub(super) fn is_alone(&self) -> bool {
        self.alone
    }

    /// Notes whether a pass had nothing to count and nobody's turn to keep.
    pub(crate) fn note_room(&mut self, is_plain: bool) {
        self.alone = is_plain;
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
            let locked = lock_these(tx, &chosen.ids()).await?;
            let mut picked = take_slots(tx, locked).await?;
            chosen.count(tx, queue, &picked.ids).await?;
            // Where others have locked all of them, a pass at once would find the same.
            picked.more = picked.ids.len() + picked.blocked.len() > 0;
            Ok(picked)
        }
        None => Ok(Picked::default()),
        Some(only) if room.held_tenants.contains(only) => Ok(Picked::default()),
        Some(only) => {
            let from = progress.begin(only);
            let began = Instant::now();
            let after = from.unwrap_or((i16::MIN, i64::MIN));
            let held = &room.held_workspaces;
            let locked = lock_next(tx, queue, only, after, size, held).await?;
            let found_all = locked.len() as i64 == size;
            let last = locked.last().map(|job| (job.priority, job.seq));
            progress.note(only, from, began.elapsed(), last.filter(|_| found_all));
            let mut picked = take_slots(tx, locked).await?;
            picked.more = found_all || from.is_some();
            Ok(picked)
        }
    }
}

/// A ready job whose row this transaction has locked.
struct Locked {
    id: Uuid,
    keys: Vec<String>,
    priority: i16,
    seq: i64,
}

/// Locks chosen jobs, except those that others have locked; in the order they were chosen. `NOT IN` says *scheduled* and
/// *ready* in a way that keeps the planner on the primary key: the partial index of ready jobs it would read as a whole.
async fn lock_these(tx: &mut PgConnection, ids: &[Uuid]) -> Result<Vec<Locked>, LedgerError> {
    let mut locked = sqlx::query_as!(
        Locked,
        "SELECT id, keys, priority, seq FROM jobs
         WHERE id = ANY ($1) AND state NOT IN ('queued', 'running') AND wait NOT IN ('key', 'time')
         ORDER BY id FOR NO KEY UPDATE SKIP LOCKED",
        ids,
    )
    .fetch_all(tx)
    .await
    .map_err(LedgerError::database("locking chosen jobs"))?;
    let places: HashMap<&Uuid, usize> = ids.iter().zip(0..).collect();
    locked.sort_unstable_by_key(|job| places.get(&job.id).copied());
    Ok(locked)
}

/// Locks the next jobs of the only tenant there is, after that priority and number, except those that others have locked.
/// As it waits for none of them, the order in which it locks them is that in which they should run.
async fn lock_next(
    tx: &mut PgConnection,
    queue: &str,
    tenant: &str,
    after: (i16, i64),
    size: i64,
    held_workspaces: &[Uuid],
) -> Result<Vec<Locked>, LedgerError> {
    sqlx::query_as!(
        Locked,
        "SELECT id, keys, priority, seq FROM jobs
         WHERE queue = $1 AND state = 'scheduled' AND wait = 'ready' AND tenant = $2 AND (priority, seq) > ($3, $4)
           AND (workspace_id IS NULL OR workspace_id <> ALL ($5))
         ORDER BY priority, seq LIMIT $6 FOR NO KEY UPDATE SKIP LOCKED",
        queue,
        tenant,
        after.0,
        after.1,
        held_workspaces,
        size,
    )
    .fetch_all(tx)
    .await
    .map_err(LedgerError::database("locking the next jobs of a queue"))
}

/// Gives locked jobs their slots.
///
/// Of several that want the same key only the first one reaches for any of its keys. Did each take what it gets, two with
/// the same two keys could end with one each, and would again in every later pass.
async fn take_slots(tx: &mut PgConnection, jobs: Vec<Locked>) -> Result<Picked, LedgerError> {
    let mut seen = HashSet::new();
    let (mut keys, mut owners) = (Vec::new(), Vec::new());
    for job in &jobs {
        if !job.keys.iter().any(|key| seen.contains(key)) {
            keys.extend(job.keys.iter().cloned());
            owners.extend(job.keys.iter().map(|_| job.id));
        }
        seen.extend(&job.keys);
    }
    let mut held: HashMap<Uuid, usize> = HashMap::new();
    if !keys.is_empty() {
        let taken = sqlx::query_scalar!(
            "INSERT INTO job_slots (key, job_id)
             SELECT key, job_id FROM unnest($1::text[], $2::uuid[]) AS wanted(key, job_id) ORDER BY key
             ON CONFLICT DO NOTHING RETURNING job_id",
            &keys,
            &owners,
        )
        .fetch_all(tx)
        .await
        .map_err(LedgerError::database("taking slots for jobs"))?;
        for id in taken {
            *held.entry(id).or_default() += 1;
        }
    }
    let (whole, blocked): (Vec<_>, Vec<_>) = jobs
        .into_iter()
        .partition(|job| held.get(&job.id).copied().unwrap_or_default() == job.keys.len());
    Ok(Picked {
        ids: whole.into_iter().map(|job| job.id).collect(),
        blocked: blocked.into_iter().map(|job| job.id).collect(),
        more: false,
    })
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
