//! `health`: looks whether what runs the workspaces that are up is still there, the containers of this worker's engine or
//! the instances of its control plane, and has those restarted that are not.
//!
//! A doubt is not a death: something is gone only when the backend says so. A busy engine must not look like many dead
//! containers at once. A workspace whose instance nobody has written down yet is not looked at: there is nothing to ask
//! for.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt as _;
use longshore_backends::Backend;
use longshore_base::WorkspaceId;
use longshore_fleet::Fleet;
use longshore_fleet::instances::take_forgotten_starts;
use longshore_fleet::leaks::{FailedStop, LeftBehind, Resource, record_leak};
use longshore_fleet::liveness::{RunningWorkspace, list_running, mark_offline};
use longshore_jobs::restart::{Source, request_automatic};
use longshore_ledger::Admitter;
use sqlx::PgPool;

use crate::pass::{Pass, PassError, PassReport, Reconciler};

/// Looks beside each other.
const AT_ONCE: usize = 8;
/// A look that takes longer is a doubt.
const LOOK_WITHIN: Duration = Duration::from_secs(15);
/// Whoever wants to go on with a workspace asks about its start as soon as that is certain.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(600);

pub(crate) struct HealthSweep {
    pub(crate) pool: PgPool,
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) engine_id: String,
    pub(crate) admitter: Admitter,
}

impl HealthSweep {
    /// Whether it runs, as far as the backend says.
    async fn runs(&self, row: &RunningWorkspace) -> Option<bool> {
        let looked = self.backend.is_running(row.id, row.instance_id.as_deref());
        match tokio::time::timeout(LOOK_WITHIN, looked).await {
            Ok(Ok(runs)) => Some(runs),
            Ok(Err(error)) => {
                tracing::debug!(workspace.id = %row.id, error = error.chain(), "cannot tell whether it runs; taken as alive");
                None
            }
            Err(_elapsed) => {
                tracing::debug!(workspace.id = %row.id, "not told in time whether it runs; taken as alive");
                None
            }
        }
    }

    /// Those of the engine that are gone for certain. A page of rows at a time, so that no row waits long for its look.
    async fn look(&self, report: &mut PassReport) -> Result<Vec<RunningWorkspace>, PassError> {
        let instances = self.backend.manner().start_uncertain_for.is_some();
        let mut gone = Vec::new();
        let mut after = WorkspaceId::LEAST;
        loop {
            let page = {
                let mut conn = self.pool.acquire().await?;
                list_running(&mut conn, &self.engine_id, after).await?
            };
            let Some(last) = page.last() else {
                return Ok(gone);
            };
            after = last.id;
            let known: Vec<_> = page
                .into_iter()
                .filter(|row| !instances || row.instance_id.is_some())
                .collect();
            report.seen += known.len();
            let mut looks = futures_util::stream::iter(known)
                .map(async |row| (self.runs(&row).await, row))
                .buffered(AT_ONCE);
            while let Some((runs, row)) = looks.next().await {
                match runs {
                    Some(true) => {}
                    Some(false) => gone.push(row),
                    None => report.failed += 1,
                }
            }
        }
    }

    /// Starts whose answer was never written down, of workspaces that nobody is bringing up: nobody is going to ask what
    /// became of them.
    async fn flag_forgotten(&self, pass: &Pass, report: &mut PassReport) -> Result<(), PassError> {
        let mut tx = self.pool.begin().await?;
        let forgotten = take_forgotten_starts(&mut tx, FORGOTTEN_AFTER).await?;
        for start in &forgotten {
            let (id, key) = (start.workspace_id, start.key());
            pass.note_act(report, format!("flags the forgotten start {key}"));
            if pass.dry_run {
                continue;
            }
            tracing::error!(
                workspace_id = %id, instance_id = "", start_key = key, source = "sweep", attempts = 1,
                "LEAK-SUSPECT: a start was called and what became of it is not known"
            );
            let left = LeftBehind {
                workspace_id: id,
                backend: self.backend.kind(),
                engine_id: Some(&self.engine_id),
                resource: Resource::Instance,
                resource_id: &key,
            };
            let failed = FailedStop {
                source: "sweep",
                attempts: 1,
                error: "the start was never answered, and nobody has asked about it since",
            };
            record_leak(&mut tx, &left, &failed).await?;
        }
        pass.keep(tx).await?;
        if report.acted > 0 {
            self.fleet.bus.poke();
        }
        Ok(())
    }

    /// Takes a workspace offline whose container is gone, and has it restarted: both or neither.
    async fn give_up(&self, row: &RunningWorkspace) -> Result<bool, PassError> {
        let id = row.id;
        let mut tx = self.pool.begin().await?;
        if !mark_offline(&mut tx, id, row.generation).await? {
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
        self.backend.manner().look_every
    }

    async fn pass(&self, pass: &Pass) -> Result<PassReport, PassError> {
        let mut report = PassReport::default();
        let gone = self.look(&mut report).await?;
        let wanted = gone.iter().map(|row| row.id.to_string());
        // To start again what does not run takes nothing away: a whole engine's containers come back without being asked for.
        if pass.goes_ahead(&mut report, wanted) {
            for row in &gone {
                match self.give_up(row).await {
                    Ok(true) => report.act(row.id),
                    Ok(false) => report.skipped += 1,
                    Err(error) => {
                        report.failed += 1;
                        tracing::warn!(
                            workspace.id = %row.id, error = &*error as &dyn std::error::Error,
                            "a workspace whose container is gone could not be given up"
                        );
                    }
                }
            }
        }
        if self.backend.manner().start_uncertain_for.is_some() {
            self.flag_forgotten(pass, &mut report).await?;
        }
        Ok(report)
    }
}
