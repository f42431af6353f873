//! What can go wrong here that is nobody's mistake.

use longshore_base::WorkspaceId;
use longshore_events::EventError;

use crate::secrets::UnsealError;

/// The fleet's rows could not be read or written. What callers did wrong has types of its own, beside the functions.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// The database refused or did not answer; the transaction is broken.
    #[error("the database could not be used for workspaces")]
    Database(#[from] sqlx::Error),
    /// The event that belongs to the change was not written, so the change must not be committed.
    #[error("a workspace event could not be recorded")]
    Event(#[from] EventError),
    /// A stored secret does not open.
    #[error("a stored secret does not open")]
    Unseal(#[from] UnsealError),
    /// A row that was there a moment ago is not.
    #[error("workspace {0} does not exist")]
    NoWorkspace(WorkspaceId),
}

impl FleetError {
    /// Whether the same call can succeed later without anybody changing anything.
    #[must_use]
    pub const fn retryable(&self) -> bool {
        match self {
            Self::Database(_) | Self::Event(_) => true,
            Self::Unseal(_) | Self::NoWorkspace(_) => false,
        }
    }
}
