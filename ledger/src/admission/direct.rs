//! Admission for a worker that has room for many at once: from scheduled to running in one step, without hint and claim.
//!
//! It is the same pass, with the same controls, limits, turns and slots, but what it picks starts at once. Only
//! worth the queue's lock for many jobs: a worker whose slots come free one by one waits for hints.

use sqlx::{PgConnection, PgPool, Postgres, Transaction};
use uuid::Uuid;

use super::pick::{Progress, pick};
use super::{BATCH, For, open};
use crate::claim::{Claimant, give, given};
use crate::{ClaimedJob, LedgerError};

/// Jobs picked for a worker, in a transaction that has their rows and slots.
pub(crate) struct Offer {
    tx: Transaction<'static, Postgres>,
    ids: Vec<Uuid>,
    /// How many of them nobody had admitted before.
    admitted: usize,
    /// Whether there may be more to take at once.
    pub(crate) more: bool,
    /// Whether another pass may begin before this one has ended.
    pub(crate) shared: bool,
}

/// Jobs that a worker has now.
pub(crate) struct Given {
    pub(crate) jobs: Vec<ClaimedJob>,
    /// How many of them nobody had admitted before.
    pub(crate) admitted: usize,
}

/// How giving ended.
pub(crate) enum Gave {
    Jobs(Given),
    /// The claimant takes no more, or was declared dead.
    Refused,
    /// No answer to the commit: it may have given them. To be asked for with [`given_before`].
    Unanswered(LedgerError),
}

/// Picks at most `most` jobs, and at most what one pass admits.
///
/// Where no limits are to be kept and only one tenant has jobs, passes do not need the queue's lock for themselves: each
/// row goes to one of them, each slot too. Then they share it, and one picks while another's jobs are being given.
///
/// # Errors
/// Nothing was taken.
pub(crate) async fn pick_for(
    pool: &PgPool,
    queue: &str,
    most: usize,
    progress: &mut Progress,
) -> Result<Offer, LedgerError> {
    let mut shared = progress.is_alone();
    let (mut tx, mut room) = open(pool, queue, For::Itself { shared }).await?;
    progress.note_room(room.is_plain());
    if shared && !room.is_plain() {
        shared = false;
        drop(tx);
        (tx, room) = open(pool, queue, For::Itself { shared }).await?;
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
    Ok(Offer {
        tx,
        ids,
        admitted,
        more,
        shared,
    })
}

impl Offer {
    /// Gives them to the claimant.
    ///
    /// # Errors
    /// Nothing was taken.
    pub(crate) async fn give(mut self, claimant: &Claimant) -> Result<Gave, LedgerError> {
        let Some(jobs) = give(&mut self.tx, claimant, &self.ids).await? else {
            return Ok(Gave::Refused);
        };
        let admitted = self.admitted;
        Ok(match self.tx.commit().await {
            Ok(()) => Gave::Jobs(Given { jobs, admitted }),
            Err(error) => Gave::Unanswered(LedgerError::database("committing an admission")(error)),
        })
    }
}

/// What a commit gave that was not answered. It has ended, since this has the queue's lock for itself.
pub(crate) async fn given_before(
    pool: &PgPool,
    queue: &str,
    claimant: &Claimant,
) -> Result<Given, LedgerError> {
    let (mut tx, _) = open(pool, queue, For::Itself { shared: false }).await?;
    let jobs = given(&mut tx, claimant).await?;
    Ok(Given {
        admitted: jobs.len(),
        jobs,
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
