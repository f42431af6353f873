//! Binding the addresses of the API, with errors that say what to do.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, bail};
use clap::Args;
use tokio::net::TcpListener;

use crate::settings::http::listen_address;

/// Tries to find a port that is free on two addresses, when any port will do.
const PORT_TRIES: usize = 10;

/// Where the API listens.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "API")]
pub(crate) struct ListenSettings {
    /// Address and port the API listens on; may be given several times, or separated by commas. Port 0 takes a free one.
    /// Unset: `127.0.0.1:<PORT>` for `up`, `0.0.0.0:<PORT>` for `api`.
    #[arg(
        long = "listen",
        env = "LONGSHORE_LISTEN",
        value_name = "ADDRESS",
        value_delimiter = ',',
        value_parser = listen_address
    )]
    pub(crate) listen: Vec<SocketAddr>,

    #[command(flatten)]
    pub(crate) port: PortSettings,
}

/// The port alone: of a worker too, which hands the API's address to agents.
#[derive(Args, Clone, Copy, Debug)]
#[command(next_help_heading = "API")]
pub(crate) struct PortSettings {
    /// Port of the API where no address is given; in the address agents are given where no platform URL is set.
    #[arg(
        long = "port",
        env = "PORT",
        value_name = "PORT",
        default_value_t = 8080
    )]
    pub(crate) port: u16,
}

impl ListenSettings {
    /// The addresses, with a default host.
    pub(crate) fn addresses(&self, host: IpAddr) -> Vec<SocketAddr> {
        if self.listen.is_empty() {
            return vec![SocketAddr::new(host, self.port.port)];
        }
        self.listen.clone()
    }
}

/// Listeners, the first of which names the port.
pub(crate) struct Listeners {
    pub(crate) sockets: Vec<TcpListener>,
    any_port: Option<IpAddr>,
}

impl Listeners {
    /// Binds all addresses.
    pub(crate) async fn bind(addresses: &[SocketAddr]) -> anyhow::Result<Self> {
        let mut sockets = Vec::with_capacity(addresses.len());
        for address in addresses {
            sockets.push(bind(*address).await?);
        }
        let any_port = match addresses {
            [one] if one.port() == 0 => Some(one.ip()),
            _ => None,
        };
        Ok(Self { sockets, any_port })
    }

    /// Address and port of the first one.
    pub(crate) fn first(&self) -> anyhow::Result<SocketAddr> {
        let first = self.sockets.first().context("no address to listen on")?;
        Ok(first.local_addr()?)
    }

    /// Where this machine reaches the first one.
    pub(crate) fn local_url(&self) -> anyhow::Result<String> {
        let mut address = self.first()?;
        if address.ip().is_unspecified() {
            address.set_ip(match address.ip() {
                IpAddr::V4(_) => IpAddr::from([127, 0, 0, 1]),
                IpAddr::V6(_) => IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]),
            });
        }
        Ok(format!("http://{address}"))
    }

    /// Binds one more address on the port of the first, unless it is covered already. Where any port would do, another
    /// one is taken until one is free on both.
    pub(crate) async fn also(&mut self, host: IpAddr) -> anyhow::Result<()> {
        for _ in 0..PORT_TRIES {
            let first = self.first()?;
            for socket in &self.sockets {
                let bound = socket.local_addr()?;
                if bound.port() == first.port() && (bound.ip() == host || covers(bound.ip(), host))
                {
                    return Ok(());
                }
            }
            match TcpListener::bind(SocketAddr::new(host, first.port())).await {
                Ok(socket) => {
                    self.sockets.push(socket);
                    return Ok(());
                }
                Err(error) => match self.any_port {
                    Some(first_host) if error.kind() == ErrorKind::AddrInUse => {
                        self.sockets = vec![bind(SocketAddr::new(first_host, 0)).await?];
                    }
                    _ => return Err(explain(SocketAddr::new(host, first.port()), &error)),
                },
            }
        }
        bail!("no port is free on both the given address and {host}")
    }
}

fn covers(bound: IpAddr, host: IpAddr) -> bool {
    bound.is_unspecified() && (bound.is_ipv4() == host.is_ipv4() || bound.is_ipv6())
}

async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .map_err(|error| explain(address, &error))
}

fn explain(address: SocketAddr, error: &std::io::Error) -> anyhow::Error {
    match error.kind() {
        ErrorKind::AddrInUse => anyhow::anyhow!(
            "port {} on {} is taken by another program; end it, or choose another one with --listen",
            address.port(),
            address.ip()
        ),
        ErrorKind::AddrNotAvailable => {
            anyhow::anyhow!("cannot listen on {address}: this machine does not have that address")
        }
        ErrorKind::PermissionDenied => anyhow::anyhow!(
            "not allowed to listen on port {}: ports below 1024 need root",
            address.port()
        ),
        _ => anyhow::anyhow!("cannot listen on {address}: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loopback(last: u8, port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, last], port))
    }

    #[tokio::test]
    async fn a_taken_port_is_named() {
        let taken = TcpListener::bind(loopback(1, 0)).await.unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = Listeners::bind(&[loopback(1, port)]).await.err().unwrap();
        assert!(
            error
                .to_string()
                .contains(&format!("port {port} on 127.0.0.1 is taken")),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_second_address_shares_the_port_of_the_first() {
        let mut listeners = Listeners::bind(&[loopback(1, 0)]).await.unwrap();
        listeners.also(loopback(2, 0).ip()).await.unwrap();
        listeners.also(loopback(2, 0).ip()).await.unwrap();
        assert_eq!(listeners.sockets.len(), 2);
        let ports: Vec<u16> = listeners
            .sockets
            .iter()
            .map(|socket| socket.local_addr().unwrap().port())
            .collect();
        assert_eq!(ports[0], ports[1]);
    }

    #[tokio::test]
    async fn an_address_that_is_covered_is_not_bound_again() {
        let mut listeners = Listeners::bind(&[SocketAddr::from(([0, 0, 0, 0], 0))])
            .await
            .unwrap();
        listeners.also(loopback(1, 0).ip()).await.unwrap();
        assert_eq!(listeners.sockets.len(), 1);
        assert!(
            listeners
                .local_url()
                .unwrap()
                .starts_with("http://127.0.0.1:")
        );
    }
}
