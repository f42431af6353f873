//! Where a workspace runs: one trait, and behind it the Docker engine and the remote control plane.
//!
//! A backend brings a workspace's container or instance up, takes it down and answers whether it runs. It knows nothing of
//! rows, jobs or Postgres: what is to be run arrives as a [`StartSpec`], and whether the run may still act is asked
//! of a [`StartWatch`] before every step that changes something outside. Nobody names a backend; [`Backends`] chooses.
//!
//! What is left out on purpose: retries (the caller's, by [`BackendError::retryable`]), and any memory of what was
//! started. The engine is asked, and labels say whose a container is.

mod backend;
pub mod docker;
mod error;
pub mod remote;
mod selection;
mod spec;

pub use backend::{
    Abandoned, Backend, Delivers, Inventory, KeptConfig, ListedContainer, LogLine, LogSource,
    LogStream, LogsQuery, Manner, Marked, MarkedKind, StartWatch, Started, StartedContainer,
    StartedInstance, StopTarget, Unwatched, VolumeScope, steps,
};
pub use docker::{Docker, DockerConfig};
pub use error::{BackendError, CallError, CallFailure};
pub use remote::{Remote, RemoteConfig, RemoteError};
pub use selection::{Backends, NoBackend};
pub use spec::{ConfigFile, StartSpec, WorkspaceAccess};
