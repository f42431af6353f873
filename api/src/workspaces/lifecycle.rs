//! Stopping workspaces for a while and bringing them up again, and what their agents are told of it
//! (`spec: rest-api` §6.3).

use longshore_base::WorkspaceId;
use longshore_fleet::status::WorkspaceStatus;
use longshore_fleet::workspace::find_workspace;
use poem_openapi::param::{Path, Query};
use poem_openapi::payload::Json;
use poem_openapi::{Object, OpenApi};
use uuid::Uuid;

use super::FAILED;
use super::hibernate::{self, HibernateWorkspaceResponse};
use super::pause::{self, PauseWorkspaceResponse, ResumeWorkspaceResponse};
use super::restart::{self, RestartWorkspaceRequest, RestartWorkspaceResponse};
use super::team::{self, CollapseWorkspaceResponse, ExpandWorkspaceResponse};
use crate::auth::{StateAccess, WorkspaceAccess};
use crate::body::JsonBody;
use crate::document::Tag;
use crate::idempotency::{IdempotencyKey, Idempotent};
use crate::problem::{ApiError, ApiResult};
use crate::state::Shared;

/// What an agent that cannot be called asks for about once a minute.
#[derive(Object)]
pub(crate) struct WorkspaceState {
    workspace_id: Uuid,
    status: String,
    /// Nothing of it is to run.
    paused: bool,
    /// Always false; of a workspace that is gone 404 is answered, with `deleted` true.
    deleted: bool,
}

pub(crate) struct LifecycleApi;

#[OpenApi(tag = "Tag::Workspaces")]
impl LifecycleApi {
    /// Stops a workspace and brings it up again with what is newest: its secrets, its model, its image. Its agent runs on
    /// until the job's turn comes.
    #[oai(
        path = "/workspaces/:id/restart",
        method = "post",
        operation_id = "restart_workspace"
    )]
    async fn restart_workspace(
        &self,
        access: WorkspaceAccess,
        state: Shared<'_>,
        id: Path<Uuid>,
        /// `true` begins without the sessions of before, as the body's `reset` does.
        reset: Query<Option<String>>,
        /// Makes the request safe to send again: a repetition with the same key and body gets the first answer.
        #[oai(name = "Idempotency-Key")]
        key: IdempotencyKey,
        body: JsonBody<RestartWorkspaceRequest>,
    ) -> ApiResult<Idempotent<RestartWorkspaceResponse>> {
        let reset = reset.0.as_deref() == Some("true");
        restart::restart(&state, &access.0, key, WorkspaceId(id.0), body.0, reset).await
    }

    /// Stops a workspace and everything below it until it is resumed. What they have written stays.
    #[oai(
        path = "/workspaces/:id/pause",
        method = "post",
        operation_id = "pause_workspace"
    )]
    async fn pause_workspace(
        &self,
        access: WorkspaceAccess,
        state: Shared<'_>,
        id: Path<Uuid>,
        /// Makes the request safe to send again: a repetition with the same key gets the first answer.
        #[oai(name = "Idempotency-Key")]
        key: IdempotencyKey,
    ) -> ApiResult<Idempotent<PauseWorkspaceResponse>> {
        pause::pause(&state, &access.0, key, WorkspaceId(id.0)).await
    }

    /// Brings a paused workspace up again, and what was paused below it.
    #[oai(
        path = "/workspaces/:id/resume",
        method = "post",
        operation_id = "resume_workspace"
    )]
    async fn resume_workspace(
        &self,
        access: WorkspaceAccess,
        state: Shared<'_>,
        id: Path<Uuid>,
        /// Makes the request safe to send again: a repetition with the same key gets the first answer.
        #[oai(name = "Idempotency-Key")]
        key: IdempotencyKey,
    ) -> ApiResult<Idempotent<ResumeWorkspaceResponse>> {
        pause::resume(&state, &access.0, key, WorkspaceId(id.0)).await
    }

    /// Stops a workspace that has nothing to do until somebody sends it a message. The request waits for the stop, 12 s at
    /// most.
    #[oai(
        path = "/workspaces/:id/hibernate",
        method = "post",
        operation_id = "hibernate_workspace"
    )]
    async fn hibernate_workspace(
        &self,
        access: WorkspaceAccess,
        state: Shared<'_>,
        id: Path<Uuid>,
        /// `true` hibernates one that has tasks too.
        force: Query<Option<String>>,
        /// Makes the request safe to send again: a repetition with the same key gets the first answer.
        #[oai(name = "Idempotency-Key")]
        key: IdempotencyKey,
    ) -> ApiResult<Idempotent<HibernateWorkspaceResponse>> {
        let force = force.0.as_deref() == Some("true");
        hibernate::hibernate(&state, &access.0, key, WorkspaceId(id.0), force).await
    }

    /// Puts below a workspace the team that the template of its name lists in `sub_workspaces`, and brings it up.
    #[oai(
        path = "/workspaces/:id/expand",
        method = "post",
        operation_id = "expand_workspace"
    )]
    async fn expand_workspace(
        &self,
        access: WorkspaceAccess,
        state: Shared<'_>,
        id: Path<Uuid>,
        /// Makes the request safe to send again: a repetition with the same key gets the first answer.
        #[oai(name = "Idempotency-Key")]
        key: IdempotencyKey,
    ) -> ApiResult<Idempotent<ExpandWorkspaceResponse>> {
        team::expand(&state, &access.0, key, WorkspaceId(id.0)).await
    }

    /// Removes everything below a workspace, which stays. The request waits for what has to be stopped, 12 s at most; 500
    /// when that could not stop something; it goes on trying.
    #[oai(
        path = "/workspaces/:id/collapse",
        method = "post",
        operation_id = "collapse_workspace"
    )]
    async fn collapse_workspace(
        &self,
        access: WorkspaceAccess,
        state: Shared<'_>,
        id: Path<Uuid>,
        /// Makes the request safe to send again: a repetition with the same key gets the first answer.
        #[oai(name = "Idempotency-Key")]
        key: IdempotencyKey,
    ) -> ApiResult<Idempotent<CollapseWorkspaceResponse>> {
        team::collapse(&state, &access.0, key, WorkspaceId(id.0)).await
    }

    /// Tells an agent how its workspace stands. One that is gone is answered 404 with `deleted` true, also to the token
    /// that its removal has revoked: the agent is to shut down.
    #[oai(
        path = "/workspaces/:id/state",
        method = "get",
        operation_id = "get_workspace_state"
    )]
    async fn get_workspace_state(
        &self,
        _access: StateAccess,
        state: Shared<'_>,
        id: Path<Uuid>,
    ) -> ApiResult<Json<WorkspaceState>> {
        let id = WorkspaceId(id.0);
        let mut conn = state.connection(FAILED).await?;
        let found = find_workspace(&mut conn, id)
            .await
            .map_err(|error| ApiError::fleet(error, FAILED))?;
        let gone = |error: ApiError| {
            error
                .member("workspace_id", id.to_string())
                .member("deleted", true)
        };
        match found {
            None => Err(gone(ApiError::workspace_not_found())),
            Some(workspace) if workspace.status == WorkspaceStatus::Removed => Err(gone(
                ApiError::not_found("workspace removed")
                    .member("status", workspace.status.as_str()),
            )),
            Some(workspace) => Ok(Json(WorkspaceState {
                workspace_id: workspace.id.0,
                status: workspace.status.to_string(),
                paused: workspace.status == WorkspaceStatus::Paused,
                deleted: false,
            })),
        }
    }
}
