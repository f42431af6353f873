//! Jobs: what was asked for and how it goes (`spec: operations` §1).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use longshore_base::{JobId, Timestamp, WorkspaceId};
use longshore_ledger::inspect::{self, JobFilter, JobView, Page};
use longshore_ledger::{CancelOutcome, cancel};
use poem::Request;
use poem_openapi::param::{Path, Query};
use poem_openapi::payload::Json;
use poem_openapi::types::Any;
use poem_openapi::{ApiResponse, Enum, Object, OpenApi};
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::auth::{AdminAccess, JobAccess, Principal, WorkspaceAccess};
use crate::body::{JsonBody, JsonRequest};
use crate::document::Tag;
use crate::problem::{ApiError, ApiResult};
use crate::sse::{EventStream, Feed, Gone};
use crate::state::{ApiState, Shared};
use crate::workspaces::require_live;

const DEFAULT_LIMIT: i64 = 50;
const MAX_LIMIT: i64 = 500;
const MAX_REASON: usize = 500;
/// How often a watched job is looked at.
const WATCH_PERIOD: Duration = Duration::from_millis(250);
const FAILED: &str = "query failed";

/// One job.
#[derive(Object)]
pub(crate) struct Job {
    id: Uuid,
    /// What is to be done.
    kind: String,
    /// Where it waits.
    queue: String,
    /// `scheduled`, `queued`, `running`, or how it ended: `succeeded`, `dead`, `cancelled`, `superseded`.
    state: String,
    /// The organisation it works for.
    tenant: String,
    workspace_id: Option<Uuid>,
    /// Failed attempts so far.
    attempt: i32,
    max_attempts: i32,
    /// Workers that died while running it.
    crashes: i32,
    /// Times it put itself off.
    snoozes: i32,
    /// Smaller runs first.
    priority: i16,
    /// Not before this.
    run_at: Timestamp,
    /// Given up after this.
    deadline_at: Timestamp,
    created_at: Timestamp,
    /// Who asked for it.
    created_by: String,
    started_at: Option<Timestamp>,
    finished_at: Option<Timestamp>,
    /// Who runs or ran it.
    worker: Option<String>,
    progress: Option<JobProgress>,
    /// Why it is not running.
    waiting: Option<JobWaiting>,
    /// What it gave back.
    result: Option<Any<Value>>,
    last_error: Option<String>,
    /// The first three and the last ten failures.
    errors: Vec<JobFailure>,
    /// Its arguments: ids and flags.
    args: Any<Value>,
    trace_id: Option<String>,
    /// Rises with every visible change; the id of the events of its stream.
    revision: i64,
}

/// Where a job is: a live state, or how it ended.
#[derive(Clone, Copy, Enum)]
#[oai(rename_all = "lowercase")]
pub(crate) enum JobState {
    Scheduled,
    Queued,
    Running,
    Succeeded,
    Dead,
    Cancelled,
    Superseded,
}

impl JobState {
    const fn name(self) -> &'static str {
        match self {
            Self::Scheduled => "scheduled",
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Dead => "dead",
            Self::Cancelled => "cancelled",
            Self::Superseded => "superseded",
        }
    }
}

/// How far a run is.
#[derive(Object)]
pub(crate) struct JobProgress {
    step: String,
    steps_done: u32,
    steps_total: Option<u32>,
    message: Option<String>,
    /// Share of the step, 0 to 100.
    percent: Option<u8>,
}

/// Why a job waits.
#[derive(Object)]
pub(crate) struct JobWaiting {
    /// `time`, `key`, `limit`, `paused`, `drained`, `held`, `no_worker`, `backing_off` or `admitted`.
    reason: String,
    /// The same in words.
    text: String,
    since: Timestamp,
    until: Option<Timestamp>,
    /// The job it waits for.
    behind: Option<Uuid>,
}

/// One failed attempt.
#[derive(Object)]
pub(crate) struct JobFailure {
    attempt: i32,
    at: Timestamp,
    worker: Option<String>,
    error: String,
    /// When it was to be tried again.
    retried_at: Option<Timestamp>,
}

/// Part of a list of jobs, newest first.
#[derive(Object)]
pub(crate) struct JobList {
    items: Vec<Job>,
    /// Give it back as `cursor` for the next part; null at the end.
    next_cursor: Option<String>,
}

/// A wish to cancel.
#[derive(Deserialize, Object)]
#[serde(deny_unknown_fields)]
pub(crate) struct CancelJobRequest {
    /// Why, for the history; at most 500 characters.
    reason: Option<String>,
}

impl JsonRequest for CancelJobRequest {
    const MAY_BE_ABSENT: bool = true;
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

    /// Shows a job. A workspace sees its own jobs only.
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
    /// event is the job's revision; `Last-Event-ID` says what was seen.
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
        request: &Request,
    ) -> ApiResult<EventStream> {
        let job = load(&state, &access.0, JobId(job_id.0)).await?;
        let seen = request
            .header("last-event-id")
            .and_then(|id| id.trim().parse().ok());
        let shared = Arc::clone(&state);
        Ok(EventStream::start(&state, move |feed| async move {
            watch(&shared, job, seen, &feed).await
        }))
    }

    /// Cancels a job: at once if it waits, by request if it runs.
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
        body: JsonBody<CancelJobRequest>,
    ) -> ApiResult<CancelJobResponse> {
        const NOT_CANCELLED: &str = "failed to cancel job";
        let id = JobId(job_id.0);
        let reason = body.0.reason.filter(|reason| !reason.trim().is_empty());
        if reason
            .as_ref()
            .is_some_and(|reason| reason.chars().count() > MAX_REASON)
        {
            return Err(ApiError::bad_request(
                "reason must be at most 500 characters",
            ));
        }
        let mut tx = state.transaction(NOT_CANCELLED).await?;
        let outcome = cancel(
            &mut tx,
            &state.kinds,
            id,
            &access.0.name(),
            reason.as_deref(),
        )
        .await
        .map_err(|error| ApiError::internal(NOT_CANCELLED, error))?;
        let pokes = match outcome {
            CancelOutcome::Unknown => return Err(ApiError::not_found("job not found")),
            CancelOutcome::Finished => return Err(ApiError::conflict("job already finished")),
            CancelOutcome::WasWaiting(pokes) => Some(pokes),
            CancelOutcome::Requested => None,
        };
        let job = inspect::find_job(&mut tx, id)
            .await
            .map_err(|error| ApiError::internal(NOT_CANCELLED, error))?
            .ok_or_else(|| ApiError::internal(NOT_CANCELLED, "the cancelled job is gone"))?;
        tx.commit()
            .await
            .map_err(|error| ApiError::internal(NOT_CANCELLED, error))?;
        let job = Json(job.into());
        Ok(match pokes {
            Some(queues) => {
                queues.iter().for_each(|queue| state.admitter.poke(queue));
                state.bus.poke();
                CancelJobResponse::Cancelled(job)
            }
            None => CancelJobResponse::Requested(job),
        })
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
    let limit = limit.unwrap_or(DEFAULT_LIMIT);
    if !(1..=MAX_LIMIT).contains(&limit) {
        return Err(ApiError::bad_request("limit must be from 1 to 500"));
    }
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
    job.filter(|job| match caller {
        Principal::Workspace(owner) => job.workspace_id == Some(*owner),
        Principal::Admin | Principal::Org { .. } | Principal::Canvas | Principal::Developer => true,
    })
    .ok_or_else(|| ApiError::not_found("job not found"))
}

async fn watch(
    state: &ApiState,
    first: JobView,
    seen: Option<i64>,
    feed: &Feed,
) -> Result<(), Gone> {
    let id = first.id;
    let mut shown = Shown::new(seen);
    let mut job = Some(first);
    let mut period = tokio::time::interval(WATCH_PERIOD);
    period.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        if let Some(job) = job {
            let ended = job.is_terminal();
            for (event, data) in shown.news(&job) {
                feed.send(
                    Some(&job.revision.to_string()),
                    Some(event),
                    &data.to_string(),
                )
                .await?;
            }
            if ended {
                return Ok(());
            }
        }
        period.tick().await;
        // Nothing is found while Postgres is away for a moment: look again.
        job = look(state, id).await;
    }
}

async fn look(state: &ApiState, id: JobId) -> Option<JobView> {
    let mut conn = state.connection(FAILED).await.ok()?;
    inspect::find_job(&mut conn, id).await.ok().flatten()
}

/// What a watcher has been told already.
struct Shown {
    revision: Option<i64>,
    state: Option<(String, bool)>,
    progress: Option<Value>,
    failures: VecDeque<(i32, Timestamp)>,
}

impl Shown {
    fn new(revision: Option<i64>) -> Self {
        Self {
            revision,
            state: None,
            progress: None,
            failures: VecDeque::new(),
        }
    }

    /// The events that bring a watcher up to date. Who comes back with the revision it saw last, and finds it
    /// unchanged, gets nothing; the end is always told.
    fn news(&mut self, job: &JobView) -> Vec<(&'static str, Value)> {
        let ended = job.is_terminal();
        if self.revision.is_some_and(|seen| seen >= job.revision) && !ended {
            return Vec::new();
        }
        self.revision = Some(job.revision);
        let mut news = Vec::new();
        for failure in &job.errors {
            let mark = (failure.attempt, failure.at);
            if !self.failures.contains(&mark) {
                self.failures.push_back(mark);
                news.push(("log", json!(failure)));
            }
        }
        let progress = job.progress.as_ref().map(|progress| json!(progress));
        if progress.is_some() && progress != self.progress {
            news.push(("progress", json!(job.progress)));
        }
        self.progress = progress;
        let state = (job.state.to_owned(), job.waiting.is_some());
        if self.state.as_ref() != Some(&state) || ended {
            self.state = Some(state);
            news.push(("state", json!(job)));
        }
        news
    }
}

impl From<JobView> for Job {
    fn from(job: JobView) -> Self {
        Self {
            id: job.id.0,
            kind: job.kind,
            queue: job.queue,
            state: job.state.to_owned(),
            tenant: job.tenant,
            workspace_id: job.workspace_id.map(|id| id.0),
            attempt: job.attempt,
            max_attempts: job.max_attempts,
            crashes: job.crashes,
            snoozes: job.snoozes,
            priority: job.priority,
            run_at: job.run_at,
            deadline_at: job.deadline_at,
            created_at: job.created_at,
            created_by: job.created_by,
            started_at: job.started_at,
            finished_at: job.finished_at,
            worker: job.worker,
            progress: job.progress.map(|progress| JobProgress {
                step: progress.step,
                steps_done: progress.steps_done,
                steps_total: progress.steps_total,
                message: progress.message,
                percent: progress.percent,
            }),
            waiting: job.waiting.map(|waiting| JobWaiting {
                reason: waiting.reason.to_owned(),
                text: waiting.text,
                since: waiting.since,
                until: waiting.until,
                behind: waiting.behind.map(|id| id.0),
            }),
            result: job.result.map(Any),
            last_error: job.last_error,
            errors: job
                .errors
                .into_iter()
                .map(|failure| JobFailure {
                    attempt: failure.attempt,
                    at: failure.at,
                    worker: failure.worker,
                    error: failure.error,
                    retried_at: failure.retried_at,
                })
                .collect(),
            args: Any(job.args),
            trace_id: job.trace_id,
            revision: job.revision,
        }
    }
}
