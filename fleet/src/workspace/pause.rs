//! Pausing and resuming a workspace with what is below it (`spec: lifecycle` §4.8).
//!
//! A pause marks its rows before anything is stopped, or the watchers would start again what is being taken down. Stopping
//! and bringing up are jobs' work with what this returns.

use longshore_base::WorkspaceId;
use longshore_events::names;
use serde_json::json;
use sqlx::PgConnection;

use super::event::tell;
use super::row::{Workspace, lock_workspaces};
use super::tree::{TreeLock, find_paused_ancestor, list_reachable, lock_tree};
use crate::FleetError;
use crate::status::{Change, WorkspaceStatus, resumed_external};

/// Pauses a workspace and everything below it that is neither removed nor paused itself; what is below such a one stays as
/// it is. Each gets a new generation and its event. Answers them as they are now, the root first; empty when the root is
/// unknown, removed or paused. After the commit: forget their keys, poke the bus.
///
/// # Errors
/// [`FleetError`]; then nothing may be committed.
pub async fn pause_workspaces(
    tx: &mut PgConnection,
    root: WorkspaceId,
) -> Result<Vec<Workspace>, FleetError> {
    let mut paused = hold(tx, root, &Change::Paused.sources()).await?;
    let ids: Vec<_> = paused.iter().map(|workspace| workspace.id.0).collect();
    // What is being stopped is forgotten: an agent that beats on is not the one a later resume waits for.
    sqlx::query!(
        "UPDATE workspaces SET status = $2, url = '', container_id = NULL, provision_generation = provision_generation + 1,
                               provision_started_at = NULL, idle_since = NULL, updated_at = longshore_now()
         WHERE id = ANY($1)",
        &ids,
        WorkspaceStatus::Paused as WorkspaceStatus,
    )
    .execute(&mut *tx)
    .await?;
    for workspace in &mut paused {
        workspace.status = WorkspaceStatus::Paused;
        workspace.provision_generation += 1;
        let payload = json!({ "name": workspace.name });
        tell(tx, workspace.id, names::WORKSPACE_PAUSED, payload).await?;
    }
    Ok(paused)
}

/// What a resume set going.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Resumed {
    /// These are to be brought up; the root is first if it is one of them.
    pub managed: Vec<Workspace>,
    /// These wait for their agents.
    pub external: Vec<Workspace>,
}

/// Why a workspace was not resumed. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum ResumeError {
    /// There is no such workspace, or it is not paused.
    #[error("workspace not found or not paused")]
    NotPaused,
    /// Nothing below a paused workspace runs.
    #[error("parent workspace \"{name}\" is paused — resume it first")]
    AncestorPaused {
        /// The nearest one.
        name: String,
    },
    /// Nobody's mistake.
    #[error("the workspace could not be resumed")]
    Fleet(#[from] FleetError),
}

/// Resumes a paused workspace and what is paused below it without a gap. Managed ones wait to come up, with the event of
/// that; the jobs are the caller's to request in the same transaction.
///
/// # Errors
/// [`ResumeError`].
pub async fn resume_workspaces(
    tx: &mut PgConnection,
    root: WorkspaceId,
) -> Result<Resumed, ResumeError> {
    let held = hold(tx, root, &Change::Resumed.sources()).await?;
    if held.is_empty() {
        return Err(ResumeError::NotPaused);
    }
    if let Some(name) = find_paused_ancestor(tx, root).await? {
        return Err(ResumeError::AncestorPaused { name });
    }
    let (external, mut managed): (Vec<_>, Vec<_>) =
        held.into_iter().partition(Workspace::is_external);
    for workspace in &external {
        let has_registered =
            workspace.agent_card.is_some() || workspace.last_heartbeat_at.is_some();
        await_external(tx, workspace, resumed_external(has_registered)).await?;
    }
    let ids: Vec<_> = managed.iter().map(|workspace| workspace.id.0).collect();
    sqlx::query!(
        "UPDATE workspaces SET status = $2, url = '', container_id = NULL, provision_started_at = NULL, idle_since = NULL,
                               last_sample_error = '', updated_at = longshore_now()
         WHERE id = ANY($1)",
        &ids,
        WorkspaceStatus::Provisioning as WorkspaceStatus,
    )
    .execute(&mut *tx)
    .await
    .map_err(FleetError::from)?;
    for workspace in &mut managed {
        workspace.status = WorkspaceStatus::Provisioning;
        let payload = json!({
            "name": workspace.name, "tier": workspace.tier, "runtime": workspace.runtime,
        });
        tell(tx, workspace.id, names::WORKSPACE_PROVISIONING, payload).await?;
    }
    Ok(Resumed { managed, external })
}

/// Holds the rows that can be reached from the root through these statuses, the root first; none if the root has another.
async fn hold(
    tx: &mut PgConnection,
    root: WorkspaceId,
    through: &[WorkspaceStatus],
) -> Result<Vec<Workspace>, FleetError> {
    lock_tree(tx, TreeLock::Shared).await?;
    let ids = list_reachable(tx, root, through).await?;
    let mut held = lock_workspaces(tx, &ids).await?;
    // Whoever held a row before may have changed it.
    held.retain(|workspace| through.contains(&workspace.status));
    held.sort_by_key(|workspace| workspace.id != root);
    match held.first() {
        Some(first) if first.id == root => Ok(held),
        _ => Ok(Vec::new()),
    }
}

async fn await_external(
    tx: &mut PgConnection,
    workspace: &Workspace,
    status: WorkspaceStatus,
) -> Result<(), FleetError> {
    sqlx::query!(
        "UPDATE workspaces SET status = $2, updated_at = longshore_now() WHERE id = $1",
        workspace.id as WorkspaceId,
        status as WorkspaceStatus,
    )
    .execute(&mut *tx)
    .await?;
    let (event_type, payload) = match status {
        WorkspaceStatus::AwaitingAgent => (
            names::WORKSPACE_AWAITING_AGENT,
            json!({ "name": workspace.name, "external": true }),
        ),
        _ => (names::WORKSPACE_OFFLINE, json!({})),
    };
    tell(tx, workspace.id, event_type, payload).await
}
