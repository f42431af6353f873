//! `health`: looks whether the containers of workspaces that are up still run on this worker's engine, and has those
//! restarted that do not.
//!
//! A doubt is not a death: a container is gone only when the engine says so. A busy engine must not look like many dead
//! containers at once.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use longshore_backends::Backend;
use longshore_base::WorkspaceId;
use longshore_fleet::Fleet;
use longshore_fleet::liveness::{list_running, mark_offline};
use longshore_jobs::restart::{Source, request_automatic};
use longshore_ledger::Admitter;
use sqlx::PgPool;

use crate::driver::{PassError, PassReport, Reconciler};

const INTERVAL: Duration = Duration::from_secs(15);

pub(crate) struct HealthSweep {
    pub(crate) pool: PgPool,
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) engine_id: String,
    pub(crate) admitter: Admitter,
}

impl HealthSweep {
    /// Takes a workspace offline whose container is gone, and has it restarted: both or neither.
    async fn give_up(&self, id: WorkspaceId) -> Result<bool, PassError> {
        let mut tx = self.pool.begin().await?;
        if !mark_offline(&mut tx, id).await? {
            return Ok(false);
        }
        let restart = request_automatic(&mut tx, &self.fleet, id, Source::Health).await?;
        tx.commit().await?;
        self.fleet.presence.clear(id).await;
        self.fleet.bus.poke();
        if let Some(queue) = restart.queue() {
            self.admitter.poke(queue);
        }
        Ok(true)
    }
}

#[async_trait]
impl Reconciler for HealthSweep {
    fn name(&self) -> &'static str {
        "health"
    }

    fn scope(&self) -> String {
        self.engine_id.clone()
    }

    fn interval(&self) -> Duration {
        INTERVAL
    }

    async fn pass(&self) -> Result<PassReport, PassError> {
        let rows = {
            let mut conn = self.pool.acquire().await?;
            list_running(&mut conn).await?
        };
        let mut report = PassReport::default();
        for row in rows
            .into_iter()
            .filter(|row| row.engine_id.as_deref() == Some(&self.engine_id))
        {
            report.seen += 1;
            match self.backend.is_running(row.id).await {
                Ok(true) => {}
                Ok(false) => {
                    if self.give_up(row.id).await? {
                        report.acted += 1;
                        report.sample.push(row.id.to_string());
                    }
                }
                Err(error) => {
                    report.failed += 1;
                    tracing::debug!(workspace.id = %row.id, error = error.chain(), "cannot tell whether the container runs; taken as alive");
                }
            }
        }
        report.sample.truncate(10);
        Ok(report)
    }
}
