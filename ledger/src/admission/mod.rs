//! Admission: the only way out of scheduled, to queued or ([`direct`]) to a worker that has room for many.
//!
//! One transaction under the queue's advisory lock chooses eligible jobs, takes their slots (all or none), marks them
//! queued and raises their dispatch number; hints go out after the commit. Everything that makes a job eligible or
//! makes room pokes the [`Admitter`], which runs one pass at a time per queue and process and folds pokes together.
//! Modes, holds and limits close or narrow the room; [`mod@pick`] fills it, with jobs that [`fairness`] chooses.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use longshore_base::{JobId, failpoint};
use sqlx::{PgConnection, PgPool, Postgres, Transaction};
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub(crate) mod direct;
pub(crate) mod fairness;
mod pick;

use crate::LedgerError;
use crate::control::split_queue;
use crate::hints::{Hint, Hints};
use crate::job::Wait;
pub(crate) use pick::Progress;
use pick::pick;

/// Jobs that come due in one pass.
const DUE_BATCH: i64 = 1000;
/// Most jobs one transaction admits.
const BATCH: i64 = 1000;
/// A failed pass is tried again after this.
const RETRY: Duration = Duration::from_millis(200);

/// Admits jobs of any queue; one per process. Clones share it.
#[derive(Clone)]
pub struct Admitter {
    inner: Arc<Inner>,
}

struct Inner {
    pool: PgPool,
    hints: Hints,
    queues: Mutex<HashMap<String, Arc<Notify>>>,
    /// Queues whose reader in this process takes what is ready by itself: see [`Admitter::step_aside`].
    direct: Mutex<HashSet<String>>,
    /// Queues whose last pass found limits: there the end of a run makes room.
    limited: Mutex<HashSet<String>>,
    /// Passes at the same time: see [`Admitter::new`].
    passes: Semaphore,
    stop: CancellationToken,
}

impl Admitter {
    /// An admitter that lives until `stop`. The pool is the control pool. Its passes take no more than half of the pool's
    /// connections: while one of them waits for a lock, as when an operator's change waits for somebody who stands still,
    /// heartbeats and the ends of runs go on.
    #[must_use]
    pub fn new(pool: PgPool, hints: Hints, stop: CancellationToken) -> Self {
        let most = pool.options().get_max_connections() / 2;
        Self {
            inner: Arc::new(Inner {
                passes: Semaphore::new(most.max(1) as usize),
                pool,
                hints,
                queues: Mutex::default(),
                direct: Mutex::default(),
                limited: Mutex::default(),
                stop,
            }),
        }
    }

    /// Says that runs of these queues have ended, which makes room where their number is limited.
    pub(crate) fn poke_limited<'a>(&self, queues: impl Iterator<Item = &'a str>) {
        let found: HashSet<&str> = {
            let limited = self
                .inner
                .limited
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            if limited.is_empty() {
                return;
            }
            queues.filter(|queue| limited.contains(*queue)).collect()
        };
        found.into_iter().for_each(|queue| self.poke(queue));
    }

    /// Says that something may be admitted on this queue. Returns at once; pokes during a pass cause one more pass.
    pub fn poke(&self, queue: &str) {
        let mut queues = self
            .inner
            .queues
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(wake) = queues.get(queue) {
            wake.notify_one();
            return;
        }
        let wake = Arc::new(Notify::new());
        wake.notify_one();
        queues.insert(queue.to_owned(), Arc::clone(&wake));
        tokio::spawn(admit_when_poked(
            Arc::clone(&self.inner),
            queue.to_owned(),
            wake,
        ));
    }

    /// Admits nothing on this queue while the answer lives: its reader does, for itself, and a pass between two of its own
    /// would make it wait, then write twice what is to run at once. Its end is a poke, for what was ignored meanwhile.
    pub(crate) fn step_aside(&self, queue: &str) -> Aside {
        self.inner.direct().insert(queue.to_owned());
        Aside {
            admitter: self.clone(),
            queue: queue.to_owned(),
        }
    }

    /// Tells all workers that running jobs may have been asked to stop; to be called after that was committed. Returns
    /// at once. A poke that gets lost costs no more than the time until they look by themselves.
    pub fn poke_cancels(&self) {
        let hints = self.inner.hints.clone();
        tokio::spawn(async move { hints.poke_cancels().await });
    }
}

/// While it lives, pokes of a queue are ignored.
pub(crate) struct Aside {
    admitter: Admitter,
    queue: String,
}

impl Drop for Aside {
    fn drop(&mut self) {
        self.admitter.inner.direct().remove(&self.queue);
        self.admitter.poke(&self.queue);
    }
}

impl Inner {
    fn direct(&self) -> MutexGuard<'_, HashSet<String>> {
        self.direct.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_limited(&self, queue: &str, is_limited: bool) {
        let mut limited = self.limited.lock().unwrap_or_else(PoisonError::into_inner);
        if is_limited {
            limited.insert(queue.to_owned());
        } else if !limited.is_empty() {
            limited.remove(queue);
        }
    }
}

impl std::fmt::Debug for Admitter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Admitter")
    }
}

async fn admit_when_poked(inner: Arc<Inner>, queue: String, wake: Arc<Notify>) {
    loop {
        tokio::select! {
            biased;
            () = inner.stop.cancelled() => return,
            () = wake.notified() => {}
        }
        while !inner.direct().contains(&queue) {
            let Ok(turn) = inner.passes.acquire().await else {
                return;
            };
            let pass = admit(&inner.pool, &queue).await;
            drop(turn);
            match pass {
                Ok(pass) => {
                    let more = pass.more;
                    inner.note_limited(&queue, pass.limited);
                    if !pass.admitted.is_empty() {
                        failpoint::hit("admit.committed").await;
                        metrics::counter!("longshore_jobs_admitted_total", "queue" => queue.clone())
                            .increment(pass.admitted.len() as u64);
                        inner.hints.publish(&queue, &pass.admitted).await;
                    }
                    if !more {
                        break;
                    }
                }
                Err(error) => {
                    // Nothing is lost: the workers' passes of each second come to the same rows.
                    tracing::warn!(
                        queue,
                        error = &error as &dyn std::error::Error,
                        "an admission pass failed"
                    );
                    tokio::time::sleep(RETRY).await;
                    wake.notify_one();
                    break;
                }
            }
        }
    }
}

/// What one pass did.
pub(crate) struct Pass {
    pub(crate) admitted: Vec<Hint>,
    /// Whether another pass at once would find room and jobs.
    more: bool,
    /// Whether its kind has limits.
    limited: bool,
}

/// Whom a pass admits for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum For {
    /// Whoever claims: no more than a window of jobs waits for them.
    All,
    /// A worker that knows how many it takes; beside other passes of that sort if it shares the lock.
    Itself { shared: bool },
}

/// What a pass finds before it chooses.
struct Room {
    /// Jobs that wait to be claimed; for a worker that admits for itself only whether there are any, 0 or 1.
    queued: i64,
    /// How many may; 0 for a worker that admits for itself.
    window: i64,
    due: bool,
    closed: bool,
    limited: bool,
    /// The last of the tenants that have jobs ready, and whether it is not the only one.
    tenant: Option<String>,
    others: bool,
    held_tenants: Vec<String>,
    held_workspaces: Vec<Uuid>,
}

impl Room {
    /// Whether a pass has nothing to count and nobody's turn to keep, for which it needs the queue's lock for itself.
    fn is_plain(&self) -> bool {
        !(self.limited || self.others || self.due || self.queued > 0)
    }

    /// Jobs to admit now. Small top-ups cost as much as large ones: while three quarters still wait for a reader, a
    /// later claim pokes again.
    fn size(&self) -> i64 {
        if self.closed || self.queued > self.window - self.window / 4 {
            0
        } else {
            (self.window - self.queued).clamp(0, BATCH)
        }
    }
}

/// One admission pass over one queue.
pub(crate) async fn admit(pool: &PgPool, queue: &str) -> Result<Pass, LedgerError> {
    let (mut tx, room) = open(pool, queue, For::All).await?;
    let picked = pick(&mut tx, queue, room.size(), &room, &mut Progress::default()).await?;
    let admitted = mark_queued(&mut tx, &picked.ids).await?;
    tx.commit()
        .await
        .map_err(LedgerError::database("committing an admission"))?;
    Ok(Pass {
        more: picked.more && !room.limited && (admitted.len() as i64) < room.window - room.queued,
        limited: room.limited,
        admitted,
    })
}

/// Begins a pass: under the queue's lock, with what has come due taken up.
async fn open(
    pool: &PgPool,
    queue: &str,
    whom: For,
) -> Result<(Transaction<'static, Postgres>, Room), LedgerError> {
    let (kind, place) = split_queue(queue);
    let mut tx = pool
        .begin()
        .await
        .map_err(LedgerError::database("beginning an admission"))?;
    // Changes of controls take the first one alone; passes over other queues share it.
    sqlx::query!(
        "SELECT pg_advisory_xact_lock_shared(hashtextextended('longshore.control', 0)),
                CASE WHEN $2 THEN pg_advisory_xact_lock_shared(hashtextextended('longshore.admit:' || $1, 0))
                     ELSE pg_advisory_xact_lock(hashtextextended('longshore.admit:' || $1, 0)) END",
        queue,
        whom == For::Itself { shared: true },
    )
    .execute(&mut *tx)
    .await
    .map_err(LedgerError::database("locking a queue for admission"))?;
    let room = sqlx::query_as!(
        Room,
        r#"WITH control AS (
               SELECT scope, value FROM queue_controls WHERE ended_at IS NULL AND (until IS NULL OR until > longshore_now())
           ), last AS (
               SELECT tenant FROM jobs WHERE queue = $1 AND state = 'scheduled' AND wait = 'ready' ORDER BY tenant DESC LIMIT 1
           ), wanted AS (
               SELECT coalesce(sum((windows -> $1 ->> 0)::bigint), 0)::bigint AS ahead,
                      coalesce(sum((windows -> $1 ->> 1)::bigint), 0)::bigint AS slots
               FROM workers WHERE NOT draining
           )
           SELECT (SELECT count(*) FROM (SELECT FROM jobs WHERE queue = $1 AND state = 'queued' LIMIT $4) AS queued) AS "queued!",
                  (SELECT CASE WHEN $4 IS NOT NULL THEN 0 WHEN ahead < slots
                          THEN ahead + greatest(0, slots - (SELECT count(*) FROM jobs WHERE queue = $1 AND state = 'running'))
                          ELSE ahead END
                   FROM wanted) AS "window!",
                  EXISTS (SELECT 1 FROM jobs WHERE queue = $1 AND state = 'scheduled' AND wait = 'time'
                          AND run_at <= longshore_now()) AS "due!",
                  EXISTS (SELECT 1 FROM control WHERE scope = 'all' OR (scope IN ('queue', 'kind') AND value = $2)
                          OR (scope = 'engine' AND value = $3)) AS "closed!",
                  EXISTS (SELECT 1 FROM queue_limits WHERE queue_limits.queue = $2) AS "limited!",
                  (SELECT tenant FROM last) AS tenant,
                  EXISTS (SELECT 1 FROM jobs WHERE queue = $1 AND state = 'scheduled' AND wait = 'ready'
                          AND jobs.tenant < (SELECT tenant FROM last)) AS "others!",
                  ARRAY(SELECT value FROM control WHERE scope = 'tenant') AS "held_tenants!",
                  ARRAY(SELECT value::uuid FROM control WHERE scope = 'workspace') AS "held_workspaces!""#,
        queue,
        kind,
        place,
        (whom != For::All).then_some(1),
    )
    .fetch_one(&mut *tx)
    .await
    .map_err(LedgerError::database("reading the room of a queue"))?;
    if room.due {
        take_what_is_due(&mut tx, queue).await?;
    }
    Ok((tx, room))
}

/// Says of jobs that have their slots that they wait for a worker; answers the hints, in the same order.
async fn mark_queued(tx: &mut PgConnection, ids: &[Uuid]) -> Result<Vec<Hint>, LedgerError> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let rows = sqlx::query!(
        "UPDATE jobs SET state = 'queued', dispatch = dispatch + 1, republished = 0, queued_at = now,
             backing_off = false, revision = revision + 1
         FROM longshore_now() AS now WHERE id = ANY ($1) RETURNING jobs.id, jobs.dispatch",
        ids,
    )
    .fetch_all(&mut *tx)
    .await
    .map_err(LedgerError::database("admitting jobs"))?;
    let dispatches: HashMap<Uuid, i32> =
        rows.into_iter().map(|row| (row.id, row.dispatch)).collect();
    Ok(ids
        .iter()
        .filter_map(|id| {
            Some(Hint {
                job_id: JobId(*id),
                dispatch: *dispatches.get(id)?,
            })
        })
        .collect())
}

/// What has come due joins the queue, behind whoever is before it on its keys.
async fn take_what_is_due(tx: &mut PgConnection, queue: &str) -> Result<(), LedgerError> {
    sqlx::query!(
        r#"UPDATE jobs SET wait = $2, revision = revision + 1 WHERE id IN (
               SELECT id FROM jobs WHERE queue = $1 AND state = 'scheduled' AND wait = 'time' AND run_at <= longshore_now()
               ORDER BY run_at LIMIT $3 FOR UPDATE SKIP LOCKED
           )"#,
        queue,
        Wait::Ready as Wait,
        DUE_BATCH,
    )
    .execute(&mut *tx)
    .await
    .map_err(LedgerError::database("taking up jobs that have come due"))?;
    Ok(())
}

/// Wakes the next waiter of each freed key. Runs after the slots are gone, as a statement of its own, so that it sees
/// what was enqueued while the slots were being deleted. Answers the queues to poke.
pub(crate) async fn wake_next(
    tx: &mut PgConnection,
    freed: &[String],
) -> Result<Vec<String>, LedgerError> {
    if freed.is_empty() {
        return Ok(Vec::new());
    }
    sqlx::query_scalar!(
        r#"WITH next AS (
               SELECT DISTINCT waiter.id FROM unnest($1::text[]) AS freed(key)
               CROSS JOIN LATERAL (
                   (SELECT id FROM jobs WHERE keys[1] = freed.key AND cardinality(keys) = 1 AND state = 'scheduled' AND wait = 'key'
                    ORDER BY seq LIMIT 1)
                   UNION ALL
                   (SELECT job_id FROM job_keys WHERE job_keys.key = freed.key)
               ) AS waiter
           ), woken AS (
               UPDATE jobs SET wait = $2, revision = revision + 1
               WHERE id = ANY (ARRAY(SELECT id FROM next)) AND state = 'scheduled' AND wait = 'key'
               RETURNING queue
           )
           SELECT DISTINCT queue AS "queue!" FROM woken"#,
        freed,
        Wait::Ready as Wait,
    )
    .fetch_all(&mut *tx)
    .await
    .map_err(LedgerError::database("waking the next jobs of freed keys"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(queued: i64, window: i64, closed: bool) -> i64 {
        let room = Room {
            queued,
            window,
            due: false,
            closed,
            limited: false,
            tenant: None,
            others: false,
            held_tenants: Vec::new(),
            held_workspaces: Vec::new(),
        };
        room.size()
    }

    #[test]
    fn a_window_is_filled_up_once_a_quarter_of_it_is_free() {
        assert_eq!(size(0, 8, false), 8);
        assert_eq!(size(6, 8, false), 2);
        assert_eq!(size(7, 8, false), 0, "a later claim pokes again");
        assert_eq!(size(3, 4, false), 1);
        assert_eq!(size(0, 1, false), 1);
        assert_eq!(size(1, 1, false), 0);
    }

    #[test]
    fn there_is_no_room_without_workers_nor_where_a_window_has_shrunk_nor_where_it_is_closed() {
        assert_eq!(size(0, 0, false), 0);
        assert_eq!(size(9, 4, false), 0);
        assert_eq!(size(0, 8, true), 0);
    }

    #[test]
    fn one_transaction_admits_a_batch_at_most() {
        assert_eq!(size(0, 4000, false), BATCH);
    }
}
