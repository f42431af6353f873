//! `provision-timeout`: fails workspaces whose agents were started and never heard of.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use longshore_fleet::Fleet;
use longshore_fleet::provisioning::fail_overdue;
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
        let mut tx = self.pool.begin().await?;
        let overdue = fail_overdue(&mut tx, &self.fleet).await?;
        pass.keep(tx).await?;
        let report = pass.report(overdue.iter().map(|workspace| workspace.id));
        if report.acted > 0 {
            self.fleet.bus.poke();
            for workspace in &overdue {
                tracing::warn!(
                    workspace.id = %workspace.id, runtime = workspace.runtime, timeout_secs = workspace.timeout_secs,
                    "the agent was never heard of; the workspace has failed"
                );
            }
        }
        Ok(report)
    }
}
