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
mod instances;
pub mod place;
pub mod provision;
pub mod purge;
pub mod registry;
pub mod reseal;
pub mod restart;
pub mod restart_context;
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
