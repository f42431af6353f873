//! `liveness`: gives up workspaces whose agents have gone silent. The verdict is Postgres' alone.
//!
//! No verdict falls until this process has seen a full TTL without an outage: after one, everybody looks silent.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use longshore_base::WorkspaceId;
use longshore_base::clock::Stopwatch;
use longshore_fleet::Fleet;
use longshore_fleet::liveness::{Expiry, MassGuard, expire_external, expire_silent};
use sqlx::PgPool;

use crate::driver::{PassError, PassReport, Reconciler};

const INTERVAL: Duration = Duration::from_secs(15);

pub(crate) struct Liveness {
    pool: PgPool,
    fleet: Arc<Fleet>,
    ttl: Duration,
    external_after: Duration,
    /// Since when nothing has been amiss here.
    calm: Mutex<Stopwatch>,
}

impl Liveness {
    pub(crate) fn new(
        pool: PgPool,
        fleet: Arc<Fleet>,
        ttl: Duration,
        external_after: Duration,
    ) -> Self {
        Self {
            pool,
            fleet,
            ttl,
            external_after,
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
        for (who, expiry) in [
            (
                "managed",
                expire_silent(&mut tx, self.ttl, MassGuard::DEFAULT).await?,
            ),
            (
                "external",
                expire_external(&mut tx, self.external_after, MassGuard::DEFAULT).await?,
            ),
        ] {
            match expiry {
                Expiry::Expired(ids) => lost.extend(ids),
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
        tx.commit().await?;
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
