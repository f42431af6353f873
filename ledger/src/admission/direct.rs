//! Admission for a worker that has room for many at once: from scheduled to running in one step, without hint and claim.
//!
//! It is the same pass, with the same lock, controls, limits, turns and slots, but what it picks starts at once. Only
//! worth the queue's lock for many jobs: a worker whose slots come free one by one waits for hints.

use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use super::pick::pick;
use super::{BATCH, open};
use crate::claim::{Claimant, give, given};
use crate::{ClaimedJob, LedgerError};

/// What a worker took.
#[derive(Default)]
pub(crate) struct Taken {
    pub(crate) jobs: Vec<ClaimedJob>,
    /// Whether there may be more to take at once.
    pub(crate) more: bool,
}

/// Takes at most `most` jobs, and at most what one pass admits. To be repeated with the same claimant, and with `again`,
/// until it is answered: a pass may be committed although its answer is lost. The earlier try has ended when a later one
/// has the queue's lock.
pub(crate) async fn admit_to(
    pool: &PgPool,
    queue: &str,
    claimant: &Claimant,
    most: usize,
    again: bool,
) -> Result<Taken, LedgerError> {
    let (mut tx, room) = open(pool, queue).await?;
    if again {
        let jobs = given(&mut tx, claimant).await?;
        if !jobs.is_empty() {
            return Ok(Taken { jobs, more: true });
        }
    }
    let size = i64::try_from(most).unwrap_or(BATCH).min(BATCH);
    let mut ids = Vec::new();
    let mut more = false;
    if !room.closed {
        if room.queued > 0 {
            ids = queued_first(&mut tx, queue, size).await?;
        }
        let picked = pick(&mut tx, queue, size - ids.len() as i64, &room).await?;
        ids.extend(picked.ids);
        more = picked.more || ids.len() as i64 == size;
    }
    let Some(jobs) = give(&mut tx, claimant, &ids).await? else {
        return Ok(Taken::default());
    };
    tx.commit()
        .await
        .map_err(LedgerError::database("committing an admission"))?;
    Ok(Taken { jobs, more })
}

/// Jobs that were admitted before and that nobody has claimed yet: whoever was chosen first goes first. Their hints will
/// find nothing to claim.
async fn queued_first(
    tx: &mut PgConnection,
    queue: &str,
    most: i64,
) -> Result<Vec<Uuid>, LedgerError> {
    sqlx::query_scalar!(
        "SELECT id FROM jobs WHERE queue = $1 AND state = 'queued' ORDER BY queued_at LIMIT $2
         FOR NO KEY UPDATE SKIP LOCKED",
        queue,
        most,
    )
    .fetch_all(tx)
    .await
    .map_err(LedgerError::database("reading queued jobs"))
}
