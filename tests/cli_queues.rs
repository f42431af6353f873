//! The operator's commands of an incident against a running control plane.

use std::process::Output;

use longshore_tests::{NewWorker, PATIENCE, TestApp, wait_until};
use serde_json::{Value, json};

const DONE: i32 = 0;
const FAILED: i32 = 1;
const USAGE: i32 = 2;
const NOT_FOUND: i32 = 3;
const TIMEOUT: i32 = 6;

/// What was printed: on standard output by what succeeded, on standard error by what did not.
#[track_caller]
fn exits(output: &Output, code: i32) -> String {
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "out: {out}\nerr: {err}");
    if code == DONE { out } else { err }
}

fn json_of(app: &TestApp, arguments: &[&str]) -> Value {
    let text = exits(&app.command(&[arguments, &["--json"]].concat()), DONE);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// A control plane without an engine, whose provisions are dead as soon as they run.
async fn hopeless(worker: NewWorker) -> TestApp {
    TestApp::build()
        .without_docker()
        .workers([worker])
        .start()
        .await
}

async fn until_waiting(app: &TestApp, job: &str, reason: &str) {
    wait_until(reason, PATIENCE, || async {
        let shown = json_of(app, &["jobs", "get", job]);
        if shown["waiting"]["reason"] == reason {
            Ok(())
        } else {
            Err(shown.to_string())
        }
    })
    .await;
}

#[tokio::test]
async fn an_operator_drains_a_queue_lets_it_go_on_and_retries_what_died() {
    let gate = tempfile::tempdir().unwrap();
    let open = gate.path().join("open");
    let wait_there = format!("gate:{}", open.display());
    let app = hopeless(NewWorker::default().failpoint("provision.entered", &wait_there)).await;
    let (_, running) = app.create("early", json!({})).await;
    app.until_job(&running, "running", PATIENCE).await;

    let drain = ["queues", "drain", "provision", "--reason", "upgrade"];
    let impatient = [&drain[..], &["--wait", "1"]].concat();
    let err = exits(&app.command(&impatient), TIMEOUT);
    assert!(err.contains("1 still running"), "{err}");
    let (_, waiting) = app.create("late", json!({})).await;
    until_waiting(&app, &waiting, "drained").await;
    let listed = exits(&app.command(&["jobs", "list"]), DONE);
    assert!(listed.contains("queue provision is draining"), "{listed}");

    std::fs::write(&open, "").unwrap();
    let patient = [&drain[..], &["--wait", "30"]].concat();
    let out = exits(&app.command(&patient), DONE);
    assert_eq!(out, "queue provision is drained: nothing runs\n");
    let queue = json_of(&app, &["queues", "get", "provision"]);
    assert_eq!(
        (&queue["mode"], &queue["mode_reason"], &queue["running"]),
        (&json!("drain"), &json!("upgrade"), &json!(0))
    );
    let out = exits(&app.command(&["queues", "resume", "provision"]), DONE);
    assert!(out.starts_with("queue provision runs"), "{out}");
    for job in [&running, &waiting] {
        app.until_job(job, "dead", PATIENCE).await;
    }

    let which = "kind=provision state=dead error~docker newer_than=1h";
    let retry = ["jobs", "retry", "--where", which];
    let counted = exits(&app.command(&[&retry[..], &["--dry-run"]].concat()), DONE);
    assert!(
        counted.starts_with("2 jobs would be retried:\n"),
        "{counted}"
    );
    assert!(counted.contains(&waiting), "{counted}");
    let err = exits(&app.command(&retry), USAGE);
    assert!(err.contains("--yes"), "{err}");
    assert_eq!(app.job(&running).await["state"], "dead");
    let out = exits(&app.command(&[&retry[..], &["--yes"]].concat()), DONE);
    assert_eq!(out, "2 of 2 jobs retried\n");
    for job in [&running, &waiting] {
        // Retried, it died once more of the same.
        app.until_job(job, "dead", PATIENCE).await;
    }

    let discard = ["jobs", "discard", "--where", "state=dead", "--yes"];
    let out = exits(&app.command(&discard), DONE);
    assert_eq!(out, "2 of 2 jobs discarded\n");
    assert_eq!(json_of(&app, &["queues", "get", "provision"])["dead"], 0);
    let out = exits(&app.command(&discard), DONE);
    assert_eq!(out, "no job matches\n");
    let err = exits(&app.command(&["jobs", "discard", &running]), FAILED);
    assert!(err.contains("only dead or waiting jobs"), "{err}");
    let err = exits(
        &app.command(&["jobs", "cancel", "--where", "state=dead"]),
        USAGE,
    );
    assert!(err.contains("cancel works on"), "{err}");
}

#[tokio::test]
async fn what_is_held_or_without_a_worker_waits_until_it_is_let_go() {
    let app = hopeless(NewWorker::default()).await;
    let all = ["hold", "all", "--reason", "bad image", "--until", "30m"];
    let out = exits(&app.command(&all), DONE);
    assert!(out.starts_with("everything is held until "), "{out}");
    let (_, job) = app.create("held", json!({})).await;
    until_waiting(&app, &job, "held").await;
    let holds = json_of(&app, &["holds", "list"]);
    assert_eq!(holds["items"].as_array().unwrap().len(), 1);
    assert_eq!(holds["items"][0]["reason"], "bad image");
    let id = holds["items"][0]["id"].as_str().unwrap();
    exits(&app.command(&["holds", "lift", id]), DONE);
    app.until_job(&job, "dead", PATIENCE).await;
    exits(&app.command(&["holds", "lift", id]), NOT_FOUND);
    let err = exits(&app.command(&["holds", "set", "--kind", "nonsense"]), USAGE);
    assert!(err.contains("provision"), "{err}");

    // What cancels many is a job itself, so everything held would hold it too.
    exits(&app.command(&["queues", "pause", "provision"]), DONE);
    let (surplus, unwanted) = app.create("surplus", json!({})).await;
    until_waiting(&app, &unwanted, "paused").await;
    let which = format!("workspace={surplus} state=scheduled");
    let cancel = [
        "jobs",
        "cancel",
        "--where",
        &which,
        "--reason",
        "wrong batch",
    ];
    let refused = exits(&app.command(&[&cancel[..], &["--dry-run"]].concat()), USAGE);
    assert!(refused.contains("--reason"), "{refused}");
    let out = exits(&app.command(&[&cancel[..], &["--yes"]].concat()), DONE);
    assert_eq!(out, "1 of 1 jobs cancelled\n");
    let cancelled = app.job(&unwanted).await;
    assert_eq!(cancelled["state"], "cancelled");
    assert!(cancelled.to_string().contains("wrong batch"), "{cancelled}");
    exits(&app.command(&["queues", "resume", "provision"]), DONE);

    let worker = json_of(&app, &["workers", "list"])["items"][0]["name"].clone();
    let worker = worker.as_str().unwrap();
    let out = exits(&app.command(&["workers", "drain", worker]), DONE);
    assert!(out.contains("takes no more jobs"), "{out}");
    let shown = exits(&app.command(&["workers", "get", worker]), DONE);
    assert!(shown.contains("draining"), "{shown}");
    exits(&app.command(&["workers", "undrain", worker]), DONE);
    assert_eq!(json_of(&app, &["workers", "get", worker])["state"], "up");
    exits(&app.command(&["workers", "drain", "nobody"]), NOT_FOUND);
}

#[tokio::test]
async fn limits_are_set_and_removed_and_top_shows_it_all() {
    let app = hopeless(NewWorker::default()).await;
    let limit = |limits: &[&str]| {
        let command = [&["queues", "limit", "provision"], limits].concat();
        exits(&app.command(&command), DONE)
    };
    assert_eq!(
        limit(&["--max-running", "2", "--rate-per-minute", "600"]),
        "queue provision: 2 at once, 600 a minute\n"
    );
    assert_eq!(
        limit(&["--max-running", "none"]),
        "queue provision: 600 a minute\n"
    );
    let err = exits(&app.command(&["queues", "pause", "nonsense"]), NOT_FOUND);
    assert!(
        err.contains("there are") && err.contains("provision"),
        "{err}"
    );

    exits(
        &app.command(&["queues", "reject", "stop", "--reason", "no"]),
        DONE,
    );
    let (_, job) = app.create("shown", json!({})).await;
    app.until_job(&job, "dead", PATIENCE).await;
    let frame = exits(&app.command(&["top", "--once"]), DONE);
    for told in [
        "on 1 of 1 workers",
        "600 a minute",
        "no (by admin)",
        "reject",
        &job,
    ] {
        assert!(frame.contains(told), "{told}: {frame}");
    }
    let all = json_of(&app, &["top"]);
    assert_eq!(all["failures"][0]["id"], job.as_str());
    exits(&app.command(&["queues", "resume", "stop"]), DONE);
}
