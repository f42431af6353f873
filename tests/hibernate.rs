//! Hibernation and waking, with real containers and on instances.

use std::time::Duration;

use longshore_tests::{Builder, NewWorker, PATIENCE, TestApp, wait_until};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

on_both_backends! {
    a_hibernated_workspace_wakes_on_a_message,
    a_busy_workspace_is_hibernated_only_by_force,
    a_workspace_that_is_idle_for_its_minutes_is_sent_to_sleep,
    a_claim_whose_stop_was_lost_is_stopped_after_all,
}

fn message() -> Value {
    json!({
        "method": "message/send",
        "params": { "message": { "role": "user", "parts": [{ "kind": "text", "text": "awake?" }] } }
    })
}

/// Replaces the worker by another one, whose sweeps begin at once.
async fn next_worker(app: &mut TestApp) {
    app.workers[0].signal(Signal::SIGTERM);
    let status = app.workers[0].ended(PATIENCE).await;
    assert!(status.success(), "{status}");
    app.workers[0] = app.start_worker(NewWorker::default()).await;
}

async fn a_hibernated_workspace_wakes_on_a_message(place: Builder) {
    let app = place.start().await;
    let (id, _) = app.create("sleepy", json!({})).await;
    app.until_up(&id, PATIENCE).await;
    let volumes = app.engine().volume_names().await;
    let path = format!("/workspaces/{id}/hibernate");
    let hibernated = app.admin().post(&path, &Value::Null).await.expect(200);
    assert_eq!(hibernated["status"], "hibernated");
    assert!(app.remains(&id).await.is_empty());
    assert_eq!(app.engine().volume_names().await, volumes);
    let entry = app.entry(&id).await;
    assert_eq!(
        (&entry["status"], &entry["url"]),
        (&json!("hibernated"), &json!(""))
    );
    assert_eq!(
        app.event_names(&id).await.last().unwrap(),
        "WORKSPACE_HIBERNATED"
    );

    let path = format!("/workspaces/{id}/a2a");
    let waking = app.admin().post(&path, &message()).await.expect(503);
    assert_eq!(
        (&waking["waking"], &waking["retry_after"]),
        (&json!(true), &json!(15)),
        "{waking}"
    );
    app.until_up(&id, PATIENCE).await;
    app.assert_whole(&id).await;
    assert!(app.say(&id, "awake?").await.contains("awake?"));
    assert_eq!(app.engine().volume_names().await, volumes);
}

async fn a_busy_workspace_is_hibernated_only_by_force(place: Builder) {
    let app = place.start().await;
    let quiet = json!({ "secrets": { "AGENT_HEARTBEAT_SECONDS": "3600" } });
    let (id, _) = app.create("busy", quiet).await;
    app.until_up(&id, PATIENCE).await;
    let agent = app.agent(&id).await;
    let beat = json!({ "workspace_id": id, "active_tasks": 1 });
    agent.post("/registry/heartbeat", &beat).await.expect(200);
    let refused = app.command(&["hibernate", "busy"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && said.contains("active tasks"),
        "{said}"
    );
    assert_eq!(app.entry(&id).await["status"], "online");
    let forced = app.command(&["hibernate", "busy", "--force"]);
    let said = String::from_utf8_lossy(&forced.stdout).into_owned();
    assert!(
        forced.status.success() && said.contains("hibernated"),
        "{said}"
    );
    assert!(app.remains(&id).await.is_empty());
}

async fn a_workspace_that_is_idle_for_its_minutes_is_sent_to_sleep(place: Builder) {
    let mut app = place.start().await;
    // Their beats are this test's.
    let quiet = json!({ "secrets": { "AGENT_HEARTBEAT_SECONDS": "3600" } });
    let (idle, _) = app.create("idle", quiet.clone()).await;
    let (busy, _) = app.create("busy", quiet).await;
    for (id, tasks) in [(&idle, 0), (&busy, 1)] {
        app.until_up(id, PATIENCE).await;
        let path = format!("/workspaces/{id}");
        let minutes = json!({ "hibernation_idle_minutes": 1 });
        app.admin().patch(&path, &minutes).await.expect(200);
        let agent = app.agent(id).await;
        let beat = json!({ "workspace_id": id, "active_tasks": tasks });
        agent.post("/registry/heartbeat", &beat).await.expect(200);
    }
    app.advance(Duration::from_secs(61)).await;
    next_worker(&mut app).await;
    app.until_status(&idle, "hibernated", PATIENCE).await;
    assert!(app.remains(&idle).await.is_empty());
    assert_eq!(app.entry(&busy).await["status"], "online");
}

async fn a_claim_whose_stop_was_lost_is_stopped_after_all(place: Builder) {
    let mut app = place.start().await;
    let (id, _) = app.create("stuck", json!({})).await;
    app.until_up(&id, PATIENCE).await;
    let hold = json!({ "scope": "kind", "value": "stop", "mode": "pause" });
    let hold = app.admin().post("/holds", &hold).await.expect(201);
    let path = format!("/workspaces/{id}/hibernate");
    let claimed = app.admin().post(&path, &Value::Null).await.expect(202);
    assert_eq!(claimed["status"], "hibernating");
    let job = claimed["job_id"].as_str().unwrap();
    let cancel = format!("/jobs/{job}/cancel");
    app.admin().post(&cancel, &json!({})).await.expect(200);
    let hold = format!("/holds/{}", hold["id"].as_str().unwrap());
    app.admin().delete(&hold).await.expect(200);

    app.advance(Duration::from_secs(301)).await;
    next_worker(&mut app).await;
    app.until_status(&id, "hibernated", PATIENCE).await;
    wait_until("what ran to go", PATIENCE, || async {
        let remains = app.remains(&id).await;
        if remains.is_empty() {
            Ok(())
        } else {
            Err(format!("{remains:?}"))
        }
    })
    .await;
}
