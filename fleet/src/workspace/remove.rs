//! Deleting workspaces, the part that is done at once: everything below the root becomes a tombstone before anything is
//! stopped, so that a late heartbeat or registration revives nothing (`spec: rest-api` §6.2.5). Stopping containers,
//! removing volumes and purging rows is a job's work with what this returns.

use longshore_base::WorkspaceId;
use longshore_events::names;
use serde_json::json;
use sqlx::PgConnection;

use super::event::tell;
use super::row::{EXTERNAL, lock_workspace};
use super::tree::{TreeLock, list_descendants, lock_tree};
use crate::FleetError;
use crate::status::{Change, WorkspaceStatus};

/// A workspace one step below another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Child {
    /// Its id.
    pub id: WorkspaceId,
    /// Its name.
    pub name: String,
}

/// The direct children that are not removed, oldest first: what a delete wants confirmed.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn list_children(
    conn: &mut PgConnection,
    id: WorkspaceId,
) -> Result<Vec<Child>, FleetError> {
    Ok(sqlx::query_as!(
        Child,
        r#"SELECT id AS "id: WorkspaceId", name FROM workspaces
           WHERE parent_id = $1 AND status <> $2 ORDER BY created_at, id"#,
        id as WorkspaceId,
        WorkspaceStatus::Removed as WorkspaceStatus,
    )
    .fetch_all(conn)
    .await?)
}

/// One workspace of a delete, with what its stop needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemovedWorkspace {
    /// Its id.
    pub id: WorkspaceId,
    /// Its name.
    pub name: String,
    /// `external` has nothing to stop.
    pub runtime: String,
    /// The container, if one was ever started.
    pub container_id: Option<String>,
    /// The engine it is on, or was about to be.
    pub engine_id: Option<String>,
    /// The instance of a remote backend.
    pub instance_id: Option<String>,
    /// The generation that nothing older may overtake.
    pub generation: i64,
    /// It was not removed before.
    pub newly: bool,
}

impl RemovedWorkspace {
    /// Whether something of it can be on an engine. Every attempt writes down its engine before it makes anything there,
    /// and an external workspace runs where the platform has no say.
    #[must_use]
    pub fn may_have_run(&self) -> bool {
        self.runtime != EXTERNAL
            && (self.engine_id.is_some()
                || self.container_id.is_some()
                || self.instance_id.is_some())
    }
}

/// What a delete or a collapse covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemovedSet {
    /// The workspace that was named. A collapse leaves it where it is.
    pub root: WorkspaceId,
    /// What is to be stopped, the root last: itself and its descendants that were not removed; if the root was removed
    /// before, all its descendants, so that a repeated delete replays every stop. The same of a collapse, without the
    /// root: where it finds nothing to remove, all that was removed before.
    pub workspaces: Vec<RemovedWorkspace>,
    /// Descendants that an earlier delete removed and that `workspaces` lacks: a purge takes them along.
    pub earlier: Vec<RemovedWorkspace>,
    /// Descendants this delete removed.
    pub cascade_deleted: usize,
}

impl RemovedSet {
    /// Marked rows as a set. `first` is false where the same was asked for before.
    fn of(root: WorkspaceId, found: Vec<RemovedWorkspace>, first: bool) -> Self {
        let newly = |workspace: &&RemovedWorkspace| workspace.newly && workspace.id != root;
        let cascade_deleted = found.iter().filter(newly).count();
        let (workspaces, earlier) = found
            .into_iter()
            .partition(|workspace| workspace.newly || !first);
        Self {
            root,
            workspaces,
            earlier,
            cascade_deleted,
        }
    }

    /// Whether the root itself is to go.
    #[must_use]
    pub fn covers_root(&self) -> bool {
        self.workspaces
            .last()
            .is_some_and(|last| last.id == self.root)
    }

    /// The ids of [`RemovedSet::workspaces`], root last.
    #[must_use]
    pub fn ids(&self) -> Vec<WorkspaceId> {
        self.workspaces
            .iter()
            .map(|workspace| workspace.id)
            .collect()
    }

    /// Those that were not removed before.
    pub fn newly(&self) -> impl Iterator<Item = &RemovedWorkspace> {
        self.workspaces.iter().filter(|workspace| workspace.newly)
    }

    /// What is to be taken down, the root last; with what earlier deletes removed for a purge.
    pub fn to_take_down(&self, purge: bool) -> impl Iterator<Item = &RemovedWorkspace> {
        let earlier = if purge { self.earlier.as_slice() } else { &[] };
        earlier.iter().chain(&self.workspaces)
    }
}

/// Removes a workspace and everything below it: status, places on the canvas, tokens, a new generation, and an event for
/// each that was not removed before. `None` when there is no such workspace. Holds the tree until the transaction ends.
///
/// # Errors
/// [`FleetError`]; then nothing may be committed.
pub async fn remove_workspaces(
    tx: &mut PgConnection,
    root: WorkspaceId,
) -> Result<Option<RemovedSet>, FleetError> {
    lock_tree(tx, TreeLock::Exclusive).await?;
    let mut order = list_descendants(tx, root).await?;
    order.push(root);
    let mut found = mark_removed(tx, &order).await?;
    // The root was put last; the order of the others does not matter.
    found.sort_by_key(|workspace| workspace.id == root);
    let Some(root_row) = found.last().filter(|last| last.id == root) else {
        return Ok(None);
    };
    let root_newly = root_row.newly;
    clear_traces(tx, &order).await?;
    let set = RemovedSet::of(root, found, root_newly);
    append_events(tx, &set).await?;
    Ok(Some(set))
}

/// Why a team was not collapsed. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum CollapseError {
    /// There is no such row.
    #[error("workspace not found")]
    NotFound,
    /// It is a tombstone.
    #[error("workspace removed")]
    Removed,
    /// Nobody's mistake.
    #[error("the team could not be collapsed")]
    Fleet(#[from] FleetError),
}

/// Removes everything below a workspace, as [`remove_workspaces`] would, and tells of it on the workspace, which stays.
/// Holds the tree until the transaction ends.
///
/// # Errors
/// [`CollapseError`].
pub async fn collapse_workspace(
    tx: &mut PgConnection,
    root: WorkspaceId,
) -> Result<RemovedSet, CollapseError> {
    lock_tree(tx, TreeLock::Exclusive).await?;
    let row = lock_workspace(tx, root).await?;
    if row.ok_or(CollapseError::NotFound)?.status == WorkspaceStatus::Removed {
        return Err(CollapseError::Removed);
    }
    let below = list_descendants(tx, root).await?;
    let mut found = mark_removed(tx, &below).await?;
    found.sort_by(|one, other| one.name.cmp(&other.name));
    clear_traces(tx, &below).await?;
    let first = found.iter().any(|workspace| workspace.newly);
    let set = RemovedSet::of(root, found, first);
    append_events(tx, &set).await?;
    if first {
        let payload =
            json!({ "removed_children": set.newly().map(|child| &child.name).collect::<Vec<_>>() });
        tell(tx, root, names::WORKSPACE_COLLAPSED, payload).await?;
    }
    Ok(set)
}

async fn mark_removed(
    tx: &mut PgConnection,
    ids: &[WorkspaceId],
) -> Result<Vec<RemovedWorkspace>, FleetError> {
    let ids: Vec<_> = ids.iter().map(|id| id.0).collect();
    Ok(sqlx::query_as!(
        RemovedWorkspace,
        r#"WITH held AS (
               SELECT id, status FROM workspaces WHERE id = ANY($1) ORDER BY id FOR NO KEY UPDATE
           )
           UPDATE workspaces w
           SET status = $2, provision_generation = w.provision_generation + 1, provision_started_at = NULL,
               removed_at = coalesce(w.removed_at, longshore_now()), updated_at = longshore_now()
           FROM held WHERE w.id = held.id
           RETURNING w.id AS "id: WorkspaceId", w.name, w.runtime, w.container_id, w.engine_id, w.instance_id,
                     w.provision_generation AS generation, held.status = ANY($3) AS "newly!""#,
        &ids,
        WorkspaceStatus::Removed as WorkspaceStatus,
        Change::Deleted.sources() as Vec<WorkspaceStatus>,
    )
    .fetch_all(tx)
    .await?)
}

async fn clear_traces(tx: &mut PgConnection, ids: &[WorkspaceId]) -> Result<(), FleetError> {
    let ids: Vec<_> = ids.iter().map(|id| id.0).collect();
    sqlx::query!(
        "DELETE FROM canvas_layouts WHERE workspace_id = ANY($1)",
        &ids
    )
    .execute(&mut *tx)
    .await?;
    sqlx::query!(
        "UPDATE workspace_auth_tokens SET revoked_at = longshore_now()
         WHERE workspace_id = ANY($1) AND revoked_at IS NULL",
        &ids
    )
    .execute(tx)
    .await?;
    Ok(())
}

async fn append_events(tx: &mut PgConnection, set: &RemovedSet) -> Result<(), FleetError> {
    for workspace in set.newly() {
        let payload = if workspace.id == set.root {
            json!({ "cascade_deleted": set.cascade_deleted })
        } else {
            json!({})
        };
        tell(tx, workspace.id, names::WORKSPACE_REMOVED, payload).await?;
    }
    Ok(())
}
