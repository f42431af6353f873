//! `hibernation`: sends workspaces to sleep that have been idle for long enough.
//!
//! Each claim is a transaction of its own with the request for its stop, so that whoever is busy by then is left alone.
//! What an operator holds is left alone too: it could not be stopped, and would be neither asleep nor awake. A fleet falls
//! idle when its people go home: a pass sends all of it to sleep.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use longshore_fleet::Fleet;
use longshore_fleet::workspace::{Workspace, claim_idle, list_idle, organisation_root};
use longshore_jobs::stop;
use longshore_ledger::control::{Control, Subject, open_controls};
use longshore_ledger::{Admitter, Kinds};
use sqlx::{PgConnection, PgPool};

use crate::pass::{Pass, PassError, PassReport, Reconciler};

const IDLE_INTERVAL: Duration = Duration::from_secs(120);

/// What it needs.
#[derive(Clone)]
pub(crate) struct Sleep {
    pub(crate) pool: PgPool,
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) kinds: Kinds,
    pub(crate) admitter: Admitter,
}

/// `hibernation`.
pub(crate) struct Hibernation {
    pub(crate) sleep: Sleep,
    /// Minutes of idleness for workspaces that say nothing of it.
    pub(crate) default_minutes: Option<i32>,
}

impl Hibernation {
    async fn send_to_sleep(&self, workspace: &Workspace) -> Result<bool, PassError> {
        let Sleep {
            pool,
            fleet,
            kinds,
            admitter,
        } = &self.sleep;
        let mut tx = pool.begin().await?;
        let Some(claimed) = claim_idle(&mut tx, workspace.id, self.default_minutes).await? else {
            return Ok(false);
        };
        let by = self.name();
        let stops = stop::request_hibernation(&mut tx, kinds, &claimed, by).await?;
        tx.commit().await?;
        stops.pokes.iter().for_each(|queue| admitter.poke(queue));
        fleet.bus.poke();
        Ok(true)
    }
}

async fn is_held(
    conn: &mut PgConnection,
    controls: &[Control],
    workspace: &Workspace,
) -> Result<bool, PassError> {
    if controls.is_empty() {
        return Ok(false);
    }
    let tenant = organisation_root(conn, workspace.id).await?.to_string();
    let subject = Subject {
        kind: stop::KIND,
        place: workspace.engine_id.as_deref(),
        tenant: &tenant,
        workspace_id: Some(workspace.id),
    };
    Ok(subject.closed_by(controls).is_some())
}

#[async_trait]
impl Reconciler for Hibernation {
    fn name(&self) -> &'static str {
        "hibernation"
    }

    fn scope(&self) -> String {
        "all".into()
    }

    fn interval(&self) -> Duration {
        IDLE_INTERVAL
    }

    async fn pass(&self, pass: &Pass) -> Result<PassReport, PassError> {
        let mut report = PassReport::default();
        let mut free = Vec::new();
        {
            let mut conn = self.sleep.pool.acquire().await?;
            let idle = list_idle(&mut conn, self.default_minutes).await?;
            report.seen = idle.len();
            let controls = open_controls(&mut conn).await?;
            for workspace in idle {
                if is_held(&mut conn, &controls, &workspace).await? {
                    report.skipped += 1;
                } else {
                    free.push(workspace);
                }
            }
        }
        let wanted = free.iter().map(|workspace| workspace.id.to_string());
        if !pass.goes_ahead(&mut report, wanted) {
            return Ok(report);
        }
        for workspace in free {
            match self.send_to_sleep(&workspace).await {
                Ok(true) => {
                    report.act(workspace.id);
                }
                Ok(false) => report.skipped += 1,
                Err(error) => {
                    report.failed += 1;
                    tracing::warn!(workspace.id = %workspace.id, error = &*error as &dyn std::error::Error, "an idle workspace could not be sent to sleep");
                }
            }
        }
        Ok(report)
    }
}
