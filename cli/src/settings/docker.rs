//! The Docker engine.

use clap::Args;
use longshore_base::Secret;

use super::SettingError;

/// Settings of the Docker backend.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Docker")]
pub(crate) struct DockerSettings {
    /// The engine: `unix:///path` or `tcp://host:port`. Unset: `unix:///var/run/docker.sock`.
    #[arg(
        id = "docker-host",
        long = "docker-host",
        env = "DOCKER_HOST",
        value_name = "URL"
    )]
    pub(crate) host: Option<String>,

    /// Network the workspaces share; made when missing.
    #[arg(
        id = "docker-network",
        long = "docker-network",
        env = "LONGSHORE_DOCKER_NETWORK",
        value_name = "NAME",
        default_value = "longshore-net"
    )]
    pub(crate) network: String,

    /// Platform of pulled images, `os/arch`. Unset, or set but empty: the engine's own.
    #[arg(
        id = "image-platform",
        long = "image-platform",
        env = "LONGSHORE_IMAGE_PLATFORM",
        value_name = "OS/ARCH"
    )]
    pub(crate) platform: Option<String>,

    /// Memory of a tier 2 workspace, in MiB, at least 16.
    #[arg(long = "tier2-memory", env = "TIER2_MEMORY_MB", value_name = "MIB", default_value_t = 512, value_parser = clap::value_parser!(u32).range(16..))]
    pub(crate) tier2_memory_mb: u32,

    /// CPU shares of a tier 2 workspace, 1024 being one core; at least 2.
    #[arg(long = "tier2-cpu", env = "TIER2_CPU_SHARES", value_name = "SHARES", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(2..=262_144))]
    pub(crate) tier2_cpu_shares: u32,

    /// Memory of a tier 3 workspace, in MiB, at least 16.
    #[arg(long = "tier3-memory", env = "TIER3_MEMORY_MB", value_name = "MIB", default_value_t = 2048, value_parser = clap::value_parser!(u32).range(16..))]
    pub(crate) tier3_memory_mb: u32,

    /// CPU shares of a tier 3 workspace, 1024 being one core; at least 2.
    #[arg(long = "tier3-cpu", env = "TIER3_CPU_SHARES", value_name = "SHARES", default_value_t = 2048, value_parser = clap::value_parser!(u32).range(2..=262_144))]
    pub(crate) tier3_cpu_shares: u32,

    /// Memory of a tier 4 workspace, in MiB, at least 16.
    #[arg(long = "tier4-memory", env = "TIER4_MEMORY_MB", value_name = "MIB", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(16..))]
    pub(crate) tier4_memory_mb: u32,

    /// CPU shares of a tier 4 workspace, 1024 being one core; at least 2.
    #[arg(long = "tier4-cpu", env = "TIER4_CPU_SHARES", value_name = "SHARES", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(2..=262_144))]
    pub(crate) tier4_cpu_shares: u32,

    /// User for pulls from the image registry; set together with the token.
    #[arg(long = "registry-user", env = "GHCR_USER", value_name = "NAME")]
    pub(crate) registry_user: Option<String>,

    /// Token for pulls from the image registry.
    #[arg(
        long = "registry-token",
        env = "GHCR_TOKEN",
        value_name = "TOKEN",
        hide_env_values = true
    )]
    pub(crate) registry_token: Option<String>,
}

impl DockerSettings {
    /// Where the engine is looked for, as anybody may read it: the address of another machine is nobody's business.
    pub(crate) fn shown_address(&self) -> String {
        match self.host.as_deref().map(str::trim) {
            None | Some("") => "unix:///var/run/docker.sock".to_owned(),
            Some(socket) if socket.starts_with("unix://") => socket.to_owned(),
            Some(_) => "the address in DOCKER_HOST".to_owned(),
        }
    }

    /// User and token for pulls; both or none.
    pub(crate) fn registry_login(&self) -> Result<Option<(String, Secret<String>)>, SettingError> {
        match (&self.registry_user, &self.registry_token) {
            (Some(user), Some(token)) => Ok(Some((user.clone(), Secret::from(token.as_str())))),
            (None, None) => Ok(None),
            _ => Err(SettingError::new(
                "GHCR_USER",
                "set GHCR_USER and GHCR_TOKEN together, or neither",
            )),
        }
    }

    /// The preferred platform; a value that is not `os/arch` is refused.
    pub(crate) fn image_platform(&self) -> Result<Option<String>, SettingError> {
        match self.platform.as_deref().map(str::trim) {
            None | Some("") => Ok(None),
            Some(text) => match text.split_once('/') {
                Some((os, arch)) if !os.is_empty() && !arch.is_empty() => Ok(Some(text.to_owned())),
                _ => Err(SettingError::new(
                    "LONGSHORE_IMAGE_PLATFORM",
                    "must look like linux/amd64",
                )),
            },
        }
    }
}
