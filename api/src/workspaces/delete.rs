//! Deleting: the rows become tombstones at once; what they left running is stopped by a job.

use std::time::Duration;

use longshore_base::{JobId, WorkspaceId};
use longshore_fleet::workspace::{RemovedSet, list_children, remove_workspaces};
use longshore_jobs::stop;
use longshore_ledger::inspect::{JobView, find_job};
use poem::http::StatusCode;
use poem_openapi::payload::Json;
use poem_openapi::{ApiResponse, Object};
use serde_json::json;
use tokio::time::timeout;
use uuid::Uuid;

use crate::auth::Principal;
use crate::problem::{ApiError, ApiResult};
use crate::state::ApiState;

const FAILED: &str = "failed to delete workspace";
const LOOK_PERIOD: Duration = Duration::from_millis(100);

/// A workspace that was deleted.
#[derive(Object)]
pub(crate) struct DeletedWorkspace {
    /// Always `removed`.
    status: String,
    /// How many were below it.
    cascade_deleted: u64,
    /// The job that stops what still runs; absent where nothing does.
    #[oai(skip_serializing_if_is_none)]
    job_id: Option<Uuid>,
}

#[derive(ApiResponse)]
pub(crate) enum DeleteWorkspaceResponse {
    /// It is removed, and nothing of it runs any more.
    #[oai(status = 200)]
    Removed(
        Json<DeletedWorkspace>,
        /// The job that stopped what ran.
        #[oai(header = "Location")]
        Option<String>,
    ),
    /// It is removed; what ran is still being stopped.
    #[oai(status = 202)]
    Stopping(
        Json<DeletedWorkspace>,
        /// The job that stops what runs.
        #[oai(header = "Location")]
        Option<String>,
    ),
}

pub(crate) async fn delete(
    state: &ApiState,
    caller: &Principal,
    id: WorkspaceId,
    confirm: bool,
    purge: bool,
) -> ApiResult<DeleteWorkspaceResponse> {
    if purge {
        return Err(ApiError::new(
            StatusCode::NOT_IMPLEMENTED,
            "purge is not available in this version",
        ));
    }
    if !confirm {
        check_no_children(state, id).await?;
    }
    let mut tx = state.transaction(FAILED).await?;
    let removed = remove_workspaces(&mut tx, id)
        .await
        .map_err(|error| ApiError::fleet(error, FAILED))?
        .ok_or_else(ApiError::workspace_not_found)?;
    if !confirm && removed.cascade_deleted > 0 {
        // A child was added since they were counted. Nothing is committed yet, so it is counted again.
        drop(tx);
        check_no_children(state, id).await?;
        return Err(ApiError::conflict(
            "workspace changed meanwhile — please retry",
        ));
    }
    let removal = stop::request_removal(&mut tx, &state.kinds, &removed, &caller.name())
        .await
        .map_err(|error| ApiError::internal(FAILED, error))?;
    tx.commit()
        .await
        .map_err(|error| ApiError::database(error, FAILED))?;
    for id in removed.ids() {
        state.fleet.presence.clear(id).await;
    }
    state.poke(&removal.pokes);
    // What was bringing them up has been asked to stop.
    state.admitter.poke_cancels();
    let jobs: Vec<_> = removal.jobs.iter().map(|(_, job)| job.job_id).collect();
    answer(state, &removed, &jobs).await
}

async fn check_no_children(state: &ApiState, id: WorkspaceId) -> ApiResult<()> {
    const NOT_CHECKED: &str = "failed to check children";
    let mut conn = state.connection(NOT_CHECKED).await?;
    let children = list_children(&mut conn, id)
        .await
        .map_err(|error| ApiError::fleet(error, NOT_CHECKED))?;
    if children.is_empty() {
        return Ok(());
    }
    const MESSAGE: &str =
        "This workspace has sub-workspaces. Delete with ?confirm=true to cascade delete.";
    let named: Vec<_> = children
        .iter()
        .map(|child| json!({ "id": child.id, "name": child.name }))
        .collect();
    // The canvas reads `status` as this word, not as the number that a problem has there.
    Err(ApiError::conflict(MESSAGE)
        .member("status", "confirmation_required")
        .member("message", MESSAGE)
        .member("children_count", named.len())
        .member("children", named))
}

/// What the first pass of the stops came to.
enum FirstPass {
    Stopped,
    Failed { failures: usize, detail: String },
    UnderWay,
}

async fn answer(
    state: &ApiState,
    removed: &RemovedSet,
    jobs: &[JobId],
) -> ApiResult<DeleteWorkspaceResponse> {
    let job = jobs.last();
    let body = Json(DeletedWorkspace {
        status: "removed".to_owned(),
        cascade_deleted: removed.cascade_deleted as u64,
        job_id: job.map(|job| job.0),
    });
    let location = job.map(|job| format!("/jobs/{job}"));
    let pass = timeout(state.config.removal_wait, first_pass(state, jobs))
        .await
        .unwrap_or(FirstPass::UnderWay);
    match pass {
        FirstPass::Stopped => Ok(DeleteWorkspaceResponse::Removed(body, location)),
        FirstPass::UnderWay => Ok(DeleteWorkspaceResponse::Stopping(body, location)),
        FirstPass::Failed { failures, detail } => Err(ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!(
                "workspace marked removed, but {failures} stop call(s) failed — please retry: {detail}"
            ),
        )
        .member("removed_count", removed.workspaces.len())
        .member("stop_failures", failures)),
    }
}

/// Looks at the jobs, holding no connection in between, until each has ended or failed once.
async fn first_pass(state: &ApiState, jobs: &[JobId]) -> FirstPass {
    let mut left = jobs.to_vec();
    let mut failed = Vec::new();
    while !left.is_empty() {
        let mut waiting = Vec::new();
        for id in left {
            match look(state, id).await {
                Some(job) if job.state == "succeeded" || job.state == "superseded" => {}
                Some(job) if job.is_terminal() || job.last_error.is_some() => failed.push(job),
                Some(_) | None => waiting.push(id),
            }
        }
        left = waiting;
        if !left.is_empty() {
            tokio::time::sleep(LOOK_PERIOD).await;
        }
    }
    if failed.is_empty() {
        return FirstPass::Stopped;
    }
    // Ids and states only: what the backend said is in the log and in the job.
    let detail: Vec<_> = failed
        .iter()
        .map(|job| match job.workspace_id {
            Some(id) => format!("{id}: {}", job.state),
            None => job.state.to_owned(),
        })
        .collect();
    FirstPass::Failed {
        failures: failed.len(),
        detail: detail.join(", "),
    }
}

async fn look(state: &ApiState, id: JobId) -> Option<JobView> {
    let mut conn = state.connection(FAILED).await.ok()?;
    find_job(&mut conn, id).await.ok().flatten()
}
