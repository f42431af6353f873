//! Reading jobs, live and finished, as operators and owners see them (`spec: operations` §1).

use longshore_base::{JobId, Timestamp, WorkspaceId};
use serde::Serialize;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::LedgerError;
use crate::control::{Mode, Scope, Subject, open_controls, split_queue};
use crate::job::{Outcome, Progress, State, Wait};

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
    /// The trace it belongs to.
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

/// Why a job is not running.
#[derive(Clone, Debug, Serialize)]
pub struct Waiting {
    /// `time`, `key`, `limit`, `paused`, `drained`, `held`, `no_worker`, `backing_off` or `admitted`.
    pub reason: &'static str,
    /// The same for people.
    pub text: String,
    /// Since when.
    pub since: Timestamp,
    /// Until when, where that is known.
    pub until: Option<Timestamp>,
    /// The job that holds its key.
    pub behind: Option<JobId>,
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

/// A job by id, live or finished.
///
/// # Errors
/// [`LedgerError`].
pub async fn find_job(conn: &mut PgConnection, id: JobId) -> Result<Option<JobView>, LedgerError> {
    let record = sqlx::query_as!(
        JobRecord,
        r#"SELECT id AS "id!", kind AS "kind!", queue AS "queue!", tenant AS "tenant!", workspace_id, keys AS "keys!", args AS "args!",
               priority AS "priority!", state AS "state: State", wait AS "wait: Wait", backing_off AS "backing_off!", NULL::job_outcome AS "outcome: Outcome",
               attempt AS "attempt!", crashes AS "crashes!", snoozes AS "snoozes!", max_attempts AS "max_attempts!", run_at AS "run_at!",
               deadline_at AS "deadline_at!", worker, progress, revision AS "revision!", errors AS "errors!", trace_context,
               created_by AS "created_by!", created_at AS "created_at!", queued_at, started_at, NULL::timestamptz AS finished_at, NULL::jsonb AS result
           FROM jobs WHERE id = $1
           UNION ALL
           SELECT id, kind, queue, tenant, workspace_id, keys, args, priority, NULL, NULL, false, outcome, attempt, crashes, snoozes, max_attempts,
               run_at, deadline_at, worker, progress, revision, errors, trace_context, created_by, created_at, NULL, started_at, finished_at, result
           FROM job_history WHERE id = $1
           LIMIT 1"#,
        id.0
    )
    .fetch_optional(&mut *conn)
    .await
    .map_err(LedgerError::database("reading a job"))?;
    match record {
        Some(record) => view(conn, record).await.map(Some),
        None => Ok(None),
    }
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
    let records = sqlx::query_as!(
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
    let mut items = Vec::with_capacity(records.len());
    for record in records
        .into_iter()
        .take(usize::try_from(limit).unwrap_or(0))
    {
        items.push(view(conn, record).await?);
    }
    let next_cursor = items
        .last()
        .filter(|_| more)
        .map(|job: &JobView| job.id.to_string());
    Ok(Page { items, next_cursor })
}

async fn view(conn: &mut PgConnection, record: JobRecord) -> Result<JobView, LedgerError> {
    let id = JobId(record.id);
    let unreadable = |what| LedgerError::Unreadable { id, what };
    let errors: Vec<JobFailure> = serde_json::from_value(record.errors.clone())
        .map_err(|_| unreadable("its error history"))?;
    let progress = record
        .progress
        .clone()
        .map(serde_json::from_value)
        .transpose()
        .map_err(|_| unreadable("its progress"))?;
    let waiting = waiting(conn, &record).await?;
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
        trace_id: record.trace_context,
        revision: record.revision,
    })
}

async fn waiting(
    conn: &mut PgConnection,
    record: &JobRecord,
) -> Result<Option<Waiting>, LedgerError> {
    let Some(state) = record.state.filter(|state| *state != State::Running) else {
        return Ok(None);
    };
    let since = record.queued_at.unwrap_or(record.created_at);
    let simple = |reason, text: String| Waiting {
        reason,
        text,
        since,
        until: None,
        behind: None,
    };
    if let (State::Scheduled, Some(Wait::Time)) = (state, record.wait) {
        let until = Some(record.run_at);
        let at = record.run_at.format("%H:%M:%S UTC");
        return Ok(Some(if record.backing_off {
            Waiting {
                until,
                ..simple(
                    "backing_off",
                    format!("waiting: it failed and is tried again at {at}"),
                )
            }
        } else {
            Waiting {
                until,
                ..simple("time", format!("waiting: not due before {at}"))
            }
        }));
    }
    if let (State::Scheduled, Some(Wait::Key)) = (state, record.wait) {
        let behind = sqlx::query_scalar!(
            "SELECT job_id FROM job_slots WHERE key = ANY($1) LIMIT 1",
            &record.keys
        )
        .fetch_optional(&mut *conn)
        .await
        .map_err(LedgerError::database("reading who holds a key"))?
        .map(JobId);
        let text = match behind {
            Some(job) => format!("waiting: behind job {job} of the same workspace"),
            None => "waiting: behind another job of the same workspace".to_owned(),
        };
        return Ok(Some(Waiting {
            behind,
            ..simple("key", text)
        }));
    }
    let (kind, place) = split_queue(&record.queue);
    let subject = Subject {
        kind,
        place,
        tenant: &record.tenant,
        workspace_id: record.workspace_id.map(WorkspaceId),
    };
    let controls = open_controls(&mut *conn).await?;
    if let Some(control) = subject.closed_by(&controls) {
        let reason = match (control.scope, control.mode) {
            (Scope::Queue, Mode::Drain) => "drained",
            (Scope::Queue, _) => "paused",
            _ => "held",
        };
        return Ok(Some(Waiting {
            reason,
            text: format!("waiting: {}", control.text()),
            since: control.since.max(since),
            until: control.until,
            behind: None,
        }));
    }
    let served = sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT 1 FROM workers WHERE $1 = ANY(queues)) AS "served!""#,
        record.queue
    )
    .fetch_one(&mut *conn)
    .await
    .map_err(LedgerError::database("reading who serves a queue"))?;
    Ok(Some(match (served, state) {
        (false, _) => simple(
            "no_worker",
            format!("waiting: no worker serves queue {}", record.queue),
        ),
        (true, State::Queued) => simple(
            "admitted",
            "waiting: admitted, the next free worker takes it".to_owned(),
        ),
        (true, _) => simple(
            "limit",
            format!("waiting: its turn in queue {}", record.queue),
        ),
    }))
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
