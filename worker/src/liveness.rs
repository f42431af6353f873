//! `liveness`: gives up workspaces whose agents have gone silent, and has the managed ones restarted. The verdict is
//! Postgres' alone.
//!
//! No verdict falls until this process has seen a full TTL without an outage, and heartbeats have been accepted for as long:
//! after an outage of ours everybody looks silent.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use longshore_base::WorkspaceId;
use longshore_base::clock::Stopwatch;
use longshore_fleet::Fleet;
use longshore_fleet::liveness::{
    Expiry, MassGuard, expire_external, expire_silent, is_intake_steady,
};
use longshore_jobs::restart::{Source, request_automatic};
use longshore_ledger::Admitter;
use sqlx::PgPool;

use crate::pass::{Pass, PassError, PassReport, Reconciler};

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

    fn no_verdict(&self, before: &str) -> PassReport {
        let seconds = self.ttl.as_secs();
        PassReport {
            note: Some(format!(
                "no verdict before {before} for {seconds} s: until then everybody looks silent"
            )),
            is_blind: true,
            ..PassReport::default()
        }
    }

    async fn judge(&self, pass: &Pass) -> Result<PassReport, PassError> {
        let is_steady = {
            let mut conn = self.pool.acquire().await?;
            is_intake_steady(&mut conn, self.ttl).await?
        };
        if is_steady {
            self.expire(pass).await
        } else {
            Ok(self.no_verdict("an API has accepted heartbeats without a gap"))
        }
    }

    async fn expire(&self, pass: &Pass) -> Result<PassReport, PassError> {
        let believed: Vec<WorkspaceId> = pass
            .approved
            .iter()
            .filter_map(|id| id.parse().ok())
            .collect();
        let guard = MassGuard::DEFAULT;
        let mut tx = self.pool.begin().await?;
        let managed = expire_silent(&mut tx, self.ttl, guard, &believed).await?;
        let external = expire_external(&mut tx, self.external_after, guard, &believed).await?;
        let mut queues = BTreeSet::new();
        if let Expiry::Expired(silent) = &managed {
            for id in silent {
                // In the same transaction: one that is offline and for which nobody asked is not looked at again.
                let restart =
                    request_automatic(&mut tx, &self.fleet, *id, Source::Liveness).await?;
                queues.extend(restart.queue().map(str::to_owned));
            }
        }
        pass.keep(tx).await?;
        let (mut lost, mut doubtful) = (Vec::new(), Vec::new());
        for (who, expiry) in [("managed", managed), ("external", external)] {
            match expiry {
                Expiry::Expired(ids) => lost.extend(ids),
                Expiry::TooMany { stale, watched } => {
                    if !pass.dry_run {
                        metrics::counter!("longshore_liveness_mass_expiry_total").increment(1);
                    }
                    doubtful.push((who, stale, watched));
                }
            }
        }
        let mut report = pass.report(lost.iter());
        if report.acted > 0 {
            queues.iter().for_each(|queue| self.admitter.poke(queue));
            for id in &lost {
                self.fleet.presence.clear(*id).await;
            }
            self.fleet.bus.poke();
        }
        if !doubtful.is_empty() {
            let reason: Vec<String> = doubtful
                .iter()
                .map(|(who, stale, watched)| {
                    format!(
                        "{} of {watched} {who} workspaces look silent at once",
                        stale.len()
                    )
                })
                .collect();
            let reason = format!(
                "{}: the fault is more likely in the network or the API",
                reason.join(", ")
            );
            let budget = doubtful
                .iter()
                .map(|(_, _, watched)| guard.most(*watched))
                .sum();
            let wanted: Vec<String> = doubtful
                .iter()
                .flat_map(|(_, stale, _)| stale.iter().map(ToString::to_string))
                .collect();
            report.seen += wanted.len();
            pass.hold_back(&mut report, wanted, budget, Some(reason));
        }
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

    async fn pass(&self, pass: &Pass) -> Result<PassReport, PassError> {
        if self.calm_for() < self.ttl {
            return Ok(self.no_verdict("this worker has been up and well"));
        }
        let passed = self.judge(pass).await;
        if passed.is_err() {
            *self.calm.lock().unwrap_or_else(PoisonError::into_inner) = Stopwatch::start();
        }
        passed
    }
}
