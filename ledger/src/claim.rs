//! From queued to running: one statement for as many hints as there are free permits.

use longshore_base::{JobId, WorkspaceId};
use sqlx::PgPool;

use crate::control::{Subject, open_controls, split_queue};
use crate::hints::Hint;
use crate::{ClaimedJob, LedgerError};

/// Claims what of these hints is still queued under the hinted dispatch. What is missing from the answer was claimed,
/// withdrawn or finished in between; its hint is worth nothing any more. `NOT IN` says 'queued' in a way that keeps the
/// planner on the primary key: the partial index of queued jobs is all dead entries while a long transaction is open.
pub(crate) async fn claim(
    pool: &PgPool,
    worker: &str,
    hints: &[Hint],
) -> Result<Vec<ClaimedJob>, LedgerError> {
    let ids: Vec<_> = hints.iter().map(|hint| hint.job_id.0).collect();
    let dispatched: Vec<String> = hints.iter().map(Hint::encode).collect();
    let rows = sqlx::query!(
        r#"UPDATE jobs SET state = 'running', worker = $3, token = gen_random_uuid(), started_at = now, revision = revision + 1
           FROM longshore_now() AS now
           WHERE id = ANY (ARRAY(
               SELECT id FROM jobs WHERE id = ANY ($1) AND state NOT IN ('scheduled', 'running') AND id::text || ':' || dispatch = ANY ($2)
               ORDER BY id FOR UPDATE
           )) AND EXISTS (SELECT 1 FROM workers WHERE name = $3)
           RETURNING id, kind, queue, tenant, workspace_id, keys, args, args_version, attempt, max_attempts, crashes,
               token AS "token!", deadline_at, created_by, checkpoint"#,
        &ids,
        &dispatched,
        worker,
    )
    .fetch_all(pool)
    .await
    .map_err(LedgerError::database("claiming jobs"))?;
    Ok(rows
        .into_iter()
        .map(|row| ClaimedJob {
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
        })
        .collect())
}

/// Claims once more what is already claimed, for a run that comes late: `false` when the job is no longer its own, or its
/// scope was closed meanwhile. A change of controls that comes after it sees a run that has just begun, and waits.
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

/// The queued jobs of a queue, straight from the ledger: what workers read while Redis is away.
pub(crate) async fn queued(
    pool: &PgPool,
    queue: &str,
    most: i64,
) -> Result<Vec<Hint>, LedgerError> {
    let rows = sqlx::query!(
        "SELECT id, dispatch FROM jobs WHERE queue = $1 AND state = 'queued' ORDER BY queued_at LIMIT $2",
        queue,
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
