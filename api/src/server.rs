//! Serving, and leaving without cutting anybody off.
//!
//! On shutdown, in this order: `/readyz` turns 503; after a notice period the listeners close; sockets and streams are
//! closed so that their clients go elsewhere; requests under way, and messages that are being forwarded, get the rest
//! of the drain limit.

use std::sync::Arc;
use std::time::Duration;

use longshore_base::clock::Stopwatch;
use poem::http::{Method, StatusCode};
use poem::listener::TcpAcceptor;
use poem::{Endpoint, EndpointExt as _, IntoEndpoint as _, Request, Response, Server};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::document::service;
use crate::gate::Gate;
use crate::health::render_metrics;
use crate::state::ApiState;

/// A connection on which nothing moves is closed after this. Streams and sockets move by their pings.
const IDLE_LIMIT: Duration = Duration::from_secs(90);

/// The API could not be started, or did not go on.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listener cannot be used.
    #[error("cannot serve on a listener")]
    Listener(#[source] std::io::Error),
    /// Calls to agents need a client.
    #[error("cannot make an HTTP client for calls to agents")]
    Client(#[source] reqwest::Error),
    /// A server ended without being asked to.
    #[error("a listener stopped serving")]
    Stopped(#[source] std::io::Error),
}

/// Where to serve.
#[derive(Debug)]
pub struct Listeners {
    /// The API; several addresses at once.
    pub api: Vec<TcpListener>,
    /// `/metrics` alone, for anybody who reaches it.
    pub metrics: Option<TcpListener>,
}

/// How to leave.
#[derive(Clone, Copy, Debug)]
pub struct Leaving {
    /// How long `/readyz` says 503 before the listeners close, so that balancers notice.
    pub notice: Duration,
    /// How long requests under way may take after that.
    pub limit: Duration,
}

impl Default for Leaving {
    fn default() -> Self {
        Self {
            notice: Duration::ZERO,
            limit: Duration::from_secs(30),
        }
    }
}

/// All routes behind their gate.
pub fn build(state: Arc<ApiState>) -> impl Endpoint<Output = Response> {
    Gate::new(service().into_endpoint(), state)
}

/// Serves until `shutdown` and returns when everything is answered or the limit has passed.
///
/// # Errors
/// [`StartError`] before anything was served, or when a listener breaks.
pub async fn serve(
    state: Arc<ApiState>,
    listeners: Listeners,
    shutdown: CancellationToken,
    leaving: Leaving,
) -> Result<(), StartError> {
    let endpoint = Arc::new(build(state.clone()));
    let stop = CancellationToken::new();
    let mut servers = JoinSet::new();
    for listener in listeners.api {
        let acceptor = TcpAcceptor::from_tokio(listener).map_err(StartError::Listener)?;
        servers.spawn(run(
            acceptor,
            endpoint.clone(),
            "api",
            stop.clone(),
            leaving.limit,
        ));
    }
    if let Some(listener) = listeners.metrics {
        let acceptor = TcpAcceptor::from_tokio(listener).map_err(StartError::Listener)?;
        let endpoint = Arc::new(MetricsOnly(state.clone()));
        servers.spawn(run(
            acceptor,
            endpoint,
            "metrics",
            stop.clone(),
            leaving.limit,
        ));
    }

    let broken = tokio::select! {
        () = shutdown.cancelled() => None,
        ended = servers.join_next() => ended,
    };
    state.start_draining();
    if broken.is_none() && !leaving.notice.is_zero() {
        tracing::info!(
            seconds = leaving.notice.as_secs(),
            "leaving: told balancers"
        );
        tokio::time::sleep(leaving.notice).await;
    }
    let left = Stopwatch::start();
    stop.cancel();
    state.hub.close();
    state.closing.cancel();
    while servers.join_next().await.is_some() {}
    state.tasks.close();
    let rest = leaving.limit.saturating_sub(left.elapsed());
    if tokio::time::timeout(rest, state.tasks.wait())
        .await
        .is_err()
    {
        tracing::warn!(tasks = state.tasks.len(), "left with work under way");
    }
    match broken {
        Some(Ok(Err(error))) => Err(StartError::Stopped(error)),
        Some(Err(error)) => Err(StartError::Stopped(std::io::Error::other(error))),
        Some(Ok(Ok(()))) | None => Ok(()),
    }
}

async fn run<E: Endpoint + 'static>(
    acceptor: TcpAcceptor,
    endpoint: Arc<E>,
    name: &'static str,
    stop: CancellationToken,
    limit: Duration,
) -> std::io::Result<()> {
    Server::new_with_acceptor(acceptor)
        .name(name)
        .idle_timeout(IDLE_LIMIT)
        .run_with_graceful_shutdown(
            endpoint.map_to_response(),
            async move { stop.cancelled().await },
            Some(limit),
        )
        .await
}

/// What the listener for metrics serves.
struct MetricsOnly(Arc<ApiState>);

impl Endpoint for MetricsOnly {
    type Output = Response;

    async fn call(&self, request: Request) -> poem::Result<Response> {
        let known = request.uri().path() == "/metrics"
            && matches!(*request.method(), Method::GET | Method::HEAD);
        if !known {
            return Ok(Response::builder().status(StatusCode::NOT_FOUND).finish());
        }
        Ok(Response::builder()
            .content_type("text/plain; version=0.0.4; charset=utf-8")
            .body(render_metrics(&self.0)))
    }
}
