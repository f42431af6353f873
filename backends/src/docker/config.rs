//! Settings of the Docker backend, and what they mean.

use longshore_base::Secret;
use uuid::Uuid;

use crate::BackendError;

const DEFAULT_SOCKET: &str = "unix:///var/run/docker.sock";

/// What the Docker backend must be told. Built once, by the command line.
#[derive(Clone, Debug)]
pub struct DockerConfig {
    /// `unix://…`, `tcp://…` or `http://…`; `None` is the usual socket.
    pub host: Option<String>,
    /// The network workspaces share; made when missing.
    pub network: String,
    /// `os/arch` for pull and create. `None` lets the host decide; empty, or not of that form, is no preference.
    pub platform: Option<String>,
    /// Memory and CPU of tiers 2 to 4.
    pub tiers: TierLimits,
    /// The platform itself runs in a container: agents are then reached over the network, not over host ports.
    pub in_docker: bool,
    /// Credentials of one registry.
    pub registry_auth: Option<RegistryAuth>,
    /// This installation's id, from its database; half of what makes a container ours.
    pub installation: Uuid,
}

impl DockerConfig {
    /// The defaults, for an installation.
    #[must_use]
    pub fn new(installation: Uuid) -> Self {
        Self {
            host: None,
            network: "longshore-net".to_owned(),
            platform: None,
            tiers: TierLimits::default(),
            in_docker: false,
            registry_auth: None,
            installation,
        }
    }
}

/// Who we are to a registry.
#[derive(Clone, Debug)]
pub struct RegistryAuth {
    /// Host of the registry, `ghcr.io`. Pulls from any other go without credentials.
    pub registry: String,
    /// User name.
    pub username: String,
    /// Token.
    pub token: Secret<String>,
}

/// Limits per tier; tier 1 has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TierLimits {
    /// Of tier 2, and of every tier that is not 1, 3 or 4.
    pub standard: TierLimit,
    /// Of tier 3.
    pub privileged: TierLimit,
    /// Of tier 4.
    pub full: TierLimit,
}

impl Default for TierLimits {
    fn default() -> Self {
        let limit = |memory_mib, cpu_shares| TierLimit {
            memory_mib,
            cpu_shares,
        };
        Self {
            standard: limit(512, 1024),
            privileged: limit(2048, 2048),
            full: limit(4096, 4096),
        }
    }
}

/// What one container of a tier may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TierLimit {
    /// Memory in MiB.
    pub memory_mib: u32,
    /// 1024 shares are one CPU, as a hard limit.
    pub cpu_shares: u32,
}

/// Where the engine listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Address {
    Socket(String),
    Tcp(String),
}

impl Address {
    pub(super) fn parse(host: Option<&str>) -> Result<Self, BackendError> {
        let host = host.map(str::trim).filter(|host| !host.is_empty());
        let host = host.unwrap_or(DEFAULT_SOCKET);
        match host.split_once("://") {
            Some(("unix", path)) if path.starts_with('/') => Ok(Self::Socket(path.to_owned())),
            Some(("tcp" | "http", rest)) if !rest.trim_matches('/').is_empty() => {
                Ok(Self::Tcp(rest.trim_end_matches('/').to_owned()))
            }
            _ => Err(BackendError::Misconfigured(format!(
                "the engine's address must be unix:///path, tcp://host:port or http://host:port, not `{host}`"
            ))),
        }
    }

    /// Name of the machine the engine runs on, as this process reaches it.
    pub(super) fn host_name(&self) -> &str {
        match self {
            Self::Socket(_) => "127.0.0.1",
            Self::Tcp(rest) => rest
                .rsplit_once(':')
                .map_or(rest.as_str(), |(host, _)| host),
        }
    }
}

/// The platform to ask for, or none.
pub(super) fn platform(setting: Option<&str>) -> Option<String> {
    match setting {
        Some(text) => match text.trim().split('/').collect::<Vec<_>>()[..] {
            [os, arch] if !os.is_empty() && !arch.is_empty() => Some(format!("{os}/{arch}")),
            _ => None,
        },
        // Published agent images are amd64 only; on Apple silicon the engine emulates it if told to.
        None => cfg!(all(target_os = "macos", target_arch = "aarch64"))
            .then(|| "linux/amd64".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_sockets_or_tcp() {
        let parse = |host| Address::parse(Some(host)).ok();
        let socket = |path: &str| Some(Address::Socket(path.to_owned()));
        assert_eq!(Address::parse(None).ok(), socket("/var/run/docker.sock"));
        assert_eq!(parse(""), socket("/var/run/docker.sock"));
        assert_eq!(parse("unix:///run/x.sock"), socket("/run/x.sock"));
        let tcp = parse("tcp://10.0.0.7:2375/").unwrap();
        assert_eq!(tcp, Address::Tcp("10.0.0.7:2375".to_owned()));
        assert_eq!(tcp.host_name(), "10.0.0.7");
        for bad in [
            "ssh://host",
            "unix://relative",
            "/var/run/docker.sock",
            "tcp://",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_platform_is_os_and_architecture_or_no_preference() {
        assert_eq!(
            platform(Some("linux/arm64")).as_deref(),
            Some("linux/arm64")
        );
        for none in ["", "linux", "linux/", "/arm64", "linux/arm64/v8"] {
            assert_eq!(platform(Some(none)), None, "{none}");
        }
    }
}
