//! What jobs work on that nobody could make again, and that is no argument (`spec: lifecycle` §13.1): the files of a
//! workspace that was imported, say. Opaque here.
//!
//! A payload is written with its job and found by the workspace, so that whichever job comes to bring that up has it: the
//! first one may be superseded by a pause, or die and be followed by a restart. It goes when one of them has succeeded,
//! when its job is put away, and with the workspace.

use longshore_base::{JobId, WorkspaceId};
use serde_json::Value;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::LedgerError;

/// Writes the payload of a job, in the transaction that enqueues it.
///
/// # Errors
/// [`LedgerError::Database`].
pub async fn save_payload(
    tx: &mut PgConnection,
    job: JobId,
    workspace: WorkspaceId,
    payload: &Value,
) -> Result<(), LedgerError> {
    sqlx::query!(
        "INSERT INTO job_payloads (job_id, workspace_id, payload) VALUES ($1, $2, $3)",
        job.0,
        workspace.0,
        payload,
    )
    .execute(tx)
    .await
    .map_err(LedgerError::database("writing the payload of a job"))?;
    Ok(())
}

/// The newest payload that was written for a workspace, if it still waits for its job.
///
/// # Errors
/// [`LedgerError::Database`].
pub async fn find_payload(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
) -> Result<Option<Value>, LedgerError> {
    sqlx::query_scalar!(
        "SELECT payload FROM job_payloads WHERE workspace_id = $1 ORDER BY job_id DESC LIMIT 1",
        workspace.0,
    )
    .fetch_optional(conn)
    .await
    .map_err(LedgerError::database("reading the payload of a job"))
}

/// Drops what was written for these workspaces: it has done its work, or they are gone.
///
/// # Errors
/// [`LedgerError::Database`].
pub async fn drop_payloads(
    tx: &mut PgConnection,
    workspaces: &[WorkspaceId],
) -> Result<(), LedgerError> {
    let ids: Vec<_> = workspaces.iter().map(|id| id.0).collect();
    sqlx::query!(
        "DELETE FROM job_payloads WHERE workspace_id = ANY($1)",
        &ids
    )
    .execute(tx)
    .await
    .map_err(LedgerError::database("dropping payloads of workspaces"))?;
    Ok(())
}

/// Drops the payloads of jobs that are put away.
pub(crate) async fn drop_of_jobs(tx: &mut PgConnection, jobs: &[Uuid]) -> Result<(), LedgerError> {
    sqlx::query!("DELETE FROM job_payloads WHERE job_id = ANY($1)", jobs)
        .execute(tx)
        .await
        .map_err(LedgerError::database("dropping payloads of jobs"))?;
    Ok(())
}
