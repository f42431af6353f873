//! `rollout`: takes a digest to the workspaces of a runtime, ring by ring, and takes it back (`spec: operations` §6).
//!
//! Everything it knows stands in the rollout's rows, so a run that dies anywhere costs nothing: its successor looks at what
//! there is. Workspaces are restarted by jobs of their own. When too much of a ring fails the job ends dead with that reason
//! and the rollout is held; resuming it, or rolling it back, asks for another job.

mod run;

use std::time::Duration;

use async_trait::async_trait;
use longshore_fleet::images::{
    self, NewRollout, Part, Rollout, RolloutError, RolloutState, Taken, create_rollout,
    list_failed, lock_rollout, record_held, record_job, record_resumed, take,
};
use longshore_fleet::workspace::{Workspace, lock_workspace};
use longshore_ledger::{
    Enqueued, HookError, Hooks, LedgerError, Outcome, Policy, Revival, TerminalJob,
};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::deployment;
use crate::restart::{ChangeRestartError, Source, request_after_change};

pub use run::RolloutExecutor;

/// The kind's name; it acts on no engine, so it is its queue's too.
pub const KIND: &str = "rollout";
/// Shapes of [`Args`] this version reads.
pub const ARGS_VERSIONS: &[i16] = &[1];
/// How rollouts are tried and limited. Rings may soak for days, so it has as long as the longest of them may need.
pub const POLICY: Policy = Policy {
    deadline: Duration::from_secs(90 * 24 * 3600),
    ..deployment::policy(8)
};

/// What to carry out.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Args {
    /// The rollout.
    pub rollout_id: Uuid,
}

/// A rollout could not be asked for; nothing may be committed.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// It makes no sense now.
    #[error(transparent)]
    Rollout(#[from] RolloutError),
    /// A workspace could not be asked to restart.
    #[error(transparent)]
    Restart(#[from] ChangeRestartError),
    /// The job could not be written.
    #[error("the job of the rollout could not be written")]
    Ledger(#[from] LedgerError),
}

impl From<longshore_fleet::FleetError> for RequestError {
    fn from(error: longshore_fleet::FleetError) -> Self {
        Self::Rollout(error.into())
    }
}

/// A job that was asked for, and every queue to poke after the commit.
#[must_use = "after the commit the queues must be poked"]
#[derive(Debug)]
pub struct Requested {
    /// The rollout as it is now.
    pub rollout: Rollout,
    /// Its job.
    pub job: Enqueued,
    /// The queues of all jobs that were asked for.
    pub pokes: Vec<String>,
}

/// Begins a rollout.
///
/// # Errors
/// [`RequestError`].
pub async fn request(
    tx: &mut PgConnection,
    new: NewRollout<'_>,
) -> Result<Requested, RequestError> {
    let by = new.by.to_owned();
    let rollout = create_rollout(tx, new).await?;
    enqueue_for(tx, &rollout, &by, Vec::new()).await
}

/// Lets a held rollout go on: what had failed of its ring is tried once more.
///
/// # Errors
/// [`RequestError`].
pub async fn resume(
    tx: &mut PgConnection,
    id: Uuid,
    by: &str,
    reason: Option<&str>,
) -> Result<Requested, RequestError> {
    let rollout = lock_rollout(tx, id).await?;
    record_resumed(tx, &rollout, by, reason).await?;
    let mut pokes = Vec::new();
    for id in list_failed(tx, &rollout).await? {
        if let Some(workspace) = lock_workspace(tx, id).await? {
            let onto = Some(rollout.sha256_digest.as_str());
            let asked = restart_onto(tx, &rollout, &workspace, onto, Part::Taken, by).await?;
            pokes.extend(asked);
        }
    }
    enqueue_for(tx, &rollout, by, pokes).await
}

/// Takes a rollout back: whatever it took is restarted on what it ran before. A pin that it had set becomes what it was.
///
/// # Errors
/// [`RequestError`].
pub async fn roll_back(
    tx: &mut PgConnection,
    id: Uuid,
    by: &str,
    reason: Option<&str>,
) -> Result<Requested, RequestError> {
    let rollout = lock_rollout(tx, id).await?;
    images::begin_rollback(tx, &rollout, by, reason).await?;
    enqueue_for(tx, &rollout, by, Vec::new()).await
}

async fn enqueue_for(
    tx: &mut PgConnection,
    rollout: &Rollout,
    by: &str,
    mut pokes: Vec<String>,
) -> Result<Requested, RequestError> {
    let args = Args {
        rollout_id: rollout.id,
    };
    // One at a time: what a job before this one still does it does first.
    let keys = vec![format!("{KIND}:{}", rollout.template_name)];
    let dedupe = rollout.id.to_string();
    let job = deployment::request(tx, (KIND, &POLICY), keys, dedupe, args, by).await?;
    record_job(tx, rollout.id, job.job_id).await?;
    pokes.push(job.queue.clone());
    let rollout = images::load_rollout(tx, rollout.id).await?;
    Ok(Requested {
        rollout,
        job,
        pokes,
    })
}

/// Has a locked workspace restarted onto a digest and writes that down; one that may not be restarted, such as a paused one,
/// is left. The queue to poke.
async fn restart_onto(
    tx: &mut PgConnection,
    rollout: &Rollout,
    workspace: &Workspace,
    digest: Option<&str>,
    part: Part,
    by: &str,
) -> Result<Option<String>, RequestError> {
    let asked = request_after_change(tx, workspace, Source::Image, Duration::ZERO, by).await?;
    let taken = match &asked {
        Some(job) => Taken {
            workspace,
            digest,
            part,
            job_id: Some(job.job_id),
            reason: None,
        },
        None => Taken {
            workspace,
            digest: digest.filter(|_| part == Part::Restoring),
            part: Part::Left,
            job_id: None,
            reason: Some("it may not be restarted now"),
        },
    };
    take(tx, rollout, taken).await?;
    Ok(asked.map(|job| job.queue))
}

/// What the end of its job means to a rollout: one that was not finished is held, so that somebody looks.
pub struct RolloutHooks;

#[async_trait]
impl Hooks for RolloutHooks {
    async fn on_terminal(&self, tx: &mut PgConnection, job: &TerminalJob) -> Result<(), HookError> {
        let reason = match job.outcome {
            Outcome::Succeeded | Outcome::Superseded => return Ok(()),
            Outcome::Dead => job.reason.as_deref().unwrap_or("its job failed"),
            Outcome::Cancelled => job.reason.as_deref().unwrap_or("its job was cancelled"),
        };
        let Ok(args) = Args::deserialize(&job.args) else {
            return Ok(());
        };
        let rollout = match lock_rollout(tx, args.rollout_id).await {
            Ok(rollout) => rollout,
            Err(RolloutError::Unknown) => return Ok(()),
            Err(error) => return Err(HookError::new("looking at the rollout", error)),
        };
        let goes_on = matches!(
            rollout.state,
            RolloutState::Running | RolloutState::RollingBack
        );
        // A later job may have it by now.
        if goes_on && rollout.job_id == Some(job.id) {
            record_held(tx, &rollout, reason)
                .await
                .map_err(|error| HookError::new("holding the rollout", error))?;
        }
        Ok(())
    }

    async fn on_retry(
        &self,
        _tx: &mut PgConnection,
        _job: &TerminalJob,
    ) -> Result<Revival, HookError> {
        Ok(Revival::Refused(
            "resume the rollout or roll it back; either asks for a job of its own".into(),
        ))
    }
}
