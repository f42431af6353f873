//! Which URLs of agents the platform may call (`spec: rest-api` §6.4.7): tenants name them, so they must not lead the
//! platform to its own network, its neighbours or a cloud's metadata service.
//!
//! A name is resolved once and every address is judged; the caller dials the addresses in [`CheckedUrl`] and resolves
//! nothing again, or the check could be bypassed by a name that changes its mind.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::LazyLock;
use std::time::Duration;

use ipnet::IpNet;
use longshore_base::WorkspaceId;
use url::{Host, Url};

/// A resolver that takes longer counts as one that does not know.
const DNS_TIMEOUT: Duration = Duration::from_secs(3);
/// What the local provisioner stores: the container's port on this host.
const LOCAL_PREFIX: &str = "http://127.0.0.1:";

/// How strict the check is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UrlPolicy {
    /// Public addresses only.
    SelfHosted,
    /// Private ranges too: agents run on machines of one private network.
    Hosted,
    /// Private ranges and this very machine.
    Dev,
}

/// The workspace whose URL it is, for the two exceptions that its own container needs.
#[derive(Clone, Copy, Debug)]
pub enum Own<'a> {
    /// No exception: external workspaces, remote backends, URLs of unknown origin.
    Nothing,
    /// A managed workspace on the local engine.
    Managed {
        /// Its id.
        id: WorkspaceId,
        /// The URL its row holds, put there by the provisioner.
        stored_url: &'a str,
    },
}

/// A URL that may be called, at these addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckedUrl {
    /// The URL.
    pub url: Url,
    /// What to dial. Empty only for a workspace's own container that has no address from where this process runs.
    pub addrs: Vec<SocketAddr>,
}

/// Why a URL must not be called. The texts are part of the API.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum UrlError {
    /// There is none.
    #[error("url is required")]
    Required,
    /// Another scheme, or none.
    #[error("url scheme must be http or https, got \"{0}\"")]
    Scheme(String),
    /// It does not parse, or has no host.
    #[error("url is not valid")]
    Invalid,
    /// The host is an address, or a name, that is closed.
    #[error("url targets a blocked address: {0}")]
    Blocked(&'static str),
    /// The name has no address.
    #[error("hostname \"{0}\" cannot be resolved (DNS error)")]
    Unresolved(String),
    /// One of the name's addresses is closed.
    #[error("hostname \"{host}\" resolves to forbidden address: {label}")]
    Forbidden {
        /// The name.
        host: String,
        /// The kind of address.
        label: &'static str,
    },
}

/// Checks a URL and finds its addresses.
///
/// # Errors
/// [`UrlError`].
pub async fn check(policy: &UrlPolicy, text: &str, own: Own<'_>) -> Result<CheckedUrl, UrlError> {
    let url = parse(text)?;
    let host = url.host().ok_or(UrlError::Invalid)?.to_owned();
    let port = url.port_or_known_default().ok_or(UrlError::Invalid)?;
    if let Own::Managed { id, stored_url } = own {
        if is_own_container(&url, id) {
            let addrs = resolve(&host.to_string(), port).await.unwrap_or_default();
            return Ok(CheckedUrl { url, addrs });
        }
        if is_stored_local(text, stored_url) {
            let addrs = vec![SocketAddr::from((Ipv4Addr::LOCALHOST, port))];
            return Ok(CheckedUrl { url, addrs });
        }
    }
    let addrs = match host {
        Host::Ipv4(ip) => literal(policy, IpAddr::V4(ip), port)?,
        Host::Ipv6(ip) => literal(policy, IpAddr::V6(ip), port)?,
        Host::Domain(name) => named(policy, &name, port).await?,
    };
    Ok(CheckedUrl { url, addrs })
}

fn parse(text: &str) -> Result<Url, UrlError> {
    if text.is_empty() {
        return Err(UrlError::Required);
    }
    // The parser would drop or encode them, and what is stored is the text.
    if text.contains(|c: char| c.is_control() || c.is_whitespace()) {
        return Err(UrlError::Invalid);
    }
    let url = Url::parse(text).map_err(|error| match error {
        url::ParseError::RelativeUrlWithoutBase => UrlError::Scheme(String::new()),
        _ => UrlError::Invalid,
    })?;
    match url.scheme() {
        "http" | "https" => Ok(url),
        other => Err(UrlError::Scheme(other.to_owned())),
    }
}

/// The runtime in a container registers under its host name, which only containers of its network can resolve.
fn is_own_container(url: &Url, id: WorkspaceId) -> bool {
    Url::parse(&id.internal_url()).is_ok_and(|own| own.origin() == url.origin())
}

fn is_stored_local(text: &str, stored: &str) -> bool {
    stored.starts_with(LOCAL_PREFIX) && text.trim_end_matches('/') == stored.trim_end_matches('/')
}

fn literal(policy: &UrlPolicy, ip: IpAddr, port: u16) -> Result<Vec<SocketAddr>, UrlError> {
    match closed(policy, ip) {
        Some(label) => Err(UrlError::Blocked(label)),
        None => Ok(vec![SocketAddr::new(ip, port)]),
    }
}

async fn named(policy: &UrlPolicy, name: &str, port: u16) -> Result<Vec<SocketAddr>, UrlError> {
    let bare = name.trim_end_matches('.');
    if *policy != UrlPolicy::Dev && (bare == "localhost" || bare.ends_with(".localhost")) {
        return Err(UrlError::Blocked("localhost"));
    }
    let unresolved = || UrlError::Unresolved(name.to_owned());
    let addrs = resolve(name, port).await.ok_or_else(unresolved)?;
    for addr in &addrs {
        if let Some(label) = closed(policy, addr.ip()) {
            return Err(UrlError::Forbidden {
                host: name.to_owned(),
                label,
            });
        }
    }
    Ok(addrs)
}

async fn resolve(name: &str, port: u16) -> Option<Vec<SocketAddr>> {
    let lookup = tokio::time::timeout(DNS_TIMEOUT, tokio::net::lookup_host((name, port)));
    let addrs: Vec<_> = lookup.await.ok()?.ok()?.collect();
    (!addrs.is_empty()).then_some(addrs)
}

/// Who may call a range.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Open {
    Never,
    InDev,
    Hosted,
}

/// Ranges that are not the public network, the first that matches counting.
const RANGES: [(&str, &str, Open); 24] = [
    ("169.254.0.0/16", "link-local (cloud metadata)", Open::Never),
    ("fe80::/10", "link-local", Open::Never),
    ("224.0.0.0/4", "multicast", Open::Never),
    ("ff00::/8", "multicast", Open::Never),
    ("0.0.0.0/8", "unspecified", Open::Never),
    ("::/128", "unspecified", Open::Never),
    ("127.0.0.0/8", "loopback", Open::InDev),
    ("::1/128", "loopback", Open::InDev),
    ("192.0.2.0/24", "documentation", Open::Never),
    ("198.51.100.0/24", "documentation", Open::Never),
    ("203.0.113.0/24", "documentation", Open::Never),
    ("2001:db8::/32", "documentation", Open::Never),
    ("100.64.0.0/10", "carrier-grade NAT", Open::Never),
    ("192.0.0.0/24", "protocol assignments", Open::Never),
    ("198.18.0.0/15", "benchmarking", Open::Never),
    ("240.0.0.0/4", "reserved", Open::Never),
    ("10.0.0.0/8", "private", Open::Hosted),
    ("172.16.0.0/12", "private", Open::Hosted),
    ("192.168.0.0/16", "private", Open::Hosted),
    ("fd00::/8", "private", Open::Hosted),
    ("fc00::/8", "unique local", Open::Never),
    ("fec0::/10", "site-local", Open::Never),
    // Tunnels that carry an IPv4 address somewhere we do not look.
    ("2002::/16", "6to4", Open::Never),
    ("2001::/32", "Teredo", Open::Never),
];

static PARSED: LazyLock<Vec<(IpNet, &'static str, Open)>> = LazyLock::new(|| {
    RANGES
        .iter()
        .filter_map(|(range, label, open)| Some((range.parse().ok()?, *label, *open)))
        .collect()
});

/// The kind of address that makes this one closed under the policy, if it is.
fn closed(policy: &UrlPolicy, ip: IpAddr) -> Option<&'static str> {
    let ip = match ip {
        IpAddr::V6(v6) => embedded_v4(v6).map_or(ip, IpAddr::V4),
        IpAddr::V4(_) => ip,
    };
    let (_, label, open) = PARSED.iter().find(|(range, ..)| range.contains(&ip))?;
    let allowed = match policy {
        UrlPolicy::SelfHosted => false,
        UrlPolicy::Hosted => *open == Open::Hosted,
        UrlPolicy::Dev => matches!(open, Open::Hosted | Open::InDev),
    };
    (!allowed).then_some(*label)
}

/// The IPv4 address that an IPv6 address stands for: mapped, compatible, or behind the well-known NAT64 prefix.
fn embedded_v4(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let nat64 = matches!(ip.segments(), [0x64, 0xff9b, 0, 0, 0, 0, _, _]);
    let compatible = matches!(ip.segments(), [0, 0, 0, 0, 0, 0, high, _] if high != 0);
    if nat64 || compatible {
        let [.., a, b, c, d] = ip.octets();
        return Some(Ipv4Addr::new(a, b, c, d));
    }
    ip.to_ipv4_mapped()
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICIES: [UrlPolicy; 3] = [UrlPolicy::SelfHosted, UrlPolicy::Hosted, UrlPolicy::Dev];

    async fn verdicts(url: &str) -> [bool; 3] {
        let mut allowed = [false; 3];
        for (policy, allowed) in POLICIES.iter().zip(&mut allowed) {
            *allowed = check(policy, url, Own::Nothing).await.is_ok();
        }
        allowed
    }

    #[test]
    fn every_range_is_well_formed() {
        assert_eq!(PARSED.len(), RANGES.len());
    }

    #[tokio::test]
    async fn addresses_are_judged_by_range_and_policy() {
        let never = [false, false, false];
        let dev_only = [false, false, true];
        let not_self_hosted = [false, true, true];
        let always = [true, true, true];
        for (host, expected) in [
            ("169.254.169.254", never),
            ("169.254.0.1", never),
            ("[fe80::1]", never),
            ("224.0.0.1", never),
            ("239.255.255.255", never),
            ("[ff02::1]", never),
            ("0.0.0.0", never),
            ("[::]", never),
            ("127.0.0.1", dev_only),
            ("127.255.0.1", dev_only),
            ("[::1]", dev_only),
            ("192.0.2.1", never),
            ("198.51.100.1", never),
            ("203.0.113.1", never),
            ("100.64.0.1", never),
            ("100.127.255.255", never),
            ("[2001:db8::1]", never),
            ("[fc00::1]", never),
            ("[fcff::1]", never),
            ("10.0.0.1", not_self_hosted),
            ("172.16.0.1", not_self_hosted),
            ("172.31.255.255", not_self_hosted),
            ("192.168.1.1", not_self_hosted),
            ("[fd00::1]", not_self_hosted),
            ("255.255.255.255", never),
            ("172.32.0.1", always),
            ("100.128.0.1", always),
            ("8.8.8.8", always),
            ("[2606:4700::1111]", always),
            // The same addresses in other clothes.
            ("[::ffff:169.254.169.254]", never),
            ("[::ffff:10.0.0.1]", not_self_hosted),
            ("[::169.254.169.254]", never),
            ("[64:ff9b::a9fe:a9fe]", never),
            ("[2002:a9fe:a9fe::1]", never),
            ("0xa9fea9fe", never),
            ("2852039166", never),
            ("0251.0376.0251.0376", never),
            ("127.1", dev_only),
            ("localhost", dev_only),
            ("LOCALHOST", dev_only),
        ] {
            let url = format!("http://{host}:9000/path");
            assert_eq!(verdicts(&url).await, expected, "{url}");
        }
    }

    #[tokio::test]
    async fn the_texts_are_those_of_the_api() {
        for (url, text) in [
            ("", "url is required"),
            (
                "ftp://8.8.8.8",
                "url scheme must be http or https, got \"ftp\"",
            ),
            ("example.com", "url scheme must be http or https, got \"\""),
            (
                "javascript:alert(1)",
                "url scheme must be http or https, got \"javascript\"",
            ),
            ("http://", "url is not valid"),
            ("http://8.8.8.8/\0", "url is not valid"),
            ("http://8.8.\n8.8/", "url is not valid"),
            ("http://10.0.0.1", "url targets a blocked address: private"),
            (
                "http://localhost:1",
                "url targets a blocked address: localhost",
            ),
            (
                "http://a.localhost:1",
                "url targets a blocked address: localhost",
            ),
            (
                "http://localhost.:1",
                "url targets a blocked address: localhost",
            ),
            (
                "http://169.254.169.254/latest/meta-data",
                "url targets a blocked address: link-local (cloud metadata)",
            ),
            (
                "http://nowhere.invalid",
                "hostname \"nowhere.invalid\" cannot be resolved (DNS error)",
            ),
        ] {
            let error = check(&UrlPolicy::SelfHosted, url, Own::Nothing)
                .await
                .unwrap_err();
            assert_eq!(error.to_string(), text, "{url}");
        }
    }

    #[tokio::test]
    async fn a_checked_url_brings_the_address_to_dial() {
        let checked = check(&UrlPolicy::Dev, "http://127.0.0.1:8123/a2a", Own::Nothing)
            .await
            .unwrap();
        assert_eq!(checked.addrs, ["127.0.0.1:8123".parse().unwrap()]);
        let https = check(&UrlPolicy::SelfHosted, "https://8.8.8.8", Own::Nothing)
            .await
            .unwrap();
        assert_eq!(https.addrs, ["8.8.8.8:443".parse().unwrap()]);
    }

    #[tokio::test]
    async fn only_its_own_container_is_excepted() {
        let id: WorkspaceId = "0b6f3c1e-4d2a-4c3b-9f00-0123456789ab".parse().unwrap();
        let own = Own::Managed {
            id,
            stored_url: "http://127.0.0.1:49153",
        };
        let allowed = async |url: &str| check(&UrlPolicy::SelfHosted, url, own).await.is_ok();
        assert!(allowed("http://ws-0b6f3c1e-4d2:8000").await);
        assert!(allowed("http://ws-0b6f3c1e-4d2:8000/").await);
        assert!(allowed("http://127.0.0.1:49153").await);
        for other in [
            "https://ws-0b6f3c1e-4d2:8000",
            "http://ws-0b6f3c1e-4d2:9000",
            "http://ws-0b6f3c1e-4d3:8000",
            "http://ws-0b6f3c1e-4d2.example:8000",
            "http://127.0.0.1:49154",
            "http://127.0.0.1",
        ] {
            assert!(!allowed(other).await, "{other}");
        }
        let external = check(
            &UrlPolicy::SelfHosted,
            "http://ws-0b6f3c1e-4d2:8000",
            Own::Nothing,
        )
        .await;
        assert!(external.is_err());
    }

    #[test]
    fn only_what_the_provisioner_stored_is_a_local_url() {
        assert!(is_stored_local("http://127.0.0.1:1/", "http://127.0.0.1:1"));
        assert!(!is_stored_local("http://10.0.0.1", "http://10.0.0.1"));
        assert!(!is_stored_local("", ""));
    }
}
