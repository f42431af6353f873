//! The operator's commands against a server that answers as told: what each answer means for a script.

use crate::process::{longshore, run};
use crate::server::{JSON, PROBLEM, Server};

#[test]
fn each_kind_of_failure_has_its_exit_code() {
    for (status, body, code) in [
        (401, r#"{"error":"invalid admin auth token"}"#, 4),
        (
            403,
            r#"{"error":"tier 4 is not allowed here: LONGSHORE_MAX_TIER is 2"}"#,
            4,
        ),
        (404, r#"{"error":"workspace not found"}"#, 3),
        (410, r#"{"error":"workspace removed"}"#, 3),
        (400, r#"{"error":"invalid workspace id"}"#, 2),
        (409, r#"{"error":"conflict"}"#, 1),
        (503, "not even JSON", 1),
    ] {
        let server = Server::answering(&[(status, PROBLEM, body)]);
        let (exit, out, err) = server.run(&["workspaces", "get", "x"]);
        assert_eq!(exit, Some(code), "{status}: {err}");
        assert_eq!(out, "");
        if let Ok(body) = serde_json::from_str::<serde_json::Value>(body) {
            assert!(err.contains(body["error"].as_str().unwrap()), "{err}");
        }
    }
    // Nobody listens on port 1.
    let (exit, _, err) = run(longshore().args(["jobs", "list", "--url", "http://127.0.0.1:1"]));
    assert_eq!(exit, Some(5), "{err}");
    let empty = tempfile::tempdir().unwrap();
    let (exit, _, err) = run(longshore()
        .args(["jobs", "list", "--data"])
        .arg(empty.path()));
    assert_eq!(exit, Some(2), "{err}");
    let (exit, ..) = run(longshore().args(["jobs", "frobnicate"]));
    assert_eq!(exit, Some(2));
}

#[test]
fn address_and_token_come_from_a_local_data_directory() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::answering(&[(200, JSON, "[]")]);
    std::fs::write(data.path().join("address"), format!("{}\n", server.url)).unwrap();
    std::fs::write(data.path().join("admin-token"), "local-token\n").unwrap();
    let (exit, out, err) = run(longshore()
        .args(["workspaces", "list", "--json", "--data"])
        .arg(data.path()));
    assert_eq!((exit, out.trim()), (Some(0), "[]"), "{err}");
    let request = server.requests.recv().unwrap();
    assert!(request.starts_with("GET /workspaces HTTP/1.1"), "{request}");
    assert!(
        request
            .to_lowercase()
            .contains("authorization: bearer local-token"),
        "{request}"
    );
}

#[test]
fn a_local_token_is_not_sent_to_a_server_given_by_url() {
    let data = tempfile::tempdir().unwrap();
    std::fs::write(data.path().join("admin-token"), "local-token\n").unwrap();
    let server = Server::answering(&[(200, JSON, "[]")]);
    let (exit, ..) = run(longshore()
        .args(["workspaces", "list", "--url", &server.url, "--data"])
        .arg(data.path()));
    assert_eq!(exit, Some(0));
    let request = server.requests.recv().unwrap();
    assert!(!request.contains("local-token"), "{request}");
}

#[test]
fn create_sends_what_was_asked_for_and_prints_the_id() {
    let server = Server::answering(&[(
        201,
        JSON,
        r#"{"id":"w1","status":"provisioning","job_id":"j1"}"#,
    )]);
    let (exit, out, err) = run(longshore()
        .args([
            "workspaces",
            "create",
            "hello",
            "--tier",
            "1",
            "--runtime",
            "codex",
        ])
        .args(["--secret", "A=b=c", "--secret", "FROM_ENV"])
        .env("FROM_ENV", "value")
        .env("LONGSHORE_URL", &server.url));
    assert_eq!((exit, out.as_str()), (Some(0), "w1\n"), "{err}");
    let request = server.requests.recv().unwrap();
    let body: serde_json::Value = serde_json::from_str(request.lines().last().unwrap()).unwrap();
    assert_eq!(
        body,
        serde_json::json!({"name": "hello", "tier": 1, "runtime": "codex", "secrets": {"A": "b=c", "FROM_ENV": "value"}})
    );
}

#[test]
fn a_watch_goes_on_after_a_broken_stream_and_tells_how_the_job_ended() {
    let server = Server::answering(&[
        (
            200,
            "text/event-stream",
            "id: 1\nevent: state\ndata: {\"state\":\"running\"}\n\n",
        ),
        // The first stream ended although the job had not.
        (
            200,
            JSON,
            r#"{"id":"j1","kind":"provision","state":"running"}"#,
        ),
        (
            200,
            "text/event-stream",
            "id: 2\nevent: state\ndata: {\"state\":\"dead\"}\n\n",
        ),
        (
            200,
            JSON,
            r#"{"id":"j1","kind":"provision","state":"dead","last_error":"no such image"}"#,
        ),
    ]);
    let (exit, out, err) = server.run(&["jobs", "watch", "j1"]);
    assert_eq!(exit, Some(1), "{err}");
    assert_eq!(out, "provision j1 dead: no such image\n");
    let first = server.requests.recv().unwrap().to_lowercase();
    assert!(!first.contains("last-event-id"), "{first}");
    server.requests.recv().unwrap();
    let second = server.requests.recv().unwrap().to_lowercase();
    assert!(second.contains("last-event-id: 1"), "{second}");
}

#[test]
fn sub_workspaces_are_not_deleted_unasked() {
    let server = Server::answering(&[(
        409,
        JSON,
        r#"{"status":"confirmation_required","message":"m","children":[{"id":"c","name":"child"}],"children_count":1}"#,
    )]);
    let (exit, _, err) = server.run(&["workspaces", "delete", "w1"]);
    assert_eq!(exit, Some(1));
    assert!(err.contains("child") && err.contains("--yes"), "{err}");

    let server = Server::answering(&[(200, JSON, r#"{"status":"removed","cascade_deleted":1}"#)]);
    let (exit, out, _) = server.run(&["workspaces", "delete", "w1", "--yes"]);
    assert_eq!(exit, Some(0));
    assert_eq!(out, "workspace w1 and 1 sub-workspaces removed\n");
    assert!(server.requests.recv().unwrap().contains("confirm=true"));
}

#[test]
fn a_followed_log_is_not_repeated_after_a_broken_stream() {
    let line = |second: u8, text: &str| {
        format!(
            r#"event: log{}data: {{"at":"2026-01-01T00:00:0{second}Z","output":"stdout","text":"{text}"}}"#,
            '\n'
        )
    };
    let first = format!("{}\n\n{}\n\n", line(1, "one"), line(2, "two"));
    let second = format!(
        "{}\n\n{}\n\nevent: end\ndata: {{}}\n\n",
        line(2, "two"),
        line(3, "three")
    );
    let server = Server::answering(&[
        (200, "text/event-stream", &first),
        (200, "text/event-stream", &second),
    ]);
    let (exit, out, err) = server.run(&["workspaces", "logs", "w1", "--follow"]);
    assert_eq!(
        (exit, out.as_str()),
        (Some(0), "one\ntwo\nthree\n"),
        "{err}"
    );
}

#[test]
fn completion_knows_the_commands() {
    let (exit, out, _) = run(longshore().args(["completions", "bash"]));
    assert_eq!(exit, Some(0));
    assert!(out.contains("workspaces"), "{out}");
}
