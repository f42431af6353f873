//! From queued to running: one statement for as many hints as there are free permits.

use longshore_base::{JobId, WorkspaceId};
use sqlx::PgPool;

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
               token AS "token!", deadline_at, created_by"#,
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
        })
        .collect())
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
