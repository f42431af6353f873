//! The HTTP client for agents. It dials only addresses that were checked a moment ago.
//!
//! A name is resolved and judged by the fleet's URL check; what it found is put here, and the client's resolver knows
//! nothing else. So a name that changes its mind between check and call leads nowhere. Redirects are not followed and
//! no proxy of the environment is used, since both would dial what was not checked.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use longshore_base::clock::Stopwatch;
use longshore_fleet::url_safety::CheckedUrl;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::redirect::Policy;
use reqwest::{Client, ClientBuilder};
use url::Host;

const CONNECT_BUDGET: Duration = Duration::from_secs(10);
/// A checked name is needed only until the connection stands.
const KEEP: Duration = Duration::from_secs(60);
/// Past so many names the old ones are dropped.
const NAMES: usize = 10_000;

/// The client and what it may dial.
pub struct Agents {
    client: Client,
    checked: Arc<Checked>,
}

impl Agents {
    /// One client for all agents.
    ///
    /// # Errors
    /// No HTTP client can be made.
    pub fn new() -> reqwest::Result<Self> {
        let checked = Arc::new(Checked::default());
        let builder = |checked: &Arc<Checked>| -> ClientBuilder {
            Client::builder()
                .dns_resolver(checked.clone())
                .redirect(Policy::none())
                .no_proxy()
                .connect_timeout(CONNECT_BUDGET)
                .pool_idle_timeout(Duration::from_secs(30))
        };
        let client = builder(&checked).build().or_else(|error| {
            // A machine without any certificate authority can still talk to the agents of its own engine.
            tracing::warn!(%error, "no certificate authorities found; agents behind https cannot be reached");
            builder(&checked).tls_certs_only([]).build()
        });
        Ok(Self {
            client: client?,
            checked,
        })
    }

    /// A POST to a checked URL.
    pub fn post(&self, url: &CheckedUrl) -> reqwest::RequestBuilder {
        if let Some(Host::Domain(name)) = url.url.host() {
            self.checked.put(name, url.addrs.clone());
        }
        self.client.post(url.url.clone())
    }
}

#[derive(Default)]
struct Checked {
    names: Mutex<HashMap<String, (Vec<SocketAddr>, Stopwatch)>>,
}

impl Checked {
    fn put(&self, name: &str, addrs: Vec<SocketAddr>) {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if names.len() >= NAMES {
            names.retain(|_, (_, since)| since.elapsed() < KEEP);
        }
        names.insert(name.to_ascii_lowercase(), (addrs, Stopwatch::start()));
    }

    fn get(&self, name: &str) -> Option<Vec<SocketAddr>> {
        let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        names
            .get(&name.to_ascii_lowercase())
            .filter(|(addrs, since)| !addrs.is_empty() && since.elapsed() < KEEP)
            .map(|(addrs, _)| addrs.clone())
    }
}

impl Resolve for Checked {
    fn resolve(&self, name: Name) -> Resolving {
        let found = self.get(name.as_str());
        Box::pin(async move {
            let addrs: Addrs = Box::new(found.ok_or("this name was not checked")?.into_iter());
            Ok(addrs)
        })
    }
}
