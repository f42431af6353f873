//! All that carries our labels, and removing one such thing by its id (spec: operations §5, jobs §12).

use bollard::models::{ContainerSummary, ContainerSummaryStateEnum, Volume};
use bollard::query_parameters::{
    ListContainersOptionsBuilder, ListVolumesOptions, RemoveVolumeOptionsBuilder,
};

use super::engine::{CALL_LIMIT, Docker, LOOK_LIMIT, call, call_within};
use super::labels::{Labels, Mark, generation, workspace};
use super::list::START;
use super::names::workspace_volume;
use super::volumes::described;
use crate::{BackendError, CallFailure, Inventory, Marked, MarkedKind};

impl Docker {
    pub(super) async fn list_marked(&self) -> Result<Inventory, BackendError> {
        let engine = self.engine().await?;
        let options = ListContainersOptionsBuilder::default().all(true).build();
        let containers = engine.client.list_containers(Some(options));
        let containers = call_within(CALL_LIMIT, "container_list", containers).await?;
        let volumes = engine.client.list_volumes(None::<ListVolumesOptions>);
        let volumes = call_within(CALL_LIMIT, "volume_list", volumes).await?;
        let mark = self.mark(engine);
        let mut inventory = Inventory::default();
        for container in containers {
            let is_running = container.state == Some(ContainerSummaryStateEnum::RUNNING);
            inventory.sort(mark, of_container(container), is_running);
        }
        for volume in volumes.volumes.unwrap_or_default() {
            inventory.sort(mark, of_volume(volume), false);
        }
        Ok(inventory)
    }

    pub(super) async fn remove_marked_container(
        &self,
        id: &str,
        newest: i64,
    ) -> Result<(), BackendError> {
        let engine = self.engine().await?;
        let inspected = engine.client.inspect_container(id, None);
        let found = match call_within(LOOK_LIMIT, "container_inspect", inspected).await {
            Ok(found) => found,
            Err(error) if error.failure() == CallFailure::NotFound => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let labels = found
            .config
            .and_then(|config| config.labels)
            .unwrap_or_default();
        require_ours(self.mark(engine), id, &labels)?;
        match generation(&labels) {
            Some(theirs) if theirs > newest => Err(BackendError::StaleGeneration {
                ours: newest,
                theirs,
            }),
            // By the id that was judged, whatever has taken the name since.
            _ => {
                let judged = found.id.unwrap_or_default();
                self.remove_container(engine, &judged).await
            }
        }
    }

    pub(super) async fn remove_marked_volume(&self, name: &str) -> Result<(), BackendError> {
        let engine = self.engine().await?;
        let inspected = call("volume_inspect", engine.client.inspect_volume(name)).await;
        let found = match inspected {
            Ok(found) => found,
            Err(error) if error.failure() == CallFailure::NotFound => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        require_ours(self.mark(engine), name, &found.labels)?;
        let options = RemoveVolumeOptionsBuilder::default().build();
        let removed = engine.client.remove_volume(name, Some(options));
        match call("volume_remove", removed).await {
            Ok(()) => Ok(()),
            Err(error) if error.failure() == CallFailure::NotFound => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

fn require_ours(mark: Mark<'_>, name: &str, labels: &Labels) -> Result<(), BackendError> {
    if mark.is_on(labels) {
        return Ok(());
    }
    Err(BackendError::NameTaken {
        name: name.to_owned(),
        holder: described(labels),
    })
}

fn of_container(container: ContainerSummary) -> (MarkedKind, String, String, Labels) {
    let names = container.names.unwrap_or_default();
    let name = names.first().map(|name| name.trim_start_matches('/'));
    (
        MarkedKind::Container,
        container.id.unwrap_or_default(),
        name.unwrap_or_default().to_owned(),
        container.labels.unwrap_or_default(),
    )
}

fn of_volume(volume: Volume) -> (MarkedKind, String, String, Labels) {
    let name = volume.name;
    (MarkedKind::Volume, name.clone(), name, volume.labels)
}

impl Inventory {
    fn sort(
        &mut self,
        mark: Mark<'_>,
        listed: (MarkedKind, String, String, Labels),
        is_running: bool,
    ) {
        let (kind, id, name, labels) = listed;
        if !mark.is_on(&labels) {
            self.strangers += usize::from(name.starts_with(START));
            return;
        }
        let workspace_id = workspace(&labels);
        self.ours.push(Marked {
            kind,
            id,
            is_work: workspace_id.is_some_and(|id| workspace_volume(id) == name),
            name,
            workspace_id,
            generation: generation(&labels),
            is_running,
        });
    }
}
