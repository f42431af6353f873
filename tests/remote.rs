//! Workspaces of a hosted organisation: on instances of a remote control plane, here the simulated one.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use longshore_tests::{Builder, NewWorker, PATIENCE, TestApp, needs_docker, wait_until};
use serde_json::{Value, json};

use crate::leaks::leaks;
use crate::purge::is_gone;
use crate::reconcilers::{run, until_passed};
use crate::sweeps::disable;

const SIMULATION: &str = env!("CARGO_BIN_EXE_longshore-cp-sim");
/// How every failure of the simulation that has something to say begins.
const LOUD: &str = "the-words-of-the-control-plane";

/// On instances of a simulated control plane, started with these flags.
pub(crate) fn hosted(flags: &[&str]) -> Builder {
    TestApp::build().control_plane(SIMULATION, flags)
}

/// Waits until a workspace is online on the one instance it has, which its row names.
async fn until_up(app: &TestApp, workspace: &str) -> String {
    app.until_status(workspace, "online", PATIENCE).await;
    let what = format!("the instance of {workspace} to be the row's");
    wait_until(&what, PATIENCE, || async {
        let row = app.home_in_row(workspace).await;
        let running = app.control_plane().instances(workspace).await;
        match (&row, running.as_slice()) {
            (Some(row), [one]) if row == one => Ok(row.clone()),
            _ => Err(format!("the row's: {row:?}, running: {running:?}")),
        }
    })
    .await
}

/// Nothing the control plane said is in what anybody may read.
async fn assert_nothing_was_passed_on(app: &TestApp, workspace: &str) {
    let events = app.admin().get(&format!("/events/{workspace}")).await;
    let jobs = app
        .admin()
        .get(&format!("/workspaces/{workspace}/jobs"))
        .await;
    for text in [events.text(), jobs.text()] {
        assert!(!text.contains(LOUD), "{text}");
    }
}

#[tokio::test]
async fn a_workspace_on_an_instance_comes_up_answers_and_goes() {
    needs_docker!();
    let app = hosted(&["--latency-ms", "50"]).start().await;
    let secret = "a-secret-nobody-should-read-4c1d";
    let secrets = json!({ "API_KEY": secret });
    let (id, job) = app
        .create(
            "far",
            json!({ "role": "echo", "secrets": secrets, "model": "minimax/M2" }),
        )
        .await;
    let instance = until_up(&app, &id).await;
    let done = app.until_job(&job, "succeeded", PATIENCE).await;
    assert_eq!(done["progress"]["step"], "started");
    assert_eq!(done["result"]["instance_id"], instance.as_str());
    assert!(app.say(&id, "far away?").await.contains("far away?"));

    let starts = app.control_plane().calls("start", &id).await;
    assert_eq!(starts.len(), 1, "{starts:?}");
    assert_eq!(starts[0]["key"], format!("{id}:1"));
    assert_eq!(
        (&starts[0]["tier"], &starts[0]["runtime"]),
        (&json!(2), &json!("claude-code"))
    );
    let sent: BTreeSet<&str> = starts[0]["env"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_str)
        .collect();
    for name in [
        "API_KEY",
        "MODEL",
        "MODEL_PROVIDER",
        "LONGSHORE_AGENT_ROLE",
        "GIT_AUTHOR_NAME",
    ] {
        assert!(sent.contains(name), "{name} is not in {sent:?}");
    }
    // Who it is, the request says in fields of its own.
    for name in [
        "WORKSPACE_ID",
        "PLATFORM_URL",
        "LONGSHORE_URL",
        "TIER",
        "PYTHONPATH",
    ] {
        assert!(!sent.contains(name), "{name} is in {sent:?}");
    }
    // The token came with the registration.
    let agent = app.agent(&id).await;
    let beat = json!({ "workspace_id": id });
    agent.post("/registry/heartbeat", &beat).await.expect(200);

    let console = app.admin().get(&format!("/workspaces/{id}/console")).await;
    let console = console.expect(200);
    assert!(
        console["output"].as_str().unwrap().contains("serving"),
        "{console}"
    );
    let logs = app.admin().get(&format!("/workspaces/{id}/logs")).await;
    assert_eq!(logs.status, 501, "{}", logs.text());

    let deleted = app.admin().delete(&format!("/workspaces/{id}")).await;
    assert!(matches!(deleted.status, 200 | 202), "{}", deleted.text());
    wait_until("the instance to be gone", PATIENCE, || async {
        let running = app.control_plane().instances(&id).await;
        let row = app.home_in_row(&id).await;
        if running.is_empty() && row.is_none() {
            Ok(())
        } else {
            Err(format!("the row's: {row:?}, running: {running:?}"))
        }
    })
    .await;
    assert!(app.engine().containers_of(&id).await.is_empty());
    let stops = app.control_plane().calls("stop", &id).await;
    assert_eq!(stops.len(), 1, "{stops:?}");
    assert_eq!(stops[0]["instance_id"], instance.as_str());
    for process in app.workers.iter().chain([&app.api]) {
        assert!(!process.log().contains(secret), "a secret is in a log");
    }
}

#[tokio::test]
async fn what_a_control_plane_keeps_for_its_tenant_is_taken_at_the_start() {
    needs_docker!();
    let long = format!("LONGSHORE_LOG={}", "x".repeat(4097));
    let flags = ["--config", "LONGSHORE_MAX_TIER=3", "--config", &long];
    let mut app = hosted(&flags).workers([]).start().await;
    let body = json!({ "name": "big", "tier": 4 });
    let refused = app.admin().post("/workspaces", &body).await.expect(403);
    assert!(
        refused["error"]
            .as_str()
            .unwrap()
            .contains("LONGSHORE_MAX_TIER"),
        "{refused}"
    );
    let body = json!({ "name": "big", "tier": 3 });
    app.admin().post("/workspaces", &body).await.expect(201);
    app.abandon_jobs();
    assert!(
        app.api
            .log()
            .contains("the tenant's configuration is taken")
    );
}

#[tokio::test]
async fn seven_at_the_same_moment_have_seven_instances() {
    needs_docker!();
    let app = hosted(&["--latency-ms", "200"]).start().await;
    let names: Vec<String> = (1..=7).map(|number| format!("w{number}")).collect();
    let created = join_all(names.iter().map(|name| app.create(name, json!({})))).await;
    let mut instances = BTreeSet::new();
    for (id, _) in &created {
        instances.insert(until_up(&app, id).await);
        assert_eq!(app.control_plane().calls("start", id).await.len(), 1);
    }
    assert_eq!(instances.len(), 7);
    // Every one was entered once, and no engine was asked for any of them.
    assert_eq!(
        app.workers[0].log_lines_saying("provision entered").len(),
        7
    );
    assert_eq!(app.engine().containers().await.len(), 7);
    assert!(app.engine().volume_names().await.is_empty());
}

#[tokio::test]
async fn starts_that_fail_fail_their_workspaces_without_the_words_of_the_control_plane() {
    needs_docker!();
    let app = hosted(&["--fail-starts", "1"]).start().await;
    let names: Vec<String> = (1..=7).map(|number| format!("w{number}")).collect();
    let created = join_all(names.iter().map(|name| app.create(name, json!({})))).await;
    for (id, job) in &created {
        let entry = app.until_status(id, "failed", PATIENCE).await;
        assert_eq!(entry["last_sample_error"], "provisioning failed");
        let job = app.until_job(job, "dead", PATIENCE).await;
        assert_eq!(job["last_error"], "provisioning failed");
        let events = app.event_names(id).await;
        assert_eq!(
            events,
            ["WORKSPACE_PROVISIONING", "WORKSPACE_PROVISION_FAILED"]
        );
        let starts = app.control_plane().calls("start", id).await;
        assert_eq!(starts.len(), 1, "{starts:?}");
        assert_nothing_was_passed_on(&app, id).await;
    }
    let worker = &app.workers[0];
    assert_eq!(worker.log_lines_saying("provision entered").len(), 7);
    // It is all in the log, up to its limit.
    let failed = worker.log_lines_saying("provision failed");
    assert_eq!(failed.len(), 7);
    for line in failed {
        let detail = line.field("detail");
        assert!(
            detail.contains("status 500") && detail.contains(LOUD),
            "{detail}"
        );
        assert!(detail.len() < 512 + 200, "{detail}");
    }

    // What failed starts once the control plane does.
    let (id, job) = &created[0];
    app.control_plane()
        .set_faults(&json!({ "starts": 0 }))
        .await;
    let retry = app
        .admin()
        .post(&format!("/jobs/{job}/retry"), &json!({}))
        .await;
    assert!(matches!(retry.status, 200 | 202), "{}", retry.text());
    until_up(&app, id).await;
}

#[tokio::test]
async fn a_stop_that_is_answered_500_is_repeated_until_it_succeeds() {
    needs_docker!();
    let app = hosted(&[]).start().await;
    let (id, _) = app.create("sticky", json!({})).await;
    let instance = until_up(&app, &id).await;
    app.control_plane().set_faults(&json!({ "stops": 1 })).await;
    let deleted = app.admin().delete(&format!("/workspaces/{id}")).await;
    assert!(
        matches!(deleted.status, 200 | 202 | 500),
        "{}",
        deleted.text()
    );
    assert!(!deleted.text().contains(LOUD), "{}", deleted.text());
    wait_until("a second stop to be tried", PATIENCE, || async {
        let stops = app.control_plane().calls("stop", &id).await;
        let refused = stops.iter().filter(|stop| stop["status"] == 500).count();
        if refused >= 2 {
            Ok(())
        } else {
            Err(format!("{stops:?}"))
        }
    })
    .await;
    // Still on file, or nobody could stop it any more.
    assert_eq!(app.home_in_row(&id).await, Some(instance.clone()));
    assert_nothing_was_passed_on(&app, &id).await;
    assert!(app.workers[0].log().contains(LOUD));

    app.control_plane().set_faults(&json!({ "stops": 0 })).await;
    wait_until("the instance to be gone", PATIENCE, || async {
        let running = app.control_plane().instances(&id).await;
        let row = app.home_in_row(&id).await;
        if running.is_empty() && row.is_none() {
            Ok(())
        } else {
            Err(format!("the row's: {row:?}, running: {running:?}"))
        }
    })
    .await;
    assert!(app.engine().containers_of(&id).await.is_empty());
}

/// Past the limit of a call, after which nobody can be answered any more.
pub(crate) const CERTAIN: Duration = Duration::from_secs(121);

#[tokio::test]
async fn a_worker_that_dies_before_it_notes_its_instance_leaves_no_second_one() {
    needs_docker!();
    let dying = NewWorker::default().failpoint("provision.started*1", "die");
    let mut app = hosted(&[]).workers([dying]).start().await;
    let (id, job) = app.create("unlucky", json!({})).await;
    app.workers[0].died(PATIENCE).await;
    let first = app.control_plane().instances(&id).await;
    assert_eq!((first.len(), app.home_in_row(&id).await), (1, None));

    let successor = app.start_worker(NewWorker::default()).await;
    app.workers.push(successor);
    // Nobody knows yet whether the call is still being answered.
    app.until_snoozed(&job, PATIENCE).await;
    app.advance(CERTAIN).await;
    let instance = until_up(&app, &id).await;
    assert_ne!(first, [instance]);
    let keys: Vec<Value> = app
        .control_plane()
        .calls("start", &id)
        .await
        .into_iter()
        .map(|start| start["key"].clone())
        .collect();
    // The first was asked for under its own key, and stopped.
    assert_eq!(
        keys[..2],
        [json!(format!("{id}:1")), json!(format!("{id}:1"))]
    );
    assert_eq!(keys.len(), 3, "{keys:?}");
    let stops = app.control_plane().calls("stop", &id).await;
    assert_eq!(stops.len(), 1, "{stops:?}");
    assert_eq!(stops[0]["instance_id"], first[0].as_str());
    assert!(!app.workers[1].log().contains("LEAK-SUSPECT"));
}

#[tokio::test]
async fn a_control_plane_that_keeps_no_keys_leaves_a_doubt_that_is_flagged() {
    needs_docker!();
    let dying = NewWorker::default().failpoint("provision.started*1", "die");
    let mut app = hosted(&["--forget-keys", "true"])
        .workers([dying])
        .start()
        .await;
    let (id, _) = app.create("doubtful", json!({})).await;
    app.workers[0].died(PATIENCE).await;
    let first = app.control_plane().instances(&id).await;
    let successor = app.start_worker(NewWorker::default()).await;
    app.workers.push(successor);
    app.advance(CERTAIN).await;
    wait_until(
        "the successor's instance to be the row's",
        PATIENCE,
        || async {
            match app.home_in_row(&id).await {
                Some(instance) if app.control_plane().calls("start", &id).await.len() == 3 => {
                    Ok(instance)
                }
                other => Err(format!("{other:?}")),
            }
        },
    )
    .await;
    // What was asked for by its key was made anew, and is stopped. The first nobody can name.
    let running = app.control_plane().instances(&id).await;
    assert_eq!(running.len(), 2, "{running:?}");
    assert!(running.contains(&first[0]));
    assert_flagged(&app, 1, &id).await;
}

#[tokio::test]
async fn an_instance_whose_name_was_lost_is_flagged_when_its_workspace_goes() {
    needs_docker!();
    let app = hosted(&["--lose-starts", "1"]).start().await;
    let (id, _) = app.create("lost", json!({})).await;
    // Its agent needs nobody to know the instance's name.
    app.until_status(&id, "online", PATIENCE).await;
    wait_until("the start to have failed", PATIENCE, || async {
        let jobs = app.admin().get(&format!("/workspaces/{id}/jobs")).await;
        let jobs = jobs.expect(200);
        if jobs.to_string().contains("\"dead\"") {
            Ok(())
        } else {
            Err(jobs.to_string())
        }
    })
    .await;
    assert_eq!(app.home_in_row(&id).await, None);
    let deleted = app.admin().delete(&format!("/workspaces/{id}")).await;
    assert!(matches!(deleted.status, 200 | 202), "{}", deleted.text());
    assert_flagged(&app, 0, &id).await;
}

fn statuses(calls: &[Value]) -> Vec<&Value> {
    calls.iter().map(|call| &call["status"]).collect()
}

#[tokio::test]
async fn a_purge_whose_worker_dies_before_it_notes_its_stop_ends_all_the_same() {
    needs_docker!();
    let dying = NewWorker::default().failpoint("instance.stopped*1", "die");
    let mut app = hosted(&[]).workers([dying]).start().await;
    let (id, _) = app.create("unnoted", json!({})).await;
    until_up(&app, &id).await;
    let admin = app.admin();
    let path = format!("/workspaces/{id}?purge=true");
    let (_, answer) = tokio::join!(app.workers[0].died(PATIENCE), admin.delete(&path));
    assert_eq!(answer.status, 202, "{}", answer.text());
    assert!(app.control_plane().instances(&id).await.is_empty());

    let successor = app.start_worker(NewWorker::default()).await;
    app.workers.push(successor);
    let job = answer.expect(202)["job_id"].as_str().unwrap().to_owned();
    app.until_job(&job, "succeeded", PATIENCE).await;
    is_gone(&app, &id).await;
    let stops = app.control_plane().calls("stop", &id).await;
    assert_eq!(statuses(&stops), [204, 404], "{stops:?}");
    assert!(leaks(&app).await.is_empty());
    assert!(!app.workers[1].log().contains("LEAK-SUSPECT"));
}

#[tokio::test]
async fn an_instance_whose_start_nobody_noted_is_stopped_by_the_purge_of_its_workspace() {
    needs_docker!();
    let dying = NewWorker::default().failpoint("provision.started*1", "die");
    let mut app = hosted(&[]).workers([dying]).start().await;
    let (id, job) = app.create("unnamed", json!({})).await;
    app.workers[0].died(PATIENCE).await;
    assert_eq!(app.control_plane().instances(&id).await.len(), 1);
    let successor = app.start_worker(NewWorker::default()).await;
    app.workers.push(successor);
    app.until_snoozed(&job, PATIENCE).await;
    // Nobody can say yet what there is to stop.
    let path = format!("/workspaces/{id}?purge=true");
    let answer = app.admin().delete(&path).await.expect(500);
    assert_eq!(answer["stop_failures"], 1, "{answer}");
    assert_eq!(app.control_plane().instances(&id).await.len(), 1);

    app.advance(CERTAIN).await;
    let path = format!("/workspaces/{id}?include_removed=true");
    wait_until("the workspace to be gone", PATIENCE, || async {
        let answer = app.admin().get(&path).await;
        if answer.status == 404 {
            Ok(())
        } else {
            Err(answer.text())
        }
    })
    .await;
    assert!(app.control_plane().instances(&id).await.is_empty());
    let starts = app.control_plane().calls("start", &id).await;
    assert_eq!(starts.len(), 2, "{starts:?}");
    assert!(starts.iter().all(|start| start["key"] == format!("{id}:1")));
    assert!(leaks(&app).await.is_empty());
    assert!(!app.workers[1].log().contains("LEAK-SUSPECT"));
}

#[tokio::test]
async fn an_instance_that_the_control_plane_does_not_know_is_flagged_if_nobody_stopped_it() {
    needs_docker!();
    let mut app = hosted(&[]).start().await;
    let (id, _) = app.create("mistaken", json!({})).await;
    let instance = until_up(&app, &id).await;
    sqlx::query("UPDATE workspaces SET instance_id = 'i-unheard-of' WHERE id = $1::uuid")
        .bind(&id)
        .execute(app.pool())
        .await
        .unwrap();
    let path = format!("/workspaces/{id}/pause");
    app.admin().post(&path, &json!({})).await.expect(200);
    let leak = wait_until("the instance to be flagged", PATIENCE, || async {
        leaks(&app)
            .await
            .pop()
            .ok_or_else(|| "nothing is".to_owned())
    })
    .await;
    assert_eq!(leak["resource_id"], "i-unheard-of");
    let stops = app.control_plane().calls("stop", &id).await;
    assert_eq!(statuses(&stops), [404, 404, 404], "{stops:?}");
    let running = app.control_plane().instances(&id).await;
    assert_eq!(running, [instance]);
    app.abandon_jobs();
}

/// The start of a workspace's first generation is on the list of leaks, and in the log of a worker.
async fn assert_flagged(app: &TestApp, worker: usize, workspace: &str) {
    let flagged = wait_until("the start to be flagged", PATIENCE, || async {
        let found: Option<String> = sqlx::query_scalar(
            "SELECT resource_id FROM leaks WHERE workspace_id = $1::uuid AND resource = 'instance'",
        )
        .bind(workspace)
        .fetch_optional(app.pool())
        .await
        .unwrap();
        found.ok_or_else(|| "nothing".to_owned())
    })
    .await;
    assert_eq!(flagged, format!("{workspace}:1"));
    let log = app.workers[worker].log();
    assert!(log.contains("LEAK-SUSPECT"), "nothing was said of it");
}

#[tokio::test]
async fn a_dry_run_of_health_tells_of_starts_that_nobody_asks_about_and_flags_none() {
    needs_docker!();
    let app = hosted(&[]).start().await;
    until_passed(&app, "health").await;
    disable(&app, "health").await;
    let id: String = sqlx::query_scalar(
        "INSERT INTO workspaces (id, name, status, start_called_as, start_certain_at)
         VALUES (gen_random_uuid(), 'given up', $1::workspace_status, 1, longshore_now() - interval '1 hour')
         RETURNING id::text",
    )
    .bind("failed")
    .fetch_one(app.pool())
    .await
    .unwrap();
    let report = run(&app, "health", json!({ "dry_run": true })).await;
    let flag = format!("flags the forgotten start {id}:1");
    assert_eq!(
        (&report["would"], &report["acted"]),
        (&json!([flag]), &json!(0))
    );
    let none = app.admin().get("/leaks").await.expect(200);
    assert_eq!(none["items"], json!([]));
    let enable = "/reconcilers/health/enable";
    app.admin().post(enable, &json!({})).await.expect(200);
    run(&app, "health", json!({})).await;
    let leaks = app.admin().get("/leaks").await.expect(200);
    assert_eq!(leaks["items"][0]["resource_id"], format!("{id}:1"));
}
