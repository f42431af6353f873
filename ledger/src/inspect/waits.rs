//! How long tenants wait for their turn, as a metric: cheap whatever the backlog, so it is no count of all that waits.

use sqlx::PgConnection;

use crate::LedgerError;

/// Tenants of a queue, those that wait longest.
const TENANTS: i64 = 20;
/// Jobs looked at of each tenant and priority: the next ones. A job that is tried again comes due later than those behind
/// it were asked for, so the very next one need not have waited longest.
const NEXT: i64 = 32;

/// A tenant that waits in a queue.
#[derive(Clone, Debug)]
pub struct LongestWait {
    /// The queue's whole name.
    pub queue: String,
    /// The organisation root.
    pub tenant: String,
    /// Seconds since its oldest eligible job was asked for, or came due.
    pub seconds: f64,
}

/// Of each queue the twenty tenants whose oldest eligible job has waited longest, longest first. Eligible is what waits for
/// nothing but its turn: neither for its time nor for a job before it.
///
/// # Errors
/// [`LedgerError::Database`].
pub async fn longest_waits(conn: &mut PgConnection) -> Result<Vec<LongestWait>, LedgerError> {
    sqlx::query_as!(
        LongestWait,
        r#"WITH RECURSIVE heads AS (
               (SELECT queue, tenant, priority FROM jobs WHERE state = 'scheduled' AND wait = 'ready'
                ORDER BY queue, tenant, priority LIMIT 1)
               UNION ALL
               SELECT next.* FROM heads CROSS JOIN LATERAL (
                   SELECT queue, tenant, priority FROM jobs WHERE state = 'scheduled' AND wait = 'ready'
                     AND (queue, tenant, priority) > (heads.queue, heads.tenant, heads.priority)
                   ORDER BY queue, tenant, priority LIMIT 1
               ) AS next
           ), eligible AS (
               SELECT queue, tenant, since FROM heads CROSS JOIN LATERAL (
                   SELECT greatest(created_at, run_at) AS since FROM jobs WHERE state = 'scheduled' AND wait = 'ready'
                     AND jobs.queue = heads.queue AND jobs.tenant = heads.tenant AND jobs.priority = heads.priority
                   ORDER BY seq LIMIT $1
               ) AS next
               UNION ALL SELECT queue, tenant, greatest(created_at, run_at) FROM jobs WHERE state = 'queued'
           )
           SELECT queue AS "queue!", tenant AS "tenant!",
               greatest(0, extract(epoch FROM longshore_now() - oldest))::float8 AS "seconds!"
           FROM (
               SELECT queue, tenant, min(since) AS oldest, row_number() OVER (PARTITION BY queue ORDER BY min(since), tenant) AS place
               FROM eligible GROUP BY queue, tenant
           ) AS tenants
           WHERE place <= $2 ORDER BY queue, place"#,
        NEXT,
        TENANTS,
    )
    .fetch_all(conn)
    .await
    .map_err(LedgerError::database("looking for the longest waits"))
}
