//! Names to addresses without libc.
//!
//! A static glibc cannot load the libraries its `getaddrinfo` needs, so names are looked up in `/etc/hosts` and
//! then at the name servers of `/etc/resolv.conf`. Both files are read again for each lookup: the agent asks
//! twice a minute, and the engine rewrites them when networks change.

use std::net::{IpAddr, SocketAddr};

use hickory_resolver::config::{LookupIpStrategy, ResolveHosts, ResolverConfig};
use hickory_resolver::lookup_ip::LookupIp;
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::{Hosts, Resolver, TokioResolver};

/// Every address of `host`, which may be an address itself; IPv6 addresses may stand in brackets.
pub(crate) async fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, NetError> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    if let Ok(address) = bare.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let mut found = from_hosts_file(&Hosts::from_system().unwrap_or_default(), host)?;
    if found.is_empty() {
        found = from_name_servers(host).await?;
    }
    Ok(found
        .into_iter()
        .map(|address| SocketAddr::new(address, port))
        .collect())
}

/// Asked apart from the resolver, which would try a short name under each search domain first.
fn from_hosts_file(hosts: &Hosts, host: &str) -> Result<Vec<IpAddr>, NetError> {
    let mut name = Name::from_utf8(host)?;
    name.set_fqdn(true);
    Ok([RecordType::A, RecordType::AAAA]
        .into_iter()
        .filter_map(|kind| hosts.lookup_static_host(&Query::query(name.clone(), kind)))
        .flat_map(|lookup| LookupIp::from(lookup).into_iter())
        .collect())
}

async fn from_name_servers(host: &str) -> Result<Vec<IpAddr>, NetError> {
    // Without a usable resolv.conf the lookup fails with its own error; `localhost` is still known.
    let mut builder = TokioResolver::builder_tokio().unwrap_or_else(|_| {
        let none = ResolverConfig::from_parts(None, Vec::new(), Vec::new());
        Resolver::builder_with_config(none, TokioRuntimeProvider::default())
    });
    let options = builder.options_mut();
    options.ip_strategy = LookupIpStrategy::Ipv4thenIpv6;
    options.use_hosts_file = ResolveHosts::Never;
    options.cache_size = 0;
    Ok(builder.build()?.lookup_ip(host).await?.iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_needs_no_lookup() {
        assert_eq!(
            resolve("172.17.0.1", 80).await.unwrap(),
            ["172.17.0.1:80".parse().unwrap()]
        );
        assert_eq!(
            resolve("[::1]", 80).await.unwrap(),
            ["[::1]:80".parse().unwrap()]
        );
    }

    #[test]
    fn the_hosts_file_answers_short_names_and_both_families() {
        let mut hosts = Hosts::default();
        let file = "10.0.0.7 platform host.docker.internal # ours\nfd00::7 platform\n";
        hosts.read_hosts_conf(file.as_bytes()).unwrap();
        let both: Vec<IpAddr> = vec!["10.0.0.7".parse().unwrap(), "fd00::7".parse().unwrap()];
        assert_eq!(from_hosts_file(&hosts, "platform").unwrap(), both);
        assert_eq!(
            from_hosts_file(&hosts, "Host.Docker.Internal").unwrap(),
            both[..1]
        );
        assert!(from_hosts_file(&hosts, "elsewhere").unwrap().is_empty());
    }
}
