//! `provision-timeout`: fails workspaces whose agents were started and never heard of.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use longshore_fleet::Fleet;
use longshore_fleet::provisioning::{fail_overdue, list_awaited};
use sqlx::PgPool;

use crate::pass::{Pass, PassError, PassReport, Reconciler};

const INTERVAL: Duration = Duration::from_secs(30);

pub(crate) struct ProvisionTimeout {
    pub(crate) pool: PgPool,
    pub(crate) fleet: Arc<Fleet>,
}

#[async_trait]
impl Reconciler for ProvisionTimeout {
    fn name(&self) -> &'static str {
        "provision-timeout"
    }

    fn scope(&self) -> String {
        "all".into()
    }

    fn interval(&self) -> Duration {
        INTERVAL
    }

    async fn pass(&self, pass: &Pass) -> Result<PassReport, PassError> {
        let awaited = list_awaited(&mut *self.pool.acquire().await?, &self.fleet).await?;
        let mut report = PassReport {
            seen: awaited.len(),
            ..PassReport::default()
        };
        let overdue: Vec<_> = awaited.into_iter().filter(|one| one.is_overdue).collect();
        let wanted = overdue.iter().map(|one| one.id.to_string());
        if !pass.goes_ahead(&mut report, wanted) {
            return Ok(report);
        }
        let mut tx = self.pool.begin().await?;
        let mut failed = Vec::new();
        for one in &overdue {
            if fail_overdue(&mut tx, one).await? {
                failed.push(one);
            } else {
                report.skipped += 1;
            }
        }
        tx.commit().await?;
        for one in failed {
            report.act(one.id);
            tracing::warn!(
                workspace.id = %one.id, runtime = one.runtime, timeout_secs = one.timeout_secs,
                "the agent was never heard of; the workspace has failed"
            );
        }
        if report.acted > 0 {
            self.fleet.bus.poke();
        }
        Ok(report)
    }
}
