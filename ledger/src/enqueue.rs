//! Asking for a job, in the caller's own transaction.
//!
//! The caller has locked the row its keys stand for (a workspace), which orders requests about it. After its commit it
//! pokes the [`Admitter`](crate::Admitter); it never publishes by itself. The job keeps the [`TraceContext`] in whose scope
//! it was asked for.

use std::time::Duration;

use longshore_base::{JobId, WorkspaceId};
use sqlx::PgConnection;

use crate::job::Wait;
use crate::{LedgerError, TraceContext};

/// A job to be.
#[derive(Clone, Debug)]
pub struct NewJob {
    /// What is to be done.
    pub kind: &'static str,
    /// Where it waits: the kind, and the place where it acts on an engine.
    pub queue: String,
    /// Whom it works for.
    pub tenant: String,
    /// The workspace it is about.
    pub workspace_id: Option<WorkspaceId>,
    /// What it must have for itself while it runs; in any order.
    pub keys: Vec<String>,
    /// A waiting job of the same kind and key takes the request over.
    pub dedupe_key: Option<String>,
    /// Ids and flags; never secrets or file contents.
    pub args: serde_json::Value,
    /// Shape of `args`.
    pub args_version: i16,
    /// Smaller runs first, within a tenant.
    pub priority: i16,
    /// Not before this much from now.
    pub delay: Duration,
    /// Dead when it could not finish within this much from now.
    pub deadline: Duration,
    /// Failures after which it is dead.
    pub max_attempts: i32,
    /// Who asked.
    pub created_by: String,
}

/// The job that will do it.
#[must_use = "after the commit the queue must be poked: Admitter::poke(&enqueued.queue)"]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enqueued {
    /// The new job, or the waiting one that took the request over.
    pub job_id: JobId,
    /// The queue to poke after the commit.
    pub queue: String,
    /// Whether a waiting job took it over.
    pub existing: bool,
}

/// Writes a job, or finds the waiting one with the same dedupe key.
///
/// # Errors
/// [`LedgerError::Database`]; the caller's transaction is then unusable.
pub async fn enqueue(tx: &mut PgConnection, mut job: NewJob) -> Result<Enqueued, LedgerError> {
    // One slot for each: who wanted a key twice would stand in its own way.
    job.keys.sort_unstable();
    job.keys.dedup();
    let database = LedgerError::database("enqueueing a job");
    let wait = if job.delay > Duration::ZERO {
        Wait::Time
    } else if is_key_taken(tx, &job.keys).await? {
        Wait::Key
    } else {
        Wait::Ready
    };
    let id = JobId::new();
    let trace = TraceContext::current();
    let inserted = sqlx::query_scalar!(
        r#"INSERT INTO jobs (id, kind, queue, tenant, workspace_id, keys, dedupe_key, args, args_version, priority, wait,
                max_attempts, created_by, trace_context, created_at, run_at, deadline_at)
           SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, now, now + $15::float8 * interval '1 second',
                now + $16::float8 * interval '1 second'
           FROM longshore_now() now
           ON CONFLICT (kind, dedupe_key) WHERE dedupe_key IS NOT NULL AND state IN ('scheduled', 'queued') DO NOTHING
           RETURNING id"#,
        id.0,
        job.kind,
        job.queue,
        job.tenant,
        job.workspace_id.map(|id| id.0),
        &job.keys,
        job.dedupe_key,
        job.args,
        job.args_version,
        job.priority,
        wait as Wait,
        job.max_attempts,
        job.created_by,
        trace.as_str(),
        job.delay.as_secs_f64(),
        job.deadline.as_secs_f64(),
    )
    .fetch_optional(&mut *tx)
    .await
    .map_err(database)?;
    if inserted.is_some() {
        if job.keys.len() > 1 {
            record_keys(tx, id, &job.keys).await?;
        }
        return Ok(Enqueued {
            job_id: id,
            queue: job.queue,
            existing: false,
        });
    }
    // Shared, which a claim's lock waits for: the run must see what this transaction wrote.
    let waiting = sqlx::query!(
        "SELECT id, queue FROM jobs WHERE kind = $1 AND dedupe_key = $2 AND state IN ('scheduled', 'queued') FOR SHARE",
        job.kind,
        job.dedupe_key
    )
    .fetch_optional(&mut *tx)
    .await
    .map_err(LedgerError::database("finding the waiting job of a dedupe key"))?;
    match waiting {
        Some(row) => Ok(Enqueued {
            job_id: JobId(row.id),
            queue: row.queue,
            existing: true,
        }),
        // It was claimed or ended in between, so the key is free again.
        None => Box::pin(enqueue(tx, job)).await,
    }
}

/// Lets a job that waits for its time be due now. Does nothing to any other. Its queue is to be poked after the commit.
///
/// # Errors
/// [`LedgerError::Database`].
pub async fn hurry(tx: &mut PgConnection, id: JobId) -> Result<(), LedgerError> {
    sqlx::query!(
        "UPDATE jobs SET run_at = longshore_now(), revision = revision + 1
         WHERE id = $1 AND state = 'scheduled' AND wait = 'time' AND run_at > longshore_now()",
        id.0
    )
    .execute(tx)
    .await
    .map_err(LedgerError::database("letting a job be due"))?;
    Ok(())
}

/// The same, for kinds whose requests add up: a waiting job that takes the request over gets the arguments that `merge`
/// makes of its own and the new ones, and waits no longer than the new one would have. Whoever asks holds a row that
/// orders such requests.
///
/// # Errors
/// [`LedgerError::Database`].
pub async fn enqueue_merged(
    tx: &mut PgConnection,
    job: NewJob,
    merge: impl FnOnce(&serde_json::Value, &serde_json::Value) -> serde_json::Value + Send,
) -> Result<Enqueued, LedgerError> {
    let (args, delay) = (job.args.clone(), job.delay);
    let enqueued = enqueue(&mut *tx, job).await?;
    if !enqueued.existing {
        return Ok(enqueued);
    }
    // It stays where it is: the lock that found it is ours until the commit.
    let waiting = sqlx::query_scalar!(
        "SELECT args FROM jobs WHERE id = $1 FOR UPDATE",
        enqueued.job_id.0
    )
    .fetch_one(&mut *tx)
    .await
    .map_err(LedgerError::database(
        "reading a job that takes a request over",
    ))?;
    sqlx::query!(
        r#"UPDATE jobs SET args = $2, revision = revision + 1,
               run_at = least(run_at, longshore_now() + $3::float8 * interval '1 second')
           WHERE id = $1"#,
        enqueued.job_id.0,
        merge(&waiting, &args),
        delay.as_secs_f64(),
    )
    .execute(tx)
    .await
    .map_err(LedgerError::database("adding a request to a waiting job"))?;
    Ok(enqueued)
}

/// Writes many jobs of one shape at once, each with a key of its own, or with none where that is empty: for imports and
/// benchmarks. No deduplication.
///
/// # Errors
/// [`LedgerError::Database`].
pub async fn enqueue_many(
    tx: &mut PgConnection,
    template: &NewJob,
    keys: &[String],
) -> Result<Vec<JobId>, LedgerError> {
    let ids: Vec<JobId> = keys.iter().map(|_| JobId::new()).collect();
    let uuids: Vec<uuid::Uuid> = ids.iter().map(|id| id.0).collect();
    let trace = TraceContext::current();
    sqlx::query!(
        r#"INSERT INTO jobs (id, kind, queue, tenant, workspace_id, keys, args, args_version, priority, wait,
                max_attempts, created_by, trace_context, created_at, run_at, deadline_at)
           SELECT new.id, $3, $4, $5, $6, array_remove(ARRAY[new.key], ''), $7, $8, $9, $10, $11, $12, $13, now, now,
                now + $14::float8 * interval '1 second'
           FROM unnest($1::uuid[], $2::text[]) AS new(id, key), longshore_now() now"#,
        &uuids,
        keys,
        template.kind,
        template.queue,
        template.tenant,
        template.workspace_id.map(|id| id.0),
        template.args,
        template.args_version,
        template.priority,
        Wait::Ready as Wait,
        template.max_attempts,
        template.created_by,
        trace.as_str(),
        template.deadline.as_secs_f64(),
    )
    .execute(&mut *tx)
    .await
    .map_err(LedgerError::database("enqueueing many jobs"))?;
    Ok(ids)
}

/// Whether a due job stands before a new one on any of these keys.
///
/// A slot that is being freed at this moment holds us here until that transaction has ended: had it looked for its
/// successor before this job was visible, the job would wait for nobody. For the same reason the job we found before
/// this one, waiting itself, cannot end before our commit; it may be admitted and run.
async fn is_key_taken(tx: &mut PgConnection, keys: &[String]) -> Result<bool, LedgerError> {
    if keys.is_empty() {
        return Ok(false);
    }
    let held = sqlx::query_scalar!(
        "SELECT key FROM job_slots WHERE key = ANY($1) FOR KEY SHARE",
        keys
    )
    .fetch_optional(&mut *tx)
    .await
    .map_err(LedgerError::database("looking for the holder of a key"))?;
    if held.is_some() {
        return Ok(true);
    }
    let before = sqlx::query_scalar!(
        r#"SELECT id FROM jobs WHERE keys[1] = ANY($1) AND cardinality(keys) = 1 AND state = 'scheduled' AND wait <> 'time'
           LIMIT 1 FOR KEY SHARE"#,
        keys
    )
    .fetch_optional(&mut *tx)
    .await
    .map_err(LedgerError::database("looking for jobs before this one on its keys"))?;
    if before.is_some() {
        return Ok(true);
    }
    let before = sqlx::query_scalar!(
        r#"SELECT jobs.id FROM job_keys JOIN jobs ON jobs.id = job_keys.job_id
           WHERE job_keys.key = ANY($1) AND state = 'scheduled' AND wait <> 'time'
           LIMIT 1 FOR KEY SHARE OF jobs"#,
        keys
    )
    .fetch_optional(&mut *tx)
    .await
    .map_err(LedgerError::database(
        "looking for jobs of several keys before this one",
    ))?;
    Ok(before.is_some())
}

async fn record_keys(tx: &mut PgConnection, id: JobId, keys: &[String]) -> Result<(), LedgerError> {
    sqlx::query!(
        "INSERT INTO job_keys (key, job_id) SELECT DISTINCT key, $2::uuid FROM unnest($1::text[]) AS key",
        keys,
        id.0
    )
    .execute(&mut *tx)
    .await
    .map_err(LedgerError::database("recording the keys of a job"))?;
    Ok(())
}
