//! The network workspaces share: made when missing, and where its gateway is.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use bollard::models::{NetworkCreateRequest, NetworkInspect};
use longshore_base::clock::Stopwatch;
use tokio::sync::Mutex;

use super::engine::{BETWEEN_LOOKS, Docker, Engine, LOOK_LIMIT, call};
use super::names::bridge;
use crate::{BackendError, CallError, CallFailure};

/// The engine's option for the name of a network's bridge.
const BRIDGE_NAME: &str = "com.docker.network.bridge.name";

/// Whether this process has seen the network. A start that the engine refuses for want of it makes it unseen again.
#[derive(Default)]
pub(super) struct KnownNetwork {
    seen: AtomicBool,
    /// Held while looking and making, so that a burst of first starts looks once.
    making: Mutex<()>,
}

impl KnownNetwork {
    pub(super) fn forget(&self) {
        self.seen.store(false, Ordering::Release);
    }
}

impl Docker {
    /// The address under which containers of the workspace network reach this machine. Makes the network if need be.
    /// `None` when the network has no gateway (`internal`, or no bridge).
    ///
    /// # Errors
    /// The engine is away or refuses.
    pub async fn network_gateway(&self) -> Result<Option<IpAddr>, BackendError> {
        let engine = self.engine().await?;
        self.ensure_network(engine).await?;
        let name = &self.config.network;
        let found = call("network_inspect", engine.client.inspect_network(name, None)).await?;
        Ok(gateway(&found))
    }

    /// Makes sure that the network exists; asks the engine only the first time.
    pub(super) async fn ensure_network(&self, engine: &Engine) -> Result<(), BackendError> {
        if self.network.seen.load(Ordering::Acquire) {
            return Ok(());
        }
        let _making = self.network.making.lock().await;
        if self.network.seen.load(Ordering::Acquire) {
            return Ok(());
        }
        self.find_or_make_network(engine).await?;
        self.network.seen.store(true, Ordering::Release);
        Ok(())
    }

    async fn find_or_make_network(&self, engine: &Engine) -> Result<(), BackendError> {
        let name = &self.config.network;
        let since = Stopwatch::start();
        loop {
            match call("network_inspect", engine.client.inspect_network(name, None)).await {
                Ok(_) => return Ok(()),
                Err(error) if error.failure() == CallFailure::NotFound => {}
                Err(error) => return Err(error.into()),
            }
            // Older engines let a network's name be taken twice, and then nobody can use it by name. A bridge they make
            // only once, so the bridge's name is the compare-and-set.
            let request = NetworkCreateRequest {
                name: name.clone(),
                driver: Some("bridge".to_owned()),
                options: Some(HashMap::from([(BRIDGE_NAME.to_owned(), bridge(name))])),
                labels: Some(self.mark(engine).of_installation()),
                ..Default::default()
            };
            match call("network_create", engine.client.create_network(request)).await {
                Ok(made) => {
                    tracing::info!(
                        network = name,
                        network.id = made.id,
                        "workspace network made"
                    );
                    return Ok(());
                }
                // Another process is making it and it will be seen soon, or is removing it and we make it anew.
                Err(error) if is_taken(&error) && since.elapsed() < LOOK_LIMIT => {
                    tokio::time::sleep(BETWEEN_LOOKS).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// A taken network name is a conflict; of a taken bridge only the engine's words tell.
fn is_taken(error: &CallError) -> bool {
    error.failure() == CallFailure::Conflict || error.said("same bridge name")
}

/// The configured gateway, else the subnet's first address, which is what a bridge takes.
fn gateway(network: &NetworkInspect) -> Option<IpAddr> {
    let configs = network.ipam.as_ref()?.config.as_ref()?;
    configs.iter().find_map(|config| {
        // Some engines write the gateway with the subnet's length behind it.
        let given = config.gateway.as_deref().filter(|text| !text.is_empty());
        match given {
            Some(text) => text.split('/').next()?.parse().ok(),
            None if network.internal == Some(true) => None,
            None => match config.subnet.as_deref()?.split('/').next()?.parse().ok()? {
                IpAddr::V4(base) => Some(IpAddr::V4((u32::from(base) + 1).into())),
                IpAddr::V6(base) => Some(IpAddr::V6((u128::from(base) + 1).into())),
            },
        }
    })
}

#[cfg(test)]
mod tests {
    use bollard::models::{Ipam, IpamConfig};

    use super::*;

    #[test]
    fn the_gateway_is_read_in_every_form_engines_write_it() {
        let of = |gateway_text: Option<&str>, subnet: &str| {
            gateway(&NetworkInspect {
                ipam: Some(Ipam {
                    config: Some(vec![IpamConfig {
                        gateway: gateway_text.map(str::to_owned),
                        subnet: Some(subnet.to_owned()),
                        ..Default::default()
                    }]),
                    ..Default::default()
                }),
                ..Default::default()
            })
            .map(|address| address.to_string())
        };
        let expected = Some("172.20.0.1".to_owned());
        assert_eq!(of(Some("172.20.0.1"), "172.20.0.0/16"), expected);
        assert_eq!(of(Some("172.20.0.1/16"), "172.20.0.0/16"), expected);
        assert_eq!(of(None, "172.20.0.0/16"), expected);
        assert_eq!(of(Some("nonsense"), "172.20.0.0/16"), None);
        assert_eq!(gateway(&NetworkInspect::default()), None);
    }
}
