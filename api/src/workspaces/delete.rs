//! Deleting: the rows become tombstones at once; a job takes down what they left running, and with `purge` deletes them
//! for good.

use std::time::Duration;

use longshore_base::WorkspaceId;
use longshore_fleet::workspace::{list_children, remove_workspaces};
use longshore_jobs::purge::{self, Asked, Pass, Removal};
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
/// Workspaces that an error names.
const NAMED: usize = 20;

/// A workspace that was deleted.
#[derive(Object)]
pub(crate) struct DeletedWorkspace {
    /// `removed`, or `purged` when the rows are gone too.
    status: String,
    /// How many below it were deleted with it.
    cascade_deleted: u64,
    /// The job that takes down what still runs; absent where nothing does.
    #[oai(skip_serializing_if_is_none)]
    job_id: Option<Uuid>,
}

#[derive(ApiResponse)]
pub(crate) enum DeleteWorkspaceResponse {
    /// It is removed or purged, and nothing of it runs any more.
    #[oai(status = 200)]
    Removed(
        Json<DeletedWorkspace>,
        /// The job that took it down.
        #[oai(header = "Location")]
        Option<String>,
    ),
    /// It is removed; what is left of it is still being taken down.
    #[oai(status = 202)]
    UnderWay(
        Json<DeletedWorkspace>,
        /// The job that takes it down.
        #[oai(header = "Location")]
        Option<String>,
    ),
}

/// What a client wants deleted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deletion {
    pub(crate) id: WorkspaceId,
    /// Also what is below it.
    pub(crate) confirm: bool,
    /// Also the rows, and what was written.
    pub(crate) purge: bool,
}

pub(crate) async fn delete(
    state: &ApiState,
    caller: &Principal,
    Deletion { id, confirm, purge }: Deletion,
) -> ApiResult<DeleteWorkspaceResponse> {
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
    let removal = purge::request(&mut tx, &state.kinds, &removed, purge, &caller.name())
        .await
        .map_err(|error| ApiError::ledger(error, FAILED))?;
    tx.commit()
        .await
        .map_err(|error| ApiError::database(error, FAILED))?;
    set_going(state, &removal).await;
    let cascade_deleted = if purge {
        removal.ids.len().saturating_sub(1)
    } else {
        removed.cascade_deleted
    };
    answer(state, &removal, cascade_deleted, purge).await
}

/// What is to be done when a removal is committed.
pub(super) async fn set_going(state: &ApiState, removal: &Removal) {
    for id in &removal.ids {
        state.fleet.presence.clear(*id).await;
    }
    state.poke(&removal.pokes);
    // What was bringing them up has been asked to stop.
    state.admitter.poke_cancels();
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

async fn answer(
    state: &ApiState,
    removal: &Removal,
    cascade_deleted: usize,
    purge: bool,
) -> ApiResult<DeleteWorkspaceResponse> {
    let job = removal.jobs.first().map(|asked| asked.job_id);
    let body = |status: &str| {
        Json(DeletedWorkspace {
            status: status.to_owned(),
            cascade_deleted: cascade_deleted as u64,
            job_id: job.map(|job| job.0),
        })
    };
    let location = job.map(|job| format!("/jobs/{job}"));
    if !taken_down(state, removal, purge).await? {
        return Ok(DeleteWorkspaceResponse::UnderWay(body("removed"), location));
    }
    let status = if purge { "purged" } else { "removed" };
    Ok(DeleteWorkspaceResponse::Removed(body(status), location))
}

/// Waits until the first pass of each job has ended, and answers whether all is done that a pass can do. False when that
/// takes longer than a client waits.
///
/// # Errors
/// 500 when something could not be taken down; the jobs go on trying.
pub(super) async fn taken_down(
    state: &ApiState,
    removal: &Removal,
    purge: bool,
) -> ApiResult<bool> {
    let passes = timeout(
        state.config.removal_wait,
        first_passes(state, removal, purge),
    )
    .await;
    let passes = passes.unwrap_or_else(|_| vec![Pass::UnderWay]);
    let not_stopped: Vec<_> = passes
        .iter()
        .filter_map(|pass| match pass {
            Pass::NotStopped(workspaces) => Some(workspaces),
            Pass::UnderWay | Pass::Stopped | Pass::RowsNotDeleted | Pass::Done => None,
        })
        .flatten()
        .collect();
    if !not_stopped.is_empty() {
        return Err(not_all_stopped(&not_stopped, removal.ids.len()));
    }
    if passes.contains(&Pass::RowsNotDeleted) {
        return Err(ApiError::internal(
            "purge failed",
            "the job could not delete the rows, and tries again",
        ));
    }
    Ok(!passes.contains(&Pass::UnderWay))
}

fn not_all_stopped(workspaces: &[&(WorkspaceId, String)], all: usize) -> ApiError {
    let failures = workspaces.len();
    let named = workspaces.iter().take(NAMED);
    let detail: Vec<_> = named.map(|(id, why)| format!("{id}: {why}")).collect();
    ApiError::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        format!(
            "workspace marked removed, but {failures} stop call(s) failed — please retry: {}",
            detail.join(", ")
        ),
    )
    .member("removed_count", all)
    .member("stop_failures", failures)
}

/// Looks at the jobs, holding no connection in between, until the first pass of each has ended; for a purge until all is
/// done that a pass can do.
async fn first_passes(state: &ApiState, removal: &Removal, purge: bool) -> Vec<Pass> {
    let mut ended = Vec::new();
    for asked in &removal.jobs {
        let pass = loop {
            match look(state, *asked).await {
                Pass::UnderWay => {}
                Pass::Stopped if purge => {}
                pass => break pass,
            }
            tokio::time::sleep(LOOK_PERIOD).await;
        };
        ended.push(pass);
    }
    ended
}

/// Whoever cannot look now looks again in a moment.
async fn look(state: &ApiState, asked: Asked) -> Pass {
    let Ok(mut conn) = state.connection(FAILED).await else {
        return Pass::UnderWay;
    };
    purge::look(&mut conn, asked)
        .await
        .unwrap_or(Pass::UnderWay)
}
