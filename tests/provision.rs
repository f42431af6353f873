//! From one POST to an agent that answers, and back to nothing.

use std::time::Duration;

use longshore_tests::{
    Builder, EventStream, NewWorker, PATIENCE, Socket, TestApp, needs_docker, wait_until,
};
use serde_json::{Value, json};

/// What is promised from the POST to `online` with the image present.
const SOON: Duration = Duration::from_secs(5);

on_both_backends! {
    a_start_that_fails_says_why_and_succeeds_once_it_can,
    deleting_stops_what_runs_and_ends_the_token,
}

#[tokio::test]
async fn a_workspace_goes_from_a_post_to_an_agent_that_answers() {
    needs_docker!();
    let app = TestApp::start().await;
    let mut socket = Socket::open(&app.admin()).await;
    let (id, job) = app.create("first", json!({ "role": "echo" })).await;

    let entry = app.until_up(&id, SOON).await;
    assert_eq!(entry["runtime"], "claude-code");
    assert_eq!(entry["tier"], 2);
    let own = app.admin().get(&format!("/workspaces/{id}")).await;
    let own = own.expect(200);
    let url = own["url"].as_str().unwrap();
    assert!(url.starts_with("http://127.0.0.1:"), "{own}");
    assert_eq!(own["agent_card"]["name"], "first");
    let done = app.until_job(&job, "succeeded", PATIENCE).await;
    app.assert_whole(&id).await;

    assert_eq!(done["kind"], "provision");
    assert_eq!(done["workspace_id"], id.as_str());
    assert_eq!((&done["attempt"], &done["crashes"]), (&json!(0), &json!(0)));
    assert_eq!(done["progress"]["step"], "started");
    assert_eq!(done["errors"], json!([]));
    let container = app.home_in_row(&id).await.unwrap();
    assert_eq!(done["result"]["container_id"], container.as_str());

    for event in ["WORKSPACE_PROVISIONING", "WORKSPACE_ONLINE"] {
        let told = socket.until(event, &id, PATIENCE).await;
        assert!(
            told["timestamp"].is_string() && told["payload"].is_object(),
            "{told}"
        );
    }
    let recorded = app.event_names(&id).await;
    assert_eq!(recorded, ["WORKSPACE_PROVISIONING", "WORKSPACE_ONLINE"]);
    let all = app.admin().get("/events").await.expect(200);
    assert_eq!(all.as_array().unwrap().len(), 2, "{all}");
}

#[tokio::test]
async fn whoever_hears_that_a_workspace_is_online_can_talk_to_it_at_once() {
    needs_docker!();
    // The agent registers at once; the worker takes its time to write down where it has started it.
    let slow = NewWorker::default().failpoint("provision.started", "sleep:1000");
    let app = TestApp::build().workers([slow]).start().await;
    let mut socket = Socket::open(&app.admin()).await;
    let (id, _) = app.create("quick", json!({})).await;
    let online = socket.until("WORKSPACE_ONLINE", &id, PATIENCE).await;
    let url = online["payload"]["url"].as_str().unwrap();
    assert!(url.starts_with("http://127.0.0.1:"), "{online}");
    assert!(app.say(&id, "already?").await.contains("already?"));
}

#[tokio::test]
async fn tier_1_comes_up_too_and_has_no_volume_for_work() {
    needs_docker!();
    let app = TestApp::start().await;
    let (id, _) = app.create("small", json!({ "tier": 1 })).await;
    let entry = app.until_up(&id, PATIENCE).await;
    assert_eq!(entry["tier"], 1);
    app.assert_whole(&id).await;
    let containers = app.engine().containers_of(&id).await;
    let inspected = app.engine().docker();
    let inspected = inspected.inspect_container(&containers[0].id, None).await;
    let host = inspected.unwrap().host_config.unwrap();
    assert_eq!(host.privileged, Some(false));
    assert_eq!(host.readonly_rootfs, Some(true));
    let volumes = app.engine().volume_names().await;
    assert!(
        !volumes.iter().any(|name| name.ends_with("-workspace")),
        "{volumes:?}"
    );
}

#[tokio::test]
async fn a_tier_above_the_limit_is_refused_with_the_setting_that_allows_it() {
    let app = TestApp::build().without_docker().start().await;
    for tier in [3, 4] {
        let body = json!({ "name": "big", "tier": tier });
        let answer = app.admin().post("/workspaces", &body).await;
        let problem = answer.expect(403);
        let error = problem["error"].as_str().unwrap();
        assert!(error.contains("LONGSHORE_MAX_TIER"), "{error}");
    }
}

#[tokio::test]
async fn the_stream_of_a_workspace_tells_what_was_missed() {
    needs_docker!();
    let app = TestApp::start().await;
    let (id, _) = app.create("streamed", json!({})).await;
    let path = format!("/workspaces/{id}/events/stream");
    let mut stream = EventStream::open(&app.admin(), &path, Some("0-0")).await;
    let named = |data: &str| -> Value { serde_json::from_str(data).unwrap() };
    let online = stream
        .until("WORKSPACE_ONLINE", PATIENCE, |event| {
            named(&event.data)["type"] == "WORKSPACE_ONLINE"
        })
        .await;
    let last = online.id.clone();
    drop(stream);

    let agent = app.agent(&id).await;
    let card = json!({ "workspace_id": id, "agent_card": { "name": "renamed" } });
    agent.post("/registry/update-card", &card).await.expect(200);
    // The agent itself may listen, and comes back with the last id it saw.
    let mut again = EventStream::open(&agent, &path, Some(&last)).await;
    let next = again
        .until("what came after", PATIENCE, |event| !event.id.is_empty())
        .await;
    assert_eq!(named(&next.data)["type"], "AGENT_CARD_UPDATED", "{next:?}");
}

#[tokio::test]
async fn what_an_agent_writes_can_be_read_without_its_secrets() {
    needs_docker!();
    let app = TestApp::start().await;
    let secret = "a-secret-nobody-should-read-9f2b";
    // The reference agent says what it cannot understand, which is how a secret gets into its log.
    let secrets = json!({ "AGENT_ERROR_RATE": secret });
    let (id, _) = app.create("talkative", json!({ "secrets": secrets })).await;
    let path = format!("/workspaces/{id}/logs?tail=50");
    let page = wait_until("the agent to complain", PATIENCE, || async {
        let answer = app.admin().get(&path).await;
        let text = answer.text();
        if answer.status == 200 && text.contains("AGENT_ERROR_RATE") {
            Ok(text)
        } else {
            Err(format!("{} {text}", answer.status))
        }
    })
    .await;
    assert!(!page.contains(secret), "{page}");
    for process in app.workers.iter().chain([&app.api]) {
        assert!(!process.log().contains(secret), "a secret is in a log");
    }
    let whole: Vec<String> = sqlx::query_scalar(
        "SELECT to_jsonb(jobs)::text FROM jobs UNION ALL SELECT to_jsonb(job_history)::text FROM job_history
         UNION ALL SELECT to_jsonb(structure_events)::text FROM structure_events",
    )
    .fetch_all(app.pool())
    .await
    .unwrap();
    assert!(!whole.is_empty() && whole.iter().all(|row| !row.contains(secret)));
}

async fn deleting_stops_what_runs_and_ends_the_token(place: Builder) {
    let app = place.start().await;
    let (id, _) = app.create("short-lived", json!({})).await;
    app.until_up(&id, PATIENCE).await;
    let agent = app.agent(&id).await;

    let deleted = app.admin().delete(&format!("/workspaces/{id}")).await;
    assert!(matches!(deleted.status, 200 | 202), "{}", deleted.text());
    assert_eq!(deleted.json()["status"], "removed");
    let job = deleted.json()["job_id"].as_str().unwrap().to_owned();
    assert_eq!(deleted.location, format!("/jobs/{job}"));
    app.until_job(&job, "succeeded", PATIENCE).await;
    assert!(app.remains(&id).await.is_empty());

    let beat = json!({ "workspace_id": id });
    let refused = agent.post("/registry/heartbeat", &beat).await;
    assert!(matches!(refused.status, 401 | 410), "{}", refused.text());
    let names = app.event_names(&id).await;
    assert_eq!(names.last().unwrap(), "WORKSPACE_REMOVED");
    let gone = app.admin().get(&format!("/workspaces/{id}")).await;
    assert!(matches!(gone.status, 404 | 410), "{}", gone.text());
}

async fn a_start_that_fails_says_why_and_succeeds_once_it_can(place: Builder) {
    let mut app = place.to_be_cut_off().start().await;
    app.cut_off().await;
    let (id, job) = app.create("too-early", json!({})).await;
    let entry = app.until_status(&id, "failed", PATIENCE).await;
    assert_ne!(entry["last_sample_error"], "", "{entry}");
    let dead = app.until_job(&job, "dead", PATIENCE).await;
    assert_eq!(dead["last_error"], entry["last_sample_error"]);
    let told = ["WORKSPACE_PROVISIONING", "WORKSPACE_PROVISION_FAILED"];
    assert_eq!(app.event_names(&id).await, told);
    assert!(app.remains(&id).await.is_empty());

    app.reconnect().await;
    let path = format!("/jobs/{job}/retry");
    let again = app.admin().post(&path, &json!({})).await;
    assert_eq!(again.status, 202, "{}", again.text());
    app.until_job(&job, "succeeded", PATIENCE).await;
    app.until_up(&id, PATIENCE).await;
    app.assert_whole(&id).await;
}
