//! Limits of a queue at run time: how many at once over all workers, how many in one worker, how many a minute.

use chrono::TimeDelta;
use serde::Serialize;
use sqlx::PgConnection;

use super::lock_exclusive;
use crate::LedgerError;

/// Limits of a queue; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// Runs over all workers and places.
    pub max_running: Option<i32>,
    /// Runs in one worker; at most what the kind allows by itself.
    pub max_per_worker: Option<i32>,
    /// Admissions a minute, evenly spaced.
    pub rate_per_minute: Option<i32>,
}

/// A change of limits: an outer `None` leaves one as it is, an inner `None` removes it.
#[derive(Clone, Copy, Debug, Default)]
pub struct LimitsPatch {
    /// Runs over all workers and places.
    pub max_running: Option<Option<i32>>,
    /// Runs in one worker.
    pub max_per_worker: Option<Option<i32>>,
    /// Admissions a minute.
    pub rate_per_minute: Option<Option<i32>>,
}

/// Changes the limits of a queue (a kind); answers them as they are now.
///
/// # Errors
/// [`LedgerError::Database`]; nothing may be committed then.
pub async fn set_limits(
    tx: &mut PgConnection,
    queue: &str,
    patch: LimitsPatch,
    by: &str,
) -> Result<Limits, LedgerError> {
    lock_exclusive(tx).await?;
    let before = limits_of(tx, queue).await?;
    let after = Limits {
        max_running: patch.max_running.unwrap_or(before.max_running),
        max_per_worker: patch.max_per_worker.unwrap_or(before.max_per_worker),
        rate_per_minute: patch.rate_per_minute.unwrap_or(before.rate_per_minute),
    };
    if after == Limits::default() {
        sqlx::query!("DELETE FROM queue_limits WHERE queue = $1", queue)
            .execute(tx)
            .await
            .map_err(LedgerError::database("removing the limits of a queue"))?;
        return Ok(after);
    }
    sqlx::query!(
        r#"INSERT INTO queue_limits (queue, max_running, max_per_worker, rate_per_minute, set_by, since)
           VALUES ($1, $2, $3, $4, $5, longshore_now())
           ON CONFLICT (queue) DO UPDATE SET max_running = $2, max_per_worker = $3, rate_per_minute = $4, set_by = $5,
               since = excluded.since, next_at = NULL"#,
        queue,
        after.max_running,
        after.max_per_worker,
        after.rate_per_minute,
        by,
    )
    .execute(tx)
    .await
    .map_err(LedgerError::database("setting the limits of a queue"))?;
    Ok(after)
}

async fn limits_of(conn: &mut PgConnection, queue: &str) -> Result<Limits, LedgerError> {
    let row = sqlx::query_as!(
        Limits,
        "SELECT max_running, max_per_worker, rate_per_minute FROM queue_limits WHERE queue = $1",
        queue
    )
    .fetch_optional(conn)
    .await
    .map_err(LedgerError::database("reading the limits of a queue"))?;
    Ok(row.unwrap_or_default())
}

/// The per-worker limits there are, by kind.
pub(crate) async fn max_per_worker(
    conn: &mut PgConnection,
) -> Result<Vec<(String, usize)>, LedgerError> {
    let rows = sqlx::query!(
        r#"SELECT queue, max_per_worker AS "most!" FROM queue_limits WHERE max_per_worker IS NOT NULL"#
    )
    .fetch_all(conn)
    .await
    .map_err(LedgerError::database("reading limits per worker"))?;
    Ok(rows
        .into_iter()
        .map(|row| (row.queue, usize::try_from(row.most).unwrap_or(0)))
        .collect())
}

/// How many more jobs of a kind its limits let in now. Holds the limits' row until the transaction ends, so that two
/// places of one kind do not both use the same room.
pub(crate) async fn room_by_limits(
    tx: &mut PgConnection,
    kind: &str,
) -> Result<Option<i64>, LedgerError> {
    // Counted in a statement of its own: one that had to wait for the lock would count what was there before it.
    sqlx::query!(
        "SELECT 1 AS locked FROM queue_limits WHERE queue = $1 FOR UPDATE",
        kind
    )
    .fetch_optional(&mut *tx)
    .await
    .map_err(LedgerError::database("locking the limits of a queue"))?;
    let row = sqlx::query!(
        r#"SELECT max_running, rate_per_minute, next_at, longshore_now() AS "now!",
               (SELECT count(*) FROM jobs WHERE kind = $1 AND state = 'running')
             + (SELECT count(*) FROM jobs WHERE kind = $1 AND state = 'queued') AS "busy!"
           FROM queue_limits WHERE queue = $1"#,
        kind
    )
    .fetch_optional(tx)
    .await
    .map_err(LedgerError::database("reading the limits of a queue"))?;
    let Some(row) = row else { return Ok(None) };
    let by_running = row
        .max_running
        .map(|most| (i64::from(most) - row.busy).max(0));
    let by_rate = row.rate_per_minute.map(|rate| match row.next_at {
        _ if rate == 0 => 0,
        Some(next) if next > row.now => 0,
        Some(next) => {
            let waited = (row.now - next).num_milliseconds();
            (1 + waited * i64::from(rate) / 60_000).min(burst(rate))
        }
        None => 1,
    });
    Ok(match (by_running, by_rate) {
        (None, None) => None,
        (Some(room), None) | (None, Some(room)) => Some(room),
        (Some(running), Some(rate)) => Some(running.min(rate)),
    })
}

/// Passes come about once a second; what one may let in at once must make up for that.
fn burst(rate_per_minute: i32) -> i64 {
    i64::from(rate_per_minute) / 60 + 1
}

/// Counts admissions against the rate of their kind.
pub(crate) async fn spend(
    tx: &mut PgConnection,
    kind: &str,
    admitted: usize,
) -> Result<(), LedgerError> {
    let row = sqlx::query!(
        r#"SELECT rate_per_minute, next_at, longshore_now() AS "now!" FROM queue_limits WHERE queue = $1"#,
        kind
    )
    .fetch_optional(&mut *tx)
    .await
    .map_err(LedgerError::database("reading the rate of a queue"))?;
    let Some((rate, next_at, now)) = row.and_then(|row| {
        Some((
            row.rate_per_minute.filter(|rate| *rate > 0)?,
            row.next_at,
            row.now,
        ))
    }) else {
        return Ok(());
    };
    let space = 60_000.0 / f64::from(rate);
    // What was not used in time is gone, save one burst.
    let oldest = now - TimeDelta::milliseconds((space * burst(rate) as f64) as i64);
    let from = next_at.map_or(now, |next| next.max(oldest));
    let next = from + TimeDelta::milliseconds((space * admitted as f64) as i64);
    sqlx::query!(
        "UPDATE queue_limits SET next_at = $2 WHERE queue = $1",
        kind,
        next
    )
    .execute(tx)
    .await
    .map_err(LedgerError::database("counting admissions against a rate"))?;
    Ok(())
}
