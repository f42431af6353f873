//! Takes a backlog for a worker straight from the ledger, without hints: picks, gives, hands on.
//!
//! Where passes of admission may share their queue's lock, one is picking while the jobs of those before are being given.

use std::collections::VecDeque;

use longshore_base::{failpoint, random};
use sqlx::PgPool;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::LedgerError;
use crate::admission::Progress;
use crate::admission::direct::{Gave, Given, Offer, given_before, pick_for};
use crate::claim::Claimant;
use crate::engine::Identity;
use crate::reader::ASK_AGAIN;
use crate::run::{Claims, HandOver};

/// Passes at the same time, in different stages. Each has a connection of the control pool.
const SIDE_BY_SIDE: usize = 3;

pub(crate) struct Taker {
    giver: Giver,
    claims: Claims,
    progress: Progress,
    /// Passes whose jobs are being given, the oldest first; `false` when they were not.
    giving: VecDeque<JoinHandle<bool>>,
}

/// What giving needs.
#[derive(Clone)]
struct Giver {
    pool: PgPool,
    identity: Identity,
    hand_over: HandOver,
    stop: CancellationToken,
}

impl Taker {
    /// For the queue whose jobs are handed over there. The pool is the control pool.
    pub(crate) fn new(
        pool: PgPool,
        identity: Identity,
        claims: Claims,
        hand_over: HandOver,
        stop: CancellationToken,
    ) -> Self {
        Self {
            giver: Giver {
                pool,
                identity,
                hand_over,
                stop,
            },
            claims,
            progress: Progress::default(),
            giving: VecDeque::new(),
        }
    }

    /// Picks jobs for as many permits as there are, and begins to give them; `false` when there is nothing more to be had
    /// this way. A pass that fails took nothing, and others go on with hints.
    pub(crate) async fn take(&mut self, permits: OwnedSemaphorePermit) -> bool {
        // Before it has jobs of its own: whoever asks what it was given, unanswered, waits for all others to end.
        let before = self.until_at_most(SIDE_BY_SIDE - 1).await;
        let in_claim = self.claims.begin().await;
        let picked = pick_for(
            &self.giver.pool,
            self.giver.hand_over.queue(),
            permits.num_permits(),
            &mut self.progress,
        );
        let offer = match picked.await {
            Ok(offer) => offer,
            Err(error) => {
                self.giver
                    .warn(&error, "an admission for this worker failed");
                self.progress = Progress::default();
                return false;
            }
        };
        let (more, shared) = (offer.more, offer.shared);
        let giver = self.giver.clone();
        self.giving.push_back(tokio::spawn(async move {
            let Some(given) = giver.give(offer).await else {
                return false;
            };
            failpoint::hit("claim.committed").await;
            metrics::counter!("longshore_jobs_admitted_total", "queue" => giver.hand_over.queue().to_owned())
                .increment(given.admitted as u64);
            giver
                .hand_over
                .hand_on(given.jobs, permits, &in_claim)
                .await;
            true
        }));
        more && before && (shared || self.until_given().await)
    }

    /// Waits until all that was picked has been given and handed on; `false` when some was not.
    pub(crate) async fn until_given(&mut self) -> bool {
        self.until_at_most(0).await
    }

    /// Waits until the jobs of at most so many passes are being given.
    async fn until_at_most(&mut self, passes: usize) -> bool {
        let mut were_given = true;
        while self.giving.len() > passes
            && let Some(giving) = self.giving.pop_front()
        {
            were_given &= giving.await.unwrap_or_default();
        }
        if !were_given {
            // They wait again, before where the next pass would go on.
            self.progress = Progress::default();
        }
        were_given
    }
}

impl Giver {
    /// Gives what was picked; `None` when it was not given. A commit that was not answered is asked for until there is an
    /// answer, or this worker leaves.
    async fn give(&self, offer: Offer) -> Option<Given> {
        let claimant = Claimant::new(self.identity.name());
        match offer.give(&claimant).await {
            Ok(Gave::Jobs(given)) => return Some(given),
            Ok(Gave::Refused) => return None,
            Ok(Gave::Unanswered(error)) => {
                self.warn(&error, "no answer to an admission; asking what it gave");
            }
            Err(error) => {
                self.warn(&error, "an admission for this worker failed");
                return None;
            }
        }
        while !self.stop.is_cancelled() {
            tokio::time::sleep(random::jittered(ASK_AGAIN)).await;
            match given_before(&self.pool, self.hand_over.queue(), &claimant).await {
                // Nothing, where it was not committed.
                Ok(given) => return Some(given).filter(|given| !given.jobs.is_empty()),
                Err(error) => self.warn(
                    &error,
                    "no answer either; asking again what an admission gave",
                ),
            }
        }
        None
    }

    fn warn(&self, error: &LedgerError, what: &str) {
        tracing::warn!(
            queue = self.hand_over.queue(),
            error = error as &dyn std::error::Error,
            "{what}"
        );
    }
}
