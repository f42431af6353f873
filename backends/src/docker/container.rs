//! What a workspace's container is made of: everything the create call says (spec: lifecycle §2.2 to §2.5).

use std::collections::{HashMap, HashSet};

use bollard::models::{
    ContainerCreateBody, EndpointSettings, HostConfig, NetworkingConfig, PortBinding,
    RestartPolicy, RestartPolicyNameEnum,
};
use longshore_base::{Secret, WorkspaceId};

use super::config::{TierLimit, TierLimits};
use super::labels::Mark;
use super::names::{
    AGENT_PORT, AGENT_PORT_KEY, CONFIGS, HOST_GATEWAY, SESSION_RUNTIME, WORKSPACE, config_volume,
    session_volume, sessions, workspace_volume,
};
use crate::{BackendError, StartSpec, WorkspaceAccess};

/// What an image's entrypoint needs to take over `/configs` and to leave root.
const ENTRYPOINT_CAPABILITIES: [&str; 5] = ["CHOWN", "DAC_OVERRIDE", "FOWNER", "SETGID", "SETUID"];

/// How much of the host an agent gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tier {
    Sandboxed,
    Standard,
    Privileged,
    Full,
}

impl Tier {
    /// Rows may hold any number; what is no tier gets the default one, never more.
    pub(super) fn of(number: i32) -> Self {
        match number {
            1 => Self::Sandboxed,
            3 => Self::Privileged,
            4 => Self::Full,
            _ => Self::Standard,
        }
    }

    /// Tier 4 shares the host's network: no port map, no address of its own.
    pub(super) fn on_host_network(self) -> bool {
        self == Self::Full
    }

    fn limit(self, limits: &TierLimits) -> Option<TierLimit> {
        match self {
            Self::Sandboxed => None,
            Self::Standard => Some(limits.standard),
            Self::Privileged => Some(limits.privileged),
            Self::Full => Some(limits.full),
        }
    }
}

/// Where `/workspace` comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum WorkspaceMount {
    Volume,
    Directory(String),
}

/// The volumes a start needs, each with a reason to exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Volumes {
    pub(super) config: String,
    pub(super) workspace: Option<String>,
    pub(super) session: Option<String>,
}

impl Volumes {
    pub(super) fn of(spec: &StartSpec) -> Self {
        let id = spec.workspace_id;
        let sandboxed = Tier::of(spec.tier) == Tier::Sandboxed;
        let own_volume = workspace_mount(spec) == WorkspaceMount::Volume;
        Self {
            config: config_volume(id),
            workspace: (!sandboxed && own_volume).then(|| workspace_volume(id)),
            session: (!sandboxed && spec.runtime == SESSION_RUNTIME).then(|| session_volume(id)),
        }
    }
}

/// Where `/workspace` comes from (spec: lifecycle §2.3): a directory counts only with an access that allows it.
pub(super) fn workspace_mount(spec: &StartSpec) -> WorkspaceMount {
    let directory = spec.workspace_dir.as_deref().filter(|dir| !dir.is_empty());
    match (directory, spec.workspace_access) {
        (Some(dir), WorkspaceAccess::ReadWrite) => {
            WorkspaceMount::Directory(format!("{dir}:{WORKSPACE}"))
        }
        (Some(dir), WorkspaceAccess::ReadOnly) => {
            WorkspaceMount::Directory(format!("{dir}:{WORKSPACE}:ro"))
        }
        (Some(_), WorkspaceAccess::None) | (None, _) => WorkspaceMount::Volume,
    }
}

/// Refuses what the engine would misread or would repeat in an error text.
pub(super) fn check(spec: &StartSpec) -> Result<(), BackendError> {
    let unusable = |text: String| Err(BackendError::Unusable(text));
    if let WorkspaceMount::Directory(_) = workspace_mount(spec)
        && let Some(dir) = &spec.workspace_dir
        && (!dir.starts_with('/')
            || dir.contains([':', '\0'])
            || dir.split('/').any(|part| part == ".."))
    {
        return unusable("the workspace directory is not a plain absolute path".to_owned());
    }
    for (name, value) in &spec.env {
        // The engine's own refusal would print the whole entry, value included.
        if name.is_empty() || name.contains(['=', '\0']) || value.expose().contains('\0') {
            return unusable(format!(
                "the environment variable `{}` cannot be set",
                name.escape_default()
            ));
        }
    }
    Ok(())
}

/// The body of the create call.
pub(super) fn create_body(
    spec: &StartSpec,
    mark: Mark<'_>,
    network: &str,
    limits: &TierLimits,
    cpus: Option<i64>,
) -> ContainerCreateBody {
    let name = spec.workspace_id.container_name();
    let tier = Tier::of(spec.tier);
    let endpoint = EndpointSettings {
        aliases: Some(vec![name.clone()]),
        ..Default::default()
    };
    ContainerCreateBody {
        hostname: Some(name),
        image: Some(spec.image.clone()),
        env: Some(environment(&spec.env)),
        exposed_ports: (!tier.on_host_network()).then(|| vec![AGENT_PORT_KEY.to_owned()]),
        labels: Some(mark.of_container(spec)),
        host_config: Some(host_config(spec, tier, network, limits, cpus)),
        networking_config: (!tier.on_host_network()).then(|| NetworkingConfig {
            endpoints_config: Some(HashMap::from([(network.to_owned(), endpoint)])),
        }),
        ..Default::default()
    }
}

fn host_config(
    spec: &StartSpec,
    tier: Tier,
    network: &str,
    limits: &TierLimits,
    cpus: Option<i64>,
) -> HostConfig {
    let limit = tier.limit(limits);
    let confined = matches!(tier, Tier::Sandboxed | Tier::Standard);
    let privileged = matches!(tier, Tier::Privileged | Tier::Full);
    let sandboxed = tier == Tier::Sandboxed;
    let port = PortBinding {
        host_ip: Some("127.0.0.1".to_owned()),
        host_port: Some(String::new()),
    };
    HostConfig {
        binds: Some(binds(spec, tier)),
        restart_policy: Some(RestartPolicy {
            name: Some(RestartPolicyNameEnum::UNLESS_STOPPED),
            maximum_retry_count: None,
        }),
        port_bindings: (!tier.on_host_network())
            .then(|| HashMap::from([(AGENT_PORT_KEY.to_owned(), Some(vec![port]))])),
        extra_hosts: Some(vec![format!("{HOST_GATEWAY}:host-gateway")]),
        network_mode: Some(
            if tier.on_host_network() {
                "host"
            } else {
                network
            }
            .to_owned(),
        ),
        memory: limit.map(|limit| i64::from(limit.memory_mib) << 20),
        nano_cpus: limit.map(|limit| nano_cpus(limit, cpus)),
        readonly_rootfs: sandboxed.then_some(true),
        tmpfs: sandboxed
            .then(|| HashMap::from([("/tmp".to_owned(), "rw,noexec,nosuid,size=64m".to_owned())])),
        security_opt: confined.then(|| vec!["no-new-privileges".to_owned()]),
        cap_drop: confined.then(|| vec!["ALL".to_owned()]),
        cap_add: confined.then(|| ENTRYPOINT_CAPABILITIES.map(str::to_owned).to_vec()),
        privileged: privileged.then_some(true),
        pid_mode: privileged.then(|| "host".to_owned()),
        ..Default::default()
    }
}

fn binds(spec: &StartSpec, tier: Tier) -> Vec<String> {
    let volumes = Volumes::of(spec);
    let mut binds = vec![format!("{}:{CONFIGS}", volumes.config)];
    if tier == Tier::Sandboxed {
        return binds;
    }
    binds.push(match workspace_mount(spec) {
        WorkspaceMount::Directory(bind) => bind,
        WorkspaceMount::Volume => format!("{}:{WORKSPACE}", workspace_volume(spec.workspace_id)),
    });
    binds.extend(volumes.session.map(|name| format!("{name}:{}", sessions())));
    if tier == Tier::Full {
        binds.push("/var/run/docker.sock:/var/run/docker.sock".to_owned());
    }
    binds
}

/// 1024 shares are one CPU. The engine refuses more CPUs than it has, so that is where a limit ends.
fn nano_cpus(limit: TierLimit, cpus: Option<i64>) -> i64 {
    let wanted = i64::from(limit.cpu_shares) * 1_000_000_000 / 1024;
    cpus.map_or(wanted, |cpus| wanted.min(cpus * 1_000_000_000))
}

/// `NAME=value`, each name once, with its last value. The engine would pass duplicates on, and what a program then
/// reads depends on its language.
fn environment(env: &[(String, Secret<String>)]) -> Vec<String> {
    let mut seen = HashSet::new();
    let mut entries: Vec<String> = env
        .iter()
        .rev()
        .filter(|(name, _)| seen.insert(name.as_str()))
        .map(|(name, value)| format!("{name}={}", value.expose()))
        .collect();
    entries.reverse();
    entries
}

/// Where other workspaces reach the agent.
pub(super) fn internal_url(id: WorkspaceId, tier: Tier) -> String {
    if tier.on_host_network() {
        format!("http://{HOST_GATEWAY}:{AGENT_PORT}")
    } else {
        id.internal_url()
    }
}

#[cfg(test)]
mod tests {
    use longshore_base::ids::random_uuid;

    use super::*;

    fn spec(tier: i32) -> StartSpec {
        StartSpec {
            workspace_id: "0b6f3c1e-4d2a-4c3b-9f00-0123456789ab".parse().unwrap(),
            runtime: "claude-code".into(),
            tier,
            image: "img:1".into(),
            pull_always: false,
            env: vec![],
            files: vec![],
            workspace_dir: None,
            workspace_access: WorkspaceAccess::None,
            reset_session: false,
            generation: 1,
            run: random_uuid(),
        }
    }

    fn body(spec: &StartSpec) -> ContainerCreateBody {
        let mark = Mark {
            installation: random_uuid(),
            engine_id: "ENGINE",
        };
        create_body(spec, mark, "net", &TierLimits::default(), Some(2))
    }

    fn host(tier: i32) -> HostConfig {
        body(&spec(tier)).host_config.unwrap()
    }

    #[test]
    fn tiers_one_and_two_are_confined_and_three_and_four_own_the_host() {
        for tier in [1, 2, 0, 5, -1] {
            let host = host(tier);
            assert_eq!(host.security_opt.unwrap(), ["no-new-privileges"], "{tier}");
            assert_eq!(host.cap_drop.unwrap(), ["ALL"], "{tier}");
            assert_eq!(host.cap_add.unwrap(), ENTRYPOINT_CAPABILITIES, "{tier}");
            assert_eq!((host.privileged, host.pid_mode), (None, None), "{tier}");
        }
        for tier in [3, 4] {
            let host = host(tier);
            assert_eq!(host.privileged, Some(true), "{tier}");
            assert_eq!(host.pid_mode.as_deref(), Some("host"), "{tier}");
            assert_eq!((host.cap_drop, host.security_opt), (None, None), "{tier}");
        }
    }

    #[test]
    fn limits_are_of_the_tier_and_no_more_cpus_than_the_engine_has() {
        const MIB: i64 = 1_048_576;
        let limits = |tier| {
            let host = host(tier);
            (host.memory, host.nano_cpus)
        };
        assert_eq!(limits(1), (None, None));
        assert_eq!(limits(2), (Some(512 * MIB), Some(1_000_000_000)));
        assert_eq!(limits(9), limits(2));
        assert_eq!(limits(3), (Some(2048 * MIB), Some(2_000_000_000)));
        assert_eq!(limits(4), (Some(4096 * MIB), Some(2_000_000_000)));
        let half = TierLimit {
            memory_mib: 1,
            cpu_shares: 512,
        };
        assert_eq!(nano_cpus(half, None), 500_000_000);
    }

    #[test]
    fn the_sandbox_sees_its_configs_only_and_cannot_write_elsewhere() {
        let mut spec = spec(1);
        spec.workspace_dir = Some("/srv/work".into());
        spec.workspace_access = WorkspaceAccess::ReadWrite;
        let host = body(&spec).host_config.unwrap();
        assert_eq!(host.binds.unwrap(), ["ws-0b6f3c1e-4d2-configs:/configs"]);
        assert_eq!(host.readonly_rootfs, Some(true));
        assert_eq!(host.tmpfs.unwrap()["/tmp"], "rw,noexec,nosuid,size=64m");
        assert_eq!(Volumes::of(&spec).session, None);
        assert_eq!(Volumes::of(&spec).workspace, None);
    }

    #[test]
    fn tier_four_is_on_the_hosts_network_alone() {
        let body = body(&spec(4));
        assert_eq!(body.networking_config, None);
        assert_eq!(body.exposed_ports, None);
        let host = body.host_config.unwrap();
        assert_eq!(host.network_mode.as_deref(), Some("host"));
        assert_eq!(host.port_bindings, None);
        let sock = "/var/run/docker.sock:/var/run/docker.sock";
        assert_eq!(host.binds.unwrap().last().unwrap(), sock);
    }

    #[test]
    fn a_directory_is_mounted_only_with_access() {
        let mount = |dir: Option<&str>, access| {
            let mut spec = spec(2);
            spec.workspace_dir = dir.map(str::to_owned);
            spec.workspace_access = access;
            body(&spec).host_config.unwrap().binds.unwrap()[1].clone()
        };
        let volume = "ws-0b6f3c1e-4d2a-4c3b-9f00-0123456789ab-workspace:/workspace";
        assert_eq!(mount(None, WorkspaceAccess::ReadWrite), volume);
        assert_eq!(mount(Some(""), WorkspaceAccess::ReadOnly), volume);
        assert_eq!(mount(Some("/srv/w"), WorkspaceAccess::None), volume);
        assert_eq!(
            mount(Some("/srv/w"), WorkspaceAccess::ReadOnly),
            "/srv/w:/workspace:ro"
        );
        assert_eq!(
            mount(Some("/srv/w"), WorkspaceAccess::ReadWrite),
            "/srv/w:/workspace"
        );
    }

    #[test]
    fn of_two_variables_of_one_name_the_later_is_set() {
        let env = [("A", "1"), ("B", "2"), ("A", "3"), ("C", "x=y")]
            .map(|(name, value)| (name.to_owned(), Secret::from(value)));
        assert_eq!(environment(&env), ["B=2", "A=3", "C=x=y"]);
    }

    #[test]
    fn what_the_engine_would_misread_is_refused_without_telling_a_value() {
        let mut with_name = spec(2);
        with_name.env = vec![("A=B".into(), Secret::from("hunter2"))];
        let mut with_value = spec(2);
        with_value.env = vec![("TOKEN".into(), Secret::from("hunter2\0"))];
        for spec in [with_name, with_value] {
            let error = check(&spec).unwrap_err().chain();
            assert!(!error.contains("hunter2"), "{error}");
        }
        let mut with_directory = spec(2);
        with_directory.workspace_access = WorkspaceAccess::ReadWrite;
        for dir in ["relative", "/a:/b", "/a/../etc"] {
            with_directory.workspace_dir = Some(dir.into());
            assert!(check(&with_directory).is_err(), "{dir}");
        }
        with_directory.workspace_dir = Some("/srv/a..b".into());
        assert!(check(&with_directory).is_ok());
    }
}
