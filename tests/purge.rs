//! Deleting for good: what is left of a workspace, and what keeps a purge from its end.

use std::time::Duration;

use futures_util::future::join_all;
use longshore_tests::{Builder, NewWorker, PATIENCE, RecordingStub, TestApp, wait_until};
use serde_json::{Value, json};

/// From the backend's return to the end of a purge that waits for it.
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

on_both_backends! {
    a_purge_leaves_the_events_and_nothing_else,
    whatever_status_a_workspace_has_a_purge_takes_down_what_runs,
    a_purge_that_comes_when_a_start_is_all_but_over_takes_down_what_it_started,
    a_purge_waits_for_a_backend_that_is_away_and_ends_when_it_is_back,
    a_crash_when_the_purge_is_entered,
    a_crash_when_everything_is_taken_down,
    a_crash_when_the_rows_are_deleted,
}

pub(crate) async fn is_gone(app: &TestApp, id: &str) {
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

async fn a_purge_leaves_the_events_and_nothing_else(place: Builder) {
    let memory = RecordingStub::answering("204 No Content").await;
    let app = place
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
    if app.is_hosted() {
        assert_eq!(volumes, [""; 0], "instances have none");
    } else {
        assert!(of(&earlier) == 1 && of(&root) > 1, "{volumes:?}");
    }
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
        assert!(app.remains(id).await.is_empty());
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

async fn whatever_status_a_workspace_has_a_purge_takes_down_what_runs(place: Builder) {
    let app = place.start().await;
    let created = join_all(STATUSES.map(|status| app.create(status, json!({})))).await;
    for ((id, job), status) in created.iter().zip(STATUSES) {
        app.until_job(job, "succeeded", PATIENCE).await;
        app.until_up(id, PATIENCE).await;
        app.write_status_directly(id, status).await;
        let path = format!("/workspaces/{id}?purge=true");
        let purged = app.admin().delete(&path).await.expect(200);
        assert_eq!(purged["status"], "purged", "{status}");
        is_gone(&app, id).await;
        assert!(app.remains(id).await.is_empty(), "{status}");
    }
    assert_eq!(app.engine().volume_names().await, [""; 0]);
}

async fn a_purge_that_comes_when_a_start_is_all_but_over_takes_down_what_it_started(
    place: Builder,
) {
    let gates = tempfile::tempdir().unwrap();
    let gate = gates.path().join("go-on");
    let slow =
        NewWorker::default().failpoint("provision.persisted", &format!("gate:{}", gate.display()));
    let app = place.workers([slow]).start().await;
    let (id, _) = app.create("overtaken", json!({})).await;
    app.until_up(&id, PATIENCE).await;
    let admin = app.admin();
    let path = format!("/workspaces/{id}?purge=true");
    let asking = tokio::spawn(async move { admin.delete(&path).await });
    wait_until("the purge to be asked for", PATIENCE, || async {
        let job = purge_job(&app).await;
        if job.is_null() {
            Err("no job".to_owned())
        } else {
            Ok(())
        }
    })
    .await;
    std::fs::write(&gate, "").unwrap();
    let purged = asking.await.unwrap().expect(200);
    assert_eq!(purged["status"], "purged");
    is_gone(&app, &id).await;
    assert!(app.remains(&id).await.is_empty());
}

async fn a_purge_waits_for_a_backend_that_is_away_and_ends_when_it_is_back(place: Builder) {
    let mut app = place.to_be_cut_off().start().await;
    let (root, _) = app.create("root", json!({})).await;
    let (child, _) = app.create("child", json!({ "parent_id": root })).await;
    for id in [&root, &child] {
        app.until_up(id, PATIENCE).await;
    }
    app.cut_off().await;

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

    app.reconnect().await;
    let job = job["id"].as_str().unwrap();
    app.until_job(job, "succeeded", BACK).await;
    for id in [&root, &child] {
        is_gone(&app, id).await;
        assert!(app.remains(id).await.is_empty());
    }
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

async fn a_crash_when_the_purge_is_entered(place: Builder) {
    Box::pin(survives_a_crash_at(place, "purge.entered")).await;
}

async fn a_crash_when_everything_is_taken_down(place: Builder) {
    Box::pin(survives_a_crash_at(place, "purge.taken_down")).await;
}

async fn a_crash_when_the_rows_are_deleted(place: Builder) {
    Box::pin(survives_a_crash_at(place, "purge.rows_deleted")).await;
}

async fn survives_a_crash_at(place: Builder, point: &str) {
    let memory = RecordingStub::answering("204 No Content").await;
    let dying = NewWorker::default().failpoint(&format!("{point}*1"), "die");
    let mut app = place
        .setting("MEMORY_PLUGIN_URL", &memory.url())
        .workers([dying])
        .start()
        .await;
    let (id, _) = app.create("unlucky", json!({})).await;
    app.until_up(&id, PATIENCE).await;
    let admin = app.admin();
    let path = format!("/workspaces/{id}?purge=true");
    let asking = tokio::spawn(async move {
        let answer = admin.delete(&path).await;
        // Here, so that it is told even if nobody comes to wait for it.
        assert!(matches!(answer.status, 200 | 202), "{}", answer.text());
        answer
    });
    app.workers[0].died(PATIENCE).await;
    let _successor = app.start_worker(NewWorker::default()).await;
    let answer = asking.await.unwrap();
    let job = answer.json()["job_id"].as_str().unwrap().to_owned();
    let job = app.until_job(&job, "succeeded", TAKEN_OVER).await;
    assert_eq!(job["crashes"], 1, "{job}");
    is_gone(&app, &id).await;
    assert!(app.remains(&id).await.is_empty());
    assert_eq!(app.engine().volume_names().await, [""; 0]);
    assert_eq!(memory.seen(), namespace_calls(&[&id]));
}
