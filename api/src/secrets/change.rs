//! What a changed secret, model or provider sets off: agents read them when they start, so they are started anew.

use std::time::Duration;

use longshore_fleet::workspace::Workspace;
use longshore_jobs::restart::{ChangeRestartError, Source, request_after_change};
use longshore_ledger::Enqueued;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::auth::Principal;
use crate::problem::{ApiError, ApiResult};
use crate::state::ApiState;

/// The job that a change set off; none when the workspace gets the change with its next start anyway.
pub(crate) struct SetOff(Option<Enqueued>);

impl SetOff {
    /// A job that was written by somebody else.
    pub(crate) const fn by(job: Enqueued) -> Self {
        Self(Some(job))
    }

    /// For the body.
    pub(crate) fn job_id(&self) -> Option<Uuid> {
        self.0.as_ref().map(|job| job.job_id.0)
    }

    /// For the header `Location`.
    pub(crate) fn location(&self) -> Option<String> {
        self.0.as_ref().map(|job| format!("/jobs/{}", job.job_id))
    }

    /// After the commit.
    pub(crate) fn poke(&self, state: &ApiState) {
        if let Some(job) = &self.0 {
            state.admitter.poke(&job.queue);
        }
    }
}

/// Has a workspace restarted, in the transaction that holds its row and made the change. A closed queue does not refuse the
/// change: the restart waits.
pub(crate) async fn restart(
    tx: &mut PgConnection,
    workspace: &Workspace,
    source: Source,
    by: &Principal,
    failed: &'static str,
) -> ApiResult<SetOff> {
    request_after_change(tx, workspace, source, Duration::ZERO, &by.name())
        .await
        .map(SetOff)
        .map_err(|error| match error {
            ChangeRestartError::Fleet(error) => ApiError::fleet(error, failed),
            ChangeRestartError::Ledger(error) => ApiError::ledger(error, failed),
        })
}
