//! Where metrics are read.

use std::net::SocketAddr;

use clap::Args;

use super::http::listen_address;

/// Where metrics answer when nothing is said, if that port is free.
const DEFAULT: ([u8; 4], u16) = ([127, 0, 0, 1], 9464);

/// Settings of the listener for metrics.
#[derive(Args, Clone, Copy, Debug)]
#[command(next_help_heading = "Metrics")]
pub(crate) struct MetricsSettings {
    /// Where `/metrics` answers without a credential, `address:port`, or `none`. Unset: `127.0.0.1:9464`, where that port
    /// is free. On the listeners of the API it is admin-only.
    #[arg(id = "metrics-listen", long, env = "LONGSHORE_METRICS_LISTEN", value_name = "ADDRESS", value_parser = parse)]
    listen: Option<MetricsAt>,
}

/// Where metrics answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MetricsAt {
    /// Nowhere, on purpose.
    Nowhere,
    /// Here, or the process does not start.
    Here(SocketAddr),
    /// Here, if nobody else does.
    IfFree(SocketAddr),
}

impl MetricsSettings {
    /// Where.
    pub(crate) fn at(self) -> MetricsAt {
        self.listen.unwrap_or(MetricsAt::IfFree(DEFAULT.into()))
    }
}

fn parse(text: &str) -> Result<MetricsAt, String> {
    if text.eq_ignore_ascii_case("none") {
        return Ok(MetricsAt::Nowhere);
    }
    listen_address(text).map(MetricsAt::Here)
}
