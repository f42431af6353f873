//! `secret-fanout`: has every workspace restarted that gets a global secret, one after the other (`spec: lifecycle` §4.7,
//! `spec: rest-api` §6.10).
//!
//! Left alone are those that do not run, those that run elsewhere, and those with a secret of their own by that name. Each
//! restart rests half a second longer than the one before, so that a fleet does not go down at once.

use std::time::Duration;

use async_trait::async_trait;
use longshore_base::{WorkspaceId, failpoint};
use longshore_fleet::FleetError;
use longshore_fleet::secrets::list_affected_workspaces;
use longshore_fleet::workspace::lock_workspace;
use longshore_ledger::{
    Admitter, Enqueued, Executor, Fenced, JobError, LedgerError, Policy, Progress, RunContext,
    Verdict,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::PgConnection;

use crate::restart::{ChangeRestartError, Source, request_after_change};
use crate::{deployment, verdicts};

/// The kind's name; it acts on no engine, so it is its queue's too.
pub const KIND: &str = "secret-fanout";
/// Shapes of [`Args`] this version reads.
pub const ARGS_VERSIONS: &[i16] = &[1];
/// How fan-outs are tried and limited.
pub const POLICY: Policy = deployment::policy(2);
/// Between the restarts of two workspaces.
const APART: Duration = Duration::from_millis(500);

/// What to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Args {
    /// The name of the secret that changed.
    pub key: String,
}

/// How far it is.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Spread {
    after: Option<WorkspaceId>,
    restarted: u32,
}

/// Asks for a fan-out, in the transaction that changed the secret.
///
/// # Errors
/// [`LedgerError`]; nothing may be committed then.
pub async fn request(
    tx: &mut PgConnection,
    key: &str,
    created_by: &str,
) -> Result<Enqueued, LedgerError> {
    let args = Args {
        key: key.to_owned(),
    };
    let name = key.to_owned();
    deployment::request(tx, (KIND, &POLICY), Vec::new(), name, args, created_by).await
}

/// Runs fan-outs.
pub struct SecretFanoutExecutor {
    /// Told what may be admitted.
    pub admitter: Admitter,
}

#[async_trait]
impl Executor for SecretFanoutExecutor {
    async fn run(&self, ctx: &RunContext) -> Verdict {
        let job = ctx.job();
        let args: Args = match job.read_args() {
            Ok(args) => args,
            Err(unreadable) => return Verdict::Permanent(unreadable),
        };
        let mut spread: Spread = deployment::read_checkpoint(job);
        loop {
            if ctx.stopped().is_some() {
                return ctx.stopped_verdict();
            }
            match self.next(ctx, &args.key, &spread).await {
                Ok(Some(next)) => spread = next,
                Ok(None) => break,
                Err(error) => return error.verdict(),
            }
            failpoint::hit("fanout.part").await;
        }
        tracing::info!(job.id = %job.id, secret.name = args.key, restarted = spread.restarted, "the workspaces with a changed secret are restarted");
        Verdict::Done(Some(json!({ "restarted": spread.restarted })))
    }
}

impl SecretFanoutExecutor {
    /// One workspace in one transaction, so that nobody waits for another's row.
    async fn next(
        &self,
        ctx: &RunContext,
        key: &str,
        spread: &Spread,
    ) -> Result<Option<Spread>, SpreadError> {
        let mut tx = ctx.begin().await?;
        let found = list_affected_workspaces(tx.connection(), key, spread.after, 1).await?;
        let Some(id) = found.first().copied() else {
            return Ok(None);
        };
        let mut next = Spread {
            after: Some(id),
            restarted: spread.restarted,
        };
        let mut queue = None;
        if let Some(workspace) = lock_workspace(tx.connection(), id).await? {
            let delay = APART.saturating_mul(spread.restarted);
            let by = &ctx.job().created_by;
            let asked =
                request_after_change(tx.connection(), &workspace, Source::Secret, delay, by)
                    .await?;
            if let Some(enqueued) = asked {
                next.restarted += 1;
                queue = Some(enqueued.queue);
            }
        }
        tx.record_checkpoint(serde_json::to_value(&next).unwrap_or_default())
            .await?;
        tx.record_progress(&Progress {
            step: "restarting".to_owned(),
            steps_done: next.restarted,
            steps_total: None,
            message: None,
            percent: None,
        })
        .await?;
        tx.commit().await?;
        queue.iter().for_each(|queue| self.admitter.poke(queue));
        Ok(Some(next))
    }
}

enum SpreadError {
    Fenced(Fenced),
    Change(ChangeRestartError),
}

impl SpreadError {
    fn verdict(self) -> Verdict {
        match self {
            Self::Fenced(fenced) => verdicts::of_fence(&fenced),
            Self::Change(error) => {
                Verdict::Retry(JobError::new("a restart could not be requested", &error))
            }
        }
    }
}

impl From<Fenced> for SpreadError {
    fn from(fenced: Fenced) -> Self {
        Self::Fenced(fenced)
    }
}

impl From<FleetError> for SpreadError {
    fn from(error: FleetError) -> Self {
        Self::Change(error.into())
    }
}

impl From<ChangeRestartError> for SpreadError {
    fn from(error: ChangeRestartError) -> Self {
        Self::Change(error)
    }
}
