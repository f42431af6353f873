//! Stopping workspaces for a while, bringing them up again, and what their agents are told.

use std::sync::Arc;

use longshore_backends::{Backends, Docker, DockerConfig};
use longshore_base::{WorkspaceId, ids};
use longshore_fleet::status::WorkspaceStatus;
use reqwest::{Method, Response, StatusCode};
use serde_json::json;

use crate::app::{Agent, Options, TestApp, expect, expect_error};
use crate::workspaces::write_engine_directly;

/// With an engine that is configured and never asked: nobody runs jobs here.
pub(crate) async fn app_with_backend() -> TestApp {
    let docker = Docker::connect(DockerConfig::new(ids::random_uuid())).unwrap();
    let backends = Backends {
        docker: Some(Arc::new(docker)),
        ..Backends::default()
    };
    TestApp::with(Options {
        backends,
        ..Options::default()
    })
    .await
}

async fn act(app: &TestApp, id: WorkspaceId, action: &str) -> Response {
    let path = format!("/workspaces/{id}/{action}");
    app.admin(Method::POST, &path).send().await.unwrap()
}

async fn status_of(app: &TestApp, id: WorkspaceId) -> String {
    let path = format!("/workspaces/{id}?include_removed=true");
    let answer = app.admin(Method::GET, &path).send().await.unwrap();
    let shown = expect(answer, StatusCode::OK).await;
    shown["status"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_pause_stops_the_subtree_by_jobs_and_a_resume_brings_it_up_by_jobs() {
    let app = app_with_backend().await;
    let root = app.insert_named("root").await;
    let child = app.insert_child("child", root.id).await;
    for agent in [&root, &child] {
        write_engine_directly(&app, agent.id).await;
        app.set_status(agent.id, WorkspaceStatus::Online).await;
    }
    let answer = act(&app, root.id, "pause").await;
    let location = answer.headers()["location"].to_str().unwrap().to_owned();
    let paused = expect(answer, StatusCode::OK).await;
    assert_eq!(
        (&paused["status"], &paused["paused_count"]),
        (&json!("paused"), &json!(2))
    );
    let job = paused["job_id"].as_str().unwrap();
    assert_eq!(location, format!("/jobs/{job}"));
    let job = app.admin(Method::GET, &location).send().await.unwrap();
    let job = expect(job, StatusCode::OK).await;
    assert_eq!(
        (&job["kind"], &job["workspace_id"]),
        (&json!("stop"), &json!(root.id))
    );
    assert_eq!(job["args"]["remove_volumes"], false);
    assert_eq!(app.count("jobs WHERE kind = 'stop'").await, 2);
    assert_eq!(status_of(&app, child.id).await, "paused");

    let error = expect_error(act(&app, root.id, "pause").await, StatusCode::NOT_FOUND).await;
    assert_eq!(error, "workspace not found or already paused");
    let error = expect_error(act(&app, child.id, "resume").await, StatusCode::CONFLICT).await;
    assert_eq!(
        error,
        "parent workspace \"root\" is paused — resume it first"
    );

    let resumed = expect(act(&app, root.id, "resume").await, StatusCode::OK).await;
    assert_eq!(
        (&resumed["status"], &resumed["resumed_count"]),
        (&json!("provisioning"), &json!(2))
    );
    assert!(resumed["job_id"].is_string());
    assert_eq!(
        app.count("jobs WHERE kind = 'provision' AND args->>'cause' = 'resume'")
            .await,
        2
    );
    assert_eq!(status_of(&app, child.id).await, "provisioning");
    let error = expect_error(act(&app, root.id, "resume").await, StatusCode::NOT_FOUND).await;
    assert_eq!(error, "workspace not found or not paused");

    // Paused again before anything ran: what was to bring it up is over, the stop that waited is replaced.
    expect(act(&app, root.id, "pause").await, StatusCode::OK).await;
    assert_eq!(app.count("jobs WHERE kind = 'provision'").await, 0);
    assert_eq!(app.count("jobs WHERE kind = 'stop'").await, 2);
    let unknown = WorkspaceId::random();
    for action in ["pause", "resume"] {
        expect_error(act(&app, unknown, action).await, StatusCode::NOT_FOUND).await;
    }
}

#[tokio::test]
async fn a_workspace_may_pause_and_resume_itself_and_a_repetition_does_it_once() {
    let app = app_with_backend().await;
    let agent = app.insert_named("a").await;
    let pause = async || {
        app.request(Method::POST, &format!("/workspaces/{}/pause", agent.id))
            .bearer_auth(&agent.token)
            .header("Idempotency-Key", "\"p\"")
            .send()
            .await
            .unwrap()
    };
    let first = expect(pause().await, StatusCode::OK).await;
    // It never ran, so there is nothing to stop.
    assert_eq!(first, json!({ "status": "paused", "paused_count": 1 }));
    let again = pause().await;
    assert_eq!(again.headers()["idempotent-replayed"], "true");
    assert_eq!(expect(again, StatusCode::OK).await, first);
    let resumed = app
        .request(Method::POST, &format!("/workspaces/{}/resume", agent.id))
        .bearer_auth(&agent.token)
        .send()
        .await
        .unwrap();
    expect(resumed, StatusCode::OK).await;
}

#[tokio::test]
async fn without_a_backend_only_external_workspaces_are_resumed() {
    let app = TestApp::start().await;
    let managed = app.insert_named("managed").await;
    app.set_status(managed.id, WorkspaceStatus::Paused).await;
    let error = expect_error(
        act(&app, managed.id, "resume").await,
        StatusCode::SERVICE_UNAVAILABLE,
    )
    .await;
    assert_eq!(error, "provisioner not available");
    assert_eq!(status_of(&app, managed.id).await, "paused");

    let outside = app
        .create(json!({ "name": "outside", "external": true }))
        .await;
    let id: WorkspaceId = outside["id"].as_str().unwrap().parse().unwrap();
    expect(act(&app, id, "pause").await, StatusCode::OK).await;
    let resumed = expect(act(&app, id, "resume").await, StatusCode::OK).await;
    assert_eq!(
        resumed,
        json!({ "status": "provisioning", "resumed_count": 1 })
    );
    assert_eq!(status_of(&app, id).await, "awaiting_agent");
}

#[tokio::test]
async fn a_queue_that_lets_nobody_in_refuses_pauses_and_resumes() {
    let app = app_with_backend().await;
    let agent = app.insert_named("a").await;
    write_engine_directly(&app, agent.id).await;
    for queue in ["stop", "provision"] {
        let path = format!("/queues/{queue}/reject");
        let closed = app.admin(Method::POST, &path).json(&json!({}));
        expect(closed.send().await.unwrap(), StatusCode::OK).await;
    }
    let refused = act(&app, agent.id, "pause").await;
    expect_error(refused, StatusCode::SERVICE_UNAVAILABLE).await;
    assert_eq!(status_of(&app, agent.id).await, "provisioning");
    app.set_status(agent.id, WorkspaceStatus::Paused).await;
    let refused = act(&app, agent.id, "resume").await;
    expect_error(refused, StatusCode::SERVICE_UNAVAILABLE).await;
    assert_eq!(status_of(&app, agent.id).await, "paused");
}

#[tokio::test]
async fn an_agent_hears_of_a_pause_and_of_its_end() {
    let app = TestApp::start().await;
    let agent = app.insert_named("a").await;
    let other = app.insert_named("other").await;
    let state = async |agent: &Agent| {
        app.get(&format!("/workspaces/{}/state", agent.id))
            .bearer_auth(&agent.token)
            .send()
            .await
            .unwrap()
    };
    for (status, paused) in [
        (WorkspaceStatus::Online, false),
        (WorkspaceStatus::Paused, true),
    ] {
        app.set_status(agent.id, status).await;
        assert_eq!(
            expect(state(&agent).await, StatusCode::OK).await,
            json!({
                "workspace_id": agent.id, "status": status.as_str(), "paused": paused, "deleted": false
            })
        );
    }
    let path = format!("/workspaces/{}", agent.id);
    let deleted = app.admin(Method::DELETE, &path).send().await.unwrap();
    expect(deleted, StatusCode::OK).await;
    // The token is revoked, and still good for this.
    let gone = expect(state(&agent).await, StatusCode::NOT_FOUND).await;
    assert_eq!(gone["workspace_id"], json!(agent.id));
    assert_eq!(
        (&gone["status"], &gone["deleted"]),
        (&json!("removed"), &json!(true))
    );
    let thief = Agent {
        id: other.id,
        token: agent.token.clone(),
    };
    expect_error(state(&thief).await, StatusCode::UNAUTHORIZED).await;
    let unknown = format!("/workspaces/{}/state", WorkspaceId::random());
    let answer = app.admin(Method::GET, &unknown).send().await.unwrap();
    let never = expect(answer, StatusCode::NOT_FOUND).await;
    assert_eq!(never["deleted"], true);
}
