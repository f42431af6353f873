//! What happens, over SSE and WebSocket.

use std::time::Duration;

use futures_util::StreamExt as _;
use longshore_base::WorkspaceId;
use longshore_events::{BroadcastEvent, NewEvent, append, names};
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use crate::app::{ADMIN, Agent, CANVAS_ORIGIN, DEADLINE, TestApp};

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

async fn record(app: &TestApp, id: WorkspaceId, n: i32) {
    let mut tx = app.database.pool().begin().await.unwrap();
    append(
        &mut tx,
        NewEvent {
            event_type: names::WORKSPACE_ONLINE,
            workspace_id: Some(id),
            payload: json!({ "n": n }),
        },
    )
    .await
    .unwrap();
    tx.commit().await.unwrap();
    app.bus.poke();
}

fn broadcast(app: &TestApp, id: WorkspaceId, n: i32) {
    app.bus.broadcast(BroadcastEvent {
        event_type: names::WORKSPACE_HEARTBEAT,
        workspace_id: Some(id),
        payload: json!({ "n": n }),
    });
}

/// Opens `/ws`; the status and text of the refusal otherwise.
async fn open(
    app: &TestApp,
    query: &str,
    headers: &[(&'static str, &str)],
) -> Result<Socket, (u16, String)> {
    let url = format!("{}{query}", app.url("/ws").replacen("http", "ws", 1));
    let mut request = url.into_client_request().unwrap();
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().unwrap());
    }
    match connect_async(request).await {
        Ok((socket, _)) => Ok(socket),
        Err(Error::Http(answer)) => {
            let body: Value = serde_json::from_slice(answer.body().as_deref().unwrap()).unwrap();
            Err((
                answer.status().as_u16(),
                body["error"].as_str().unwrap().to_owned(),
            ))
        }
        Err(error) => panic!("{error}"),
    }
}

async fn open_as(app: &TestApp, agent: &Agent) -> Socket {
    let bearer = format!("Bearer {}", agent.token);
    let id = agent.id.to_string();
    open(
        app,
        "",
        &[("authorization", &bearer), ("x-workspace-id", &id)],
    )
    .await
    .unwrap()
}

/// The next event that a test made; those of the workspaces' creation are passed over.
async fn next_event(socket: &mut Socket) -> Value {
    loop {
        let frame = timeout(DEADLINE, socket.next()).await.unwrap();
        match frame.unwrap().unwrap() {
            Message::Text(text) => {
                let event: Value = serde_json::from_str(&text).unwrap();
                if event["payload"]["n"].is_number() {
                    return event;
                }
            }
            Message::Ping(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn sockets_hear_what_they_may() {
    let app = TestApp::start().await;
    app.events_flow().await;
    let boss = app.insert_named("boss").await;
    let one = app.insert_child("one", boss.id).await;
    let other = app.insert_named("other").await;
    let hers = app.insert_child("hers", other.id).await;
    let token = format!("?access_token={ADMIN}");
    let mut canvas = open(&app, &token, &[("origin", CANVAS_ORIGIN)])
        .await
        .unwrap();
    let mut agent = open_as(&app, &one).await;

    record(&app, one.id, 1).await;
    let event = next_event(&mut canvas).await;
    assert_eq!(event["event"], "WORKSPACE_ONLINE");
    assert_eq!(event["workspace_id"], json!(one.id));
    assert_eq!(event["payload"], json!({ "n": 1 }));
    assert!(event["timestamp"].as_str().unwrap().ends_with('Z'));
    assert_eq!(next_event(&mut agent).await["payload"]["n"], 1);

    // A workspace of another tree, an ephemeral one of the parent: the agent hears the second.
    record(&app, hers.id, 2).await;
    assert_eq!(next_event(&mut canvas).await["payload"]["n"], 2);
    broadcast(&app, boss.id, 3);
    assert_eq!(next_event(&mut canvas).await["payload"]["n"], 3);
    assert_eq!(next_event(&mut agent).await["payload"]["n"], 3);
}

#[tokio::test]
async fn a_socket_wants_an_origin_and_a_credential() {
    let app = TestApp::start().await;
    let agent = app.insert_named("a").await;
    let other = app.insert_named("b").await;
    let org = app.insert_org_token().await;
    let token = |token: &str| format!("?access_token={token}");
    let refusal = async |query: &str, headers: &[(&'static str, &str)]| {
        open(&app, query, headers).await.map(drop).unwrap_err()
    };
    let refused = |status: u16, text: &str| (status, text.to_owned());
    let own = ("origin", app.address.as_str());
    for headers in [&[("origin", CANVAS_ORIGIN)][..], &[own], &[]] {
        assert!(
            open(&app, &token(ADMIN), headers).await.is_ok(),
            "{headers:?}"
        );
        assert!(open(&app, &token(&org), headers).await.is_ok());
        assert_eq!(
            refusal("", headers).await,
            refused(401, "admin auth required")
        );
        assert_eq!(
            refusal(&token("wrong"), headers).await,
            refused(401, "invalid admin auth token")
        );
        assert_eq!(
            refusal(&token(&agent.token), headers).await,
            refused(401, "invalid admin auth token")
        );
    }
    assert_eq!(
        refusal(&token(ADMIN), &[("origin", "https://evil.example")]).await,
        refused(403, "origin not allowed")
    );
    let id = agent.id.to_string();
    let named = ("x-workspace-id", id.as_str());
    assert_eq!(
        refusal("", &[named]).await,
        refused(401, "missing workspace auth token")
    );
    let foreign = format!("Bearer {}", other.token);
    assert_eq!(
        refusal("", &[named, ("authorization", &foreign)]).await,
        refused(401, "invalid workspace auth token")
    );
    assert_eq!(
        refusal("", &[("x-workspace-id", "nope")]).await,
        refused(400, "invalid workspace id")
    );
}

#[tokio::test]
async fn a_socket_that_does_not_read_is_closed_and_told_why() {
    let app = TestApp::start().await;
    app.events_flow().await;
    let agent = app.insert_named("a").await;
    let mut slow = open(&app, &format!("?access_token={ADMIN}"), &[])
        .await
        .unwrap();
    // More than its buffer and those of the system hold.
    let mut tx = app.database.pool().begin().await.unwrap();
    for n in 0..1500 {
        append(
            &mut tx,
            NewEvent {
                event_type: names::WORKSPACE_ONLINE,
                workspace_id: Some(agent.id),
                payload: json!({ "n": n, "filler": "x".repeat(16 * 1024) }),
            },
        )
        .await
        .unwrap();
    }
    tx.commit().await.unwrap();
    app.bus.poke();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let mut seen = 0;
    loop {
        let frame = timeout(DEADLINE, slow.next()).await.unwrap();
        match frame.unwrap().unwrap() {
            Message::Text(text) => {
                let event: Value = serde_json::from_str(&text).unwrap();
                if let Some(n) = event["payload"]["n"].as_i64() {
                    assert_eq!(n, seen, "one was skipped");
                    seen += 1;
                }
            }
            Message::Close(Some(close)) => {
                assert_eq!(u16::from(close.code), 1013);
                assert_eq!(close.reason.as_str(), "slow reader");
                break;
            }
            Message::Ping(_) => {}
            other => panic!("{other:?}"),
        }
    }
    assert!((256..1500).contains(&seen), "{seen}");
}

#[tokio::test]
async fn a_shutdown_closes_sockets_and_streams() {
    let mut app = TestApp::start().await;
    app.events_flow().await;
    let agent = app.insert_named("a").await;
    let mut socket = open(&app, &format!("?access_token={ADMIN}"), &[])
        .await
        .unwrap();
    let stream = app
        .get(&format!("/workspaces/{}/events/stream", agent.id))
        .bearer_auth(ADMIN)
        .send()
        .await
        .unwrap();
    app.shutdown.cancel();
    loop {
        let frame = timeout(DEADLINE, socket.next()).await.unwrap();
        match frame.unwrap().unwrap() {
            // The workspace may have been made too late to be told before.
            Message::Text(_) => {}
            Message::Close(Some(close)) => break assert_eq!(close.code, CloseCode::Away),
            other => panic!("{other:?}"),
        }
    }
    let rest = timeout(DEADLINE, stream.text()).await.unwrap().unwrap();
    assert!(rest.starts_with(": ping\n\n"), "{rest}");
    let served = timeout(DEADLINE, &mut app.server).await.unwrap().unwrap();
    assert!(served.is_ok());
}

/// Reads a stream until it holds some texts.
async fn read_until(answer: &mut reqwest::Response, wanted: &[&str]) -> String {
    let mut text = String::new();
    while !wanted.iter().all(|wanted| text.contains(wanted)) {
        let chunk = timeout(DEADLINE, answer.chunk()).await;
        let chunk = chunk.unwrap_or_else(|_| panic!("no {wanted:?} in {text}"));
        text.push_str(std::str::from_utf8(&chunk.unwrap().expect("the stream ended")).unwrap());
    }
    text
}

#[tokio::test]
async fn a_stream_that_comes_back_misses_nothing_and_hears_nothing_twice() {
    let app = TestApp::start().await;
    app.events_flow().await;
    let agent = app.insert_named("a").await;
    let other = app.insert_named("b").await;
    let path = format!("/workspaces/{}/events/stream", agent.id);
    let listen = async |last: Option<&str>| {
        let mut request = app.get(&path).bearer_auth(&agent.token);
        if let Some(last) = last {
            request = request.header("Last-Event-ID", last);
        }
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        answer
    };
    let mut first = listen(None).await;
    assert_eq!(first.headers()["x-accel-buffering"], "no");
    record(&app, other.id, 0).await;
    record(&app, agent.id, 1).await;
    let text = read_until(&mut first, &["\"n\":1"]).await;
    assert!(text.starts_with(": ping\n\n"), "{text}");
    assert!(!text.contains("\"n\":0"), "{text}");
    let position = text
        .lines()
        .filter_map(|line| line.strip_prefix("id: "))
        .next_back()
        .unwrap()
        .to_owned();
    let data = text
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .next_back()
        .unwrap();
    let data: Value = serde_json::from_str(data).unwrap();
    assert_eq!(data["type"], "WORKSPACE_ONLINE");
    assert_eq!(data["data"], json!({ "n": 1 }));
    assert!(data["timestamp"].as_i64().unwrap() > 1_600_000_000_000);
    drop(first);

    record(&app, agent.id, 2).await;
    let mut second = listen(Some(&position)).await;
    record(&app, agent.id, 3).await;
    broadcast(&app, agent.id, 4);
    let text = read_until(&mut second, &["\"n\":3", "\"n\":4"]).await;
    for (n, times) in [(1, 0), (2, 1), (3, 1), (4, 1)] {
        let got = text.matches(&format!("\"n\":{n}")).count();
        assert_eq!(got, times, "event {n} in {text}");
    }
}
