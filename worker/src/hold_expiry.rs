//! `holds`: writes down the end of holds that have lifted themselves, and sets free what they held.
//!
//! Admission looks at the time itself, so nothing waits for this longer than for the next look at its queue.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use longshore_events::{NewEvent, append, names};
use longshore_fleet::Fleet;
use longshore_ledger::{Admitter, control};
use serde_json::json;
use sqlx::PgPool;

use crate::pass::{Pass, PassError, PassReport, Reconciler};

const INTERVAL: Duration = Duration::from_secs(3);

pub(crate) struct HoldExpiry {
    pub(crate) pool: PgPool,
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) admitter: Admitter,
}

#[async_trait]
impl Reconciler for HoldExpiry {
    fn name(&self) -> &'static str {
        "holds"
    }

    fn scope(&self) -> String {
        "all".into()
    }

    fn interval(&self) -> Duration {
        INTERVAL
    }

    async fn pass(&self, pass: &Pass) -> Result<PassReport, PassError> {
        let mut tx = self.pool.begin().await?;
        let over = control::lift_expired(&mut tx).await?;
        for hold in &over {
            let event = NewEvent {
                event_type: names::HOLD_LIFTED,
                workspace_id: None,
                payload: json!({
                    "hold_id": hold.id, "scope": hold.scope, "value": hold.value, "mode": hold.mode,
                    "by": "its own end", "reason": hold.reason,
                }),
            };
            append(&mut tx, event).await?;
        }
        let freed = if over.is_empty() {
            Vec::new()
        } else {
            control::queues_to_poke(&mut tx, None).await?
        };
        pass.keep(tx).await?;
        let report = pass.report(over.iter().map(|hold| hold.id));
        if report.acted > 0 {
            self.fleet.bus.poke();
            freed.iter().for_each(|queue| self.admitter.poke(queue));
        }
        Ok(report)
    }
}
