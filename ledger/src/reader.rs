//! Reads one queue: waits for free permits, takes at most that many hints, claims them in one statement, hands them on.
//! With many permits, and as long as there is a backlog, it takes jobs from the ledger itself, without hints.
//!
//! It never ends its worker, and needs no hint. Each second it claims what has been admitted for a second and was not
//! claimed, straight from the ledger: that heals a publish that never happened, a failover and `FLUSHALL` alike. While
//! Redis is away it reads the ledger every half second: slower, not stopped. It looks for Redis only now and then
//! meanwhile, since one that hangs answers each look with a timeout of seconds.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant};

use longshore_base::{failpoint, random};
use sqlx::PgPool;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::Admitter;
use crate::admission::Aside;
use crate::claim::{Claimant, claim, queued};
use crate::engine::Identity;
use crate::hints::{Delivered, Hint, HintReader, Hints};
use crate::run::{Claims, HandOver};
use crate::taker::Taker;
use crate::{ClaimedJob, LedgerError};

/// Hints claimed by one statement.
const BATCH: usize = 1000;
/// A worker takes what is ready by itself, as long as there is a backlog, with so many slots free: half of them, but
/// within this range. With fewer, what one pass takes would go before a newcomer that should be among the next starts.
const MANY: RangeInclusive<usize> = 16..=64;
/// How long it waits for so many.
const GATHER: Duration = Duration::from_millis(5);
/// Pause before a claim that was not answered is repeated.
pub(crate) const ASK_AGAIN: Duration = Duration::from_millis(100);
/// How often the ledger is read while Redis is away.
const FALLBACK: Duration = Duration::from_millis(500);
/// How long only the ledger is read after Redis did not answer.
const LOOK_FOR_REDIS: Duration = Duration::from_secs(5);

pub(crate) struct QueueReader {
    pub(crate) queue: String,
    pub(crate) pool: PgPool,
    pub(crate) hints: HintReader,
    /// For handing hints on to others.
    pub(crate) publisher: Hints,
    pub(crate) identity: Identity,
    pub(crate) permits: Arc<Semaphore>,
    /// Free permits, or jobs found at once, that are many: see [`many`].
    pub(crate) many: usize,
    pub(crate) hand_over: HandOver,
    pub(crate) claims: Claims,
    pub(crate) admitter: Admitter,
    /// What was admitted so long ago is claimed without a hint.
    pub(crate) unhinted_after: Duration,
    /// When the ledger was last read for that.
    pub(crate) looked: Instant,
    pub(crate) stop: CancellationToken,
    pub(crate) taker: Taker,
}

/// How many are many to a worker with these slots.
pub(crate) fn many(slots: usize) -> usize {
    let least = failpoint::number("LONGSHORE_MANY", *MANY.start());
    (slots / 2).clamp(least, *MANY.end())
}

impl QueueReader {
    /// Reads until told to stop; then leaves the consumer group.
    pub(crate) async fn run(mut self) {
        let mut redis_away: Option<Instant> = None;
        let mut backlog = true;
        let mut aside = None;
        while let Some(mut permits) = self.next_permits(&mut aside).await {
            if backlog && self.looked.elapsed() <= self.unhinted_after {
                permits = self.gather(permits).await;
                if self.stop.is_cancelled() || self.identity.is_draining() {
                    continue;
                }
                if permits.num_permits() >= self.many {
                    aside.get_or_insert_with(|| self.admitter.step_aside(&self.queue));
                    backlog = self.taker.take(permits).await;
                    if self.permits.available_permits() < self.many {
                        // Its runs are what frees them.
                        backlog &= self.taker.until_given().await;
                    }
                    if !backlog {
                        aside = None;
                    }
                    continue;
                }
                backlog = false;
                self.admitter.poke(&self.queue);
            }
            // What follows takes what was admitted.
            aside = None;
            let most = permits.num_permits();
            let delivered = if redis_away.is_some_and(|since| since.elapsed() < LOOK_FOR_REDIS) {
                self.wait_for_fallback().await;
                self.looked = Instant::now();
                self.read_ledger(Duration::ZERO, most).await
            } else if self.looked.elapsed() > self.unhinted_after {
                // However busy the stream is: what nobody hinted at must not wait for a quiet moment.
                self.looked = Instant::now();
                self.read_ledger(self.unhinted_after, most).await
            } else {
                match self.hints.read(most).await {
                    Ok(delivered) => {
                        if redis_away.take().is_some() {
                            tracing::info!(queue = self.queue, "Redis is back");
                        }
                        delivered
                    }
                    Err(error) => {
                        if redis_away.is_none() {
                            tracing::warn!(queue = self.queue, %error, "cannot read hints; reading the ledger instead");
                        }
                        redis_away = Some(Instant::now());
                        self.read_ledger(Duration::ZERO, most).await
                    }
                }
            };
            if delivered.is_empty() {
                continue;
            }
            if self.stop.is_cancelled() || self.identity.is_draining() {
                self.pass_on(delivered).await;
            } else {
                backlog = self.take(delivered, permits).await >= self.many;
            }
        }
        self.taker.until_given().await;
        if let Err(error) = self.hints.leave().await {
            tracing::debug!(queue = self.queue, %error, "the consumer stays in its group until the next start");
        }
    }

    /// As [`Self::free_permits`]; where none gets free in a moment, others may be served meanwhile.
    async fn next_permits(&self, aside: &mut Option<Aside>) -> Option<OwnedSemaphorePermit> {
        if aside.is_some() {
            if let Ok(permits) = timeout(GATHER, self.free_permits()).await {
                return permits;
            }
            *aside = None;
        }
        self.free_permits().await
    }

    /// Waits for one free permit and takes along what else is free; `None` once it is time to stop.
    async fn free_permits(&self) -> Option<OwnedSemaphorePermit> {
        let first = tokio::select! {
            biased;
            () = self.stop.cancelled() => return None,
            permit = async {
                self.identity.until_taking().await;
                Arc::clone(&self.permits).acquire_owned().await
            } => permit.ok()?,
        };
        Some(self.with_all_free(first))
    }

    /// Adds what is free now, up to one batch.
    fn with_all_free(&self, mut permits: OwnedSemaphorePermit) -> OwnedSemaphorePermit {
        let more = self
            .permits
            .available_permits()
            .min(BATCH.saturating_sub(permits.num_permits()));
        if let Ok(count) = u32::try_from(more)
            && count > 0
            && let Ok(rest) = Arc::clone(&self.permits).try_acquire_many_owned(count)
        {
            permits.merge(rest);
        }
        permits
    }

    /// Waits a moment for many permits: where runs are short, they are free at once.
    async fn gather(&self, mut permits: OwnedSemaphorePermit) -> OwnedSemaphorePermit {
        let missing = self.many.saturating_sub(permits.num_permits());
        if let Ok(missing) = u32::try_from(missing)
            && missing > 0
            && let Ok(Ok(rest)) = timeout(
                GATHER,
                Arc::clone(&self.permits).acquire_many_owned(missing),
            )
            .await
        {
            permits.merge(rest);
        }
        self.with_all_free(permits)
    }

    async fn wait_for_fallback(&self) {
        tokio::select! {
            () = tokio::time::sleep(random::jittered(FALLBACK)) => {}
            () = self.stop.cancelled() => {}
        }
    }

    /// What has been admitted for at least so long and is not claimed, whether it was hinted at or not.
    async fn read_ledger(&self, for_at_least: Duration, most: usize) -> Vec<Delivered> {
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        match queued(&self.pool, &self.queue, for_at_least, most).await {
            Ok(hints) => hints
                .into_iter()
                .map(|hint| Delivered {
                    entry: String::new(),
                    hint: Some(hint),
                })
                .collect(),
            Err(error) => {
                tracing::warn!(
                    queue = self.queue,
                    error = &error as &dyn std::error::Error,
                    "cannot read the ledger either"
                );
                Vec::new()
            }
        }
    }

    /// Leaves hints to other workers: this one was told to take no more while it was reading.
    async fn pass_on(&mut self, delivered: Vec<Delivered>) {
        let (entries, hints): (Vec<_>, Vec<_>) = delivered
            .into_iter()
            .filter(|delivered| !delivered.entry.is_empty())
            .map(|delivered| (delivered.clone(), delivered.hint))
            .unzip();
        let hints: Vec<Hint> = hints.into_iter().flatten().collect();
        self.publisher.publish(&self.queue, &hints).await;
        if !entries.is_empty()
            && let Err(error) = self.hints.acknowledge(&entries).await
        {
            tracing::debug!(queue = self.queue, %error, "hints not acknowledged; others will take them over");
        }
    }

    /// Claims, and asks again until there is an answer: it may have been claimed although the answer was lost. Fails when a
    /// row is locked, or when there is no answer and this worker leaves.
    async fn claim(&self, hints: &[Hint]) -> Result<Vec<ClaimedJob>, LedgerError> {
        let claimant = Claimant::new(self.identity.name());
        loop {
            match claim(&self.pool, &claimant, hints).await {
                Err(error) if !error.is_lock_timeout() && !self.stop.is_cancelled() => {
                    tracing::warn!(
                        queue = self.queue,
                        error = &error as &dyn std::error::Error,
                        "no answer to a claim; asking again"
                    );
                    tokio::time::sleep(random::jittered(ASK_AGAIN)).await;
                }
                answer => return answer,
            }
        }
    }

    /// Claims one by one, so that a locked row keeps no other job waiting. That one is found in the ledger later.
    async fn claim_each(&self, hints: &[Hint]) -> Vec<ClaimedJob> {
        let mut jobs = Vec::with_capacity(hints.len());
        for hint in hints {
            match self.claim(std::slice::from_ref(hint)).await {
                Ok(claimed) => jobs.extend(claimed),
                Err(error) => tracing::warn!(
                    job.id = %hint.job_id,
                    queue = self.queue,
                    error = &error as &dyn std::error::Error,
                    "cannot claim a job; it is tried again later"
                ),
            }
        }
        jobs
    }

    /// Claims what was hinted at; answers how many jobs that were.
    async fn take(&mut self, delivered: Vec<Delivered>, permits: OwnedSemaphorePermit) -> usize {
        let hints: Vec<Hint> = delivered
            .iter()
            .filter_map(|delivered| delivered.hint)
            .collect();
        let in_claim = self.claims.begin().await;
        let jobs = match self.claim(&hints).await {
            Ok(jobs) => jobs,
            Err(error) if error.is_lock_timeout() => self.claim_each(&hints).await,
            Err(error) => {
                tracing::warn!(
                    queue = self.queue,
                    error = &error as &dyn std::error::Error,
                    "cannot claim jobs; what was claimed all the same is taken over once this worker has left"
                );
                Vec::new()
            }
        };
        failpoint::hit("claim.committed").await;
        let stale = hints.len() - jobs.len();
        if stale > 0 {
            metrics::counter!("longshore_hints_stale_total").increment(stale as u64);
        }
        let claimed = jobs.len();
        self.hand_over.hand_on(jobs, permits, &in_claim).await;
        if claimed < self.many {
            // Else this worker looks for more itself.
            self.admitter.poke(&self.queue);
        }
        let entries: Vec<Delivered> = delivered
            .into_iter()
            .filter(|delivered| !delivered.entry.is_empty())
            .collect();
        if !entries.is_empty()
            && let Err(error) = self.hints.acknowledge(&entries).await
        {
            tracing::debug!(queue = self.queue, %error, "hints not acknowledged; they will find nothing to claim");
        }
        claimed
    }
}
