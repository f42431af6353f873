//! Workspaces (`spec: rest-api` §6.2): asking for them, looking at them, changing and deleting them.

mod console;
mod create;
mod delete;
mod hibernate;
mod lifecycle;
mod logs;
mod patch;
mod pause;
mod restart;
mod team;
mod view;

use longshore_base::WorkspaceId;
use longshore_fleet::status::WorkspaceStatus;
use longshore_fleet::workspace::{
    Workspace, find_workspace, list_workspaces, lock_workspace, patch_workspace,
};
use longshore_ledger::inspect::waiting_workspaces;
use poem::Request;
use poem_openapi::OpenApi;
use poem_openapi::param::{Header, Path, Query};
use poem_openapi::payload::Json;
use serde_json::json;
use sqlx::PgConnection;
use uuid::Uuid;

use self::console::ConsoleOutput;
use self::create::{CreateWorkspaceRequest, CreateWorkspaceResponse};
use self::delete::{DeleteWorkspaceResponse, Deletion};
pub(crate) use self::hibernate::wake;
pub(crate) use self::lifecycle::LifecycleApi;
use self::logs::LogsResponse;
use self::patch::{PatchWorkspaceRequest, PatchedWorkspace};
use self::view::{WorkspaceDetail, WorkspaceEntry};
use crate::auth::{AdminAccess, RelatedAccess, WorkspaceAccess};
use crate::body::JsonBody;
use crate::document::Tag;
use crate::idempotency::{IdempotencyKey, Idempotent};
use crate::problem::{ApiError, ApiResult};
use crate::state::{ApiState, Shared};

const FAILED: &str = "query failed";

pub(crate) struct WorkspacesApi;

#[OpenApi(tag = "Tag::Workspaces")]
impl WorkspacesApi {
    /// Creates a workspace. A managed one is brought up by the job that the answer names.
    #[oai(
        path = "/workspaces",
        method = "post",
        operation_id = "create_workspace"
    )]
    async fn create_workspace(
        &self,
        access: AdminAccess,
        state: Shared<'_>,
        /// Makes the request safe to send again: a repetition with the same key and body gets the first answer.
        #[oai(name = "Idempotency-Key")]
        key: IdempotencyKey,
        body: JsonBody<CreateWorkspaceRequest>,
        request: &Request,
    ) -> ApiResult<Idempotent<CreateWorkspaceResponse>> {
        create::create(&state, &access.0, key, body.0, request).await
    }

    /// Lists all workspaces that are not removed, oldest first.
    #[oai(path = "/workspaces", method = "get", operation_id = "list_workspaces")]
    async fn list_workspaces(
        &self,
        _access: AdminAccess,
        state: Shared<'_>,
    ) -> ApiResult<Json<Vec<WorkspaceEntry>>> {
        let mut conn = state.connection(FAILED).await?;
        let rows = list_workspaces(&mut conn)
            .await
            .map_err(|error| ApiError::fleet(error, FAILED))?;
        let mut waiting = waiting_workspaces(&mut conn, None)
            .await
            .map_err(|error| ApiError::ledger(error, FAILED))?;
        Ok(Json(
            rows.into_iter()
                .map(|row| {
                    let waiting = waiting.remove(&row.id);
                    WorkspaceEntry::new(&state.fleet, row, waiting)
                })
                .collect(),
        ))
    }

    /// Shows a workspace.
    #[oai(
        path = "/workspaces/:id",
        method = "get",
        operation_id = "get_workspace"
    )]
    async fn get_workspace(
        &self,
        _access: RelatedAccess,
        state: Shared<'_>,
        id: Path<Uuid>,
        /// The workspace that asks, if it is another; it must be the bearer's and related to this one.
        #[oai(name = "X-Workspace-ID")]
        _caller: Header<Option<String>>,
        /// `true` shows a removed one too.
        include_removed: Query<Option<String>>,
    ) -> ApiResult<Json<WorkspaceDetail>> {
        let id = WorkspaceId(id.0);
        let workspace = load(&state, id, FAILED).await?;
        if workspace.status == WorkspaceStatus::Removed
            && include_removed.0.as_deref() != Some("true")
        {
            return Err(removed(&workspace));
        }
        let mut conn = state.connection(FAILED).await?;
        let waiting = waiting_workspaces(&mut conn, Some(id))
            .await
            .map_err(|error| ApiError::ledger(error, FAILED))?
            .remove(&id);
        Ok(Json(WorkspaceDetail::new(&state.fleet, workspace, waiting)))
    }

    /// Changes fields of a workspace; those that are not named stay as they are.
    #[oai(
        path = "/workspaces/:id",
        method = "patch",
        operation_id = "update_workspace"
    )]
    async fn update_workspace(
        &self,
        access: WorkspaceAccess,
        state: Shared<'_>,
        id: Path<Uuid>,
        body: JsonBody<PatchWorkspaceRequest>,
    ) -> ApiResult<Json<PatchedWorkspace>> {
        const NOT_CHANGED: &str = "failed to update workspace";
        let patch = body.0.into_patch(&access.0)?;
        let mut tx = state.transaction(NOT_CHANGED).await?;
        let patched = patch_workspace(&mut tx, &state.fleet, WorkspaceId(id.0), patch)
            .await
            .map_err(|error| patch::refuse(error, NOT_CHANGED))?;
        tx.commit()
            .await
            .map_err(|error| ApiError::database(error, NOT_CHANGED))?;
        Ok(Json(PatchedWorkspace::new(patched)))
    }

    /// Deletes a workspace and everything below it: the rows are marked at once, their containers are taken down by a job,
    /// which the request waits for, 12 s at most. 500 when that could not stop something; it goes on trying.
    #[oai(
        path = "/workspaces/:id",
        method = "delete",
        operation_id = "delete_workspace"
    )]
    async fn delete_workspace(
        &self,
        access: AdminAccess,
        state: Shared<'_>,
        id: Path<Uuid>,
        /// `true` deletes what is below as well.
        confirm: Query<Option<String>>,
        /// `true` deletes the rows for good, with all that the agents have written.
        purge: Query<Option<String>>,
    ) -> ApiResult<DeleteWorkspaceResponse> {
        let is_true = |value: Query<Option<String>>| value.0.as_deref() == Some("true");
        let deletion = Deletion {
            id: WorkspaceId(id.0),
            confirm: is_true(confirm),
            purge: is_true(purge),
        };
        delete::delete(&state, &access.0, deletion).await
    }

    /// Shows what a workspace's container wrote, or streams it with `follow`.
    #[oai(
        path = "/workspaces/:id/logs",
        method = "get",
        operation_id = "get_workspace_logs"
    )]
    async fn get_workspace_logs(
        &self,
        _access: WorkspaceAccess,
        state: Shared<'_>,
        id: Path<Uuid>,
        /// So many of the last lines, 1 to 10000; 200 unless it says otherwise.
        tail: Query<Option<u32>>,
        /// None older than this time.
        since: Query<Option<longshore_base::Timestamp>>,
        /// Goes on with what is written from now, as `text/event-stream`.
        follow: Query<Option<bool>>,
    ) -> ApiResult<LogsResponse> {
        let id = WorkspaceId(id.0);
        require_live(&state, id, FAILED).await?;
        logs::read(&state, id, tail.0, since.0, follow.0.unwrap_or(false)).await
    }

    /// Shows what a workspace's instance wrote to its console, known secrets masked.
    #[oai(
        path = "/workspaces/:id/console",
        method = "get",
        operation_id = "get_workspace_console"
    )]
    async fn get_workspace_console(
        &self,
        _access: AdminAccess,
        state: Shared<'_>,
        id: Path<Uuid>,
    ) -> ApiResult<Json<ConsoleOutput>> {
        let id = WorkspaceId(id.0);
        require_live(&state, id, FAILED).await?;
        console::read(&state, id).await
    }
}

async fn load(state: &ApiState, id: WorkspaceId, failed: &'static str) -> ApiResult<Workspace> {
    let mut conn = state.connection(failed).await?;
    find_workspace(&mut conn, id)
        .await
        .map_err(|error| ApiError::fleet(error, failed))?
        .ok_or_else(ApiError::workspace_not_found)
}

/// For routes below a workspace: it must be there and not be removed.
pub(crate) async fn require_live(
    state: &ApiState,
    id: WorkspaceId,
    failed: &'static str,
) -> ApiResult<()> {
    let workspace = load(state, id, failed).await?;
    if workspace.status == WorkspaceStatus::Removed {
        return Err(ApiError::workspace_removed());
    }
    Ok(())
}

/// For changes below a workspace: the same, and its row is held until the transaction ends.
pub(crate) async fn lock_live(
    tx: &mut PgConnection,
    id: WorkspaceId,
    failed: &'static str,
) -> ApiResult<Workspace> {
    let workspace = lock_workspace(tx, id)
        .await
        .map_err(|error| ApiError::fleet(error, failed))?
        .ok_or_else(ApiError::workspace_not_found)?;
    if workspace.status == WorkspaceStatus::Removed {
        return Err(ApiError::workspace_removed());
    }
    Ok(workspace)
}

fn removed(workspace: &Workspace) -> ApiError {
    let error = ApiError::workspace_removed()
        .member("id", workspace.id.to_string())
        .member("status", workspace.status.as_str())
        .member("removed_at", json!(workspace.removed_at));
    match workspace.forwarded_to {
        Some(successor) => error.member("forwarded_to", successor.to_string()),
        None => error,
    }
}
