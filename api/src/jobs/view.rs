//! A job as clients see it.

use longshore_base::Timestamp;
use longshore_ledger::inspect::JobView;
use poem_openapi::types::Any;
use poem_openapi::{Enum, Object};
use serde_json::Value;
use uuid::Uuid;

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
    #[oai(nullable)]
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
    #[oai(nullable)]
    started_at: Option<Timestamp>,
    #[oai(nullable)]
    finished_at: Option<Timestamp>,
    /// Who runs or ran it.
    #[oai(nullable)]
    worker: Option<String>,
    #[oai(nullable)]
    progress: Option<JobProgress>,
    /// Why it is not running.
    #[oai(nullable)]
    waiting: Option<JobWaiting>,
    /// What it gave back.
    result: Option<Any<Value>>,
    #[oai(nullable)]
    last_error: Option<String>,
    /// The first three and the last ten failures.
    errors: Vec<JobFailure>,
    /// Its arguments: ids and flags.
    args: Any<Value>,
    /// The W3C trace id of the request that asked for it: of its `traceparent`, or a new one. It stands as `trace.id` in the
    /// log lines of the request and of the job's runs.
    #[oai(nullable)]
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
    pub(super) const fn name(self) -> &'static str {
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
    #[oai(nullable)]
    steps_total: Option<u32>,
    #[oai(nullable)]
    message: Option<String>,
    /// Share of the step, 0 to 100.
    #[oai(nullable)]
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
    #[oai(nullable)]
    until: Option<Timestamp>,
    /// The job it waits for.
    #[oai(nullable)]
    behind: Option<Uuid>,
}

/// One failed attempt.
#[derive(Object)]
pub(crate) struct JobFailure {
    attempt: i32,
    at: Timestamp,
    #[oai(nullable)]
    worker: Option<String>,
    error: String,
    /// When it was to be tried again.
    #[oai(nullable)]
    retried_at: Option<Timestamp>,
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
