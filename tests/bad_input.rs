//! Bad input: each a 4xx that says what to do, and nothing written.

use futures_util::stream;
use longshore_tests::{Answer, Caller, TestApp};
use reqwest::Method;
use reqwest::header::CONTENT_TYPE;
use serde_json::{Value, json};

const MIB: usize = 1024 * 1024;

/// An app without engine and workers: nothing moves by itself, so whatever is written was written by the request.
async fn still_app() -> TestApp {
    TestApp::build().without_docker().start().await
}

/// The answer is this refusal, in the form every refusal has; answers what it says.
#[track_caller]
fn refused(answer: &Answer, status: u16) -> String {
    assert_eq!(answer.status, status, "{}", answer.text());
    assert_eq!(answer.content_type, "application/problem+json");
    let problem = answer.json();
    assert_eq!(problem["status"], status);
    let text = |member: &str| problem[member].as_str().unwrap_or_default().to_owned();
    assert!(
        !text("title").is_empty() && !text("error").is_empty(),
        "{problem}"
    );
    format!("{}: {}", text("error"), text("detail"))
}

#[tokio::test]
async fn bodies_that_are_no_workspace_are_refused() {
    let app = still_app().await;
    let before = app.row_counts().await;
    for (body, status, says) in [
        (r#"{"name": "a""#, 400, "not valid JSON"),
        ("name=a", 400, "not valid JSON"),
        ("", 400, "not valid JSON"),
        ("[]", 400, "invalid workspace payload"),
        (r#"{"name": 7}"#, 400, "name: invalid type"),
        (r#"{"name": "a", "tier": "two"}"#, 400, "tier: invalid type"),
        (
            r#"{"name": "a", "secrets": ["x"]}"#,
            400,
            "secrets: invalid type",
        ),
        (r#"{"name": "a\nb"}"#, 400, "name must not contain newline"),
        (r#"{"name": "a", "tier": 9}"#, 400, "tier"),
        (r#"{"name": "a", "tier": 4}"#, 403, "LONGSHORE_MAX_TIER"),
        (
            r#"{"name": "a", "parent_id": "9b6f3c1e-4d2a-4c3b-9f00-0123456789ab"}"#,
            400,
            "parent",
        ),
        (r#"{"name": "a", "parent_id": "nobody"}"#, 400, "parent"),
        (r#"{"role": "r"}"#, 400, "missing field `name`"),
    ] {
        let answer = app.admin().post_raw("/workspaces", body).await;
        let said = refused(&answer, status);
        assert!(said.contains(says), "{body}: {said}");
    }
    let long = json!({ "name": "n".repeat(256) });
    let said = refused(&app.admin().post("/workspaces", &long).await, 400);
    assert!(said.contains("at most 255 characters"), "{said}");
    assert_eq!(app.row_counts().await, before);
    // Characters are counted, not bytes.
    let fits = json!({ "name": "ü".repeat(255), "external": true });
    app.admin().post("/workspaces", &fits).await.expect(201);
}

#[tokio::test]
async fn fifty_megabytes_are_refused_while_they_arrive() {
    let app = still_app().await;
    let (id, agent) = app.create_external("target").await;
    let before = app.row_counts().await;
    let message = format!("/workspaces/{id}/a2a");
    for (caller, path) in [
        (app.admin(), "/workspaces"),
        (agent, "/registry/register"),
        (app.admin(), message.as_str()),
    ] {
        // Without a length, so that it is the bytes that are counted.
        let chunks = (0..50).map(|_| Ok::<_, std::io::Error>(vec![b' '; MIB]));
        let body = reqwest::Body::wrap_stream(stream::iter(chunks));
        let said = refused(&caller.post_raw(path, body).await, 413);
        assert!(said.contains("at most"), "{said}");
    }
    assert_eq!(app.row_counts().await, before);
    app.nobody().get("/livez").await.expect(200);
}

#[tokio::test]
async fn an_id_that_is_no_uuid_is_refused_on_every_route_that_takes_one() {
    let app = still_app().await;
    let before = app.row_counts().await;
    for (method, path) in [
        (Method::GET, "/workspaces/nope"),
        (Method::PATCH, "/workspaces/nope"),
        (Method::DELETE, "/workspaces/0b6f3c1e-4d2a-4c3b-9f00"),
        (Method::GET, "/workspaces/nope/logs"),
        (Method::POST, "/workspaces/nope/a2a"),
        (Method::GET, "/events/nope"),
        (Method::GET, "/jobs/nope"),
        (Method::POST, "/jobs/nope/cancel"),
    ] {
        let request = app.admin().request(method.clone(), path).json(&json!({}));
        let said = refused(&Answer::of(request).await, 400);
        assert!(
            said.contains("invalid") && said.contains("id"),
            "{method} {path}: {said}"
        );
    }
    assert_eq!(app.row_counts().await, before);
}

#[tokio::test]
async fn missing_wrong_and_revoked_tokens_and_those_of_others_are_refused() {
    let app = still_app().await;
    let (id, agent) = app.create_external("mine").await;
    let (_, neighbour) = app.create_external("theirs").await;
    let (revoked_id, revoked) = app.create_external("was mine").await;
    app.write_revocation_directly(&revoked_id).await;
    let before = app.row_counts().await;
    let wrong = app.with_token(Some("not-a-token-of-anybody"));
    let odd = app.with_token(Some(""));

    let new = json!({ "name": "a" });
    for (caller, whose) in [
        (app.nobody(), "none"),
        (wrong.clone(), "wrong"),
        (odd, "empty"),
        (revoked.clone(), "revoked"),
        // A workspace's token is no operator's.
        (agent.clone(), "a workspace's"),
    ] {
        let answer = caller.post("/workspaces", &new).await;
        assert!(!refused(&answer, 401).is_empty(), "{whose}");
    }
    let beat = |id: &str| json!({ "workspace_id": id });
    let path = "/registry/heartbeat";
    for caller in [app.nobody(), wrong, neighbour.clone()] {
        refused(&caller.post(path, &beat(&id)).await, 401);
    }
    refused(&revoked.post(path, &beat(&revoked_id)).await, 401);
    let own = format!("/workspaces/{id}");
    refused(
        &neighbour.patch(&own, &json!({ "name": "taken" })).await,
        401,
    );
    refused(&neighbour.get(&format!("{own}/logs")).await, 401);
    refused(&neighbour.delete(&own).await, 401);
    assert_eq!(app.row_counts().await, before);
    assert_eq!(app.entry(&id).await["name"], "mine");
}

fn registration(id: &str, url: &str) -> Value {
    json!({ "id": id, "url": url, "agent_card": { "name": "agent" } })
}

#[tokio::test]
async fn an_agent_cannot_register_an_address_inside_the_platform() {
    let app = still_app().await;
    let (id, agent) = app.create_external("curious").await;
    let before = app.row_counts().await;
    for url in [
        "http://169.254.169.254/latest/meta-data/",
        "http://[fd00:ec2::254]/latest/meta-data/",
        "http://[::ffff:169.254.169.254]/",
        "http://2852039166/",
        "http://127.0.0.1:8080/",
        "http://10.0.0.1/",
        "http://0.0.0.0/",
        "http://localhost/",
        "ftp://example.com/",
        "file:///etc/passwd",
        "not a url",
    ] {
        let answer = agent
            .post("/registry/register", &registration(&id, url))
            .await;
        let said = refused(&answer, 400);
        assert!(
            said.contains("url") || said.contains("hostname"),
            "{url}: {said}"
        );
    }
    // Neither can an operator in an agent's name.
    let body = json!({ "name": "a", "external": true, "url": "http://169.254.169.254/" });
    refused(&app.admin().post("/workspaces", &body).await, 400);
    assert_eq!(app.row_counts().await, before);
    assert_eq!(app.entry(&id).await["status"], "awaiting_agent");
    assert_eq!(app.entry(&id).await["url"], "");
}

#[tokio::test]
async fn nobody_registers_for_a_workspace_that_is_unknown_removed_or_paused() {
    let app = still_app().await;
    let url = "http://192.0.2.1:8000";
    let register = async |caller: &Caller, id: &str| {
        caller
            .post("/registry/register", &registration(id, url))
            .await
    };
    let (removed, removed_agent) = app.create_external("removed").await;
    app.admin()
        .delete(&format!("/workspaces/{removed}"))
        .await
        .expect(200);
    let (paused, paused_agent) = app.create_external("paused").await;
    app.write_status_directly(&paused, "paused").await;
    let before = app.row_counts().await;

    let unknown = "9b6f3c1e-4d2a-4c3b-9f00-0123456789ab";
    let said = refused(&register(&app.nobody(), unknown).await, 404);
    assert!(said.contains("workspace not found"), "{said}");
    let said = refused(&register(&removed_agent, &removed).await, 410);
    assert!(said.contains("workspace removed"), "{said}");
    let said = refused(&register(&paused_agent, &paused).await, 409);
    assert!(said.contains("paused"), "{said}");
    assert_eq!(app.row_counts().await, before);
    assert_eq!(app.entry(&paused).await["status"], "paused");
}

#[tokio::test]
async fn another_media_type_and_an_unknown_route_are_refused_in_the_same_form() {
    let app = still_app().await;
    let before = app.row_counts().await;
    let request = app.admin().request(Method::POST, "/workspaces");
    let request = request
        .header(CONTENT_TYPE, "text/plain")
        .body(r#"{"name": "a"}"#);
    refused(&Answer::of(request).await, 415);
    refused(&app.admin().get("/no/such/route").await, 404);
    let request = app.admin().request(Method::PUT, "/workspaces");
    refused(&Answer::of(request).await, 405);
    assert_eq!(app.row_counts().await, before);
}
