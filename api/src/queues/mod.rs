//! Queues: how they do, and what operators let through (`spec: operations` §2).
//!
//! A change is one transaction, with its event. After the commit the queues it opened are poked, and what it closed is
//! waited for: once it has been answered, nothing of the queue starts.

mod accept;
mod limits;
mod view;
pub(crate) mod weights;

use std::time::Duration;

use longshore_events::{append, names};
use longshore_ledger::control::{self, Mode, Scope, in_flight, queues_to_poke, settle};
use poem_openapi::param::{Path, Query};
use poem_openapi::payload::Json;
use poem_openapi::{ApiResponse, Object, OpenApi, Union};
use serde_json::json;

pub(crate) use self::accept::require_accepted;
use self::limits::UpdateQueueRequest;
use self::view::{Queue, QueueDetails};
use crate::auth::{AdminAccess, Principal};
use crate::body::JsonBody;
use crate::document::Tag;
use crate::operator::change_event;
use crate::paging;
use crate::problem::{ApiError, ApiResult};
use crate::reason::ChangeRequest;
use crate::state::{ApiState, Shared};

const FAILED: &str = "query failed";
const NOT_CHANGED: &str = "failed to change queue";
const LONGEST_WAIT: u64 = 300;

/// Part of the list of queues, by name.
#[derive(Object)]
pub(crate) struct QueueList {
    items: Vec<Queue>,
    /// Give it back as `cursor` for the next part; null at the end.
    #[oai(nullable)]
    next_cursor: Option<String>,
}

/// Nothing of the queue runs any more.
#[derive(Object)]
pub(crate) struct DrainedQueue {
    /// Always true.
    drained: bool,
}

/// Something of the queue still runs.
#[derive(Object)]
pub(crate) struct DrainingQueue {
    /// Always false.
    drained: bool,
    /// So many jobs.
    running: i64,
}

/// The queue, or with `wait` that it is drained.
#[derive(Union)]
#[expect(clippy::large_enum_variant, reason = "made once a request, never kept")]
pub(crate) enum DrainAnswer {
    Queue(QueueDetails),
    Drained(DrainedQueue),
}

#[derive(ApiResponse)]
#[expect(clippy::large_enum_variant, reason = "made once a request, never kept")]
pub(crate) enum DrainQueueResponse {
    /// Nothing of it starts any more; with `wait`, nothing of it runs any more.
    #[oai(status = 200)]
    Drained(Json<DrainAnswer>),
    /// Nothing of it starts any more; some of it still runs after the wait.
    #[oai(status = 202)]
    Draining(Json<DrainingQueue>),
}

pub(crate) struct QueuesApi;

#[OpenApi(tag = "Tag::Queues")]
impl QueuesApi {
    /// Lists the queues, one for each kind of job, by name.
    #[oai(path = "/queues", method = "get", operation_id = "list_queues")]
    async fn list_queues(
        &self,
        _access: AdminAccess,
        state: Shared<'_>,
        /// At most so many, 1 to 500.
        limit: Query<Option<i64>>,
        cursor: Query<Option<String>>,
    ) -> ApiResult<Json<QueueList>> {
        let limit = paging::limit(limit.0)?;
        let mut conn = state.connection(FAILED).await?;
        let all = control::queues(&mut conn, &state.kinds)
            .await
            .map_err(|error| ApiError::ledger(error, FAILED))?;
        let (items, next_cursor) =
            paging::part(all, |queue| queue.name.clone(), limit, cursor.0.as_deref());
        Ok(Json(QueueList {
            items: items.into_iter().map(Queue::from).collect(),
            next_cursor,
        }))
    }

    /// Shows a queue with its places, and with the organisations that wait longest.
    #[oai(path = "/queues/:name", method = "get", operation_id = "get_queue")]
    async fn get_queue(
        &self,
        _access: AdminAccess,
        state: Shared<'_>,
        name: Path<String>,
    ) -> ApiResult<Json<QueueDetails>> {
        find_queue(&state, &name.0)?;
        load(&state, &name.0, FAILED).await.map(Json)
    }

    /// Pauses a queue: nothing of it starts any more, what runs goes on.
    #[oai(
        path = "/queues/:name/pause",
        method = "post",
        operation_id = "pause_queue"
    )]
    async fn pause_queue(
        &self,
        access: AdminAccess,
        state: Shared<'_>,
        name: Path<String>,
        body: JsonBody<ChangeRequest>,
    ) -> ApiResult<Json<QueueDetails>> {
        close(&state, &access.0, &name.0, Mode::Pause, body.0)
            .await
            .map(Json)
    }

    /// Drains a queue: nothing of it starts any more. With `wait` the answer comes when nothing of it runs any more.
    #[oai(
        path = "/queues/:name/drain",
        method = "post",
        operation_id = "drain_queue"
    )]
    async fn drain_queue(
        &self,
        access: AdminAccess,
        state: Shared<'_>,
        name: Path<String>,
        /// Waits at most so many seconds, 0 to 300.
        wait: Query<Option<u64>>,
        body: JsonBody<ChangeRequest>,
    ) -> ApiResult<DrainQueueResponse> {
        if wait.0.is_some_and(|seconds| seconds > LONGEST_WAIT) {
            return Err(ApiError::bad_request("wait must be from 0 to 300"));
        }
        let queue = close(&state, &access.0, &name.0, Mode::Drain, body.0).await?;
        let Some(patience) = wait.0.map(Duration::from_secs) else {
            return Ok(DrainQueueResponse::Drained(Json(DrainAnswer::Queue(queue))));
        };
        // A server that leaves waits for nobody.
        let running = tokio::select! {
            running = in_flight(&state.pools.work, &name.0, patience) => running,
            () = state.closing.cancelled() => in_flight(&state.pools.work, &name.0, Duration::ZERO).await,
        };
        let running = running.map_err(|error| ApiError::ledger(error, NOT_CHANGED))?;
        Ok(if running == 0 {
            let drained = DrainedQueue { drained: true };
            DrainQueueResponse::Drained(Json(DrainAnswer::Drained(drained)))
        } else {
            DrainQueueResponse::Draining(Json(DrainingQueue {
                drained: false,
                running,
            }))
        })
    }

    /// Closes a queue: as when it is paused, and requests that would need it are refused with 503.
    #[oai(
        path = "/queues/:name/reject",
        method = "post",
        operation_id = "reject_queue"
    )]
    async fn reject_queue(
        &self,
        access: AdminAccess,
        state: Shared<'_>,
        name: Path<String>,
        body: JsonBody<ChangeRequest>,
    ) -> ApiResult<Json<QueueDetails>> {
        close(&state, &access.0, &name.0, Mode::Reject, body.0)
            .await
            .map(Json)
    }

    /// Lets a queue run again.
    #[oai(
        path = "/queues/:name/resume",
        method = "post",
        operation_id = "resume_queue"
    )]
    async fn resume_queue(
        &self,
        access: AdminAccess,
        state: Shared<'_>,
        name: Path<String>,
        body: JsonBody<ChangeRequest>,
    ) -> ApiResult<Json<QueueDetails>> {
        resume(&state, &access.0, &name.0, body.0).await.map(Json)
    }

    /// Changes how much of a queue may run. Limits that are not named stay as they are; null removes one.
    #[oai(
        path = "/queues/:name",
        method = "patch",
        operation_id = "update_queue"
    )]
    async fn update_queue(
        &self,
        access: AdminAccess,
        state: Shared<'_>,
        name: Path<String>,
        body: JsonBody<UpdateQueueRequest>,
    ) -> ApiResult<Json<QueueDetails>> {
        find_queue(&state, &name.0)?;
        limits::change(&state, &access.0, &name.0, body.0).await?;
        load(&state, &name.0, NOT_CHANGED).await.map(Json)
    }
}

/// The name of a queue that there is.
///
/// # Errors
/// 404 that names those there are.
pub(crate) fn find_queue(state: &ApiState, name: &str) -> ApiResult<&'static str> {
    match state.kinds.find(name) {
        Some(kind) => Ok(kind.name),
        None => Err(ApiError::not_found("queue not found").detail(format!(
            "no queue is named {name}; there are: {}",
            queue_names(state)
        ))),
    }
}

/// The queues there are, for people.
pub(crate) fn queue_names(state: &ApiState) -> String {
    let names: Vec<_> = state.kinds.iter().map(|kind| kind.name).collect();
    names.join(", ")
}

async fn load(state: &ApiState, name: &str, failed: &'static str) -> ApiResult<QueueDetails> {
    let mut conn = state.connection(failed).await?;
    control::queue(&mut conn, &state.kinds, name)
        .await
        .map_err(|error| ApiError::ledger(error, failed))?
        .map(QueueDetails::from)
        .ok_or_else(|| ApiError::not_found("queue not found"))
}

async fn close(
    state: &ApiState,
    caller: &Principal,
    name: &str,
    mode: Mode,
    request: ChangeRequest,
) -> ApiResult<QueueDetails> {
    let ledger = |error| ApiError::ledger(error, NOT_CHANGED);
    let queue = find_queue(state, name)?;
    let reason = request.reason()?;
    let by = caller.name();
    let mut tx = state.transaction(NOT_CHANGED).await?;
    let changed = control::set_mode(&mut tx, queue, mode, reason.as_deref(), &by)
        .await
        .map_err(ledger)?;
    if changed.changed {
        let event = match mode {
            Mode::Pause => names::QUEUE_PAUSED,
            Mode::Drain => names::QUEUE_DRAINING,
            Mode::Reject => names::QUEUE_REJECTING,
        };
        let what = json!({ "scope": Scope::Queue, "value": queue, "mode": mode });
        append(&mut tx, change_event(event, what, &by, reason.as_deref()))
            .await
            .map_err(|error| ApiError::internal(NOT_CHANGED, error))?;
    }
    commit_and_poke(state, tx, &changed.pokes).await?;
    settle(&state.pools.work, Scope::Queue, queue)
        .await
        .map_err(ledger)?;
    load(state, queue, NOT_CHANGED).await
}

async fn resume(
    state: &ApiState,
    caller: &Principal,
    name: &str,
    request: ChangeRequest,
) -> ApiResult<QueueDetails> {
    let ledger = |error| ApiError::ledger(error, NOT_CHANGED);
    let queue = find_queue(state, name)?;
    let reason = request.reason()?;
    let by = caller.name();
    let mut tx = state.transaction(NOT_CHANGED).await?;
    let was = control::resume(&mut tx, queue, &by).await.map_err(ledger)?;
    if let Some(was) = was {
        let what = json!({ "scope": Scope::Queue, "value": queue, "mode": "run", "was": was.mode });
        let event = change_event(names::QUEUE_RESUMED, what, &by, reason.as_deref());
        append(&mut tx, event)
            .await
            .map_err(|error| ApiError::internal(NOT_CHANGED, error))?;
    }
    let pokes = queues_to_poke(&mut tx, Some(queue)).await.map_err(ledger)?;
    commit_and_poke(state, tx, &pokes).await?;
    load(state, queue, NOT_CHANGED).await
}

/// Commits a change, tells of its event, and lets admission look at what it opened.
///
/// # Errors
/// The commit failed.
pub(crate) async fn commit_and_poke(
    state: &ApiState,
    tx: sqlx::Transaction<'static, sqlx::Postgres>,
    queues: &[String],
) -> ApiResult<()> {
    tx.commit()
        .await
        .map_err(|error| ApiError::database(error, NOT_CHANGED))?;
    state.poke(queues);
    Ok(())
}
