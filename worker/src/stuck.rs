//! `stuck`: gives everything that is on its way and has stopped moving a named reason and a way out.
//!
//! | reason | what | way out |
//! |---|---|---|
//! | `stop-lost` | `hibernating` for 5 min | its stop is asked for again |
//! | `provision-lost` | `provisioning` for 5 min, no run of it has begun, and no job is about it | it has failed; a restart brings it up |
//! | `run-overdue` | a job that runs for longer than its kind may and 2 min | taken from its worker, as a failed attempt |
//!
//! What else can stand still has a deadline of its own: a bringing-up that has begun (`provision-timeout`), a job that waits
//! (its `deadline_at`, and `waiting` says for what), a start that was never answered (`health`).

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use longshore_base::WorkspaceId;
use longshore_events::{NewEvent, append, names};
use longshore_fleet::provisioning::{list_unstarted, mark_failed};
use longshore_fleet::workspace::list_stuck_hibernating;
use longshore_jobs::{list_busy, stop};
use longshore_ledger::{OverdueRun, list_overdue_runs, take_overdue_run};
use serde_json::json;
use sqlx::{Connection as _, PgConnection};

use crate::hibernation::Sleep;
use crate::pass::{Pass, PassError, PassReport, Reconciler};

const INTERVAL: Duration = Duration::from_secs(60);
/// Longer than a stop takes, and than it takes to ask for a job.
const AFTER_MINUTES: i32 = 5;
/// A worker ends a run within its limit and ten seconds.
const SLACK: Duration = Duration::from_secs(120);

const NOBODY_BRINGS_IT_UP: &str = "nothing brings the workspace up any more: the job that was to do it is gone; \
                                   restart the workspace";

/// `stuck`.
pub(crate) struct Stuck {
    pub(crate) sleep: Sleep,
}

/// What was found, and what is done about it.
struct Finding {
    reason: &'static str,
    what: String,
    workspace_id: Option<WorkspaceId>,
    way_out: &'static str,
}

#[async_trait]
impl Reconciler for Stuck {
    fn name(&self) -> &'static str {
        "stuck"
    }

    fn scope(&self) -> String {
        "all".into()
    }

    fn interval(&self) -> Duration {
        INTERVAL
    }

    async fn pass(&self, pass: &Pass) -> Result<PassReport, PassError> {
        let mut report = PassReport::default();
        let mut pokes = BTreeSet::new();
        let mut tx = self.sleep.pool.begin().await?;
        let mut found = self.lost_stops(&mut tx, &mut report, &mut pokes).await?;
        found.extend(self.lost_provisions(&mut tx, &mut report).await?);
        found.extend(self.overdue_runs(&mut tx, &mut report, &mut pokes).await?);
        for finding in &found {
            if !pass.dry_run {
                finding.tell(&mut tx).await?;
            }
            let Finding { reason, what, .. } = finding;
            pass.note_act(&mut report, format!("{reason}: {what}"));
        }
        pass.keep(tx).await?;
        if report.acted > 0 {
            self.sleep.fleet.bus.poke();
            pokes
                .iter()
                .for_each(|queue| self.sleep.admitter.poke(queue));
        }
        Ok(report)
    }
}

impl Stuck {
    async fn lost_stops(
        &self,
        tx: &mut PgConnection,
        report: &mut PassReport,
        pokes: &mut BTreeSet<String>,
    ) -> Result<Vec<Finding>, PassError> {
        let stuck = list_stuck_hibernating(tx, AFTER_MINUTES).await?;
        report.seen += stuck.len();
        let mut found = Vec::new();
        for workspace in &stuck {
            let stops = stop::repeat_hibernation(tx, workspace, self.name()).await?;
            if stops.jobs.iter().any(|(_, job)| !job.existing) {
                found.push(Finding {
                    reason: "stop-lost",
                    what: format!("workspace {}", workspace.id),
                    workspace_id: Some(workspace.id),
                    way_out: "its stop is asked for again",
                });
            } else {
                report.skipped += 1;
            }
            pokes.extend(stops.pokes);
        }
        Ok(found)
    }

    async fn lost_provisions(
        &self,
        tx: &mut PgConnection,
        report: &mut PassReport,
    ) -> Result<Vec<Finding>, PassError> {
        let unstarted = list_unstarted(tx, AFTER_MINUTES).await?;
        let ids: Vec<_> = unstarted.iter().map(|(id, _)| *id).collect();
        let busy = list_busy(tx, &ids).await?;
        report.seen += unstarted.len();
        let mut found = Vec::new();
        for (id, generation) in unstarted {
            let extras = json!({ "source": self.name() });
            // Whoever came up or was asked for since the rows were read has another status or generation.
            if !busy.contains(&id)
                && mark_failed(tx, id, Some(generation), NOBODY_BRINGS_IT_UP, extras).await?
            {
                found.push(Finding {
                    reason: "provision-lost",
                    what: format!("workspace {id}"),
                    workspace_id: Some(id),
                    way_out: "it has failed; restart it",
                });
            } else {
                report.skipped += 1;
            }
        }
        Ok(found)
    }

    async fn overdue_runs(
        &self,
        tx: &mut PgConnection,
        report: &mut PassReport,
        pokes: &mut BTreeSet<String>,
    ) -> Result<Vec<Finding>, PassError> {
        let overdue = list_overdue_runs(tx, &self.sleep.kinds, SLACK).await?;
        report.seen += overdue.len();
        let mut found = Vec::new();
        for run in overdue {
            let OverdueRun {
                worker,
                running_for_secs,
                limit_secs,
                ..
            } = &run;
            let reason = format!(
                "stuck: its run on worker {worker} went on for {running_for_secs} s, and may take {limit_secs} s"
            );
            // One that cannot be taken must not keep the others waiting.
            let mut one = tx.begin().await?;
            let taken = take_overdue_run(&mut one, &self.sleep.kinds, &run, &reason).await;
            let taken = match taken {
                Ok(taken) => {
                    one.commit().await?;
                    taken
                }
                Err(error) => {
                    one.rollback().await?;
                    report.failed += 1;
                    tracing::error!(job.id = %run.job_id, error = &error as &dyn std::error::Error, "a run beyond its time cannot be ended");
                    continue;
                }
            };
            match taken {
                Some(queues) => {
                    pokes.extend(queues);
                    found.push(Finding {
                        reason: "run-overdue",
                        what: format!("job {} ({}) on worker {worker}", run.job_id, run.kind),
                        workspace_id: run.workspace_id,
                        way_out: "taken from its worker, as a failed attempt",
                    });
                }
                None => report.skipped += 1,
            }
        }
        Ok(found)
    }
}

impl Finding {
    async fn tell(&self, tx: &mut PgConnection) -> Result<(), PassError> {
        let Self {
            reason,
            what,
            workspace_id,
            way_out,
        } = self;
        tracing::warn!(
            reason,
            what,
            way_out,
            workspace.id = workspace_id.map(tracing::field::display),
            "something had stopped moving"
        );
        metrics::counter!("longshore_stuck_total", "reason" => *reason).increment(1);
        let event = NewEvent {
            event_type: names::STUCK,
            workspace_id: *workspace_id,
            payload: json!({ "reason": reason, "what": what, "way_out": way_out }),
        };
        append(tx, event).await?;
        Ok(())
    }
}
