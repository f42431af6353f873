//! Asking for a restart: who may have one, what it would apply, and that it is one job however often it is asked for.

use std::sync::Arc;

use longshore_backends::{Backends, Docker, DockerConfig};
use longshore_base::{WorkspaceId, ids};
use longshore_fleet::status::WorkspaceStatus;
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};

use crate::app::{Options, TestApp, expect, expect_error};
use crate::lifecycle::app_with_backend;

async fn restart(app: &TestApp, id: WorkspaceId, query: &str, body: &Value) -> Response {
    let path = format!("/workspaces/{id}/restart{query}");
    let request = app.admin(Method::POST, &path).json(body);
    request.send().await.unwrap()
}

#[tokio::test]
async fn a_restart_is_one_job_that_waits_and_takes_later_requests_over() {
    let app = app_with_backend().await;
    let id = app.insert_named("a").await.id;
    app.set_status(id, WorkspaceStatus::Online).await;
    // The canvas names a type and sends nothing.
    let bare = app
        .admin(Method::POST, &format!("/workspaces/{id}/restart"))
        .header("Content-Type", "application/json");
    let answer = bare.send().await.unwrap();
    let location = answer.headers()["location"].to_str().unwrap().to_owned();
    let first = expect(answer, StatusCode::OK).await;
    let job = first["job_id"].as_str().unwrap().to_owned();
    assert_eq!(location, format!("/jobs/{job}"));
    assert_eq!(
        first,
        json!({
            "status": "provisioning", "config_dir": "existing-volume", "reset_session": false, "job_id": job
        })
    );
    // Until its turn comes it runs on.
    let path = format!("/workspaces/{id}");
    let shown = app.admin(Method::GET, &path).send().await.unwrap();
    assert_eq!(expect(shown, StatusCode::OK).await["status"], "online");

    let again = restart(&app, id, "?reset=true", &json!({ "rebuild_config": true })).await;
    let again = expect(again, StatusCode::OK).await;
    assert_eq!(
        (&again["job_id"], &again["reset_session"]),
        (&json!(job), &json!(true))
    );
    let third = restart(&app, id, "", &json!({ "template": "one", "unknown": 1 })).await;
    assert_eq!(expect(third, StatusCode::OK).await["job_id"], job);
    let shown = app.admin(Method::GET, &location).send().await.unwrap();
    let args = expect(shown, StatusCode::OK).await["args"].clone();
    assert_eq!(
        args,
        json!({
            "workspace_id": id, "source": "user", "template": "one", "apply_template": false, "rebuild_config": true,
            "reset_session": true, "delay_ms": 0
        })
    );
    assert_eq!(app.count("jobs").await, 1);
}

#[tokio::test]
async fn a_repeated_request_gets_the_first_answer() {
    let app = app_with_backend().await;
    let agent = app.insert_named("a").await;
    let send = async || {
        app.request(Method::POST, &format!("/workspaces/{}/restart", agent.id))
            .bearer_auth(&agent.token)
            .header("Idempotency-Key", "\"r\"")
            .send()
            .await
            .unwrap()
    };
    let first = expect(send().await, StatusCode::OK).await;
    let again = send().await;
    assert_eq!(again.headers()["idempotent-replayed"], "true");
    assert_eq!(expect(again, StatusCode::OK).await, first);
}

#[tokio::test]
async fn what_cannot_be_restarted_is_told_why() {
    let app = app_with_backend().await;
    let parent = app.insert_named("parent").await.id;
    let child = app.insert_child("child", parent).await.id;
    let grandchild = app.insert_child("grandchild", child).await.id;
    let refused = async |id, status: StatusCode| {
        expect_error(restart(&app, id, "", &json!({})).await, status).await
    };
    let unknown = refused(WorkspaceId::random(), StatusCode::NOT_FOUND).await;
    assert_eq!(unknown, "workspace not found");
    app.set_status(parent, WorkspaceStatus::Paused).await;
    assert_eq!(
        refused(parent, StatusCode::CONFLICT).await,
        "workspace is paused — resume it first"
    );
    for below in [child, grandchild] {
        assert_eq!(
            refused(below, StatusCode::CONFLICT).await,
            "parent workspace \"parent\" is paused — resume it first"
        );
    }
    app.set_status(parent, WorkspaceStatus::Removed).await;
    assert_eq!(refused(parent, StatusCode::GONE).await, "workspace removed");
    let outside = app
        .create(json!({ "name": "outside", "external": true }))
        .await;
    let outside = outside["id"].as_str().unwrap().parse().unwrap();
    assert_eq!(
        refused(outside, StatusCode::CONFLICT).await,
        "external workspaces are not restarted by the platform"
    );
    let odd = restart(&app, child, "", &json!({ "reset": "yes" })).await;
    assert_eq!(
        expect_error(odd, StatusCode::BAD_REQUEST).await,
        "invalid request body"
    );
    assert_eq!(app.count("jobs").await, 0);
    // Every other status is restarted, asleep ones too.
    for status in WorkspaceStatus::ALL {
        if !matches!(status, WorkspaceStatus::Paused | WorkspaceStatus::Removed) {
            app.set_status(child, status).await;
            expect(restart(&app, child, "", &json!({})).await, StatusCode::OK).await;
        }
    }
}

#[tokio::test]
async fn without_a_backend_nothing_is_restarted() {
    let app = TestApp::start().await;
    let id = app.insert_named("a").await.id;
    let refused = restart(&app, id, "", &json!({})).await;
    let error = expect_error(refused, StatusCode::SERVICE_UNAVAILABLE).await;
    assert_eq!(error, "provisioner not available");
    assert_eq!(app.count("jobs").await, 0);
}

#[tokio::test]
async fn a_queue_that_lets_nobody_in_refuses_restarts() {
    let app = app_with_backend().await;
    let id = app.insert_named("a").await.id;
    let closed = app
        .admin(Method::POST, "/queues/restart/reject")
        .json(&json!({}));
    expect(closed.send().await.unwrap(), StatusCode::OK).await;
    let refused = restart(&app, id, "", &json!({})).await;
    expect_error(refused, StatusCode::SERVICE_UNAVAILABLE).await;
    assert_eq!(app.count("jobs").await, 0);
}

#[tokio::test]
async fn the_answer_names_the_template_that_is_applied() {
    let templates = tempfile::tempdir().unwrap();
    for (directory, config) in [
        ("given", "name: something\n"),
        ("my-agent", "name: other\n"),
        ("by-content", "description: x\nname: \"Lead Agent\"\n"),
        ("ws-0123", "name: hidden\n"),
        ("org-templates/my-agent", "name: my-agent\n"),
        ("claude-code-default", "name: default\n"),
        ("codex", "name: codex\n"),
    ] {
        let directory = templates.path().join(directory);
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("config.yaml"), config).unwrap();
    }
    let docker = Docker::connect(DockerConfig::new(ids::random_uuid())).unwrap();
    let mut options = Options::default();
    options.fleet.configs_dir = Some(templates.path().to_owned());
    options.backends = Backends {
        docker: Some(Arc::new(docker)),
        ..Backends::default()
    };
    let app = TestApp::with(options).await;
    let (none, apply) = (json!({}), json!({ "apply_template": true }));
    let rebuild = json!({ "rebuild_config": true });
    for (name, runtime, body, label) in [
        ("My Agent", "codex", &none, "existing-volume"),
        (
            "My Agent",
            "codex",
            &json!({ "template": "given" }),
            "given",
        ),
        (
            "My Agent",
            "codex",
            &json!({ "template": "../given" }),
            "existing-volume",
        ),
        (
            "My Agent",
            "codex",
            &json!({ "template": "missing", "apply_template": true }),
            "my-agent",
        ),
        ("My Agent", "codex", &apply, "my-agent"),
        ("LEAD AGENT", "codex", &apply, "by-content"),
        ("hidden", "codex", &apply, "codex"),
        ("nameless", "claude-code", &apply, "claude-code-default"),
        ("nameless", "hermes", &apply, "existing-volume"),
        ("My Agent", "codex", &rebuild, "org-templates/my-agent"),
        ("nameless", "codex", &rebuild, "existing-volume"),
    ] {
        let created = app
            .create(json!({ "name": name, "runtime": runtime }))
            .await;
        let id = created["id"].as_str().unwrap().parse().unwrap();
        let answer = expect(restart(&app, id, "", body).await, StatusCode::OK).await;
        assert_eq!(answer["config_dir"], label, "{name} {runtime} {body}");
    }
}
