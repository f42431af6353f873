//! Serving, and leaving without cutting anybody off.
//!
//! On shutdown, in this order: `/readyz` turns 503; after a notice period the listeners close; sockets and streams are
//! closed so that their clients go elsewhere; requests under way, and messages that are being forwarded, get the rest
//! of the drain limit.

use std::sync::Arc;
use std::time::Duration;

use longshore_base::clock::Stopwatch;
use poem::http::{Method, StatusCode};
use poem::{Endpoint, IntoEndpoint as _, Request, Response};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::connections::serve_listener;
use crate::document::service;
use crate::gate::Gate;
use crate::health::render_metrics;
use crate::intake::keep_saying;
use crate::state::ApiState;

/// The API could not be started, or did not go on.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Calls to agents need a client.
    #[error("cannot make an HTTP client for calls to agents")]
    Client(#[source] reqwest::Error),
    /// A server ended without being asked to.
    #[error("a listener stopped serving")]
    Stopped(#[source] Option<tokio::task::JoinError>),
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
/// [`StartError::Stopped`] when a listener breaks.
pub async fn serve(
    state: Arc<ApiState>,
    listeners: Listeners,
    shutdown: CancellationToken,
    leaving: Leaving,
) -> Result<(), StartError> {
    let endpoint = Arc::new(build(state.clone()));
    let stop = CancellationToken::new();
    state.tasks.spawn(keep_saying(state.clone()));
    let mut servers = JoinSet::new();
    for listener in listeners.api {
        let endpoint = endpoint.clone();
        servers.spawn(serve_listener(
            listener,
            endpoint,
            stop.clone(),
            leaving.limit,
        ));
    }
    if let Some(listener) = listeners.metrics {
        let endpoint = Arc::new(MetricsOnly(state.clone()));
        servers.spawn(serve_listener(
            listener,
            endpoint,
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
        None => Ok(()),
        Some(ended) => Err(StartError::Stopped(ended.err())),
    }
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
            .body(render_metrics(&self.0).await))
    }
}
