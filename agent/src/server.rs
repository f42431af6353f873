//! What the agent answers over HTTP/1.1.
//!
//! | route | answer |
//! |---|---|
//! | `GET /.well-known/agent-card.json`, `/.well-known/agent.json` | the agent card |
//! | `POST /` | A2A JSON-RPC, `message/send` |
//! | `GET /transcript?since=&limit=` | the latest messages, for whoever holds the workspace's token |
//! | `GET /healthz` | 200 |

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use crate::{Agent, a2a};

/// Largest request body, as the platform's own limit for A2A.
const BODY_LIMIT_BYTES: usize = 1024 * 1024;
/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a connection may stay idle. Longer than HTTP clients keep theirs (90 s is common), so that the client
/// closes first and never sends into a connection that is just being closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(120);

type Reply = Response<Full<Bytes>>;

/// Serves each connection of `listener` in a task of its own.
pub(crate) async fn serve(listener: TcpListener, agent: Arc<Agent>) -> Infallible {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, most likely; some come back when connections end.
                tracing::warn!(%error, "cannot accept a connection");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let agent = Arc::clone(&agent);
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let agent = Arc::clone(&agent);
                async move { Ok::<_, Infallible>(answer(&agent, request).await) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(IDLE_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended early");
            }
        });
    }
}

async fn answer(agent: &Agent, request: Request<Incoming>) -> Reply {
    let method = request.method();
    match request.uri().path() {
        "/" if method == Method::POST => a2a_call(agent, request.into_body()).await,
        "/" => wrong_method("POST"),
        "/.well-known/agent-card.json" | "/.well-known/agent.json" | "/healthz" | "/transcript"
            if method != Method::GET && method != Method::HEAD =>
        {
            wrong_method("GET")
        }
        "/.well-known/agent-card.json" | "/.well-known/agent.json" => {
            reply(StatusCode::OK, &agent.card)
        }
        "/healthz" => reply(StatusCode::OK, &json!({"status": "ok"})),
        "/transcript" => transcript(agent, &request),
        _ => refuse(StatusCode::NOT_FOUND, "not found"),
    }
}

async fn a2a_call(agent: &Agent, body: Incoming) -> Reply {
    let body = Limited::new(body, BODY_LIMIT_BYTES).collect();
    let body = match timeout(BODY_TIMEOUT, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            return refuse(StatusCode::PAYLOAD_TOO_LARGE, "request body too large");
        }
        Ok(Err(_)) => return refuse(StatusCode::BAD_REQUEST, "failed to read request body"),
        Err(_) => return refuse(StatusCode::REQUEST_TIMEOUT, "request body took too long"),
    };
    let call = match a2a::parse(&body) {
        Ok(call) => call,
        // JSON-RPC has its own errors; to HTTP the exchange went well.
        Err(refusal) => return reply(StatusCode::OK, &refusal.answer()),
    };
    let Agent {
        activity,
        settings,
        identity,
        ..
    } = agent;
    let _task = activity.begin(&call.text);
    activity.record("user", call.message_id.as_deref(), &call.text);
    sleep(settings.switches.slow_reply).await;
    let status = settings.switches.reply_status;
    if !status.is_success() {
        return refuse(status, "status set by AGENT_REPLY_STATUS");
    }
    let message_id = Uuid::new_v4().to_string();
    let text = format!("{}: {}", identity.name, call.text);
    activity.record("agent", Some(&message_id), &text);
    reply(status, &call.answer(&message_id, &text))
}

fn transcript(agent: &Agent, request: &Request<Incoming>) -> Reply {
    let header = request.headers().get(AUTHORIZATION);
    let bearer = header.and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    if !bearer.is_some_and(|bearer| agent.token.accepts(bearer)) {
        return refuse(StatusCode::UNAUTHORIZED, "the workspace's token is needed");
    }
    let query = request.uri().query().unwrap_or_default();
    let number = |name: &str| {
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find(|(key, _)| *key == name)?.1.parse().ok()
    };
    let page = agent
        .activity
        .transcript(number("since").unwrap_or(0), number("limit"));
    reply(StatusCode::OK, &page)
}

fn wrong_method(allowed: &'static str) -> Reply {
    let mut reply = refuse(StatusCode::METHOD_NOT_ALLOWED, "method not allowed");
    reply
        .headers_mut()
        .insert(ALLOW, HeaderValue::from_static(allowed));
    reply
}

fn refuse(status: StatusCode, error: &str) -> Reply {
    reply(status, &json!({"error": error}))
}

fn reply(status: StatusCode, body: &Value) -> Reply {
    let mut reply = Response::new(Full::new(Bytes::from(body.to_string())));
    *reply.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    reply.headers_mut().insert(CONTENT_TYPE, json);
    reply
}
