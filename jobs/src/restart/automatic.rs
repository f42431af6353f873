//! Restarts that nobody asked for: of workspaces that were found gone.

use longshore_base::WorkspaceId;
use longshore_fleet::restart_template::TemplateChoice;
use longshore_fleet::restarting::{AutoRestart, plan_auto_restart};
use longshore_fleet::{Fleet, FleetError};
use longshore_ledger::{Enqueued, LedgerError};
use sqlx::PgConnection;

use super::{Request, Source, request};

/// What was done for a workspace that is gone.
#[must_use = "after the commit the queue must be poked"]
#[derive(Clone, Debug, PartialEq)]
pub enum Automatic {
    /// It is restarted by this job.
    Requested(Enqueued),
    /// It was lost too often and has failed.
    GivenUp,
    /// It stays as it is.
    Not,
}

impl Automatic {
    /// The queue to poke after the commit.
    #[must_use]
    pub fn queue(&self) -> Option<&str> {
        match self {
            Self::Requested(job) => Some(&job.queue),
            Self::GivenUp | Self::Not => None,
        }
    }
}

/// An automatic restart could not be requested; nothing may be committed.
#[derive(Debug, thiserror::Error)]
pub enum AutoRestartError {
    /// The workspace could not be read or written.
    #[error("workspace {id} could not be judged for an automatic restart")]
    Fleet {
        /// Which.
        id: WorkspaceId,
        /// Why.
        source: FleetError,
    },
    /// The job could not be written.
    #[error("the automatic restart of workspace {id} could not be requested")]
    Ledger {
        /// Which.
        id: WorkspaceId,
        /// Why.
        source: LedgerError,
    },
}

/// Has a workspace restarted that was found gone, in the transaction that found it so: the existing volume, no template,
/// and only as often as its budget allows.
///
/// # Errors
/// [`AutoRestartError`]; nothing may be committed then.
pub async fn request_automatic(
    tx: &mut PgConnection,
    fleet: &Fleet,
    id: WorkspaceId,
    source: Source,
) -> Result<Automatic, AutoRestartError> {
    let plan = plan_auto_restart(tx, fleet, id)
        .await
        .map_err(|source| AutoRestartError::Fleet { id, source })?;
    let (delay, workspace) = match plan {
        AutoRestart::After(delay, workspace) => (delay, workspace),
        AutoRestart::GivenUp => {
            tracing::error!(workspace.id = %id, ?source, "a workspace was lost too often; it is not restarted any more");
            return Ok(Automatic::GivenUp);
        }
        AutoRestart::Refused(refusal) => {
            tracing::info!(workspace.id = %id, ?source, reason = %refusal, "a lost workspace is not restarted");
            return Ok(Automatic::Not);
        }
        AutoRestart::Off => return Ok(Automatic::Not),
    };
    let wanted = Request {
        source,
        choice: TemplateChoice::default(),
        reset_session: false,
        delay,
    };
    let job = request(tx, &workspace, wanted, "auto-restart")
        .await
        .map_err(|source| AutoRestartError::Ledger { id, source })?;
    tracing::info!(
        workspace.id = %id, job.id = %job.job_id, ?source, delay_seconds = delay.as_secs(), joined = job.existing,
        "a lost workspace is restarted"
    );
    Ok(Automatic::Requested(job))
}
