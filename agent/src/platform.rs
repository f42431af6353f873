//! The agent's side of the registry: one registration, then a beat for as long as it lives.
//!
//! ```text
//! register ── 200 ──> beat every 30 s and when the tasks change
//!   │ 409: the workspace is stopped; ask again slowly
//!   │ 401: read the token again; anything else: ask again, 100 ms doubling to 5 s
//!   └ 404, 410 (to a beat as well): the workspace is gone, and so is the reason to run
//! ```
//!
//! A request has a connection of its own: there are two a minute, and a fresh one always finds the platform that
//! answers now.

use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use crate::activity::Tasks;
use crate::settings::Settings;
use crate::{Agent, resolver};

/// For one request from the look-up of the name to the end of the answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// For each address of the platform.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const ANSWER_LIMIT_BYTES: usize = 64 * 1024;
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(5);
/// A paused workspace may stay so for days.
const HELD_RETRY: Duration = Duration::from_secs(30);

/// The platform no longer knows the workspace.
pub(crate) struct Removed;

/// What became of a request.
#[derive(Debug, PartialEq)]
enum Outcome {
    Accepted(Value),
    Removed,
    Held,
    Refused,
}

type CallError = Box<dyn std::error::Error + Send + Sync>;

/// Registers and beats until the workspace is removed; with the switches set, falls silent instead.
pub(crate) async fn live(agent: &Agent) -> Removed {
    if agent.settings.switches.never_register {
        tracing::warn!("AGENT_NEVER_REGISTER is set: serving without registering");
        return std::future::pending().await;
    }
    match register(agent).await {
        Ok(()) => beat_on(agent).await,
        Err(removed) => removed,
    }
}

async fn register(agent: &Agent) -> Result<(), Removed> {
    let body =
        json!({"id": agent.settings.workspace_id, "url": agent.url, "agent_card": agent.card});
    for failures in 0.. {
        match ask(agent, "/registry/register", &body).await {
            Outcome::Accepted(answer) => {
                tracing::info!(url = %agent.url, "registered");
                keep_token(agent, &answer);
                break;
            }
            Outcome::Removed => return Err(Removed),
            Outcome::Held => sleep(HELD_RETRY).await,
            Outcome::Refused => sleep(retry_pause(failures, chance())).await,
        }
    }
    Ok(())
}

async fn beat_on(agent: &Agent) -> Removed {
    let Settings {
        switches,
        heartbeat,
        ..
    } = &agent.settings;
    loop {
        if switches
            .stop_beating_after
            .is_some_and(|after| agent.started.elapsed() >= after)
        {
            tracing::warn!("AGENT_STOP_BEATING_AFTER_SECONDS has passed: no more beats");
            return std::future::pending().await;
        }
        let tasks = agent.activity.tasks();
        match ask(agent, "/registry/heartbeat", &beat(agent, &tasks)).await {
            Outcome::Accepted(_) => tokio::select! {
                () = sleep(*heartbeat) => {}
                () = agent.activity.differs_from(&tasks) => {}
            },
            Outcome::Removed => return Removed,
            Outcome::Held | Outcome::Refused => sleep(LAST_RETRY.min(*heartbeat)).await,
        }
    }
}

fn beat(agent: &Agent, tasks: &Tasks) -> Value {
    let switches = &agent.settings.switches;
    json!({
        "workspace_id": agent.settings.workspace_id,
        "error_rate": switches.error_rate,
        "sample_error": switches.sample_error,
        "active_tasks": tasks.active,
        "current_task": tasks.current,
        "uptime_seconds": agent.started.elapsed().as_secs(),
        "runtime_state": switches.runtime_state,
        "runtime_metadata": {"capabilities": {}},
    })
}

fn keep_token(agent: &Agent, body: &Value) {
    let Some(token) = body["auth_token"]
        .as_str()
        .filter(|token| !token.is_empty())
    else {
        return;
    };
    match agent.token.store(token) {
        Ok(()) => tracing::info!("the platform issued a token; it is kept in the config directory"),
        Err(error) => {
            tracing::warn!(%error, "the issued token cannot be written; it is lost when this process ends")
        }
    }
}

/// Asks and logs every answer but yes.
async fn ask(agent: &Agent, path: &str, body: &Value) -> Outcome {
    let (status, answer) = match post(agent, path, body).await {
        Ok(answer) => answer,
        Err(error) => {
            tracing::warn!(path, %error, "the platform did not answer");
            return Outcome::Refused;
        }
    };
    let error = answer["error"].as_str().unwrap_or_default().to_owned();
    let outcome = judge(status, answer);
    let status = status.as_u16();
    match outcome {
        Outcome::Accepted(_) => {}
        Outcome::Removed => tracing::info!(
            path,
            status,
            error,
            "the platform does not have this workspace; ending"
        ),
        Outcome::Held => tracing::info!(path, status, error, "the workspace is stopped; waiting"),
        Outcome::Refused => tracing::warn!(path, status, error, "the platform refused"),
    }
    outcome
}

fn judge(status: StatusCode, answer: Value) -> Outcome {
    match status {
        StatusCode::OK => Outcome::Accepted(answer),
        StatusCode::NOT_FOUND | StatusCode::GONE => Outcome::Removed,
        StatusCode::CONFLICT => Outcome::Held,
        _ => Outcome::Refused,
    }
}

/// The pause after so many failures; `chance` (0 to 1) spreads a fleet that lost its platform at one moment.
fn retry_pause(failures: u32, chance: f64) -> Duration {
    let full = LAST_RETRY.min(FIRST_RETRY.saturating_mul(1 << failures.min(16)));
    full.mul_f64(0.75 + chance * 0.25)
}

/// From 0 to 1. A v4 UUID is random in its first byte.
fn chance() -> f64 {
    f64::from(Uuid::new_v4().as_bytes()[0]) / 255.0
}

/// One request; after a 401, one more if the token file holds another token by now.
async fn post(agent: &Agent, path: &str, body: &Value) -> Result<(StatusCode, Value), CallError> {
    let answer = timeout(CALL_TIMEOUT, send(agent, path, body)).await??;
    if answer.0 == StatusCode::UNAUTHORIZED && agent.token.reread() {
        tracing::info!("the token was refused and the file holds another: asking again with that");
        return timeout(CALL_TIMEOUT, send(agent, path, body)).await?;
    }
    Ok(answer)
}

async fn send(agent: &Agent, path: &str, body: &Value) -> Result<(StatusCode, Value), CallError> {
    let url = &agent.settings.platform;
    let mut request = Request::post(format!("{}{path}", url.prefix))
        .header(HOST, &url.authority)
        .header(CONTENT_TYPE, "application/json")
        .header("X-Workspace-ID", agent.settings.workspace_id.to_string());
    if let Some(token) = agent.token.current() {
        request = request.header(AUTHORIZATION, format!("Bearer {token}"));
    }
    let request = request.body(Full::new(Bytes::from(body.to_string())))?;

    let stream = connect(&url.host, url.port).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // It ends with the sender; what goes wrong on it comes back from the request.
    tokio::spawn(connection);
    let response = sender.send_request(request).await?;
    let status = response.status();
    let answer = Limited::new(response.into_body(), ANSWER_LIMIT_BYTES)
        .collect()
        .await?;
    // A proxy in between may answer with anything; what counts then is the status.
    Ok((
        status,
        serde_json::from_slice(&answer.to_bytes()).unwrap_or_default(),
    ))
}

async fn connect(host: &str, port: u16) -> Result<TcpStream, CallError> {
    let mut last = CallError::from("the platform's name has no address");
    let addresses = resolver::resolve(host, port).await;
    for address in addresses.map_err(|error| format!("cannot resolve {host}: {error}"))? {
        match timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = format!("{address}: {error}").into(),
            Err(_) => last = format!("{address}: no answer").into(),
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_200_registers_and_only_404_and_410_end_the_agent() {
        for code in 100..600 {
            let expected = match code {
                200 => Outcome::Accepted(Value::Null),
                404 | 410 => Outcome::Removed,
                409 => Outcome::Held,
                _ => Outcome::Refused,
            };
            assert_eq!(
                judge(StatusCode::from_u16(code).unwrap(), Value::Null),
                expected,
                "for {code}"
            );
        }
    }

    #[test]
    fn pauses_double_from_100_ms_to_5_s() {
        let pauses: Vec<_> = (0..8)
            .map(|failures| retry_pause(failures, 1.0).as_millis())
            .collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(retry_pause(u32::MAX, 1.0), LAST_RETRY);
        assert_eq!(retry_pause(0, 0.0), Duration::from_millis(75));
    }
}
