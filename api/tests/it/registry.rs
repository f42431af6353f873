//! Agents that come up, live, and find each other.

use longshore_fleet::status::WorkspaceStatus;
use longshore_fleet::tokens;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::app::{Agent, Options, TestApp, expect, expect_error};

async fn register(app: &TestApp, agent: &Agent) -> Value {
    let answer = app
        .post(
            "/registry/register",
            &json!({
                "id": agent.id, "url": agent.id.internal_url(),
                "agent_card": { "name": "reference", "skills": [{ "id": "echo" }] }
            }),
        )
        .bearer_auth(&agent.token)
        .send()
        .await
        .unwrap();
    expect(answer, StatusCode::OK).await
}

async fn beat(app: &TestApp, agent: &Agent, body: Value) -> Value {
    let mut fields = json!({ "workspace_id": agent.id });
    fields
        .as_object_mut()
        .unwrap()
        .extend(body.as_object().unwrap().clone());
    let answer = app
        .post("/registry/heartbeat", &fields)
        .bearer_auth(&agent.token)
        .send()
        .await
        .unwrap();
    expect(answer, StatusCode::OK).await
}

async fn status(app: &TestApp, agent: &Agent) -> Value {
    let path = format!("/workspaces/{}", agent.id);
    let answer = app.admin(Method::GET, &path).send().await.unwrap();
    expect(answer, StatusCode::OK).await
}

#[tokio::test]
async fn an_agent_registers_beats_and_shows() {
    let app = TestApp::start().await;
    let agent = app.insert_named("a").await;
    let registered = register(&app, &agent).await;
    assert_eq!(registered["status"], "registered");
    assert!(registered.get("auth_token").is_none(), "it has a token");
    let secret = registered["platform_inbound_secret"].as_str().unwrap();
    let shown = status(&app, &agent).await;
    assert_eq!(shown["status"], "online");
    assert_eq!(shown["agent_card"]["skills"][0]["id"], "echo");
    assert_eq!(shown["url"], agent.id.internal_url());

    let beaten = beat(
        &app,
        &agent,
        json!({ "error_rate": 0.9, "sample_error": "boom", "active_tasks": 1 }),
    )
    .await;
    assert_eq!(beaten["status"], "ok");
    assert_eq!(beaten["platform_inbound_secret"], secret);
    assert_eq!(status(&app, &agent).await["status"], "degraded");
    // A helper's partial beat.
    beat(
        &app,
        &agent,
        json!({ "runtime_metadata": null, "error_rate": null }),
    )
    .await;
    assert_eq!(status(&app, &agent).await["status"], "online");

    let answer = app
        .admin(Method::GET, &format!("/events/{}", agent.id))
        .send();
    let events = expect(answer.await.unwrap(), StatusCode::OK).await;
    let names: Vec<_> = events
        .as_array()
        .unwrap()
        .iter()
        .map(|event| event["event_type"].as_str().unwrap())
        .collect();
    assert_eq!(
        names,
        [
            "WORKSPACE_ONLINE",
            "WORKSPACE_DEGRADED",
            "WORKSPACE_ONLINE",
            "WORKSPACE_PROVISIONING"
        ]
    );
    assert_eq!(events[1]["payload"]["sample_error"], "boom");
    for bad in [
        json!({}),
        json!({ "workspace_id": "x" }),
        json!({ "workspace_id": agent.id, "active_tasks": "many" }),
    ] {
        let answer = app
            .post("/registry/heartbeat", &bad)
            .bearer_auth(&agent.token)
            .send()
            .await
            .unwrap();
        let error = expect_error(answer, StatusCode::BAD_REQUEST).await;
        assert_eq!(error, "invalid request body", "{bad}");
    }
}

#[tokio::test]
async fn a_first_registration_needs_no_token_and_gets_one() {
    let app = TestApp::start().await;
    let agent = app.insert_named("a").await;
    let mut conn = app.database.pool().acquire().await.unwrap();
    tokens::revoke_all(&mut conn, agent.id).await.unwrap();
    let body = json!({ "id": agent.id, "url": agent.id.internal_url(), "agent_card": {} });
    let answer = app.post("/registry/register", &body).send().await.unwrap();
    let registered = expect(answer, StatusCode::OK).await;
    let token = registered["auth_token"].as_str().unwrap();
    // The second one must show it.
    let answer = app.post("/registry/register", &body).send().await.unwrap();
    let error = expect_error(answer, StatusCode::UNAUTHORIZED).await;
    assert_eq!(error, "missing workspace auth token");
    let answer = app
        .post("/registry/register", &body)
        .bearer_auth(token)
        .send()
        .await
        .unwrap();
    assert!(
        expect(answer, StatusCode::OK)
            .await
            .get("auth_token")
            .is_none()
    );
    // A running workspace whose tokens were all revoked cannot be taken over.
    tokens::revoke_all(&mut conn, agent.id).await.unwrap();
    let answer = app.post("/registry/register", &body).send().await.unwrap();
    expect_error(answer, StatusCode::UNAUTHORIZED).await;
}

#[tokio::test]
async fn dev_mode_is_lenient_where_it_is_said_to_be() {
    let app = TestApp::with(Options::default().dev_mode()).await;
    let agent = app.insert_named("a").await;
    for (request, status) in [
        (app.get("/workspaces"), StatusCode::OK),
        (
            app.get(&format!("/workspaces/{}", agent.id)),
            StatusCode::OK,
        ),
        (
            app.post("/registry/heartbeat", &json!({ "workspace_id": agent.id })),
            StatusCode::OK,
        ),
        (
            app.get(&format!("/workspaces/{}/jobs", agent.id))
                .bearer_auth("wrong"),
            StatusCode::UNAUTHORIZED,
        ),
    ] {
        let answer = request.send().await.unwrap();
        assert_eq!(answer.headers()["x-ratelimit-limit"], "unlimited");
        assert_eq!(answer.status(), status);
    }
}

#[tokio::test]
async fn a_card_is_changed_by_its_agent_or_an_operator() {
    let app = TestApp::start().await;
    let agent = app.insert_named("a").await;
    let other = app.insert_named("b").await;
    let org = app.insert_org_token().await;
    let update = async |token: &str, name: &str| {
        app.post(
            "/registry/update-card",
            &json!({ "workspace_id": agent.id, "agent_card": { "name": name } }),
        )
        .bearer_auth(token)
        .send()
        .await
        .unwrap()
    };
    for (token, name) in [
        (agent.token.as_str(), "own"),
        (org.as_str(), "org"),
        (crate::app::ADMIN, "admin"),
    ] {
        let answer = expect(update(token, name).await, StatusCode::OK).await;
        assert_eq!(answer["status"], "updated");
        assert_eq!(status(&app, &agent).await["agent_card"]["name"], name);
    }
    let error = expect_error(update(&other.token, "x").await, StatusCode::UNAUTHORIZED).await;
    assert_eq!(error, "invalid workspace auth token");
}

#[tokio::test]
async fn workspaces_find_those_they_may_talk_to() {
    let app = TestApp::start().await;
    let boss = app.insert_named("Boss").await;
    let one = app.insert_child("One", boss.id).await;
    let two = app.insert_child("Two", boss.id).await;
    let leaf = app.insert_child("Leaf", one.id).await;
    let other = app.insert_named("Other").await;
    let hers = app.insert_child("Hers", other.id).await;
    let peers = async |agent: &Agent, query: &str| {
        let answer = app
            .get(&format!("/registry/{}/peers{query}", agent.id))
            .bearer_auth(&agent.token)
            .send()
            .await
            .unwrap();
        let list = expect(answer, StatusCode::OK).await;
        list.as_array()
            .unwrap()
            .iter()
            .map(|peer| peer["name"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(peers(&one, "").await, ["Two", "Leaf", "Boss"]);
    assert_eq!(peers(&boss, "").await, ["Other", "One", "Two"]);
    assert_eq!(peers(&boss, "?q=%20oTh%20").await, ["Other"]);

    let discover = async |caller: &Agent, target: &Agent| {
        app.get(&format!("/registry/discover/{}", target.id))
            .bearer_auth(&caller.token)
            .header("X-Workspace-ID", caller.id.to_string())
            .send()
            .await
            .unwrap()
    };
    let answer = discover(&two, &one).await;
    let away = expect(answer, StatusCode::SERVICE_UNAVAILABLE).await;
    assert_eq!(away["error"], "workspace not available");
    assert_eq!(away["status"], "provisioning");
    app.set_status(one.id, WorkspaceStatus::Online).await;
    let found = expect(discover(&two, &one).await, StatusCode::OK).await;
    assert_eq!(
        found,
        json!({ "id": one.id, "name": "One", "url": one.id.internal_url() })
    );
    let error = expect_error(discover(&hers, &leaf).await, StatusCode::FORBIDDEN).await;
    assert_eq!(error, "not authorized to discover this workspace");

    for (caller, target, allowed) in [
        (json!(boss.id), json!(leaf.id), true),
        (json!(leaf.id), json!(boss.id), true),
        (json!(leaf.id), json!(two.id), false),
        (json!(boss.id), json!(other.id), true),
        (json!("nope"), json!(boss.id), false),
        (
            json!(longshore_base::WorkspaceId::random()),
            json!(boss.id),
            false,
        ),
    ] {
        let body = json!({ "caller_id": caller, "target_id": target });
        let answer = app.post("/registry/check-access", &body).send().await;
        let answer = expect(answer.unwrap(), StatusCode::OK).await;
        assert_eq!(answer["allowed"], allowed, "{body}");
    }
}
