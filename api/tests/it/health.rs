//! Health, metrics and the description.

use std::sync::Arc;
use std::time::Duration;

use longshore_api::{WatchedEngine, openapi_document};
use longshore_backends::{Backend, Backends, Docker, DockerConfig};
use longshore_base::clock::Stopwatch;
use longshore_base::ids;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::app::{ADMIN, DEADLINE, Options, TestApp, expect, until};
use crate::messages::Engine;

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
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A part of a verbose report.
fn part<'a>(report: &'a Value, name: &str) -> &'a Value {
    let parts = report["parts"].as_array().unwrap();
    parts.iter().find(|part| part["name"] == name).unwrap()
}

/// An app whose engine is this one, which it may use or not.
async fn app_with_engine(backend: Arc<dyn Backend>, address: &str, used: bool) -> TestApp {
    let options = Options {
        backends: Backends {
            docker: used.then(|| backend.clone()),
            ..Backends::default()
        },
        engine: Some(WatchedEngine {
            backend,
            address: address.to_owned(),
        }),
        ..Options::default()
    };
    let app = TestApp::with(options).await;
    app.events_flow().await;
    app
}

fn docker_at(host: &str) -> Arc<dyn Backend> {
    let config = DockerConfig {
        host: Some(host.to_owned()),
        ..DockerConfig::new(ids::random_uuid())
    };
    Arc::new(Docker::connect(config).unwrap())
}

#[tokio::test]
async fn health_says_what_is_well_and_what_is_not() {
    let app = app_with_engine(Arc::new(Engine::default()), "here", true).await;
    for path in ["/health", "/livez"] {
        let answer = app.get(path).send().await.unwrap();
        assert_eq!(
            expect(answer, StatusCode::OK).await,
            json!({ "status": "ok" })
        );
    }
    let report = ready_as(&app, "ready").await;
    assert_eq!(report, json!({ "status": "ready", "degraded": [] }));
    assert_eq!(readyz(&app, "").await.0, StatusCode::OK);
    let (_, report) = readyz(&app, "?verbose").await;
    for name in ["postgres", "redis", "event_tailer", "container_engine"] {
        assert_eq!(part(&report, name)["mode"], "up", "{report}");
        assert_eq!(part(&report, name).get("detail"), None, "{report}");
    }

    app.state.start_draining();
    let (status, report) = readyz(&app, "").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(report["status"], "draining");
}

#[tokio::test]
async fn an_engine_that_does_not_answer_is_named_with_where_it_was_looked_for_and_why() {
    let missing = "unix:///no/such/docker.sock";
    let refusing = "tcp://127.0.0.1:9";
    for (address, used) in [(missing, true), (missing, false), (refusing, true)] {
        let app = app_with_engine(docker_at(address), address, used).await;
        let report = ready_as(&app, "degraded").await;
        assert_eq!(report["degraded"], json!(["container_engine"]));
        assert_eq!(report.get("parts"), None);
        let (status, report) = readyz(&app, "?verbose").await;
        assert_eq!(status, StatusCode::OK);
        let engine = part(&report, "container_engine");
        assert_eq!(engine["mode"], "down");
        let detail = engine["detail"].as_str().unwrap();
        assert!(detail.contains(address), "{detail}");
        assert!(detail.contains("cannot be reached"), "{detail}");
        assert_eq!(
            detail.contains("connection refused"),
            address == refusing,
            "{detail}"
        );
    }
}

#[tokio::test]
async fn of_a_hosted_organisation_the_control_plane_is_told_instead_of_an_engine() {
    let backend: Arc<dyn Backend> = Arc::new(Engine::default());
    for (remote, mode) in [(Some(backend), "up"), (None, "not_configured")] {
        let options = Options {
            backends: Backends {
                remote,
                remote_org: true,
                ..Backends::default()
            },
            ..Options::default()
        };
        let app = TestApp::with(options).await;
        app.events_flow().await;
        let (_, report) = readyz(&app, "?verbose").await;
        assert_eq!(part(&report, "control_plane")["mode"], mode, "{report}");
        let names = report["degraded"].to_string();
        assert_eq!(names.contains("control_plane"), mode != "up", "{report}");
        assert!(!report.to_string().contains("container_engine"), "{report}");
    }
}

#[tokio::test]
async fn an_engine_that_the_process_does_not_use_is_named_with_what_to_do() {
    let app = app_with_engine(Arc::new(Engine::default()), "here", false).await;
    ready_as(&app, "degraded").await;
    let (_, report) = readyz(&app, "?verbose").await;
    let engine = part(&report, "container_engine");
    assert_eq!(engine["mode"], "down");
    let detail = engine["detail"].as_str().unwrap();
    assert!(
        detail.contains("here") && detail.contains("start it again"),
        "{detail}"
    );

    let app = TestApp::start().await;
    app.events_flow().await;
    ready_as(&app, "degraded").await;
    let (status, report) = readyz(&app, "?verbose").await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(report["degraded"], json!(["container_engine"]));
    let engine = part(&report, "container_engine");
    assert_eq!(engine["mode"], "not_configured");
    let detail = engine["detail"].as_str().unwrap();
    assert!(detail.contains("no container engine"), "{detail}");
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
    assert_eq!(
        report["degraded"],
        json!(["redis", "event_listener", "container_engine"])
    );
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
async fn whoever_waits_for_a_turn_is_shown_until_the_wait_is_over() {
    let app = TestApp::start().await;
    let created = app.create(json!({ "name": "a" })).await;
    let tenant = created["id"].as_str().unwrap();
    // Its time has not come.
    app.insert_job(None).await;
    app.database.advance(Duration::from_secs(100)).await;
    let shown = async |address: &str, request: reqwest::RequestBuilder| {
        let text = request.send().await.unwrap().text().await.unwrap();
        let header = "# TYPE longshore_tenant_oldest_wait_seconds gauge";
        assert!(text.lines().any(|line| line == header), "{address}: {text}");
        let of_family = |line: &&str| line.starts_with("longshore_tenant_oldest_wait_seconds{");
        let lines: Vec<_> = text.lines().filter(of_family).map(str::to_owned).collect();
        lines
    };
    for address in [&app.address, &app.metrics_address] {
        let request = reqwest::Client::new().get(format!("{address}/metrics"));
        let lines = shown(address, request.bearer_auth(ADMIN)).await;
        let labels = format!("{{queue=\"provision@none\",tenant=\"{tenant}\"}} ");
        let [line] = lines.as_slice() else {
            panic!("{lines:?}")
        };
        let (_, value) = line.split_once(&labels).unwrap();
        let seconds: f64 = value.parse().unwrap();
        assert!((100.0..200.0).contains(&seconds), "{line}");
    }
    let jobs = app.admin(Method::GET, "/jobs?kind=provision").send().await;
    let jobs = expect(jobs.unwrap(), StatusCode::OK).await;
    let path = format!("/jobs/{}/cancel", jobs["items"][0]["id"].as_str().unwrap());
    let cancelled = app.admin(Method::POST, &path).send().await.unwrap();
    expect(cancelled, StatusCode::OK).await;
    // A look at the ledger is good for a moment.
    let started = Stopwatch::start();
    loop {
        let lines = shown("the API", app.admin(Method::GET, "/metrics")).await;
        if lines.is_empty() {
            break;
        }
        assert!(started.elapsed() < DEADLINE, "{lines:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
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

/// What operations are called by, so that the methods of generated clients read alike.
const VERBS: &str = "get list create update delete set put send open watch stream cancel act register discover check pause \
                     resume restart hibernate reject drain undrain retry discard revoke rotate import abort roll approve \
                     enable disable run expand collapse remove keep export validate";

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
            assert!(VERBS.split(' ').any(|known| known == verb), "{id}");
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
