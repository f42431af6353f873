//! `reseal`: seals every stored secret with the current key (`spec: lifecycle` §9.1).
//!
//! In parts of a hundred rows, each one transaction with the place it has come to, so a death costs one part's work. It
//! changes no value: every secret is readable before, meanwhile and after.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use longshore_base::failpoint;
use longshore_fleet::idempotency::other_key_needed_until;
use longshore_fleet::secrets::{Rotation, count_sealed_otherwise, rotate_part};
use longshore_fleet::{Fleet, FleetError};
use longshore_ledger::{
    Enqueued, Executor, Fenced, FencedTx, JobError, LedgerError, Policy, Progress, RunContext,
    Verdict,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::PgConnection;

use crate::{deployment, verdicts};

/// The kind's name; it acts on no engine, so it is its queue's too.
pub const KIND: &str = "reseal";
/// Shapes of [`Args`] this version reads.
pub const ARGS_VERSIONS: &[i16] = &[1];
/// How rotations are tried and limited.
pub const POLICY: Policy = deployment::policy(1);
/// Until it looks again whether this worker has got the key by now, or what was held is free.
const LATER: Duration = Duration::from_secs(5);

/// What to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Args {
    /// The id of the key that seals from now on.
    pub key_id: String,
}

/// Asks for a rotation to a key, in the transaction that has seen that every other key is there.
///
/// # Errors
/// [`LedgerError`]; nothing may be committed then.
pub async fn request(
    tx: &mut PgConnection,
    key_id: &str,
    created_by: &str,
) -> Result<Enqueued, LedgerError> {
    let args = Args {
        key_id: key_id.to_owned(),
    };
    let (keys, id) = (vec![KIND.to_owned()], key_id.to_owned());
    deployment::request(tx, (KIND, &POLICY), keys, id, args, created_by).await
}

/// Runs rotations.
pub struct ResealExecutor {
    /// Whose key ring it is.
    pub fleet: Arc<Fleet>,
}

#[async_trait]
impl Executor for ResealExecutor {
    async fn run(&self, ctx: &RunContext) -> Verdict {
        let job = ctx.job();
        let args: Args = match job.read_args() {
            Ok(args) => args,
            Err(unreadable) => return Verdict::Permanent(unreadable),
        };
        let current = self.fleet.keys.current_id().unwrap_or("none");
        if current != args.key_id {
            let why = format!(
                "this worker seals with the key {current}, and {} is asked for",
                args.key_id
            );
            return Verdict::Snooze(LATER, why);
        }
        tracing::info!(job.id = %job.id, job.kind = job.kind, attempt = job.attempt, key = args.key_id, "rotation entered");
        let mut rotation: Rotation = deployment::read_checkpoint(job);
        while !rotation.finished {
            if ctx.stopped().is_some() {
                return ctx.stopped_verdict();
            }
            rotation = match self.part(ctx, &rotation).await {
                Ok(rotation) => rotation,
                Err(error) => return error.verdict(),
            };
            failpoint::hit("reseal.part").await;
        }
        match self.end(ctx, &args.key_id, &rotation).await {
            Ok(verdict) => verdict,
            Err(error) => error.verdict(),
        }
    }
}

impl ResealExecutor {
    async fn part(&self, ctx: &RunContext, rotation: &Rotation) -> Result<Rotation, PartError> {
        let mut tx = ctx.begin().await?;
        let next = rotate_part(tx.connection(), &self.fleet, rotation).await?;
        record(&mut tx, &next).await?;
        tx.record_progress(&Progress {
            step: "sealing".to_owned(),
            steps_done: u32::try_from(next.seen).unwrap_or(u32::MAX),
            steps_total: None,
            message: Some(counts(&next).to_string()),
            percent: None,
        })
        .await?;
        tx.commit().await?;
        Ok(next)
    }

    /// A pass has seen every row. What somebody held, or wrote with another key behind its back, is for the next one.
    async fn end(
        &self,
        ctx: &RunContext,
        key_id: &str,
        rotation: &Rotation,
    ) -> Result<Verdict, PartError> {
        let mut tx = ctx.begin().await?;
        let otherwise = count_sealed_otherwise(tx.connection(), key_id).await?;
        let left = u64::try_from(otherwise)
            .unwrap_or_default()
            .saturating_sub(rotation.unreadable);
        if rotation.skipped > 0 || left > 0 {
            record(&mut tx, &rotation.again()).await?;
            tx.commit().await?;
            let why = "some secrets were in use, or were sealed with another key meanwhile";
            return Ok(Verdict::Snooze(LATER, why.to_owned()));
        }
        if rotation.unreadable > 0 {
            // Run again it must look at all of them anew.
            record(&mut tx, &rotation.again()).await?;
            tx.commit().await?;
            return Ok(Verdict::Permanent(JobError::plain(format!(
                "{} were sealed anew, but no configured key opens {}: {}; add the missing key to \
                 SECRETS_ENCRYPTION_KEYS, after the new one, start all processes again and retry this job",
                rotation.resealed,
                rotation.unreadable,
                rotation.named.join(", ")
            ))));
        }
        let until = other_key_needed_until(tx.connection(), key_id).await?;
        let mut result = counts(rotation);
        result["key_id"] = json!(key_id);
        result["old_key_needed_until"] = json!(until);
        tracing::info!(job.id = %ctx.job().id, key = key_id, resealed = rotation.resealed, "every secret is sealed with the current key");
        Ok(Verdict::Done(Some(result)))
    }
}

async fn record(tx: &mut FencedTx, rotation: &Rotation) -> Result<(), Fenced> {
    tx.record_checkpoint(serde_json::to_value(rotation).unwrap_or_default())
        .await
}

fn counts(rotation: &Rotation) -> Value {
    json!({ "seen": rotation.seen, "resealed": rotation.resealed, "unreadable": rotation.unreadable })
}

enum PartError {
    Fenced(Fenced),
    Fleet(FleetError),
}

impl PartError {
    fn verdict(self) -> Verdict {
        match self {
            Self::Fenced(fenced) => verdicts::of_fence(&fenced),
            Self::Fleet(error) => {
                Verdict::Retry(JobError::new("secrets could not be sealed anew", &error))
            }
        }
    }
}

impl From<Fenced> for PartError {
    fn from(fenced: Fenced) -> Self {
        Self::Fenced(fenced)
    }
}

impl From<FleetError> for PartError {
    fn from(error: FleetError) -> Self {
        Self::Fleet(error)
    }
}
