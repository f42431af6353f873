//! Pause and resume, with real containers and on instances.

use std::time::Duration;

use longshore_tests::{Builder, NewWorker, PATIENCE, TestApp, wait_until};
use serde_json::{Value, json};

/// From the backend's return to the end of a stop that was tried some times without it.
const BACK: Duration = Duration::from_secs(60);

on_both_backends! {
    a_paused_workspace_is_stopped_keeps_its_files_and_comes_back,
    a_pause_in_the_middle_of_a_start_takes_down_what_was_begun,
    a_pause_waits_for_a_backend_that_is_away_and_says_what_may_still_run,
}

async fn a_paused_workspace_is_stopped_keeps_its_files_and_comes_back(place: Builder) {
    let app = place.start().await;
    let (root, _) = app.create("root", json!({})).await;
    let (child, _) = app.create("child", json!({ "parent_id": root })).await;
    for id in [&root, &child] {
        app.until_up(id, PATIENCE).await;
    }
    let agent = app.agent(&child).await;
    let volumes = app.engine().volume_names().await;

    let paused = app
        .admin()
        .post(&format!("/workspaces/{root}/pause"), &Value::Null)
        .await;
    let paused = paused.expect(200);
    assert_eq!(paused["paused_count"], 2, "{paused}");
    let list = app.admin().get("/jobs?kind=stop").await.expect(200);
    for job in list["items"].as_array().unwrap() {
        app.until_job(job["id"].as_str().unwrap(), "succeeded", PATIENCE)
            .await;
    }
    for id in [&root, &child] {
        assert!(app.remains(id).await.is_empty());
        assert_eq!(app.entry(id).await["status"], "paused");
        assert_eq!(
            app.event_names(id).await.last().unwrap(),
            "WORKSPACE_PAUSED"
        );
    }
    assert_eq!(
        app.engine().volume_names().await,
        volumes,
        "what they wrote stays"
    );
    // An agent that comes too late does not undo it.
    let card =
        json!({ "id": child, "url": "http://127.0.0.1:1", "agent_card": { "name": "late" } });
    let late = agent.post("/registry/register", &card).await;
    assert_eq!(late.status, 409, "{}", late.text());
    let state = agent
        .get(&format!("/workspaces/{child}/state"))
        .await
        .expect(200);
    assert_eq!(
        (&state["paused"], &state["deleted"]),
        (&json!(true), &json!(false))
    );

    let child_alone = app.command(&["resume", "child"]);
    let said = String::from_utf8_lossy(&child_alone.stderr).into_owned();
    assert!(
        !child_alone.status.success() && said.contains("parent workspace \"root\" is paused"),
        "{said}"
    );
    let resumed = app.command(&["resume", "root"]);
    let said = String::from_utf8_lossy(&resumed.stdout).into_owned();
    assert!(
        resumed.status.success() && said.contains("and 1 sub-workspace resumed"),
        "{said}"
    );
    for id in [&root, &child] {
        app.until_up(id, PATIENCE).await;
        app.assert_whole(id).await;
    }
    assert_eq!(app.engine().volume_names().await, volumes);
}

async fn a_pause_in_the_middle_of_a_start_takes_down_what_was_begun(place: Builder) {
    let gate = tempfile::tempdir().unwrap();
    let open = gate.path().join("open");
    let waiting =
        NewWorker::default().failpoint(place.when_made(), &format!("gate:{}", open.display()));
    let app = place.workers([waiting]).start().await;
    let (id, job) = app.create("half-way", json!({})).await;
    wait_until("the container to be made", PATIENCE, || async {
        let made = app.remains(&id).await;
        if made.is_empty() {
            Err(app.job(&job).await.to_string())
        } else {
            Ok(())
        }
    })
    .await;
    let paused = app
        .admin()
        .post(&format!("/workspaces/{id}/pause"), &Value::Null)
        .await;
    let stop = paused.expect(200)["job_id"].as_str().unwrap().to_owned();
    std::fs::write(&open, "").unwrap();
    app.until_job(&stop, "succeeded", PATIENCE).await;
    let ended = app.job(&job).await;
    assert!(
        matches!(ended["state"].as_str(), Some("superseded" | "cancelled")),
        "{ended}"
    );
    assert!(app.remains(&id).await.is_empty());
    assert_eq!(app.entry(&id).await["status"], "paused");
}

async fn a_pause_waits_for_a_backend_that_is_away_and_says_what_may_still_run(place: Builder) {
    let mut app = place.to_be_cut_off().start().await;
    let (id, _) = app.create("unreachable", json!({})).await;
    app.until_up(&id, PATIENCE).await;
    app.cut_off().await;
    let path = format!("/workspaces/{id}/pause");
    let paused = app.admin().post(&path, &Value::Null).await.expect(200);
    let job = paused["job_id"].as_str().unwrap();
    wait_until("the leak to be suspected", PATIENCE, || async {
        match leak(&app, &id).await {
            Some((source, state))
                if (source.as_str(), state.as_str()) == ("pause", "suspected") =>
            {
                Ok(())
            }
            seen => Err(format!("{seen:?}")),
        }
    })
    .await;
    assert_eq!(app.entry(&id).await["status"], "paused");
    app.reconnect().await;
    app.until_job(job, "succeeded", BACK).await;
    assert!(app.remains(&id).await.is_empty());
    assert_eq!(
        leak(&app, &id).await,
        Some(("pause".to_owned(), "gone".to_owned()))
    );
}

/// The source and the state of what a workspace has left behind.
async fn leak(app: &TestApp, id: &str) -> Option<(String, String)> {
    sqlx::query_as("SELECT source, state FROM leaks WHERE workspace_id = $1::uuid")
        .bind(id)
        .fetch_optional(app.pool())
        .await
        .unwrap()
}
