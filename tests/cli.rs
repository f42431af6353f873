//! The operator's commands against a running control plane: what they print and how they exit.

use std::process::Output;

use longshore_tests::{NewWorker, PATIENCE, TestApp, longshore, needs_docker, wait_until};
use serde_json::{Value, json};

const FAILED: i32 = 1;
const USAGE: i32 = 2;
const NOT_FOUND: i32 = 3;
const NOT_ALLOWED: i32 = 4;
const UNREACHABLE: i32 = 5;
const TIMEOUT: i32 = 6;
const UNKNOWN: &str = "9b6f3c1e-4d2a-4c3b-9f00-0123456789ab";

#[track_caller]
fn exits(output: &Output, code: i32) -> String {
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "out: {out}\nerr: {err}");
    if code == 0 { out } else { err }
}

fn json_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[tokio::test]
async fn a_workspace_is_created_looked_at_and_deleted_by_command() {
    needs_docker!();
    let app = TestApp::start().await;
    let create = [
        "workspaces",
        "create",
        "by-command",
        "--tier",
        "1",
        "--wait",
        "--timeout",
        "30",
    ];
    let id = exits(&app.command(&create), 0).trim().to_owned();
    assert_eq!(app.entry(&id).await["status"], "online");

    let list = exits(&app.command(&["workspaces", "list"]), 0);
    assert!(
        list.contains(&id) && list.contains("by-command") && list.contains("online"),
        "{list}"
    );
    let list = json_of(&exits(&app.command(&["workspaces", "list", "--json"]), 0));
    assert_eq!(list[0]["id"], id.as_str());
    let shown = exits(&app.command(&["workspaces", "get", &id]), 0);
    assert!(shown.contains("by-command"), "{shown}");
    let shown = json_of(&exits(
        &app.command(&["workspaces", "get", &id, "--json"]),
        0,
    ));
    assert_eq!(shown["tier"], 1);

    wait_until("the agent's log", PATIENCE, || async {
        let log = exits(&app.command(&["workspaces", "logs", &id]), 0);
        if log.contains("registered") {
            Ok(())
        } else {
            Err(log)
        }
    })
    .await;

    let jobs = json_of(&exits(
        &app.command(&["jobs", "list", "--json", "--workspace", &id]),
        0,
    ));
    let job = jobs["items"][0]["id"].as_str().unwrap().to_owned();
    exits(&app.command(&["jobs", "watch", &job, "--timeout", "30"]), 0);
    let shown = exits(&app.command(&["jobs", "get", &job]), 0);
    assert!(
        shown.contains("provision") && shown.contains("succeeded"),
        "{shown}"
    );
    let table = exits(&app.command(&["jobs", "list"]), 0);
    assert!(table.contains(&job), "{table}");

    let deleted = exits(&app.command(&["workspaces", "delete", &id]), 0);
    assert!(deleted.contains("removed"), "{deleted}");
    wait_until("the container to go", PATIENCE, || async {
        let containers = app.engine().containers_of(&id).await;
        if containers.is_empty() {
            Ok(())
        } else {
            Err(format!("{containers:?}"))
        }
    })
    .await;
}

#[tokio::test]
async fn what_fails_says_why_and_exits_so_that_a_script_can_tell() {
    let app = TestApp::build()
        .without_docker()
        .workers([NewWorker::default()])
        .start()
        .await;
    let create = [
        "workspaces",
        "create",
        "hopeless",
        "--wait",
        "--timeout",
        "30",
    ];
    let err = exits(&app.command(&create), FAILED);
    assert!(err.contains("no Docker daemon is available"), "{err}");
    let list = json_of(&exits(
        &app.command(&["jobs", "list", "--state", "dead", "--json"]),
        0,
    ));
    let job = list["items"][0]["id"].as_str().unwrap().to_owned();
    exits(&app.command(&["jobs", "watch", &job]), FAILED);
    exits(&app.command(&["jobs", "cancel", &job]), FAILED);
    exits(&app.command(&["jobs", "list", "--state", "lazy"]), USAGE);

    for command in [
        ["workspaces", "get", UNKNOWN],
        ["jobs", "get", UNKNOWN],
        ["workspaces", "delete", UNKNOWN],
    ] {
        exits(&app.command(&command), NOT_FOUND);
    }
    for token in [None, Some("not-a-token-of-anybody")] {
        let err = exits(&app.command_of(&["workspaces", "list"], token), NOT_ALLOWED);
        assert!(err.contains("not allowed"), "{err}");
    }
    exits(&app.command(&["workspaces", "create"]), USAGE);
    exits(
        &app.command(&["workspaces", "list", "--url", "ftp://x"]),
        USAGE,
    );
    let nowhere = ["workspaces", "list", "--url", "http://127.0.0.1:1"];
    let err = exits(&app.command(&nowhere), UNREACHABLE);
    assert!(err.contains("http://127.0.0.1:1"), "{err}");
}

#[tokio::test]
async fn waiting_ends_with_its_time_and_a_waiting_job_is_cancelled_by_command() {
    let app = TestApp::build().without_docker().start().await;
    let (id, job) = app.create("nobody's", json!({})).await;
    let watch = ["jobs", "watch", &job, "--timeout", "1"];
    exits(&app.command(&watch), TIMEOUT);
    let cancel = ["jobs", "cancel", &job, "--reason", "enough"];
    let out = exits(&app.command(&cancel), 0);
    assert!(out.contains("cancelled"), "{out}");
    let entry = app.entry(&id).await;
    let told = entry["last_sample_error"].as_str().unwrap();
    assert!(told.contains("enough"), "{told}");
}

#[test]
fn the_program_explains_its_settings_and_completes_itself() {
    let run = |arguments: &[&str]| exits(&longshore().args(arguments).output().unwrap(), 0);
    let settings = run(&["config"]);
    for name in [
        "DATABASE_URL",
        "ADMIN_TOKEN",
        "LONGSHORE_MAX_TIER",
        "PLATFORM_URL",
    ] {
        assert!(settings.contains(name), "{name}");
    }
    for shell in ["bash", "zsh", "fish"] {
        assert!(
            run(&["completions", shell]).contains("longshore"),
            "{shell}"
        );
    }
    let document = json_of(&run(&["openapi"]));
    assert!(document["paths"]["/workspaces"]["post"].is_object());
    exits(
        &longshore()
            .arg("worker")
            .arg("--nonsense")
            .output()
            .unwrap(),
        USAGE,
    );
}
