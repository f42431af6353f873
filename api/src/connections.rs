//! One listener: accepts connections and speaks HTTP/1.1 on them until told to stop.
//!
//! poem's own server sets no time limit on a request's head, so a client that sends half of one would hold its
//! connection, and every shutdown, for as long as it likes; and it spins while the system has no descriptors left.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use poem::http::uri::Scheme;
use poem::web::{LocalAddr, RemoteAddr};
use poem::{Endpoint, Request, Response};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// How long the head of a request may take; also how long a kept connection may wait for its next request.
const HEAD_BUDGET: Duration = Duration::from_secs(30);
/// After a failed accept, which means that the system lacks something that others will give back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `stop`, then lets the requests under way end within `limit`.
pub(crate) async fn serve_listener<E>(
    listener: TcpListener,
    endpoint: Arc<E>,
    stop: CancellationToken,
    limit: Duration,
) where
    E: Endpoint<Output = Response> + 'static,
{
    let mut connections = JoinSet::new();
    let local = listener.local_addr();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(serve_connection(stream, endpoint.clone(), stop.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, ?local, "cannot accept a connection");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
            // Takes up the ends of connections, so that the set does not grow.
            Some(_) = connections.join_next() => {}
        }
    }
    drop(listener);
    let all_ended = async { while connections.join_next().await.is_some() {} };
    if timeout(limit, all_ended).await.is_err() {
        tracing::warn!(
            connections = connections.len(),
            "cutting off requests that are still under way"
        );
    }
    connections.shutdown().await;
}

async fn serve_connection<E>(stream: TcpStream, endpoint: Arc<E>, stop: CancellationToken)
where
    E: Endpoint<Output = Response> + 'static,
{
    let (Ok(local), Ok(remote)) = (stream.local_addr(), stream.peer_addr()) else {
        // It was closed before it was looked at.
        return;
    };
    // Answers are written whole; waiting for more to send only delays them.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
    let asked = AtomicBool::new(false);
    let service = service_fn(|request| {
        asked.store(true, Ordering::Relaxed);
        let request = Request::from((
            request,
            LocalAddr(local.into()),
            RemoteAddr(remote.into()),
            Scheme::HTTP,
        ));
        let endpoint = endpoint.clone();
        async move { Ok::<_, Infallible>(endpoint.get_response(request).await.into()) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_BUDGET)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            if !asked.load(Ordering::Relaxed) {
                // hyper would wait for the head of a first request, which whoever only connects never sends.
                return;
            }
            // Closes at once where no request is under way, and after its answer where one is.
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, client.address = %remote.ip(), "a connection ended badly");
    }
}
