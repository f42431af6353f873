//! A start on an instance (`spec: lifecycle` §3.4, `spec: jobs` §6): what must be settled before it, and what is written
//! around it. Where a repeated start finds what an earlier one has made, all of this does nothing.
//!
//! ```text
//! come back when an earlier start cannot be answered any more → ask what became of it → stop what is on file
//! → [tx: the start is open] → the call → [tx: its instance, closed]
//! ```

use longshore_backends::{Backend, BackendError, StartSpec, StartedInstance, StopTarget};
use longshore_base::WorkspaceId;
use longshore_fleet::FleetError;
use longshore_fleet::instances::{
    OpenStart, adopt_instance, close_start, close_stop, find_instance, find_open_start,
    make_start_certain, mark_instance_started,
};
use longshore_fleet::workspace::Workspace;
use longshore_ledger::{Fenced, JobError, Progress, RunContext, Verdict};

use super::run::{STEPS, Stop, database, progress};
use crate::instances;
use crate::stopping::{self, Running, StopPolicy, StopSource, Stopping};

/// One run's way to an instance.
pub(super) struct Instances<'a> {
    ctx: &'a RunContext,
    backend: &'a dyn Backend,
    workspace_id: WorkspaceId,
}

impl<'a> Instances<'a> {
    pub(super) fn of(
        ctx: &'a RunContext,
        backend: &'a dyn Backend,
        workspace_id: WorkspaceId,
    ) -> Self {
        Self {
            ctx,
            backend,
            workspace_id,
        }
    }

    fn are_used(&self) -> bool {
        self.backend.manner().start_uncertain_for.is_some()
    }

    /// While an earlier start may still be answered this run comes back later: nobody can say yet what it made.
    pub(super) async fn wait_for_earlier(&self) -> Result<(), Stop> {
        if !self.are_used() {
            return Ok(());
        }
        let Some(open) = self.open_start().await? else {
            return Ok(());
        };
        if open.uncertain_for.is_zero() {
            return Ok(());
        }
        let why = instances::UNCERTAIN;
        tracing::info!(
            workspace.id = %self.workspace_id, job.id = %self.ctx.job().id,
            wait_secs = open.uncertain_for.as_secs(), reason = why, "the start waits"
        );
        Err(Stop::Verdict(Verdict::Snooze(
            open.uncertain_for,
            why.to_owned(),
        )))
    }

    /// Stops what earlier attempts have left, or flags it. After that nothing runs for the workspace that is not flagged.
    pub(super) async fn make_way(&self, spec: &StartSpec) -> Result<(), Stop> {
        if !self.are_used() {
            return Ok(());
        }
        if let Some(open) = self.open_start().await? {
            let settled = instances::settle(self.ctx, self.backend, spec, open).await?;
            if let Err(error) = settled {
                return Err(Stop::Verdict(Verdict::Permanent(JobError {
                    public: error.public().to_owned(),
                    detail: error.chain(),
                })));
            }
        }
        let on_file = {
            let mut tx = self.ctx.begin().await?;
            find_instance(tx.connection(), self.workspace_id)
                .await
                .map_err(database)?
        };
        let Some(instance_id) = on_file else {
            return Ok(());
        };
        let stop = stopping::Stop {
            ctx: self.ctx,
            backend: self.backend,
            source: StopSource::Provision,
            policy: StopPolicy::of(self.backend, StopSource::Provision),
            progress: |step| progress(&STEPS, step, None, None),
        };
        let running = Running {
            workspace_id: self.workspace_id,
            generation: spec.generation,
            container_id: None,
            instance_id: Some(instance_id),
            engine_id: self.backend.engine_id().map(str::to_owned),
        };
        match stop.run(&running).await {
            // What is left is on the list of leaks, and not on file any more.
            Ok(Stopping::Stopped | Stopping::Newer | Stopping::Left(_)) => Ok(()),
            Ok(Stopping::Cancelled) => Err(Stop::Verdict(self.ctx.stopped_verdict())),
            Err(error) => Err(error.into()),
        }
    }

    async fn open_start(&self) -> Result<Option<OpenStart>, Stop> {
        let mut tx = self.ctx.begin().await?;
        find_open_start(tx.connection(), self.workspace_id)
            .await
            .map_err(database)
    }

    /// A start that failed. Unless it may have made something all the same, there is nothing to ask about later; where it
    /// was answered, that can be asked at once.
    pub(super) async fn close_failed(
        &self,
        generation: i64,
        error: &BackendError,
    ) -> Result<(), Stop> {
        if !self.are_used() || (error.may_have_started() && error.is_unanswered()) {
            return Ok(());
        }
        let (id, mut tx) = (self.workspace_id, self.ctx.begin().await?);
        let written = if error.may_have_started() {
            make_start_certain(tx.connection(), id, generation).await
        } else {
            close_start(tx.connection(), id, generation).await
        };
        written.map_err(database)?;
        Ok(tx.commit().await?)
    }

    /// Writes down what was started, more than once if need be: nobody else knows its name. False when the attempt is no
    /// longer the current one.
    pub(super) async fn store(
        &self,
        workspace: &Workspace,
        started: &StartedInstance,
        steps: &[Progress],
    ) -> Result<bool, Stop> {
        let mut waits = instances::AGAIN_AFTER.iter();
        let mut attempts = 0_u32;
        loop {
            attempts += 1;
            let failed = match self.try_store(workspace, started, steps).await {
                Ok(kept) => return Ok(kept),
                Err(failed) => failed,
            };
            if let (Some(wait), true) = (waits.next(), failed.may_pass()) {
                tracing::warn!(
                    workspace.id = %workspace.id, instance_id = started.instance_id, error = %failed,
                    "an instance was started and could not be written down yet"
                );
                tokio::time::sleep(*wait).await;
                continue;
            }
            // The start stays open: the next run asks for it, by its key.
            tracing::error!(
                workspace_id = %workspace.id, instance_id = started.instance_id, source = "provision", attempts,
                last_error = %failed, "LEAK-SUSPECT: an instance was started and could not be written down"
            );
            return Err(failed.into());
        }
    }

    async fn try_store(
        &self,
        workspace: &Workspace,
        started: &StartedInstance,
        steps: &[Progress],
    ) -> Result<bool, Stored> {
        let mut tx = self.ctx.begin().await?;
        for step in steps {
            tx.record_progress(step).await?;
        }
        let kept = mark_instance_started(
            tx.connection(),
            workspace.id,
            workspace.provision_generation,
            &started.instance_id,
            &started.place,
        )
        .await?;
        if kept {
            tx.commit().await?;
        }
        Ok(kept)
    }

    /// Stops an instance that nobody wants any more, at once: the run may have been told to end. What cannot be stopped is
    /// flagged, and stays on file for the stop that waits behind this run.
    pub(super) async fn take_down(
        &self,
        generation: i64,
        started: &StartedInstance,
    ) -> Result<(), Stop> {
        let target = StopTarget {
            workspace_id: self.workspace_id,
            generation,
            instance_id: Some(started.instance_id.clone()),
        };
        let stopped = instances::stop(self.ctx, self.backend, &target).await?;
        let mut tx = self.ctx.begin().await?;
        let Err(error) = stopped else {
            close_start(tx.connection(), self.workspace_id, generation)
                .await
                .map_err(database)?;
            close_stop(tx.connection(), &started.instance_id)
                .await
                .map_err(database)?;
            return Ok(tx.commit().await?);
        };
        tracing::error!(
            workspace_id = %self.workspace_id, instance_id = started.instance_id, source = "provision", attempts = 1,
            last_error = error.chain(), "LEAK-SUSPECT: the instance of an abandoned start could not be stopped"
        );
        adopt_instance(
            tx.connection(),
            self.workspace_id,
            generation,
            &started.instance_id,
        )
        .await
        .map_err(database)?;
        let (instance, refusal) = (&started.instance_id, error.to_string());
        instances::record_suspect(&mut tx, self.backend, self.workspace_id, instance, &refusal)
            .await
            .map_err(database)?;
        Ok(tx.commit().await?)
    }
}

/// Why a started instance is not written down.
#[derive(Debug, thiserror::Error)]
enum Stored {
    /// The database may do it the next time.
    #[error("the database was not available")]
    Again(#[source] Fenced),
    /// The job is another run's.
    #[error(transparent)]
    Lost(Fenced),
    /// The row could not be written.
    #[error("the row could not be written")]
    Row(#[from] FleetError),
}

impl Stored {
    fn may_pass(&self) -> bool {
        match self {
            Self::Again(_) => true,
            Self::Lost(_) => false,
            Self::Row(error) => error.retryable(),
        }
    }
}

impl From<Fenced> for Stored {
    fn from(fenced: Fenced) -> Self {
        match fenced {
            Fenced::Lost(_) => Self::Lost(fenced),
            Fenced::Database { .. } => Self::Again(fenced),
        }
    }
}

impl From<Stored> for Stop {
    fn from(stored: Stored) -> Self {
        match stored {
            Stored::Again(fenced) | Stored::Lost(fenced) => fenced.into(),
            Stored::Row(error) => database(error),
        }
    }
}
