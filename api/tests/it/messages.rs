//! Messages to agents that are really there: small HTTP servers on this machine.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt as _;
use longshore_backends::{
    Backend, BackendError, Backends, Delivers, LogLine, LogSource, LogStream, LogsQuery, StartSpec,
    StartWatch, Started, StopTarget, VolumeScope,
};
use longshore_base::WorkspaceId;
use longshore_base::clock::Stopwatch;
use longshore_events::{BroadcastEvent, Filter, Received, names};
use longshore_fleet::status::WorkspaceStatus;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::Notify;

use crate::app::{Agent, DEADLINE, Options, TestApp, expect, expect_error, named, until};

/// What an agent's server does with a request.
#[derive(Clone)]
enum Manner {
    /// Answers with this status and body.
    Answer(u16, String),
    /// Reads, and answers when it is let.
    Held(Arc<Notify>),
    /// Reads and says nothing.
    Silent,
    /// Reads and closes.
    HangUp,
    /// Promises more than it sends.
    BreakOff,
}

/// An agent's server and what it was sent.
struct Server {
    url: String,
    received: Arc<Mutex<Vec<Value>>>,
}

impl Server {
    async fn start(manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://127.0.0.1:{}", listener.local_addr().unwrap().port());
        let received = Arc::new(Mutex::new(Vec::new()));
        let log = received.clone();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let (manner, log) = (manner.clone(), log.clone());
                tokio::spawn(async move {
                    let mut read = Vec::new();
                    let body = loop {
                        if stream.read_buf(&mut read).await.unwrap_or(0) == 0 {
                            return;
                        }
                        let text = String::from_utf8_lossy(&read).into_owned();
                        let Some((_, body)) = text.split_once("\r\n\r\n") else {
                            continue;
                        };
                        if let Ok(body) = serde_json::from_str::<Value>(body) {
                            break body;
                        }
                    };
                    log.lock().unwrap().push(body);
                    let answer = match manner {
                        Manner::Answer(status, body) => format!(
                            "HTTP/1.1 {status} X\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\
                             connection: close\r\nlocation: http://169.254.169.254/\r\n\r\n{body}",
                            body.len()
                        ),
                        Manner::BreakOff => {
                            "HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{".to_owned()
                        }
                        Manner::Held(gate) => {
                            gate.notified().await;
                            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}".to_owned()
                        }
                        Manner::HangUp => return,
                        Manner::Silent => {
                            tokio::time::sleep(Duration::from_secs(60)).await;
                            return;
                        }
                    };
                    stream.write_all(answer.as_bytes()).await.unwrap_or(());
                });
            }
        });
        Self { url, received }
    }

    fn received(&self) -> Vec<Value> {
        self.received.lock().unwrap().clone()
    }
}

/// A managed workspace whose provisioner stored this URL.
async fn agent_at(app: &TestApp, name: &str, url: &str) -> Agent {
    let agent = app.insert_named(name).await;
    app.set_url(agent.id, url).await;
    app.set_status(agent.id, WorkspaceStatus::Online).await;
    agent
}

fn message(text: &str) -> Value {
    json!({
        "jsonrpc": "2.0", "id": "1", "method": "message/send",
        "params": { "message": { "messageId": "m1", "role": "user", "parts": [{ "kind": "text", "text": text }] } }
    })
}

async fn send(app: &TestApp, agent: &Agent, body: &Value) -> reqwest::Response {
    app.admin(Method::POST, &format!("/workspaces/{}/a2a", agent.id))
        .json(body)
        .send()
        .await
        .unwrap()
}

/// The activity rows of a workspace, once there are so many.
async fn activities(app: &TestApp, id: WorkspaceId, count: usize) -> Vec<Value> {
    let started = Stopwatch::start();
    loop {
        let rows: Vec<(Value,)> = sqlx::query_as(
            "SELECT to_jsonb(a) FROM activity_logs a WHERE workspace_id = $1 ORDER BY id",
        )
        .bind(id)
        .fetch_all(app.database.pool())
        .await
        .unwrap();
        if rows.len() >= count {
            return rows.into_iter().map(|(row,)| row).collect();
        }
        assert!(started.elapsed() < DEADLINE, "no activity was recorded");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn an_answer_is_passed_back_as_it_is_and_recorded() {
    let app = TestApp::start().await;
    app.events_flow().await;
    let body = r#"{ "result" : {"metadata":{"tool_trace":[{"tool":"x"}]}}, "n": 1.0 }"#;
    let server = Server::start(Manner::Answer(200, body.to_owned())).await;
    let agent = agent_at(&app, "echo", &server.url).await;
    let mut events = app.hub.subscribe(Filter::Workspace(agent.id), 16);

    let answer = send(&app, &agent, &message("hello")).await;
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(answer.headers()["content-type"], "application/json");
    assert_eq!(answer.text().await.unwrap(), body);
    assert_eq!(server.received(), [message("hello")]);

    let row = &activities(&app, agent.id, 1).await[0];
    assert_eq!(row["activity_type"], "a2a_receive");
    assert_eq!(row["source_id"], Value::Null);
    assert_eq!(row["target_id"], json!(agent.id));
    assert_eq!(row["method"], "message/send");
    assert_eq!(row["summary"], "message/send → echo");
    assert_eq!(row["status"], "ok");
    assert_eq!(row["request_body"], message("hello"));
    assert_eq!(row["tool_trace"], json!([{ "tool": "x" }]));
    let mut seen = Vec::new();
    while seen.len() < 2 {
        match tokio::time::timeout(DEADLINE, events.next()).await.unwrap() {
            Received::Event(event) if event.position.is_none() => seen.push(event),
            Received::Event(_) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(seen[0].message.event, "A2A_RESPONSE");
    assert_eq!(seen[0].message.payload["response_body"]["n"], 1.0);
    assert_eq!(seen[1].message.event, "ACTIVITY_LOGGED");
    assert_eq!(seen[1].message.payload["id"], row["id"]);
    assert_eq!(seen[1].message.payload["request_body"], message("hello"));
}

#[tokio::test]
async fn an_agent_speaks_in_its_own_name_only() {
    let app = TestApp::start().await;
    let server = Server::start(Manner::Answer(200, "{}".to_owned())).await;
    let target = agent_at(&app, "target", &server.url).await;
    let sender = app.insert_named("sender").await;
    let path = format!("/workspaces/{}/a2a", target.id);
    let send_as = async |name: Option<&str>, token: Option<&str>| {
        let mut request = app.post(&path, &json!({ "method": "m", "params": {} }));
        if let Some(name) = name {
            request = request.header("X-Workspace-ID", name);
        }
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        request.send().await.unwrap()
    };
    let (id, own) = (sender.id.to_string(), target.id.to_string());
    for (name, token, status, error) in [
        (
            Some("system:x"),
            Some(crate::app::ADMIN),
            403,
            "invalid caller ID",
        ),
        (Some("webhook:1"), None, 403, "invalid caller ID"),
        (
            Some("nope"),
            Some(sender.token.as_str()),
            400,
            "invalid workspace id",
        ),
        (Some(id.as_str()), None, 401, "missing caller auth token"),
        (
            Some(id.as_str()),
            Some(target.token.as_str()),
            401,
            "invalid caller auth token",
        ),
        (
            Some(id.as_str()),
            Some(crate::app::ADMIN),
            401,
            "invalid caller auth token",
        ),
        (
            Some(own.as_str()),
            Some(sender.token.as_str()),
            401,
            "invalid caller auth token",
        ),
        (None, None, 401, "missing caller auth token"),
        (None, Some("wrong"), 401, "invalid caller auth token"),
    ] {
        let status = StatusCode::from_u16(status).unwrap();
        let got = expect_error(send_as(name, token).await, status).await;
        assert_eq!(got, error, "{name:?}");
    }
    assert!(server.received().is_empty());
    // Named, unnamed, and to itself.
    for (name, token) in [
        (Some(id.as_str()), &sender.token),
        (None, &sender.token),
        (Some(own.as_str()), &target.token),
        (None, &target.token),
    ] {
        expect(send_as(name, Some(token)).await, StatusCode::OK).await;
    }
    let rows = activities(&app, target.id, 4).await;
    let sources: Vec<_> = rows.iter().map(|row| row["source_id"].clone()).collect();
    assert_eq!(
        sources,
        [
            json!(sender.id),
            json!(sender.id),
            json!(target.id),
            json!(target.id)
        ]
    );
    let shown = app
        .admin(Method::GET, &format!("/workspaces/{}", sender.id))
        .send()
        .await
        .unwrap();
    let shown = expect(shown, StatusCode::OK).await;
    assert!(shown["last_outbound_at"].is_string());
}

#[tokio::test]
async fn a_message_that_cannot_be_delivered_says_why() {
    let app = TestApp::start().await;
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed = format!("http://127.0.0.1:{}", nobody.local_addr().unwrap().port());
    drop(nobody);
    let refuses = Server::start(Manner::Answer(418, r#"{"error":"no tea"}"#.to_owned())).await;
    let redirects = Server::start(Manner::Answer(302, String::new())).await;
    let hangs_up = Server::start(Manner::HangUp).await;
    let breaks_off = Server::start(Manner::BreakOff).await;
    for (name, url, status, error, members) in [
        (
            "booting",
            "",
            503,
            "workspace has no URL",
            json!({ "status": "online" }),
        ),
        (
            "closed",
            closed.as_str(),
            502,
            "failed to reach workspace agent",
            json!({}),
        ),
        (
            "metadata",
            "http://169.254.169.254/",
            502,
            "workspace URL is not publicly routable",
            json!({}),
        ),
        (
            "private",
            "http://10.1.2.3:8000",
            502,
            "workspace URL is not publicly routable",
            json!({}),
        ),
        ("refuses", refuses.url.as_str(), 418, "no tea", json!({})),
        ("redirects", redirects.url.as_str(), 302, "Found", json!({})),
        (
            "hangs-up",
            hangs_up.url.as_str(),
            503,
            "workspace agent busy — retry after a short backoff",
            json!({ "busy": true, "retry_after": 30 }),
        ),
        (
            "breaks-off",
            breaks_off.url.as_str(),
            502,
            "failed to read agent response",
            json!({ "delivery_confirmed": true }),
        ),
    ] {
        let agent = agent_at(&app, name, url).await;
        let answer = app
            .admin(Method::POST, &format!("/workspaces/{}/a2a", agent.id))
            .json(&message("x"))
            .send()
            .await
            .unwrap();
        let status = StatusCode::from_u16(status).unwrap();
        let body = expect(answer, status).await;
        assert_eq!(body["error"], error, "{name}");
        for (member, value) in members.as_object().unwrap() {
            assert_eq!(body[member], *value, "{name}: {member}");
        }
        if !url.is_empty() && !error.contains("routable") {
            let row = &activities(&app, agent.id, 1).await[0];
            assert_eq!(row["status"], "error", "{name}");
            assert_eq!(row["error_detail"], error);
        }
    }

    let agent = agent_at(&app, "spent", &refuses.url).await;
    sqlx::query("UPDATE workspaces SET budget_limit = 5, monthly_spend = 5 WHERE id = $1")
        .bind(agent.id)
        .execute(app.database.pool())
        .await
        .unwrap();
    let error = expect_error(
        send(&app, &agent, &message("x")).await,
        StatusCode::PAYMENT_REQUIRED,
    )
    .await;
    assert_eq!(error, "workspace budget limit exceeded");
    let unknown = Agent {
        id: WorkspaceId::random(),
        token: String::new(),
    };
    let error = expect_error(
        send(&app, &unknown, &message("x")).await,
        StatusCode::NOT_FOUND,
    )
    .await;
    assert_eq!(error, "workspace not found");
    for bad in ["[]", "{", "\"x\""] {
        let agent = agent_at(&app, "bad", &refuses.url).await;
        let answer = app
            .admin(Method::POST, &format!("/workspaces/{}/a2a", agent.id))
            .body(bad)
            .send()
            .await
            .unwrap();
        let error = expect_error(answer, StatusCode::BAD_REQUEST).await;
        assert_eq!(error, "invalid JSON");
    }
}

#[tokio::test]
async fn silence_ends_a_message_and_any_sign_of_life_prolongs_it() {
    let mut options = Options::default();
    options.api.a2a_idle_timeout = Duration::from_millis(600);
    let app = TestApp::with(options).await;
    app.events_flow().await;
    let server = Server::start(Manner::Silent).await;
    let agent = agent_at(&app, "silent", &server.url).await;
    let started = Stopwatch::start();
    let error = expect_error(
        send(&app, &agent, &message("x")).await,
        StatusCode::SERVICE_UNAVAILABLE,
    )
    .await;
    assert_eq!(error, "workspace agent busy — retry after a short backoff");
    assert!(started.elapsed() < Duration::from_secs(3));

    let beats = {
        let (bus, id) = (app.bus.clone(), agent.id);
        tokio::spawn(async move {
            for n in 0..10 {
                bus.broadcast(BroadcastEvent {
                    event_type: names::WORKSPACE_HEARTBEAT,
                    workspace_id: Some(id),
                    payload: json!({ "n": n }),
                });
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        })
    };
    let started = Stopwatch::start();
    let answer = send(&app, &agent, &message("x")).await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(
        started.elapsed() >= Duration::from_secs(2),
        "{:?}",
        started.elapsed()
    );
    beats.await.unwrap();

    // The sender may set a limit of its own.
    let started = Stopwatch::start();
    let mut options = Options::default();
    options.api.a2a_idle_timeout = Duration::from_secs(60);
    let patient = TestApp::with(options).await;
    let agent = agent_at(&patient, "silent", &server.url).await;
    let answer = patient
        .admin(Method::POST, &format!("/workspaces/{}/a2a", agent.id))
        .header("X-Timeout", "1")
        .json(&message("x"))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_message_outlives_its_sender() {
    let app = TestApp::start().await;
    let gate = Arc::new(Notify::new());
    let server = Server::start(Manner::Held(gate.clone())).await;
    let agent = agent_at(&app, "a", &server.url).await;
    let path = format!("/workspaces/{}/a2a", agent.id);
    let request = app.admin(Method::POST, &path).json(&message("x"));
    let sender = tokio::spawn(request.send());
    until("the message to arrive", || !server.received().is_empty()).await;
    sender.abort();
    assert!(sender.await.unwrap_err().is_cancelled());
    // Time for the server to see that nobody waits any more.
    tokio::time::sleep(Duration::from_millis(100)).await;
    gate.notify_one();
    let row = &activities(&app, agent.id, 1).await[0];
    assert_eq!(row["status"], "ok");
    assert_eq!(row["response_body"], json!({}));
}

#[tokio::test]
async fn an_agent_that_fetches_its_messages_finds_each_once() {
    let app = TestApp::start().await;
    let mut new = named("poller");
    new.external = true;
    let agent = app.insert_agent(new).await;
    let first = expect(
        send(&app, &agent, &message("x")).await,
        StatusCode::ACCEPTED,
    )
    .await;
    assert_eq!(first["queued"], true);
    assert_eq!(first["queue_depth"], 1);
    assert_eq!(first["delivery_mode"], "poll");
    let again = expect(
        send(&app, &agent, &message("x")).await,
        StatusCode::ACCEPTED,
    )
    .await;
    assert_eq!(again["queue_id"], first["queue_id"], "the same message");
    let row = &activities(&app, agent.id, 1).await[0];
    assert_eq!(
        (&row["status"], &row["id"]),
        (&json!("queued"), &first["queue_id"])
    );
}

/// An engine on which containers are as a test says.
#[derive(Default)]
pub(crate) struct Engine {
    running: bool,
    log: Vec<LogLine>,
    console: Console,
}

/// What an engine says when it is asked for a console.
#[derive(Clone, Copy, Default)]
enum Console {
    #[default]
    None,
    Fails,
    Shows,
}

#[async_trait]
impl Backend for Engine {
    fn kind(&self) -> &'static str {
        "test"
    }
    fn engine_id(&self) -> Option<&str> {
        None
    }
    fn manner(&self) -> longshore_backends::Manner {
        longshore_backends::Manner {
            delivers: Delivers::Everything,
            start_uncertain_for: None,
            run_limit: Duration::from_secs(1),
            look_every: Duration::from_secs(1),
        }
    }
    async fn check(&self) -> Result<(), BackendError> {
        Ok(())
    }
    async fn start(&self, _: &StartSpec, _: &dyn StartWatch) -> Result<Started, BackendError> {
        Err(BackendError::NoContainer)
    }
    async fn stop(&self, _: &StopTarget) -> Result<(), BackendError> {
        Ok(())
    }
    async fn remove_volumes(&self, _: WorkspaceId, _: VolumeScope) -> Result<(), BackendError> {
        Ok(())
    }
    async fn is_running(&self, _: WorkspaceId, _: Option<&str>) -> Result<bool, BackendError> {
        Ok(self.running)
    }
    async fn logs(&self, _: WorkspaceId, query: LogsQuery) -> Result<LogStream, BackendError> {
        if self.log.is_empty() {
            return Err(BackendError::NoContainer);
        }
        let tail = query.tail.unwrap() as usize;
        let lines = self.log[self.log.len().saturating_sub(tail)..].to_vec();
        Ok(Box::pin(futures_util::stream::iter(lines).map(Ok)))
    }
    async fn console(&self, id: WorkspaceId) -> Result<String, BackendError> {
        match self.console {
            Console::None => Err(BackendError::Unsupported { what: "console" }),
            Console::Fails => Err(BackendError::NoContainer),
            Console::Shows => Ok(format!("console of {id}")),
        }
    }
}

async fn app_on(engine: Engine) -> TestApp {
    let options = Options {
        backends: Backends {
            docker: Some(Arc::new(engine)),
            ..Backends::default()
        },
        ..Options::default()
    };
    TestApp::with(options).await
}

#[tokio::test]
async fn an_agent_whose_container_is_gone_is_offline() {
    let app = app_on(Engine::default()).await;
    let server = Server::start(Manner::HangUp).await;
    let agent = agent_at(&app, "dead", &server.url).await;
    let answer = send(&app, &agent, &message("x")).await;
    let body = expect(answer, StatusCode::SERVICE_UNAVAILABLE).await;
    let error = "workspace agent unreachable — container restart triggered";
    assert_eq!(
        (&body["error"], &body["restarting"]),
        (&json!(error), &json!(true))
    );
    let shown = app
        .admin(Method::GET, &format!("/workspaces/{}", agent.id))
        .send()
        .await
        .unwrap();
    assert_eq!(expect(shown, StatusCode::OK).await["status"], "offline");
    let events = app.admin(Method::GET, "/events").send().await.unwrap();
    let events = expect(events, StatusCode::OK).await;
    assert_eq!(events[0]["event_type"], "WORKSPACE_OFFLINE");
    let logs = app
        .admin(Method::GET, &format!("/workspaces/{}/logs", agent.id))
        .send()
        .await
        .unwrap();
    let error = expect_error(logs, StatusCode::NOT_FOUND).await;
    assert_eq!(error, "workspace has no container");
}

#[tokio::test]
async fn logs_are_shown_without_the_workspaces_secrets() {
    let line = |text: &str| LogLine {
        at: None,
        source: LogSource::Stderr,
        text: text.to_owned(),
    };
    let app = app_on(Engine {
        running: true,
        log: vec![line("one"), line("key is hunter2-hunter2 !"), line("three")],
        ..Engine::default()
    })
    .await;
    let created = app
        .create(json!({ "name": "a", "secrets": { "KEY": "hunter2-hunter2" } }))
        .await;
    let path = format!("/workspaces/{}/logs", created["id"].as_str().unwrap());
    let answer = app
        .admin(Method::GET, &format!("{path}?tail=2"))
        .send()
        .await
        .unwrap();
    assert_eq!(
        expect(answer, StatusCode::OK).await["items"],
        json!([
            { "at": null, "output": "stderr", "text": "key is [redacted] !" },
            { "at": null, "output": "stderr", "text": "three" },
        ])
    );
    let answer = app
        .admin(Method::GET, &format!("{path}?follow=true"))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    let text = answer.text().await.unwrap();
    assert_eq!(text.matches("event: log\n").count(), 3, "{text}");
    assert!(text.contains("[redacted]") && !text.contains("hunter2"));
    assert!(text.trim_end().ends_with("event: end\ndata: {}"));
}

#[tokio::test]
async fn a_console_is_shown_without_secrets_where_there_is_one() {
    for (console, status, told) in [
        (
            Console::None,
            StatusCode::NOT_IMPLEMENTED,
            "console output unavailable on this deployment (no control plane)",
        ),
        (
            Console::Fails,
            StatusCode::BAD_GATEWAY,
            "control plane returned an error fetching console output",
        ),
    ] {
        let app = app_on(Engine {
            console,
            ..Engine::default()
        })
        .await;
        let created = app.create(json!({ "name": "a" })).await;
        let path = format!("/workspaces/{}/console", created["id"].as_str().unwrap());
        let answer = app.admin(Method::GET, &path).send().await.unwrap();
        assert_eq!(expect_error(answer, status).await, told);
    }
    let app = app_on(Engine {
        console: Console::Shows,
        ..Engine::default()
    })
    .await;
    let created = app.create(json!({ "name": "a" })).await;
    let id = created["id"].as_str().unwrap();
    let path = format!("/workspaces/{id}/console");
    let answer = app.admin(Method::GET, &path).send().await.unwrap();
    let shown = expect(answer, StatusCode::OK).await;
    assert_eq!(shown, json!({ "output": format!("console of {id}") }));

    let nobody = uuid::Uuid::nil();
    let path = format!("/workspaces/{nobody}/console");
    let answer = app.admin(Method::GET, &path).send().await.unwrap();
    expect_error(answer, StatusCode::NOT_FOUND).await;
}
