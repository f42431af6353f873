//! What agents do, and what their workspaces' status makes of it.

use std::time::Duration;

use longshore_tests::{NewWorker, PATIENCE, TestApp, needs_docker, wait_until};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// Sweeps come every 15 s, give or take.
const SWEPT: Duration = Duration::from_secs(45);

/// A workspace whose agent misbehaves as told.
fn switches(switches: Value) -> Value {
    json!({ "secrets": switches })
}

#[tokio::test]
async fn an_agent_that_never_registers_has_failed_after_its_time() {
    needs_docker!();
    let mut app = TestApp::start().await;
    let silent = switches(json!({ "AGENT_NEVER_REGISTER": "1" }));
    let (id, job) = app.create("silent", silent).await;
    app.until_job(&job, "succeeded", PATIENCE).await;
    assert_eq!(app.entry(&id).await["status"], "provisioning");
    app.advance(Duration::from_secs(500)).await;
    // A worker that starts sweeps at once; the next sweep of this one may be half a minute away.
    next_worker(&mut app).await;
    wait_until("a sweep", PATIENCE, || has_swept(&app)).await;
    assert_eq!(app.entry(&id).await["status"], "provisioning");

    app.advance(Duration::from_secs(101)).await;
    next_worker(&mut app).await;
    let entry = app.until_status(&id, "failed", PATIENCE).await;
    let reason = entry["last_sample_error"].as_str().unwrap();
    assert!(!reason.is_empty(), "{entry}");
    let names = app.event_names(&id).await;
    assert_eq!(
        names,
        ["WORKSPACE_PROVISIONING", "WORKSPACE_PROVISION_FAILED"]
    );
}

async fn has_swept(app: &TestApp) -> Result<(), String> {
    let sweep: Option<String> = sqlx::query_scalar(
        "SELECT last_pass_at::text FROM reconcilers
         WHERE name = 'provision-timeout' AND last_pass_at > longshore_now() - interval '5 s'",
    )
    .fetch_optional(app.pool())
    .await
    .unwrap();
    sweep.map(drop).ok_or_else(|| "none lately".to_owned())
}

/// Replaces the worker by another one, in the orderly way.
async fn next_worker(app: &mut TestApp) {
    app.workers[0].signal(Signal::SIGTERM);
    let status = app.workers[0].ended(PATIENCE).await;
    assert!(status.success(), "{status}");
    app.workers[0] = app.start_worker(NewWorker::default()).await;
}

#[tokio::test]
async fn an_agent_whose_calls_fail_is_degraded() {
    needs_docker!();
    let app = TestApp::start().await;
    let failing = switches(json!({ "AGENT_ERROR_RATE": "0.7", "AGENT_HEARTBEAT_SECONDS": "0.2" }));
    let wedged =
        switches(json!({ "AGENT_RUNTIME_STATE": "wedged", "AGENT_HEARTBEAT_SECONDS": "0.2" }));
    let (failing, _) = app.create("failing", failing).await;
    let (wedged, _) = app.create("wedged", wedged).await;
    let entry = app.until_status(&failing, "degraded", PATIENCE).await;
    assert!((entry["last_error_rate"].as_f64().unwrap() - 0.7).abs() < 1e-9);
    assert_eq!(entry["last_sample_error"], "set by AGENT_ERROR_RATE");
    app.until_status(&wedged, "degraded", PATIENCE).await;
    for id in [&failing, &wedged] {
        let names = app.event_names(id).await;
        assert_eq!(names.last().unwrap(), "WORKSPACE_DEGRADED");
        // Degraded is not away: messages are passed on.
        assert!(app.say(id, "well?").await.contains("well?"));
    }
}

#[tokio::test]
async fn an_agent_recovers_only_when_few_calls_fail() {
    needs_docker!();
    let app = TestApp::start().await;
    // The agent itself is quiet; its beats are this test's.
    let quiet = switches(json!({ "AGENT_HEARTBEAT_SECONDS": "3600" }));
    let (id, job) = app.create("patient", quiet).await;
    app.until_job(&job, "succeeded", PATIENCE).await;
    app.until_up(&id, PATIENCE).await;
    let agent = app.agent(&id).await;
    for (rate, state, status) in [
        (0.49, "", "online"),
        (0.5, "", "degraded"),
        (0.1, "", "degraded"),
        (0.05, "wedged", "degraded"),
        (0.05, "", "online"),
        (0.0, "wedged", "degraded"),
        (0.0, "", "online"),
    ] {
        let beat = json!({ "workspace_id": id, "error_rate": rate, "runtime_state": state });
        agent.post("/registry/heartbeat", &beat).await.expect(200);
        assert_eq!(app.entry(&id).await["status"], status, "{rate} {state}");
    }
    let names = app.event_names(&id).await;
    let changes = ["WORKSPACE_DEGRADED", "WORKSPACE_ONLINE"];
    assert_eq!(names[1], "WORKSPACE_ONLINE");
    assert_eq!(names[2..], [changes, changes].concat());
}

#[tokio::test]
async fn an_agent_that_stops_beating_goes_offline_and_comes_back_with_a_beat() {
    needs_docker!();
    let app = TestApp::build()
        .setting("LONGSHORE_LIVENESS_TTL_SECONDS", "2")
        .setting("AUTO_RESTART_MAX", "0")
        .start()
        .await;
    let fading = switches(json!({
        "AGENT_STOP_BEATING_AFTER_SECONDS": "1", "AGENT_HEARTBEAT_SECONDS": "0.2"
    }));
    let (id, _) = app.create("fading", fading).await;
    app.until_up(&id, PATIENCE).await;
    app.until_status(&id, "offline", SWEPT).await;
    assert_eq!(
        app.event_names(&id).await.last().unwrap(),
        "WORKSPACE_OFFLINE"
    );
    let agent = app.agent(&id).await;
    let beat = json!({ "workspace_id": id });
    agent.post("/registry/heartbeat", &beat).await.expect(200);
    assert_eq!(app.entry(&id).await["status"], "online");
    assert_eq!(
        app.event_names(&id).await.last().unwrap(),
        "WORKSPACE_ONLINE"
    );
}

#[tokio::test]
async fn an_agent_that_crashes_is_started_again_by_the_engine() {
    needs_docker!();
    let app = TestApp::start().await;
    let crashing = switches(json!({ "AGENT_CRASH_AFTER_SECONDS": "1.5" }));
    let (id, job) = app.create("clumsy", crashing).await;
    app.until_job(&job, "succeeded", PATIENCE).await;
    app.until_up(&id, PATIENCE).await;
    let container = app.home_in_row(&id).await.unwrap();
    let engine = app.engine().docker();
    wait_until("the engine to start it again", PATIENCE, || async {
        let found = engine.inspect_container(&container, None).await.unwrap();
        let restarts = found.restart_count.unwrap_or_default();
        let running = found.state.and_then(|state| state.running);
        if restarts >= 1 && running == Some(true) {
            Ok(())
        } else {
            Err(format!("{restarts} restarts, running: {running:?}"))
        }
    })
    .await;
    // With the token it was given, it registers again by itself.
    wait_until("the second registration", PATIENCE, || async {
        let names = app.event_names(&id).await;
        let online = names.iter().filter(|name| *name == "WORKSPACE_ONLINE");
        if online.count() >= 2 {
            Ok(())
        } else {
            Err(format!("{names:?}"))
        }
    })
    .await;
    let row = app.home_in_row(&id).await;
    assert_eq!(row.as_deref(), Some(container.as_str()));
}

#[tokio::test]
async fn a_workspace_whose_container_is_gone_goes_offline_and_is_restarted() {
    needs_docker!();
    let app = TestApp::start().await;
    let (id, job) = app.create("taken away", json!({})).await;
    app.until_job(&job, "succeeded", PATIENCE).await;
    app.until_up(&id, PATIENCE).await;
    let container = app.home_in_row(&id).await.unwrap();
    app.engine().remove(&container).await;
    wait_until("it to be online again", SWEPT, || async {
        let names = app.event_names(&id).await;
        let online = names.iter().filter(|name| *name == "WORKSPACE_ONLINE");
        if online.count() == 2 {
            Ok(())
        } else {
            Err(format!("{names:?}"))
        }
    })
    .await;
    app.until_up(&id, PATIENCE).await;
    app.assert_whole(&id).await;
    let names = app.event_names(&id).await;
    assert_eq!(names[2], "WORKSPACE_OFFLINE", "{names:?}");
    assert_eq!(names[3], "WORKSPACE_PROVISIONING", "{names:?}");
}
