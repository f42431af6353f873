//! A worker process' engine: who it is, what it reads, its beat, and how it leaves.
//!
//! Tasks: one reader per queue, the apalis worker that dispatches, the finisher, the beat with its watchdog, the ticks
//! of each second, who hears of cancel requests and looks for them. Each is supervised by being a loop that cannot end;
//! one that does makes [`Engine::failed`] resolve, and the process exits non-zero.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use longshore_base::pools::Pools;
use longshore_base::random;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::admission::Admitter;
use crate::admission::fairness::forget_idle;
use crate::beat::{
    Registration, beat, cancels, leave, newest_control, register, say_seen, stop_taking,
};
use crate::control::max_per_worker;
use crate::finish::{self, finish_runs};
use crate::hints::Hints;
use crate::maintenance::{end_overdue, summarise_deadlines, wake_forgotten};
use crate::reader::{QueueReader, many};
use crate::reaper::Reaper;
use crate::run::{Claimed, Claims, HandOver, Runner, Stopped};
use crate::slots::Slots;
use crate::taker::Taker;
use crate::{Executor, Kinds, LedgerError, ensure_partitions};

/// The ticks of each second: admission, limits.
const TICK: Duration = Duration::from_secs(1);
/// How often changes of controls are looked for; what an operator waits for.
const CONTROL_TICK: Duration = Duration::from_millis(200);
/// Bursts of pokes become one look per this time.
const CANCEL_PAUSE: Duration = Duration::from_millis(20);
/// Deadlines and forgotten waiters.
const SLOW_TICK: Duration = Duration::from_secs(15);
const PARTITION_TICK: Duration = Duration::from_secs(3600);
/// Executors are told to stop this long before the grace ends, so that what they return can still be written.
const FLUSH_RESERVE: Duration = Duration::from_secs(2);

/// Times of an engine. The defaults are those of `spec: jobs`.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Host part of the worker's name.
    pub host: String,
    /// Version of this program.
    pub version: String,
    /// Time between beats.
    pub beat_every: Duration,
    /// Without a confirmed beat for this long, own runs are stopped. Less than `dead_after`.
    pub lost_after: Duration,
    /// Another worker whose beat stood still this long is declared dead.
    pub dead_after: Duration,
    /// An admitted job that nobody has claimed for this long is claimed without a hint.
    pub unhinted_after: Duration,
    /// Cancel requests are looked for at once when a poke says that there are some, and this often without.
    pub cancels_every: Duration,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            host: "localhost".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            beat_every: Duration::from_secs(3),
            lost_after: Duration::from_secs(7),
            dead_after: Duration::from_secs(10),
            // A job admitted by a process that died before it could publish must start within three seconds.
            unhinted_after: Duration::from_secs(1),
            cancels_every: Duration::from_secs(1),
        }
    }
}

/// The engine could not start.
#[derive(Debug, thiserror::Error)]
#[error("the job engine cannot start")]
pub struct EngineError(#[from] LedgerError);

/// What an engine says of itself.
#[derive(Clone, Debug)]
pub struct EngineHealth {
    /// This process' name among the workers.
    pub worker: String,
    /// Age of the last confirmed beat.
    pub beat_age: Duration,
    /// Runs in flight.
    pub running: usize,
}

/// Who this worker is at the moment; renewed after it was declared dead.
#[derive(Clone)]
pub(crate) struct Identity {
    inner: Arc<IdentityInner>,
}

struct IdentityInner {
    host: String,
    name: RwLock<String>,
    draining: watch::Sender<bool>,
}

impl Identity {
    fn new(host: &str) -> Self {
        let inner = IdentityInner {
            host: host.to_owned(),
            name: RwLock::new(fresh_name(host)),
            draining: watch::Sender::new(false),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    pub(crate) fn name(&self) -> String {
        self.inner
            .name
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn renew(&self) {
        *self
            .inner
            .name
            .write()
            .unwrap_or_else(PoisonError::into_inner) = fresh_name(&self.inner.host);
    }

    fn set_draining(&self, draining: bool) {
        let changed = self.inner.draining.send_if_modified(|current| {
            let changed = *current != draining;
            *current = draining;
            changed
        });
        if changed {
            tracing::info!(
                draining,
                "an operator changed whether this worker takes jobs"
            );
        }
    }

    pub(crate) fn is_draining(&self) -> bool {
        *self.inner.draining.borrow()
    }

    /// Ends once this worker takes jobs: at once, unless it is draining.
    pub(crate) async fn until_taking(&self) {
        // The sender lives in `self`, so this cannot fail.
        let mut draining = self.inner.draining.subscribe();
        let _taking = draining.wait_for(|draining| !draining).await;
    }
}

/// A name no worker has had before: host, process and a random part.
fn fresh_name(host: &str) -> String {
    format!(
        "{host}-{}-{}",
        std::process::id(),
        &longshore_base::ids::random_uuid().simple().to_string()[..8]
    )
}

/// Admitted jobs wanted ahead, and slots, by queue.
type Windows = BTreeMap<String, [usize; 2]>;

/// A running engine.
pub struct Engine {
    shared: Arc<Shared>,
    claimed: mpsc::Sender<Claimed>,
    hints: Hints,
    readers: Mutex<Vec<JoinHandle<()>>>,
    loops: Vec<JoinHandle<()>>,
    dispatcher: JoinHandle<()>,
    finisher: JoinHandle<()>,
    stop_reading: CancellationToken,
    stop_loops: CancellationToken,
    failed: CancellationToken,
}

struct Shared {
    config: EngineConfig,
    pools: Pools,
    kinds: Kinds,
    admitter: Admitter,
    identity: Identity,
    runner: Runner,
    slots: Slots,
    claims: Claims,
    /// What it reads, with the kind of each.
    queues: RwLock<Vec<(String, &'static str)>>,
    /// The windows last written.
    windows: Mutex<Windows>,
    /// The engine whose containers this worker runs; known once that has answered.
    engine_id: OnceLock<String>,
    confirmed: RwLock<Instant>,
}

impl Engine {
    /// Registers the worker and starts reading the queues of `reads` (queue, kind).
    ///
    /// # Errors
    /// When the worker cannot be registered.
    pub async fn start(
        config: EngineConfig,
        pools: Pools,
        kinds: Kinds,
        executors: HashMap<&'static str, Arc<dyn Executor>>,
        (hints, admitter): (Hints, Admitter),
        reads: &[(String, &'static str)],
    ) -> Result<Self, EngineError> {
        ensure_partitions(&pools.control).await?;
        let slots = Slots::new(
            kinds
                .iter()
                .filter(|kind| executors.contains_key(kind.name)),
        );
        let claims = Claims::default();
        let (ended, ended_rx) = mpsc::channel(finish::BACKLOG);
        let (claimed, claimed_rx) = mpsc::channel(slots.total().max(1));
        let identity = Identity::new(&config.host);
        let runner = Runner::new(
            pools.work.clone(),
            kinds.clone(),
            executors,
            (slots.clone(), claims.clone()),
            ended,
        );
        let finisher = tokio::spawn(finish_runs(
            pools.control.clone(),
            kinds.clone(),
            admitter.clone(),
            identity.name(),
            ended_rx,
        ));
        let failed = CancellationToken::new();
        let dispatcher = tokio::spawn(dispatch(
            identity.name(),
            claimed_rx,
            runner.clone(),
            failed.clone(),
        ));
        let shared = Arc::new(Shared {
            config,
            pools,
            kinds,
            admitter,
            identity,
            runner,
            slots,
            claims,
            queues: RwLock::default(),
            windows: Mutex::default(),
            engine_id: OnceLock::new(),
            confirmed: RwLock::new(Instant::now()),
        });
        let stop_loops = CancellationToken::new();
        let mut engine = Self {
            claimed,
            hints,
            readers: Mutex::default(),
            loops: Vec::new(),
            dispatcher,
            finisher,
            stop_reading: CancellationToken::new(),
            stop_loops: stop_loops.clone(),
            failed,
            shared: Arc::clone(&shared),
        };
        engine.serve(reads, None).await?;
        for task in [
            tokio::spawn(until(stop_loops.clone(), Arc::clone(&shared).beat_loop())),
            tokio::spawn(until(stop_loops.clone(), Arc::clone(&shared).watchdog())),
            tokio::spawn(until(stop_loops.clone(), Arc::clone(&shared).reap_loop())),
            tokio::spawn(until(stop_loops.clone(), Arc::clone(&shared).tick_loop())),
            tokio::spawn(until(
                stop_loops.clone(),
                Arc::clone(&shared).control_loop(),
            )),
            tokio::spawn(until(
                stop_loops.clone(),
                Arc::clone(&shared).cancel_loop(engine.hints.clone()),
            )),
            tokio::spawn(until(stop_loops, shared.slow_loop())),
        ] {
            engine.loops.push(task);
        }
        Ok(engine)
    }

    /// Starts reading further queues (queue, kind), for instance of an engine that has come up. Known ones are skipped.
    ///
    /// # Errors
    /// When the worker's row cannot be renewed; nothing is read then.
    pub async fn serve(
        &self,
        reads: &[(String, &'static str)],
        engine_id: Option<&str>,
    ) -> Result<(), EngineError> {
        if let Some(engine_id) = engine_id {
            // The first engine a process meets stays its engine.
            self.shared.engine_id.get_or_init(|| engine_id.to_owned());
        }
        let fresh: Vec<_> = {
            let known = self
                .shared
                .queues
                .read()
                .unwrap_or_else(PoisonError::into_inner);
            reads
                .iter()
                .filter(|queue| !known.contains(queue))
                .cloned()
                .collect()
        };
        self.shared
            .queues
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(fresh.iter().cloned());
        self.shared.register().await?;
        tracing::info!(
            worker = self.shared.identity.name(),
            queues = self.shared.queues().join(", "),
            slots = self.shared.slots.total(),
            "worker registered"
        );
        for (queue, kind) in fresh {
            let Some(permits) = self.shared.slots.permits(kind) else {
                tracing::error!(
                    queue,
                    kind,
                    "no executor for this queue's kind; it is not read"
                );
                continue;
            };
            let hand_over = HandOver::new(queue.clone(), self.claimed.clone());
            let reader = QueueReader {
                hints: self.hints.reader(&queue, &self.shared.identity.name()),
                queue: queue.clone(),
                pool: self.shared.pools.control.clone(),
                identity: self.shared.identity.clone(),
                permits,
                many: many(self.shared.slots.allowed(kind)),
                publisher: self.hints.clone(),
                taker: Taker::new(
                    self.shared.pools.control.clone(),
                    self.shared.identity.clone(),
                    self.shared.claims.clone(),
                    hand_over.clone(),
                    self.stop_reading.clone(),
                ),
                hand_over,
                claims: self.shared.claims.clone(),
                admitter: self.shared.admitter.clone(),
                unhinted_after: self.shared.config.unhinted_after,
                looked: Instant::now(),
                stop: self.stop_reading.clone(),
            };
            self.readers
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(tokio::spawn(reader.run()));
            self.shared.admitter.poke(&queue);
        }
        Ok(())
    }

    /// Ends when a part of the engine has died for good; the process should exit non-zero.
    pub async fn failed(&self) {
        self.failed.cancelled().await;
    }

    /// How it is doing.
    #[must_use]
    pub fn health(&self) -> EngineHealth {
        EngineHealth {
            worker: self.shared.identity.name(),
            beat_age: self.shared.beat_age(),
            running: self.shared.runner.running(),
        }
    }

    /// Leaves: stops reading, lets runs end within `grace`, stops and gives back the rest. Uses no attempt.
    pub async fn stop(self, grace: Duration) {
        let Self {
            shared,
            claimed,
            readers,
            loops,
            dispatcher,
            finisher,
            stop_reading,
            stop_loops,
            ..
        } = self;
        let deadline = Instant::now() + grace;
        stop_reading.cancel();
        // Nothing is admitted for this worker any more; what is, another takes.
        if let Err(error) = stop_taking(&shared.pools.control, &shared.identity.name()).await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "cannot say that this worker leaves"
            );
        }
        for reader in readers.into_inner().unwrap_or_else(PoisonError::into_inner) {
            // A reader in the middle of a read ends with it, after a second at most.
            if let Err(error) = reader.await {
                tracing::error!(%error, "a reader ended badly");
            }
        }
        // What was claimed but not yet started still sits between the readers and the dispatcher.
        let quiet = |shared: &Shared| {
            claimed.capacity() == claimed.max_capacity() && shared.runner.running() == 0
        };
        let gentle = deadline
            .checked_sub(FLUSH_RESERVE.min(grace / 2))
            .unwrap_or(deadline);
        while !quiet(&shared) && Instant::now() < gentle {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        shared.runner.stop_all(Stopped::ShuttingDown);
        while !quiet(&shared) && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        dispatcher.abort();
        let name = shared.identity.name();
        stop_loops.cancel();
        for task in loops {
            if let Err(error) = task.await
                && !error.is_cancelled()
            {
                tracing::error!(%error, "a loop of the engine ended badly");
            }
        }
        let left = shared.runner.running();
        let pool = shared.pools.control.clone();
        // The runner holds the finisher's channel; with the last run gone it closes and the finisher flushes and ends.
        drop(shared);
        drop(dispatcher);
        if left == 0 {
            if tokio::time::timeout(Duration::from_secs(5), finisher)
                .await
                .is_err()
            {
                tracing::warn!("the ends of some runs could not be written before leaving");
            }
        } else {
            tracing::warn!(
                runs = left,
                "leaving with runs that did not stop; they are taken over"
            );
        }
        if let Err(error) = leave(&pool, &name).await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the worker's row stays until it is declared dead"
            );
        }
    }
}

async fn dispatch(
    name: String,
    claimed: mpsc::Receiver<Claimed>,
    runner: Runner,
    failed: CancellationToken,
) {
    if let Err(error) = crate::apalis::work(&name, claimed, runner).await {
        tracing::error!(%error, "the dispatcher has died");
    }
    failed.cancel();
}

async fn until(stop: CancellationToken, work: impl Future<Output = ()>) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = work => {}
    }
}

impl Shared {
    fn beat_age(&self) -> Duration {
        self.confirmed
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .elapsed()
    }

    fn queues(&self) -> Vec<String> {
        let queues = self.queues.read().unwrap_or_else(PoisonError::into_inner);
        queues.iter().map(|(queue, _)| queue.clone()).collect()
    }

    fn windows(&self) -> Windows {
        let queues = self.queues.read().unwrap_or_else(PoisonError::into_inner);
        queues
            .iter()
            .map(|(queue, kind)| (queue.clone(), self.slots.window(kind)))
            .collect()
    }

    /// Whether a window has changed by more than a quarter since it was last written.
    fn is_worth_writing(&self, windows: &Windows) -> bool {
        let written = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        windows.iter().any(|(queue, [ahead, slots])| {
            let [before, slots_before] = written.get(queue).copied().unwrap_or_default();
            before.abs_diff(*ahead) * 4 > before || slots_before != *slots
        })
    }

    async fn register(&self) -> Result<(), LedgerError> {
        let windows = self.windows();
        let kinds: Vec<_> = self
            .slots
            .kinds(&self.kinds)
            .map(|kind| serde_json::json!({ "kind": kind.name, "args_versions": kind.args_versions, "slots": kind.policy.concurrency }))
            .collect();
        let worker = Registration {
            name: self.identity.name(),
            host: self.config.host.clone(),
            version: self.config.version.clone(),
            kinds: kinds.into(),
            queues: self.queues(),
            engine_id: self.engine_id.get().cloned(),
            slots: i32::try_from(self.slots.total()).unwrap_or(i32::MAX),
            windows: serde_json::json!(windows),
        };
        register(&self.pools.control, &worker).await?;
        *self.windows.lock().unwrap_or_else(PoisonError::into_inner) = windows;
        tracing::debug!(
            worker = worker.name,
            slots = worker.slots,
            windows = %worker.windows,
            "worker's row written"
        );
        Ok(())
    }

    async fn beat_loop(self: Arc<Self>) {
        loop {
            let before = Instant::now();
            match beat(&self.pools.control, &self.identity.name()).await {
                Ok(found) if found.declared_dead => self.begin_again().await,
                Ok(found) => {
                    *self
                        .confirmed
                        .write()
                        .unwrap_or_else(PoisonError::into_inner) = before;
                    self.identity.set_draining(found.draining);
                }
                Err(error) => tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "beat not confirmed"
                ),
            }
            tokio::time::sleep(self.config.beat_every).await;
        }
    }

    /// Others took this worker for dead and have its jobs. What runs here is fenced; the process goes on under a new name.
    async fn begin_again(&self) {
        tracing::error!(
            worker = self.identity.name(),
            "this worker was declared dead; its runs are stopped, it goes on under a new name"
        );
        self.runner.stop_all(Stopped::LeaseLost);
        self.identity.renew();
        if let Err(error) = self.register().await {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "cannot register again yet"
            );
        }
    }

    async fn watchdog(self: Arc<Self>) {
        loop {
            tokio::time::sleep(Duration::from_millis(250)).await;
            if self.beat_age() > self.config.lost_after && self.runner.running() > 0 {
                tracing::error!(
                    runs = self.runner.running(),
                    "no confirmed beat for too long; own runs are stopped"
                );
                self.runner.stop_all(Stopped::LeaseLost);
            }
        }
    }

    async fn reap_loop(self: Arc<Self>) {
        let mut reaper = Reaper::new(self.config.dead_after);
        loop {
            if let Err(error) = reaper
                .pass(
                    &self.pools.control,
                    &self.kinds,
                    &self.admitter,
                    &self.identity.name(),
                )
                .await
            {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "cannot look for dead workers"
                );
            }
            tokio::time::sleep(random::jittered(
                self.config.beat_every.min(self.config.dead_after / 4),
            ))
            .await;
        }
    }

    async fn tick_loop(self: Arc<Self>) {
        loop {
            tokio::time::sleep(random::jittered(TICK)).await;
            for queue in self.queues() {
                self.admitter.poke(&queue);
            }
            if let Err(error) = self.follow_limits().await {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "cannot read the limits of queues"
                );
            }
        }
    }

    /// Tells runs to stop whose jobs somebody wants cancelled: soon after a poke, and every so often in case one was lost.
    async fn cancel_loop(self: Arc<Self>, hints: Hints) {
        let poked = Notify::new();
        let look = async {
            loop {
                let waited = random::jittered(self.config.cancels_every);
                // Elapsed is as good a reason to look.
                tokio::time::timeout(waited, poked.notified())
                    .await
                    .unwrap_or(());
                self.look_for_cancels().await;
                tokio::time::sleep(CANCEL_PAUSE).await;
            }
        };
        tokio::join!(hints.hear_cancels(&poked), look);
    }

    async fn look_for_cancels(&self) {
        match cancels(&self.pools.control, &self.identity.name()).await {
            Ok(tokens) => tokens
                .iter()
                .for_each(|token| self.runner.stop(token, Stopped::Cancelled)),
            Err(error) => tracing::warn!(
                error = &error as &dyn std::error::Error,
                "cannot read cancel requests"
            ),
        }
    }

    /// Takes over what operators allow one worker, and says how many jobs it wants waiting.
    async fn follow_limits(&self) -> Result<(), LedgerError> {
        let mut conn = self
            .pools
            .control
            .acquire()
            .await
            .map_err(LedgerError::database("reading the limits of queues"))?;
        let limits = max_per_worker(&mut conn).await?;
        drop(conn);
        self.slots.apply(&limits);
        if self.is_worth_writing(&self.windows()) {
            self.register().await?;
        }
        Ok(())
    }

    /// Says which change of controls this worker has seen, once what it had claimed before has begun.
    async fn control_loop(self: Arc<Self>) {
        let pool = &self.pools.control;
        let (mut said, mut said_as) = (0, self.identity.name());
        loop {
            tokio::time::sleep(random::jittered(CONTROL_TICK)).await;
            let name = self.identity.name();
            if name != said_as {
                // Under a new name everything must be said again.
                (said, said_as) = (0, name);
            }
            let seen = match newest_control(pool).await {
                Ok(seen) if seen > said => seen,
                Ok(_) => continue,
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "cannot read changes of controls"
                    );
                    continue;
                }
            };
            self.claims.all_begun().await;
            match say_seen(pool, &said_as, seen).await {
                Ok(true) => said = seen,
                Ok(false) => {}
                Err(error) => tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "cannot say which change of controls was seen"
                ),
            }
        }
    }

    async fn slow_loop(self: Arc<Self>) {
        let mut partitions_at = Instant::now();
        loop {
            tokio::time::sleep(random::jittered(SLOW_TICK)).await;
            summarise_deadlines(&self.pools.work).await;
            for (what, pass) in [
                (
                    "ending overdue jobs",
                    end_overdue(&self.pools.work, &self.kinds, &self.admitter).await,
                ),
                (
                    "forgetting idle tenants",
                    forget_idle(&self.pools.work).await,
                ),
                (
                    "waking forgotten jobs",
                    wake_forgotten(&self.pools.work, &self.admitter).await,
                ),
            ] {
                if let Err(error) = pass {
                    tracing::warn!(error = &error as &dyn std::error::Error, "{what} failed");
                }
            }
            if partitions_at.elapsed() > PARTITION_TICK {
                partitions_at = Instant::now();
                if let Err(error) = ensure_partitions(&self.pools.work).await {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "cannot make history partitions"
                    );
                }
            }
        }
    }
}
