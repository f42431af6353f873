//! Admission for a worker that has room for many at once: from scheduled to running in one step, without hint and claim.
//!
//! It is the same pass, with the same lock, controls, limits, turns and slots, but what it picks starts at once. Only
//! worth the queue's lock for many jobs: a worker whose slots come free one by one waits for hints.

use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use super::pick::{Progress, pick};
use super::{BATCH, For, open};
use crate::claim::{Claimant, give, given};
use crate::{ClaimedJob, LedgerError};

/// What a worker took.
#[derive(Default)]
pub(crate) struct Taken {
    pub(crate) jobs: Vec<ClaimedJob>,
    /// How many of them nobody had admitted before.
    pub(crate) admitted: usize,
    /// Whether there may be more to take at once.
    pub(crate) more: bool,
}

/// How a try ended that came to its commit.
pub(crate) enum Tried {
    Taken(Taken),
    /// No answer to the commit: it may have taken jobs. To be repeated with the same claimant, until it is answered.
    Unanswered(LedgerError),
}

/// Takes at most `most` jobs, and at most what one pass admits. Of an earlier try whose commit was not answered, it first
/// looks for what that took, and that is the answer if there is any: it has ended, since this one has the queue's lock.
///
/// # Errors
/// This try has taken nothing.
pub(crate) async fn admit_to(
    pool: &PgPool,
    queue: &str,
    claimant: &Claimant,
    most: usize,
    again: bool,
    progress: &mut Progress,
) -> Result<Tried, LedgerError> {
    let (mut tx, room) = open(pool, queue, For::Itself).await?;
    if again {
        let jobs = given(&mut tx, claimant).await?;
        if !jobs.is_empty() {
            return Ok(Tried::Taken(Taken {
                admitted: jobs.len(),
                jobs,
                more: true,
            }));
        }
    }
    let size = i64::try_from(most).unwrap_or(BATCH).min(BATCH);
    let mut ids = Vec::new();
    let mut admitted = 0;
    let mut more = false;
    if !room.closed {
        if room.queued > 0 {
            ids = queued_first(&mut tx, queue, size).await?;
        }
        let picked = pick(&mut tx, queue, size - ids.len() as i64, &room, progress).await?;
        admitted = picked.ids.len();
        ids.extend(picked.ids);
        more = picked.more || ids.len() as i64 == size;
    }
    let Some(jobs) = give(&mut tx, claimant, &ids).await? else {
        return Ok(Tried::Taken(Taken::default()));
    };
    Ok(match tx.commit().await {
        Ok(()) => Tried::Taken(Taken {
            jobs,
            admitted,
            more,
        }),
        Err(error) => Tried::Unanswered(LedgerError::database("committing an admission")(error)),
    })
}

/// Jobs that were admitted before and that nobody has claimed yet: whoever was chosen first goes first. Their hints will
/// find nothing to claim.
async fn queued_first(
    tx: &mut PgConnection,
    queue: &str,
    most: i64,
) -> Result<Vec<Uuid>, LedgerError> {
    sqlx::query_scalar!(
        "SELECT id FROM jobs WHERE queue = $1 AND state = 'queued' ORDER BY queued_at, priority, seq LIMIT $2
         FOR NO KEY UPDATE SKIP LOCKED",
        queue,
        most,
    )
    .fetch_all(tx)
    .await
    .map_err(LedgerError::database("reading queued jobs"))
}
