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

#[tokio::test]
async fn only_a_workspace_that_is_up_and_idle_is_hibernated_unless_forced() {
    let app = app_with_backend().await;
    let agent = app.insert_named("a").await;
    let hibernate = async |query: &str| {
        let path = format!("/workspaces/{}/hibernate{query}", agent.id);
        app.admin(Method::POST, &path).send().await.unwrap()
    };
    let error = expect_error(hibernate("").await, StatusCode::NOT_FOUND).await;
    assert_eq!(
        error,
        "workspace not found or not in a hibernatable state (must be online or degraded)"
    );
    app.set_status(agent.id, WorkspaceStatus::Online).await;
    let beat = json!({ "workspace_id": agent.id, "active_tasks": 2 });
    let beat = app
        .post("/registry/heartbeat", &beat)
        .bearer_auth(&agent.token);
    expect(beat.send().await.unwrap(), StatusCode::OK).await;
    let busy = expect(hibernate("?force=false").await, StatusCode::CONFLICT).await;
    assert_eq!(
        busy["error"],
        "workspace has active tasks; use ?force=true to terminate them"
    );
    assert_eq!(busy["active_tasks"], 2);
    assert_eq!(status_of(&app, agent.id).await, "online");

    // Nobody stops it here.
    let answer = hibernate("?force=true").await;
    let location = answer.headers()["location"].to_str().unwrap().to_owned();
    let claimed = expect(answer, StatusCode::ACCEPTED).await;
    assert_eq!(claimed["status"], "hibernating");
    assert_eq!(
        location,
        format!("/jobs/{}", claimed["job_id"].as_str().unwrap())
    );
    assert_eq!(status_of(&app, agent.id).await, "hibernating");
    expect_error(hibernate("?force=true").await, StatusCode::NOT_FOUND).await;
    assert_eq!(app.count("jobs WHERE kind = 'stop'").await, 1);
}

#[tokio::test]
async fn a_repeated_hibernation_waits_for_the_same_job() {
    let app = app_with_backend().await;
    let agent = app.insert_named("a").await;
    app.set_status(agent.id, WorkspaceStatus::Online).await;
    let hibernate = async || {
        let path = format!("/workspaces/{}/hibernate", agent.id);
        let request = app.admin(Method::POST, &path);
        let request = request.header("Idempotency-Key", "\"h\"");
        request.send().await.unwrap()
    };
    let first = expect(hibernate().await, StatusCode::ACCEPTED).await;
    let again = hibernate().await;
    assert_eq!(again.headers()["idempotent-replayed"], "true");
    assert_eq!(expect(again, StatusCode::ACCEPTED).await, first);
    // As if a worker had stopped it meanwhile.
    sqlx::query(
        "WITH ended AS (DELETE FROM jobs WHERE kind = 'stop' RETURNING *)
         INSERT INTO job_history (id, outcome, finished_at, seq, kind, queue, tenant, workspace_id, keys, args, args_version,
             priority, dispatch, attempt, crashes, snoozes, max_attempts, run_at, deadline_at, revision, errors,
             created_by, created_at)
         SELECT id, 'succeeded'::job_outcome, longshore_now(), seq, kind, queue, tenant, workspace_id, keys, args, args_version,
             priority, dispatch, attempt, crashes, snoozes, max_attempts, run_at, deadline_at, revision, errors,
             created_by, created_at FROM ended",
    )
    .execute(app.database.pool())
    .await
    .unwrap();
    let done = hibernate().await;
    assert_eq!(done.headers()["idempotent-replayed"], "true");
    let done = expect(done, StatusCode::OK).await;
    assert_eq!(
        done,
        json!({ "status": "hibernated", "job_id": first["job_id"] })
    );
}

#[tokio::test]
async fn a_message_wakes_a_hibernated_workspace_once() {
    let app = app_with_backend().await;
    let agent = app.insert_named("a").await;
    app.set_status(agent.id, WorkspaceStatus::Hibernated).await;
    let path = format!("/workspaces/{}/a2a", agent.id);
    let message = json!({ "method": "message/send", "params": {} });
    let answer = app
        .admin(Method::POST, &path)
        .json(&message)
        .send()
        .await
        .unwrap();
    assert_eq!(answer.headers()["retry-after"], "15");
    let waking = expect(answer, StatusCode::SERVICE_UNAVAILABLE).await;
    assert_eq!(
        (&waking["waking"], &waking["retry_after"], &waking["error"]),
        (
            &json!(true),
            &json!(15),
            &json!("workspace is waking from hibernation — retry in ~15 seconds")
        )
    );
    assert_eq!(status_of(&app, agent.id).await, "provisioning");
    let again = app.admin(Method::POST, &path).json(&message).send().await;
    let again = expect(again.unwrap(), StatusCode::SERVICE_UNAVAILABLE).await;
    assert_eq!(again["status"], "provisioning");
    let woken = "jobs WHERE kind = 'provision' AND args->>'cause' = 'wake'";
    assert_eq!(app.count(woken).await, 1);
}

#[tokio::test]
async fn without_a_backend_a_hibernated_workspace_sleeps_on() {
    let app = TestApp::start().await;
    let agent = app.insert_named("a").await;
    app.set_status(agent.id, WorkspaceStatus::Hibernated).await;
    let path = format!("/workspaces/{}/a2a", agent.id);
    let message = json!({ "method": "message/send", "params": {} });
    let answer = app.admin(Method::POST, &path).json(&message).send().await;
    let refused = expect(answer.unwrap(), StatusCode::SERVICE_UNAVAILABLE).await;
    assert_eq!(refused["error"], "workspace has no URL");
    assert_eq!(status_of(&app, agent.id).await, "hibernated");
}
