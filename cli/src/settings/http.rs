//! The API: who may call from where, how often, and how long things may take.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use clap::Args;

use super::parse;

/// Settings of the API, apart from where it listens.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "API")]
pub(crate) struct HttpSettings {
    /// Origins of browsers that may call, separated by commas, compared exactly.
    #[arg(
        long = "cors-origins",
        env = "CORS_ORIGINS",
        value_name = "ORIGINS",
        value_delimiter = ',',
        default_value = "http://localhost:3000,http://localhost:3001"
    )]
    pub(crate) cors_origins: Vec<String>,

    /// Requests per minute and credential, or per address before authentication; 1 or more.
    #[arg(long = "rate-limit", env = "RATE_LIMIT", value_name = "N", default_value_t = 600, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rate_limit: u32,

    /// Proxies whose forwarded client addresses count: addresses or networks, separated by commas.
    #[arg(long = "trusted-proxies", env = "TRUSTED_PROXIES", value_name = "NETWORKS", value_delimiter = ',', value_parser = network)]
    pub(crate) trusted_proxies: Vec<ipnet::IpNet>,

    /// Seconds of silence after which an agent that was sent a message counts as hung.
    #[arg(long = "a2a-idle-timeout", env = "A2A_IDLE_TIMEOUT_SECONDS", value_name = "SECONDS", default_value = "300", value_parser = parse::seconds)]
    pub(crate) a2a_idle_timeout: Duration,

    /// Seconds for which the answer to a request with an `Idempotency-Key` is kept, to be given again to a repetition.
    #[arg(long = "idempotency-ttl", env = "LONGSHORE_IDEMPOTENCY_TTL_SECONDS", value_name = "SECONDS", default_value = "86400", value_parser = parse::seconds)]
    pub(crate) idempotency_ttl: Duration,

    /// Address of the canvas, where one is served behind this server.
    #[arg(long = "canvas-proxy-url", env = "CANVAS_PROXY_URL", value_name = "URL", value_parser = parse::http_url)]
    pub(crate) canvas_proxy_url: Option<String>,

    /// Whether requests that come from a page of that canvas need no token. The check can be forged; it counts only
    /// together with the canvas' address.
    #[arg(
        long = "trust-same-origin-canvas",
        env = "LONGSHORE_TRUST_SAME_ORIGIN_CANVAS",
        value_name = "BOOL",
        default_value = "false",
        value_parser = parse::boolean,
        action = clap::ArgAction::Set
    )]
    pub(crate) trust_same_origin_canvas: bool,

    /// Seconds during which `/readyz` says 503 before a stopping server closes its listeners, so that balancers notice;
    /// `up` takes none.
    #[arg(
        long = "shutdown-notice",
        env = "LONGSHORE_SHUTDOWN_NOTICE_SECONDS",
        value_name = "SECONDS",
        default_value_t = 0
    )]
    pub(crate) shutdown_notice: u16,

    /// Seconds requests under way may take after that; `up` gives them one.
    #[arg(
        long = "shutdown-limit",
        env = "LONGSHORE_SHUTDOWN_LIMIT_SECONDS",
        value_name = "SECONDS",
        default_value = "30",
        value_parser = parse::seconds
    )]
    pub(crate) shutdown_limit: Duration,
}

/// `address:port`, or a bare port on the loopback address, or `:port` on every address.
pub(crate) fn listen_address(text: &str) -> Result<SocketAddr, String> {
    let wrong = || "must look like 127.0.0.1:8080".to_owned();
    if let Ok(port) = text.parse::<u16>() {
        return Ok(SocketAddr::from(([127, 0, 0, 1], port)));
    }
    if let Some(port) = text.strip_prefix(':') {
        return Ok(SocketAddr::from((
            [0, 0, 0, 0],
            port.parse().map_err(|_| wrong())?,
        )));
    }
    let text = text.replace("localhost:", "127.0.0.1:");
    text.parse().map_err(|_| wrong())
}

fn network(text: &str) -> Result<ipnet::IpNet, String> {
    let text = text.trim();
    text.parse()
        .or_else(|_| text.parse::<IpAddr>().map(ipnet::IpNet::from))
        .map_err(|_| "must be addresses or networks such as 10.0.0.0/8".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listen_address_may_leave_out_what_is_obvious() {
        for (text, address) in [
            ("127.0.0.1:8080", "127.0.0.1:8080"),
            ("localhost:1", "127.0.0.1:1"),
            ("9000", "127.0.0.1:9000"),
            (":9000", "0.0.0.0:9000"),
            ("[::1]:80", "[::1]:80"),
        ] {
            assert_eq!(listen_address(text).unwrap().to_string(), address, "{text}");
        }
        for bad in ["", "host", "1.2.3.4", "127.0.0.1:99999"] {
            assert!(listen_address(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_proxy_is_an_address_or_a_network() {
        assert_eq!(network("10.0.0.1").unwrap().to_string(), "10.0.0.1/32");
        assert_eq!(network(" 10.0.0.0/8").unwrap().to_string(), "10.0.0.0/8");
        assert!(network("proxy").is_err());
    }
}
