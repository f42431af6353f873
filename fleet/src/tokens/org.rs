//! Organisation tokens: bound to no workspace, all an administrator may do.

use longshore_base::{Secret, Timestamp, WorkspaceId};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{Fresh, hash_of};
use crate::FleetError;

const MAX_LISTED: i64 = 500;
/// As for workspace tokens.
const TOUCH_SECONDS: f64 = 10.0;

/// Who presented a valid organisation token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrgToken {
    /// The row.
    pub id: Uuid,
    /// The token's first eight characters; names it in `created_by`.
    pub prefix: String,
    /// The organisation it was minted in, if any.
    pub org_id: Option<WorkspaceId>,
}

/// A live organisation token as lists show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrgTokenRow {
    /// The row, for revoking.
    pub id: Uuid,
    /// The token's first eight characters.
    pub prefix: String,
    /// What it is for.
    pub name: Option<String>,
    /// The organisation it was minted in.
    pub org_id: Option<WorkspaceId>,
    /// Who minted it.
    pub created_by: Option<String>,
    /// When.
    pub created_at: Timestamp,
    /// When it was last presented.
    pub last_used_at: Option<Timestamp>,
}

/// Mints a token; its row and the plain text, which is never seen again.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn mint_org_token(
    tx: &mut PgConnection,
    name: Option<&str>,
    created_by: &str,
    org_id: Option<WorkspaceId>,
) -> Result<(OrgToken, Secret<String>), FleetError> {
    let fresh = Fresh::new();
    let id = sqlx::query_scalar!(
        "INSERT INTO org_api_tokens (token_hash, prefix, name, created_by, org_id) VALUES ($1, $2, $3, $4, $5)
         RETURNING id",
        fresh.hash,
        fresh.prefix,
        name,
        created_by,
        org_id as Option<WorkspaceId>,
    )
    .fetch_one(tx)
    .await?;
    let row = OrgToken {
        id,
        prefix: fresh.prefix,
        org_id,
    };
    Ok((row, fresh.token))
}

/// Whose live organisation token this is, and notes that it was used.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn verify_org_token(
    conn: &mut PgConnection,
    presented: &str,
) -> Result<Option<OrgToken>, FleetError> {
    let Some(hash) = hash_of(presented) else {
        return Ok(None);
    };
    Ok(sqlx::query_as!(
        OrgToken,
        r#"WITH found AS (
               SELECT id, prefix, org_id,
                      coalesce(last_used_at < longshore_now() - make_interval(secs => $2), true) AS stale
               FROM org_api_tokens WHERE token_hash = $1 AND revoked_at IS NULL
           ), free AS (
               SELECT id FROM org_api_tokens
               WHERE id IN (SELECT id FROM found WHERE stale) FOR NO KEY UPDATE SKIP LOCKED
           ), touched AS (
               UPDATE org_api_tokens SET last_used_at = longshore_now() WHERE id IN (SELECT id FROM free)
           )
           SELECT id, prefix, org_id AS "org_id: WorkspaceId" FROM found"#,
        hash,
        TOUCH_SECONDS,
    )
    .fetch_optional(conn)
    .await?)
}

/// A live organisation token by its row.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn find_org_token(
    conn: &mut PgConnection,
    id: Uuid,
) -> Result<Option<OrgToken>, FleetError> {
    Ok(sqlx::query_as!(
        OrgToken,
        r#"SELECT id, prefix, org_id AS "org_id: WorkspaceId" FROM org_api_tokens
           WHERE id = $1 AND revoked_at IS NULL"#,
        id,
    )
    .fetch_optional(conn)
    .await?)
}

/// Live tokens, newest first, at most 500.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn list_org_tokens(conn: &mut PgConnection) -> Result<Vec<OrgTokenRow>, FleetError> {
    Ok(sqlx::query_as!(
        OrgTokenRow,
        r#"SELECT id, prefix, name, org_id AS "org_id: WorkspaceId", created_by, created_at, last_used_at
           FROM org_api_tokens WHERE revoked_at IS NULL ORDER BY created_at DESC, id LIMIT $1"#,
        MAX_LISTED,
    )
    .fetch_all(conn)
    .await?)
}

/// Revokes one; whether there was a live one.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn revoke_org_token(tx: &mut PgConnection, id: Uuid) -> Result<bool, FleetError> {
    let done = sqlx::query!(
        "UPDATE org_api_tokens SET revoked_at = longshore_now() WHERE id = $1 AND revoked_at IS NULL",
        id,
    )
    .execute(tx)
    .await?;
    Ok(done.rows_affected() == 1)
}
