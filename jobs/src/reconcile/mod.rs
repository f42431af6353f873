//! `reconcile`: one pass of a reconciler out of turn, because an operator asked for it.
//!
//! Reconcilers live in the worker, and with them the executor of this kind. A job for an engine's scope waits at that
//! engine's place, since only its workers can look there.

use std::time::Duration;

use longshore_ledger::{Backoff, Enqueued, Jitter, LedgerError, NewJob, Policy, enqueue};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;

pub use crate::deployment::TENANT;
use crate::{deployment, place};

/// The kind's name.
pub const KIND: &str = "reconcile";
/// Shapes of [`Args`] this version reads.
pub const ARGS_VERSIONS: &[i16] = &[1];
/// How passes that were asked for are tried and limited.
pub const POLICY: Policy = Policy {
    max_attempts: 3,
    backoff: Backoff {
        base: Duration::from_secs(1),
        cap: Duration::from_secs(30),
        jitter: Jitter::Full,
    },
    timeout: Duration::from_secs(660),
    deadline: Duration::from_secs(3600),
    concurrency: 2,
};
/// The scope of a reconciler that looks at everything.
pub const EVERYTHING: &str = "all";

/// Which pass.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Args {
    /// The reconciler.
    pub name: String,
    /// An engine's id, or [`EVERYTHING`].
    pub scope: String,
    /// Only look.
    pub dry_run: bool,
}

/// Asks for a pass. One that waits already takes the request over.
///
/// # Errors
/// [`LedgerError`]; nothing may be committed then.
pub async fn request(
    tx: &mut PgConnection,
    args: &Args,
    created_by: &str,
) -> Result<Enqueued, LedgerError> {
    let queue = if args.scope == EVERYTHING {
        KIND.to_owned()
    } else {
        place::queue(KIND, &args.scope)
    };
    let dedupe_key = format!("{}:{}:{}", args.name, args.scope, args.dry_run);
    let job = deployment::job((KIND, &POLICY), Vec::new(), dedupe_key, args, created_by);
    enqueue(tx, NewJob { queue, ..job }).await
}
