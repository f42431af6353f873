//! Teams: rows first, in one transaction with the jobs that bring them up or take them down.

use longshore_base::WorkspaceId;
use longshore_fleet::workspace::{CollapseError, ExpandError, collapse_workspace, expand_team};
use longshore_jobs::{provision, purge};
use poem::http::StatusCode;
use poem_openapi::payload::Json;
use poem_openapi::{ApiResponse, Object};
use tokio::time::timeout;
use uuid::Uuid;

use super::delete::{set_going, taken_down};
use super::hibernate::has_stopped;
use super::pause::{first_job, location, require_all_accepted};
use crate::auth::Principal;
use crate::idempotency::{IdempotencyKey, Idempotent};
use crate::problem::{ApiError, ApiResult};
use crate::state::ApiState;

const NOT_EXPANDED: &str = "lookup failed";
const NOT_COLLAPSED: &str = "failed to query children";

/// A member of a team.
#[derive(Object)]
pub(crate) struct TeamMember {
    id: Uuid,
    name: String,
    /// What its agent is there for; empty without one.
    role: String,
}

/// A team that was made.
#[derive(Object)]
pub(crate) struct ExpandedWorkspace {
    /// Always `expanded`.
    status: String,
    /// What was put below the workspace; each is being brought up.
    children: Vec<TeamMember>,
    /// The job that brings up the first of them; absent where all are external.
    #[oai(skip_serializing_if_is_none)]
    job_id: Option<Uuid>,
}

#[derive(ApiResponse)]
pub(crate) enum ExpandWorkspaceResponse {
    /// They are there, and are being brought up.
    #[oai(status = 200)]
    Expanded(
        Json<ExpandedWorkspace>,
        /// The job that brings up the first of them.
        #[oai(header = "Location")]
        Option<String>,
    ),
}

/// A team that was removed.
#[derive(Object)]
pub(crate) struct CollapsedWorkspace {
    /// Always `collapsed`.
    status: String,
    /// Names of what was removed, at any depth.
    removed: Vec<String>,
    /// The job that takes down what still runs; absent where nothing does.
    #[oai(skip_serializing_if_is_none)]
    job_id: Option<Uuid>,
}

#[derive(ApiResponse)]
pub(crate) enum CollapseWorkspaceResponse {
    /// They are removed, and nothing of them runs any more.
    #[oai(status = 200)]
    Collapsed(
        Json<CollapsedWorkspace>,
        /// The job that took them down.
        #[oai(header = "Location")]
        Option<String>,
    ),
    /// They are removed; what is left of them is still being taken down.
    #[oai(status = 202)]
    UnderWay(
        Json<CollapsedWorkspace>,
        /// The job that takes them down.
        #[oai(header = "Location")]
        Option<String>,
    ),
}

/// Writes the rows, and asks that they are brought up.
pub(super) async fn expand(
    state: &ApiState,
    caller: &Principal,
    key: IdempotencyKey,
    id: WorkspaceId,
) -> ApiResult<Idempotent<ExpandWorkspaceResponse>> {
    let (answer, queues) = key
        .once(state, NOT_EXPANDED, async |tx| {
            let team = expand_team(tx, &state.fleet, id)
                .await
                .map_err(refuse_expand)?;
            let mut jobs = Vec::new();
            for child in team.iter().filter(|child| !child.is_external()) {
                let cause = provision::Cause::Expand;
                let job = provision::request(tx, child, cause, &caller.name())
                    .await
                    .map_err(|error| ApiError::ledger(error, NOT_EXPANDED))?;
                jobs.push((child.id, job));
            }
            require_all_accepted(tx, id, &jobs).await?;
            let job = first_job(&jobs);
            let children = team.into_iter().map(|child| TeamMember {
                id: child.id.0,
                name: child.name,
                role: child.role.unwrap_or_default(),
            });
            let body = Json(ExpandedWorkspace {
                status: "expanded".to_owned(),
                children: children.collect(),
                job_id: job.map(|job| job.0),
            });
            let answer = ExpandWorkspaceResponse::Expanded(body, job.map(location));
            let queues: Vec<_> = jobs.into_iter().map(|(_, job)| job.queue).collect();
            Ok((answer, queues))
        })
        .await?;
    if let Some(queues) = queues {
        state.poke(&queues);
    }
    Ok(answer)
}

/// Marks the rows, asks that they are taken down, and waits for that.
pub(super) async fn collapse(
    state: &ApiState,
    caller: &Principal,
    key: IdempotencyKey,
    id: WorkspaceId,
) -> ApiResult<Idempotent<CollapseWorkspaceResponse>> {
    let (answer, done) = key
        .once(state, NOT_COLLAPSED, async |tx| {
            let removed = collapse_workspace(tx, id).await.map_err(refuse_collapse)?;
            let removal = purge::request(tx, &state.kinds, &removed, false, &caller.name())
                .await
                .map_err(|error| ApiError::ledger(error, NOT_COLLAPSED))?;
            let job = removal.jobs.first().map(|asked| asked.job_id);
            let body = CollapsedWorkspace {
                status: "collapsed".to_owned(),
                removed: removed.newly().map(|child| child.name.clone()).collect(),
                job_id: job.map(|job| job.0),
            };
            let kept = match job {
                None => CollapseWorkspaceResponse::Collapsed(Json(body), None),
                Some(job) => CollapseWorkspaceResponse::UnderWay(Json(body), Some(location(job))),
            };
            Ok((kept, removal))
        })
        .await?;
    let is_down = match (done, answer.job()) {
        (Some(removal), _) => {
            set_going(state, &removal).await;
            taken_down(state, &removal, false).await?
        }
        (None, Some(job)) => timeout(state.config.removal_wait, has_stopped(state, job))
            .await
            .unwrap_or(false),
        (None, None) => true,
    };
    // The two answers differ in nothing else.
    Ok(if is_down { answer.into_ok() } else { answer })
}

fn refuse_expand(error: ExpandError) -> ApiError {
    let text = error.to_string();
    match error {
        ExpandError::NotFound => ApiError::workspace_not_found(),
        ExpandError::Removed => ApiError::workspace_removed(),
        ExpandError::NoConfig | ExpandError::NoMembers => ApiError::bad_request(text),
        ExpandError::Unreadable(why) => ApiError::internal(text, why),
        ExpandError::Malformed(why) => {
            tracing::warn!(why, "a team's configuration cannot be used");
            ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, text).detail(why)
        }
        ExpandError::Tier(_) => ApiError::forbidden(text),
        ExpandError::Fleet(error) => ApiError::fleet(error, NOT_EXPANDED),
    }
}

fn refuse_collapse(error: CollapseError) -> ApiError {
    match error {
        CollapseError::NotFound => ApiError::workspace_not_found(),
        CollapseError::Removed => ApiError::workspace_removed(),
        CollapseError::Fleet(error) => ApiError::fleet(error, NOT_COLLAPSED),
    }
}
