//! The organisation tree: who stands above and below whom.
//!
//! Two transactions that each look right can together close a cycle, or hang a new child under a parent that is being
//! deleted. So whoever changes the tree holds one lock ([`lock_tree`]): creation under a parent shares it, moving and
//! deleting have it alone.

use longshore_base::WorkspaceId;
use sqlx::PgConnection;

use crate::FleetError;
use crate::status::WorkspaceStatus;

/// Steps of a walk to the root. A deeper tree, or a cycle, counts as broken.
pub const MAX_DEPTH: i32 = 32;

/// Any number no other advisory lock of ours uses.
const TREE_LOCK: i64 = 0x0074_7265_6573;

/// How the tree is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TreeLock {
    /// A leaf is added, or a part of the tree is looked at that must stay as it is.
    Shared,
    /// Nodes are moved or removed.
    Exclusive,
}

/// Holds the shape of the tree until the transaction ends. Take it before any workspace row, never after.
pub(crate) async fn lock_tree(tx: &mut PgConnection, lock: TreeLock) -> Result<(), FleetError> {
    match lock {
        TreeLock::Shared => {
            sqlx::query!("SELECT pg_advisory_xact_lock_shared($1)", TREE_LOCK)
                .execute(tx)
                .await?
        }
        TreeLock::Exclusive => {
            sqlx::query!("SELECT pg_advisory_xact_lock($1)", TREE_LOCK)
                .execute(tx)
                .await?
        }
    };
    Ok(())
}

/// A workspace's ancestors, nearest first, it itself excluded; at most [`MAX_DEPTH`] of them and one more, which tells
/// that the walk was cut.
pub(crate) async fn list_ancestors(
    conn: &mut PgConnection,
    id: WorkspaceId,
) -> Result<Vec<WorkspaceId>, FleetError> {
    Ok(sqlx::query_scalar!(
        r#"WITH RECURSIVE up AS (
               SELECT parent_id, 0 AS depth FROM workspaces WHERE id = $1
               UNION ALL
               SELECT w.parent_id, up.depth + 1 FROM up JOIN workspaces w ON w.id = up.parent_id
               WHERE up.depth < $2
           )
           SELECT parent_id AS "id!: WorkspaceId" FROM up WHERE parent_id IS NOT NULL ORDER BY depth"#,
        id as WorkspaceId,
        MAX_DEPTH,
    )
    .fetch_all(conn)
    .await?)
}

/// The root of a workspace's organisation: itself when it has no parent or is unknown, the last one reached when the
/// walk is longer than [`MAX_DEPTH`].
///
/// # Errors
/// [`FleetError::Database`].
pub async fn organisation_root(
    conn: &mut PgConnection,
    id: WorkspaceId,
) -> Result<WorkspaceId, FleetError> {
    let ancestors = list_ancestors(conn, id).await?;
    if ancestors.len() > MAX_DEPTH as usize {
        tracing::warn!(workspace.id = %id, "the tree above this workspace is too deep, or a cycle");
    }
    Ok(ancestors.last().copied().unwrap_or(id))
}

/// Everything below a workspace, at any depth and in any status; it itself excluded.
pub(crate) async fn list_descendants(
    conn: &mut PgConnection,
    id: WorkspaceId,
) -> Result<Vec<WorkspaceId>, FleetError> {
    // UNION drops what was seen already, so even a cycle ends.
    Ok(sqlx::query_scalar!(
        r#"WITH RECURSIVE down AS (
               SELECT id FROM workspaces WHERE id = $1
               UNION
               SELECT w.id FROM down JOIN workspaces w ON w.parent_id = down.id
           )
           SELECT id AS "id!: WorkspaceId" FROM down WHERE id <> $1 ORDER BY id"#,
        id as WorkspaceId,
    )
    .fetch_all(conn)
    .await?)
}

/// What can be reached from a workspace by going down through these statuses, it itself included; nothing when it has
/// none of them.
pub(crate) async fn list_reachable(
    conn: &mut PgConnection,
    id: WorkspaceId,
    through: &[WorkspaceStatus],
) -> Result<Vec<WorkspaceId>, FleetError> {
    Ok(sqlx::query_scalar!(
        r#"WITH RECURSIVE down AS (
               SELECT id FROM workspaces WHERE id = $1 AND status = ANY($2)
               UNION
               SELECT w.id FROM down JOIN workspaces w ON w.parent_id = down.id WHERE w.status = ANY($2)
           )
           SELECT id AS "id!: WorkspaceId" FROM down ORDER BY id"#,
        id as WorkspaceId,
        through.to_vec() as Vec<WorkspaceStatus>,
    )
    .fetch_all(conn)
    .await?)
}

/// The name of the nearest paused workspace above this one: nothing below it is to run. A walk that is longer than
/// [`MAX_DEPTH`] finds none.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn find_paused_ancestor(
    conn: &mut PgConnection,
    id: WorkspaceId,
) -> Result<Option<String>, FleetError> {
    let above = list_ancestors(conn, id).await?;
    if above.len() > MAX_DEPTH as usize {
        tracing::warn!(workspace.id = %id, "the tree above this workspace is too deep, or a cycle; taken as not paused");
        return Ok(None);
    }
    let above: Vec<_> = above.iter().map(|id| id.0).collect();
    Ok(sqlx::query_scalar!(
        "SELECT name FROM workspaces WHERE id = ANY($1) AND status = $2 ORDER BY array_position($1, id) LIMIT 1",
        &above,
        WorkspaceStatus::Paused as WorkspaceStatus,
    )
    .fetch_optional(conn)
    .await?)
}
