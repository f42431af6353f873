//! What there is to do: one folder per job kind.
//!
//! A folder holds the kind's arguments, its policy, `request` (called alike by a handler, a reconciler or another job,
//! always in the caller's transaction), its executor and what its end means to the workspace. A new kind is a folder
//! and a line in [`registry`].

mod agents;
pub mod bulk;
pub mod conflicts;
pub mod deployment;
#[cfg(feature = "failpoints")]
pub mod effect;
pub mod import;
mod instances;
pub mod place;
pub mod provision;
pub mod purge;
pub mod reclaim;
pub mod reconcile;
pub mod registry;
pub mod reseal;
pub mod restart;
pub mod restart_context;
pub mod rollout;
pub mod secret_fanout;
pub mod stop;
pub mod stopping;
mod verdicts;

pub use agents::Agents;
pub use registry::{JobsConfig, executors, kinds, queues};

/// The exclusive key of everything that changes what runs for a workspace.
#[must_use]
pub fn workspace_key(id: longshore_base::WorkspaceId) -> String {
    format!("ws:{id}")
}

/// Those of the workspaces that a live job acts on, or will.
///
/// # Errors
/// [`LedgerError`](longshore_ledger::LedgerError).
pub async fn list_busy(
    conn: &mut sqlx::PgConnection,
    ids: &[longshore_base::WorkspaceId],
) -> Result<Vec<longshore_base::WorkspaceId>, longshore_ledger::LedgerError> {
    let asked: Vec<_> = ids.iter().map(|id| (*id, workspace_key(*id))).collect();
    longshore_ledger::inspect::list_busy(conn, &asked).await
}
