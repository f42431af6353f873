//! The worker of a process.

use std::sync::Arc;
use std::time::Duration;

use longshore_api::{HealthSource, PartHealth, PartMode};
use longshore_backends::Backends;
use longshore_jobs::JobsConfig;
use longshore_ledger::{EngineConfig, EngineHealth, Kinds};
use longshore_worker::{Worker, WorkerConfig, WorkerParts};

use super::{Core, memory};
use crate::settings::worker::WorkerSettings;

/// Every kind, as much as any process must know of it.
pub(super) fn kinds(settings: &WorkerSettings, backends: &Backends) -> Kinds {
    let at_once = if backends.remote_org {
        settings.provision_concurrency_remote
    } else {
        settings.provision_concurrency
    };
    // Without a backend they end at once.
    let limit = backends
        .choose()
        .map_or(Duration::from_secs(60), |backend| {
            backend.manner().run_limit
        });
    longshore_jobs::kinds(JobsConfig {
        provision_concurrency: at_once.into(),
        restart_concurrency: settings.restart_concurrency.into(),
        provision_limit: limit,
    })
}

/// A worker that works.
pub(crate) struct RunningWorker {
    worker: Worker,
    lost_after: Duration,
}

impl Core {
    /// Starts taking jobs.
    pub(crate) async fn run_worker(
        &self,
        settings: &WorkerSettings,
    ) -> anyhow::Result<RunningWorker> {
        let times = settings.times()?;
        let config = WorkerConfig {
            engine: EngineConfig {
                host: host_name(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                beat_every: times.beat_every,
                lost_after: times.lost_after,
                dead_after: times.dead_after,
                ..EngineConfig::default()
            },
            liveness_ttl: self.liveness_ttl,
            external_stale_after: settings.external_stale_after,
            retention: settings.retention(),
            hibernation_idle_minutes: settings.hibernation_idle_minutes,
            image_auto_refresh: settings.image_auto_refresh,
        };
        let parts = WorkerParts {
            pools: self.pools.clone(),
            fleet: self.fleet.clone(),
            backends: Arc::new(self.backends.clone()),
            kinds: self.kinds.clone(),
            hints: self.hints.clone(),
            admitter: self.admitter.clone(),
            namespaces: memory::namespaces(self.settings.memory_plugin_url.as_deref())?,
        };
        let worker = Worker::start(config, parts).await?;
        tracing::info!(worker = worker.health().worker, "the worker takes jobs");
        Ok(RunningWorker {
            worker,
            lost_after: times.lost_after,
        })
    }
}

impl RunningWorker {
    /// What `/readyz` says of it.
    pub(crate) fn health(&self) -> Arc<dyn HealthSource> {
        Arc::new(WorkerHealth {
            ask: Box::new(self.worker.watch()),
            lost_after: self.lost_after,
        })
    }

    /// Ends only if the worker does, which it should not.
    pub(crate) async fn died(&mut self) -> anyhow::Error {
        self.worker.died().await;
        anyhow::anyhow!("a part of the worker ended by itself")
    }

    /// Hands back what has not started, gives the rest this long, and leaves.
    pub(crate) async fn stop(self, grace: Duration) {
        self.worker.stop(grace).await;
    }
}

struct WorkerHealth {
    ask: Box<dyn Fn() -> Option<EngineHealth> + Send + Sync>,
    lost_after: Duration,
}

impl HealthSource for WorkerHealth {
    fn parts(&self) -> Vec<PartHealth> {
        let health = (self.ask)();
        let is_well = health
            .as_ref()
            .is_some_and(|health| health.beat_age < self.lost_after);
        vec![PartHealth {
            name: "worker".to_owned(),
            mode: if is_well {
                PartMode::Up
            } else {
                PartMode::Down
            },
            age_seconds: health.map(|health| health.beat_age.as_secs_f64()),
            detail: None,
        }]
    }
}

/// The host part of a worker's name; only people read it.
fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map(|name| name.trim().to_owned())
        .ok()
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "localhost".to_owned())
}
