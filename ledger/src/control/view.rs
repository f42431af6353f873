//! Queues, holds and workers as operators see them (`spec: operations` §2, §3). For the work pool: these statements
//! read a lot.

use longshore_base::{JobId, Timestamp, WorkspaceId};
use serde::Serialize;
use sqlx::PgConnection;
use uuid::Uuid;

use super::{Control, Limits, Mode, Scope, open_controls};
use crate::{Kinds, LedgerError, Outcome, Policy};

/// Tenants shown of one queue: those that have waited longest.
const TENANTS_SHOWN: i64 = 20;
/// A worker silent for this long is shown as lost; its peers are about to declare it dead.
const LOST_AFTER_SECONDS: f64 = 10.0;

/// A queue (a kind), its places folded in.
#[derive(Clone, Debug)]
pub struct QueueView {
    /// Its name: the kind.
    pub name: String,
    /// Its control; none while it runs.
    pub control: Option<Control>,
    /// Jobs that wait in the ledger.
    pub waiting: i64,
    /// Jobs a worker may take at any moment.
    pub admitted: i64,
    /// Jobs claimed or running.
    pub running: i64,
    /// Dead jobs in the history.
    pub dead: i64,
    /// Age of the oldest job that waits for nothing but its turn, in seconds.
    pub oldest_waiting_seconds: Option<f64>,
    /// Jobs that ended well in the last minute.
    pub done_per_minute: i64,
    /// Jobs that died in the last minute.
    pub failed_per_minute: i64,
    /// What an operator allows at most.
    pub limits: Limits,
    /// How its kind is tried again.
    pub policy: Policy,
    /// Workers that read one of its places.
    pub workers: i64,
}

/// One place of a queue.
#[derive(Clone, Debug, Serialize)]
pub struct QueuePlace {
    /// The queue's whole name: kind and engine.
    pub queue: String,
    /// Jobs that wait in the ledger.
    pub waiting: i64,
    /// Jobs a worker may take at any moment.
    pub admitted: i64,
    /// Jobs claimed or running.
    pub running: i64,
    /// Workers that read it.
    pub workers: i64,
}

/// How long a tenant's oldest job has waited for its turn.
#[derive(Clone, Debug, Serialize)]
pub struct TenantWait {
    /// The organisation root.
    pub tenant: String,
    /// Its turns for each one of a tenant without a weight.
    pub weight: i16,
    /// Its jobs that wait for nothing but their turn.
    pub waiting: i64,
    /// Age of the oldest of them, in seconds.
    pub oldest_waiting_seconds: f64,
}

/// A queue with its places and its most patient tenants.
#[derive(Clone, Debug)]
pub struct QueueDetail {
    /// The same as in the list.
    pub view: QueueView,
    /// Its places, by name.
    pub places: Vec<QueuePlace>,
    /// Tenants by their longest wait, twenty at most.
    pub tenants: Vec<TenantWait>,
}

/// A hold, open or ended.
#[derive(Clone, Debug, Serialize)]
pub struct Hold {
    /// Its id.
    pub id: Uuid,
    /// What is held.
    pub scope: Scope,
    /// Which one; empty for all.
    pub value: String,
    /// How.
    pub mode: Mode,
    /// Why.
    pub reason: Option<String>,
    /// Who set it.
    pub set_by: String,
    /// Since when.
    pub since: Timestamp,
    /// Until when, if it lifts itself.
    pub until: Option<Timestamp>,
}

/// A run of a worker.
#[derive(Clone, Debug, Serialize, serde::Deserialize)]
pub struct WorkerRun {
    /// The job.
    pub job_id: JobId,
    /// Its kind.
    pub kind: String,
    /// The workspace it is about.
    pub workspace_id: Option<WorkspaceId>,
    /// Since when; for one that waits for its turn in quarantine, since it was admitted.
    pub since: Timestamp,
}

/// A worker process.
#[derive(Clone, Debug, Serialize)]
pub struct WorkerView {
    /// Its name, never used before.
    pub name: String,
    /// The host it says it is on.
    pub host: String,
    /// The version it runs.
    pub version: String,
    /// Since when it is there.
    pub started_at: Timestamp,
    /// Its last beat.
    pub last_beat_at: Timestamp,
    /// `up`, `draining` or `lost`.
    pub state: &'static str,
    /// What it reads.
    pub queues: Vec<String>,
    /// The engine whose containers it runs.
    pub engine_id: Option<String>,
    /// Runs it can have at once.
    pub slots: i32,
    /// What it runs.
    pub running: Vec<WorkerRun>,
}

/// All queues, by name.
///
/// # Errors
/// [`LedgerError::Database`].
pub async fn queues(conn: &mut PgConnection, kinds: &Kinds) -> Result<Vec<QueueView>, LedgerError> {
    let live = sqlx::query!(
        r#"SELECT kind, count(*) FILTER (WHERE state = 'scheduled') AS "waiting!",
                  count(*) FILTER (WHERE state = 'queued') AS "admitted!", count(*) FILTER (WHERE state = 'running') AS "running!",
                  extract(epoch FROM longshore_now() - min(greatest(created_at, run_at)) FILTER (WHERE state <> 'running' AND wait <> 'time'))::float8 AS oldest
           FROM jobs GROUP BY kind"#
    )
    .fetch_all(&mut *conn)
    .await
    .map_err(LedgerError::database("counting live jobs"))?;
    let ended = sqlx::query!(
        r#"SELECT kind, outcome AS "outcome: Outcome", count(*) AS "count!" FROM job_history
           WHERE finished_at > longshore_now() - interval '1 minute' GROUP BY 1, 2"#
    )
    .fetch_all(&mut *conn)
    .await
    .map_err(LedgerError::database("counting what ended lately"))?;
    let dead = sqlx::query!(
        r#"SELECT kind, count(*) AS "count!" FROM job_history WHERE outcome = 'dead' GROUP BY 1"#
    )
    .fetch_all(&mut *conn)
    .await
    .map_err(LedgerError::database("counting dead jobs"))?;
    let limits = sqlx::query!(
        "SELECT queue, max_running, max_per_worker, rate_per_minute FROM queue_limits"
    )
    .fetch_all(&mut *conn)
    .await
    .map_err(LedgerError::database("reading limits"))?;
    let workers = sqlx::query!(
        r#"SELECT split_part(queue, '@', 1) AS "kind!", count(DISTINCT name) AS "count!" FROM workers, unnest(queues) AS queue GROUP BY 1"#
    )
    .fetch_all(&mut *conn)
    .await
    .map_err(LedgerError::database("counting workers"))?;
    let controls = open_controls(conn).await?;
    let count_ended = |name: &str, outcome| {
        ended
            .iter()
            .find(|row| row.kind == name && row.outcome == outcome)
            .map_or(0, |row| row.count)
    };
    Ok(kinds
        .iter()
        .map(|kind| {
            let counts = live.iter().find(|row| row.kind == kind.name);
            QueueView {
                name: kind.name.to_owned(),
                control: controls
                    .iter()
                    .find(|control| control.scope == Scope::Queue && control.value == kind.name)
                    .cloned(),
                waiting: counts.map_or(0, |row| row.waiting),
                admitted: counts.map_or(0, |row| row.admitted),
                running: counts.map_or(0, |row| row.running),
                dead: dead
                    .iter()
                    .find(|row| row.kind == kind.name)
                    .map_or(0, |row| row.count),
                oldest_waiting_seconds: counts.and_then(|row| row.oldest).map(|age| age.max(0.0)),
                done_per_minute: count_ended(kind.name, Outcome::Succeeded),
                failed_per_minute: count_ended(kind.name, Outcome::Dead),
                limits: limits
                    .iter()
                    .find(|row| row.queue == kind.name)
                    .map_or_else(Limits::default, |row| Limits {
                        max_running: row.max_running,
                        max_per_worker: row.max_per_worker,
                        rate_per_minute: row.rate_per_minute,
                    }),
                policy: kind.policy,
                workers: workers
                    .iter()
                    .find(|row| row.kind == kind.name)
                    .map_or(0, |row| row.count),
            }
        })
        .collect())
}

/// One queue with its places and tenants; `None` when no kind has that name.
///
/// # Errors
/// [`LedgerError::Database`].
pub async fn queue(
    conn: &mut PgConnection,
    kinds: &Kinds,
    name: &str,
) -> Result<Option<QueueDetail>, LedgerError> {
    let found = queues(&mut *conn, kinds).await?;
    let Some(view) = found.into_iter().find(|queue| queue.name == name) else {
        return Ok(None);
    };
    let places = sqlx::query_as!(
        QueuePlace,
        r#"WITH served AS (
               SELECT queue, count(*) AS workers FROM workers, unnest(queues) AS queue WHERE split_part(queue, '@', 1) = $1 GROUP BY 1
           ), live AS (
               SELECT queue, count(*) FILTER (WHERE state = 'scheduled') AS waiting, count(*) FILTER (WHERE state = 'queued') AS admitted,
                   count(*) FILTER (WHERE state = 'running') AS running
               FROM jobs WHERE kind = $1 GROUP BY 1
           )
           SELECT queue AS "queue!", coalesce(waiting, 0) AS "waiting!", coalesce(admitted, 0) AS "admitted!",
               coalesce(running, 0) AS "running!", coalesce(workers, 0) AS "workers!"
           FROM live FULL JOIN served USING (queue) ORDER BY 1"#,
        name
    )
    .fetch_all(&mut *conn)
    .await
    .map_err(LedgerError::database("reading the places of a queue"))?;
    let tenants = sqlx::query_as!(
        TenantWait,
        r#"SELECT tenant, coalesce((SELECT weight FROM tenant_weights WHERE tenant_weights.tenant = jobs.tenant), 1::smallint) AS "weight!",
               count(*) AS "waiting!",
               greatest(0, extract(epoch FROM longshore_now() - min(greatest(created_at, run_at))))::float8 AS "oldest_waiting_seconds!"
           FROM jobs WHERE kind = $1 AND state <> 'running' AND wait <> 'time'
           GROUP BY tenant ORDER BY 4 DESC, 1 LIMIT $2"#,
        name,
        TENANTS_SHOWN
    )
    .fetch_all(&mut *conn)
    .await
    .map_err(LedgerError::database("reading the tenants of a queue"))?;
    Ok(Some(QueueDetail {
        view,
        places,
        tenants,
    }))
}

/// The open holds, oldest first.
///
/// # Errors
/// [`LedgerError::Database`].
pub async fn holds(conn: &mut PgConnection) -> Result<Vec<Hold>, LedgerError> {
    sqlx::query_as!(
        Hold,
        r#"SELECT id, scope AS "scope: Scope", value, mode AS "mode: Mode", reason, set_by, since, until FROM queue_controls
           WHERE scope <> 'queue' AND ended_at IS NULL AND (until IS NULL OR until > longshore_now()) ORDER BY since, id"#
    )
    .fetch_all(conn)
    .await
    .map_err(LedgerError::database("reading holds"))
}

/// An open hold.
///
/// # Errors
/// [`LedgerError::Database`].
pub async fn hold(conn: &mut PgConnection, id: Uuid) -> Result<Option<Hold>, LedgerError> {
    Ok(holds(conn).await?.into_iter().find(|hold| hold.id == id))
}

/// All workers, by name.
///
/// # Errors
/// [`LedgerError::Database`], [`LedgerError::Unreadable`] never.
pub async fn workers(conn: &mut PgConnection) -> Result<Vec<WorkerView>, LedgerError> {
    find_workers(conn, None).await
}

/// One worker by its name.
///
/// # Errors
/// [`LedgerError::Database`].
pub async fn worker(
    conn: &mut PgConnection,
    name: &str,
) -> Result<Option<WorkerView>, LedgerError> {
    Ok(find_workers(conn, Some(name)).await?.into_iter().next())
}

async fn find_workers(
    conn: &mut PgConnection,
    name: Option<&str>,
) -> Result<Vec<WorkerView>, LedgerError> {
    let rows = sqlx::query!(
        r#"SELECT name, host, version, started_at, last_beat_at, draining, queues, engine_id, slots,
               last_beat_at < longshore_now() - $2::float8 * interval '1 second' AS "lost!"
           FROM workers WHERE $1::text IS NULL OR name = $1 ORDER BY name"#,
        name,
        LOST_AFTER_SECONDS,
    )
    .fetch_all(&mut *conn)
    .await
    .map_err(LedgerError::database("reading workers"))?;
    let runs = sqlx::query!(
        r#"SELECT worker AS "worker!", id, kind, workspace_id, coalesce(started_at, queued_at, created_at) AS "since!" FROM jobs
           WHERE state = 'running' AND ($1::text IS NULL OR worker = $1) ORDER BY 5, id"#,
        name
    )
    .fetch_all(conn)
    .await
    .map_err(LedgerError::database("reading what workers run"))?;
    let mut views: Vec<WorkerView> = rows
        .into_iter()
        .map(|row| WorkerView {
            state: match (row.lost, row.draining) {
                (true, _) => "lost",
                (false, true) => "draining",
                (false, false) => "up",
            },
            name: row.name,
            host: row.host,
            version: row.version,
            started_at: row.started_at,
            last_beat_at: row.last_beat_at,
            queues: row.queues,
            engine_id: row.engine_id,
            slots: row.slots,
            running: Vec::new(),
        })
        .collect();
    for run in runs {
        if let Some(view) = views.iter_mut().find(|view| view.name == run.worker) {
            view.running.push(WorkerRun {
                job_id: JobId(run.id),
                kind: run.kind,
                workspace_id: run.workspace_id.map(WorkspaceId),
                since: run.since,
            });
        }
    }
    Ok(views)
}

/// Tells a worker process to take no more, or to take again; it learns of it with its next beat. `false`: no such worker.
///
/// # Errors
/// [`LedgerError::Database`].
pub async fn set_draining(
    tx: &mut PgConnection,
    name: &str,
    draining: bool,
) -> Result<bool, LedgerError> {
    let row = sqlx::query!(
        "UPDATE workers SET draining = $2 WHERE name = $1",
        name,
        draining
    )
    .execute(tx)
    .await
    .map_err(LedgerError::database(
        "changing whether a worker takes jobs",
    ))?;
    Ok(row.rows_affected() == 1)
}
