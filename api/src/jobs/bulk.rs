//! One action over many jobs (`spec: operations` §1): a dry run counts, the apply touches exactly what was counted.

use longshore_base::Timestamp;
use longshore_jobs::{bulk, deployment};
use longshore_ledger::bulk::{BulkAction, BulkError, BulkFilter, plan, take_plan};
use longshore_ledger::inspect;
use poem::http::StatusCode;
use poem_openapi::payload::Json;
use poem_openapi::{ApiResponse, Enum, Object, OpenApi};
use serde::Deserialize;
use uuid::Uuid;

use super::view::Job;
use crate::auth::AdminAccess;
use crate::body::{JsonBody, JsonRequest};
use crate::document::Tag;
use crate::idempotency::{IdempotencyKey, Idempotent};
use crate::problem::ApiError;
use crate::problem::ApiResult;
use crate::queues::require_accepted;
use crate::reason::check;
use crate::state::Shared;

const FAILED: &str = "bulk action failed";

/// What is to be done with every matching job.
#[derive(Clone, Copy, Deserialize, Enum)]
#[serde(rename_all = "snake_case")]
#[oai(rename_all = "snake_case")]
pub(crate) enum BulkJobAction {
    /// Run dead or cancelled ones again.
    Retry,
    /// Cancel waiting and running ones.
    Cancel,
    /// Put dead or waiting ones away.
    Discard,
}

/// Which jobs; all given parts must match.
#[derive(Default, Deserialize, Object)]
#[serde(deny_unknown_fields, default)]
#[oai(rename = "BulkJobFilter")]
pub(crate) struct BulkJobFilter {
    queue: Option<String>,
    kind: Option<String>,
    /// Retry: `dead` (usual) or `cancelled`. Cancel: `scheduled`, `queued` or `running` (usual: all). Discard: `dead`
    /// (usual), `scheduled` or `queued`.
    state: Option<String>,
    workspace_id: Option<Uuid>,
    tenant: Option<String>,
    /// Some error contains this text.
    error: Option<String>,
    /// Asked for before this time.
    older_than: Option<Timestamp>,
    /// Asked for after this time.
    newer_than: Option<Timestamp>,
}

/// First with `dry_run`, which counts; then without and with the `filter_token` of the count, and without a filter.
#[derive(Deserialize, Object)]
#[serde(deny_unknown_fields)]
pub(crate) struct BulkJobsRequest {
    action: BulkJobAction,
    /// Of a dry run.
    filter: Option<BulkJobFilter>,
    #[serde(default)]
    #[oai(default)]
    dry_run: bool,
    /// Of the apply: what the dry run answered.
    filter_token: Option<Uuid>,
    /// Of the apply: why; at most 500 characters. It shows in the job that does it, and in the error of each job that it
    /// cancels or throws away while that waits.
    reason: Option<String>,
}

impl JsonRequest for BulkJobsRequest {}

/// What a bulk action would touch.
#[derive(Object)]
pub(crate) struct BulkJobsPlan {
    matched: i64,
    /// The first ten.
    sample: Vec<Uuid>,
    /// To apply it to exactly these; works once.
    filter_token: Uuid,
    expires_at: Timestamp,
}

/// The job that does it.
#[derive(Object)]
pub(crate) struct BulkJobsStarted {
    job_id: Uuid,
    job: Job,
}

#[derive(ApiResponse)]
#[expect(clippy::large_enum_variant, reason = "made once a request, never kept")]
pub(crate) enum BulkJobsResponse {
    /// The count; nothing was touched.
    #[oai(status = 200)]
    Counted(Json<BulkJobsPlan>),
    /// It is being done.
    #[oai(status = 202)]
    Started(
        Json<BulkJobsStarted>,
        /// The job that does it.
        #[oai(header = "Location")]
        String,
    ),
}

pub(crate) struct BulkJobsApi;

#[OpenApi(tag = "Tag::Jobs")]
impl BulkJobsApi {
    /// Retries, cancels or discards every job that matches a filter: counted first, then applied to exactly that set.
    #[oai(path = "/jobs/bulk", method = "post", operation_id = "act_on_jobs")]
    async fn act_on_jobs(
        &self,
        access: AdminAccess,
        state: Shared<'_>,
        /// Makes the request safe to send again: a repetition with the same key and body gets the first answer.
        #[oai(name = "Idempotency-Key")]
        key: IdempotencyKey,
        body: JsonBody<BulkJobsRequest>,
    ) -> ApiResult<Idempotent<BulkJobsResponse>> {
        let request = body.0;
        let action = BulkAction::from(request.action);
        let internal = |error| ApiError::internal(FAILED, error);
        let by = access.0.name();
        let reason = check(request.reason)?;
        if request.dry_run && reason.is_some() {
            return Err(ApiError::bad_request(
                "a dry run changes nothing, so it takes no reason",
            ));
        }
        let (answer, queue) = key
            .once(&state, FAILED, async |tx| {
                let token = match (request.dry_run, request.filter, request.filter_token) {
                    (true, filter, None) => {
                        let filter = filter.unwrap_or_default().into();
                        let plan = plan(tx, action, filter, &by).await.map_err(refused)?;
                        let counted = BulkJobsPlan {
                            matched: plan.matched,
                            sample: plan.sample.iter().map(|id| id.0).collect(),
                            filter_token: plan.id,
                            expires_at: plan.expires_at,
                        };
                        return Ok((BulkJobsResponse::Counted(Json(counted)), None));
                    }
                    (false, None, Some(token)) => token,
                    (true, _, Some(_)) => {
                        return Err(ApiError::bad_request(
                            "a dry run takes a filter, not a filter_token",
                        ));
                    }
                    (false, _, _) => {
                        return Err(ApiError::bad_request(
                            "first send dry_run: true with the filter, then only the filter_token it answers",
                        ));
                    }
                };
                let Some(mut plan) = take_plan(tx, token).await.map_err(internal)? else {
                    return Err(ApiError::not_found(
                        "no such filter_token: it was used, or it has expired; do the dry run again",
                    ));
                };
                if plan.action != action {
                    return Err(ApiError::bad_request(
                        "the filter_token is of a dry run of another action",
                    ));
                }
                plan.reason = reason;
                let enqueued = bulk::request(tx, plan, &by).await.map_err(internal)?;
                require_accepted(tx, &enqueued.queue, deployment::TENANT, None, FAILED).await?;
                let job = inspect::find_job(tx, enqueued.job_id).await.map_err(internal)?;
                let job = job.ok_or_else(|| ApiError::internal(FAILED, "the job just written is gone"))?;
                let started = BulkJobsStarted {
                    job_id: enqueued.job_id.0,
                    job: job.into(),
                };
                let location = format!("/jobs/{}", enqueued.job_id);
                Ok((BulkJobsResponse::Started(Json(started), location), Some(enqueued.queue)))
            })
            .await?;
        if let Some(queue) = queue.flatten() {
            state.admitter.poke(&queue);
        }
        Ok(answer)
    }
}

fn refused(error: BulkError) -> ApiError {
    match error {
        BulkError::State { .. } => ApiError::new(StatusCode::BAD_REQUEST, error.to_string()),
        BulkError::Ledger(error) => ApiError::internal(FAILED, error),
    }
}

impl From<BulkJobAction> for BulkAction {
    fn from(action: BulkJobAction) -> Self {
        match action {
            BulkJobAction::Retry => Self::Retry,
            BulkJobAction::Cancel => Self::Cancel,
            BulkJobAction::Discard => Self::Discard,
        }
    }
}

impl From<BulkJobFilter> for BulkFilter {
    fn from(filter: BulkJobFilter) -> Self {
        Self {
            queue: filter.queue,
            kind: filter.kind,
            state: filter.state,
            workspace_id: filter.workspace_id,
            tenant: filter.tenant,
            error: filter.error,
            older_than: filter.older_than,
            newer_than: filter.newer_than,
        }
    }
}
