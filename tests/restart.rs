//! Restarts of real containers and of instances: what is kept, what is newest, what is added up, and what survives
//! `kill -9`.

use std::time::Duration;

use bollard::body_full;
use bollard::query_parameters::UploadToContainerOptionsBuilder;
use longshore_tests::{Builder, Caller, NewWorker, PATIENCE, TestApp, needs_docker, wait_until};
use serde_json::{Value, json};

use crate::remote::CERTAIN;

/// Ten seconds of silence, the beats on both sides of it, and the work of the successor.
const TAKEN_OVER: Duration = Duration::from_secs(45);

on_both_backends! {
    a_restart_replaces_what_runs_and_keeps_what_the_agent_made_of_its_volume,
    a_restart_asked_for_during_a_restart_is_run_once_more_with_the_newest_secrets,
    a_workspace_that_is_deleted_while_it_restarts_is_not_brought_up,
    a_restart_that_is_cancelled_half_way_says_so_and_can_be_tried_again,
    a_restart_that_may_not_be_provisioned_stops_nothing,
    a_restarted_agent_is_told_of_it_once_by_names_of_keys_alone,
    the_command_line_restarts_by_name_and_waits,
    whoever_writes_to_an_agent_that_is_gone_has_it_restarted,
    a_workspace_that_is_lost_again_and_again_rests_longer_and_then_has_failed,
    an_agent_that_falls_silent_is_restarted,
    a_crash_before_anything_is_stopped,
    a_crash_when_the_old_one_is_stopped,
    a_crash_when_the_restart_is_begun,
    a_crash_before_the_new_one_is_written_down,
    a_crash_after_the_new_one_is_written_down,
}

async fn restart(app: &TestApp, id: &str, body: &Value) -> Value {
    let path = format!("/workspaces/{id}/restart");
    let answer = app.admin().post(&path, body).await;
    let restarted = answer.expect(200);
    assert_eq!(restarted["status"], "provisioning");
    let job = restarted["job_id"].as_str().unwrap();
    assert_eq!(answer.location, format!("/jobs/{job}"));
    restarted
}

fn job_of(answer: &Value) -> String {
    answer["job_id"].as_str().unwrap().to_owned()
}

/// A workspace that is up and whose provision has ended.
async fn up(app: &TestApp, name: &str, more: Value) -> String {
    let (id, job) = app.create(name, more).await;
    app.until_job(&job, "succeeded", PATIENCE).await;
    app.until_up(&id, PATIENCE).await;
    id
}

/// The one container of a workspace: its id and its environment.
async fn container(app: &TestApp, id: &str) -> (String, Vec<String>) {
    let containers = app.engine().containers_of(id).await;
    assert_eq!(containers.len(), 1, "{containers:?}");
    let found = containers[0].id.clone();
    let inspected = app.engine().docker().inspect_container(&found, None).await;
    let env = inspected.unwrap().config.unwrap().env.unwrap();
    (found, env)
}

async fn write_config_into(app: &TestApp, container: &str, text: &str) {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(text.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, "config.yaml", text.as_bytes())
        .unwrap();
    let options = UploadToContainerOptionsBuilder::default()
        .path("/configs")
        .build();
    let bytes = tar.into_inner().unwrap().into();
    let upload = app.engine().docker();
    let upload = upload.upload_to_container(container, Some(options), body_full(bytes));
    upload.await.unwrap();
}

/// A secret in plain text, as dev mode stores it: no route sets one yet.
async fn write_secret_directly(app: &TestApp, id: &str, name: &str, value: &str) {
    sqlx::query(
        "INSERT INTO workspace_secrets (workspace_id, key, encrypted_value, encryption_version)
         VALUES ($1::uuid, $2, $3, 0)
         ON CONFLICT (workspace_id, key) DO UPDATE SET encrypted_value = excluded.encrypted_value, encryption_version = 0",
    )
    .bind(id)
    .bind(name)
    .bind(value.as_bytes())
    .execute(app.pool())
    .await
    .unwrap();
}

async fn a_restart_replaces_what_runs_and_keeps_what_the_agent_made_of_its_volume(place: Builder) {
    let app = place.start().await;
    let id = up(&app, "changing", json!({})).await;
    let (before, _) = container(&app, &id).await;
    let token = app.engine().token_in(&before).await;
    let edited = "# edited by its owner\nname: changing\nruntime: hermes\n";
    if !app.is_hosted() {
        write_config_into(&app, &before, edited).await;
    }

    let answer = restart(&app, &id, &json!({})).await;
    assert_eq!(
        (&answer["config_dir"], &answer["reset_session"]),
        (&json!("existing-volume"), &json!(false))
    );
    let job = app.until_job(&job_of(&answer), "succeeded", PATIENCE).await;
    assert_eq!(
        (&job["kind"], &job["progress"]["step"]),
        (&json!("restart"), &json!("started"))
    );
    app.until_up(&id, PATIENCE).await;
    app.assert_whole(&id).await;
    let (after, _) = container(&app, &id).await;
    assert_ne!(before, after);
    let runtime = &app.entry(&id).await["runtime"];
    if app.is_hosted() {
        assert_eq!(runtime, "claude-code", "an instance keeps nothing");
    } else {
        let config = app.engine().read_file(&after, "/configs/config.yaml").await;
        assert_eq!(config, edited);
        assert_eq!(runtime, "hermes", "the volume says so");
    }
    // The old token is worth nothing.
    assert_ne!(app.engine().token_in(&after).await, token);
    let old = app.with_token(Some(&token));
    let beat = json!({ "workspace_id": id });
    assert_eq!(old.post("/registry/heartbeat", &beat).await.status, 401);
    let told = ["WORKSPACE_PROVISIONING", "WORKSPACE_ONLINE"];
    assert_eq!(app.event_names(&id).await, [told, told].concat());
}

async fn a_restart_asked_for_during_a_restart_is_run_once_more_with_the_newest_secrets(
    place: Builder,
) {
    let gates = tempfile::tempdir().unwrap();
    let gate = gates.path().join("go-on");
    // The second token is that of the first restart, which has read its secrets by then.
    let worker = NewWorker::default().failpoint(
        "provision.token_issued*2",
        &format!("gate:{}", gate.display()),
    );
    let app = place.workers([worker]).start().await;
    let id = up(&app, "rotating", json!({ "secrets": { "API_KEY": "old" } })).await;
    let first = restart(&app, &id, &json!({})).await;
    wait_until(
        "the first restart to have read its secrets",
        PATIENCE,
        || async {
            let reached = app.workers[0].log_lines_saying("fail point reached");
            if reached.is_empty() {
                Err(app.job(&job_of(&first)).await.to_string())
            } else {
                Ok(())
            }
        },
    )
    .await;

    write_secret_directly(&app, &id, "API_KEY", "new").await;
    let second = restart(&app, &id, &json!({ "reset": true })).await;
    let third = restart(&app, &id, &json!({ "template": "nowhere" })).await;
    assert_ne!(job_of(&first), job_of(&second));
    assert_eq!(job_of(&second), job_of(&third), "they are one");
    let waiting = app.job(&job_of(&second)).await;
    assert_eq!(waiting["state"], "scheduled", "{waiting}");
    assert_eq!(waiting["waiting"]["reason"], "key", "{waiting}");
    assert_eq!(
        (
            &waiting["args"]["reset_session"],
            &waiting["args"]["template"]
        ),
        (&json!(true), &json!("nowhere"))
    );

    std::fs::write(&gate, "").unwrap();
    app.until_job(&job_of(&first), "succeeded", PATIENCE).await;
    app.until_job(&job_of(&second), "succeeded", PATIENCE).await;
    app.until_up(&id, PATIENCE).await;
    app.assert_whole(&id).await;
    let (_, env) = container(&app, &id).await;
    assert!(env.contains(&"API_KEY=new".to_owned()), "{env:?}");
    let jobs = app.admin().get("/jobs?kind=restart").await.expect(200);
    assert_eq!(jobs["items"].as_array().unwrap().len(), 2, "{jobs}");
    let entered = app.workers[0].log_lines_saying("restart entered");
    assert_eq!(entered.len(), 2);
}

async fn a_workspace_that_is_deleted_while_it_restarts_is_not_brought_up(place: Builder) {
    let gates = tempfile::tempdir().unwrap();
    let gate = gates.path().join("go-on");
    let worker =
        NewWorker::default().failpoint("restart.stopped", &format!("gate:{}", gate.display()));
    let app = place.workers([worker]).start().await;
    let id = up(&app, "doomed", json!({})).await;
    let job = job_of(&restart(&app, &id, &json!({})).await);
    wait_until("what ran to be stopped", PATIENCE, || async {
        let left = app.remains(&id).await;
        if left.is_empty() {
            Ok(())
        } else {
            Err(format!("{left:?}"))
        }
    })
    .await;
    let admin = app.admin();
    let path = format!("/workspaces/{id}");
    let deletion = tokio::spawn(async move { admin.delete(&path).await });
    wait_until("the tombstone", PATIENCE, || async {
        let shown = app.admin().get(&format!("/workspaces/{id}")).await;
        if matches!(shown.status, 404 | 410) {
            Ok(())
        } else {
            Err(shown.text())
        }
    })
    .await;
    std::fs::write(&gate, "").unwrap();
    let deleted = deletion.await.unwrap();
    assert!(matches!(deleted.status, 200 | 202), "{}", deleted.text());
    wait_until("the restart to end", PATIENCE, || async {
        let job = app.job(&job).await;
        match job["state"].as_str() {
            Some("superseded" | "cancelled") => Ok(()),
            _ => Err(job.to_string()),
        }
    })
    .await;
    assert!(app.remains(&id).await.is_empty());
    let names = app.event_names(&id).await;
    assert_eq!(names.last().unwrap(), "WORKSPACE_REMOVED");
}

async fn a_restart_that_is_cancelled_half_way_says_so_and_can_be_tried_again(place: Builder) {
    let gates = tempfile::tempdir().unwrap();
    let gate = gates.path().join("go-on");
    let worker =
        NewWorker::default().failpoint("restart.begun*1", &format!("gate:{}", gate.display()));
    let app = place.workers([worker]).start().await;
    let id = up(&app, "undecided", json!({})).await;
    let job = job_of(&restart(&app, &id, &json!({})).await);
    app.until_status(&id, "provisioning", PATIENCE).await;
    let cancel = json!({ "reason": "second thoughts" });
    let path = format!("/jobs/{job}/cancel");
    let answer = app.admin().post(&path, &cancel).await;
    assert_eq!(answer.status, 202, "{}", answer.text());
    // It does not get any further before it is dropped.
    app.until_job(&job, "cancelled", PATIENCE).await;
    let entry = app.until_status(&id, "failed", PATIENCE).await;
    let reason = entry["last_sample_error"].as_str().unwrap();
    assert!(reason.contains("second thoughts"), "{entry}");
    assert!(app.remains(&id).await.is_empty());

    let path = format!("/jobs/{job}/retry");
    let again = app.admin().post(&path, &json!({})).await;
    assert_eq!(again.status, 202, "{}", again.text());
    app.until_job(&job, "succeeded", PATIENCE).await;
    app.until_up(&id, PATIENCE).await;
    app.assert_whole(&id).await;
}

async fn a_restart_that_may_not_be_provisioned_stops_nothing(place: Builder) {
    let app = place.start().await;
    let id = up(&app, "waiting", json!({})).await;
    let (before, _) = container(&app, &id).await;
    let pause = json!({ "reason": "bad image" });
    let paused = app.admin().post("/queues/provision/pause", &pause).await;
    paused.expect(200);
    let job = job_of(&restart(&app, &id, &json!({})).await);
    wait_until("the restart to put itself off", PATIENCE, || async {
        let job = app.job(&job).await;
        if job["snoozes"].as_i64() > Some(0) {
            Ok(())
        } else {
            Err(job.to_string())
        }
    })
    .await;
    assert_eq!(container(&app, &id).await.0, before);
    assert_eq!(app.entry(&id).await["status"], "online");
    let resumed = app
        .admin()
        .post("/queues/provision/resume", &json!({}))
        .await;
    resumed.expect(200);
    app.until_job(&job, "succeeded", PATIENCE).await;
    app.until_up(&id, PATIENCE).await;
    assert_ne!(container(&app, &id).await.0, before);
}

async fn a_restarted_agent_is_told_of_it_once_by_names_of_keys_alone(place: Builder) {
    let app = place.start().await;
    let secret = "a-value-nobody-is-told-7c1e";
    let id = up(
        &app,
        "told",
        json!({ "secrets": { "API_KEY": secret, "B_KEY": "b" } }),
    )
    .await;
    let job = job_of(&restart(&app, &id, &json!({})).await);
    app.until_job(&job, "succeeded", PATIENCE).await;
    let entry = app.until_up(&id, PATIENCE).await;
    let token = app.engine().token_in(&container(&app, &id).await.0).await;
    let agent = Caller::at(entry["url"].as_str().unwrap(), Some(&token));
    // The reference agent repeats what it is told; only what came in counts.
    let told = wait_until("the agent to be told", PATIENCE, || async {
        let transcript = agent.get("/transcript").await.expect(200);
        let messages = transcript["messages"].as_array().unwrap();
        let heard = messages.iter().filter(|message| message["role"] == "user");
        let heard: Vec<_> = heard.map(|message| message["text"].to_string()).collect();
        if heard.is_empty() {
            Err(transcript.to_string())
        } else {
            Ok(heard)
        }
    })
    .await;
    assert_eq!(told.len(), 1, "{told:?}");
    let told = &told[0];
    assert!(
        told.contains("API_KEY, B_KEY") && !told.contains(secret),
        "{told}"
    );
    let jobs = app
        .admin()
        .get("/jobs?kind=restart-context")
        .await
        .expect(200);
    assert_eq!(jobs["items"].as_array().unwrap().len(), 1, "{jobs}");
    // It is no message of anybody: nothing of it is in the log of activities.
    let recorded: i64 = sqlx::query_scalar("SELECT count(*) FROM activity_logs")
        .fetch_one(app.pool())
        .await
        .unwrap();
    assert_eq!(recorded, 0);
}

async fn the_command_line_restarts_by_name_and_waits(place: Builder) {
    let app = place.start().await;
    let id = up(&app, "by-name", json!({})).await;
    let (before, _) = container(&app, &id).await;
    let done = app.command(&["restart", "by-name", "--wait"]);
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success(), "{said}");
    assert_eq!(String::from_utf8_lossy(&done.stdout).trim(), id);
    assert!(said.contains("by-name is online"), "{said}");
    assert_ne!(container(&app, &id).await.0, before);
    let unknown = app.command(&["restart", "nobody"]);
    assert!(!unknown.status.success());
}

#[tokio::test]
async fn a_crash_when_the_new_container_is_created() {
    needs_docker!();
    Box::pin(survives_a_crash_at(
        TestApp::build(),
        "docker.after_create*2",
    ))
    .await;
}

/// Makes a function for each other place where a worker dies in the middle of a restart.
macro_rules! crashes_at {
    ($($name:ident: $point:literal,)*) => {
        $(
            async fn $name(place: Builder) {
                Box::pin(survives_a_crash_at(place, $point)).await;
            }
        )*
    };
}

// Of the points that a provision passes too, the second time is that of the restart.
crashes_at! {
    a_crash_before_anything_is_stopped: "restart.guarded",
    a_crash_when_the_old_one_is_stopped: "restart.stopped",
    a_crash_when_the_restart_is_begun: "restart.begun",
    a_crash_before_the_new_one_is_written_down: "provision.started*2",
    a_crash_after_the_new_one_is_written_down: "provision.persisted*2",
}

async fn survives_a_crash_at(place: Builder, point: &str) {
    let dying = NewWorker::default().failpoint(point, "die");
    let mut app = place.workers([dying]).start().await;
    let id = up(&app, "unlucky", json!({})).await;
    let (before, _) = container(&app, &id).await;
    let job = job_of(&restart(&app, &id, &json!({})).await);
    app.workers[0].died(PATIENCE).await;
    let successor = app.start_worker(NewWorker::default()).await;
    // It outlives this test's look at what is left to do.
    app.workers.push(successor);
    if app.is_hosted() && point.starts_with("provision.started") {
        // Nobody knows yet whether the call is still being answered.
        app.until_snoozed(&job, TAKEN_OVER).await;
        app.advance(CERTAIN).await;
    }
    let done = app.until_job(&job, "succeeded", TAKEN_OVER).await;
    assert_eq!(done["crashes"], 1, "{done}");
    app.until_up(&id, PATIENCE).await;
    app.assert_whole(&id).await;
    assert_ne!(container(&app, &id).await.0, before);
}

/// A message to an agent whose container is gone: what its sender hears.
async fn knock(app: &TestApp, id: &str) -> Value {
    let message = json!({ "method": "message/send", "params": { "message": {
        "role": "user", "parts": [{ "kind": "text", "text": "are you there?" }] } } });
    let path = format!("/workspaces/{id}/a2a");
    app.admin().post(&path, &message).await.expect(503)
}

async fn lose(app: &TestApp, id: &str) -> Value {
    let (gone, _) = container(app, id).await;
    app.engine().remove(&gone).await;
    knock(app, id).await
}

async fn whoever_writes_to_an_agent_that_is_gone_has_it_restarted(place: Builder) {
    let app = place.start().await;
    let id = up(&app, "resurrected", json!({})).await;
    let answer = lose(&app, &id).await;
    assert_eq!(
        (&answer["error"], &answer["restarting"]),
        (
            &json!("workspace agent unreachable — container restart triggered"),
            &json!(true)
        )
    );
    wait_until("its agent to answer again", PATIENCE, || async {
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
    let change = ["WORKSPACE_PROVISIONING", "WORKSPACE_ONLINE"];
    assert_eq!(
        names,
        [&change[..], &["WORKSPACE_OFFLINE"], &change].concat()
    );
    let jobs = app.admin().get("/jobs?kind=restart").await.expect(200);
    let job = &jobs["items"][0];
    assert_eq!(
        (&job["created_by"], &job["args"]["apply_template"]),
        (&json!("auto-restart"), &json!(false))
    );
}

async fn a_workspace_that_is_lost_again_and_again_rests_longer_and_then_has_failed(place: Builder) {
    let app = place.start().await;
    let id = up(&app, "crash-looping", json!({})).await;
    for (round, rest) in [0_u64, 10, 60].into_iter().enumerate() {
        let answer = lose(&app, &id).await;
        assert_eq!(answer["restarting"], true, "{answer}");
        let jobs = app.admin().get("/jobs?kind=restart").await.expect(200);
        let job = jobs["items"][0].clone();
        assert_eq!(job["args"]["delay_ms"], rest * 1000, "{job}");
        if rest > 0 {
            assert_eq!(job["waiting"]["reason"], "time", "{job}");
            // Not offline for long enough to be noticed in any other way.
            app.advance(Duration::from_secs(rest)).await;
        }
        let job = job["id"].as_str().unwrap();
        app.until_job(job, "succeeded", PATIENCE).await;
        app.until_up(&id, PATIENCE).await;
        let jobs = jobs["items"].as_array().unwrap().len();
        assert_eq!(jobs, round + 1);
    }
    let answer = lose(&app, &id).await;
    assert_eq!(
        (&answer["error"], &answer["restarting"]),
        (&json!("workspace agent unreachable"), &json!(false))
    );
    let entry = app.entry(&id).await;
    assert_eq!(entry["status"], "failed", "{entry}");
    let reason = entry["last_sample_error"].as_str().unwrap();
    assert!(reason.starts_with("crash loop"), "{reason}");
    let names = app.event_names(&id).await;
    let last = ["WORKSPACE_OFFLINE", "WORKSPACE_PROVISION_FAILED"];
    assert_eq!(names[names.len() - 2..], last);

    // Its owner may restart it, which does not count; when the window has passed it is restarted by itself again.
    let job = job_of(&restart(&app, &id, &json!({})).await);
    app.until_job(&job, "succeeded", PATIENCE).await;
    app.until_up(&id, PATIENCE).await;
    app.advance(Duration::from_secs(601)).await;
    let agent: Caller = app.agent(&id).await;
    let beat = json!({ "workspace_id": id });
    agent.post("/registry/heartbeat", &beat).await.expect(200);
    assert_eq!(lose(&app, &id).await["restarting"], true);
    app.until_up(&id, PATIENCE).await;
    app.assert_whole(&id).await;
}

async fn an_agent_that_falls_silent_is_restarted(place: Builder) {
    let mut app = place
        .setting("LONGSHORE_LIVENESS_TTL_SECONDS", "2")
        .start()
        .await;
    // It falls silent again and again, and its next restart may wait.
    app.abandon_jobs();
    let fading = json!({ "secrets": {
        "AGENT_STOP_BEATING_AFTER_SECONDS": "1", "AGENT_HEARTBEAT_SECONDS": "0.2" } });
    let id = up(&app, "fading", fading).await;
    let (before, _) = container(&app, &id).await;
    // Sweeps come every 15 s, give or take.
    let job = wait_until("its restart", TAKEN_OVER, || async {
        let jobs = app.admin().get("/jobs?kind=restart").await.expect(200);
        let job = jobs["items"][0].clone();
        if job.is_null() {
            Err(jobs.to_string())
        } else {
            Ok(job)
        }
    })
    .await;
    assert_eq!(job["args"]["source"], "liveness", "{job}");
    app.until_job(job["id"].as_str().unwrap(), "succeeded", PATIENCE)
        .await;
    assert_ne!(container(&app, &id).await.0, before);
    let names = app.event_names(&id).await;
    assert_eq!(names[2..4], ["WORKSPACE_OFFLINE", "WORKSPACE_PROVISIONING"]);
}
