//! Volumes: made with labels, never taken from anybody else, removed only when they are ours. A volume whose labels the engine
//! has lost is its workspace's by its name; sweeps, which go by labels alone, leave it to its workspace.

use bollard::models::VolumeCreateRequest;
use bollard::query_parameters::RemoveVolumeOptionsBuilder;
use futures_util::future::try_join_all;
use longshore_base::{WorkspaceId, brand};

use super::engine::{Docker, Engine, call};
use super::labels::{Holder, Labels};
use super::names::{config_volume, session_volume, workspace_volume};
use crate::{BackendError, CallFailure, VolumeScope};

impl Docker {
    /// Makes volumes, all at once. One that exists is kept if it is this workspace's.
    pub(super) async fn make_volumes<'a>(
        &self,
        engine: &Engine,
        id: WorkspaceId,
        names: impl Iterator<Item = &'a String>,
    ) -> Result<(), BackendError> {
        let labels = self.mark(engine).of_workspace(id);
        try_join_all(names.map(|name| self.make_volume(engine, id, name, &labels))).await?;
        Ok(())
    }

    async fn make_volume(
        &self,
        engine: &Engine,
        id: WorkspaceId,
        name: &str,
        labels: &Labels,
    ) -> Result<(), BackendError> {
        let request = VolumeCreateRequest {
            name: Some(name.to_owned()),
            labels: Some(labels.clone()),
            ..Default::default()
        };
        // The engine answers alike for a new volume and for one that was there, with the labels that one has.
        let volume = call("volume_create", engine.client.create_volume(request)).await?;
        if self.is_strangers(engine, id, &volume.labels) {
            return Err(BackendError::NameTaken {
                name: name.to_owned(),
                holder: described(&volume.labels),
            });
        }
        Ok(())
    }

    /// Whether a volume under one of a workspace's own names is another's. One without any labels is not: an engine that is
    /// killed while it makes a volume forgets them, and the name, which is drawn at random, is in the row of this
    /// workspace alone. Another installation's has labels, or another name.
    fn is_strangers(&self, engine: &Engine, id: WorkspaceId, labels: &Labels) -> bool {
        !labels.is_empty() && self.mark(engine).holder(id, labels) == Holder::Stranger
    }

    /// Forgets a workspace's sessions. Failing is no reason not to start: the old sessions stay.
    pub(super) async fn drop_sessions(&self, engine: &Engine, id: WorkspaceId) {
        if let Err(error) = self.remove_volume(engine, id, &session_volume(id)).await {
            let error = error.chain();
            tracing::warn!(workspace.id = %id, error, "the session volume could not be removed");
        }
    }

    pub(super) async fn remove_volumes_of(
        &self,
        id: WorkspaceId,
        scope: VolumeScope,
    ) -> Result<(), BackendError> {
        let engine = self.engine().await?;
        self.remove_volume(engine, id, &config_volume(id)).await?;
        self.drop_sessions(engine, id).await;
        match scope {
            VolumeScope::ConfigAndSessions => Ok(()),
            VolumeScope::All => self.remove_volume(engine, id, &workspace_volume(id)).await,
        }
    }

    async fn remove_volume(
        &self,
        engine: &Engine,
        id: WorkspaceId,
        name: &str,
    ) -> Result<(), BackendError> {
        let found = match call("volume_inspect", engine.client.inspect_volume(name)).await {
            Ok(found) => found,
            Err(error) if error.failure() == CallFailure::NotFound => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        if self.is_strangers(engine, id, &found.labels) {
            let holder = described(&found.labels);
            tracing::warn!(workspace.id = %id, volume = name, holder, "left a volume that is not ours");
            return Ok(());
        }
        let options = RemoveVolumeOptionsBuilder::default().force(true).build();
        let removed = engine.client.remove_volume(name, Some(options));
        match call("volume_remove", removed).await {
            Ok(()) => Ok(()),
            Err(error) if error.failure() == CallFailure::NotFound => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Whose it seems to be, for an error text.
pub(super) fn described(labels: &Labels) -> String {
    match (
        labels.get(brand::LABEL_INSTALLATION),
        labels.get(brand::LABEL_WORKSPACE),
    ) {
        (Some(installation), Some(workspace)) => {
            format!("workspace {workspace} of installation {installation}")
        }
        (Some(installation), None) => format!("installation {installation}"),
        (None, _) => "without our labels".to_owned(),
    }
}
