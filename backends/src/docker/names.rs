//! Names of a workspace's things in the engine (spec: lifecycle §2.1).

use longshore_base::WorkspaceId;
use longshore_base::secret::sha256;

/// Where the platform's files are in the container.
pub(super) const CONFIGS: &str = "/configs";
/// Where the work is.
pub(super) const WORKSPACE: &str = "/workspace";
/// The home of the user that agents are inside their containers.
const AGENT_HOME: &str = "/root";
/// The runtime that has sessions.
pub(super) const SESSION_RUNTIME: &str = "claude-code";
/// The tool of that runtime, whose sessions they are.
const SESSION_TOOL: &str = "claude";
/// Where every agent listens.
pub(super) const AGENT_PORT: u16 = 8000;
/// The same, as the engine writes it.
pub(super) const AGENT_PORT_KEY: &str = "8000/tcp";
/// How a container names the machine it runs on.
pub(super) const HOST_GATEWAY: &str = "host.docker.internal";

pub(super) fn config_volume(id: WorkspaceId) -> String {
    format!("{}-configs", id.container_name())
}

pub(super) fn session_volume(id: WorkspaceId) -> String {
    format!("{}-{SESSION_TOOL}-sessions", id.container_name())
}

/// Where that tool keeps them in the container.
pub(super) fn sessions() -> String {
    format!("{AGENT_HOME}/.{SESSION_TOOL}/sessions")
}

/// The one name with the whole id: work must never be shared, not even by a collision of first halves.
pub(super) fn workspace_volume(id: WorkspaceId) -> String {
    format!("ws-{id}-workspace")
}

/// The network's interface on the engine's machine: fifteen characters, the most an interface may have.
pub(super) fn bridge(network: &str) -> String {
    let digest = hex::encode(sha256(network.as_bytes()));
    format!("br-{}", &digest[..12])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_ecosystem() {
        let id: WorkspaceId = "0b6f3c1e-4d2a-4c3b-9f00-0123456789ab".parse().unwrap();
        assert_eq!(config_volume(id), "ws-0b6f3c1e-4d2-configs");
        assert_eq!(session_volume(id), "ws-0b6f3c1e-4d2-claude-sessions");
        assert_eq!(
            workspace_volume(id),
            "ws-0b6f3c1e-4d2a-4c3b-9f00-0123456789ab-workspace"
        );
        // Processes of different versions must agree on it, or they make the network twice.
        assert_eq!(bridge("longshore-net"), "br-d0e0562759d7");
    }
}
