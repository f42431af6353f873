//! Looking into a config volume without running anything (spec: lifecycle §2.7, preflight).

use bollard::models::{ContainerCreateBody, HostConfig};
use bollard::query_parameters::ContainerArchiveInfoOptionsBuilder;
use longshore_base::WorkspaceId;

use super::engine::{Docker, Engine, call};
use super::names::{CONFIGS, config_volume};
use crate::{BackendError, CallFailure};

impl Docker {
    pub(super) async fn config_is_there(
        &self,
        id: WorkspaceId,
        image: &str,
    ) -> Result<bool, BackendError> {
        let engine = self.engine().await?;
        let volume = config_volume(id);
        match call("volume_inspect", engine.client.inspect_volume(&volume)).await {
            Ok(_) => {}
            Err(error) if error.failure() == CallFailure::NotFound => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        // A container that is created but never started is enough to see its volumes through the archive endpoint.
        let body = ContainerCreateBody {
            image: Some(image.to_owned()),
            entrypoint: Some(vec!["/never-started".to_owned()]),
            labels: Some(self.mark(engine).of_workspace(id)),
            host_config: Some(HostConfig {
                binds: Some(vec![format!("{volume}:{CONFIGS}:ro")]),
                network_mode: Some("none".to_owned()),
                ..Default::default()
            }),
            ..Default::default()
        };
        let created = call(
            "container_create",
            engine.client.create_container(None, body),
        )
        .await?;
        let answer = self.has_file(engine, &created.id).await;
        if let Err(error) = self.remove_container(engine, &created.id).await {
            let error = error.chain();
            tracing::warn!(workspace.id = %id, container.id = created.id, error, "a probe container was left behind");
        }
        answer
    }

    async fn has_file(&self, engine: &Engine, container_id: &str) -> Result<bool, BackendError> {
        let path = format!("{CONFIGS}/config.yaml");
        let options = ContainerArchiveInfoOptionsBuilder::default()
            .path(&path)
            .build();
        let looked = engine
            .client
            .get_container_archive_info(container_id, Some(options));
        match call("container_stat", looked).await {
            Ok(file) => Ok(file.size > 0),
            Err(error) if error.failure() == CallFailure::NotFound => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}
