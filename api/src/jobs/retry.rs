//! Bringing a finished job back, and putting one away (`spec: operations` §1).

use longshore_base::JobId;
use longshore_events::{NewEvent, append, names};
use longshore_ledger::inspect::{JobView, find_job};
use longshore_ledger::{DiscardOutcome, RetryOutcome, discard, retry};
use poem_openapi::param::Path;
use poem_openapi::payload::Json;
use poem_openapi::{ApiResponse, OpenApi};
use serde_json::json;
use sqlx::PgConnection;
use uuid::Uuid;

use super::unknown;
use super::view::Job;
use crate::auth::AdminAccess;
use crate::body::JsonBody;
use crate::document::Tag;
use crate::idempotency::{IdempotencyKey, Idempotent};
use crate::operator::change_event;
use crate::problem::{ApiError, ApiResult};
use crate::queues::require_accepted;
use crate::reason::ChangeRequest;
use crate::state::Shared;

const NOT_RETRIED: &str = "failed to retry job";
const NOT_DISCARDED: &str = "failed to discard job";

#[derive(ApiResponse)]
pub(crate) enum RetryJobResponse {
    /// It waits again.
    #[oai(status = 202)]
    Retried(
        Json<Job>,
        /// The job.
        #[oai(header = "Location")]
        String,
    ),
}

#[derive(ApiResponse)]
pub(crate) enum DiscardJobResponse {
    /// It is put away.
    #[oai(status = 200)]
    Discarded(Json<Job>),
}

pub(crate) struct RetryApi;

#[OpenApi(tag = "Tag::Jobs")]
impl RetryApi {
    /// Runs a dead or cancelled job once more, with all its attempts, if its kind allows that. 410 if it ended so long ago
    /// that it is no longer kept.
    #[oai(
        path = "/jobs/:job_id/retry",
        method = "post",
        operation_id = "retry_job"
    )]
    async fn retry_job(
        &self,
        access: AdminAccess,
        state: Shared<'_>,
        job_id: Path<Uuid>,
        /// Makes the request safe to send again: a repetition with the same key and body gets the first answer.
        #[oai(name = "Idempotency-Key")]
        key: IdempotencyKey,
        body: JsonBody<ChangeRequest>,
    ) -> ApiResult<Idempotent<RetryJobResponse>> {
        let ledger = |error| ApiError::ledger(error, NOT_RETRIED);
        let id = JobId(job_id.0);
        let reason = body.0.reason()?;
        let by = access.0.name();
        let (answer, poke) = key
            .once(&state, NOT_RETRIED, async |tx| {
                let outcome = retry(tx, &state.kinds, id, &by).await.map_err(ledger)?;
                let queue = match outcome {
                    RetryOutcome::Retried { queue } => queue,
                    RetryOutcome::Refused(why) => return Err(ApiError::conflict(why)),
                    RetryOutcome::NotRetryable => {
                        return Err(ApiError::conflict(
                            "only dead or cancelled jobs can be retried",
                        ));
                    }
                    RetryOutcome::Unknown => return Err(unknown(tx, id, NOT_RETRIED).await),
                };
                let job = load(tx, id, NOT_RETRIED).await?;
                require_accepted(tx, &queue, &job.tenant, job.workspace_id, NOT_RETRIED).await?;
                let event = event_of(names::JOB_RETRIED, &job, &by, reason.as_deref());
                append(tx, event)
                    .await
                    .map_err(|error| ApiError::internal(NOT_RETRIED, error))?;
                let answer = RetryJobResponse::Retried(Json(job.into()), format!("/jobs/{id}"));
                Ok((answer, queue))
            })
            .await?;
        if let Some(queue) = poke {
            state.poke(&[queue]);
        }
        Ok(answer)
    }

    /// Puts a dead or waiting job away: no list of dead jobs shows it again, its history stays. 410 if it ended so long ago
    /// that it is no longer kept.
    #[oai(
        path = "/jobs/:job_id/discard",
        method = "post",
        operation_id = "discard_job"
    )]
    async fn discard_job(
        &self,
        access: AdminAccess,
        state: Shared<'_>,
        job_id: Path<Uuid>,
        /// Makes the request safe to send again: a repetition with the same key and body gets the first answer.
        #[oai(name = "Idempotency-Key")]
        key: IdempotencyKey,
        body: JsonBody<ChangeRequest>,
    ) -> ApiResult<Idempotent<DiscardJobResponse>> {
        let ledger = |error| ApiError::ledger(error, NOT_DISCARDED);
        let id = JobId(job_id.0);
        let reason = body.0.reason()?;
        let by = access.0.name();
        let (answer, pokes) = key
            .once(&state, NOT_DISCARDED, async |tx| {
                let outcome = discard(tx, &state.kinds, id, &by, reason.as_deref()).await;
                let pokes = match outcome.map_err(ledger)? {
                    DiscardOutcome::Discarded(pokes) => pokes,
                    DiscardOutcome::NotDiscardable => {
                        return Err(ApiError::conflict(
                            "only dead or waiting jobs can be discarded",
                        ));
                    }
                    DiscardOutcome::Unknown => return Err(unknown(tx, id, NOT_DISCARDED).await),
                };
                let job = load(tx, id, NOT_DISCARDED).await?;
                let event = event_of(names::JOB_DISCARDED, &job, &by, reason.as_deref());
                append(tx, event)
                    .await
                    .map_err(|error| ApiError::internal(NOT_DISCARDED, error))?;
                Ok((DiscardJobResponse::Discarded(Json(job.into())), pokes))
            })
            .await?;
        if let Some(queues) = pokes {
            state.poke(&queues);
        }
        Ok(answer)
    }
}

fn event_of(name: &'static str, job: &JobView, by: &str, reason: Option<&str>) -> NewEvent {
    let what = json!({ "job_id": job.id, "kind": job.kind });
    NewEvent {
        workspace_id: job.workspace_id,
        ..change_event(name, what, by, reason)
    }
}

async fn load(tx: &mut PgConnection, id: JobId, failed: &'static str) -> ApiResult<JobView> {
    find_job(tx, id)
        .await
        .map_err(|error| ApiError::ledger(error, failed))?
        .ok_or_else(|| ApiError::internal(failed, "the job is gone"))
}
