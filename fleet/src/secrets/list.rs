//! Which secrets there are: names and times, never values (`spec: rest-api` §6.10).

use longshore_base::{Timestamp, WorkspaceId};
use sqlx::PgConnection;

use crate::FleetError;
use crate::status::WorkspaceStatus;
use crate::workspace::EXTERNAL;

/// A secret that is set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretEntry {
    /// Its name.
    pub key: String,
    /// Every workspace's rather than this one's own.
    pub global: bool,
    /// When it was first set.
    pub created_at: Timestamp,
    /// When it was last set.
    pub updated_at: Timestamp,
}

/// What a workspace's agent gets: its own secrets by name, then the global ones that none of its own takes the place of.
///
/// # Errors
/// [`FleetError::Database`] when its own cannot be read. Without the global ones its own are answered, with a log line.
pub async fn list_workspace_secrets(
    conn: &mut PgConnection,
    id: WorkspaceId,
) -> Result<Vec<SecretEntry>, FleetError> {
    let mut all = sqlx::query_as!(
        SecretEntry,
        r#"SELECT key, false AS "global!", created_at, updated_at FROM workspace_secrets
           WHERE workspace_id = $1 ORDER BY key COLLATE "C""#,
        id as WorkspaceId,
    )
    .fetch_all(&mut *conn)
    .await?;
    let own: Vec<_> = all.iter().map(|entry| entry.key.clone()).collect();
    match list_global_secrets(conn).await {
        Ok(global) => all.extend(
            global
                .into_iter()
                .filter(|entry| own.binary_search(&entry.key).is_err()),
        ),
        Err(error) => {
            tracing::warn!(workspace.id = %id, %error, "the global secrets were not listed");
        }
    }
    Ok(all)
}

/// The secrets of every workspace, by name.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn list_global_secrets(conn: &mut PgConnection) -> Result<Vec<SecretEntry>, FleetError> {
    Ok(sqlx::query_as!(
        SecretEntry,
        r#"SELECT key, true AS "global!", created_at, updated_at FROM global_secrets ORDER BY key COLLATE "C""#,
    )
    .fetch_all(conn)
    .await?)
}

/// The workspaces, in the order of ids and at most so many, that a global secret reaches: those that run or are to run,
/// here, without a secret of their own by that name.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn list_affected_workspaces(
    conn: &mut PgConnection,
    key: &str,
    after: Option<WorkspaceId>,
    most: i64,
) -> Result<Vec<WorkspaceId>, FleetError> {
    let untouched = [
        WorkspaceStatus::Removed,
        WorkspaceStatus::Paused,
        WorkspaceStatus::Hibernated,
    ];
    Ok(sqlx::query_scalar!(
        r#"SELECT id AS "id: WorkspaceId" FROM workspaces AS w
           WHERE ($2::uuid IS NULL OR id > $2) AND status <> ALL($3) AND runtime <> $4
             AND NOT EXISTS (SELECT 1 FROM workspace_secrets WHERE workspace_id = w.id AND key = $1)
           ORDER BY id LIMIT $5"#,
        key,
        after as Option<WorkspaceId>,
        &untouched[..] as &[WorkspaceStatus],
        EXTERNAL,
        most,
    )
    .fetch_all(conn)
    .await?)
}
