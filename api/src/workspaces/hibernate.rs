//! Hibernation: the claim and the stop in one transaction, then a wait for the stop; and waking, which a message does.

use std::time::Duration;

use longshore_base::{JobId, WorkspaceId};
use longshore_fleet::status::WorkspaceStatus;
use longshore_fleet::workspace::{
    HibernateError, Workspace, claim_hibernation, find_workspace, organisation_root, wake_workspace,
};
use longshore_jobs::{provision, stop};
use longshore_ledger::inspect::find_job;
use poem::http::StatusCode;
use poem_openapi::payload::Json;
use poem_openapi::{ApiResponse, Object};
use tokio::time::timeout;
use uuid::Uuid;

use crate::auth::Principal;
use crate::idempotency::{IdempotencyKey, Idempotent};
use crate::problem::{ApiError, ApiResult};
use crate::queues::require_accepted;
use crate::state::ApiState;

const FAILED: &str = "failed to hibernate workspace";
const LOOK_PERIOD: Duration = Duration::from_millis(100);
/// Seconds after which whoever woke a workspace may find it awake.
const WAKES_WITHIN: u64 = 15;

/// A workspace that was sent to sleep.
#[derive(Object)]
pub(crate) struct HibernatedWorkspace {
    /// `hibernated`, or `hibernating` while it is being stopped.
    status: String,
    /// The job that stops it.
    job_id: Uuid,
}

#[derive(ApiResponse)]
pub(crate) enum HibernateWorkspaceResponse {
    /// It hibernates; nothing of it runs any more.
    #[oai(status = 200)]
    Hibernated(
        Json<HibernatedWorkspace>,
        /// The job that stopped it.
        #[oai(header = "Location")]
        String,
    ),
    /// It is still being stopped.
    #[oai(status = 202)]
    UnderWay(
        Json<HibernatedWorkspace>,
        /// The job that stops it.
        #[oai(header = "Location")]
        String,
    ),
}

impl HibernateWorkspaceResponse {
    fn of(job: JobId, is_done: bool) -> Self {
        let status = if is_done { "hibernated" } else { "hibernating" };
        let body = Json(HibernatedWorkspace {
            status: status.to_owned(),
            job_id: job.0,
        });
        let location = format!("/jobs/{job}");
        if is_done {
            Self::Hibernated(body, location)
        } else {
            Self::UnderWay(body, location)
        }
    }
}

pub(super) async fn hibernate(
    state: &ApiState,
    caller: &Principal,
    key: IdempotencyKey,
    id: WorkspaceId,
    force: bool,
) -> ApiResult<Idempotent<HibernateWorkspaceResponse>> {
    let (answer, pokes) = key
        .once(state, FAILED, async |tx| {
            let claimed = claim_hibernation(tx, id, force).await.map_err(refuse)?;
            let stops = stop::request_hibernation(tx, &state.kinds, &claimed, &caller.name()).await;
            let stops = stops.map_err(|error| ApiError::ledger(error, FAILED))?;
            let Some((_, job)) = stops.jobs.first() else {
                return Err(ApiError::internal(FAILED, "a hibernation without its job"));
            };
            let tenant = organisation_root(tx, id)
                .await
                .map_err(|error| ApiError::fleet(error, FAILED))?
                .to_string();
            require_accepted(tx, &job.queue, &tenant, Some(id), FAILED).await?;
            let answer = HibernateWorkspaceResponse::of(job.job_id, false);
            Ok((answer, stops.pokes))
        })
        .await?;
    if let Some(pokes) = pokes {
        state.poke(&pokes);
        state.admitter.poke_cancels();
    }
    let Some(job) = answer.job() else {
        return Ok(answer);
    };
    let stopped = timeout(state.config.removal_wait, has_stopped(state, job)).await;
    Ok(if stopped.unwrap_or(false) {
        answer.replaced_by(HibernateWorkspaceResponse::of(job, true))
    } else {
        answer
    })
}

/// Waits for the end of the stop, holding no connection in between; whether that was a good one.
pub(super) async fn has_stopped(state: &ApiState, job: JobId) -> bool {
    loop {
        if let Ok(mut conn) = state.connection(FAILED).await
            && let Ok(found) = find_job(&mut conn, job).await
        {
            match found {
                Some(job) if job.state == "succeeded" => return true,
                Some(job) if !job.is_terminal() => {}
                Some(_) | None => return false,
            }
        }
        tokio::time::sleep(LOOK_PERIOD).await;
    }
}

fn refuse(error: HibernateError) -> ApiError {
    let text = error.to_string();
    match error {
        HibernateError::NotUp => ApiError::not_found(text),
        HibernateError::External => ApiError::conflict(text),
        HibernateError::ActiveTasks(tasks) => {
            ApiError::conflict(text).member("active_tasks", tasks)
        }
        HibernateError::Changed(status) => {
            ApiError::conflict(text).member("status", status.as_str())
        }
        HibernateError::Fleet(error) => ApiError::fleet(error, FAILED),
    }
}

/// Brings a hibernated workspace up for a message that cannot be delivered yet. Answers what the sender hears; `None`
/// when it cannot be woken.
pub(crate) async fn wake(
    state: &ApiState,
    target: &Workspace,
    caller: &Principal,
) -> ApiResult<Option<ApiError>> {
    const FAILED: &str = "failed to wake workspace";
    if state.backends.choose().is_err() {
        return Ok(None);
    }
    let mut tx = state.transaction(FAILED).await?;
    let woken = wake_workspace(&mut tx, target.id)
        .await
        .map_err(|error| ApiError::fleet(error, FAILED))?;
    let Some(woken) = woken else {
        // Another message was quicker, or it is not to run.
        let now = find_workspace(&mut tx, target.id)
            .await
            .map_err(|error| ApiError::fleet(error, FAILED))?;
        let is_waking = now.is_some_and(|now| now.status == WorkspaceStatus::Provisioning);
        return Ok(is_waking.then(waking));
    };
    let cause = provision::Cause::Wake;
    let job = provision::request(&mut tx, &woken, cause, &caller.name())
        .await
        .map_err(|error| ApiError::ledger(error, FAILED))?;
    let tenant = organisation_root(&mut tx, woken.id)
        .await
        .map_err(|error| ApiError::fleet(error, FAILED))?
        .to_string();
    require_accepted(&mut tx, &job.queue, &tenant, Some(woken.id), FAILED).await?;
    tx.commit()
        .await
        .map_err(|error| ApiError::database(error, FAILED))?;
    state.poke(&[job.queue]);
    Ok(Some(waking()))
}

fn waking() -> ApiError {
    ApiError::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "workspace is waking from hibernation — retry in ~15 seconds",
    )
    .member("waking", true)
    .retry_after(WAKES_WITHIN)
}
