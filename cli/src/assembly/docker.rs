//! The Docker engine of a process.

use std::sync::Arc;

use anyhow::Context as _;
use longshore_api::WatchedEngine;
use longshore_backends::docker::{RegistryAuth, TierLimit, TierLimits};
use longshore_backends::{Backend, Backends, Docker, DockerConfig};
use longshore_base::pools::Pools;
use longshore_fleet::installation_id;
use uuid::Uuid;

use crate::settings::docker::DockerSettings;
use crate::settings::fleet::FleetSettings;

/// The registry the login of the settings is for.
const REGISTRY: &str = "ghcr.io";

/// Whether an engine answers.
pub(crate) enum DockerAt {
    /// It does.
    Here(Arc<Docker>),
    /// It does not, for this reason.
    Away(Arc<Docker>, String),
}

/// Where the workspaces of a process run.
pub(crate) struct Engines {
    /// What it uses.
    pub(crate) backends: Backends,
    /// What it tells the health of; none where workspaces run on no engine.
    pub(crate) watched: Option<WatchedEngine>,
}

impl DockerAt {
    /// For a process that takes the engine as it is now.
    pub(crate) fn engines_now(&self, settings: &DockerSettings) -> Engines {
        self.engines(matches!(self, Self::Here(_)), settings)
    }

    /// For a process that will find the engine when it comes.
    pub(crate) fn engines_whenever(&self, settings: &DockerSettings) -> Engines {
        self.engines(true, settings)
    }

    fn engines(&self, used: bool, settings: &DockerSettings) -> Engines {
        let (Self::Here(docker) | Self::Away(docker, _)) = self;
        let docker: Arc<dyn Backend> = docker.clone();
        Engines {
            backends: Backends {
                docker: used.then(|| docker.clone()),
                ..Backends::default()
            },
            watched: Some(WatchedEngine {
                backend: docker,
                address: settings.shown_address(),
            }),
        }
    }
}

/// Takes the settings and asks the engine whether it is there. Settles on the way whether this process runs in a
/// container, where nothing was said.
pub(crate) async fn connect_docker(
    settings: &DockerSettings,
    fleet: &mut FleetSettings,
    pools: &Pools,
) -> anyhow::Result<DockerAt> {
    let mut connection = pools.work.acquire().await?;
    let installation = installation_id(&mut connection)
        .await
        .context("cannot read the id of this installation")?;
    drop(connection);
    let mut config = docker_config(settings, installation)?;
    config.in_docker = fleet.is_in_docker();
    let mut docker = Docker::connect(config.clone())?;
    if let Err(error) = docker.engine().await {
        let why = format!("{:#}", anyhow::Error::new(error));
        return Ok(DockerAt::Away(Arc::new(docker), why));
    }
    if config.in_docker && fleet.in_docker.is_none() && shares_network(&docker).await {
        fleet.in_docker = Some(false);
        config.in_docker = false;
        docker = Docker::connect(config)?;
    }
    Ok(DockerAt::Here(Arc::new(docker)))
}

/// Whether this process is in the network of the engine's machine, where the ports of containers are on `127.0.0.1`
/// whatever kind of box it looks like: the gateway of the workspace network is then an address of our own.
async fn shares_network(docker: &Docker) -> bool {
    match docker.network_gateway().await {
        Ok(Some(gateway)) => std::net::TcpListener::bind((gateway, 0)).is_ok(),
        Ok(None) => false,
        Err(error) => {
            tracing::warn!(%error, "cannot tell whether this process shares the engine's network");
            false
        }
    }
}

fn docker_config(settings: &DockerSettings, installation: Uuid) -> anyhow::Result<DockerConfig> {
    let limit = |memory_mib, cpu_shares| TierLimit {
        memory_mib,
        cpu_shares,
    };
    Ok(DockerConfig {
        host: settings.host.clone(),
        network: settings.network.clone(),
        platform: settings.image_platform()?,
        tiers: TierLimits {
            standard: limit(settings.tier2_memory_mb, settings.tier2_cpu_shares),
            privileged: limit(settings.tier3_memory_mb, settings.tier3_cpu_shares),
            full: limit(settings.tier4_memory_mb, settings.tier4_cpu_shares),
        },
        registry_auth: settings
            .registry_login()?
            .map(|(username, token)| RegistryAuth {
                registry: REGISTRY.to_owned(),
                username,
                token,
            }),
        ..DockerConfig::new(installation)
    })
}
