//! Reading jobs, live and finished, as operators and owners see them (`spec: operations` §1).

mod waiting;
mod waits;

use longshore_base::{JobId, Timestamp, WorkspaceId};
use serde::Serialize;
use sqlx::PgConnection;
use uuid::Uuid;

use self::waiting::{Surroundings, Waiter};
pub use self::waiting::{Waiting, waiting_workspaces};
pub use self::waits::{LongestWait, longest_waits};
use crate::job::{Outcome, Progress, State, Wait};
use crate::{LedgerError, TraceContext};

/// One job.
#[derive(Clone, Debug, Serialize)]
pub struct JobView {
    /// Its id.
    pub id: JobId,
    /// What is to be done.
    pub kind: String,
    /// Where it waits.
    pub queue: String,
    /// `scheduled`, `queued`, `running`, or how it ended.
    pub state: &'static str,
    /// Whom it works for.
    pub tenant: String,
    /// The workspace it is about.
    pub workspace_id: Option<WorkspaceId>,
    /// Failed attempts so far.
    pub attempt: i32,
    /// Attempts after which it is dead.
    pub max_attempts: i32,
    /// Workers that died while running it.
    pub crashes: i32,
    /// Times it put itself off.
    pub snoozes: i32,
    /// Smaller runs first.
    pub priority: i16,
    /// Not before this.
    pub run_at: Timestamp,
    /// Dead after this.
    pub deadline_at: Timestamp,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// By whom.
    pub created_by: String,
    /// When its run began.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// Who runs or ran it.
    pub worker: Option<String>,
    /// How far its run is.
    pub progress: Option<Progress>,
    /// Why it is not running.
    pub waiting: Option<Waiting>,
    /// What it gave back.
    pub result: Option<serde_json::Value>,
    /// The newest error.
    pub last_error: Option<String>,
    /// The first three and last ten failures.
    pub errors: Vec<JobFailure>,
    /// Its arguments: ids and flags.
    pub args: serde_json::Value,
    /// The trace of what asked for it.
    pub trace_id: Option<String>,
    /// Rises with every visible change.
    pub revision: i64,
}

impl JobView {
    /// Whether it has ended.
    #[must_use]
    pub fn is_terminal(&self) -> bool {
        self.finished_at.is_some()
    }
}

/// One failed attempt.
#[derive(Clone, Debug, Serialize, serde::Deserialize)]
pub struct JobFailure {
    /// Which attempt.
    pub attempt: i32,
    /// When it failed.
    pub at: Timestamp,
    /// Who ran it.
    pub worker: Option<String>,
    /// The public reason.
    pub error: String,
    /// When it was to be tried again.
    pub retried_at: Option<Timestamp>,
}

/// Which jobs to list.
#[derive(Clone, Debug, Default)]
pub struct JobFilter {
    /// Exactly this queue.
    pub queue: Option<String>,
    /// Exactly this kind.
    pub kind: Option<String>,
    /// A live state or an outcome.
    pub state: Option<String>,
    /// About this workspace.
    pub workspace_id: Option<WorkspaceId>,
    /// Of this tenant.
    pub tenant: Option<String>,
    /// Some error contains this text.
    pub error: Option<String>,
    /// Asked for before this.
    pub older_than: Option<Timestamp>,
    /// Asked for after this.
    pub newer_than: Option<Timestamp>,
}

/// Part of a list, newest first.
#[derive(Clone, Debug)]
pub struct Page {
    /// The jobs.
    pub items: Vec<JobView>,
    /// Where the next part begins; none at the end.
    pub next_cursor: Option<String>,
}

struct JobRecord {
    id: Uuid,
    kind: String,
    queue: String,
    tenant: String,
    workspace_id: Option<Uuid>,
    keys: Vec<String>,
    args: serde_json::Value,
    priority: i16,
    state: Option<State>,
    wait: Option<Wait>,
    backing_off: bool,
    outcome: Option<Outcome>,
    attempt: i32,
    crashes: i32,
    snoozes: i32,
    max_attempts: i32,
    run_at: Timestamp,
    deadline_at: Timestamp,
    worker: Option<String>,
    progress: Option<serde_json::Value>,
    revision: i64,
    errors: serde_json::Value,
    trace_context: Option<String>,
    created_by: String,
    created_at: Timestamp,
    queued_at: Option<Timestamp>,
    started_at: Option<Timestamp>,
    finished_at: Option<Timestamp>,
    result: Option<serde_json::Value>,
}

impl JobRecord {
    /// What there is to explain about it, if it waits.
    fn waiter(&self) -> Option<Waiter> {
        let state = self.state.filter(|state| *state != State::Running)?;
        Some(Waiter {
            queue: self.queue.clone(),
            tenant: self.tenant.clone(),
            workspace_id: self.workspace_id.map(WorkspaceId),
            keys: self.keys.clone(),
            admitted: state == State::Queued,
            wait: self.wait,
            backing_off: self.backing_off,
            run_at: self.run_at,
            since: self.queued_at.unwrap_or(self.created_at),
        })
    }
}

/// A job by id, live or finished.
///
/// # Errors
/// [`LedgerError`].
pub async fn find_job(conn: &mut PgConnection, id: JobId) -> Result<Option<JobView>, LedgerError> {
    let mut record = find_live(conn, id).await?;
    if record.is_none() {
        record = find_finished(conn, id).await?;
    }
    if record.is_none() {
        // A retry may have brought it back in between.
        record = find_live(conn, id).await?;
    }
    let found = views(conn, record.into_iter().collect()).await?;
    Ok(found.into_iter().next())
}

async fn find_live(conn: &mut PgConnection, id: JobId) -> Result<Option<JobRecord>, LedgerError> {
    sqlx::query_as!(
        JobRecord,
        r#"SELECT id AS "id!", kind AS "kind!", queue AS "queue!", tenant AS "tenant!", workspace_id, keys AS "keys!", args AS "args!",
               priority AS "priority!", state AS "state: State", wait AS "wait: Wait", backing_off AS "backing_off!", NULL::job_outcome AS "outcome: Outcome",
               attempt AS "attempt!", crashes AS "crashes!", snoozes AS "snoozes!", max_attempts AS "max_attempts!", run_at AS "run_at!",
               deadline_at AS "deadline_at!", worker, progress, revision AS "revision!", errors AS "errors!", trace_context,
               created_by AS "created_by!", created_at AS "created_at!", queued_at, started_at, NULL::timestamptz AS finished_at, NULL::jsonb AS result
           FROM jobs WHERE id = $1"#,
        id.0
    )
    .fetch_optional(conn)
    .await
    .map_err(LedgerError::database("reading a job"))
}

/// Apart from the live ones: only to plan it takes longer than to read a live job, since the history has many partitions.
async fn find_finished(
    conn: &mut PgConnection,
    id: JobId,
) -> Result<Option<JobRecord>, LedgerError> {
    sqlx::query_as!(
        JobRecord,
        r#"SELECT id AS "id!", kind AS "kind!", queue AS "queue!", tenant AS "tenant!", workspace_id, keys AS "keys!", args AS "args!",
               priority AS "priority!", NULL::job_state AS "state: State", NULL::job_wait AS "wait: Wait", false AS "backing_off!",
               outcome AS "outcome?: Outcome", attempt AS "attempt!", crashes AS "crashes!", snoozes AS "snoozes!", max_attempts AS "max_attempts!",
               run_at AS "run_at!", deadline_at AS "deadline_at!", worker, progress, revision AS "revision!", errors AS "errors!", trace_context,
               created_by AS "created_by!", created_at AS "created_at!", NULL::timestamptz AS queued_at, started_at, finished_at AS "finished_at?", result
           FROM job_history WHERE id = $1"#,
        id.0
    )
    .fetch_optional(conn)
    .await
    .map_err(LedgerError::database("reading a finished job"))
}

/// What the runs of a live job have left for the next one; none of one that has ended.
///
/// # Errors
/// [`LedgerError`].
pub async fn find_checkpoint(
    conn: &mut PgConnection,
    id: JobId,
) -> Result<Option<serde_json::Value>, LedgerError> {
    let found = sqlx::query_scalar!("SELECT checkpoint FROM jobs WHERE id = $1", id.0)
        .fetch_optional(conn)
        .await
        .map_err(LedgerError::database("reading what a job's runs have left"))?;
    Ok(found.flatten())
}

/// Jobs that fit, newest first.
///
/// # Errors
/// [`LedgerError::Cursor`] for a cursor that is not one of ours.
pub async fn list_jobs(
    conn: &mut PgConnection,
    filter: &JobFilter,
    limit: i64,
    cursor: Option<&str>,
) -> Result<Page, LedgerError> {
    let before = cursor
        .map(|text| text.parse::<JobId>().map_err(|_| LedgerError::Cursor))
        .transpose()?;
    let mut records = sqlx::query_as!(
        JobRecord,
        r#"SELECT * FROM (
               (SELECT id AS "id!", kind AS "kind!", queue AS "queue!", tenant AS "tenant!", workspace_id, keys AS "keys!", args AS "args!",
                   priority AS "priority!", state AS "state: State", wait AS "wait: Wait", backing_off AS "backing_off!", NULL::job_outcome AS "outcome: Outcome",
                   attempt AS "attempt!", crashes AS "crashes!", snoozes AS "snoozes!", max_attempts AS "max_attempts!", run_at AS "run_at!",
                   deadline_at AS "deadline_at!", worker, progress, revision AS "revision!", errors AS "errors!", trace_context,
                   created_by AS "created_by!", created_at AS "created_at!", queued_at, started_at, NULL::timestamptz AS finished_at, NULL::jsonb AS result
               FROM jobs
               WHERE ($1::uuid IS NULL OR id < $1) AND ($2::text IS NULL OR queue = $2) AND ($3::text IS NULL OR kind = $3)
                 AND ($4::text IS NULL OR state::text = $4) AND ($5::uuid IS NULL OR workspace_id = $5) AND ($6::text IS NULL OR tenant = $6)
                 AND ($7::text IS NULL OR position(lower($7) IN lower(errors::text)) > 0)
                 AND ($8::timestamptz IS NULL OR created_at < $8) AND ($9::timestamptz IS NULL OR created_at > $9)
               ORDER BY id DESC LIMIT $10)
               UNION ALL
               (SELECT id, kind, queue, tenant, workspace_id, keys, args, priority, NULL, NULL, false, outcome, attempt, crashes, snoozes, max_attempts,
                   run_at, deadline_at, worker, progress, revision, errors, trace_context, created_by, created_at, NULL, started_at, finished_at, result
               FROM job_history
               WHERE ($1::uuid IS NULL OR id < $1) AND ($2::text IS NULL OR queue = $2) AND ($3::text IS NULL OR kind = $3)
                 AND ($4::text IS NULL OR outcome::text = $4) AND ($5::uuid IS NULL OR workspace_id = $5) AND ($6::text IS NULL OR tenant = $6)
                 AND ($7::text IS NULL OR position(lower($7) IN lower(errors::text)) > 0)
                 AND ($8::timestamptz IS NULL OR created_at < $8) AND ($9::timestamptz IS NULL OR created_at > $9)
               ORDER BY id DESC LIMIT $10)
           ) AS both_kinds ORDER BY 1 DESC LIMIT $10"#,
        before.map(|id| id.0),
        filter.queue,
        filter.kind,
        filter.state,
        filter.workspace_id.map(|id| id.0),
        filter.tenant,
        filter.error,
        filter.older_than,
        filter.newer_than,
        limit + 1,
    )
    .fetch_all(&mut *conn)
    .await
    .map_err(LedgerError::database("listing jobs"))?;
    let more = records.len() as i64 > limit;
    records.truncate(usize::try_from(limit).unwrap_or(0));
    let items = views(conn, records).await?;
    let next_cursor = items
        .last()
        .filter(|_| more)
        .map(|job: &JobView| job.id.to_string());
    Ok(Page { items, next_cursor })
}

async fn views(
    conn: &mut PgConnection,
    records: Vec<JobRecord>,
) -> Result<Vec<JobView>, LedgerError> {
    let waiters: Vec<Option<Waiter>> = records.iter().map(JobRecord::waiter).collect();
    let around = Surroundings::of(conn, &waiters.iter().flatten().collect::<Vec<_>>()).await?;
    let waiting = waiters
        .iter()
        .map(|waiter| waiter.as_ref().map(|waiter| waiter.explain(&around)));
    records
        .into_iter()
        .zip(waiting)
        .map(|(record, waiting)| view(record, waiting))
        .collect()
}

fn view(record: JobRecord, waiting: Option<Waiting>) -> Result<JobView, LedgerError> {
    let id = JobId(record.id);
    let unreadable = |what| LedgerError::Unreadable { id, what };
    let errors: Vec<JobFailure> =
        serde_json::from_value(record.errors).map_err(|_| unreadable("its error history"))?;
    let progress = record
        .progress
        .map(serde_json::from_value)
        .transpose()
        .map_err(|_| unreadable("its progress"))?;
    let state = match (record.state, record.outcome) {
        (_, Some(outcome)) => outcome.as_str(),
        (Some(State::Scheduled), _) => "scheduled",
        (Some(State::Queued), _) => "queued",
        (Some(State::Running), _) => "running",
        (None, None) => return Err(unreadable("its state")),
    };
    Ok(JobView {
        id,
        kind: record.kind,
        queue: record.queue,
        state,
        tenant: record.tenant,
        workspace_id: record.workspace_id.map(WorkspaceId),
        attempt: record.attempt,
        max_attempts: record.max_attempts,
        crashes: record.crashes,
        snoozes: record.snoozes,
        priority: record.priority,
        run_at: record.run_at,
        deadline_at: record.deadline_at,
        created_at: record.created_at,
        created_by: record.created_by,
        started_at: record.started_at,
        finished_at: record.finished_at,
        worker: record.worker,
        progress,
        waiting,
        result: record.result,
        last_error: errors.last().map(|failure| failure.error.clone()),
        errors,
        args: record.args,
        trace_id: record
            .trace_context
            .as_deref()
            .and_then(TraceContext::parse)
            .map(|trace| trace.trace_id().to_owned()),
        revision: record.revision,
    })
}

/// Whether a job of this kind about this workspace waits or runs.
///
/// # Errors
/// [`LedgerError::Database`].
pub async fn is_live(
    conn: &mut PgConnection,
    kind: &str,
    workspace_id: WorkspaceId,
) -> Result<bool, LedgerError> {
    sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT 1 FROM jobs WHERE workspace_id = $1 AND kind = $2) AS "live!""#,
        workspace_id.0,
        kind
    )
    .fetch_one(conn)
    .await
    .map_err(LedgerError::database(
        "looking for live jobs of a workspace",
    ))
}

/// The queues of a kind that live workers serve, those whose workers have beaten lately first: where a job of that kind
/// can run.
///
/// # Errors
/// [`LedgerError::Database`].
pub async fn served_queues(
    conn: &mut PgConnection,
    kind: &str,
) -> Result<Vec<String>, LedgerError> {
    sqlx::query_scalar!(
        r#"SELECT queue AS "queue!" FROM workers, unnest(queues) AS queue
           WHERE starts_with(queue, $1 || '@') AND NOT draining
           GROUP BY queue ORDER BY bool_or(last_beat_at > longshore_now() - interval '7 seconds') DESC, 1"#,
        kind
    )
    .fetch_all(conn)
    .await
    .map_err(LedgerError::database("looking for the queues of a kind"))
}

/// Those of the workspaces that some live job is about, or that one of several keys has or waits for; each workspace with its
/// key.
///
/// # Errors
/// [`LedgerError::Database`].
pub async fn list_busy(
    conn: &mut PgConnection,
    asked: &[(WorkspaceId, String)],
) -> Result<Vec<WorkspaceId>, LedgerError> {
    let (ids, keys): (Vec<_>, Vec<_>) = asked.iter().map(|(id, key)| (id.0, key.clone())).unzip();
    sqlx::query_scalar!(
        r#"SELECT id AS "id!: WorkspaceId" FROM unnest($1::uuid[], $2::text[]) AS asked (id, key)
           WHERE EXISTS (SELECT 1 FROM jobs WHERE jobs.workspace_id = asked.id)
              OR EXISTS (SELECT 1 FROM job_keys WHERE job_keys.key = asked.key)"#,
        &ids,
        &keys,
    )
    .fetch_all(conn)
    .await
    .map_err(LedgerError::database("asking which workspaces have jobs"))
}
