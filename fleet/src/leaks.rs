//! What was to be stopped and may still run (`spec: operations` §5): a row for each thing, until it is known what became
//! of it.

use longshore_base::ids::ordered_uuid;
use longshore_base::{Timestamp, WorkspaceId};
use longshore_events::{NewEvent, append, names};
use serde_json::json;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::FleetError;

/// The state of what a later stop removed or did not find.
const GONE: &str = "gone";

/// What kind of thing is left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// A container of an engine.
    Container,
    /// An instance of a remote backend.
    Instance,
}

impl Resource {
    /// The word in rows, events and the log.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Instance => "instance",
        }
    }
}

/// One thing in one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeftBehind<'a> {
    /// Whose it is.
    pub workspace_id: WorkspaceId,
    /// The backend's name: `docker`.
    pub backend: &'a str,
    /// The engine it is on, where the backend has engines.
    pub engine_id: Option<&'a str>,
    /// What it is.
    pub resource: Resource,
    /// Its id there.
    pub resource_id: &'a str,
}

/// How its stop failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailedStop<'a> {
    /// Who wanted it stopped: `restart`, `auto-restart`, `pause`, `hibernate` or `purge`.
    pub source: &'static str,
    /// How often it was tried.
    pub attempts: u32,
    /// The last refusal, in words fit for the public.
    pub error: &'a str,
}

/// Writes down that something may still run, with the event `LEAK_SUSPECTED`; answers the row. Something that is known
/// already keeps its row and is not told of again.
///
/// # Errors
/// [`FleetError`].
pub async fn record_leak(
    tx: &mut PgConnection,
    left: &LeftBehind<'_>,
    failed: &FailedStop<'_>,
) -> Result<Uuid, FleetError> {
    let row = sqlx::query!(
        r#"INSERT INTO leaks (id, source, workspace_id, backend, engine_id, resource, resource_id, error, attempts)
           VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
           ON CONFLICT (backend, resource, resource_id) WHERE resolved_at IS NULL
               DO UPDATE SET error = excluded.error, attempts = leaks.attempts + excluded.attempts
           RETURNING id, id = $1 AS "is_new!""#,
        ordered_uuid(),
        failed.source,
        left.workspace_id as WorkspaceId,
        left.backend,
        left.engine_id,
        left.resource.as_str(),
        left.resource_id,
        failed.error,
        i32::try_from(failed.attempts).unwrap_or(i32::MAX),
    )
    .fetch_one(&mut *tx)
    .await?;
    if row.is_new {
        let event = NewEvent {
            event_type: names::LEAK_SUSPECTED,
            workspace_id: Some(left.workspace_id),
            payload: json!({
                "leak_id": row.id, "resource": left.resource.as_str(), "resource_id": left.resource_id,
                "source": failed.source,
            }),
        };
        append(tx, event).await?;
    }
    Ok(row.id)
}

/// Closes the open row of something that was stopped after all, if there is one, with the event `LEAK_RESOLVED`. Whether
/// there was one.
///
/// # Errors
/// [`FleetError`].
pub async fn resolve_leak(
    tx: &mut PgConnection,
    left: &LeftBehind<'_>,
) -> Result<bool, FleetError> {
    let resolved = sqlx::query_scalar!(
        "UPDATE leaks SET state = $4, resolved_at = longshore_now()
         WHERE backend = $1 AND resource = $2 AND resource_id = $3 AND resolved_at IS NULL RETURNING id",
        left.backend,
        left.resource.as_str(),
        left.resource_id,
        GONE,
    )
    .fetch_optional(&mut *tx)
    .await?;
    let Some(id) = resolved else {
        return Ok(false);
    };
    let event = NewEvent {
        event_type: names::LEAK_RESOLVED,
        workspace_id: Some(left.workspace_id),
        payload: json!({ "leak_id": id, "state": GONE }),
    };
    append(tx, event).await?;
    Ok(true)
}

/// A thing that was left behind, as operators see it.
#[derive(Clone, Debug, PartialEq)]
#[expect(
    missing_docs,
    reason = "the columns; migrations/0009 says what they mean"
)]
pub struct Leak {
    pub id: Uuid,
    pub found_at: Timestamp,
    pub source: String,
    pub workspace_id: Option<WorkspaceId>,
    pub backend: String,
    pub engine_id: Option<String>,
    pub resource: String,
    pub resource_id: String,
    pub error: String,
    pub attempts: i32,
    pub state: String,
    pub resolved_at: Option<Timestamp>,
}

/// At most `limit` of them, newest first: those of a state or all, older than `before`.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn list_leaks(
    conn: &mut PgConnection,
    state: Option<&str>,
    before: Option<Uuid>,
    limit: i64,
) -> Result<Vec<Leak>, FleetError> {
    Ok(sqlx::query_as!(
        Leak,
        r#"SELECT id, found_at, source, workspace_id AS "workspace_id: WorkspaceId", backend, engine_id, resource,
                  resource_id, error, attempts, state, resolved_at
           FROM leaks WHERE ($1::text IS NULL OR state = $1) AND ($2::uuid IS NULL OR id < $2)
           ORDER BY id DESC LIMIT $3"#,
        state,
        before,
        limit,
    )
    .fetch_all(conn)
    .await?)
}
