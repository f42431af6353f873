//! Where a test's workspaces run: in containers of the machine's engine, or on instances of a simulated control plane, which
//! keeps them in the same engine. One test of the lifecycle runs on both; what differs is here.

use serde_json::json;

use crate::app::TestApp;
use crate::builder::Builder;

impl Builder {
    /// Whether workspaces are to run on instances.
    #[must_use]
    pub fn is_hosted(&self) -> bool {
        self.control_plane.is_some()
    }

    /// The fail point where something has been made for a workspace and no row says so yet.
    #[must_use]
    pub fn when_made(&self) -> &'static str {
        if self.is_hosted() {
            "provision.started"
        } else {
            "docker.after_create"
        }
    }
}

impl TestApp {
    /// Whether workspaces run on instances.
    #[must_use]
    pub fn is_hosted(&self) -> bool {
        self.control_plane.is_some()
    }

    /// Nothing can be started or stopped from now on: the engine is gone, or the control plane fails every call.
    ///
    /// # Panics
    /// When the test was not built to be cut off.
    pub async fn cut_off(&mut self) {
        match (&mut self.switch, &self.control_plane) {
            (_, Some(control_plane)) => control_plane.set_faults(&all_fail(1)).await,
            (Some(switch), None) => switch.turn_off(),
            (None, None) => panic!("not built to be cut off"),
        }
    }

    /// The end of [`TestApp::cut_off`].
    ///
    /// # Panics
    /// When the engine cannot be given back.
    pub async fn reconnect(&mut self) {
        match (&mut self.switch, &self.control_plane) {
            (_, Some(control_plane)) => control_plane.set_faults(&all_fail(0)).await,
            (Some(switch), None) => switch.turn_on(),
            (None, None) => panic!("not built to be cut off"),
        }
    }

    /// Everything that is there for a workspace, running or not: containers, those of instances among them, and what the
    /// control plane takes for an instance.
    pub async fn remains(&self, workspace: &str) -> Vec<String> {
        let containers = self.engine().containers_of(workspace).await;
        let mut remains: Vec<_> = containers
            .into_iter()
            .map(|container| container.id)
            .collect();
        if let Some(control_plane) = &self.control_plane {
            remains.extend(control_plane.instances(workspace).await);
        }
        remains
    }

    /// The container or instance that is the workspace's by its row. No answer tells it.
    pub async fn home_in_row(&self, workspace: &str) -> Option<String> {
        sqlx::query_scalar(
            "SELECT coalesce(container_id, instance_id) FROM workspaces WHERE id = $1::uuid",
        )
        .bind(workspace)
        .fetch_one(self.pool())
        .await
        .unwrap()
    }
}

fn all_fail(share: u8) -> serde_json::Value {
    json!({ "starts": share, "stops": share, "statuses": share })
}
