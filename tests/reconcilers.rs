//! Reconcilers as operators see and steer them.

use std::time::Duration;

use longshore_tests::{NewWorker, PATIENCE, TestApp, needs_docker, wait_until};
use serde_json::{Value, json};

/// A control plane without an engine whose worker has made its first passes.
async fn swept() -> TestApp {
    let app = TestApp::build()
        .without_docker()
        .workers([NewWorker::default()])
        .start()
        .await;
    for name in ["hibernation", "holds", "liveness", "provision-timeout"] {
        until_passed(&app, name).await;
    }
    app
}

pub(crate) async fn until_passed(app: &TestApp, name: &str) {
    wait_until(name, PATIENCE, || async {
        let answer = app.admin().get(&format!("/reconcilers/{name}")).await;
        let text = answer.text();
        if answer.status == 200 && answer.json()["last_pass"].is_object() {
            Ok(())
        } else {
            Err(text)
        }
    })
    .await;
}

/// Asks for a pass and answers its report.
pub(crate) async fn run(app: &TestApp, name: &str, body: Value) -> Value {
    let started = app
        .admin()
        .post(&format!("/reconcilers/{name}/run"), &body)
        .await;
    let id = started.expect(202)["job_id"].as_str().unwrap().to_owned();
    assert_eq!(started.location, format!("/jobs/{id}"));
    let job = app.until_job(&id, "succeeded", PATIENCE).await;
    assert_eq!(job["kind"], "reconcile");
    job["result"].clone()
}

/// A workspace whose agent was started a day ago and never heard of.
async fn write_overdue_directly(app: &TestApp) -> String {
    sqlx::query_scalar(
        "INSERT INTO workspaces (id, name, provision_generation, provision_started_at)
         VALUES (gen_random_uuid(), 'late', 1, longshore_now() - interval '1 day') RETURNING id::text",
    )
    .fetch_one(app.pool())
    .await
    .unwrap()
}

async fn operator_events(app: &TestApp) -> Vec<(String, Value)> {
    sqlx::query_as(
        "SELECT event_type, payload FROM structure_events WHERE event_type LIKE 'RECONCILER%' ORDER BY created_at",
    )
    .fetch_all(app.pool())
    .await
    .unwrap()
}

#[tokio::test]
async fn an_operator_sees_disables_and_enables_a_reconciler() {
    let app = swept().await;
    let admin = app.admin();
    let listed = admin.get("/reconcilers?limit=2").await.expect(200);
    assert_eq!(listed["items"].as_array().unwrap().len(), 2);
    assert_eq!(listed["items"][0]["name"], "hibernation");
    let cursor = listed["next_cursor"].as_str().unwrap();
    let rest = format!("/reconcilers?cursor={cursor}&limit=1");
    let rest = admin.get(&rest).await.expect(200);
    assert_eq!(rest["items"][0]["name"], "liveness");
    let one = admin
        .get("/reconcilers/provision-timeout?scope=all")
        .await
        .expect(200);
    assert_eq!(
        (
            &one["scope"],
            &one["interval_seconds"],
            &one["enabled"],
            &one["blocked"]
        ),
        (&json!("all"), &json!(30), &json!(true), &Value::Null)
    );
    assert!(
        one["owner"].is_string() && one["last_pass"]["took_ms"].is_u64(),
        "{one}"
    );
    let live = admin.get("/admin/liveness").await.expect(200);
    let sweep = &live["subsystems"]["provision-timeout-sweep"];
    assert!(
        sweep["last_tick_at"].is_string() && sweep["seconds_ago"].is_u64(),
        "{live}"
    );

    admin.get("/reconcilers/nothing").await.expect(404);
    let disable = "/reconcilers/provision-timeout/disable";
    let refused = admin.post(disable, &json!({})).await.expect(400);
    assert_eq!(refused["error"], "reason is required");
    let why = json!({ "reason": "slow images today" });
    let disabled = admin.post(disable, &why).await.expect(200);
    assert_eq!(disabled["items"][0]["enabled"], false);
    assert_eq!(disabled["items"][0]["change_reason"], "slow images today");
    // Again is no error, and no second event.
    admin.post(disable, &why).await.expect(200);
    wait_until("/readyz to tell", PATIENCE, || async {
        let ready = app.nobody().get("/readyz?verbose").await.json();
        let idle = &ready["reconcilers"][0];
        if idle["name"] == "provision-timeout" && idle["disabled"] == true {
            Ok(())
        } else {
            Err(ready.to_string())
        }
    })
    .await;
    let late = write_overdue_directly(&app).await;
    let refused = admin
        .post("/reconcilers/provision-timeout/run", &json!({}))
        .await
        .expect(409);
    assert!(
        refused["error"].as_str().unwrap().contains("is disabled"),
        "{refused}"
    );
    assert_eq!(app.entry(&late).await["status"], "provisioning");

    let enabled = admin
        .post("/reconcilers/provision-timeout/enable", &json!({}))
        .await
        .expect(200);
    assert_eq!(enabled["items"][0]["enabled"], true);
    run(&app, "provision-timeout", json!({})).await;
    app.until_status(&late, "failed", PATIENCE).await;
    let events = operator_events(&app).await;
    let names: Vec<_> = events.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["RECONCILER_DISABLED", "RECONCILER_ENABLED"]);
    assert_eq!(events[0].1["reason"], "slow images today");
    assert_eq!(events[0].1["scopes"], json!(["all"]));
}

#[tokio::test]
async fn a_dry_run_says_what_it_would_do_and_does_nothing() {
    let app = swept().await;
    let disable = json!({ "reason": "test" });
    app.admin()
        .post("/reconcilers/provision-timeout/disable", &disable)
        .await
        .expect(200);
    let before = app
        .admin()
        .get("/reconcilers/provision-timeout")
        .await
        .json();
    let late = write_overdue_directly(&app).await;
    let report = run(&app, "provision-timeout", json!({ "dry_run": true })).await;
    assert_eq!(
        (&report["would"], &report["acted"]),
        (&json!([late]), &json!(0))
    );
    assert_eq!(app.entry(&late).await["status"], "provisioning");
    assert!(app.event_names(&late).await.is_empty());
    let after = app
        .admin()
        .get("/reconcilers/provision-timeout")
        .await
        .json();
    assert_eq!(after["last_pass"], before["last_pass"], "it is no pass");
}

#[tokio::test]
async fn the_command_line_lists_disables_and_runs_reconcilers() {
    let app = swept().await;
    let says = |arguments: &[&str], code: i32| {
        let output = app.command(arguments);
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {err}");
        String::from_utf8_lossy(&output.stdout).into_owned() + &err
    };
    let name = "provision-timeout";
    let out = says(&["reconcilers", "disable", name, "--reason", "busy"], 0);
    assert_eq!(
        out,
        "reconciler provision-timeout (all) makes no more passes\n"
    );
    let listed = says(&["reconcilers", "list"], 0);
    let line = listed.lines().find(|line| line.starts_with(name)).unwrap();
    assert!(
        line.contains("disabled") && line.ends_with("busy"),
        "{listed}"
    );
    let late = write_overdue_directly(&app).await;
    let out = says(&["reconcile", name, "--dry-run"], 0);
    let told = format!("{name} (all) looked at 1, would act on 1\n  {late}\n");
    assert!(out.contains(&told), "{out}");
    let out = says(&["reconcile", name], 1);
    assert!(out.contains("is disabled (all): enable it first"), "{out}");
    says(&["reconcilers", "enable", name], 0);
    let out = says(&["reconcilers", "approve", name], 1);
    assert!(out.contains("there is nothing to approve"), "{out}");
    says(&["reconcile", name], 0);
    app.until_status(&late, "failed", Duration::from_secs(40))
        .await;
    says(&["reconcile", "nothing"], 3);
}

/// Workspaces that are up and have been idle for an hour, on the worker's engine, where nothing runs of them.
async fn write_up_directly(app: &TestApp, count: i32) -> Vec<String> {
    sqlx::query_scalar(
        "INSERT INTO workspaces (id, name, status, engine_id, provision_generation, idle_since)
         SELECT gen_random_uuid(), 'up ' || n, $2::workspace_status, (SELECT max(engine_id) FROM workers), 1,
                longshore_now() - interval '1 hour'
         FROM generate_series(1, $1) AS n RETURNING id::text",
    )
    .bind(count)
    .bind("online")
    .fetch_all(app.pool())
    .await
    .unwrap()
}

/// More than a pass may take away: these lose nothing, so nobody is asked.
async fn assert_acts_on_all(app: &TestApp, name: &str, ids: &[String], becomes: &str) {
    assert_eq!(ids.len(), 6);
    let report = run(app, name, json!({ "dry_run": true })).await;
    assert_eq!(report["would"].as_array().unwrap().len(), 6, "{report}");
    let report = run(app, name, json!({})).await;
    assert_eq!(report["acted"], 6, "{report}");
    for id in ids {
        app.until_status(id, becomes, PATIENCE).await;
    }
    assert_eq!(operator_events(app).await, Vec::new());
}

#[tokio::test]
async fn many_that_are_overdue_at_once_all_fail() {
    let app = swept().await;
    let mut late = Vec::new();
    for _ in 0..6 {
        late.push(write_overdue_directly(&app).await);
    }
    assert_acts_on_all(&app, "provision-timeout", &late, "failed").await;
}

#[tokio::test]
async fn many_whose_containers_are_gone_at_once_are_all_given_up() {
    needs_docker!();
    let app = TestApp::build()
        .setting("AUTO_RESTART_MAX", "0")
        .start()
        .await;
    until_passed(&app, "health").await;
    let gone = write_up_directly(&app, 6).await;
    assert_acts_on_all(&app, "health", &gone, "offline").await;
}

#[tokio::test]
async fn many_that_fall_idle_at_once_all_go_to_sleep() {
    let mut app = TestApp::build()
        .without_docker()
        .setting("HIBERNATION_IDLE_MINUTES", "10")
        .workers([NewWorker::default()])
        .start()
        .await;
    // Their stops wait for an engine.
    app.abandon_jobs();
    until_passed(&app, "hibernation").await;
    let idle = write_up_directly(&app, 6).await;
    assert_acts_on_all(&app, "hibernation", &idle, "hibernating").await;
}
