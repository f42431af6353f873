//! Jobs: what was asked for and how it goes (`spec: operations` §1).

pub(crate) mod bulk;
pub(crate) mod retry;
mod view;
mod watch;

use std::sync::Arc;

use longshore_base::{JobId, Timestamp, WorkspaceId};
use longshore_ledger::inspect::{self, JobFilter, JobView, Page};
use longshore_ledger::{CancelOutcome, cancel, list_pruned_outcomes};
use poem_openapi::param::{Header, Path, Query};
use poem_openapi::payload::Json;
use poem_openapi::{ApiResponse, Object, OpenApi};
use sqlx::PgConnection;
use uuid::Uuid;

use self::view::{Job, JobState};
use crate::auth::{AdminAccess, JobAccess, Principal, WorkspaceAccess};
use crate::body::JsonBody;
use crate::document::Tag;
use crate::idempotency::{IdempotencyKey, Idempotent};
use crate::paging;
use crate::problem::{ApiError, ApiResult};
use crate::reason::ChangeRequest;
use crate::sse::EventStream;
use crate::state::{ApiState, Shared};
use crate::workspaces::require_live;

const FAILED: &str = "query failed";

/// Part of a list of jobs, newest first.
#[derive(Object)]
pub(crate) struct JobList {
    items: Vec<Job>,
    /// Give it back as `cursor` for the next part; null at the end.
    #[oai(nullable)]
    next_cursor: Option<String>,
}

#[derive(ApiResponse)]
pub(crate) enum CancelJobResponse {
    /// It waited and is cancelled.
    #[oai(status = 200)]
    Cancelled(Json<Job>),
    /// It runs and has been asked to stop; a success that comes first wins.
    #[oai(status = 202)]
    Requested(Json<Job>),
}

pub(crate) struct JobsApi;

#[OpenApi(tag = "Tag::Jobs")]
impl JobsApi {
    /// Lists jobs, newest first.
    #[oai(path = "/jobs", method = "get", operation_id = "list_jobs")]
    #[expect(clippy::too_many_arguments, reason = "a parameter per filter")]
    async fn list_jobs(
        &self,
        _access: AdminAccess,
        state: Shared<'_>,
        queue: Query<Option<String>>,
        kind: Query<Option<String>>,
        /// A live state, or how it ended.
        #[oai(name = "state")]
        state_is: Query<Option<JobState>>,
        workspace_id: Query<Option<Uuid>>,
        tenant: Query<Option<String>>,
        /// Some error contains this text.
        error: Query<Option<String>>,
        /// Asked for before this time.
        older_than: Query<Option<Timestamp>>,
        /// Asked for after this time.
        newer_than: Query<Option<Timestamp>>,
        /// At most so many, 1 to 500.
        limit: Query<Option<i64>>,
        cursor: Query<Option<Uuid>>,
    ) -> ApiResult<Json<JobList>> {
        let filter = JobFilter {
            queue: queue.0,
            kind: kind.0,
            state: state_is.0.map(|state| state.name().to_owned()),
            workspace_id: workspace_id.0.map(WorkspaceId),
            tenant: tenant.0,
            error: error.0,
            older_than: older_than.0,
            newer_than: newer_than.0,
        };
        list(&state, &filter, limit.0, cursor.0).await
    }

    /// Shows a job. A workspace sees its own jobs only. Finished jobs are kept for some time; after that 410 is answered,
    /// also for ids from that time that no job has had, and 404 for all others that no job has.
    #[oai(path = "/jobs/:job_id", method = "get", operation_id = "get_job")]
    async fn get_job(
        &self,
        access: JobAccess,
        state: Shared<'_>,
        job_id: Path<Uuid>,
    ) -> ApiResult<Json<Job>> {
        Ok(Json(load(&state, &access.0, JobId(job_id.0)).await?.into()))
    }

    /// Streams a job until it ends: `state` with the whole job, `progress`, and `log` for each failed attempt. The id of an
    /// event is the job's revision; `Last-Event-ID` says what was seen. 410 as for the job itself.
    #[oai(
        path = "/jobs/:job_id/events",
        method = "get",
        operation_id = "watch_job"
    )]
    async fn watch_job(
        &self,
        access: JobAccess,
        state: Shared<'_>,
        job_id: Path<Uuid>,
        /// The revision that was seen last.
        #[oai(name = "Last-Event-ID")]
        seen: Header<Option<String>>,
    ) -> ApiResult<EventStream> {
        let job = load(&state, &access.0, JobId(job_id.0)).await?;
        let seen = seen.0.and_then(|id| id.trim().parse().ok());
        let shared = Arc::clone(&state);
        Ok(EventStream::start(&state, move |feed| async move {
            watch::watch(&shared, job, seen, &feed).await
        }))
    }

    /// Cancels a job: at once if it waits, by request if it runs. 409 if it has ended, 410 if that is so long ago that it
    /// is no longer kept.
    #[oai(
        path = "/jobs/:job_id/cancel",
        method = "post",
        operation_id = "cancel_job"
    )]
    async fn cancel_job(
        &self,
        access: AdminAccess,
        state: Shared<'_>,
        job_id: Path<Uuid>,
        /// Makes the request safe to send again: a repetition with the same key and body gets the first answer.
        #[oai(name = "Idempotency-Key")]
        key: IdempotencyKey,
        body: JsonBody<ChangeRequest>,
    ) -> ApiResult<Idempotent<CancelJobResponse>> {
        const NOT_CANCELLED: &str = "failed to cancel job";
        let id = JobId(job_id.0);
        let reason = body.0.reason()?;
        let internal = |error| ApiError::internal(NOT_CANCELLED, error);
        let (answer, pokes) = key
            .once(&state, NOT_CANCELLED, async |tx| {
                let by = access.0.name();
                let outcome = cancel(tx, &state.kinds, id, &by, reason.as_deref()).await;
                let pokes = match outcome.map_err(internal)? {
                    CancelOutcome::Unknown => return Err(unknown(tx, id, NOT_CANCELLED).await),
                    CancelOutcome::Finished => {
                        return Err(ApiError::conflict("job already finished"));
                    }
                    CancelOutcome::WasWaiting(pokes) => Some(pokes),
                    CancelOutcome::Requested => None,
                };
                let job = inspect::find_job(tx, id).await.map_err(internal)?;
                let job = job.ok_or_else(|| {
                    ApiError::internal(NOT_CANCELLED, "the cancelled job is gone")
                })?;
                let job = Json(job.into());
                let answer = match pokes {
                    Some(_) => CancelJobResponse::Cancelled(job),
                    None => CancelJobResponse::Requested(job),
                };
                Ok((answer, pokes))
            })
            .await?;
        match pokes {
            Some(Some(queues)) => state.poke(&queues),
            Some(None) => state.admitter.poke_cancels(),
            // The first answer once more: nothing was done.
            None => {}
        }
        Ok(answer)
    }

    /// Lists the jobs of a workspace, newest first.
    #[oai(
        path = "/workspaces/:id/jobs",
        method = "get",
        operation_id = "list_workspace_jobs"
    )]
    async fn list_workspace_jobs(
        &self,
        _access: WorkspaceAccess,
        state: Shared<'_>,
        id: Path<Uuid>,
        /// At most so many, 1 to 500.
        limit: Query<Option<i64>>,
        cursor: Query<Option<Uuid>>,
    ) -> ApiResult<Json<JobList>> {
        let id = WorkspaceId(id.0);
        require_live(&state, id, FAILED).await?;
        let filter = JobFilter {
            workspace_id: Some(id),
            ..JobFilter::default()
        };
        list(&state, &filter, limit.0, cursor.0).await
    }
}

async fn list(
    state: &ApiState,
    filter: &JobFilter,
    limit: Option<i64>,
    cursor: Option<Uuid>,
) -> ApiResult<Json<JobList>> {
    let limit = paging::limit(limit)?;
    let cursor = cursor.map(|id| id.to_string());
    let mut conn = state.connection(FAILED).await?;
    let Page { items, next_cursor } =
        inspect::list_jobs(&mut conn, filter, limit, cursor.as_deref())
            .await
            .map_err(|error| ApiError::internal(FAILED, error))?;
    Ok(Json(JobList {
        items: items.into_iter().map(Job::from).collect(),
        next_cursor,
    }))
}

/// A job that the caller may see. To a workspace, the jobs of others do not exist.
async fn load(state: &ApiState, caller: &Principal, id: JobId) -> ApiResult<JobView> {
    let mut conn = state.connection(FAILED).await?;
    let job = inspect::find_job(&mut conn, id)
        .await
        .map_err(|error| ApiError::internal(FAILED, error))?;
    let Some(job) = job else {
        return Err(unknown(&mut conn, id, FAILED).await);
    };
    let visible = match caller {
        Principal::Workspace(owner) => job.workspace_id == Some(*owner),
        Principal::Admin | Principal::Org { .. } | Principal::Canvas | Principal::Developer => true,
    };
    if visible {
        Ok(job)
    } else {
        Err(ApiError::not_found("job not found"))
    }
}

/// What is said of an id that no job has: 410 where retention has dropped jobs with such ids, else 404.
async fn unknown(conn: &mut PgConnection, id: JobId, failed: &'static str) -> ApiError {
    match list_pruned_outcomes(conn, id).await {
        Ok(outcomes) if outcomes.is_empty() => ApiError::not_found("job not found"),
        Ok(outcomes) => ApiError::job_pruned(&outcomes),
        Err(error) => ApiError::ledger(error, failed),
    }
}
