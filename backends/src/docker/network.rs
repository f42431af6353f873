//! The network workspaces share: made when missing, and where its gateway is.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use bollard::models::{Network, NetworkCreateRequest, NetworkInspect};
use bollard::query_parameters::ListNetworksOptionsBuilder;
use chrono::{DateTime, FixedOffset};
use tokio::sync::Mutex;

use super::engine::{Docker, Engine, call};
use crate::{BackendError, CallFailure};

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
        let name = &self.config.network;
        match call("network_inspect", engine.client.inspect_network(name, None)).await {
            Ok(_) => {}
            Err(error) if error.failure() == CallFailure::NotFound => {
                self.make_network(engine).await?;
            }
            Err(error) => return Err(error.into()),
        }
        self.network.seen.store(true, Ordering::Release);
        Ok(())
    }

    async fn make_network(&self, engine: &Engine) -> Result<(), BackendError> {
        let name = &self.config.network;
        let request = NetworkCreateRequest {
            name: name.clone(),
            driver: Some("bridge".to_owned()),
            labels: Some(self.mark(engine).of_installation()),
            ..Default::default()
        };
        let made = match call("network_create", engine.client.create_network(request)).await {
            Ok(made) => made.id,
            Err(error) if error.failure() == CallFailure::Conflict => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        tracing::info!(network = name, network.id = made, "workspace network made");
        // The engine's check of names is best effort: two processes may each have made one, and then neither can be
        // used by name. All of them see the same list and keep the same one.
        let filters = HashMap::from([("name", vec![name.as_str()])]);
        let options = ListNetworksOptionsBuilder::default()
            .filters(&filters)
            .build();
        let listed = call("network_list", engine.client.list_networks(Some(options))).await?;
        let kept = listed
            .iter()
            .filter(|network| network.name.as_deref() == Some(name))
            .min_by_key(|network| age(network));
        if kept.is_some_and(|kept| kept.id.as_deref() != Some(&made)) {
            match call("network_remove", engine.client.remove_network(&made)).await {
                Ok(()) => {}
                Err(error) if error.failure() == CallFailure::NotFound => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// Orders networks by when they were made, in the same way for everybody who looks.
fn age(network: &Network) -> (Option<DateTime<FixedOffset>>, Option<&str>) {
    let created = network.created.as_deref();
    let created = created.and_then(|text| DateTime::parse_from_rfc3339(text).ok());
    (created, network.id.as_deref())
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
