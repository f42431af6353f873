//! Deleting the rows of removed workspaces for good (`spec: lifecycle` §5.1). What happened to them stays in the event log.

use longshore_base::WorkspaceId;
use sqlx::PgConnection;

use super::row::lock_workspaces;
use crate::FleetError;
use crate::status::WorkspaceStatus;

/// What became of the rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Purged {
    /// So many were deleted; those that were gone before do not count.
    Rows(u64),
    /// None was: of these something may still be on an engine.
    Leftovers(Vec<WorkspaceId>),
}

/// Notes that nothing of these removed workspaces is left where they ran, neither containers nor volumes.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn clear_footprints(
    tx: &mut PgConnection,
    ids: &[WorkspaceId],
) -> Result<(), FleetError> {
    let ids: Vec<_> = ids.iter().map(|id| id.0).collect();
    sqlx::query!(
        "UPDATE workspaces SET engine_id = NULL, container_id = NULL, instance_id = NULL, updated_at = longshore_now()
         WHERE id = ANY($1) AND status = $2",
        &ids,
        WorkspaceStatus::Removed as WorkspaceStatus,
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Deletes removed workspaces with everything that is theirs alone, all or none: secrets, tokens, memories, activity,
/// layouts. Rows that pointed to them point to nothing.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn purge_workspaces(
    tx: &mut PgConnection,
    ids: &[WorkspaceId],
) -> Result<Purged, FleetError> {
    let held = lock_workspaces(tx, ids).await?;
    let leftovers: Vec<_> = held
        .iter()
        .filter(|workspace| workspace.may_have_run())
        .map(|workspace| workspace.id)
        .collect();
    if !leftovers.is_empty() {
        return Ok(Purged::Leftovers(leftovers));
    }
    let ids: Vec<_> = held
        .iter()
        .filter(|workspace| workspace.status == WorkspaceStatus::Removed)
        .map(|workspace| workspace.id.0)
        .collect();
    // The other tables go along by their foreign keys; this one has none that does.
    sqlx::query!(
        "DELETE FROM agent_memories WHERE workspace_id = ANY($1)",
        &ids
    )
    .execute(&mut *tx)
    .await?;
    let done = sqlx::query!("DELETE FROM workspaces WHERE id = ANY($1)", &ids)
        .execute(tx)
        .await?;
    Ok(Purged::Rows(done.rows_affected()))
}
