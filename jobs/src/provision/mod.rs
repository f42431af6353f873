//! `provision`: from a row that waits to come up to a container whose agent can register.
//!
//! The job ends at 'started'; `online` comes from the agent. Start errors are not tried again: the workspace has failed
//! with a reason, and its owner decides. Only what failed before the first outside call for want of Postgres is retried.

mod instance;
mod prepare;
mod run;

use std::time::Duration;

use async_trait::async_trait;
use longshore_base::WorkspaceId;
use longshore_fleet::provisioning::{Begin, mark_failed, reopen};
use longshore_fleet::workspace::{Workspace, organisation_root};
use longshore_ledger::{
    Backoff, Enqueued, HookError, Hooks, Jitter, LedgerError, NewJob, Outcome, Policy, Revival,
    TerminalJob, drop_payloads, enqueue, find_payload,
};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;

pub use run::ProvisionExecutor;
#[cfg(test)]
pub(crate) use run::STEPS;
pub(crate) use run::{ConfigPlan, Plan, Stop, database, progress, told};

use crate::{place, workspace_key};

/// The kind's name.
pub const KIND: &str = "provision";
/// Shapes of [`Args`] this version reads.
pub const ARGS_VERSIONS: &[i16] = &[1, 2, 3];
const DEADLINE: Duration = Duration::from_secs(24 * 3600);

const MAX_ATTEMPTS: i32 = 3;

/// How provisions are tried and limited.
#[must_use]
pub fn policy(concurrency: usize, limit: Duration) -> Policy {
    Policy {
        max_attempts: MAX_ATTEMPTS,
        backoff: Backoff {
            base: Duration::from_secs(1),
            cap: Duration::from_secs(4),
            jitter: Jitter::Full,
        },
        timeout: limit,
        deadline: DEADLINE,
        concurrency,
    }
}

/// Who wanted it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// A workspace was created.
    Create,
    /// The team it belongs to was expanded.
    Expand,
    /// It came with a bundle.
    BundleImport,
    /// It came with an organisation's template.
    OrgImport,
    /// A paused workspace was resumed.
    Resume,
    /// Somebody wants to talk to a hibernated one.
    Wake,
}

impl Cause {
    /// The shape that tells it: whoever reads only the first knows nothing but creation.
    const fn args_version(self) -> i16 {
        match self {
            Self::Create => 1,
            Self::Resume | Self::Wake => 2,
            Self::Expand | Self::BundleImport | Self::OrgImport => 3,
        }
    }

    /// Whether files came with the request.
    const fn brings_files(self) -> bool {
        matches!(self, Self::BundleImport | Self::OrgImport)
    }

    /// Whether it is brought up for the first time, with what was asked for then.
    const fn is_first(self) -> bool {
        match self {
            Self::Create | Self::Expand | Self::BundleImport | Self::OrgImport => true,
            Self::Resume | Self::Wake => false,
        }
    }
}

/// The arguments: ids and flags.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Args {
    /// The workspace to bring up.
    pub workspace_id: WorkspaceId,
    /// Who wanted it.
    pub cause: Cause,
    /// Begin without the sessions of before.
    #[serde(default)]
    pub reset_session: bool,
}

/// Asks for a provision, in the transaction that created or locked the row. A waiting one takes the request over.
///
/// # Errors
/// [`LedgerError`]; nothing may be committed then.
pub async fn request(
    tx: &mut PgConnection,
    workspace: &Workspace,
    cause: Cause,
    created_by: &str,
) -> Result<Enqueued, LedgerError> {
    request_in_turn(tx, workspace, (cause, &Turn::default()), created_by).await
}

/// What a provision waits for, beside its workspace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Turn {
    /// Not before this much from now.
    pub(crate) delay: Duration,
    /// What it shares with others and must have for itself while it runs.
    pub(crate) keys: Vec<String>,
}

/// The same, of one that waits for its turn.
///
/// # Errors
/// [`LedgerError`]; nothing may be committed then.
pub(crate) async fn request_in_turn(
    tx: &mut PgConnection,
    workspace: &Workspace,
    (cause, turn): (Cause, &Turn),
    created_by: &str,
) -> Result<Enqueued, LedgerError> {
    let args = Args {
        workspace_id: workspace.id,
        cause,
        reset_session: false,
    };
    let tenant = organisation_root(tx, workspace.id)
        .await
        .map_or(workspace.id, |root| root);
    let queue = place::choose(tx, KIND, workspace.engine_id.as_deref()).await?;
    enqueue(
        tx,
        NewJob {
            kind: KIND,
            queue,
            tenant: tenant.to_string(),
            workspace_id: Some(workspace.id),
            keys: [workspace_key(workspace.id)]
                .into_iter()
                .chain(turn.keys.iter().cloned())
                .collect(),
            dedupe_key: Some(workspace.id.to_string()),
            args: serde_json::to_value(&args).unwrap_or_default(),
            args_version: cause.args_version(),
            priority: 0,
            delay: turn.delay,
            deadline: DEADLINE,
            max_attempts: MAX_ATTEMPTS,
            created_by: created_by.to_owned(),
        },
    )
    .await
}

/// What the end of a provision means to its workspace: whoever ends it, a row is never left waiting for a job that is gone.
pub struct ProvisionHooks;

#[async_trait]
impl Hooks for ProvisionHooks {
    async fn on_terminal(&self, tx: &mut PgConnection, job: &TerminalJob) -> Result<(), HookError> {
        let Some(id) = job.workspace_id else {
            return Ok(());
        };
        let reason = match job.outcome {
            // What came with it is in its volume now.
            Outcome::Succeeded => {
                return drop_payloads(tx, &[id])
                    .await
                    .map_err(|source| HookError::new("dropping what was imported", source));
            }
            // A newer attempt answers for the row, and may need what came with it.
            Outcome::Superseded => return Ok(()),
            Outcome::Dead => job.reason.as_deref().unwrap_or("provisioning failed"),
            Outcome::Cancelled => job
                .reason
                .as_deref()
                .unwrap_or("provisioning was cancelled"),
        };
        // Does nothing when the run has already said why, or the row no longer waits.
        mark_failed(tx, id, None, reason, serde_json::json!({}))
            .await
            .map_err(|source| HookError::new(format!("marking workspace {id} failed"), source))?;
        Ok(())
    }

    async fn on_retry(
        &self,
        tx: &mut PgConnection,
        job: &TerminalJob,
    ) -> Result<Revival, HookError> {
        let Some(id) = job.workspace_id else {
            return Ok(Revival::Refused("it is about no workspace".into()));
        };
        let args = Args::deserialize(&job.args);
        if args.is_ok_and(|args| args.cause.brings_files()) {
            let found = find_payload(tx, id).await;
            let found = found.map_err(|source| HookError::new("looking for its files", source))?;
            if found.is_none() {
                let text = "its files are gone: they were put away with the job, or are in its volume already";
                return Ok(Revival::Refused(text.into()));
            }
        }
        let reopened = reopen(tx, id)
            .await
            .map_err(|source| HookError::new(format!("setting workspace {id} back"), source))?;
        Ok(match reopened {
            Begin::Go(_) => Revival::Allowed,
            Begin::NotWanted(why) => Revival::Refused(why.to_string()),
        })
    }
}
