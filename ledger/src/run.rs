//! One execution of a claimed job, in a task of its own.
//!
//! A run that has already cost two workers runs alone in this one, so that it takes no others along. Who waits for that
//! has not started, and looks again, before it begins, whether its scope was closed meanwhile.
//!
//! A run ends by itself, by its timeout, or because it was told to stop; after [`STOP_GRACE`] it is dropped. A panic is
//! caught once, here. Whatever happens, exactly one [`Finish`] goes to the finisher.
//!
//! It goes on in the trace of what asked for the job: in its scope, and in a span that says so in each line it logs.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use sqlx::PgPool;
use tokio::sync::{
    OwnedRwLockReadGuard, OwnedSemaphorePermit, RwLock, RwLockReadGuard, RwLockWriteGuard, mpsc,
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;
use uuid::Uuid;

use crate::claim::{claim_again, record_waiting};
use crate::finish::Finish;
use crate::policy::QUARANTINE_CRASHES;
use crate::slots::Slots;
use crate::{ClaimedJob, Executor, Fenced, FencedTx, JobError, Kinds, Verdict};

/// What a run told to stop has for compensating, before it is dropped (`spec: jobs` §7).
const STOP_GRACE: Duration = Duration::from_secs(10);

/// Why a run must stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// Somebody cancelled the job.
    Cancelled,
    /// This worker has had no confirmed beat for too long; another may already have the job.
    LeaseLost,
    /// The process is leaving.
    ShuttingDown,
}

#[derive(Clone, Default)]
struct StopSignal {
    token: CancellationToken,
    reason: Arc<OnceLock<Stopped>>,
}

impl StopSignal {
    fn stop(&self, reason: Stopped) {
        // The first reason stays.
        let _first = self.reason.set(reason);
        self.token.cancel();
    }
}

/// What an executor has to work with. No pool: its writes go through [`RunContext::begin`].
pub struct RunContext {
    job: ClaimedJob,
    pool: PgPool,
    signal: StopSignal,
}

impl RunContext {
    /// The job.
    #[must_use]
    pub fn job(&self) -> &ClaimedJob {
        &self.job
    }

    /// A transaction that only the owner of the job gets.
    ///
    /// # Errors
    /// [`Fenced`]: the run has nothing more to do.
    pub async fn begin(&self) -> Result<FencedTx, Fenced> {
        FencedTx::begin(&self.pool, self.job.id, self.job.token).await
    }

    /// Why the run should stop, once it should.
    #[must_use]
    pub fn stopped(&self) -> Option<Stopped> {
        self.signal.reason.get().copied()
    }

    /// Ends when the run should stop.
    pub async fn stopping(&self) {
        self.signal.token.cancelled().await;
    }

    /// The verdict of a run that stopped because it was told to.
    #[must_use]
    pub fn stopped_verdict(&self) -> Verdict {
        match self.stopped() {
            Some(Stopped::Cancelled) => Verdict::Cancelled,
            Some(Stopped::LeaseLost | Stopped::ShuttingDown) | None => Verdict::GiveBack,
        }
    }
}

/// Starts runs and knows those in flight.
#[derive(Clone)]
pub(crate) struct Runner {
    inner: Arc<RunnerInner>,
}

struct RunnerInner {
    pool: PgPool,
    kinds: Kinds,
    executors: HashMap<&'static str, Arc<dyn Executor>>,
    slots: Slots,
    claims: Claims,
    ended: mpsc::Sender<Finish>,
    running: Mutex<HashMap<Uuid, StopSignal>>,
    /// Held by each run; by a quarantined one alone.
    quarantine: RwLock<()>,
}

/// A claimed job with the right to run it.
#[derive(Debug)]
pub(crate) struct Claimed {
    pub(crate) job: ClaimedJob,
    pub(crate) permit: OwnedSemaphorePermit,
    /// Held until the run begins.
    pub(crate) claim: InClaim,
}

/// The way of a queue's claimed jobs to their runs.
#[derive(Clone)]
pub(crate) struct HandOver {
    queue: String,
    claimed: mpsc::Sender<Claimed>,
}

impl HandOver {
    pub(crate) fn new(queue: String, claimed: mpsc::Sender<Claimed>) -> Self {
        Self { queue, claimed }
    }

    pub(crate) fn queue(&self) -> &str {
        &self.queue
    }

    /// Hands claimed jobs on to be run, with a permit each.
    pub(crate) async fn hand_on(
        &self,
        jobs: Vec<ClaimedJob>,
        mut permits: OwnedSemaphorePermit,
        in_claim: &InClaim,
    ) {
        metrics::counter!("longshore_jobs_claimed_total", "queue" => self.queue.clone())
            .increment(jobs.len() as u64);
        for job in jobs {
            let Some(permit) = permits.split(1) else {
                return;
            };
            let claimed = Claimed {
                job,
                permit,
                claim: in_claim.clone(),
            };
            // Nobody dispatches any more: this process ends, and the reaper finds the jobs.
            if self.claimed.send(claimed).await.is_err() {
                return;
            }
        }
    }
}

/// Claims of this worker whose runs have not begun.
#[derive(Clone, Debug, Default)]
pub(crate) struct Claims(Arc<RwLock<()>>);

/// One of them; shared by the jobs of one claim.
#[derive(Clone, Debug)]
pub(crate) struct InClaim {
    _held: Arc<OwnedRwLockReadGuard<()>>,
}

impl Claims {
    /// To be called before a claim is sent.
    pub(crate) async fn begin(&self) -> InClaim {
        InClaim {
            _held: Arc::new(Arc::clone(&self.0).read_owned().await),
        }
    }

    /// Waits until the runs of everything claimed so far have begun. Claims that come meanwhile wait for it.
    pub(crate) async fn all_begun(&self) {
        drop(self.0.write().await);
    }
}

impl Runner {
    pub(crate) fn new(
        pool: PgPool,
        kinds: Kinds,
        executors: HashMap<&'static str, Arc<dyn Executor>>,
        (slots, claims): (Slots, Claims),
        ended: mpsc::Sender<Finish>,
    ) -> Self {
        Self {
            inner: Arc::new(RunnerInner {
                pool,
                kinds,
                executors,
                slots,
                claims,
                ended,
                running: Mutex::default(),
                quarantine: RwLock::default(),
            }),
        }
    }

    /// Starts a run; returns at once. Kinds and argument shapes this version does not know are given back.
    pub(crate) fn start(&self, claimed: Claimed) {
        let inner = Arc::clone(&self.inner);
        let signal = StopSignal::default();
        inner.lock().insert(claimed.job.token, signal.clone());
        let trace = claimed.job.trace.clone();
        // No filter that lets a line through takes its span away.
        let span =
            tracing::error_span!("run", job.id = %claimed.job.id, trace.id = trace.trace_id());
        let run = async move {
            let Claimed { job, permit, claim } = claimed;
            let token = job.token;
            let context = RunContext {
                job,
                pool: inner.pool.clone(),
                signal,
            };
            let verdict = inner.run_in_turn(&context, claim).await;
            let RunContext { job, .. } = context;
            // The permit is free before the end is written: the finisher has its own bound.
            drop(permit);
            inner.lock().remove(&token);
            if inner.ended.send(Finish { job, verdict }).await.is_err() {
                tracing::error!("a run ended after the finisher; the reaper will find the job");
            }
        };
        tokio::spawn(trace.scope(run).instrument(span));
    }

    /// Tells one run to stop.
    pub(crate) fn stop(&self, token: &Uuid, reason: Stopped) {
        if let Some(signal) = self.inner.lock().get(token) {
            signal.stop(reason);
        }
    }

    /// Tells every run to stop.
    pub(crate) fn stop_all(&self, reason: Stopped) {
        for signal in self.inner.lock().values() {
            signal.stop(reason);
        }
    }

    /// Runs in flight.
    pub(crate) fn running(&self) -> usize {
        self.inner.lock().len()
    }
}

impl RunnerInner {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Uuid, StopSignal>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn run_in_turn(&self, context: &RunContext, claim: InClaim) -> Verdict {
        let Some((_turn, claim)) = self.turn(context, claim).await else {
            return Verdict::GiveBack;
        };
        if context.stopped().is_some() {
            return Verdict::GiveBack;
        }
        let began = Instant::now();
        drop(claim);
        let verdict = self.run(context).await;
        self.slots.record(&context.job.kind, began.elapsed());
        verdict
    }

    /// Waits until the job may run: alone in quarantine, else among the others. `None` when it is told to stop before.
    /// While it waits it has not started, so the death of the worker is not put down to it.
    async fn turn(&self, context: &RunContext, claim: InClaim) -> Option<(Turn<'_>, InClaim)> {
        let job = &context.job;
        if job.crashes < QUARANTINE_CRASHES
            && let Ok(among) = self.quarantine.try_read()
        {
            return Some((Turn::Among(among), claim));
        }
        // Rare and large; as a part of each run's future it would be moved along with each.
        Box::pin(self.turn_after_wait(context, claim)).await
    }

    async fn turn_after_wait(
        &self,
        context: &RunContext,
        claim: InClaim,
    ) -> Option<(Turn<'_>, InClaim)> {
        let job = &context.job;
        if job.crashes >= QUARANTINE_CRASHES {
            tracing::warn!(job.id = %job.id, job.kind = job.kind, crashes = job.crashes, "in quarantine: it runs alone");
        } else if let Err(error) = record_waiting(&self.pool, job).await {
            tracing::warn!(
                job.id = %job.id, error = &error as &dyn std::error::Error, "cannot let a job wait for one in quarantine"
            );
            return None;
        }
        // Changes of controls must not wait for it as long as it waits; so it looks at them again afterwards.
        drop(claim);
        let own = async {
            if job.crashes < QUARANTINE_CRASHES {
                Turn::Among(self.quarantine.read().await)
            } else {
                Turn::Alone(self.quarantine.write().await)
            }
        };
        let turn = tokio::select! {
            turn = own => turn,
            () = context.stopping() => return None,
        };
        let claim = self.claims.begin().await;
        match claim_again(&self.pool, job).await {
            Ok(true) => Some((turn, claim)),
            Ok(false) => None,
            Err(error) => {
                tracing::warn!(
                    job.id = %job.id, error = &error as &dyn std::error::Error, "cannot tell whether a waiting run may begin"
                );
                None
            }
        }
    }

    async fn run(&self, context: &RunContext) -> Verdict {
        let job = &context.job;
        let Some(kind) = self.kinds.find(&job.kind) else {
            return Verdict::GiveBack;
        };
        let Some(executor) = self.executors.get(job.kind.as_str()) else {
            return Verdict::GiveBack;
        };
        if !kind.args_versions.contains(&job.args_version) {
            // A newer version wrote it; a worker of that version will take it.
            return Verdict::Snooze(Duration::from_secs(1), "written by another version".into());
        }
        let dropped = async {
            context.stopping().await;
            tokio::time::sleep(STOP_GRACE).await;
        };
        tokio::select! {
            biased;
            ended = AssertUnwindSafe(executor.run(context)).catch_unwind() => match ended {
                Ok(verdict) => verdict,
                Err(panic) => panicked(job, &*panic),
            },
            () = tokio::time::sleep(kind.policy.timeout) => {
                Verdict::Retry(JobError::plain(format!("timed out after {} s", kind.policy.timeout.as_secs())))
            }
            () = dropped => context.stopped_verdict(),
        }
    }
}

/// The right to run, as long as it is held.
#[expect(dead_code, reason = "held, never read")]
enum Turn<'a> {
    Among(RwLockReadGuard<'a, ()>),
    Alone(RwLockWriteGuard<'a, ()>),
}

fn panicked(job: &ClaimedJob, panic: &(dyn std::any::Any + Send)) -> Verdict {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_default();
    tracing::error!(
        job.id = %job.id, job.kind = job.kind, workspace.id = job.workspace_id.map(tracing::field::display), panic = text,
        "an executor panicked"
    );
    Verdict::Permanent(JobError::plain("internal error"))
}
