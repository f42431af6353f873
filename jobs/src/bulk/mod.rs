//! `bulk`: one action over a counted set of jobs, in parts of 500.
//!
//! Each part is one transaction of the run, with the checkpoint in it, so a crash costs at most one part's work and never
//! does anything twice. A retry that a kind refuses counts as failed and changes nothing.

use async_trait::async_trait;
use longshore_ledger::bulk::{BATCH, BulkAction, BulkError, BulkPlan, BulkProgress, step};
use longshore_ledger::{
    Admitter, Enqueued, Executor, Fenced, JobError, Kinds, LedgerError, Policy, Progress,
    RunContext, Verdict,
};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;

use crate::{deployment, verdicts};

/// The kind's name; it acts on no engine, so it is its queue's too.
pub const KIND: &str = "bulk";
/// Shapes of [`Args`] this version reads.
pub const ARGS_VERSIONS: &[i16] = &[1];
/// How bulk actions are tried and limited.
pub const POLICY: Policy = deployment::policy(2);

/// What to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Args {
    /// The counted set.
    pub plan: BulkPlan,
}

/// Asks that a plan is applied, in the transaction that took it.
///
/// # Errors
/// [`LedgerError`]; nothing may be committed then.
pub async fn request(
    tx: &mut PgConnection,
    plan: BulkPlan,
    created_by: &str,
) -> Result<Enqueued, LedgerError> {
    let id = plan.id.to_string();
    let args = Args { plan };
    deployment::request(tx, (KIND, &POLICY), Vec::new(), id, args, created_by).await
}

/// Runs bulk actions.
pub struct BulkExecutor {
    /// Whose hooks speak for each job.
    pub kinds: Kinds,
    /// Told what may be admitted after each part.
    pub admitter: Admitter,
}

#[async_trait]
impl Executor for BulkExecutor {
    async fn run(&self, ctx: &RunContext) -> Verdict {
        let job = ctx.job();
        let args: Args = match job.read_args() {
            Ok(args) => args,
            Err(unreadable) => return Verdict::Permanent(unreadable),
        };
        let mut progress: BulkProgress = deployment::read_checkpoint(job);
        while !progress.finished {
            if ctx.stopped().is_some() {
                return ctx.stopped_verdict();
            }
            progress = match self.part(ctx, &args.plan, &progress).await {
                Ok(progress) => progress,
                Err(PartError::Fenced(fenced)) => return verdicts::of_fence(&fenced),
                Err(PartError::Bulk(error @ BulkError::State { .. })) => {
                    return Verdict::Permanent(JobError::new(error.to_string(), &error));
                }
                Err(PartError::Bulk(error)) => {
                    let failure = JobError::new("a part of the bulk action failed", &error);
                    tracing::warn!(job.id = %job.id, job.kind = job.kind, detail = failure.detail, "a part of a bulk action failed");
                    return Verdict::Retry(failure);
                }
            };
        }
        tracing::info!(
            job.id = %job.id, action = ?args.plan.action, matched = args.plan.matched, done = progress.done,
            failed = progress.failed, by = job.created_by, "bulk action done"
        );
        Verdict::Done(Some(counts(&args.plan, &progress)))
    }
}

enum PartError {
    Fenced(Fenced),
    Bulk(BulkError),
}

impl From<Fenced> for PartError {
    fn from(fenced: Fenced) -> Self {
        Self::Fenced(fenced)
    }
}

impl BulkExecutor {
    async fn part(
        &self,
        ctx: &RunContext,
        plan: &BulkPlan,
        progress: &BulkProgress,
    ) -> Result<BulkProgress, PartError> {
        let job = ctx.job();
        let mut tx = ctx.begin().await?;
        let (next, pokes) = step(
            tx.connection(),
            &self.kinds,
            plan,
            &job.created_by,
            job.id,
            progress,
        )
        .await
        .map_err(PartError::Bulk)?;
        tx.record_checkpoint(serde_json::to_value(&next).unwrap_or_default())
            .await?;
        tx.record_progress(&told(plan, &next)).await?;
        tx.commit().await?;
        pokes.iter().for_each(|queue| self.admitter.poke(queue));
        if plan.action == BulkAction::Cancel {
            self.admitter.poke_cancels();
        }
        Ok(next)
    }
}

fn counts(plan: &BulkPlan, progress: &BulkProgress) -> serde_json::Value {
    serde_json::json!({ "done": progress.done, "matched": plan.matched, "failed": progress.failed })
}

fn told(plan: &BulkPlan, progress: &BulkProgress) -> Progress {
    let seen = progress.done + progress.failed;
    let percent = if plan.matched > 0 {
        u8::try_from((seen * 100 / plan.matched).min(100)).ok()
    } else {
        None
    };
    Progress {
        step: "applying".to_owned(),
        steps_done: u32::try_from(seen / BATCH).unwrap_or(u32::MAX),
        steps_total: u32::try_from((plan.matched + BATCH - 1) / BATCH).ok(),
        message: Some(counts(plan, progress).to_string()),
        percent,
    }
}
