//! Finding, judging and removing containers (spec: lifecycle §2.9, jobs §6).

use std::time::Duration;

use bollard::query_parameters::RemoveContainerOptionsBuilder;
use longshore_base::clock::Stopwatch;
use longshore_base::{WorkspaceId, brand};
use uuid::Uuid;

use super::engine::{BETWEEN_LOOKS, CALL_LIMIT, Docker, Engine, LOOK_LIMIT, call, call_within};
use super::labels::Holder;
use super::volumes::described;
use crate::{BackendError, CallFailure, StopTarget};

/// What was found under a workspace's name.
pub(super) struct Found {
    pub(super) id: String,
    pub(super) holder: Holder,
    /// Whose it is, in words.
    pub(super) described: String,
    pub(super) running: bool,
    /// The run that made it, by its label.
    pub(super) run: Option<Uuid>,
}

impl Docker {
    /// Looks the workspace's container up by its name; `None` says that there is none.
    pub(super) async fn find(
        &self,
        engine: &Engine,
        id: WorkspaceId,
        limit: Duration,
    ) -> Result<Option<Found>, BackendError> {
        let name = id.container_name();
        let inspected = engine.client.inspect_container(&name, None);
        let found = match call_within(limit, "container_inspect", inspected).await {
            Ok(found) => found,
            Err(error) if error.failure() == CallFailure::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let labels = found
            .config
            .and_then(|config| config.labels)
            .unwrap_or_default();
        let container_id = found.id.unwrap_or_default();
        Ok(Some(Found {
            holder: self.mark(engine).holder(id, &labels),
            described: format!("container {container_id}, {}", described(&labels)),
            id: container_id,
            run: labels
                .get(brand::LABEL_RUN)
                .and_then(|run| run.parse().ok()),
            running: found.state.and_then(|state| state.running) == Some(true),
        }))
    }

    /// The same, of the workspace only.
    pub(super) async fn find_ours(
        &self,
        engine: &Engine,
        id: WorkspaceId,
    ) -> Result<Option<Found>, BackendError> {
        let found = self.find(engine, id, LOOK_LIMIT).await?;
        Ok(found.filter(|found| found.holder != Holder::Stranger))
    }

    pub(super) async fn stop_container(&self, target: &StopTarget) -> Result<(), BackendError> {
        let engine = self.engine().await?;
        let id = target.workspace_id;
        let Some(found) = self.find(engine, id, CALL_LIMIT).await? else {
            return Ok(());
        };
        match found.holder {
            Holder::Ours { generation } if generation > target.generation => {
                Err(BackendError::StaleGeneration {
                    ours: target.generation,
                    theirs: generation,
                })
            }
            Holder::Ours { .. } => self.remove_container(engine, &found.id).await,
            // To call this stopped would leave an agent running that nobody looks for any more.
            Holder::OursElsewhere => Err(BackendError::NameTaken {
                name: id.container_name(),
                holder: format!("{}, made under another engine id", found.described),
            }),
            Holder::Stranger => {
                let holder = found.described;
                tracing::warn!(workspace.id = %id, holder, "left a container that is not ours");
                Ok(())
            }
        }
    }

    /// Removes one container by its id, running or not, and its anonymous volumes. One that is gone is success.
    pub(super) async fn remove_container(
        &self,
        engine: &Engine,
        container_id: &str,
    ) -> Result<(), BackendError> {
        let since = Stopwatch::start();
        loop {
            let options = RemoveContainerOptionsBuilder::default().force(true).v(true);
            let options = Some(options.build());
            let removed = engine.client.remove_container(container_id, options);
            match call("container_remove", removed).await {
                Ok(()) => return Ok(()),
                Err(error) if error.failure() == CallFailure::NotFound => return Ok(()),
                // Somebody else is removing it, and may yet fail.
                Err(error)
                    if error.failure() == CallFailure::Conflict && since.elapsed() < CALL_LIMIT =>
                {
                    tokio::time::sleep(BETWEEN_LOOKS).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}
