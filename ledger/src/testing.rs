//! The engine's steps one at a time, behind the cargo feature `testing`.
//!
//! An [`Engine`](crate::Engine) takes its steps by itself, in tasks of its own and as soon as it can. A test sees where a
//! job ends up, but cannot hold it where it is admitted and not claimed, nor have a worker die between two steps it
//! chose, nor bring a hint or the end of a run late. The model test (`tests/model.rs`) needs just that, and in an order
//! that can be repeated. Each method is one call of what the engine's tasks call; nothing is decided here.

use std::time::Duration;

use longshore_base::{JobId, Secret};
use sqlx::PgPool;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::admission::direct::{Gave, Offer, given_before, pick_for};
use crate::admission::{Admitter, Progress, admit};
use crate::beat::{Registration, register};
use crate::claim::{Claimant, claim, claim_again, record_waiting};
use crate::finish::{Finish, finish_runs};
use crate::hints::{Hint, HintConfig, Hints};
use crate::maintenance::wake_forgotten;
use crate::reaper::Reaper;
use crate::{ClaimedJob, Fenced, FencedTx, Kinds, LedgerError, Verdict};

/// Jobs that a worker is about to get.
pub struct Offered(Offer);

impl std::fmt::Debug for Offered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Offered")
    }
}

impl Offered {
    /// The worker gets them.
    ///
    /// # Errors
    /// [`LedgerError::Database`].
    pub async fn give(self, worker: &str) -> Result<Vec<ClaimedJob>, LedgerError> {
        jobs_of(self.0.give(&Claimant::new(worker.to_owned())).await?)
    }
}

fn jobs_of(given: Gave) -> Result<Vec<ClaimedJob>, LedgerError> {
    match given {
        Gave::Jobs(given) => Ok(given.jobs),
        Gave::Refused => Ok(Vec::new()),
        Gave::Unanswered(error) => Err(error),
    }
}

/// What a worker process and its neighbours do to the ledger, step by step.
#[derive(Debug)]
pub struct Steps {
    pool: PgPool,
    kinds: Kinds,
    admitter: Admitter,
}

impl Steps {
    /// Nobody but [`Self::admit`] admits, and no hint is sent.
    ///
    /// # Panics
    /// Never: the address of no Redis is a valid one.
    #[must_use]
    #[expect(clippy::expect_used, reason = "a constant that parses")]
    pub fn new(pool: PgPool, kinds: Kinds) -> Self {
        let hints = Hints::new(&HintConfig {
            url: Secret::new("redis://127.0.0.1:1".to_owned()),
            prefix: String::new(),
        })
        .expect("an address");
        let stopped = CancellationToken::new();
        stopped.cancel();
        let admitter = Admitter::new(pool.clone(), hints, stopped);
        Self {
            pool,
            kinds,
            admitter,
        }
    }

    /// A worker comes that wants `ahead` jobs of each of these queues waiting for it and has `slots` for them.
    ///
    /// # Errors
    /// [`LedgerError::Database`].
    pub async fn register(
        &self,
        worker: &str,
        queues: &[&str],
        [ahead, slots]: [usize; 2],
    ) -> Result<(), LedgerError> {
        let windows: serde_json::Map<_, _> = queues
            .iter()
            .map(|queue| ((*queue).to_owned(), serde_json::json!([ahead, slots])))
            .collect();
        let worker = Registration {
            name: worker.to_owned(),
            host: "test".into(),
            version: "test".into(),
            kinds: serde_json::json!([]),
            queues: queues.iter().map(|queue| (*queue).to_owned()).collect(),
            engine_id: None,
            slots: i32::try_from(slots).unwrap_or(i32::MAX),
            windows: windows.into(),
        };
        register(&self.pool, &worker).await
    }

    /// One admission pass; answers what it would publish: jobs with their dispatch numbers.
    ///
    /// # Errors
    /// [`LedgerError::Database`].
    pub async fn admit(&self, queue: &str) -> Result<Vec<(JobId, i32)>, LedgerError> {
        let pass = admit(&self.pool, queue).await?;
        Ok(pass
            .admitted
            .into_iter()
            .map(|hint| (hint.job_id, hint.dispatch))
            .collect())
    }

    /// A worker claims what it was hinted at.
    ///
    /// # Errors
    /// [`LedgerError::Database`].
    pub async fn claim(
        &self,
        worker: &str,
        hints: &[(JobId, i32)],
    ) -> Result<Vec<ClaimedJob>, LedgerError> {
        let hints: Vec<Hint> = hints
            .iter()
            .map(|(job_id, dispatch)| Hint {
                job_id: *job_id,
                dispatch: *dispatch,
            })
            .collect();
        claim(&self.pool, &Claimant::new(worker.to_owned()), &hints).await
    }

    /// A worker with `most` free slots takes what is ready by itself. With `lost_answer` it does not hear what it was
    /// given, and asks again.
    ///
    /// # Errors
    /// [`LedgerError::Database`].
    pub async fn take(
        &self,
        worker: &str,
        queue: &str,
        most: usize,
        lost_answer: bool,
    ) -> Result<Vec<ClaimedJob>, LedgerError> {
        let claimant = Claimant::new(worker.to_owned());
        let given = self.pick(queue, most).await?.give(&claimant).await?;
        if lost_answer {
            return Ok(given_before(&self.pool, queue, &claimant).await?.jobs);
        }
        jobs_of(given)
    }

    /// Picks at most `most` jobs for a worker, in a transaction that stays open; beside others if it may.
    ///
    /// # Errors
    /// [`LedgerError::Database`].
    pub async fn offer(&self, queue: &str, most: usize) -> Result<Offered, LedgerError> {
        self.pick(queue, most).await.map(Offered)
    }

    async fn pick(&self, queue: &str, most: usize) -> Result<Offer, LedgerError> {
        let mut progress = Progress::default();
        // As after a pass that found nothing to count.
        progress.note_room(true);
        pick_for(&self.pool, queue, most, &mut progress).await
    }

    /// A claimed job has to wait for one in quarantine.
    ///
    /// # Errors
    /// [`LedgerError::Database`].
    pub async fn wait_for_turn(&self, job: &ClaimedJob) -> Result<(), LedgerError> {
        record_waiting(&self.pool, job).await
    }

    /// A job that waited for its turn begins; `false` when it may not any more.
    ///
    /// # Errors
    /// [`LedgerError::Database`].
    pub async fn begin_after_wait(&self, job: &ClaimedJob) -> Result<bool, LedgerError> {
        claim_again(&self.pool, job).await
    }

    /// What [`RunContext::begin`](crate::RunContext::begin) is to an executor.
    ///
    /// # Errors
    /// [`Fenced`].
    pub async fn write(&self, job: &ClaimedJob) -> Result<FencedTx, Fenced> {
        FencedTx::begin(&self.pool, job.id, job.token).await
    }

    /// These runs of a worker end, and the finisher takes them in one batch. It tries until it can write them.
    pub async fn finish(&self, worker: &str, runs: Vec<(ClaimedJob, Verdict)>) {
        let (ended, to_write) = mpsc::channel(runs.len().max(1));
        for (job, verdict) in runs {
            // There is room for each, and the other end is in our hand.
            if ended.try_send(Finish { job, verdict }).is_err() {
                tracing::error!("a run could not be handed to the finisher");
            }
        }
        drop(ended);
        finish_runs(
            self.pool.clone(),
            self.kinds.clone(),
            self.admitter.clone(),
            worker.to_owned(),
            to_write,
        )
        .await;
    }

    /// A pass of the reaper of `own`, to which every other worker is dead at first sight. Answers those.
    ///
    /// # Errors
    /// [`LedgerError::Database`].
    pub async fn reap(&self, own: &str) -> Result<Vec<String>, LedgerError> {
        Reaper::new(Duration::ZERO)
            .pass(&self.pool, &self.kinds, &self.admitter, own)
            .await
    }

    /// The pass that repairs lost wake-ups, of which there should be none.
    ///
    /// # Errors
    /// [`LedgerError::Database`].
    pub async fn wake_forgotten(&self) -> Result<(), LedgerError> {
        wake_forgotten(&self.pool, &self.admitter).await
    }
}
