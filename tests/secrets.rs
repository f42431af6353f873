//! A changed secret reaches the agents that get it, in turn, and no others.

use longshore_tests::{PATIENCE, TestApp, needs_docker, wait_until};
use serde_json::json;

/// What a container's environment says of a variable.
async fn variable(app: &TestApp, workspace: &str, name: &str) -> Option<String> {
    let containers = app.engine().containers_of(workspace).await;
    let container = containers.first()?;
    let inspected = app
        .engine()
        .docker()
        .inspect_container(&container.id, None)
        .await
        .ok()?;
    let environment = inspected.config?.env?;
    let prefix = format!("{name}=");
    let found = environment
        .iter()
        .find_map(|line| line.strip_prefix(&prefix));
    found.map(str::to_owned)
}

async fn has(app: &TestApp, workspace: &str, name: &str, value: Option<&str>) {
    let what = format!("{workspace} to have {value:?} as {name}");
    wait_until(&what, PATIENCE, || async {
        let found = variable(app, workspace, name).await;
        let status = app.entry(workspace).await["status"].clone();
        if found.as_deref() == value && status == "online" {
            Ok(())
        } else {
            Err(format!("{found:?}, {status}"))
        }
    })
    .await;
}

#[tokio::test]
async fn a_global_secret_reaches_every_agent_without_one_of_its_own() {
    needs_docker!();
    let app = TestApp::start().await;
    let (first, _) = app.create("first", json!({})).await;
    let (second, _) = app.create("second", json!({})).await;
    let own = json!({ "secrets": { "SHARED": "mine" } });
    let (with_own, _) = app.create("with its own", own).await;
    for id in [&first, &second, &with_own] {
        app.until_up(id, PATIENCE).await;
    }
    let before = app.engine().containers_of(&with_own).await;
    let body = json!({ "key": "SHARED", "value": "for all" });
    let saved = app.admin().put("/settings/secrets", &body).await;
    assert_eq!(saved.status, 200, "{}", saved.text());
    assert_eq!(
        saved.location,
        format!("/jobs/{}", saved.json()["job_id"].as_str().unwrap())
    );
    let job = saved.json()["job_id"].as_str().unwrap().to_owned();
    let done = app.until_job(&job, "succeeded", PATIENCE).await;
    assert_eq!(done["result"], json!({ "restarted": 2 }), "{done}");
    for id in [&first, &second] {
        has(&app, id, "SHARED", Some("for all")).await;
    }
    // The later one rests longer.
    let restarts = app.admin().get("/jobs?kind=restart").await.expect(200);
    let mut delays: Vec<_> = restarts["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|job| job["args"]["delay_ms"].as_u64().unwrap())
        .collect();
    delays.sort_unstable();
    assert_eq!(delays, [0, 500], "{restarts}");
    assert_eq!(app.engine().containers_of(&with_own).await, before);

    // A workspace's own is followed by one restart of this workspace.
    let path = format!("/workspaces/{first}/secrets");
    let body = json!({ "key": "SHARED", "value": "its own now" });
    let saved = app.admin().post(&path, &body).await;
    assert_eq!(saved.status, 200, "{}", saved.text());
    has(&app, &first, "SHARED", Some("its own now")).await;
    let deleted = app.admin().delete(&format!("{path}/SHARED")).await;
    assert_eq!(deleted.status, 200, "{}", deleted.text());
    has(&app, &first, "SHARED", Some("for all")).await;
}
