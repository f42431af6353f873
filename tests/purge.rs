//! Deleting for good: what is left of a workspace, and what keeps a purge from its end.

use std::time::Duration;

use longshore_tests::{
    EngineSwitch, NewWorker, PATIENCE, RecordingStub, TestApp, needs_docker, wait_until,
};
use serde_json::{Value, json};

/// From the engine's return to the end of a purge that waits for it.
const BACK: Duration = Duration::from_secs(60);
/// Ten seconds of silence of a dead worker, and what is around them.
const TAKEN_OVER: Duration = Duration::from_secs(30);

const STATUSES: [&str; 10] = [
    "provisioning",
    "online",
    "offline",
    "degraded",
    "failed",
    "removed",
    "paused",
    "hibernated",
    "hibernating",
    "awaiting_agent",
];

async fn is_gone(app: &TestApp, id: &str) {
    let path = format!("/workspaces/{id}?include_removed=true");
    app.admin().get(&path).await.expect(404);
}

/// The newest purge.
async fn purge_job(app: &TestApp) -> Value {
    let jobs = app.admin().get("/jobs?kind=purge").await.expect(200);
    jobs["items"][0].clone()
}

fn namespace_calls(ids: &[&String]) -> Vec<String> {
    let mut calls: Vec<_> = ids
        .iter()
        .map(|id| format!("DELETE /v1/namespaces/workspace:{id}"))
        .collect();
    calls.sort();
    calls
}

#[tokio::test]
async fn a_purge_leaves_the_events_and_nothing_else() {
    needs_docker!();
    let memory = RecordingStub::answering("204 No Content").await;
    let app = TestApp::build()
        .setting("MEMORY_PLUGIN_URL", &memory.url())
        .start()
        .await;
    let (root, _) = app.create("root", json!({})).await;
    let (child, _) = app.create("child", json!({ "parent_id": root })).await;
    let (earlier, _) = app.create("earlier", json!({ "parent_id": root })).await;
    let (bystander, _) = app.create("bystander", json!({})).await;
    for id in [&root, &child, &earlier, &bystander] {
        app.until_up(id, PATIENCE).await;
    }
    // Removed, not purged: what its agent has written stays, and so do its memories.
    let path = format!("/workspaces/{earlier}");
    let deleted = app.admin().delete(&path).await.expect(200);
    assert_eq!(deleted["status"], "removed");
    let volumes = app.engine().volume_names().await;
    let of = |id: &String| {
        volumes
            .iter()
            .filter(|name| name.contains(&id[..12]))
            .count()
    };
    assert!(of(&earlier) == 1 && of(&root) > 1, "{volumes:?}");
    assert_eq!(memory.seen(), [""; 0]);

    let path = format!("/workspaces/{root}?confirm=true&purge=true");
    let answer = app.admin().delete(&path).await;
    let purged = answer.expect(200);
    assert_eq!(
        (&purged["status"], &purged["cascade_deleted"]),
        (&json!("purged"), &json!(2))
    );
    assert_eq!(
        answer.location,
        format!("/jobs/{}", purged["job_id"].as_str().unwrap())
    );
    for id in [&root, &child, &earlier] {
        is_gone(&app, id).await;
        assert!(app.engine().containers_of(id).await.is_empty());
        let names = app.event_names(id).await;
        assert_eq!(names.last().unwrap(), "WORKSPACE_REMOVED");
    }
    let volumes = app.engine().volume_names().await;
    assert!(
        volumes.iter().all(|name| name.contains(&bystander[..12])),
        "{volumes:?}"
    );
    let job = purge_job(&app).await;
    assert_eq!(job["state"], "succeeded", "{job}");
    assert_eq!(job["args"]["ids"].as_array().unwrap().len(), 3);
    assert_eq!(job["result"]["namespaces"]["forgotten"], 3, "{job}");
    let mut calls = memory.seen();
    calls.sort();
    assert_eq!(calls, namespace_calls(&[&root, &child, &earlier]));
    app.admin().delete(&path).await.expect(404);
    app.assert_whole(&bystander).await;
}

#[tokio::test]
async fn a_workspace_in_any_status_can_be_deleted_and_purged() {
    let app = TestApp::build()
        .without_docker()
        .workers([NewWorker::default()])
        .start()
        .await;
    for status in STATUSES {
        let (id, job) = app.create(status, json!({})).await;
        app.until_job(&job, "dead", PATIENCE).await;
        app.write_status_directly(&id, status).await;
        let path = format!("/workspaces/{id}");
        let deleted = app.admin().delete(&path).await.expect(200);
        assert_eq!(deleted["status"], "removed", "{status}");
        let purged = app.admin().delete(&format!("{path}?purge=true")).await;
        assert_eq!(purged.expect(200)["status"], "purged", "{status}");
        is_gone(&app, &id).await;
        let names = app.event_names(&id).await;
        assert_eq!(names[0], "WORKSPACE_PROVISIONING", "{status}");

        let (id, job) = app.create(status, json!({})).await;
        app.until_job(&job, "dead", PATIENCE).await;
        app.write_status_directly(&id, status).await;
        let path = format!("/workspaces/{id}?purge=true");
        let purged = app.admin().delete(&path).await.expect(200);
        assert_eq!(purged["status"], "purged", "at once, {status}");
        is_gone(&app, &id).await;
    }
    let (outside, _) = app.create_external("outside").await;
    let path = format!("/workspaces/{outside}?purge=true");
    let purged = app.admin().delete(&path).await.expect(200);
    assert_eq!(purged["status"], "purged");
    let job = purge_job(&app).await;
    assert_eq!(
        job["result"]["namespaces"],
        "no memory plugin is configured"
    );
}

#[tokio::test]
async fn a_purge_waits_for_an_engine_that_is_away_and_ends_when_it_is_back() {
    needs_docker!();
    let mut switch = EngineSwitch::on();
    let app = TestApp::build()
        .setting("DOCKER_HOST", &switch.host())
        .start()
        .await;
    let (root, _) = app.create("root", json!({})).await;
    let (child, _) = app.create("child", json!({ "parent_id": root })).await;
    for id in [&root, &child] {
        app.until_up(id, PATIENCE).await;
    }
    switch.turn_off();

    let path = format!("/workspaces/{root}?confirm=true&purge=true");
    // A client that repeats what failed is told how it stands, each time anew.
    for _ in 0..2 {
        let refused = app.admin().delete(&path).await.expect(500);
        let error = refused["error"].as_str().unwrap();
        assert!(
            error.starts_with(
                "workspace marked removed, but 2 stop call(s) failed — please retry: "
            ) && error.contains(root.as_str()),
            "{refused}"
        );
        assert_eq!(
            (&refused["removed_count"], &refused["stop_failures"]),
            (&json!(2), &json!(2))
        );
    }
    app.admin()
        .get(&format!("/workspaces/{root}"))
        .await
        .expect(410);
    let job = wait_until("the purge to wait", PATIENCE, || async {
        let job = purge_job(&app).await;
        if job["waiting"]["text"].is_string() {
            Ok(job)
        } else {
            Err(job.to_string())
        }
    })
    .await;
    let reason = job["last_error"].as_str().unwrap();
    assert!(
        reason.contains("2 of 2 workspaces could not be taken down"),
        "{job}"
    );
    let rows = format!("/workspaces/{root}?include_removed=true");
    assert_eq!(
        app.admin().get(&rows).await.expect(200)["status"],
        "removed"
    );

    switch.turn_on();
    let job = job["id"].as_str().unwrap();
    app.until_job(job, "succeeded", BACK).await;
    for id in [&root, &child] {
        is_gone(&app, id).await;
    }
    assert!(app.engine().containers().await.is_empty());
    assert_eq!(app.engine().volume_names().await, [""; 0]);
}

#[tokio::test]
async fn a_memory_plugin_that_fails_changes_nothing() {
    let memory = RecordingStub::answering("500 Internal Server Error").await;
    let app = TestApp::build()
        .without_docker()
        .setting("MEMORY_PLUGIN_URL", &memory.url())
        .workers([NewWorker::default()])
        .start()
        .await;
    let (id, job) = app.create("forgettable", json!({})).await;
    app.until_job(&job, "dead", PATIENCE).await;
    let path = format!("/workspaces/{id}?purge=true");
    let purged = app.admin().delete(&path).await.expect(200);
    assert_eq!(purged["status"], "purged");
    assert_eq!(memory.seen(), namespace_calls(&[&id]));
    let job = purge_job(&app).await;
    assert_eq!(job["result"]["namespaces"]["not_forgotten"], json!([id]));
}

#[tokio::test]
async fn a_crash_when_the_purge_is_entered() {
    needs_docker!();
    Box::pin(survives_a_crash_at("purge.entered")).await;
}

#[tokio::test]
async fn a_crash_when_everything_is_taken_down() {
    needs_docker!();
    Box::pin(survives_a_crash_at("purge.taken_down")).await;
}

#[tokio::test]
async fn a_crash_when_the_rows_are_deleted() {
    needs_docker!();
    Box::pin(survives_a_crash_at("purge.rows_deleted")).await;
}

async fn survives_a_crash_at(point: &str) {
    let memory = RecordingStub::answering("204 No Content").await;
    let dying = NewWorker::default().failpoint(&format!("{point}*1"), "die");
    let mut app = TestApp::build()
        .setting("MEMORY_PLUGIN_URL", &memory.url())
        .workers([dying])
        .start()
        .await;
    let (id, _) = app.create("unlucky", json!({})).await;
    app.until_up(&id, PATIENCE).await;
    let admin = app.admin();
    let path = format!("/workspaces/{id}?purge=true");
    let asking = tokio::spawn(async move { admin.delete(&path).await });
    app.workers[0].died(PATIENCE).await;
    let _successor = app.start_worker(NewWorker::default()).await;
    let answer = asking.await.unwrap();
    assert!(matches!(answer.status, 200 | 202), "{}", answer.text());
    let job = answer.json()["job_id"].as_str().unwrap().to_owned();
    let job = app.until_job(&job, "succeeded", TAKEN_OVER).await;
    assert_eq!(job["crashes"], 1, "{job}");
    is_gone(&app, &id).await;
    assert!(app.engine().containers().await.is_empty());
    assert_eq!(app.engine().volume_names().await, [""; 0]);
    assert_eq!(memory.seen(), namespace_calls(&[&id]));
}
