//! What happened, and what happens in one workspace (`spec: rest-api` §6.9, §5.4).

use std::sync::Arc;

use longshore_base::{Timestamp, WorkspaceId};
use longshore_events::{
    Filter, Message, Position, Received, STREAM_BUFFER, list_events, list_events_after,
};
use poem_openapi::param::{Header, Path};
use poem_openapi::payload::Json;
use poem_openapi::types::Any;
use poem_openapi::{Object, OpenApi};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::auth::{AdminAccess, WorkspaceAccess};
use crate::document::Tag;
use crate::problem::{ApiError, ApiResult};
use crate::sse::{EventStream, Feed, Gone};
use crate::state::{ApiState, Shared};
use crate::workspaces::require_live;

const LIST_LIMIT: i64 = 100;
const REPLAY_PAGE: i64 = 200;
const FAILED: &str = "query failed";

/// A recorded event.
#[derive(Object)]
pub(crate) struct EventEntry {
    id: Uuid,
    event_type: String,
    #[oai(nullable)]
    workspace_id: Option<Uuid>,
    payload: Any<Value>,
    created_at: Timestamp,
}

pub(crate) struct EventsApi;

#[OpenApi(tag = "Tag::Events")]
impl EventsApi {
    /// Lists the newest 100 events, newest first.
    #[oai(path = "/events", method = "get", operation_id = "list_events")]
    async fn list_events(
        &self,
        _access: AdminAccess,
        state: Shared<'_>,
    ) -> ApiResult<Json<Vec<EventEntry>>> {
        list(&state, None).await
    }

    /// Lists the newest 100 events of a workspace, newest first.
    #[oai(
        path = "/events/:workspace_id",
        method = "get",
        operation_id = "list_workspace_events"
    )]
    async fn list_workspace_events(
        &self,
        _access: AdminAccess,
        state: Shared<'_>,
        workspace_id: Path<Uuid>,
    ) -> ApiResult<Json<Vec<EventEntry>>> {
        list(&state, Some(WorkspaceId(workspace_id.0))).await
    }

    /// Streams the events of a workspace. Recorded ones carry an id, and `Last-Event-ID` brings those that were missed.
    #[oai(
        path = "/workspaces/:id/events/stream",
        method = "get",
        operation_id = "stream_workspace_events"
    )]
    async fn stream_workspace_events(
        &self,
        _access: WorkspaceAccess,
        state: Shared<'_>,
        id: Path<Uuid>,
        /// The id of the last event that was seen.
        #[oai(name = "Last-Event-ID")]
        seen: Header<Option<String>>,
    ) -> ApiResult<EventStream> {
        let id = WorkspaceId(id.0);
        require_live(&state, id, "failed to verify workspace").await?;
        // An id of another server, or one that is none, brings nothing back and does no harm.
        let seen = seen.0.and_then(|id| id.trim().parse::<Position>().ok());
        let shared = Arc::clone(&state);
        Ok(EventStream::start(&state, move |feed| async move {
            stream(&shared, id, seen, &feed).await
        }))
    }
}

async fn list(state: &ApiState, id: Option<WorkspaceId>) -> ApiResult<Json<Vec<EventEntry>>> {
    let mut conn = state.connection(FAILED).await?;
    let rows = list_events(&mut conn, id, LIST_LIMIT)
        .await
        .map_err(|error| ApiError::internal(FAILED, error))?;
    Ok(Json(
        rows.into_iter()
            .map(|row| EventEntry {
                id: row.id,
                event_type: row.event_type,
                workspace_id: row.workspace_id.map(|id| id.0),
                payload: Any(row.payload),
                created_at: row.created_at,
            })
            .collect(),
    ))
}

async fn stream(
    state: &ApiState,
    id: WorkspaceId,
    seen: Option<Position>,
    feed: &Feed,
) -> Result<(), Gone> {
    // First listen, then read what was missed: nothing falls between, and what comes twice is known by its position.
    let mut subscription = state.hub.subscribe(Filter::Workspace(id), STREAM_BUFFER);
    let mut shown = seen;
    if let Some(seen) = seen {
        match replay(state, id, seen, feed).await? {
            Some(last) => shown = Some(last),
            None => return Ok(()),
        }
    }
    loop {
        match subscription.next().await {
            Received::Event(delivery) => {
                let known = delivery.position.is_some() && delivery.position <= shown;
                if !known {
                    send(feed, delivery.position, &delivery.message).await?;
                }
            }
            // The client comes back with its last id and is told what it missed.
            Received::Overflowed | Received::Closed => return Ok(()),
        }
    }
}

/// Sends the recorded events behind a position; gives the last one, or nothing when the log cannot be read.
async fn replay(
    state: &ApiState,
    id: WorkspaceId,
    seen: Position,
    feed: &Feed,
) -> Result<Option<Position>, Gone> {
    let mut last = seen;
    loop {
        let Ok(mut conn) = state.connection(FAILED).await else {
            return Ok(None);
        };
        let page = match list_events_after(&mut conn, id, last, REPLAY_PAGE).await {
            Ok(page) => page,
            Err(error) => {
                tracing::warn!(%error, workspace.id = %id, "cannot replay events");
                return Ok(None);
            }
        };
        drop(conn);
        if page.is_empty() {
            return Ok(Some(last));
        }
        for (position, message) in page {
            send(feed, Some(position), &message).await?;
            last = position;
        }
    }
}

async fn send(feed: &Feed, position: Option<Position>, message: &Message) -> Result<(), Gone> {
    let data = json!({
        "type": message.event,
        "timestamp": message.timestamp.timestamp_millis(),
        "data": message.payload,
    });
    let id = position.map(|position| position.to_string());
    feed.send(id.as_deref(), None, &data.to_string()).await
}
