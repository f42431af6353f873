//! Putting a worker together, and taking it down.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use longshore_backends::{Backend, Backends, Delivers};
use longshore_base::pools::Pools;
use longshore_fleet::Fleet;
use longshore_jobs::purge::Namespaces;
use longshore_jobs::{executors, queues};
use longshore_ledger::{
    Admitter, Engine, EngineConfig, EngineError, EngineHealth, Hints, Kinds, Retention,
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::driver::{Driven, Owner};
use crate::health_sweep::HealthSweep;
use crate::hibernation::{Hibernation, Sleep};
use crate::hold_expiry::HoldExpiry;
use crate::image_watch::ImageWatch;
use crate::leaks::Leaks;
use crate::liveness::Liveness;
use crate::orphans::Orphans;
use crate::pass::Reconciler;
use crate::provision_timeout::ProvisionTimeout;
use crate::reconcile::{ReconcileExecutor, Reconcilers};
use crate::retention::HistoryRetention;
use crate::stale_tokens::StaleTokens;
use crate::stuck::Stuck;

/// How often an engine that has not answered yet is asked again.
const ENGINE_RETRY: Duration = Duration::from_secs(2);

/// Settings of a worker.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// Times of the job engine.
    pub engine: EngineConfig,
    /// A managed agent silent for longer is lost.
    pub liveness_ttl: Duration,
    /// An external agent silent for longer is lost.
    pub external_stale_after: Duration,
    /// How long finished jobs are kept.
    pub retention: Retention,
    /// Minutes of idleness after which workspaces that say nothing of it themselves are hibernated; none for never.
    pub hibernation_idle_minutes: Option<i32>,
    /// What runs on a moving tag is restarted when the tag moves.
    pub image_auto_refresh: bool,
}

/// What a worker is made of, shared with whatever else runs in the process.
pub struct WorkerParts {
    /// Database pools.
    pub pools: Pools,
    /// What is known of workspaces.
    pub fleet: Arc<Fleet>,
    /// Where they run.
    pub backends: Arc<Backends>,
    /// The kinds of jobs.
    pub kinds: Kinds,
    /// The Redis side of the queue.
    pub hints: Hints,
    /// The way from scheduled to queued.
    pub admitter: Admitter,
    /// Where the memories of purged workspaces are forgotten, if anywhere.
    pub namespaces: Option<Arc<dyn Namespaces>>,
}

/// The worker could not start.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The job engine could not start.
    #[error("the worker cannot start")]
    Engine(#[from] EngineError),
    /// Calls to agents need a client.
    #[error("the worker cannot make an HTTP client for calls to agents")]
    Client(#[from] reqwest::Error),
}

/// A running worker.
pub struct Worker {
    engine: Arc<Engine>,
    loops: Vec<JoinHandle<()>>,
    stop: CancellationToken,
}

impl Worker {
    /// Registers and starts taking jobs.
    ///
    /// # Errors
    /// [`WorkerError`].
    pub async fn start(config: WorkerConfig, parts: WorkerParts) -> Result<Self, WorkerError> {
        let WorkerParts {
            pools,
            fleet,
            backends,
            kinds,
            hints,
            admitter,
            namespaces,
        } = parts;
        let stop = CancellationToken::new();
        let reconcilers = Reconcilers::default();
        let mut executors = executors(&fleet, &backends, &kinds, &admitter, namespaces)?;
        executors.insert(
            longshore_jobs::reconcile::KIND,
            Arc::new(ReconcileExecutor(reconcilers.clone())),
        );
        let engine = Engine::start(
            config.engine,
            pools.clone(),
            kinds.clone(),
            executors,
            (hints, admitter.clone()),
            &queues(None),
        )
        .await?;
        let engine = Arc::new(engine);
        let named = Arc::downgrade(&engine);
        let owner = Owner {
            pool: pools.work.clone(),
            bus: fleet.bus.clone(),
            worker: Arc::new(move || {
                named
                    .upgrade()
                    .map(|engine| engine.health().worker)
                    .unwrap_or_default()
            }),
        };
        let sleep = Sleep {
            pool: pools.work.clone(),
            fleet: Arc::clone(&fleet),
            kinds,
            admitter: admitter.clone(),
        };
        let everywhere: [Arc<dyn Reconciler>; 6] = [
            Arc::new(Liveness::new(
                pools.work.clone(),
                Arc::clone(&fleet),
                config.liveness_ttl,
                config.external_stale_after,
                admitter.clone(),
            )),
            Arc::new(ProvisionTimeout {
                pool: pools.work.clone(),
                fleet: Arc::clone(&fleet),
            }),
            Arc::new(HistoryRetention {
                pool: pools.work.clone(),
                keep: config.retention,
            }),
            Arc::new(HoldExpiry {
                pool: pools.work.clone(),
                fleet: Arc::clone(&fleet),
                admitter: admitter.clone(),
            }),
            Arc::new(Hibernation {
                sleep: sleep.clone(),
                default_minutes: config.hibernation_idle_minutes,
            }),
            Arc::new(Stuck { sleep }),
        ];
        let driving = Driving {
            reconcilers,
            owner,
            stop: stop.clone(),
        };
        let mut loops: Vec<_> = everywhere
            .into_iter()
            .map(|reconciler| tokio::spawn(driving.drive(reconciler)))
            .collect();
        if let Ok(backend) = backends.choose() {
            // Waited for a moment, so that a worker whose engine is there serves it from its first second.
            let known = tokio::time::timeout(ENGINE_RETRY, serve_engine(&engine, &*backend))
                .await
                .unwrap_or(None);
            loops.push(tokio::spawn(join_engine(
                Arc::clone(&engine),
                backend,
                known,
                (pools.work, fleet, admitter),
                driving,
                config.image_auto_refresh,
            )));
        }
        Ok(Self {
            engine,
            loops,
            stop,
        })
    }

    /// How the engine is doing.
    #[must_use]
    pub fn health(&self) -> EngineHealth {
        self.engine.health()
    }

    /// Asks the health without holding the worker.
    pub fn watch(&self) -> impl Fn() -> Option<EngineHealth> + Send + Sync + use<> {
        let engine = Arc::downgrade(&self.engine);
        move || engine.upgrade().map(|engine| engine.health())
    }

    /// Ends when a part has died for good; the process should exit non-zero.
    pub async fn died(&self) {
        self.engine.failed().await;
    }

    /// Leaves within `grace` and a few seconds: no new jobs, running ones end or are given back without using an attempt.
    pub async fn stop(self, grace: Duration) {
        self.stop.cancel();
        for task in self.loops {
            if let Err(error) = task.await {
                tracing::error!(%error, "a loop of the worker ended badly");
            }
        }
        match Arc::try_unwrap(self.engine) {
            Ok(engine) => engine.stop(grace).await,
            Err(_shared) => {
                tracing::error!("the job engine is still in use; its jobs will be taken over")
            }
        }
    }
}

/// Reads the queues of the backend's engine, if it answers; says which engine that is.
async fn serve_engine(engine: &Engine, backend: &dyn Backend) -> Option<String> {
    if let Err(error) = backend.check().await {
        tracing::debug!(
            backend = backend.kind(),
            error = error.chain(),
            "the engine does not answer yet"
        );
        return None;
    }
    let id = backend.engine_id()?.to_owned();
    match engine.serve(&queues(Some(&id)), Some(&id)).await {
        Ok(()) => Some(id),
        Err(error) => {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "cannot serve the engine's queues yet"
            );
            None
        }
    }
}

/// How this worker's reconcilers are driven.
struct Driving {
    reconcilers: Reconcilers,
    owner: Owner,
    stop: CancellationToken,
}

impl Driving {
    /// Drives one until the worker stops, and lets it be asked for passes.
    fn drive(&self, reconciler: Arc<dyn Reconciler>) -> impl Future<Output = ()> + Send + use<> {
        let driven = Arc::new(Driven::new(reconciler, self.owner.clone()));
        self.reconcilers.add(&driven);
        let stop = self.stop.clone();
        async move { driven.drive(stop).await }
    }
}

/// Goes on asking until the engine answers, then sweeps it.
async fn join_engine(
    engine: Arc<Engine>,
    backend: Arc<dyn Backend>,
    mut known: Option<String>,
    (pool, fleet, admitter): (sqlx::PgPool, Arc<Fleet>, Admitter),
    driving: Driving,
    image_auto_refresh: bool,
) {
    let engine_id = loop {
        if let Some(id) = known {
            break id;
        }
        let asked_again = async {
            tokio::time::sleep(ENGINE_RETRY).await;
            serve_engine(&engine, &*backend).await
        };
        known = tokio::select! {
            () = driving.stop.cancelled() => return,
            known = asked_again => known,
        };
    };
    drop(engine);
    let mut of_engine: Vec<Arc<dyn Reconciler>> = vec![
        Arc::new(Leaks {
            pool: pool.clone(),
            fleet: Arc::clone(&fleet),
            backend: Arc::clone(&backend),
            engine_id: engine_id.clone(),
            admitter: admitter.clone(),
        }),
        Arc::new(HealthSweep {
            pool: pool.clone(),
            fleet: Arc::clone(&fleet),
            backend: Arc::clone(&backend),
            engine_id: engine_id.clone(),
            admitter: admitter.clone(),
        }),
        Arc::new(Orphans {
            pool: pool.clone(),
            admitter: admitter.clone(),
            backend: Arc::clone(&backend),
            engine_id: engine_id.clone(),
        }),
        Arc::new(StaleTokens {
            pool: pool.clone(),
            backend: Arc::clone(&backend),
            engine_id,
        }),
    ];
    // One among all engines asks the registries. A control plane chooses its images itself.
    if image_auto_refresh && backend.manner().delivers == Delivers::Everything {
        of_engine.push(Arc::new(ImageWatch {
            pool,
            fleet,
            backend,
            admitter,
        }));
    }
    let driven = of_engine.into_iter();
    join_all(driven.map(|reconciler| driving.drive(reconciler))).await;
}
