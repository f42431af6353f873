//! From queued to running: one statement for as many hints as there are free permits.

use std::time::Duration;

use longshore_base::ids::random_uuid;
use longshore_base::{JobId, Timestamp, WorkspaceId};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use crate::control::{Subject, open_controls, split_queue};
use crate::hints::Hint;
use crate::policy::QUARANTINE_CRASHES;
use crate::{ClaimedJob, LedgerError, TraceContext};

/// Who claims, and one of its claims.
#[derive(Clone, Debug)]
pub(crate) struct Claimant {
    /// The worker.
    worker: String,
    /// Of this claim alone; the tokens of its jobs are made of it.
    ticket: Uuid,
}

impl Claimant {
    /// For one claim.
    pub(crate) fn new(worker: String) -> Self {
        Self {
            worker,
            ticket: random_uuid(),
        }
    }
}

/// Claims what of these hints is still queued under the hinted dispatch. What is missing from the answer was claimed,
/// withdrawn or finished in between; its hint is worth nothing any more. `NOT IN` says 'queued' in a way that keeps the
/// planner on the primary key: the partial index of queued jobs is all dead entries while a long transaction is open.
///
/// A claim may be committed although its answer is lost; its jobs would run nowhere, under a worker that is alive. So
/// whoever gets no answer claims again with the same ticket: that answers what the first one got as well.
///
/// A row that somebody keeps locked fails the whole claim ([`LedgerError::is_lock_timeout`]): soon, and sooner where it is
/// the only one, which then keeps those behind it waiting.
///
/// What goes into quarantine has not started by being claimed: it may wait for its turn while its neighbour in there takes
/// the worker along, and then it must not be blamed.
pub(crate) async fn claim(
    pool: &PgPool,
    claimant: &Claimant,
    hints: &[Hint],
) -> Result<Vec<ClaimedJob>, LedgerError> {
    // In one order everywhere, since two claims may have been hinted at the same jobs.
    let mut hints = hints.to_vec();
    hints.sort_unstable_by_key(|hint| hint.job_id);
    let (ids, dispatches): (Vec<_>, Vec<_>) = hints
        .iter()
        .map(|hint| (hint.job_id.0, hint.dispatch))
        .unzip();
    let patience = match hints[..] {
        [_] => "10ms",
        _ => "500ms",
    };
    let rows = sqlx::query_as!(
        ClaimedRow,
        r#"WITH patience AS MATERIALIZED (SELECT set_config('lock_timeout', $6, true) AS set)
           UPDATE jobs SET state = 'running', worker = $3, token = md5($5::text || jobs.id::text)::uuid,
               started_at = CASE WHEN crashes < $4 THEN now END, revision = revision + 1
           FROM patience, longshore_now() AS now
           WHERE jobs.id = ANY ($1) AND patience.set IS NOT NULL AND EXISTS (SELECT 1 FROM workers WHERE name = $3)
             AND ((state NOT IN ('scheduled', 'running')
                   AND ((jobs.id, dispatch) IN (SELECT * FROM unnest($1::uuid[], $2::integer[]))) IS TRUE)
                  OR token = md5($5::text || jobs.id::text)::uuid)
           RETURNING jobs.id, kind, queue, tenant, workspace_id, keys, args, args_version, attempt, max_attempts, crashes,
               token AS "token!", deadline_at, created_by, checkpoint, trace_context"#,
        &ids,
        &dispatches,
        claimant.worker,
        QUARANTINE_CRASHES,
        claimant.ticket.to_string(),
        patience,
    )
    .fetch_all(pool)
    .await
    .map_err(LedgerError::database("claiming jobs"))?;
    Ok(rows.into_iter().map(ClaimedJob::from).collect())
}

/// Gives jobs that have their slots, and whose rows this transaction has locked, straight to the claimant. `None` when that worker was declared
/// dead or takes no more: then the transaction must not be committed.
pub(crate) async fn give(
    tx: &mut PgConnection,
    claimant: &Claimant,
    ids: &[Uuid],
) -> Result<Option<Vec<ClaimedJob>>, LedgerError> {
    let rows = sqlx::query_as!(
        ClaimedRow,
        r#"UPDATE jobs SET state = 'running', worker = $2, token = md5($4::text || jobs.id::text)::uuid,
               dispatch = dispatch + (state = 'scheduled')::integer, republished = 0, queued_at = now, backing_off = false,
               started_at = CASE WHEN crashes < $3 THEN now END, revision = revision + 1
           FROM longshore_now() AS now
           WHERE jobs.id = ANY ($1) AND EXISTS (SELECT 1 FROM workers WHERE name = $2 AND NOT draining)
           RETURNING jobs.id, kind, queue, tenant, workspace_id, keys, args, args_version, attempt, max_attempts, crashes,
               token AS "token!", deadline_at, created_by, checkpoint, trace_context"#,
        ids,
        claimant.worker,
        QUARANTINE_CRASHES,
        claimant.ticket.to_string(),
    )
    .fetch_all(tx)
    .await
    .map_err(LedgerError::database("giving jobs to a worker"))?;
    Ok((rows.len() == ids.len()).then(|| rows.into_iter().map(ClaimedJob::from).collect()))
}

/// What an earlier try with the same ticket was given, although its answer was lost. Nothing once the worker was declared
/// dead: others take its jobs over.
pub(crate) async fn given(
    tx: &mut PgConnection,
    claimant: &Claimant,
) -> Result<Vec<ClaimedJob>, LedgerError> {
    let rows = sqlx::query_as!(
        ClaimedRow,
        r#"SELECT id, kind, queue, tenant, workspace_id, keys, args, args_version, attempt, max_attempts, crashes,
               token AS "token!", deadline_at, created_by, checkpoint, trace_context
           FROM jobs WHERE worker = $1 AND state = 'running' AND token = md5($2::text || id::text)::uuid
             AND EXISTS (SELECT 1 FROM workers WHERE name = $1)"#,
        claimant.worker,
        claimant.ticket.to_string(),
    )
    .fetch_all(tx)
    .await
    .map_err(LedgerError::database("looking for what was given"))?;
    Ok(rows.into_iter().map(ClaimedJob::from).collect())
}

/// A job's row, as far as a run needs it.
struct ClaimedRow {
    id: Uuid,
    kind: String,
    queue: String,
    tenant: String,
    workspace_id: Option<Uuid>,
    keys: Vec<String>,
    args: serde_json::Value,
    args_version: i16,
    attempt: i32,
    max_attempts: i32,
    crashes: i32,
    token: Uuid,
    deadline_at: Timestamp,
    created_by: String,
    checkpoint: Option<serde_json::Value>,
    trace_context: Option<String>,
}

impl From<ClaimedRow> for ClaimedJob {
    fn from(row: ClaimedRow) -> Self {
        Self {
            id: JobId(row.id),
            kind: row.kind,
            queue: row.queue,
            tenant: row.tenant,
            workspace_id: row.workspace_id.map(WorkspaceId),
            keys: row.keys,
            args: row.args,
            args_version: row.args_version,
            attempt: row.attempt,
            max_attempts: row.max_attempts,
            crashes: row.crashes,
            token: row.token,
            deadline_at: row.deadline_at,
            created_by: row.created_by,
            checkpoint: row.checkpoint,
            trace: row
                .trace_context
                .as_deref()
                .and_then(TraceContext::parse)
                .unwrap_or_else(TraceContext::begin),
        }
    }
}

/// Says that a claimed job has not started: if its worker dies now, it was not of this job.
pub(crate) async fn record_waiting(pool: &PgPool, job: &ClaimedJob) -> Result<(), LedgerError> {
    sqlx::query!(
        "UPDATE jobs SET started_at = NULL WHERE id = $1 AND token = $2 AND state = 'running'",
        job.id.0,
        job.token
    )
    .execute(pool)
    .await
    .map_err(LedgerError::database(
        "recording that a job waits for its turn",
    ))?;
    Ok(())
}

/// Claims once more what is already claimed, for a run that had to wait for its turn: `false` when the job is no longer its
/// own, or its scope was closed meanwhile. From here on it has started.
pub(crate) async fn claim_again(pool: &PgPool, job: &ClaimedJob) -> Result<bool, LedgerError> {
    let (kind, place) = split_queue(&job.queue);
    let mut tx = pool
        .begin()
        .await
        .map_err(LedgerError::database("beginning to claim a job again"))?;
    sqlx::query!("SELECT pg_advisory_xact_lock_shared(hashtextextended('longshore.control', 0))")
        .execute(&mut *tx)
        .await
        .map_err(LedgerError::database("locking the queue controls"))?;
    let controls = open_controls(&mut tx).await?;
    let subject = Subject {
        kind,
        place,
        tenant: &job.tenant,
        workspace_id: job.workspace_id,
    };
    if subject.closed_by(&controls).is_some() {
        return Ok(false);
    }
    let claimed = sqlx::query!(
        "UPDATE jobs SET started_at = longshore_now() WHERE id = $1 AND token = $2 AND state = 'running'",
        job.id.0,
        job.token
    )
    .execute(&mut *tx)
    .await
    .map_err(LedgerError::database("claiming a job again"))?;
    tx.commit()
        .await
        .map_err(LedgerError::database("committing a second claim"))?;
    Ok(claimed.rows_affected() == 1)
}

/// The jobs of a queue that have been queued for at least so long, oldest first, straight from the ledger.
pub(crate) async fn queued(
    pool: &PgPool,
    queue: &str,
    for_at_least: Duration,
    most: i64,
) -> Result<Vec<Hint>, LedgerError> {
    let rows = sqlx::query!(
        r#"SELECT id, dispatch FROM jobs WHERE queue = $1 AND state = 'queued'
             AND queued_at <= longshore_now() - $2::float8 * interval '1 second'
           ORDER BY queued_at LIMIT $3"#,
        queue,
        for_at_least.as_secs_f64(),
        most
    )
    .fetch_all(pool)
    .await
    .map_err(LedgerError::database("reading queued jobs"))?;
    Ok(rows
        .into_iter()
        .map(|row| Hint {
            job_id: JobId(row.id),
            dispatch: row.dispatch,
        })
        .collect())
}
