//! What was to be stopped and may still run, or is there and nobody wants (`spec: operations` §5): a row for each thing,
//! until it is known what became of it.
//!
//! ```text
//! suspected ── seen, unwanted for long enough ─▶ confirmed ── its removal ended ─▶ removed
//!     └────────────┴── not there: gone ── its workspace wants it: adopted ── an operator wants it: kept
//! ```

mod wanted;

pub use wanted::{Claim, Thing, UnwantedInstance, Wanted, list_claims, list_unwanted_instances};

use std::time::Duration;

use longshore_base::ids::ordered_uuid;
use longshore_base::{Timestamp, WorkspaceId};
use longshore_events::{NewEvent, append, names};
use serde_json::json;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::FleetError;
use crate::instances::close_stop;

/// What kind of thing is left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// A container of an engine.
    Container,
    /// A volume of an engine.
    Volume,
    /// An instance of a remote backend.
    Instance,
}

/// What became of something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// Its workspace wants it.
    Adopted,
    /// It was removed because nobody wants it.
    Removed,
    /// A stop removed it, or it is not there.
    Gone,
    /// An operator wants it to stay.
    Kept,
}

impl Settled {
    /// The word in rows and events.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Adopted => "adopted",
            Self::Removed => "removed",
            Self::Gone => "gone",
            Self::Kept => "kept",
        }
    }
}

impl Resource {
    /// The word in rows, events and the log.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Volume => "volume",
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
    /// Who wanted it stopped: `restart`, `auto-restart`, `pause`, `hibernate` or `purge`; `sweep` for what was only found.
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
    let open = sqlx::query_scalar!(
        "SELECT id FROM leaks WHERE backend = $1 AND resource = $2 AND resource_id = $3 AND resolved_at IS NULL",
        left.backend,
        left.resource.as_str(),
        left.resource_id,
    )
    .fetch_optional(&mut *tx)
    .await?;
    match open {
        Some(id) => settle_leak(tx, id, Settled::Gone, None).await,
        None => Ok(false),
    }
}

/// Closes a row, with the event `LEAK_RESOLVED`. `by` is the operator who decided and why, where one did. False for one that
/// is closed already.
///
/// # Errors
/// [`FleetError`].
pub async fn settle_leak(
    tx: &mut PgConnection,
    id: Uuid,
    state: Settled,
    by: Option<(&str, Option<&str>)>,
) -> Result<bool, FleetError> {
    let resolved = sqlx::query!(
        r#"UPDATE leaks SET state = $2, resolved_at = longshore_now() WHERE id = $1 AND resolved_at IS NULL
           RETURNING workspace_id AS "workspace_id: WorkspaceId", resource_id"#,
        id,
        state.as_str(),
    )
    .fetch_optional(&mut *tx)
    .await?;
    let Some(row) = resolved else {
        return Ok(false);
    };
    if matches!(state, Settled::Removed | Settled::Gone) {
        close_stop(tx, &row.resource_id).await?;
    }
    let mut payload = json!({ "leak_id": id, "state": state.as_str() });
    if let Some((by, reason)) = by {
        payload["by"] = json!(by);
        payload["reason"] = json!(reason);
    }
    let event = NewEvent {
        event_type: names::LEAK_RESOLVED,
        workspace_id: row.workspace_id,
        payload,
    };
    append(tx, event).await?;
    Ok(true)
}

/// Notes that something was looked at, is there, and is to go: open from now on, also where an operator had kept it. False
/// when it is settled in another way, or stands in another open row.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn confirm_leak(tx: &mut PgConnection, id: Uuid) -> Result<bool, FleetError> {
    let done = sqlx::query!(
        "UPDATE leaks l SET state = 'confirmed', resolved_at = NULL
         WHERE id = $1 AND (resolved_at IS NULL OR state = $2)
           AND NOT EXISTS (SELECT 1 FROM leaks o WHERE o.id <> l.id AND o.resolved_at IS NULL AND o.backend = l.backend
                                                   AND o.resource = l.resource AND o.resource_id = l.resource_id)",
        id,
        Settled::Kept.as_str(),
    )
    .execute(tx)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// A row that a sweep has to know of: open, or kept by an operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownLeak {
    /// The row.
    pub id: Uuid,
    /// Whose it is, if that is known.
    pub workspace_id: Option<WorkspaceId>,
    /// `container`, `volume` or `instance`.
    pub resource: String,
    /// Its id there, or its name.
    pub resource_id: String,
    /// It was looked at and is to go.
    pub confirmed: bool,
    /// An operator wants it to stay.
    pub kept: bool,
    /// It has been known for longer than was asked about.
    pub is_old: bool,
}

/// The rows of a place that are open or kept, oldest first.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn list_known_leaks(
    conn: &mut PgConnection,
    backend: &str,
    engine_id: &str,
    older_than: Duration,
) -> Result<Vec<KnownLeak>, FleetError> {
    Ok(sqlx::query_as!(
        KnownLeak,
        r#"SELECT id, workspace_id AS "workspace_id: WorkspaceId", resource, resource_id, state = 'confirmed' AS "confirmed!",
                  resolved_at IS NOT NULL AS "kept!",
                  found_at <= (SELECT longshore_now()) - make_interval(secs => $4) AS "is_old!"
           FROM leaks WHERE backend = $1 AND coalesce(engine_id, $2) = $2 AND (resolved_at IS NULL OR state = $3)
           ORDER BY id"#,
        backend,
        engine_id,
        Settled::Kept.as_str(),
        older_than.as_secs_f64(),
    )
    .fetch_all(conn)
    .await?)
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

/// One of them.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn find_leak(conn: &mut PgConnection, id: Uuid) -> Result<Option<Leak>, FleetError> {
    Ok(sqlx::query_as!(
        Leak,
        r#"SELECT id, found_at, source, workspace_id AS "workspace_id: WorkspaceId", backend, engine_id, resource,
                  resource_id, error, attempts, state, resolved_at
           FROM leaks WHERE id = $1"#,
        id,
    )
    .fetch_optional(conn)
    .await?)
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
