//! Pause and resume: rows first, in one transaction with the jobs that follow them.

use longshore_base::{JobId, WorkspaceId};
use longshore_fleet::workspace::{
    ResumeError, organisation_root, pause_workspaces, resume_workspaces,
};
use longshore_jobs::{provision, stop};
use longshore_ledger::Enqueued;
use poem::http::StatusCode;
use poem_openapi::payload::Json;
use poem_openapi::{ApiResponse, Object};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::auth::Principal;
use crate::idempotency::{IdempotencyKey, Idempotent};
use crate::problem::{ApiError, ApiResult};
use crate::queues::require_accepted;
use crate::state::ApiState;

const FAILED: &str = "lookup failed";

/// Workspaces that were paused.
#[derive(Object)]
pub(crate) struct PausedWorkspaces {
    /// Always `paused`.
    status: String,
    /// How many, the one that was named and those below it.
    paused_count: u64,
    /// The job that stops the one that was named, or another of them; absent where nothing ran.
    #[oai(skip_serializing_if_is_none)]
    job_id: Option<Uuid>,
}

#[derive(ApiResponse)]
pub(crate) enum PauseWorkspaceResponse {
    /// They are paused; what runs of them is being stopped.
    #[oai(status = 200)]
    Paused(
        Json<PausedWorkspaces>,
        /// The job that stops it.
        #[oai(header = "Location")]
        Option<String>,
    ),
}

/// Workspaces that were resumed.
#[derive(Object)]
pub(crate) struct ResumedWorkspaces {
    /// Always `provisioning`.
    status: String,
    /// How many, the one that was named and those below it.
    resumed_count: u64,
    /// The job that brings up the one that was named, or another of them; absent where all are external.
    #[oai(skip_serializing_if_is_none)]
    job_id: Option<Uuid>,
}

#[derive(ApiResponse)]
pub(crate) enum ResumeWorkspaceResponse {
    /// They are being brought up.
    #[oai(status = 200)]
    Resumed(
        Json<ResumedWorkspaces>,
        /// The job that does it.
        #[oai(header = "Location")]
        Option<String>,
    ),
}

/// Marks the rows, so that nothing starts them again, and asks for the stops.
pub(super) async fn pause(
    state: &ApiState,
    caller: &Principal,
    key: IdempotencyKey,
    id: WorkspaceId,
) -> ApiResult<Idempotent<PauseWorkspaceResponse>> {
    let (answer, done) = key
        .once(state, FAILED, async |tx| {
            let paused = pause_workspaces(tx, id)
                .await
                .map_err(|error| ApiError::fleet(error, FAILED))?;
            if paused.is_empty() {
                return Err(ApiError::not_found("workspace not found or already paused"));
            }
            let stops = stop::request_pause(tx, &state.kinds, &paused, &caller.name())
                .await
                .map_err(|error| ApiError::ledger(error, FAILED))?;
            require_all_accepted(tx, id, &stops.jobs).await?;
            let job = first_job(&stops.jobs);
            let body = Json(PausedWorkspaces {
                status: "paused".to_owned(),
                paused_count: paused.len() as u64,
                job_id: job.map(|job| job.0),
            });
            let answer = PauseWorkspaceResponse::Paused(body, job.map(location));
            Ok((answer, (paused, stops.pokes)))
        })
        .await?;
    if let Some((paused, pokes)) = done {
        for workspace in paused {
            state.fleet.presence.clear(workspace.id).await;
        }
        state.poke(&pokes);
        // What was bringing them up has been asked to stop.
        state.admitter.poke_cancels();
    }
    Ok(answer)
}

/// Lets the rows wait to come up, and asks for that.
pub(super) async fn resume(
    state: &ApiState,
    caller: &Principal,
    key: IdempotencyKey,
    id: WorkspaceId,
) -> ApiResult<Idempotent<ResumeWorkspaceResponse>> {
    let (answer, done) = key
        .once(state, FAILED, async |tx| {
            let resumed = resume_workspaces(tx, id).await.map_err(refuse)?;
            if !resumed.managed.is_empty() && state.backends.choose().is_err() {
                return Err(ApiError::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "provisioner not available",
                ));
            }
            let mut jobs = Vec::new();
            for workspace in &resumed.managed {
                let cause = provision::Cause::Resume;
                let job = provision::request(tx, workspace, cause, &caller.name())
                    .await
                    .map_err(|error| ApiError::ledger(error, FAILED))?;
                jobs.push((workspace.id, job));
            }
            require_all_accepted(tx, id, &jobs).await?;
            let job = first_job(&jobs);
            let body = Json(ResumedWorkspaces {
                status: "provisioning".to_owned(),
                resumed_count: (resumed.managed.len() + resumed.external.len()) as u64,
                job_id: job.map(|job| job.0),
            });
            let answer = ResumeWorkspaceResponse::Resumed(body, job.map(location));
            let queues: Vec<_> = jobs.into_iter().map(|(_, job)| job.queue).collect();
            Ok((answer, queues))
        })
        .await?;
    if let Some(queues) = done {
        state.poke(&queues);
    }
    Ok(answer)
}

/// Refuses jobs below `root` that an operator lets nobody ask for.
pub(super) async fn require_all_accepted(
    tx: &mut PgConnection,
    root: WorkspaceId,
    jobs: &[(WorkspaceId, Enqueued)],
) -> ApiResult<()> {
    if jobs.is_empty() {
        return Ok(());
    }
    let tenant = organisation_root(tx, root)
        .await
        .map_err(|error| ApiError::fleet(error, FAILED))?
        .to_string();
    for (workspace, job) in jobs {
        require_accepted(tx, &job.queue, &tenant, Some(*workspace), FAILED).await?;
    }
    Ok(())
}

/// The root is the first of the workspaces, so its job is the first, if it has one.
pub(super) fn first_job(jobs: &[(WorkspaceId, Enqueued)]) -> Option<JobId> {
    jobs.first().map(|(_, job)| job.job_id)
}

pub(super) fn location(job: JobId) -> String {
    format!("/jobs/{job}")
}

fn refuse(error: ResumeError) -> ApiError {
    let text = error.to_string();
    match error {
        ResumeError::NotPaused => ApiError::not_found(text),
        ResumeError::AncestorPaused { .. } => ApiError::conflict(text),
        ResumeError::Fleet(error) => ApiError::fleet(error, FAILED),
    }
}
