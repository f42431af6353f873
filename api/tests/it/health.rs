//! Health, metrics and the description.

use longshore_api::openapi_document;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::app::{DEADLINE, Options, TestApp, expect, until};
use longshore_base::clock::Stopwatch;

async fn readyz(app: &TestApp, query: &str) -> (StatusCode, Value) {
    let answer = app.get(&format!("/readyz{query}")).send().await.unwrap();
    let status = answer.status();
    (status, expect(answer, status).await)
}

async fn ready_as(app: &TestApp, wanted: &str) -> Value {
    let started = Stopwatch::start();
    loop {
        let (_, report) = readyz(app, "").await;
        if report["status"] == wanted {
            return report;
        }
        assert!(started.elapsed() < DEADLINE, "{report}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn health_says_what_is_well_and_what_is_not() {
    let app = TestApp::start().await;
    for path in ["/health", "/livez"] {
        let answer = app.get(path).send().await.unwrap();
        assert_eq!(
            expect(answer, StatusCode::OK).await,
            json!({ "status": "ok" })
        );
    }
    app.events_flow().await;
    let report = ready_as(&app, "ready").await;
    assert_eq!(report, json!({ "status": "ready", "degraded": [] }));
    assert_eq!(readyz(&app, "").await.0, StatusCode::OK);
    let (_, report) = readyz(&app, "?verbose").await;
    let parts = report["parts"].as_array().unwrap();
    let mode = |name: &str| &parts.iter().find(|part| part["name"] == name).unwrap()["mode"];
    assert_eq!(mode("postgres"), "up");
    assert_eq!(mode("redis"), "up");
    assert_eq!(mode("event_tailer"), "up");
    assert_eq!(mode("container_engine"), "not_configured");

    app.state.start_draining();
    let (status, report) = readyz(&app, "").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(report["status"], "draining");
}

#[tokio::test]
async fn without_redis_it_is_degraded_and_without_postgres_unready() {
    let options = Options {
        redis_url: Some("redis://127.0.0.1:9".to_owned()),
        ..Options::default()
    };
    let app = TestApp::with(options).await;
    until("the log to be followed", || {
        app.hub.health().tail_age.is_some()
    })
    .await;
    let report = ready_as(&app, "degraded").await;
    assert_eq!(report["degraded"], json!(["redis", "event_listener"]));
    let (status, _) = readyz(&app, "").await;
    assert_eq!(status, StatusCode::OK);

    app.database.pool().close().await;
    ready_as(&app, "unready").await;
    let (status, _) = readyz(&app, "").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(
        app.get("/livez").send().await.unwrap().status(),
        StatusCode::OK
    );
    // Nobody gets in on doubt, and the canvas learns what is wrong.
    for request in [
        app.admin(Method::GET, "/workspaces"),
        app.get("/workspaces").bearer_auth("some-token"),
        app.post(
            "/registry/heartbeat",
            &json!({ "workspace_id": longshore_base::WorkspaceId::random() }),
        ),
    ] {
        let answer = request.send().await.unwrap();
        let body = expect(answer, StatusCode::SERVICE_UNAVAILABLE).await;
        assert_eq!(body["code"], "platform_unavailable");
        assert_eq!(
            body["error"],
            "platform datastore unavailable — retry shortly"
        );
    }
}

#[tokio::test]
async fn metrics_are_counted_by_route_and_shown_apart() {
    let app = TestApp::start().await;
    let agent = app.insert_named("a").await;
    for path in [
        format!("/workspaces/{}", agent.id),
        "/nowhere/at/all".to_owned(),
    ] {
        app.admin(Method::GET, &path).send().await.unwrap();
    }
    let shown = app.admin(Method::GET, "/metrics").send().await.unwrap();
    assert_eq!(
        shown.headers()["content-type"],
        "text/plain; version=0.0.4; charset=utf-8"
    );
    let text = shown.text().await.unwrap();
    for line in [
        "# TYPE longshore_http_requests_total counter",
        r#"longshore_http_requests_total{method="GET",path="/workspaces/{id}",status="200"} 1"#,
        r#"longshore_http_requests_total{method="GET",path="unmatched",status="404"} 1"#,
        "# TYPE longshore_http_request_duration_seconds_total counter",
        "longshore_websocket_connections_active 0",
        "# TYPE longshore_process_resident_memory_bytes gauge",
        "# TYPE longshore_process_tasks gauge",
    ] {
        assert!(text.lines().any(|have| have == line), "{line} in\n{text}");
    }
    let own = reqwest::get(format!("{}/metrics", app.metrics_address))
        .await
        .unwrap();
    assert_eq!(own.status(), StatusCode::OK);
    assert!(
        own.text()
            .await
            .unwrap()
            .contains("longshore_http_requests_total")
    );
    let other = reqwest::get(format!("{}/workspaces", app.metrics_address))
        .await
        .unwrap();
    assert_eq!(other.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn the_api_describes_itself() {
    let app = TestApp::start().await;
    let answer = app.get("/openapi.json").send().await.unwrap();
    assert_eq!(answer.headers()["content-type"], "application/json");
    assert_eq!(answer.text().await.unwrap(), openapi_document());
    let page = app.get("/docs").send().await.unwrap();
    let policy = page.headers()["content-security-policy"].to_str().unwrap();
    assert!(policy.contains("script-src 'unsafe-inline'"), "{policy}");
    let page = page.text().await.unwrap();
    assert!(page.starts_with("<!DOCTYPE html>") || page.contains("<!DOCTYPE html>"));
    assert!(page.contains("SwaggerUIBundle") && page.contains("create_workspace"));
    // Nothing is fetched from elsewhere.
    assert!(!page.contains("<script src") && !page.contains("<link"));
}

#[test]
fn the_description_is_made_without_a_service_and_made_for_generators() {
    let text = openapi_document();
    assert_eq!(text, openapi_document());
    assert!(
        !text.contains("charset=utf-8\": {"),
        "a media type with a parameter"
    );
    let document: Value = serde_json::from_str(&text).unwrap();
    let mut ids = Vec::new();
    for operations in document["paths"].as_object().unwrap().values() {
        for operation in operations.as_object().unwrap().values() {
            let id = operation["operationId"].as_str().unwrap().to_owned();
            let verb = id.split('_').next().unwrap();
            assert!(
                [
                    "get", "list", "create", "update", "delete", "send", "open", "watch", "stream",
                    "cancel", "register", "discover", "check"
                ]
                .contains(&verb),
                "{id}"
            );
            let responses = operation["responses"].as_object().unwrap();
            let declared: Vec<_> = responses.keys().collect();
            assert!(!declared.is_empty(), "{id}");
            for (status, response) in responses {
                let bodyless = status == "101";
                assert!(bodyless || response["content"].is_object(), "{id} {status}");
            }
            ids.push(id);
        }
    }
    let count = ids.len();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), count, "operation ids repeat");
}
