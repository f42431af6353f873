//! What the kinds share that work through many things in parts, for no workspace and no organisation.

use std::time::Duration;

use longshore_ledger::{
    Backoff, ClaimedJob, Enqueued, Jitter, LedgerError, NewJob, Policy, enqueue,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::PgConnection;

/// They work for no organisation.
pub const TENANT: &str = "operators";

/// How they are tried and limited, so many at a time in one worker.
pub(crate) const fn policy(concurrency: usize) -> Policy {
    Policy {
        max_attempts: 10,
        backoff: Backoff {
            base: Duration::from_secs(1),
            cap: Duration::from_secs(60),
            jitter: Jitter::Full,
        },
        timeout: Duration::from_secs(3600),
        deadline: Duration::from_secs(24 * 3600),
        concurrency,
    }
}

/// Asks for a job of such a kind, whose queue has its name.
///
/// # Errors
/// [`LedgerError`]; nothing may be committed then.
pub(crate) async fn request(
    tx: &mut PgConnection,
    kind: (&'static str, &Policy),
    keys: Vec<String>,
    dedupe_key: String,
    args: impl Serialize + Send,
    created_by: &str,
) -> Result<Enqueued, LedgerError> {
    enqueue(tx, job(kind, keys, dedupe_key, args, created_by)).await
}

/// The job that [`request`] asks for.
pub(crate) fn job(
    (kind, policy): (&'static str, &Policy),
    keys: Vec<String>,
    dedupe_key: String,
    args: impl Serialize,
    created_by: &str,
) -> NewJob {
    NewJob {
        kind,
        queue: kind.to_owned(),
        tenant: TENANT.to_owned(),
        workspace_id: None,
        keys,
        dedupe_key: Some(dedupe_key),
        args: serde_json::to_value(args).unwrap_or_default(),
        args_version: 1,
        priority: 0,
        delay: Duration::ZERO,
        deadline: policy.deadline,
        max_attempts: policy.max_attempts,
        created_by: created_by.to_owned(),
    }
}

/// How far the runs before have come.
pub(crate) fn read_checkpoint<T: DeserializeOwned + Default>(job: &ClaimedJob) -> T {
    job.checkpoint
        .clone()
        .and_then(|checkpoint| serde_json::from_value(checkpoint).ok())
        .unwrap_or_default()
}
