//! `health`: looks whether the containers of workspaces that are up still run on this worker's engine.
//!
//! A doubt is not a death: a container is gone only when the engine says so. A busy engine must not look like many dead
//! containers at once.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use longshore_backends::Backend;
use longshore_fleet::Fleet;
use longshore_fleet::liveness::{list_running, mark_offline};
use sqlx::PgPool;

use crate::driver::{PassError, PassReport, Reconciler};

const INTERVAL: Duration = Duration::from_secs(15);

pub(crate) struct HealthSweep {
    pub(crate) pool: PgPool,
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) engine_id: String,
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
                    let mut tx = self.pool.begin().await?;
                    let lost = mark_offline(&mut tx, row.id).await?;
                    tx.commit().await?;
                    if lost {
                        self.fleet.presence.clear(row.id).await;
                        self.fleet.bus.poke();
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
