//! Restarts because something changed that an agent only reads when it starts.

use std::time::Duration;

use longshore_fleet::FleetError;
use longshore_fleet::restart_template::TemplateChoice;
use longshore_fleet::restarting::check_restart;
use longshore_fleet::workspace::Workspace;
use longshore_ledger::{Enqueued, LedgerError};
use sqlx::PgConnection;

use super::{Request, Source, request};

/// A restart for a change could not be requested; nothing may be committed.
#[derive(Debug, thiserror::Error)]
pub enum ChangeRestartError {
    /// The workspace could not be judged.
    #[error("the workspace could not be judged for a restart")]
    Fleet(#[from] FleetError),
    /// The job could not be written.
    #[error("the restart could not be requested")]
    Ledger(#[from] LedgerError),
}

/// Has a workspace restarted with what changed, in the transaction that holds its row and changed it. `None` for one that is
/// not restarted, such as a paused one: it gets the change with its next start. It does not count as an automatic restart.
///
/// # Errors
/// [`ChangeRestartError`].
pub async fn request_after_change(
    tx: &mut PgConnection,
    workspace: &Workspace,
    source: Source,
    delay: Duration,
    created_by: &str,
) -> Result<Option<Enqueued>, ChangeRestartError> {
    if let Some(refusal) = check_restart(tx, workspace, source.asked()).await? {
        tracing::info!(workspace.id = %workspace.id, ?source, reason = %refusal, "a change waits for the next start");
        return Ok(None);
    }
    let wanted = Request {
        source,
        choice: TemplateChoice::default(),
        reset_session: false,
        delay,
    };
    Ok(Some(request(tx, workspace, wanted, created_by).await?))
}
