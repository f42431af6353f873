//! The control plane as a [`Backend`].

use std::time::Duration;

use async_trait::async_trait;
use longshore_base::WorkspaceId;

use super::client::Remote;
use crate::{
    Backend, BackendError, Delivers, LogStream, LogsQuery, Manner, StartSpec, StartWatch, Started,
    StartedInstance, StopTarget, VolumeScope, steps,
};

/// The one place there is, whatever machines stand behind it: the name of its queues.
const PLACE: &str = "remote";
/// What a start may take besides its calls (spec: lifecycle §13.2).
const AROUND_A_START: Duration = Duration::from_secs(60);
/// What the stop of an instance may take that was there before: three calls and the waits between them (§13.3).
const STOP_BEFORE: Duration = Duration::from_secs(420);
/// A look is a call to somebody else's service (§6.2).
const LOOK_EVERY: Duration = Duration::from_secs(60);

#[async_trait]
impl Backend for Remote {
    fn kind(&self) -> &'static str {
        "remote"
    }

    fn engine_id(&self) -> Option<&str> {
        Some(PLACE)
    }

    fn manner(&self) -> Manner {
        Manner {
            delivers: Delivers::Environment,
            start_uncertain_for: Some(self.call_limit),
            // Its own call, and one that asks what became of an earlier one.
            run_limit: STOP_BEFORE + 2 * self.call_limit + AROUND_A_START,
            look_every: LOOK_EVERY,
        }
    }

    /// No call asks a control plane how it is: what is wrong with it shows in what it is asked to do.
    async fn check(&self) -> Result<(), BackendError> {
        Ok(())
    }

    async fn start(
        &self,
        spec: &StartSpec,
        watch: &dyn StartWatch,
    ) -> Result<Started, BackendError> {
        watch.step(steps::CREATE, None, None).await?;
        let made = self.provision(spec).await?;
        Ok(Started::Instance(StartedInstance {
            instance_id: made.instance_id,
            place: PLACE.to_owned(),
            replayed: made.replayed,
        }))
    }

    async fn stop(&self, target: &StopTarget) -> Result<(), BackendError> {
        self.end(target.workspace_id, target.instance_id.as_deref())
            .await?;
        Ok(())
    }

    /// An instance has no volumes that would outlive it.
    async fn remove_volumes(
        &self,
        _id: WorkspaceId,
        _scope: VolumeScope,
    ) -> Result<(), BackendError> {
        Ok(())
    }

    async fn is_running(
        &self,
        id: WorkspaceId,
        instance_id: Option<&str>,
    ) -> Result<bool, BackendError> {
        Ok(self.runs(id, instance_id).await?)
    }

    async fn logs(&self, _id: WorkspaceId, _query: LogsQuery) -> Result<LogStream, BackendError> {
        Err(BackendError::Unsupported {
            what: "container logs",
        })
    }

    async fn console(&self, id: WorkspaceId) -> Result<String, BackendError> {
        Ok(self.console_of(id).await?)
    }
}
