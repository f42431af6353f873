//! `retention`: drops days of the job history that are older than what is kept, and makes the days to come.

use std::time::Duration;

use async_trait::async_trait;
use longshore_ledger::{Retention, ensure_partitions, list_due, prune};
use sqlx::PgPool;

use crate::pass::{Pass, PassError, PassReport, Reconciler};

const INTERVAL: Duration = Duration::from_secs(3600);
/// Partitions named in a report.
const SAMPLE: usize = 10;

pub(crate) struct HistoryRetention {
    pub(crate) pool: PgPool,
    pub(crate) keep: Retention,
}

#[async_trait]
impl Reconciler for HistoryRetention {
    fn name(&self) -> &'static str {
        "retention"
    }

    fn scope(&self) -> String {
        "all".into()
    }

    fn interval(&self) -> Duration {
        INTERVAL
    }

    async fn pass(&self, pass: &Pass) -> Result<PassReport, PassError> {
        if pass.dry_run {
            return Ok(pass.report(list_due(&self.pool, self.keep).await?.iter()));
        }
        ensure_partitions(&self.pool).await?;
        let pruned = prune(&self.pool, self.keep).await?;
        if !pruned.partitions.is_empty() || pruned.rows > 0 {
            tracing::info!(
                partitions = pruned.partitions.len(),
                rows = pruned.rows,
                "old job history dropped"
            );
        }
        if !pruned.busy.is_empty() {
            tracing::warn!(
                partitions = ?pruned.busy,
                "old job history is still there: somebody uses its tables; the next pass tries again"
            );
        }
        metrics::gauge!("longshore_history_busy_partitions").set(pruned.busy.len() as f64);
        Ok(PassReport {
            seen: pruned.partitions.len() + pruned.busy.len(),
            acted: pruned.partitions.len(),
            skipped: pruned.busy.len(),
            sample: pruned.partitions.into_iter().take(SAMPLE).collect(),
            ..PassReport::default()
        })
    }
}
