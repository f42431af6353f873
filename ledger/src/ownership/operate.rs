//! Reconcilers as operators see and change them (`spec: operations` §4).

use longshore_base::Timestamp;
use sqlx::{PgConnection, PgPool};

use crate::LedgerError;

/// A reconciler in one scope.
#[derive(Clone, Debug)]
pub struct ReconcilerRow {
    /// The reconciler.
    pub name: String,
    /// An engine's id, or `all`.
    pub scope: String,
    /// The live worker that makes its passes.
    pub owner: Option<String>,
    /// Seconds between passes.
    pub interval_seconds: i32,
    /// What the last pass saw and did.
    pub last_pass: Option<serde_json::Value>,
    /// When it ended.
    pub last_pass_at: Option<Timestamp>,
    /// Whether passes are made.
    pub enabled: bool,
    /// `{reason, wanted, budget, since}` while it holds back.
    pub blocked: Option<serde_json::Value>,
    /// Whether what it holds back is approved and waits for its pass.
    pub approved: bool,
    /// Who enabled or disabled it last.
    pub changed_by: Option<String>,
    /// When.
    pub changed_at: Option<Timestamp>,
    /// Why.
    pub change_reason: Option<String>,
}

/// The reconcilers this database has ever seen, by name and scope; those of one name, and of one scope, if they are given.
///
/// # Errors
/// [`LedgerError::Database`].
pub async fn list_reconcilers(
    conn: &mut PgConnection,
    name: Option<&str>,
    scope: Option<&str>,
) -> Result<Vec<ReconcilerRow>, LedgerError> {
    sqlx::query_as!(
        ReconcilerRow,
        r#"SELECT name, scope, (SELECT w.name FROM workers w WHERE w.name = r.owner) AS owner, interval_seconds, last_pass,
                  last_pass_at, enabled, blocked, approved IS NOT NULL AS "approved!", changed_by, changed_at,
                  change_reason
           FROM reconcilers r WHERE ($1::text IS NULL OR name = $1) AND ($2::text IS NULL OR scope = $2)
           ORDER BY name, scope"#,
        name,
        scope,
    )
    .fetch_all(conn)
    .await
    .map_err(LedgerError::database("listing reconcilers"))
}

/// Enables or disables a reconciler, in one scope or in all it has; answers the scopes in which that was a change. A pass
/// that is being made goes on to its end.
///
/// # Errors
/// [`LedgerError::Database`].
pub async fn set_enabled(
    tx: &mut PgConnection,
    name: &str,
    scope: Option<&str>,
    enabled: bool,
    by: &str,
    reason: Option<&str>,
) -> Result<Vec<String>, LedgerError> {
    sqlx::query_scalar!(
        r#"UPDATE reconcilers SET enabled = $3, changed_by = $4, changed_at = longshore_now(), change_reason = $5
           WHERE name = $1 AND ($2::text IS NULL OR scope = $2) AND enabled <> $3 RETURNING scope"#,
        name,
        scope,
        enabled,
        by,
        reason,
    )
    .fetch_all(tx)
    .await
    .map_err(LedgerError::database("enabling or disabling a reconciler"))
}

/// Lets the next pass of a blocked reconciler destroy what its blocked pass listed; answers the scopes in which it was
/// blocked.
///
/// # Errors
/// [`LedgerError::Database`].
pub async fn approve(
    tx: &mut PgConnection,
    name: &str,
    scope: Option<&str>,
) -> Result<Vec<String>, LedgerError> {
    sqlx::query_scalar!(
        r#"UPDATE reconcilers SET approved = blocked->'wanted'
           WHERE name = $1 AND ($2::text IS NULL OR scope = $2) AND blocked IS NOT NULL RETURNING scope"#,
        name,
        scope,
    )
    .fetch_all(tx)
    .await
    .map_err(LedgerError::database("approving a blocked reconciler"))
}

/// When a reconciler last ended a pass.
#[derive(Clone, Debug)]
pub struct Tick {
    /// The reconciler.
    pub name: String,
    /// The end of its last pass; of the scopes that a live worker looks after, the one that has waited longest.
    pub at: Timestamp,
    /// Seconds since then.
    pub seconds_ago: f64,
}

/// The last passes, by name. A reconciler that has never ended one is not among them.
///
/// # Errors
/// [`LedgerError::Database`].
pub async fn list_ticks(pool: &PgPool) -> Result<Vec<Tick>, LedgerError> {
    sqlx::query_as!(
        Tick,
        r#"WITH ticks AS (
               SELECT r.name, coalesce(min(last_pass_at) FILTER (WHERE w.name IS NOT NULL), max(last_pass_at)) AS at
               FROM reconcilers r LEFT JOIN workers w ON w.name = r.owner
               WHERE last_pass_at IS NOT NULL GROUP BY r.name
           )
           SELECT name, at AS "at!", extract(epoch FROM longshore_now() - at)::float8 AS "seconds_ago!"
           FROM ticks ORDER BY name"#
    )
    .fetch_all(pool)
    .await
    .map_err(LedgerError::database("listing the last passes"))
}
