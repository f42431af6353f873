//! Where the memories of workspaces are kept, as far as a purge must know.

use std::error::Error;

use async_trait::async_trait;
use longshore_base::WorkspaceId;

/// Why a namespace was not forgotten; for the log.
pub type NamespaceError = Box<dyn Error + Send + Sync>;

/// Forgets what purged workspaces have remembered. Attached where a memory plugin is configured, absent elsewhere.
#[async_trait]
pub trait Namespaces: Send + Sync + 'static {
    /// Forgets the namespace `workspace:<id>`, and no other: those of teams and organisations belong to whoever is left.
    /// One that is not there is forgotten.
    async fn forget(&self, id: WorkspaceId) -> Result<(), NamespaceError>;
}
