//! Instances: a container each, at an address that is known before it starts, since its agent must tell it.

use std::collections::HashMap;

use bollard::Docker;
use bollard::errors::Error as ClientError;
use bollard::models::{
    ContainerCreateBody, EndpointIpamConfig, EndpointSettings, HostConfig, Ipam, IpamConfig,
    NetworkCreateRequest, NetworkingConfig,
};
use bollard::query_parameters::{LogsOptionsBuilder, RemoveContainerOptionsBuilder};
use futures_util::TryStreamExt as _;
use longshore_base::brand::{LABEL_INSTALLATION, LABEL_WORKSPACE};
use longshore_base::random;

use crate::flags::Flags;

/// Of the network, where it is made here.
const SUBNET: &str = "10.217.16.0/20";
/// Addresses are drawn; another instance, of another simulation perhaps, may have one already.
const DRAWS: u32 = 8;

/// What can go wrong with the engine.
pub(crate) type EngineError = Box<dyn std::error::Error + Send + Sync>;

/// The engine that has them.
pub(crate) struct Instances {
    docker: Docker,
    image: String,
    network: String,
    installation: String,
    /// The first two numbers of every address of the network's, and the range of the third.
    range: ([u8; 2], u8, u8),
}

impl Instances {
    /// Makes contact, and the network if need be.
    pub(crate) async fn connect(flags: &Flags) -> Result<Self, EngineError> {
        let docker = match std::env::var("DOCKER_HOST") {
            Ok(host) if host.starts_with("tcp://") => Docker::connect_with_http_defaults()?,
            _ => Docker::connect_with_unix_defaults()?,
        };
        let docker = docker.negotiate_version().await?;
        let subnet = match subnet_of(&docker, &flags.network).await {
            Some(subnet) => subnet,
            None => {
                docker.create_network(network(&flags.network)).await?;
                SUBNET.to_owned()
            }
        };
        Ok(Self {
            docker,
            image: flags.image.clone(),
            network: flags.network.clone(),
            installation: flags.installation.clone(),
            range: range(&subnet).ok_or_else(|| format!("cannot draw addresses from {subnet}"))?,
        })
    }

    /// Starts one; answers its container and its address.
    pub(crate) async fn start(
        &self,
        workspace_id: &str,
        env: &[(String, String)],
    ) -> Result<(String, String), EngineError> {
        let mut last = None;
        for _ in 0..DRAWS {
            let address = self.draw();
            let body = self.body(workspace_id, &address, env);
            let created = self.docker.create_container(None, body).await?;
            match self.docker.start_container(&created.id, None).await {
                Ok(()) => return Ok((created.id, address)),
                Err(error) => {
                    self.remove(&created.id).await?;
                    last = Some(error);
                }
            }
        }
        Err(last.map_or_else(|| "no address was drawn".into(), Into::into))
    }

    /// Ends one; one that is gone is ended.
    pub(crate) async fn remove(&self, container: &str) -> Result<(), EngineError> {
        let options = RemoveContainerOptionsBuilder::default()
            .force(true)
            .v(true)
            .build();
        match self.docker.remove_container(container, Some(options)).await {
            Ok(()) => Ok(()),
            Err(ClientError::DockerResponseServerError {
                status_code: 404, ..
            }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether one runs.
    pub(crate) async fn runs(&self, container: &str) -> bool {
        let inspected = self.docker.inspect_container(container, None).await;
        inspected
            .ok()
            .and_then(|container| container.state?.running)
            .unwrap_or(false)
    }

    /// What one wrote.
    pub(crate) async fn console(&self, container: &str) -> Result<String, EngineError> {
        let options = LogsOptionsBuilder::default()
            .stdout(true)
            .stderr(true)
            .build();
        let lines = self.docker.logs(container, Some(options));
        let lines: Vec<_> = lines.try_collect().await?;
        Ok(lines.iter().map(ToString::to_string).collect())
    }

    fn draw(&self) -> String {
        let ([a, b], low, high) = self.range;
        let [c, d] = random::bytes::<2>();
        // Neither the network, nor the gateway, nor the broadcast.
        format!("{a}.{b}.{}.{}", low + c % (high - low), 2 + d % 250)
    }

    fn body(
        &self,
        workspace_id: &str,
        address: &str,
        env: &[(String, String)],
    ) -> ContainerCreateBody {
        let mut env: Vec<_> = env
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        // How the agent says where it is.
        env.push(format!("HOSTNAME={address}"));
        let endpoint = EndpointSettings {
            ipam_config: Some(EndpointIpamConfig {
                ipv4_address: Some(address.to_owned()),
                ..Default::default()
            }),
            ..Default::default()
        };
        ContainerCreateBody {
            image: Some(self.image.clone()),
            env: Some(env),
            labels: Some(HashMap::from([
                (LABEL_INSTALLATION.to_owned(), self.installation.clone()),
                (LABEL_WORKSPACE.to_owned(), workspace_id.to_owned()),
            ])),
            host_config: Some(HostConfig {
                network_mode: Some(self.network.clone()),
                ..Default::default()
            }),
            networking_config: Some(NetworkingConfig {
                endpoints_config: Some(HashMap::from([(self.network.clone(), endpoint)])),
            }),
            ..Default::default()
        }
    }
}

async fn subnet_of(docker: &Docker, network: &str) -> Option<String> {
    let network = docker.inspect_network(network, None).await.ok()?;
    network
        .ipam?
        .config?
        .into_iter()
        .find_map(|config| config.subnet)
}

fn network(name: &str) -> NetworkCreateRequest {
    NetworkCreateRequest {
        name: name.to_owned(),
        driver: Some("bridge".to_owned()),
        ipam: Some(Ipam {
            config: Some(vec![IpamConfig {
                subnet: Some(SUBNET.to_owned()),
                ..Default::default()
            }]),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// The addresses of a subnet of 16 to 23 bits.
fn range(subnet: &str) -> Option<([u8; 2], u8, u8)> {
    let (address, bits) = subnet.split_once('/')?;
    let bits: u8 = bits.parse().ok().filter(|bits| (17..=23).contains(bits))?;
    let numbers: Vec<u8> = address
        .split('.')
        .map(str::parse)
        .collect::<Result<_, _>>()
        .ok()?;
    let [a, b, c, _] = numbers[..] else {
        return None;
    };
    let blocks = 1_u8 << (24 - bits);
    Some(([a, b], c, c.checked_add(blocks - 1)?))
}
