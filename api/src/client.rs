//! Who is at the other end of the connection, as far as that can be believed.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use poem::Request;

/// The peer of the TCP connection.
pub(crate) fn peer_address(request: &Request) -> Option<IpAddr> {
    request
        .remote_addr()
        .as_socket_addr()
        .map(SocketAddr::ip)
        .map(|address| address.to_canonical())
}

/// Whether the TCP peer is a proxy whose forwarding headers count.
pub(crate) fn behind_trusted_proxy(request: &Request, trusted: &[IpNet]) -> bool {
    peer_address(request).is_some_and(|peer| is_trusted(peer, trusted))
}

/// The address of the client: the TCP peer, or behind trusted proxies the last forwarded address that is not one of them.
pub(crate) fn client_address(request: &Request, trusted: &[IpNet]) -> Option<IpAddr> {
    let peer = peer_address(request)?;
    let forwarded: Vec<&str> = request
        .headers()
        .get_all("x-forwarded-for")
        .iter()
        .filter_map(|value| value.to_str().ok())
        .collect();
    Some(resolve_client(peer, &forwarded, trusted))
}

/// Each proxy appends who it heard from, so the list is believed from its end, as far as the proxies go.
fn resolve_client(peer: IpAddr, forwarded: &[&str], trusted: &[IpNet]) -> IpAddr {
    let mut client = peer;
    let entries: Vec<&str> = forwarded.iter().flat_map(|it| it.split(',')).collect();
    for entry in entries.into_iter().rev() {
        if !is_trusted(client, trusted) {
            break;
        }
        let Some(address) = parse_address(entry.trim()) else {
            break;
        };
        client = address;
    }
    client
}

/// The public base URL of this server as the client sees it, without a trailing slash.
pub(crate) fn public_base_url(request: &Request, trusted: &[IpNet]) -> String {
    let forwarded = |name: &str| {
        behind_trusted_proxy(request, trusted)
            .then(|| request.header(name))
            .flatten()
            .and_then(|value| value.split(',').next())
            .map(str::trim)
            .filter(|value| !value.is_empty())
    };
    let scheme = forwarded("x-forwarded-proto")
        .filter(|scheme| matches!(*scheme, "http" | "https"))
        .unwrap_or_else(|| request.scheme().as_str());
    let host = forwarded("x-forwarded-host")
        .or_else(|| request.header("host"))
        .unwrap_or("localhost");
    format!("{scheme}://{host}")
}

fn is_trusted(address: IpAddr, trusted: &[IpNet]) -> bool {
    trusted.iter().any(|net| net.contains(&address))
}

fn parse_address(text: &str) -> Option<IpAddr> {
    text.parse::<IpAddr>()
        .or_else(|_| text.parse::<SocketAddr>().map(|address| address.ip()))
        .or_else(|_| text.trim_matches(['[', ']']).parse())
        .ok()
        .map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forwarded_addresses_count_only_as_far_as_the_trusted_proxies_go() {
        let trusted = ["10.0.0.0/8".parse().unwrap()];
        for (peer, forwarded, client) in [
            ("203.0.113.9", &["1.2.3.4"][..], "203.0.113.9"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &["1.2.3.4"][..], "1.2.3.4"),
            ("10.0.0.1", &["6.6.6.6, 1.2.3.4"], "1.2.3.4"),
            ("10.0.0.1", &["6.6.6.6", "1.2.3.4, 10.0.0.7"], "1.2.3.4"),
            ("10.0.0.1", &["1.2.3.4, rubbish"], "10.0.0.1"),
            ("10.0.0.1", &["1.2.3.4:80"], "1.2.3.4"),
        ] {
            let found = resolve_client(peer.parse().unwrap(), forwarded, &trusted);
            assert_eq!(found.to_string(), client, "{peer} {forwarded:?}");
        }
    }
}
