//! Tokens of workspaces: what an agent proves itself with.

use longshore_base::{Secret, Timestamp, WorkspaceId};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{Fresh, hash_of};
use crate::FleetError;
use crate::status::WorkspaceStatus;

/// Live tokens a workspace may have through the API.
pub const MAX_LIVE: i64 = 50;
/// `last_used_at` is not written again within this time: agents beat often, and nobody needs it finer.
const TOUCH_SECONDS: f64 = 10.0;

/// A live token as lists show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRow {
    /// The row, for revoking.
    pub id: Uuid,
    /// The token's first eight characters.
    pub prefix: String,
    /// When it was issued.
    pub created_at: Timestamp,
    /// When it was last presented, to within ten seconds.
    pub last_used_at: Option<Timestamp>,
}

/// Issues one more token.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn issue(tx: &mut PgConnection, id: WorkspaceId) -> Result<Secret<String>, FleetError> {
    let fresh = Fresh::new();
    sqlx::query!(
        "INSERT INTO workspace_auth_tokens (workspace_id, token_hash, prefix) VALUES ($1, $2, $3)",
        id as WorkspaceId,
        fresh.hash,
        fresh.prefix,
    )
    .execute(tx)
    .await?;
    Ok(fresh.token)
}

/// Revokes every live token and issues one, in one transaction, so that there is no moment in which a stranger could
/// register.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn rotate(tx: &mut PgConnection, id: WorkspaceId) -> Result<Secret<String>, FleetError> {
    revoke_all(tx, id).await?;
    issue(tx, id).await
}

/// Revokes every live token; how many there were.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn revoke_all(tx: &mut PgConnection, id: WorkspaceId) -> Result<u64, FleetError> {
    let done = sqlx::query!(
        "UPDATE workspace_auth_tokens SET revoked_at = longshore_now()
         WHERE workspace_id = $1 AND revoked_at IS NULL",
        id as WorkspaceId,
    )
    .execute(tx)
    .await?;
    Ok(done.rows_affected())
}

/// Revokes every live token but the one given in plain text.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn revoke_others(
    tx: &mut PgConnection,
    id: WorkspaceId,
    kept: &Secret<String>,
) -> Result<u64, FleetError> {
    let done = sqlx::query!(
        "UPDATE workspace_auth_tokens SET revoked_at = longshore_now()
         WHERE workspace_id = $1 AND revoked_at IS NULL AND token_hash <> $2",
        id as WorkspaceId,
        hash_of(kept.expose()).unwrap_or_default(),
    )
    .execute(tx)
    .await?;
    Ok(done.rows_affected())
}

/// Revokes one live token by its row; whether there was one.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn revoke(
    tx: &mut PgConnection,
    id: WorkspaceId,
    token: Uuid,
) -> Result<bool, FleetError> {
    let done = sqlx::query!(
        "UPDATE workspace_auth_tokens SET revoked_at = longshore_now()
         WHERE workspace_id = $1 AND id = $2 AND revoked_at IS NULL",
        id as WorkspaceId,
        token,
    )
    .execute(tx)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// The workspace whose live token this is, and notes that it was used. A removed workspace has no valid token.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn verify_workspace_token(
    conn: &mut PgConnection,
    presented: &str,
) -> Result<Option<WorkspaceId>, FleetError> {
    let Some(hash) = hash_of(presented) else {
        return Ok(None);
    };
    let found = sqlx::query!(
        r#"WITH found AS (
               SELECT t.id, t.workspace_id,
                      coalesce(t.last_used_at < longshore_now() - make_interval(secs => $3), true) AS stale
               FROM workspace_auth_tokens t JOIN workspaces w ON w.id = t.workspace_id
               WHERE t.token_hash = $1 AND t.revoked_at IS NULL AND w.status <> $2
           ), open AS (
               -- The workspace first, as whoever revokes its tokens does: a caller that goes on to write the workspace
               -- must not wait for it with a token locked.
               SELECT id FROM workspaces
               WHERE id IN (SELECT workspace_id FROM found WHERE stale) FOR NO KEY UPDATE SKIP LOCKED
           ), free AS (
               -- Whoever holds the row is using it too; nobody waits only to note the time.
               SELECT id FROM workspace_auth_tokens
               WHERE id IN (SELECT id FROM found) AND workspace_id IN (SELECT id FROM open)
               FOR NO KEY UPDATE SKIP LOCKED
           ), touched AS (
               UPDATE workspace_auth_tokens SET last_used_at = longshore_now() WHERE id IN (SELECT id FROM free)
           )
           SELECT workspace_id AS "id: WorkspaceId" FROM found"#,
        hash,
        WorkspaceStatus::Removed as WorkspaceStatus,
        TOUCH_SECONDS,
    )
    .fetch_optional(conn)
    .await?;
    Ok(found.map(|row| row.id))
}

/// The removed workspace whose token this was, revoked or not: only to tell an agent that its workspace is gone.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn find_former_owner(
    conn: &mut PgConnection,
    presented: &str,
) -> Result<Option<WorkspaceId>, FleetError> {
    let Some(hash) = hash_of(presented) else {
        return Ok(None);
    };
    let found = sqlx::query!(
        r#"SELECT t.workspace_id AS "id: WorkspaceId"
           FROM workspace_auth_tokens t JOIN workspaces w ON w.id = t.workspace_id
           WHERE t.token_hash = $1 AND w.status = $2"#,
        hash,
        WorkspaceStatus::Removed as WorkspaceStatus,
    )
    .fetch_optional(conn)
    .await?;
    Ok(found.map(|row| row.id))
}

/// Whether the workspace has a live token.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn has_live(conn: &mut PgConnection, id: WorkspaceId) -> Result<bool, FleetError> {
    Ok(sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT 1 FROM workspace_auth_tokens
                          WHERE workspace_id = $1 AND revoked_at IS NULL) AS "yes!""#,
        id as WorkspaceId,
    )
    .fetch_one(conn)
    .await?)
}

/// Whether the workspace ever had a token.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn ever_issued(conn: &mut PgConnection, id: WorkspaceId) -> Result<bool, FleetError> {
    Ok(sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT 1 FROM workspace_auth_tokens WHERE workspace_id = $1) AS "yes!""#,
        id as WorkspaceId,
    )
    .fetch_one(conn)
    .await?)
}

/// How many live tokens the workspace has.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn count_live(conn: &mut PgConnection, id: WorkspaceId) -> Result<i64, FleetError> {
    Ok(sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM workspace_auth_tokens
           WHERE workspace_id = $1 AND revoked_at IS NULL"#,
        id as WorkspaceId,
    )
    .fetch_one(conn)
    .await?)
}

/// Live tokens, newest first.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn list_tokens(
    conn: &mut PgConnection,
    id: WorkspaceId,
    limit: i64,
    offset: i64,
) -> Result<Vec<TokenRow>, FleetError> {
    Ok(sqlx::query_as!(
        TokenRow,
        "SELECT id, prefix, created_at, last_used_at FROM workspace_auth_tokens
         WHERE workspace_id = $1 AND revoked_at IS NULL
         ORDER BY created_at DESC, id LIMIT $2 OFFSET $3",
        id as WorkspaceId,
        limit,
        offset,
    )
    .fetch_all(conn)
    .await?)
}
