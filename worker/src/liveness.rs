//! `liveness`: gives up workspaces whose agents have gone silent, and has the managed ones restarted. The verdict is
//! Postgres' alone.
//!
//! No verdict falls until this process has seen a full TTL without an outage: after one, everybody looks silent.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use longshore_base::WorkspaceId;
use longshore_base::clock::Stopwatch;
use longshore_fleet::Fleet;
use longshore_fleet::liveness::{Expiry, MassGuard, expire_external, expire_silent};
use longshore_jobs::restart::{Source, request_automatic};
use longshore_ledger::Admitter;
use sqlx::PgPool;

use crate::driver::{PassError, PassReport, Reconciler};

const INTERVAL: Duration = Duration::from_secs(15);

pub(crate) struct Liveness {
    pool: PgPool,
    fleet: Arc<Fleet>,
    ttl: Duration,
    external_after: Duration,
    admitter: Admitter,
    /// Since when nothing has been amiss here.
    calm: Mutex<Stopwatch>,
}

impl Liveness {
    pub(crate) fn new(
        pool: PgPool,
        fleet: Arc<Fleet>,
        ttl: Duration,
        external_after: Duration,
        admitter: Admitter,
    ) -> Self {
        Self {
            pool,
            fleet,
            ttl,
            external_after,
            admitter,
            calm: Mutex::new(Stopwatch::start()),
        }
    }

    fn calm_for(&self) -> Duration {
        self.calm
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .elapsed()
    }

    async fn expire(&self) -> Result<PassReport, PassError> {
        let mut tx = self.pool.begin().await?;
        let mut report = PassReport::default();
        let mut lost: Vec<WorkspaceId> = Vec::new();
        let mut silent: Vec<WorkspaceId> = Vec::new();
        for (who, is_managed, expiry) in [
            (
                "managed",
                true,
                expire_silent(&mut tx, self.ttl, MassGuard::DEFAULT).await?,
            ),
            (
                "external",
                false,
                expire_external(&mut tx, self.external_after, MassGuard::DEFAULT).await?,
            ),
        ] {
            match expiry {
                Expiry::Expired(ids) => {
                    if is_managed {
                        silent.clone_from(&ids);
                    }
                    lost.extend(ids);
                }
                Expiry::TooMany { stale, watched } => {
                    report.skipped += stale;
                    metrics::counter!("longshore_liveness_mass_expiry_total").increment(1);
                    tracing::error!(
                        stale,
                        watched,
                        who,
                        "too many workspaces look silent at once; none is given up, look at the network and the API"
                    );
                }
            }
        }
        let mut queues = BTreeSet::new();
        for id in &silent {
            // In the same transaction: one that is offline and for which nobody asked is not looked at again.
            let restart = request_automatic(&mut tx, &self.fleet, *id, Source::Liveness).await?;
            queues.extend(restart.queue().map(str::to_owned));
        }
        tx.commit().await?;
        queues.iter().for_each(|queue| self.admitter.poke(queue));
        for id in &lost {
            self.fleet.presence.clear(*id).await;
        }
        if !lost.is_empty() {
            self.fleet.bus.poke();
        }
        report.acted = lost.len();
        report.seen = report.acted + report.skipped;
        report.sample = lost.iter().take(10).map(ToString::to_string).collect();
        Ok(report)
    }
}

#[async_trait]
impl Reconciler for Liveness {
    fn name(&self) -> &'static str {
        "liveness"
    }

    fn scope(&self) -> String {
        "all".into()
    }

    fn interval(&self) -> Duration {
        INTERVAL
    }

    async fn pass(&self) -> Result<PassReport, PassError> {
        if self.calm_for() < self.ttl {
            return Ok(PassReport::default());
        }
        let passed = self.expire().await;
        if passed.is_err() {
            *self.calm.lock().unwrap_or_else(PoisonError::into_inner) = Stopwatch::start();
        }
        passed
    }
}
