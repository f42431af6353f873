//! The engine as a [`Backend`]: each call and the file it is in.

use std::time::Duration;

use async_trait::async_trait;
use longshore_base::WorkspaceId;

use super::engine::{Docker, Engine, LOOK_LIMIT, call_within};
use crate::{
    Backend, BackendError, ConfigFile, Delivers, Inventory, KeptConfig, ListedContainer, LogStream,
    LogsQuery, Manner, MarkedKind, StartSpec, StartWatch, Started, StopTarget, VolumeScope,
};

/// A pull takes 300 s at most, everything else of a start 180 s (spec: lifecycle §13.2); a start finds what an earlier one
/// has made.
const MANNER: Manner = Manner {
    delivers: Delivers::Everything,
    start_uncertain_for: None,
    run_limit: Duration::from_secs(480),
    look_every: Duration::from_secs(15),
};

#[async_trait]
impl Backend for Docker {
    fn kind(&self) -> &'static str {
        "docker"
    }

    fn engine_id(&self) -> Option<&str> {
        self.known_engine().map(Engine::id)
    }

    fn manner(&self) -> Manner {
        MANNER
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
        self.bring_up(spec, watch).await.map(Started::Container)
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

    async fn is_running(
        &self,
        id: WorkspaceId,
        _instance_id: Option<&str>,
    ) -> Result<bool, BackendError> {
        let engine = self.engine().await?;
        let found = self.find_ours(engine, id).await?;
        Ok(found.is_some_and(|found| found.running))
    }

    async fn read_config(&self, id: WorkspaceId, image: &str) -> Result<KeptConfig, BackendError> {
        self.kept_config(id, image).await
    }

    async fn read_files(&self, id: WorkspaceId) -> Result<Option<Vec<ConfigFile>>, BackendError> {
        self.kept_files(id).await
    }

    async fn fetch_image(
        &self,
        reference: &str,
        watch: &dyn StartWatch,
    ) -> Result<(), BackendError> {
        let engine = self.engine().await?;
        self.pull(engine, reference, watch).await
    }

    async fn tag_digest(&self, reference: &str) -> Result<String, BackendError> {
        self.registry_digest(reference).await
    }

    fn replaces_on_start(&self) -> bool {
        true
    }

    async fn list_containers(&self) -> Result<Option<Vec<ListedContainer>>, BackendError> {
        self.list_named().await.map(Some)
    }

    async fn take_inventory(&self) -> Result<Option<Inventory>, BackendError> {
        self.list_marked().await.map(Some)
    }

    async fn remove_marked(
        &self,
        kind: MarkedKind,
        id: &str,
        newest: i64,
    ) -> Result<(), BackendError> {
        match kind {
            MarkedKind::Container => self.remove_marked_container(id, newest).await,
            MarkedKind::Volume => self.remove_marked_volume(id).await,
        }
    }

    async fn logs(&self, id: WorkspaceId, query: LogsQuery) -> Result<LogStream, BackendError> {
        self.logs_of(id, query).await
    }

    async fn console(&self, _id: WorkspaceId) -> Result<String, BackendError> {
        Err(BackendError::Unsupported { what: "console" })
    }
}
