//! Stopping what runs for a workspace (`spec: lifecycle` §4.2, §4.3): the one way for every kind that may not wait for ever.
//!
//! A backend that cannot be asked again later gets three attempts, 1 s and 2 s apart; one whose next start replaces what
//! was left gets one. What could not be stopped is told in one line with `LEAK-SUSPECT` and kept as a row, save where
//! the start that follows takes it away. A run that is told to stop leaves at once, with `STOP-CANCELLED`.

use std::time::Duration;

use longshore_backends::{Backend, BackendError, StopTarget};
use longshore_base::WorkspaceId;
use longshore_fleet::FleetError;
use longshore_fleet::instances::{clear_instance, forget_instance};
use longshore_fleet::leaks::{FailedStop, LeftBehind, Resource, record_leak, resolve_leak};
use longshore_fleet::workspace::Workspace;
use longshore_ledger::{Fenced, Progress, RunContext};

use crate::instances;

/// Steps of a stop, for a kind's list of them.
pub const STEPS: [&str; 4] = ["stop-1", "stop-2", "stop-3", LEAK_STEP];
const LEAK_STEP: &str = "leak-suspect";

/// Who wants it stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopSource {
    /// A restart that somebody asked for.
    Restart,
    /// A restart that nobody asked for.
    AutoRestart,
    /// A start, which first takes away what it finds.
    Provision,
    /// A pause.
    Pause,
    /// A hibernation.
    Hibernate,
    /// A delete or a purge.
    Purge,
    /// A sweep of what nobody wants.
    Sweep,
}

impl StopSource {
    /// The word in the log and in rows.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Restart => "restart",
            Self::AutoRestart => "auto-restart",
            Self::Provision => "provision",
            Self::Pause => "pause",
            Self::Hibernate => "hibernate",
            Self::Purge => "purge",
            Self::Sweep => "sweep",
        }
    }

    /// It brings the workspace up again at once.
    const fn starts_again(self) -> bool {
        matches!(self, Self::Restart | Self::AutoRestart | Self::Provision)
    }
}

/// How much is done about a stop that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StopPolicy {
    /// Attempts in all, at least one.
    pub attempts: u32,
    /// What is left in the end is a leak.
    pub records: bool,
}

impl StopPolicy {
    /// Where nobody takes away later what is left now.
    pub const PATIENT: Self = Self {
        attempts: 3,
        records: true,
    };

    /// What the backend and the reason ask for.
    #[must_use]
    pub fn of(backend: &dyn Backend, source: StopSource) -> Self {
        if backend.replaces_on_start() {
            Self {
                attempts: 1,
                records: !source.starts_again(),
            }
        } else {
            Self::PATIENT
        }
    }
}

/// What may run for a workspace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// The workspace.
    pub workspace_id: WorkspaceId,
    /// The newest generation that may be removed.
    pub generation: i64,
    /// Its container, where one is known.
    pub container_id: Option<String>,
    /// Its instance on a remote backend, where one is known.
    pub instance_id: Option<String>,
    /// The engine it is on.
    pub engine_id: Option<String>,
}

impl From<&Workspace> for Running {
    fn from(workspace: &Workspace) -> Self {
        Self {
            workspace_id: workspace.id,
            generation: workspace.provision_generation,
            container_id: workspace.container_id.clone(),
            instance_id: workspace.instance_id.clone(),
            engine_id: workspace.engine_id.clone(),
        }
    }
}

impl Running {
    pub(crate) fn target(&self) -> StopTarget {
        StopTarget {
            workspace_id: self.workspace_id,
            generation: self.generation,
            instance_id: self.instance_id.clone(),
        }
    }

    /// What is left if it cannot be stopped. A container of unknown id still has its name.
    pub(crate) fn left<'a>(&'a self, backend: &'a str, name: &'a str) -> LeftBehind<'a> {
        let (resource, id) = match (&self.instance_id, &self.container_id) {
            (Some(instance), _) => (Resource::Instance, instance.as_str()),
            (None, Some(container)) => (Resource::Container, container.as_str()),
            (None, None) => (Resource::Container, name),
        };
        LeftBehind {
            workspace_id: self.workspace_id,
            backend,
            engine_id: self.engine_id.as_deref(),
            resource,
            resource_id: id,
        }
    }
}

/// How a stop ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stopping {
    /// Nothing of it runs any more.
    Stopped,
    /// A newer attempt has its container there; it was left alone.
    Newer,
    /// It may still run. The text is fit for the public.
    Left(String),
    /// The run was told to stop before this was known.
    Cancelled,
}

/// Why a run may not go on after a stop.
#[derive(Debug, thiserror::Error)]
pub enum StoppingError {
    /// The job is no longer this run's, or Postgres is away.
    #[error(transparent)]
    Fenced(#[from] Fenced),
    /// What is left could not be written down.
    #[error("what a stop left could not be recorded")]
    Record(#[from] FleetError),
}

/// One run's stop of one workspace.
pub struct Stop<'a> {
    /// The run.
    pub ctx: &'a RunContext,
    /// Where the workspace runs.
    pub backend: &'a dyn Backend,
    /// For whom.
    pub source: StopSource,
    /// How patiently; [`StopPolicy::of`] unless there is a reason.
    pub policy: StopPolicy,
    /// Shows a step of [`STEPS`] to whoever watches the job.
    pub progress: fn(&'static str) -> Progress,
}

impl Stop<'_> {
    /// Stops it, as patiently as the policy says. The time it takes besides its waits is the backend's.
    ///
    /// # Errors
    /// [`StoppingError`]: the run ends. What the backend refuses is an answer, not an error.
    pub async fn run(&self, running: &Running) -> Result<Stopping, StoppingError> {
        let mut running = running.clone();
        if !self.source.starts_again() {
            let id = running.workspace_id;
            match instances::settle_before_stop(self.ctx, self.backend, id).await? {
                Ok(Some(instance)) => running.instance_id = Some(instance),
                Ok(None) => {}
                Err(_) if self.ctx.stopped().is_some() => return Ok(self.cancelled(&running, 1)),
                Err(why) => return Ok(Stopping::Left(why)),
            }
        }
        self.stop(&running).await
    }

    async fn stop(&self, running: &Running) -> Result<Stopping, StoppingError> {
        let target = running.target();
        let mut refused = None;
        for attempt in 1..=self.policy.attempts {
            if refused.is_some() && self.is_told_to_stop_within(wait_before(attempt)).await {
                return Ok(self.cancelled(running, attempt));
            }
            self.show(attempt).await?;
            let stopped = tokio::select! {
                biased;
                () = self.ctx.stopping() => return Ok(self.cancelled(running, attempt)),
                stopped = instances::stop(self.ctx, self.backend, &target) => stopped?,
            };
            match stopped {
                Ok(()) => {
                    self.forget(running).await?;
                    return Ok(Stopping::Stopped);
                }
                Err(BackendError::StaleGeneration { .. }) => return Ok(Stopping::Newer),
                Err(error) => {
                    tracing::warn!(
                        workspace.id = %running.workspace_id, source = self.source.as_str(), attempt, error = error.chain(),
                        "a workspace could not be stopped"
                    );
                    refused = Some(error);
                }
            }
        }
        match refused {
            Some(error) => self.give_up(running, &error).await,
            None => Ok(Stopping::Stopped),
        }
    }

    async fn is_told_to_stop_within(&self, wait: Duration) -> bool {
        tokio::time::timeout(wait, self.ctx.stopping())
            .await
            .is_ok()
    }

    fn cancelled(&self, running: &Running, attempt: u32) -> Stopping {
        tracing::warn!(
            workspace_id = %running.workspace_id, source = self.source.as_str(), attempt,
            "STOP-CANCELLED: the run was told to end before its workspace was stopped"
        );
        Stopping::Cancelled
    }

    async fn show(&self, attempt: u32) -> Result<(), Fenced> {
        let step = STEPS[attempt.clamp(1, 3) as usize - 1];
        let mut tx = self.ctx.begin().await?;
        tx.make_forgettable().await?;
        tx.record_progress(&(self.progress)(step)).await?;
        tx.commit().await
    }

    /// What an earlier stop had left is gone now, and an instance that was stopped is not on file any more: a later start
    /// need not stop it, and a later stop must not.
    async fn forget(&self, running: &Running) -> Result<(), StoppingError> {
        let name = running.workspace_id.container_name();
        let left = running.left(self.backend.kind(), &name);
        let mut tx = self.ctx.begin().await?;
        let mut is_changed = resolve_leak(tx.connection(), &left).await?;
        if let Some(instance) = &running.instance_id {
            is_changed |= forget_instance(tx.connection(), running.workspace_id, instance).await?;
        }
        if is_changed {
            tx.commit().await?;
        }
        Ok(())
    }

    async fn give_up(
        &self,
        running: &Running,
        error: &BackendError,
    ) -> Result<Stopping, StoppingError> {
        let public = error.to_string();
        if !self.policy.records {
            return Ok(Stopping::Left(public));
        }
        let name = running.workspace_id.container_name();
        let left = running.left(self.backend.kind(), &name);
        // First the line: it is all there is if Postgres is away.
        tracing::error!(
            workspace_id = %running.workspace_id, instance_id = running.instance_id, backend = left.backend,
            resource = left.resource.as_str(), resource_id = left.resource_id, source = self.source.as_str(),
            attempts = self.policy.attempts, last_error = error.chain(),
            "LEAK-SUSPECT: a workspace could not be stopped and may still run"
        );
        let failed = FailedStop {
            source: self.source.as_str(),
            attempts: self.policy.attempts,
            error: &public,
        };
        let mut tx = self.ctx.begin().await?;
        tx.record_progress(&(self.progress)(LEAK_STEP)).await?;
        record_leak(tx.connection(), &left, &failed).await?;
        if let (Some(instance), true) = (&running.instance_id, self.source.starts_again()) {
            // The next one takes its place on file; this one is on the list of leaks.
            clear_instance(tx.connection(), running.workspace_id, instance).await?;
        }
        tx.commit().await?;
        Ok(Stopping::Left(public))
    }
}

/// 1 s before the second attempt, doubled before each further one. Exact: whoever reads the log counts on it.
const fn wait_before(attempt: u32) -> Duration {
    Duration::from_secs(1 << attempt.saturating_sub(2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_waits_are_one_two_and_four_seconds() {
        assert_eq!(
            [2, 3, 4].map(|attempt| wait_before(attempt).as_secs()),
            [1, 2, 4]
        );
    }
}
