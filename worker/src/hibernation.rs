//! `hibernation`: sends workspaces to sleep that have been idle for long enough. `stuck`: asks again for the stop of those
//! that were claimed for it and never got further.
//!
//! Each claim is a transaction of its own with the request for its stop, so that whoever is busy by then is left alone.
//! What an operator holds is left alone too: it could not be stopped, and would be neither asleep nor awake.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use longshore_fleet::Fleet;
use longshore_fleet::workspace::{
    Workspace, claim_idle, list_idle, list_stuck_hibernating, organisation_root,
};
use longshore_jobs::stop;
use longshore_ledger::control::{Control, Subject, open_controls};
use longshore_ledger::{Admitter, Kinds};
use sqlx::{PgConnection, PgPool};

use crate::pass::{Pass, PassError, PassReport, Reconciler};

const IDLE_INTERVAL: Duration = Duration::from_secs(120);
const STUCK_INTERVAL: Duration = Duration::from_secs(60);
/// Longer than a stop takes.
const STUCK_AFTER_MINUTES: i32 = 5;

/// What both need.
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

/// `stuck`.
pub(crate) struct StuckHibernating {
    pub(crate) sleep: Sleep,
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
        if pass.dry_run {
            let would = free.iter().map(|workspace| workspace.id.to_string());
            report.would = Some(would.collect());
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

#[async_trait]
impl Reconciler for StuckHibernating {
    fn name(&self) -> &'static str {
        "stuck"
    }

    fn scope(&self) -> String {
        "all".into()
    }

    fn interval(&self) -> Duration {
        STUCK_INTERVAL
    }

    async fn pass(&self, pass: &Pass) -> Result<PassReport, PassError> {
        let Sleep { pool, admitter, .. } = &self.sleep;
        let mut report = PassReport::default();
        let mut asked_again = Vec::new();
        let mut tx = pool.begin().await?;
        let stuck = list_stuck_hibernating(&mut tx, STUCK_AFTER_MINUTES).await?;
        report.seen = stuck.len();
        let mut pokes = Vec::new();
        for workspace in &stuck {
            let stops = stop::repeat_hibernation(&mut tx, workspace, self.name()).await?;
            if stops.jobs.iter().any(|(_, job)| !job.existing) {
                asked_again.push(workspace.id);
            } else {
                report.skipped += 1;
            }
            pokes.extend(stops.pokes);
        }
        pass.keep(tx).await?;
        if pass.dry_run {
            report.would = Some(asked_again.iter().map(ToString::to_string).collect());
            return Ok(report);
        }
        asked_again.iter().for_each(|id| report.act(id));
        pokes.iter().for_each(|queue| admitter.poke(queue));
        Ok(report)
    }
}
