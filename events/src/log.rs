//! The table `structure_events`: append in the caller's transaction, read back in order.

use longshore_base::ids::ordered_uuid;
use longshore_base::redis::RedisUrlError;
use longshore_base::{Timestamp, WorkspaceId};
use serde_json::Value;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{Message, Position};

/// An event to be recorded.
#[derive(Clone, Debug)]
pub struct NewEvent {
    /// One of [`crate::names`].
    pub event_type: &'static str,
    /// The workspace it is about.
    pub workspace_id: Option<WorkspaceId>,
    /// What it says; an object.
    pub payload: Value,
}

/// The event log could not be used.
#[derive(Debug, thiserror::Error)]
pub enum EventError {
    /// The row was not written, so the caller's transaction must not commit.
    #[error("cannot append {event_type} to the event log")]
    Append {
        /// Which event.
        event_type: &'static str,
        /// What the database said.
        source: sqlx::Error,
    },
    /// The log could not be read.
    #[error("cannot read the event log")]
    Read(#[source] sqlx::Error),
    /// The URL does not parse.
    #[error("the URL of Redis {0}")]
    RedisUrl(#[from] RedisUrlError),
}

/// Records an event in the caller's transaction: it exists exactly if that commits. Call [`crate::EventBus::poke`] after.
///
/// # Errors
/// [`EventError::Append`]; the transaction is then broken.
pub async fn append(tx: &mut PgConnection, event: NewEvent) -> Result<(), EventError> {
    let NewEvent {
        event_type,
        workspace_id,
        payload,
    } = event;
    sqlx::query!(
        "INSERT INTO structure_events (id, event_type, workspace_id, payload) VALUES ($1, $2, $3, $4)",
        ordered_uuid(),
        event_type,
        workspace_id as Option<WorkspaceId>,
        payload,
    )
    .execute(tx)
    .await
    .map_err(|source| EventError::Append { event_type, source })?;
    Ok(())
}

/// A row of the log as `GET /events` shows it.
#[derive(Clone, Debug)]
pub struct EventRow {
    /// Its id.
    pub id: Uuid,
    /// Name.
    pub event_type: String,
    /// The workspace it is about.
    pub workspace_id: Option<WorkspaceId>,
    /// What it says.
    pub payload: Value,
    /// When it was written.
    pub created_at: Timestamp,
}

/// The newest events, newest first; of one workspace or of all.
///
/// # Errors
/// [`EventError::Read`].
pub async fn list_events(
    conn: &mut PgConnection,
    workspace_id: Option<WorkspaceId>,
    limit: i64,
) -> Result<Vec<EventRow>, EventError> {
    // Two texts, since one with `$1 IS NULL OR …` would use neither index.
    match workspace_id {
        Some(id) => {
            sqlx::query_as!(
                EventRow,
                r#"SELECT id, event_type, workspace_id AS "workspace_id: WorkspaceId", payload, created_at
                   FROM structure_events WHERE workspace_id = $1 ORDER BY seq DESC LIMIT $2"#,
                id as WorkspaceId,
                limit,
            )
            .fetch_all(conn)
            .await
        }
        None => {
            sqlx::query_as!(
                EventRow,
                r#"SELECT id, event_type, workspace_id AS "workspace_id: WorkspaceId", payload, created_at
                   FROM structure_events ORDER BY xid DESC, seq DESC LIMIT $1"#,
                limit,
            )
            .fetch_all(conn)
            .await
        }
    }
    .map_err(EventError::Read)
}

/// The recorded events of a workspace behind a position, in order, as far as the tailer may read: what a returning
/// stream missed.
///
/// # Errors
/// [`EventError::Read`].
pub async fn list_events_after(
    conn: &mut PgConnection,
    workspace_id: WorkspaceId,
    after: Position,
    limit: i64,
) -> Result<Vec<(Position, Message)>, EventError> {
    let rows = sqlx::query_as!(
        TailRow,
        r#"SELECT xid::text AS "xid!", seq AS "seq!", event_type,
                  workspace_id AS "workspace_id: WorkspaceId", payload::text AS "payload!", created_at, true AS "settled!"
           FROM structure_events
           WHERE workspace_id = $1 AND (xid, seq) > ($2::text::xid8, $3)
             AND xid < pg_snapshot_xmin(pg_current_snapshot())
           ORDER BY xid, seq LIMIT $4"#,
        workspace_id as WorkspaceId,
        after.xid.to_string(),
        after.seq,
        limit,
    )
    .fetch_all(conn)
    .await
    .map_err(EventError::Read)?;
    rows.into_iter().map(TailRow::into_message).collect()
}

/// A row on its way to subscribers.
pub(crate) struct TailRow {
    pub(crate) xid: String,
    pub(crate) seq: i64,
    event_type: String,
    workspace_id: Option<WorkspaceId>,
    /// As text, so that one row that cannot be read does not fail the whole page.
    payload: String,
    created_at: Timestamp,
    /// Every transaction that could still put a row before this one has ended.
    pub(crate) settled: bool,
}

impl TailRow {
    pub(crate) fn into_message(self) -> Result<(Position, Message), EventError> {
        let xid = self
            .xid
            .parse()
            .map_err(|error| EventError::Read(sqlx::Error::Decode(Box::new(error))))?;
        let position = Position { xid, seq: self.seq };
        let payload = serde_json::from_str(&self.payload).unwrap_or_else(|error| {
            // Too deeply nested, for one. Without its payload the event still makes clients look; stopping here would
            // silence everything behind it.
            tracing::error!(%error, event = self.event_type, %position, "an event's payload cannot be read");
            Value::Object(serde_json::Map::new())
        });
        Ok((
            position,
            Message {
                event: self.event_type,
                workspace_id: self.workspace_id,
                timestamp: self.created_at,
                payload,
            },
        ))
    }
}

/// Where a reader that starts now stands: behind everything that is settled.
pub(crate) async fn load_end(conn: &mut PgConnection) -> Result<(Position, Timestamp), EventError> {
    let row = sqlx::query!(
        r#"SELECT pg_snapshot_xmin(pg_current_snapshot())::text AS "xmin!", longshore_now() AS "now!""#
    )
    .fetch_one(conn)
    .await
    .map_err(EventError::Read)?;
    let xid = row
        .xmin
        .parse()
        .map_err(|error| EventError::Read(sqlx::Error::Decode(Box::new(error))))?;
    // Numbers start at 1, so every row of that transaction still lies ahead.
    Ok((Position { xid, seq: 0 }, row.now))
}

/// The next rows of the log behind a position, in order; those from the first unsettled one on may not be used yet.
pub(crate) async fn list_tail(
    conn: &mut PgConnection,
    after: Position,
    limit: i64,
) -> Result<Vec<TailRow>, EventError> {
    sqlx::query_as!(
        TailRow,
        r#"SELECT xid::text AS "xid!", seq AS "seq!", event_type,
                  workspace_id AS "workspace_id: WorkspaceId", payload::text AS "payload!", created_at,
                  xid < pg_snapshot_xmin(pg_current_snapshot()) AS "settled!"
           FROM structure_events
           WHERE (xid, seq) > ($1::text::xid8, $2)
           ORDER BY xid, seq LIMIT $3"#,
        after.xid.to_string(),
        after.seq,
        limit,
    )
    .fetch_all(conn)
    .await
    .map_err(EventError::Read)
}
