//! Workers: who they are, what they run, and whether they take more (`spec: operations` §3).

use longshore_base::Timestamp;
use longshore_events::{append, names};
use longshore_ledger::control::{self, WorkerRun, WorkerView, set_draining};
use poem_openapi::param::{Path, Query};
use poem_openapi::payload::Json;
use poem_openapi::{Object, OpenApi};
use serde_json::json;
use uuid::Uuid;

use crate::auth::{AdminAccess, Principal};
use crate::body::JsonBody;
use crate::document::Tag;
use crate::operator::change_event;
use crate::paging;
use crate::problem::{ApiError, ApiResult};
use crate::reason::ChangeRequest;
use crate::state::{ApiState, Shared};

const FAILED: &str = "query failed";
const NOT_CHANGED: &str = "failed to change worker";

/// A worker process.
#[derive(Object)]
pub(crate) struct Worker {
    name: String,
    host: String,
    version: String,
    started_at: Timestamp,
    last_beat_at: Timestamp,
    /// `up`, `draining` or `lost`.
    state: String,
    /// What it reads.
    queues: Vec<String>,
    /// The engine whose containers it runs.
    #[oai(nullable)]
    engine: Option<WorkerEngine>,
    slots: WorkerSlots,
    running: Vec<RunningJob>,
}

/// A worker's engine.
#[derive(Object)]
pub(crate) struct WorkerEngine {
    id: String,
    #[oai(nullable)]
    version: Option<String>,
}

/// Runs a worker can have at once.
#[derive(Object)]
pub(crate) struct WorkerSlots {
    total: i32,
    free: i32,
}

/// What a worker runs.
#[derive(Object)]
pub(crate) struct RunningJob {
    job_id: Uuid,
    kind: String,
    #[oai(nullable)]
    workspace_id: Option<Uuid>,
    since: Timestamp,
}

/// Part of the list of workers, by name.
#[derive(Object)]
pub(crate) struct WorkerList {
    items: Vec<Worker>,
    /// Give it back as `cursor` for the next part; null at the end.
    #[oai(nullable)]
    next_cursor: Option<String>,
}

pub(crate) struct WorkersApi;

#[OpenApi(tag = "Tag::Workers")]
impl WorkersApi {
    /// Lists the workers by name.
    #[oai(path = "/workers", method = "get", operation_id = "list_workers")]
    async fn list_workers(
        &self,
        _access: AdminAccess,
        state: Shared<'_>,
        /// At most so many, 1 to 500.
        limit: Query<Option<i64>>,
        cursor: Query<Option<String>>,
    ) -> ApiResult<Json<WorkerList>> {
        let limit = paging::limit(limit.0)?;
        let mut conn = state.connection(FAILED).await?;
        let all = control::workers(&mut conn)
            .await
            .map_err(|error| ApiError::ledger(error, FAILED))?;
        let (items, next_cursor) = paging::part(
            all,
            |worker| worker.name.clone(),
            limit,
            cursor.0.as_deref(),
        );
        Ok(Json(WorkerList {
            items: items.into_iter().map(Worker::from).collect(),
            next_cursor,
        }))
    }

    /// Shows a worker.
    #[oai(path = "/workers/:name", method = "get", operation_id = "get_worker")]
    async fn get_worker(
        &self,
        _access: AdminAccess,
        state: Shared<'_>,
        name: Path<String>,
    ) -> ApiResult<Json<Worker>> {
        let mut conn = state.connection(FAILED).await?;
        let found = control::worker(&mut conn, &name.0)
            .await
            .map_err(|error| ApiError::ledger(error, FAILED))?;
        Ok(Json(found.ok_or_else(not_found)?.into()))
    }

    /// Lets a worker finish what it runs and take nothing more, until it is undrained or its process ends.
    #[oai(
        path = "/workers/:name/drain",
        method = "post",
        operation_id = "drain_worker"
    )]
    async fn drain_worker(
        &self,
        access: AdminAccess,
        state: Shared<'_>,
        name: Path<String>,
        body: JsonBody<ChangeRequest>,
    ) -> ApiResult<Json<Worker>> {
        change(&state, &access.0, &name.0, true, body.0).await
    }

    /// Lets a drained worker take jobs again.
    #[oai(
        path = "/workers/:name/undrain",
        method = "post",
        operation_id = "undrain_worker"
    )]
    async fn undrain_worker(
        &self,
        access: AdminAccess,
        state: Shared<'_>,
        name: Path<String>,
        body: JsonBody<ChangeRequest>,
    ) -> ApiResult<Json<Worker>> {
        change(&state, &access.0, &name.0, false, body.0).await
    }
}

async fn change(
    state: &ApiState,
    caller: &Principal,
    name: &str,
    draining: bool,
    request: ChangeRequest,
) -> ApiResult<Json<Worker>> {
    let ledger = |error| ApiError::ledger(error, NOT_CHANGED);
    let reason = request.reason()?;
    let by = caller.name();
    let mut tx = state.transaction(NOT_CHANGED).await?;
    let before = control::worker(&mut tx, name).await.map_err(ledger)?;
    if !set_draining(&mut tx, name, draining)
        .await
        .map_err(ledger)?
    {
        return Err(not_found());
    }
    let after = control::worker(&mut tx, name).await.map_err(ledger)?;
    let after = after.ok_or_else(not_found)?;
    if before.is_some_and(|before| before.state != after.state) {
        let event = if draining {
            names::WORKER_DRAINING
        } else {
            names::WORKER_UNDRAINED
        };
        let what = json!({ "worker": name });
        append(&mut tx, change_event(event, what, &by, reason.as_deref()))
            .await
            .map_err(|error| ApiError::internal(NOT_CHANGED, error))?;
    }
    tx.commit()
        .await
        .map_err(|error| ApiError::database(error, NOT_CHANGED))?;
    state.bus.poke();
    Ok(Json(after.into()))
}

fn not_found() -> ApiError {
    ApiError::not_found("worker not found")
}

impl From<WorkerView> for Worker {
    fn from(view: WorkerView) -> Self {
        let busy = i32::try_from(view.running.len()).unwrap_or(i32::MAX);
        Self {
            name: view.name,
            host: view.host,
            version: view.version,
            started_at: view.started_at,
            last_beat_at: view.last_beat_at,
            state: view.state.to_owned(),
            queues: view.queues,
            engine: view.engine_id.map(|id| WorkerEngine { id, version: None }),
            slots: WorkerSlots {
                total: view.slots,
                free: view.slots.saturating_sub(busy).max(0),
            },
            running: view.running.into_iter().map(RunningJob::from).collect(),
        }
    }
}

impl From<WorkerRun> for RunningJob {
    fn from(run: WorkerRun) -> Self {
        Self {
            job_id: run.job_id.0,
            kind: run.kind,
            workspace_id: run.workspace_id.map(|id| id.0),
            since: run.since,
        }
    }
}
