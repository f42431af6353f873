//! What bundles and templates of organisations have in common when they are imported.

use longshore_base::JobId;
use longshore_fleet::import::{ImportError, ImportNode};
use longshore_fleet::workspace::{CreateError, organisation_root};
use longshore_jobs::import::{self, ImportFailed, ImportPace, Imported};
use longshore_jobs::provision::Cause;
use sqlx::PgConnection;

use crate::auth::Principal;
use crate::problem::{ApiError, ApiResult};
use crate::queues::require_accepted;
use crate::state::ApiState;

/// What is imported, in the words of its own refusals.
#[derive(Clone, Copy)]
pub(crate) struct Words {
    /// It breaks a rule.
    pub(crate) invalid: &'static str,
    /// The database did not do its part.
    pub(crate) failed: &'static str,
}

/// Writes the workspaces and their jobs, unless an operator lets nobody ask for one of them.
pub(crate) async fn import(
    tx: &mut PgConnection,
    state: &ApiState,
    nodes: Vec<ImportNode>,
    turn: (Cause, Option<ImportPace>),
    caller: &Principal,
    words: Words,
) -> ApiResult<Vec<Imported>> {
    let imported = import::import(tx, &state.fleet, nodes, turn, &caller.name())
        .await
        .map_err(|error| match error {
            ImportFailed::Create(error) => refuse(error.into(), words),
            ImportFailed::Ledger(error) => ApiError::ledger(error, words.failed),
        })?;
    for one in &imported {
        let Ok((workspace, Some(job))) = &one.made else {
            continue;
        };
        let tenant = organisation_root(tx, workspace.id)
            .await
            .map_err(|error| ApiError::fleet(error, words.failed))?
            .to_string();
        let failed = words.failed;
        require_accepted(tx, &job.queue, &tenant, Some(workspace.id), failed).await?;
    }
    Ok(imported)
}

/// The queues to poke after the commit, each once.
pub(crate) fn queues(imported: &[Imported]) -> Vec<String> {
    let jobs = imported
        .iter()
        .filter_map(|one| one.made.as_ref().ok()?.1.as_ref());
    let mut queues: Vec<_> = jobs.map(|job| job.queue.clone()).collect();
    queues.sort_unstable();
    queues.dedup();
    queues
}

/// The job that brings up the first of them that is brought up.
pub(crate) fn first_job(imported: &[Imported]) -> Option<JobId> {
    imported
        .iter()
        .find_map(|one| Some(one.made.as_ref().ok()?.1.as_ref()?.job_id))
}

/// What a client hears.
pub(crate) fn refuse(error: ImportError, words: Words) -> ApiError {
    let Words { invalid, failed } = words;
    let text = error.to_string();
    match error {
        ImportError::Invalid(why) => ApiError::bad_request(invalid).detail(why),
        ImportError::Create(CreateError::TierNotAllowed { .. }) => ApiError::forbidden(text),
        ImportError::Create(CreateError::InvalidFields { detail }) => {
            ApiError::bad_request(invalid).detail(detail)
        }
        ImportError::Create(
            CreateError::MissingName
            | CreateError::InvalidTemplate
            | CreateError::InvalidDirectory
            | CreateError::InvalidAccess
            | CreateError::UnknownParent
            | CreateError::InvalidDeliveryMode
            | CreateError::Url(_),
        ) => ApiError::bad_request(invalid).detail(text),
        ImportError::Create(
            CreateError::Fleet(error) | CreateError::SaveSecret { source: error, .. },
        ) => ApiError::fleet(error, failed),
    }
}
