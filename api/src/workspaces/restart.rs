//! Restart: the request is judged and written down; the running agent is left alone until its job's turn.

use longshore_base::WorkspaceId;
use longshore_fleet::restart_template::TemplateChoice;
use longshore_fleet::restarting::{Asked, Refusal, check_restart};
use longshore_fleet::workspace::{Workspace, lock_workspace, organisation_root};
use longshore_jobs::restart::{self, Source};
use longshore_ledger::Enqueued;
use poem::http::StatusCode;
use poem_openapi::payload::Json;
use poem_openapi::{ApiResponse, Object};
use serde::Deserialize;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::auth::Principal;
use crate::body::JsonRequest;
use crate::idempotency::{IdempotencyKey, Idempotent};
use crate::problem::{ApiError, ApiResult};
use crate::queues::require_accepted;
use crate::state::ApiState;

const FAILED: &str = "lookup failed";

/// How a workspace is restarted. Without any of this it goes on with what it has.
#[derive(Default, Deserialize, Object)]
pub(crate) struct RestartWorkspaceRequest {
    /// A directory below the template root whose files are put over those of the workspace.
    #[serde(default)]
    #[oai(nullable)]
    template: Option<String>,
    /// Does so with the template of the workspace's name, else with that of its runtime.
    #[serde(default)]
    #[oai(nullable)]
    apply_template: Option<bool>,
    /// Begins without the sessions of before.
    #[serde(default)]
    #[oai(nullable)]
    reset: Option<bool>,
    /// Does so with the organisation's template of the workspace's name.
    #[serde(default)]
    #[oai(nullable)]
    rebuild_config: Option<bool>,
}

impl JsonRequest for RestartWorkspaceRequest {
    const MAY_BE_ABSENT: bool = true;
}

/// A workspace that is restarted.
#[derive(Object)]
pub(crate) struct RestartedWorkspace {
    /// Always `provisioning`: what it is about to be.
    status: String,
    /// The template that is applied, or `existing-volume`.
    config_dir: String,
    /// Whether it begins without the sessions of before.
    reset_session: bool,
    /// The job that does it; one that waited already takes the request over.
    job_id: Uuid,
}

#[derive(ApiResponse)]
pub(crate) enum RestartWorkspaceResponse {
    /// It is restarted when its turn comes.
    #[oai(status = 200)]
    Restarted(
        Json<RestartedWorkspace>,
        /// The job that does it.
        #[oai(header = "Location")]
        String,
    ),
}

/// One transaction: the row is held and judged, the job is written.
pub(super) async fn restart(
    state: &ApiState,
    caller: &Principal,
    key: IdempotencyKey,
    id: WorkspaceId,
    body: RestartWorkspaceRequest,
    reset_by_query: bool,
) -> ApiResult<Idempotent<RestartWorkspaceResponse>> {
    let reset_session = body.reset.unwrap_or_default() || reset_by_query;
    let choice = TemplateChoice {
        template: body.template.filter(|template| !template.is_empty()),
        apply_template: body.apply_template.unwrap_or_default(),
        rebuild_config: body.rebuild_config.unwrap_or_default(),
    };
    let (answer, queue) = key
        .once(state, FAILED, async |tx| {
            let workspace = hold(tx, id).await?;
            if state.backends.choose().is_err() {
                return Err(ApiError::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "provisioner not available",
                ));
            }
            let chosen = choice.resolve(&state.fleet, &workspace.name, &workspace.runtime);
            let wanted = restart::Request {
                source: Source::User,
                choice,
                reset_session,
                delay: std::time::Duration::ZERO,
            };
            let job = restart::request(tx, &workspace, wanted, &caller.name())
                .await
                .map_err(|error| ApiError::ledger(error, FAILED))?;
            let tenant = organisation_root(tx, id)
                .await
                .map_err(|error| ApiError::fleet(error, FAILED))?
                .to_string();
            require_accepted(tx, &job.queue, &tenant, Some(id), FAILED).await?;
            Ok((told(&job, chosen.label, reset_session), job.queue))
        })
        .await?;
    if let Some(queue) = queue {
        state.admitter.poke(&queue);
    }
    Ok(answer)
}

async fn hold(tx: &mut PgConnection, id: WorkspaceId) -> ApiResult<Workspace> {
    let fleet = |error| ApiError::fleet(error, FAILED);
    let workspace = lock_workspace(tx, id)
        .await
        .map_err(fleet)?
        .ok_or_else(ApiError::workspace_not_found)?;
    match check_restart(tx, &workspace, Asked::ByUser)
        .await
        .map_err(fleet)?
    {
        None => Ok(workspace),
        Some(refusal) => Err(refuse(&refusal)),
    }
}

fn told(job: &Enqueued, config_dir: String, reset_session: bool) -> RestartWorkspaceResponse {
    RestartWorkspaceResponse::Restarted(
        Json(RestartedWorkspace {
            status: "provisioning".to_owned(),
            config_dir,
            reset_session,
            job_id: job.job_id.0,
        }),
        format!("/jobs/{}", job.job_id),
    )
}

fn refuse(refusal: &Refusal) -> ApiError {
    match refusal {
        Refusal::Unknown => ApiError::workspace_not_found(),
        Refusal::Removed => ApiError::workspace_removed(),
        Refusal::External
        | Refusal::Paused
        | Refusal::ParentPaused { .. }
        | Refusal::Asleep(_)
        | Refusal::Back(_) => ApiError::conflict(refusal.to_string()),
    }
}
