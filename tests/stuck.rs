//! What has stopped moving gets a reason and a way out.

use std::time::Duration;

use longshore_tests::{NewWorker, PATIENCE, TestApp, needs_docker, wait_until};
use serde_json::{Value, json};

use crate::reconcilers::until_passed;
use crate::sweeps::run;

async fn stuck_events(app: &TestApp) -> Vec<Value> {
    sqlx::query_scalar(
        "SELECT payload FROM structure_events WHERE event_type = 'STUCK' ORDER BY id",
    )
    .fetch_all(app.pool())
    .await
    .unwrap()
}

#[tokio::test]
async fn a_workspace_that_nothing_brings_up_any_more_has_failed_and_says_why() {
    let app = TestApp::build()
        .without_docker()
        .workers([NewWorker::default()])
        .start()
        .await;
    // The next pass by the clock comes after the end of this test.
    until_passed(&app, "stuck").await;
    let mut ids = Vec::new();
    for name in ["lost", "waiting"] {
        let id: String = sqlx::query_scalar(
            "INSERT INTO workspaces (id, name, updated_at)
             VALUES (gen_random_uuid(), $1, longshore_now() - interval '6 minutes') RETURNING id::text",
        )
        .bind(name)
        .fetch_one(app.pool())
        .await
        .unwrap();
        ids.push(id);
    }
    let (lost, waiting) = (&ids[0], &ids[1]);
    // It still has a job, which an operator holds.
    let hold = json!({ "scope": "kind", "value": "provision", "mode": "pause" });
    let hold = app.admin().post("/holds", &hold).await.expect(201);
    sqlx::query(
        "INSERT INTO jobs (id, kind, queue, tenant, workspace_id, args, args_version, wait, max_attempts, run_at, deadline_at,
                           created_by, created_at)
         VALUES (gen_random_uuid(), 'provision', 'provision@none', 't', $1::uuid, '{}', 1, 'ready', 1, longshore_now(),
                 longshore_now() + interval '1 day', 'test', longshore_now())",
    )
    .bind(waiting)
    .execute(app.pool())
    .await
    .unwrap();
    let told = app.command(&["reconcile", "stuck", "--dry-run"]);
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(
        told.contains(&format!("provision-lost: workspace {lost}")),
        "{told}"
    );
    assert_eq!(app.entry(lost).await["status"], "provisioning");

    let report = run(&app, "stuck").await;
    assert_eq!(
        (&report["seen"], &report["acted"]),
        (&json!(2), &json!(1)),
        "{report}"
    );
    let entry = app.entry(lost).await;
    assert_eq!(entry["status"], "failed");
    let why = entry["last_sample_error"].as_str().unwrap();
    assert!(why.contains("the job that was to do it is gone"), "{why}");
    assert_eq!(
        app.event_names(lost).await,
        ["WORKSPACE_PROVISION_FAILED", "STUCK"]
    );
    assert_eq!(stuck_events(&app).await[0]["reason"], "provision-lost");
    assert_eq!(app.entry(waiting).await["status"], "provisioning");
    sqlx::query("DELETE FROM jobs WHERE kind = 'provision'")
        .execute(app.pool())
        .await
        .unwrap();
    let hold = format!("/holds/{}", hold["id"].as_str().unwrap());
    app.admin().delete(&hold).await.expect(200);
}

#[tokio::test]
async fn a_run_that_does_not_end_loses_its_job_and_the_next_one_does_it() {
    needs_docker!();
    let gate = tempfile::tempdir().unwrap();
    let gate = gate.path().join("gate");
    let armed = format!("provision.entered*1=gate:{}", gate.display());
    let worker = NewWorker::default().setting("LONGSHORE_FAILPOINTS", &armed);
    let app = TestApp::build().workers([worker]).start().await;
    let (id, job) = app.create("hangs", json!({})).await;
    app.until_job(&job, "running", PATIENCE).await;
    let report = run(&app, "stuck").await;
    assert_eq!(report["acted"], 0, "its time is not over: {report}");
    sqlx::query("UPDATE jobs SET started_at = started_at - interval '1 hour' WHERE id = $1::uuid")
        .bind(&job)
        .execute(app.pool())
        .await
        .unwrap();
    let report = run(&app, "stuck").await;
    assert_eq!(report["acted"], 1, "{report}");
    let done = app.until_job(&job, "succeeded", PATIENCE).await;
    assert_eq!(done["attempt"], 1, "{done}");
    let why = done["errors"][0]["error"].as_str().unwrap();
    assert!(why.starts_with("stuck: its run on worker "), "{why}");
    assert_eq!(stuck_events(&app).await[0]["reason"], "run-overdue");
    // The run that hung finds that it has nothing to do any more.
    std::fs::write(&gate, "").unwrap();
    app.until_up(&id, PATIENCE).await;
    wait_until("one container", Duration::from_secs(5), || async {
        let containers = app.engine().containers_of(&id).await;
        if containers.len() == 1 {
            Ok(())
        } else {
            Err(format!("{containers:?}"))
        }
    })
    .await;
    app.assert_whole(&id).await;
}
