//! Changing a workspace's fields (`spec: rest-api` §6.2.4). No event: canvases refetch.

use longshore_base::WorkspaceId;
use sqlx::PgConnection;

use super::create::is_live;
use super::fields::{TextFields, TierRefusal, check_texts, check_tier, is_allowed_dir, non_empty};
use super::tree::{MAX_DEPTH, TreeLock, list_ancestors, lock_tree};
use super::{Position, Workspace, lock_workspace};
use crate::status::WorkspaceStatus;
use crate::{Fleet, FleetError};

/// Who asks for the change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PatchedBy {
    /// The workspace's own token. It must not raise its rights, mount host paths or move into another tree.
    #[default]
    OwnToken,
    /// Anybody with more rights than the workspace itself.
    Operator,
}

/// The members a request has; the others stay as they are. In an inner option `None` clears the field.
#[derive(Clone, Debug, Default)]
pub struct WorkspacePatch {
    /// Who asks.
    pub by: PatchedBy,
    /// New name.
    pub name: Option<String>,
    /// New role.
    pub role: Option<Option<String>>,
    /// New tier.
    pub tier: Option<i64>,
    /// New parent.
    pub parent_id: Option<Option<WorkspaceId>>,
    /// Folded up on the canvas.
    pub collapsed: Option<bool>,
    /// New runtime.
    pub runtime: Option<String>,
    /// New host directory.
    pub workspace_dir: Option<Option<String>>,
    /// Minutes of idleness before hibernation.
    pub hibernation_idle_minutes: Option<Option<i64>>,
    /// New place on the canvas; absolute, also for children.
    pub position: Option<Position>,
}

/// Why a workspace was not changed. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum PatchError {
    /// Name, role or runtime breaks its rule; the text says which and how.
    #[error("{0}")]
    InvalidText(String),
    /// A host directory that no agent gets.
    #[error("invalid workspace directory")]
    InvalidDirectory,
    /// Not a runtime of this installation.
    #[error("unknown runtime")]
    UnknownRuntime,
    /// A number out of its range.
    #[error("invalid workspace fields")]
    InvalidFields {
        /// Which and how, for the client.
        detail: &'static str,
    },
    /// A tier above what this installation allows.
    #[error("tier {tier} is not allowed here: LONGSHORE_MAX_TIER is {max}")]
    TierNotAllowed {
        /// The tier asked for.
        tier: i32,
        /// The highest allowed.
        max: i32,
    },
    /// The workspace's own token does not suffice for this member.
    #[error("admin credential required to change {field}")]
    AdminRequired {
        /// Which member.
        field: &'static str,
    },
    /// No such parent, or it is removed.
    #[error("invalid parent_id")]
    UnknownParent,
    /// The parent is the workspace itself or below it.
    #[error("parent_id would create a cycle")]
    Cycle,
    /// No such workspace.
    #[error("workspace not found")]
    NotFound,
    /// It is deleted.
    #[error("workspace removed")]
    Removed,
    /// Nobody's mistake.
    #[error("the workspace could not be changed")]
    Fleet(#[from] FleetError),
}

impl From<sqlx::Error> for PatchError {
    fn from(error: sqlx::Error) -> Self {
        Self::Fleet(error.into())
    }
}

/// What a change entails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patched {
    /// The new value reaches the agent only with a restart.
    pub needs_restart: bool,
}

/// Judges every member, then writes them.
///
/// # Errors
/// [`PatchError`]; all but its last variant before anything was written.
pub async fn patch_workspace(
    tx: &mut PgConnection,
    fleet: &Fleet,
    id: WorkspaceId,
    patch: WorkspacePatch,
) -> Result<Patched, PatchError> {
    check_members(fleet, &patch)?;
    if patch.parent_id.is_some() {
        lock_tree(tx, TreeLock::Exclusive).await?;
    }
    let mut workspace = lock_workspace(tx, id).await?.ok_or(PatchError::NotFound)?;
    if workspace.status == WorkspaceStatus::Removed {
        return Err(PatchError::Removed);
    }
    if let Some(Some(parent)) = patch.parent_id {
        check_parent(tx, id, parent).await?;
    }
    let patched = Patched {
        needs_restart: patch.workspace_dir.is_some(),
    };
    save_layout(tx, id, &patch).await?;
    apply(&mut workspace, patch);
    save(tx, &workspace).await?;
    Ok(patched)
}

fn check_members(fleet: &Fleet, patch: &WorkspacePatch) -> Result<(), PatchError> {
    check_texts(&TextFields {
        name: patch.name.as_deref(),
        role: patch.role.as_ref().and_then(Option::as_deref),
        runtime: patch.runtime.as_deref(),
        model: None,
    })
    .map_err(PatchError::InvalidText)?;
    if patch.name.as_deref() == Some("") {
        return Err(PatchError::InvalidText("name must not be empty".to_owned()));
    }
    if let Some(Some(dir)) = &patch.workspace_dir
        && !dir.is_empty()
        && !is_allowed_dir(dir)
    {
        return Err(PatchError::InvalidDirectory);
    }
    if let Some(runtime) = &patch.runtime
        && !fleet.runtimes.knows(runtime)
    {
        return Err(PatchError::UnknownRuntime);
    }
    if let Some(tier) = patch.tier {
        let tier = i32::try_from(tier).unwrap_or(-1);
        check_tier(tier, fleet.config.max_tier).map_err(|refusal| match refusal {
            TierRefusal::OutOfRange => PatchError::InvalidFields {
                detail: "tier must be 1, 2, 3 or 4",
            },
            TierRefusal::NotAllowed { tier, max } => PatchError::TierNotAllowed { tier, max },
        })?;
    }
    if let Some(Some(minutes)) = patch.hibernation_idle_minutes
        && i32::try_from(minutes).map_or(true, |minutes| minutes < 0)
    {
        return Err(PatchError::InvalidFields {
            detail: "hibernation_idle_minutes must be a whole number from 0 to 2147483647",
        });
    }
    match patch.by {
        PatchedBy::Operator => Ok(()),
        PatchedBy::OwnToken => check_own(patch),
    }
}

fn check_own(patch: &WorkspacePatch) -> Result<(), PatchError> {
    let closed = [
        ("tier", patch.tier.is_some()),
        ("parent_id", patch.parent_id.is_some()),
        ("runtime", patch.runtime.is_some()),
        ("workspace_dir", patch.workspace_dir.is_some()),
    ];
    match closed.into_iter().find(|(_, asked)| *asked) {
        Some((field, _)) => Err(PatchError::AdminRequired { field }),
        None => Ok(()),
    }
}

async fn check_parent(
    tx: &mut PgConnection,
    id: WorkspaceId,
    parent: WorkspaceId,
) -> Result<(), PatchError> {
    if parent == id {
        return Err(PatchError::Cycle);
    }
    if !is_live(tx, parent).await? {
        return Err(PatchError::UnknownParent);
    }
    let above = list_ancestors(tx, parent).await?;
    // A walk that does not end hides what is above, so it counts as a cycle.
    if above.contains(&id) || above.len() >= MAX_DEPTH as usize {
        return Err(PatchError::Cycle);
    }
    Ok(())
}

fn apply(workspace: &mut Workspace, patch: WorkspacePatch) {
    if let Some(name) = patch.name {
        workspace.name = name;
    }
    if let Some(role) = patch.role {
        workspace.role = non_empty(role);
    }
    if let Some(tier) = patch.tier.and_then(|tier| i32::try_from(tier).ok()) {
        workspace.tier = tier;
    }
    if let Some(parent) = patch.parent_id {
        workspace.parent_id = parent;
    }
    if let Some(runtime) = patch.runtime {
        workspace.runtime = runtime;
    }
    if let Some(dir) = patch.workspace_dir {
        workspace.workspace_dir = non_empty(dir);
    }
    if let Some(minutes) = patch.hibernation_idle_minutes {
        workspace.hibernation_idle_minutes =
            minutes.and_then(|minutes| i32::try_from(minutes).ok());
    }
}

async fn save(tx: &mut PgConnection, workspace: &Workspace) -> Result<(), FleetError> {
    sqlx::query!(
        "UPDATE workspaces SET name = $2, role = $3, tier = $4, parent_id = $5, runtime = $6, workspace_dir = $7,
                               hibernation_idle_minutes = $8, updated_at = longshore_now()
         WHERE id = $1",
        workspace.id as WorkspaceId,
        workspace.name,
        workspace.role,
        workspace.tier,
        workspace.parent_id as Option<WorkspaceId>,
        workspace.runtime,
        workspace.workspace_dir,
        workspace.hibernation_idle_minutes,
    )
    .execute(tx)
    .await?;
    Ok(())
}

async fn save_layout(
    tx: &mut PgConnection,
    id: WorkspaceId,
    patch: &WorkspacePatch,
) -> Result<(), FleetError> {
    if patch.position.is_none() && patch.collapsed.is_none() {
        return Ok(());
    }
    sqlx::query!(
        "INSERT INTO canvas_layouts (workspace_id, x, y, collapsed)
         VALUES ($1, coalesce($2::double precision, 0), coalesce($3::double precision, 0), coalesce($4, false))
         ON CONFLICT (workspace_id) DO UPDATE SET
             x = coalesce($2, canvas_layouts.x), y = coalesce($3, canvas_layouts.y),
             collapsed = coalesce($4, canvas_layouts.collapsed)",
        id as WorkspaceId,
        patch.position.map(|at| at.x),
        patch.position.map(|at| at.y),
        patch.collapsed,
    )
    .execute(tx)
    .await?;
    Ok(())
}
