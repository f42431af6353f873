//! Workspaces on instances that a remote control plane runs, one each (spec: lifecycle §3).
//!
//! ```text
//! start    POST   /cp/workspaces/provision                       201 {instance_id}
//! stop     DELETE /cp/workspaces/<id>?instance_id=<instance>     any 2xx
//! status   GET    /cp/workspaces/<id>/status?instance_id=<…>     {state}
//! console  GET    /cp/admin/workspaces/<id>/console              {output}
//! config   GET    /cp/tenants/config                             {KEY: value}
//! ```
//!
//! **What is sent and what is not.** Runtime, tier, the platform's address and the environment; no files, no volumes, no
//! token. The agent builds its configuration at its first boot and gets its token when it first registers.
//!
//! **What is known afterwards.** The instance's id, and only from the answer to the start. A start whose answer is lost
//! may have made an instance that nobody can name ([`RemoteError::may_have_started`]); each start therefore carries
//! `Idempotency-Key: <workspace>:<generation>`, by which the control plane can answer a repetition as it did before.
//!
//! **What an answer may be used for.** 404 means nothing special: a stop that meets it has failed, a status that meets
//! it leaves the workspace alive. Answers are read up to a limit. Their text may repeat credentials, so none of it is in
//! the `Display` of an error: it is in the source, which goes to the log alone.

mod answer;
mod backend;
mod calls;
mod client;
mod error;

pub use client::{Remote, RemoteConfig};
pub use error::{RemoteCall, RemoteError};
