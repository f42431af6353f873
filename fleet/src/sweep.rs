//! What sweeps of an engine compare its containers with (`spec: lifecycle` §6.4).

use std::time::Duration;

use longshore_base::WorkspaceId;
use sqlx::PgConnection;

use crate::FleetError;
use crate::liveness::{Runs, list_quiet};
use crate::status::WorkspaceStatus;
use crate::workspace::EXTERNAL;

/// A token unused for less may belong to an agent that is about to be seen.
pub const TOKEN_GRACE: Duration = Duration::from_secs(300);

/// The statuses in which a workspace should have a container: in all others there is none by design, one is being made, or
/// the next provision rotates the tokens anyway.
const SHOULD_RUN: [WorkspaceStatus; 3] = [
    WorkspaceStatus::Online,
    WorkspaceStatus::Degraded,
    WorkspaceStatus::Offline,
];

/// A workspace behind a container's name, whatever its status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedWorkspace {
    /// Its id.
    pub id: WorkspaceId,
    /// It is a tombstone.
    pub removed: bool,
    /// The generation that nothing older may overtake.
    pub generation: i64,
}

/// The workspaces whose ids begin with these twelve characters, which make the names of containers. Two may share them. Each is
/// looked up by index, however many there are.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn list_by_id12(
    conn: &mut PgConnection,
    prefixes: &[String],
) -> Result<Vec<NamedWorkspace>, FleetError> {
    Ok(sqlx::query_as!(
        NamedWorkspace,
        r#"SELECT id AS "id: WorkspaceId", status = $2 AS "removed!", provision_generation AS generation
           FROM workspaces WHERE left(id::text, 12) = ANY (ARRAY(SELECT unnest($1::text[])))"#,
        prefixes,
        WorkspaceStatus::Removed as WorkspaceStatus,
    )
    .fetch_all(conn)
    .await?)
}

/// The workspaces that should have a container on this engine, of which nothing was heard within [`TOKEN_GRACE`], and whose
/// live tokens were neither issued nor used within that.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn list_stale_holders(
    conn: &mut PgConnection,
    engine_id: &str,
) -> Result<Vec<WorkspaceId>, FleetError> {
    // Who beats uses a token, so only the quiet ones are looked at.
    let quiet = list_quiet(conn, &SHOULD_RUN, Runs::Here, TOKEN_GRACE).await?;
    if quiet.is_empty() {
        return Ok(Vec::new());
    }
    let quiet: Vec<_> = quiet.into_iter().map(|one| one.id).collect();
    Ok(sqlx::query_scalar!(
        r#"SELECT id AS "id: WorkspaceId" FROM workspaces w
           WHERE id = ANY($1) AND engine_id = $2 AND instance_id IS NULL
             AND (SELECT max(coalesce(t.last_used_at, t.created_at)) FROM workspace_auth_tokens t
                  WHERE t.workspace_id = w.id AND t.revoked_at IS NULL)
                 < (SELECT longshore_now()) - make_interval(secs => $3)
           ORDER BY id"#,
        &quiet as &[WorkspaceId],
        engine_id,
        TOKEN_GRACE.as_secs_f64(),
    )
    .fetch_all(conn)
    .await?)
}

/// How many workspaces should have a container on this engine: asked when that decides whether the tokens of many may be
/// revoked, since it reads all of them.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn count_that_should_run(
    conn: &mut PgConnection,
    engine_id: &str,
) -> Result<usize, FleetError> {
    let count = sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM workspaces
           WHERE engine_id = $1 AND instance_id IS NULL AND runtime <> $2 AND status = ANY($3)"#,
        engine_id,
        EXTERNAL,
        &SHOULD_RUN as &[WorkspaceStatus],
    )
    .fetch_one(conn)
    .await?;
    Ok(usize::try_from(count).unwrap_or_default())
}

/// Revokes all live tokens of a workspace whose volume was likely wiped, which lets its next first registration in. False,
/// and nothing happens, if since it was listed it has moved, has another status, or a token was used or issued.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn revoke_stale(
    tx: &mut PgConnection,
    id: WorkspaceId,
    engine_id: &str,
) -> Result<bool, FleetError> {
    let held = sqlx::query_scalar!(
        r#"SELECT id AS "id: WorkspaceId" FROM workspaces
           WHERE id = $1 AND engine_id = $2 AND instance_id IS NULL AND runtime <> $3 AND status = ANY($4)
           FOR NO KEY UPDATE"#,
        id as WorkspaceId,
        engine_id,
        EXTERNAL,
        &SHOULD_RUN as &[WorkspaceStatus],
    )
    .fetch_optional(&mut *tx)
    .await?;
    if held.is_none() {
        return Ok(false);
    }
    let revoked = sqlx::query!(
        r#"UPDATE workspace_auth_tokens SET revoked_at = longshore_now()
           WHERE workspace_id = $1 AND revoked_at IS NULL
             AND NOT EXISTS (SELECT 1 FROM workspace_auth_tokens t
                             WHERE t.workspace_id = $1 AND t.revoked_at IS NULL
                               AND coalesce(t.last_used_at, t.created_at)
                                   >= longshore_now() - make_interval(secs => $2))"#,
        id as WorkspaceId,
        TOKEN_GRACE.as_secs_f64(),
    )
    .execute(tx)
    .await?;
    Ok(revoked.rows_affected() > 0)
}
