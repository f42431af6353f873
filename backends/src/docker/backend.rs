//! The engine as a [`Backend`]: each call and the file it is in.

use async_trait::async_trait;
use longshore_base::WorkspaceId;

use super::engine::{Docker, Engine, LOOK_LIMIT, call_within};
use crate::{
    Backend, BackendError, KeptConfig, LogStream, LogsQuery, StartSpec, StartWatch, Started,
    StopTarget, VolumeScope,
};

#[async_trait]
impl Backend for Docker {
    fn kind(&self) -> &'static str {
        "docker"
    }

    fn engine_id(&self) -> Option<&str> {
        self.known_engine().map(Engine::id)
    }

    async fn check(&self) -> Result<(), BackendError> {
        let engine = self.engine().await?;
        call_within(LOOK_LIMIT, "ping", engine.client.ping()).await?;
        Ok(())
    }

    async fn start(
        &self,
        spec: &StartSpec,
        watch: &dyn StartWatch,
    ) -> Result<Started, BackendError> {
        self.bring_up(spec, watch).await
    }

    async fn stop(&self, target: &StopTarget) -> Result<(), BackendError> {
        self.stop_container(target).await
    }

    async fn remove_volumes(
        &self,
        id: WorkspaceId,
        scope: VolumeScope,
    ) -> Result<(), BackendError> {
        self.remove_volumes_of(id, scope).await
    }

    async fn is_running(&self, id: WorkspaceId) -> Result<bool, BackendError> {
        let engine = self.engine().await?;
        let found = self.find_ours(engine, id).await?;
        Ok(found.is_some_and(|found| found.running))
    }

    async fn read_config(&self, id: WorkspaceId, image: &str) -> Result<KeptConfig, BackendError> {
        self.kept_config(id, image).await
    }

    fn replaces_on_start(&self) -> bool {
        true
    }

    async fn logs(&self, id: WorkspaceId, query: LogsQuery) -> Result<LogStream, BackendError> {
        self.logs_of(id, query).await
    }
}
