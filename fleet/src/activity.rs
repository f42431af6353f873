//! The activity log: what went through the platform between agents, and the inbox of agents that fetch their messages.

use longshore_base::{Timestamp, WorkspaceId, ids};
use serde_json::Value;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::FleetError;

/// A message that an agent received.
pub const A2A_RECEIVE: &str = "a2a_receive";

/// How an activity went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActivityStatus {
    /// Well.
    Ok,
    /// Not.
    Error,
    /// It waits in an inbox.
    Queued,
}

impl ActivityStatus {
    /// As clients and the database know it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Error => "error",
            Self::Queued => "queued",
        }
    }
}

/// A row to be written.
#[derive(Clone, Debug)]
pub struct NewActivity {
    /// Whose log it is in.
    pub workspace_id: WorkspaceId,
    /// What kind of thing happened, e.g. [`A2A_RECEIVE`].
    pub activity_type: &'static str,
    /// Who did it; `None` for the canvas.
    pub source_id: Option<WorkspaceId>,
    /// To whom.
    pub target_id: Option<WorkspaceId>,
    /// The method called.
    pub method: Option<String>,
    /// One line for people.
    pub summary: Option<String>,
    /// What was asked.
    pub request_body: Option<Value>,
    /// What was answered.
    pub response_body: Option<Value>,
    /// The tools used on the way.
    pub tool_trace: Option<Value>,
    /// How long it took.
    pub duration_ms: Option<i32>,
    /// How it went.
    pub status: ActivityStatus,
    /// What went wrong.
    pub error_detail: Option<String>,
    /// The same key writes one row per workspace, whatever is sent twice.
    pub idempotency_key: Option<String>,
}

/// A written row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Activity {
    /// Its id.
    pub id: Uuid,
    /// When it was written.
    pub created_at: Timestamp,
}

/// Writes a row; for an idempotency key that is there already, finds that row instead.
///
/// # Errors
/// [`FleetError::Database`], also when there is no such workspace.
pub async fn record_activity(
    tx: &mut PgConnection,
    activity: NewActivity,
) -> Result<Activity, FleetError> {
    let written = sqlx::query_as!(
        Activity,
        "INSERT INTO activity_logs (id, workspace_id, activity_type, source_id, target_id, method, summary,
                                    request_body, response_body, tool_trace, duration_ms, status, error_detail,
                                    idempotency_key)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
         ON CONFLICT (workspace_id, idempotency_key) WHERE idempotency_key IS NOT NULL
         -- Nothing changes, but the row is returned.
         DO UPDATE SET idempotency_key = excluded.idempotency_key
         RETURNING id, created_at",
        ids::ordered_uuid(),
        activity.workspace_id as WorkspaceId,
        activity.activity_type,
        activity.source_id as Option<WorkspaceId>,
        activity.target_id as Option<WorkspaceId>,
        activity.method,
        activity.summary,
        activity.request_body,
        activity.response_body,
        activity.tool_trace,
        activity.duration_ms,
        activity.status.as_str(),
        activity.error_detail,
        activity.idempotency_key,
    )
    .fetch_one(tx)
    .await?;
    Ok(written)
}

/// How many messages wait in a workspace's inbox.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn count_inbox(conn: &mut PgConnection, id: WorkspaceId) -> Result<i64, FleetError> {
    Ok(sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM activity_logs
           WHERE workspace_id = $1 AND activity_type = $2 AND status = $3"#,
        id as WorkspaceId,
        A2A_RECEIVE,
        ActivityStatus::Queued.as_str(),
    )
    .fetch_one(conn)
    .await?)
}
