//! Workspaces: their rows, and the three things people do to them.
//!
//! Whatever a client sends is judged whole before the first write; the errors say what a client can do about it and
//! know nothing of HTTP. Each change writes its event in the same transaction; the caller commits, then pokes the bus.

mod create;
pub(crate) mod event;
pub(crate) mod fields;
mod hibernate;
mod origin;
mod patch;
mod pause;
mod purge;
mod remove;
mod row;
mod team;
pub(crate) mod tree;

pub(crate) use create::check_new_tier;
pub use create::{CreateError, NewWorkspace, Position, create_workspace};
pub use hibernate::{
    HibernateError, claim_hibernation, claim_idle, list_idle, list_stuck_hibernating,
    mark_hibernated, wake_workspace,
};
pub use origin::Origin;
pub use patch::{PatchError, Patched, PatchedBy, WorkspacePatch, patch_workspace};
pub use pause::{ResumeError, Resumed, pause_workspaces, resume_workspaces};
pub use purge::{Purged, clear_footprints, purge_workspaces};
pub use remove::{
    Child, CollapseError, RemovedSet, RemovedWorkspace, collapse_workspace, list_children,
    remove_workspaces,
};
pub(crate) use row::LOCAL_HOST;
pub use row::{
    DeliveryMode, EXTERNAL, Workspace, WorkspaceAccess, awareness_namespace, find_workspace,
    find_workspaces, list_workspaces, load_workspace, lock_workspace, record_outbound,
};
pub use team::{ExpandError, expand_team};
pub use tree::{MAX_DEPTH, find_paused_ancestor, organisation_root};
