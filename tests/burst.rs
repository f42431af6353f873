//! Several at the same moment, on an engine that works and on engines that do not.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use longshore_tests::{NewWorker, PATIENCE, Process, TestApp, needs_docker};
use poem::endpoint::make;
use poem::http::StatusCode;
use poem::listener::{Acceptor as _, Listener as _, TcpListener};
use poem::{Request, Response, Server};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

const SEVEN: usize = 7;

async fn create_seven(app: &TestApp) -> Vec<(String, String)> {
    let names: Vec<String> = (1..=SEVEN).map(|number| format!("w{number}")).collect();
    join_all(names.iter().map(|name| app.create(name, json!({})))).await
}

/// Each workspace has exactly one line of a log that says that its provision was entered.
fn assert_entered_once_each(worker: &Process, created: &[(String, String)]) {
    let lines = worker.log_lines_saying("provision entered");
    let named: BTreeSet<&str> = lines
        .iter()
        .map(|line| line.field("workspace.id"))
        .collect();
    let wanted: BTreeSet<&str> = created.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(lines.len(), SEVEN, "{lines:?}");
    assert_eq!(named, wanted);
}

/// All seven failed with this reason: on the row, in the event, in the job.
async fn assert_all_failed(app: &TestApp, created: &[(String, String)], reason: &str) {
    for (id, job) in created {
        let entry = app.until_status(id, "failed", PATIENCE).await;
        assert_eq!(entry["last_sample_error"], reason);
        let job = app.until_job(job, "dead", PATIENCE).await;
        assert_eq!(job["last_error"], reason);
        let events = app.admin().get(&format!("/events/{id}")).await.expect(200);
        let failed: Vec<&Value> = events
            .as_array()
            .unwrap()
            .iter()
            .filter(|event| event["event_type"] == "WORKSPACE_PROVISION_FAILED")
            .collect();
        assert_eq!(failed.len(), 1, "{events}");
        assert_eq!(failed[0]["payload"]["error"], reason);
    }
}

#[tokio::test]
async fn seven_posted_at_the_same_moment_all_come_online() {
    needs_docker!();
    let app = TestApp::start().await;
    let created = create_seven(&app).await;
    for (id, job) in &created {
        app.until_up(id, PATIENCE).await;
        app.until_job(job, "succeeded", PATIENCE).await;
        app.assert_whole(id).await;
    }
    assert_entered_once_each(&app.workers[0], &created);
    assert_eq!(app.engine().containers().await.len(), SEVEN);
}

#[tokio::test]
async fn on_an_engine_that_refuses_all_seven_fail_with_a_reason() {
    let engine = RefusingEngine::start().await;
    let app = TestApp::build()
        .without_docker()
        .setting("LONGSHORE_RUNTIME_IMAGES", "claude-code=some/image:v1")
        .workers([NewWorker::default().on_engine(&engine.url)])
        .start()
        .await;
    let created = create_seven(&app).await;
    assert_all_failed(&app, &created, "workspace start failed").await;
    assert_entered_once_each(&app.workers[0], &created);
    // What the engine said is for operators, in the log.
    let lines = app.workers[0].log_lines_saying("provision failed");
    assert_eq!(lines.len(), SEVEN);
    for line in lines {
        assert!(line.field("detail").contains(REFUSAL), "{line:?}");
    }
}

#[tokio::test]
async fn without_an_image_all_seven_fail_and_leave_nothing() {
    needs_docker!();
    // Nobody listens there, so no pull can succeed.
    let image = "claude-code=127.0.0.1:1/no/such-image:v1";
    let app = TestApp::build()
        .setting("LONGSHORE_RUNTIME_IMAGES", image)
        .start()
        .await;
    let created = create_seven(&app).await;
    assert_all_failed(&app, &created, "workspace start failed").await;
    assert_entered_once_each(&app.workers[0], &created);
    assert!(app.engine().containers().await.is_empty());
    assert!(app.engine().volume_names().await.is_empty());
}

#[tokio::test]
async fn without_an_engine_all_seven_fail_and_say_so() {
    let app = TestApp::build()
        .without_docker()
        .workers([NewWorker::default()])
        .start()
        .await;
    let created = create_seven(&app).await;
    let reason = "workspace start failed: no Docker daemon is available";
    assert_all_failed(&app, &created, reason).await;
    assert_entered_once_each(&app.workers[0], &created);
}

#[tokio::test]
async fn without_any_backend_all_seven_fail_and_say_so() {
    let app = TestApp::build()
        .without_docker()
        .workers([NewWorker::default().setting("LONGSHORE_ORG_ID", "tenant-1")])
        .start()
        .await;
    let created = create_seven(&app).await;
    let reason = "Docker not available — workspace containers require a Docker daemon or external provisioning.";
    assert_all_failed(&app, &created, reason).await;
    assert_entered_once_each(&app.workers[0], &created);
}

const REFUSAL: &str = "no space left on device";

/// A server that speaks as much of the engine's API as a start needs, up to the container, which it refuses.
struct RefusingEngine {
    url: String,
    task: JoinHandle<()>,
}

impl RefusingEngine {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0");
        let acceptor = listener.into_acceptor().await.unwrap();
        let address = acceptor.local_addr()[0].as_socket_addr().copied().unwrap();
        let url = format!("tcp://{address}");
        let task = tokio::spawn(async move {
            Server::new_with_acceptor(acceptor)
                .run(make(refuse_containers))
                .await
                .unwrap();
        });
        Self { url, task }
    }
}

impl Drop for RefusingEngine {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn refuse_containers(mut request: Request) -> poem::Result<Response> {
    let path = request.uri().path().to_owned();
    let path = path.trim_start_matches("/v1.41");
    let body = request.take_body().into_bytes().await?;
    let asked: Value = serde_json::from_slice(&body).unwrap_or_default();
    let (status, answer) = match path {
        "/version" => (200, json!({ "Version": "20.10", "ApiVersion": "1.41" })),
        "/info" => (200, json!({ "ID": "REFUSING", "NCPU": 2 })),
        "/volumes/create" => (
            201,
            json!({
                "Name": asked["Name"], "Labels": asked["Labels"], "Driver": "local",
                "Mountpoint": "/nowhere", "Scope": "local", "Options": null,
            }),
        ),
        "/containers/create" => (500, json!({ "message": REFUSAL })),
        _ if path.starts_with("/images/") || path.starts_with("/networks/") => {
            (200, json!({ "Id": "sha256:0" }))
        }
        _ => (404, json!({ "message": "no such container" })),
    };
    let status = StatusCode::from_u16(status).unwrap();
    Ok(Response::builder()
        .status(status)
        .content_type("application/json")
        .body(answer.to_string()))
}
