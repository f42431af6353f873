//! Teams, with real containers.

use longshore_tests::{PATIENCE, TestApp, needs_docker};
use serde_json::{Value, json};

const LEAD: &str = "name: Lead\nsub_workspaces:\n- {config: helper, role: helps}\n- {config: nowhere, name: second}\n";

#[tokio::test]
async fn a_team_comes_up_below_its_lead_and_goes_again() {
    needs_docker!();
    let templates = tempfile::tempdir().unwrap();
    for (name, config) in [("lead", LEAD), ("helper", "name: h\nruntime: hermes\n")] {
        let directory = templates.path().join(name);
        std::fs::create_dir(&directory).unwrap();
        std::fs::write(directory.join("config.yaml"), config).unwrap();
    }
    let app = TestApp::build()
        .setting("CONFIGS_DIR", templates.path().to_str().unwrap())
        .start()
        .await;
    let (lead, _) = app.create("lead", json!({})).await;
    let expanded = app.command(&["expand", "lead", "--json"]);
    assert!(expanded.status.success(), "{expanded:?}");
    let expanded: Value = serde_json::from_slice(&expanded.stdout).unwrap();
    let children: Vec<_> = expanded["children"].as_array().unwrap().iter().collect();
    assert_eq!(children.len(), 2);
    app.until_up(&lead, PATIENCE).await;
    for child in &children {
        let id = child["id"].as_str().unwrap();
        app.until_up(id, PATIENCE).await;
        app.assert_whole(id).await;
        let containers = app.engine().containers_of(id).await;
        let inspected = app.engine().docker();
        let inspected = inspected.inspect_container(&containers[0].id, None).await;
        let env = inspected.unwrap().config.unwrap().env.unwrap();
        assert!(env.contains(&format!("PARENT_ID={lead}")), "{env:?}");
    }
    // The template of the second one is not there, so it got a configuration made for it.
    let second = children[1]["id"].as_str().unwrap();
    assert_eq!(app.entry(second).await["runtime"], "claude-code");

    let unsure = app.command(&["collapse", "lead"]);
    let said = String::from_utf8_lossy(&unsure.stderr).into_owned();
    assert!(
        !unsure.status.success() && said.contains("repeat with --yes"),
        "{said}"
    );
    let collapsed = app.command(&["collapse", "lead", "--yes"]);
    let said = String::from_utf8_lossy(&collapsed.stdout).into_owned();
    assert!(
        collapsed.status.success() && said.contains("collapsed: helper, second removed"),
        "{collapsed:?}"
    );
    for child in &children {
        let id = child["id"].as_str().unwrap();
        let jobs = app.admin().get("/jobs?kind=purge").await.expect(200);
        let job = jobs["items"][0]["id"].as_str().unwrap();
        app.until_job(job, "succeeded", PATIENCE).await;
        assert!(app.engine().containers_of(id).await.is_empty());
        app.admin()
            .get(&format!("/workspaces/{id}"))
            .await
            .expect(410);
    }
    let names = app.event_names(&lead).await;
    assert!(
        names.contains(&"WORKSPACE_EXPANDED".to_owned()),
        "{names:?}"
    );
    assert_eq!(names.last().unwrap(), "WORKSPACE_COLLAPSED");
    app.assert_whole(&lead).await;
}

#[tokio::test]
async fn where_nothing_runs_workspaces_a_team_fails_with_the_reason() {
    let templates = tempfile::tempdir().unwrap();
    std::fs::create_dir(templates.path().join("lead")).unwrap();
    std::fs::write(templates.path().join("lead/config.yaml"), LEAD).unwrap();
    let app = TestApp::build()
        .without_docker()
        .workers([longshore_tests::NewWorker::default()])
        .setting("CONFIGS_DIR", templates.path().to_str().unwrap())
        .start()
        .await;
    let (lead, job) = app.create("lead", json!({})).await;
    app.until_job(&job, "dead", PATIENCE).await;
    let path = format!("/workspaces/{lead}/expand");
    let expanded = app.admin().post(&path, &Value::Null).await.expect(200);
    for child in expanded["children"].as_array().unwrap() {
        let failed = app
            .until_status(child["id"].as_str().unwrap(), "failed", PATIENCE)
            .await;
        let reason = failed["last_sample_error"].as_str().unwrap();
        assert!(reason.contains("no Docker daemon is available"), "{reason}");
    }
}
