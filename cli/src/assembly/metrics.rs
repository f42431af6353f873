//! The metrics of this process: recorded from here on, rendered on request.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::settings::metrics::{MetricsAt, MetricsSettings};

/// From half a millisecond to two minutes: calls of an engine and whole provisions.
const BUCKETS: [f64; 16] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0,
    120.0,
];
/// Samples are folded into their buckets this often, so that a page nobody reads costs no memory.
const UPKEEP: Duration = Duration::from_secs(5);
/// Who takes longer to ask is not a scraper.
const ASK_LIMIT: Duration = Duration::from_secs(5);
const LONGEST_REQUEST: usize = 8 * 1024;

/// What renders the metrics.
#[derive(Clone)]
pub(crate) struct MetricsPage(pub(crate) PrometheusHandle);

impl MetricsPage {
    /// Starts recording. Once per process.
    pub(crate) fn start() -> anyhow::Result<Self> {
        let handle = PrometheusBuilder::new()
            .set_buckets(&BUCKETS)?
            .install_recorder()
            .context("cannot record metrics")?;
        let upkeep = handle.clone();
        tokio::spawn(async move {
            let mut tick = tokio::time::interval(UPKEEP);
            loop {
                tick.tick().await;
                upkeep.run_upkeep();
            }
        });
        Ok(Self(handle))
    }
}

/// Binds the listener for metrics, where one is wanted.
pub(crate) async fn bind_metrics(settings: MetricsSettings) -> anyhow::Result<Option<TcpListener>> {
    let (address, must) = match settings.at() {
        MetricsAt::Nowhere => return Ok(None),
        MetricsAt::Here(address) => (address, true),
        MetricsAt::IfFree(address) => (address, false),
    };
    match TcpListener::bind(address).await {
        Ok(listener) => Ok(Some(listener)),
        Err(error) if !must && error.kind() == ErrorKind::AddrInUse => {
            tracing::info!(%address, "no listener for metrics: its port is taken; they are on the API, for the admin");
            Ok(None)
        }
        Err(error) => Err(explain(address, error)),
    }
}

fn explain(address: SocketAddr, error: std::io::Error) -> anyhow::Error {
    anyhow::Error::new(error).context(format!(
        "cannot serve metrics on {address} (LONGSHORE_METRICS_LISTEN)"
    ))
}

/// Serves the page on its own, for a process without an API. A scraper sends one small request and reads to the end, so
/// this is all of HTTP it needs.
pub(crate) async fn serve_metrics(page: MetricsPage, listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let page = page.clone();
                tokio::spawn(async move {
                    match tokio::time::timeout(ASK_LIMIT, answer(&page, stream)).await {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => tracing::debug!(%error, "a scraper went away"),
                        Err(_) => tracing::debug!("a scraper took too long"),
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a scraper");
                tokio::time::sleep(UPKEEP).await;
            }
        }
    }
}

async fn answer(page: &MetricsPage, mut stream: TcpStream) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        if request.len() > LONGEST_REQUEST || stream.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    let (status, body) = if request.starts_with(b"GET /metrics ") {
        ("200 OK", page.0.render())
    } else {
        ("404 Not Found", String::new())
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}
