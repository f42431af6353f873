//! The commands that steer queues, holds, workers and jobs: what they send, print and exit with.

use serde_json::{Value, json};

use crate::process::{longshore, run};
use crate::server::{JSON, PROBLEM, Server};

const DONE: Option<i32> = Some(0);
const FAILED: Option<i32> = Some(1);
const USAGE: Option<i32> = Some(2);
const TIMEOUT: Option<i32> = Some(6);

fn queue(mode: &str, running: u32) -> String {
    json!({
        "name": "provision", "mode": mode, "mode_since": "2026-01-31T11:59:00Z", "mode_by": "admin",
        "mode_reason": "engine upgrade", "waiting": 3, "admitted": 1, "running": running, "dead": 2,
        "oldest_waiting_seconds": 7503.2, "per_minute": {"done": 4, "failed": 0},
        "limits": {"max_running": 5, "max_per_worker": null, "rate_per_minute": 60},
        "policy": {"max_attempts": 3}, "workers": 2,
        "places": [{"queue": "provision@e1", "waiting": 3, "admitted": 1, "running": running, "workers": 2}],
        "tenants": [{"tenant": "t1", "weight": 17, "waiting": 3, "oldest_waiting_seconds": 61.0}],
    })
    .to_string()
}

#[test]
fn each_change_of_a_queue_says_why_and_tells_what_it_does_now() {
    for (command, mode, told) in [
        (
            "pause",
            "pause",
            "queue provision is paused; 3 waiting, 2 still running\n",
        ),
        (
            "drain",
            "drain",
            "queue provision is draining; 3 waiting, 2 still running\n",
        ),
        (
            "reject",
            "reject",
            "queue provision is closed to new requests; 3 waiting, 2 still running\n",
        ),
        ("resume", "run", "queue provision runs; 3 waiting\n"),
    ] {
        let server = Server::answering(&[(200, JSON, &queue(mode, 2))]);
        let (exit, out, err) =
            server.run(&["queues", command, "provision", "--reason", "engine upgrade"]);
        assert_eq!((exit, out.as_str()), (DONE, told), "{err}");
        assert_eq!(
            server.asked(),
            (
                format!("POST /queues/provision/{command}"),
                json!({"reason": "engine upgrade"})
            )
        );
    }
}

#[test]
fn a_queue_is_shown_with_its_places_and_who_waits() {
    let server = Server::answering(&[(200, JSON, &queue("pause", 2))]);
    let (exit, out, err) = server.run(&["queues", "get", "provision"]);
    assert_eq!(exit, DONE, "{err}");
    for told in [
        "engine upgrade",
        "2h 5m",
        "5 at once, 60 a minute",
        "provision@e1",
        "t1",
        "17",
    ] {
        assert!(out.contains(told), "{told}: {out}");
    }
}

#[test]
fn all_parts_of_a_list_are_shown() {
    let first = json!({"items": [{"name": "a", "mode": "run"}], "next_cursor": "a"}).to_string();
    let second = json!({"items": [{"name": "b", "mode": "run"}], "next_cursor": null}).to_string();
    let server = Server::answering(&[(200, JSON, &first), (200, JSON, &second)]);
    let (exit, out, err) = server.run(&["queues", "list", "--json"]);
    assert_eq!(exit, DONE, "{err}");
    let list: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(list["items"][1]["name"], "b");
    assert_eq!(server.asked().0, "GET /queues");
    assert_eq!(server.asked().0, "GET /queues?cursor=a");
}

#[test]
fn a_drain_is_waited_for_and_tells_how_much_still_runs() {
    let running = |n: u32| json!({"drained": false, "running": n}).to_string();
    let drained = r#"{"drained":true}"#;
    // A server that is replaced meanwhile ends nothing.
    let server = Server::answering(&[
        (202, JSON, &running(2)),
        (503, PROBLEM, r#"{"error":"draining"}"#),
        (202, JSON, &running(1)),
        (200, JSON, drained),
    ]);
    let (exit, out, err) = server.run(&["queues", "drain", "provision", "--wait"]);
    assert_eq!(
        (exit, out.as_str()),
        (DONE, "queue provision is drained: nothing runs\n"),
        "{err}"
    );
    assert!(
        err.contains("2 still running") && err.contains("1 still running"),
        "{err}"
    );
    assert!(
        server
            .asked()
            .0
            .starts_with("POST /queues/provision/drain?wait=")
    );
}

#[test]
fn a_drain_whose_time_is_over_has_an_exit_code_of_its_own() {
    let body = r#"{"drained":false,"running":2}"#;
    // The server waits as told; here each answer comes at once, and the last one after the time is over.
    let listener = Server::answering(&[(202, JSON, body), (503, PROBLEM, "{}")]);
    let (exit, out, err) = listener.run(&["queues", "drain", "provision", "--wait", "1", "--json"]);
    assert_eq!(exit, TIMEOUT, "{err}");
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap()["running"], 2);
    assert!(
        err.contains("2 still running") && err.contains("resume"),
        "{err}"
    );
    assert_eq!(listener.asked().0, "POST /queues/provision/drain?wait=1");
    let (_, help, _) = run(longshore().args(["queues", "drain", "--help"]));
    assert!(
        help.contains("exits 0") && help.contains("6 when"),
        "{help}"
    );
}

#[test]
fn a_limit_is_a_number_or_none() {
    let server = Server::answering(&[(200, JSON, &queue("run", 2))]);
    let (exit, out, err) = server.run(&[
        "queues",
        "limit",
        "provision",
        "--max-running",
        "5",
        "--max-per-worker",
        "none",
        "--rate-per-minute",
        "0",
    ]);
    assert_eq!(
        (exit, out.as_str()),
        (DONE, "queue provision: 5 at once, 60 a minute\n"),
        "{err}"
    );
    assert_eq!(
        server.asked(),
        (
            "PATCH /queues/provision".to_owned(),
            json!({"max_running": 5, "max_per_worker": null, "rate_per_minute": 0})
        )
    );
    for wrong in [
        &["queues", "limit", "provision"][..],
        &["queues", "limit", "provision", "--max-running", "many"],
        &["queues", "limit", "provision", "--max-running", "-1"],
    ] {
        assert_eq!(run(longshore().args(wrong)).0, USAGE, "{wrong:?}");
    }
}

#[test]
fn a_weight_is_set_cleared_and_listed() {
    let weight = json!({
        "tenant": "t1", "weight": 3, "reason": "they pay", "set_by": "admin", "since": "2026-01-31T11:59:00Z",
    });
    let server = Server::answering(&[(200, JSON, &weight.to_string())]);
    let (exit, out, err) = server.run(&["queues", "weight", "t1", "3", "--reason", "they pay"]);
    assert_eq!(
        (exit, out.as_str()),
        (DONE, "organisation t1 weighs 3\n"),
        "{err}"
    );
    assert_eq!(
        server.asked(),
        (
            "PUT /queues/weights/t1".to_owned(),
            json!({"weight": 3, "reason": "they pay"})
        )
    );

    let server = Server::answering(&[(200, JSON, &weight.to_string())]);
    let (exit, out, err) = server.run(&["queues", "weight", "t1", "--clear", "--reason", "gone"]);
    assert_eq!(
        (exit, out.as_str()),
        (DONE, "organisation t1 weighs 1 again\n"),
        "{err}"
    );
    assert_eq!(server.asked().0, "DELETE /queues/weights/t1?reason=gone");

    let list = json!({"items": [weight], "next_cursor": null}).to_string();
    let server = Server::answering(&[(200, JSON, &list)]);
    let (exit, out, err) = server.run(&["queues", "weight"]);
    assert_eq!(exit, DONE, "{err}");
    assert!(out.contains("t1") && out.contains("they pay"), "{out}");
    assert_eq!(server.asked().0, "GET /queues/weights");

    for wrong in [
        &["queues", "weight", "t1"][..],
        &["queues", "weight", "t1", "0"],
        &["queues", "weight", "t1", "101"],
        &["queues", "weight", "t1", "3", "--clear"],
        &["queues", "weight", "--clear"],
        &["queues", "weight", "--reason", "why"],
    ] {
        assert_eq!(run(longshore().args(wrong)).0, USAGE, "{wrong:?}");
    }
}

#[test]
fn a_hold_lasts_from_the_servers_now() {
    let hold = r#"{"id":"h1","scope":"kind","value":"provision","mode":"reject","until":"2026-01-31T12:30:00Z"}"#;
    let server = Server::answering(&[(200, "text/plain", "ok"), (201, JSON, hold)]);
    let (exit, out, err) = server.run(&[
        "holds",
        "set",
        "--kind",
        "provision",
        "--mode",
        "reject",
        "--reason",
        "bad image",
        "--until",
        "30m",
    ]);
    assert_eq!(exit, DONE, "{err}");
    assert_eq!(
        out,
        "kind provision is held until 2026-01-31 12:30:00 (UTC); lift it with: longshore holds lift h1\n"
    );
    assert_eq!(server.asked().0, "GET /livez");
    assert_eq!(
        server.asked(),
        (
            "POST /holds".to_owned(),
            json!({
                "scope": "kind", "value": "provision", "mode": "reject", "reason": "bad image",
                "until": "2026-01-31T12:30:00Z",
            })
        )
    );
}

#[test]
fn hold_all_is_short_for_holding_everything() {
    let hold = r#"{"id":"h1","scope":"all","mode":"pause"}"#;
    for command in [
        &["hold", "all", "--reason", "fire"][..],
        &["holds", "set", "--all", "--reason", "fire"],
    ] {
        let server = Server::answering(&[(201, JSON, hold)]);
        let (exit, out, err) = server.run(command);
        assert_eq!(exit, DONE, "{err}");
        assert!(out.starts_with("everything is held; "), "{out}");
        let all = json!({"scope": "all", "mode": "pause", "reason": "fire"});
        assert_eq!(server.asked(), ("POST /holds".to_owned(), all));
    }
    for wrong in [
        &["holds", "set"][..],
        &["holds", "set", "--all", "--kind", "stop"],
    ] {
        assert_eq!(run(longshore().args(wrong)).0, USAGE, "{wrong:?}");
    }
    let server = Server::answering(&[(200, JSON, hold)]);
    let (exit, out, err) = server.run(&["holds", "lift", "h1", "--reason", "it is out"]);
    assert_eq!((exit, out.as_str()), (DONE, "hold h1 lifted\n"), "{err}");
    assert_eq!(server.asked().0, "DELETE /holds/h1?reason=it+is+out");
}

#[test]
fn workers_are_listed_and_drained() {
    let worker = json!({
        "name": "w1", "host": "h", "version": "0.1.0", "state": "draining", "queues": ["provision@e1"],
        "engine": {"id": "e1", "version": null}, "slots": {"total": 8, "free": 7},
        "running": [{"job_id": "j1", "kind": "provision", "workspace_id": null, "since": "2026-01-31T12:00:00Z"}],
    });
    let list = json!({"items": [worker], "next_cursor": null}).to_string();
    let server = Server::answering(&[(200, JSON, &list)]);
    let (exit, out, err) = server.run(&["workers", "list"]);
    assert_eq!(exit, DONE, "{err}");
    assert!(out.contains("draining") && out.contains("7/8"), "{out}");

    let server = Server::answering(&[(200, JSON, &worker.to_string())]);
    let (exit, out, _) = server.run(&["workers", "get", "w1"]);
    assert_eq!(exit, DONE);
    assert!(out.contains("provision@e1") && out.contains("j1"), "{out}");

    let server = Server::answering(&[(200, JSON, &worker.to_string())]);
    let (exit, out, _) = server.run(&["workers", "drain", "w1"]);
    assert_eq!(
        (exit, out.as_str()),
        (DONE, "worker w1 takes no more jobs; 1 still running\n")
    );
    assert_eq!(server.asked().0, "POST /workers/w1/drain");
}

#[test]
fn what_goes_wrong_with_one_job_does_not_keep_the_others() {
    let server = Server::answering(&[
        (
            409,
            PROBLEM,
            r#"{"error":"only dead or cancelled jobs can be retried"}"#,
        ),
        (404, PROBLEM, r#"{"error":"job not found"}"#),
        (202, JSON, r#"{"id":"j3","state":"scheduled"}"#),
    ]);
    let (exit, out, err) = server.run(&["jobs", "retry", "j1", "j2", "j3", "--reason", "again"]);
    assert_eq!(
        (exit, out.as_str()),
        (FAILED, "job j3 will run again\n"),
        "{err}"
    );
    assert!(
        err.contains("j1") && err.contains("only dead") && err.contains("j2"),
        "{err}"
    );
    let reason = json!({"reason": "again"});
    assert_eq!(server.asked(), ("POST /jobs/j1/retry".to_owned(), reason));

    let server = Server::answering(&[(200, JSON, r#"{"id":"j1","state":"cancelled"}"#)]);
    let (exit, out, _) = server.run(&["jobs", "discard", "j1"]);
    assert_eq!((exit, out.as_str()), (DONE, "job j1 discarded\n"));
}

const PLAN: &str =
    r#"{"matched":12,"sample":["j1"],"filter_token":"t1","expires_at":"2026-01-31T12:10:00Z"}"#;
const SAMPLED: &str = r#"{"id":"j1","kind":"provision","state":"dead","last_error":"timeout"}"#;
const COUNTED: &str = "12 jobs would be retried:\n  provision j1 dead: timeout\n  and 11 more\n";

#[test]
fn a_filter_is_counted_and_nothing_is_done_unasked() {
    let retry = [
        "jobs",
        "retry",
        "--where",
        "kind=provision error~timeout older_than=1h",
    ];
    let server = Server::answering(&[(200, JSON, "ok"), (200, JSON, PLAN), (200, JSON, SAMPLED)]);
    let (exit, out, err) = server.run(&[&retry[..], &["--dry-run"]].concat());
    assert_eq!((exit, out.as_str()), (DONE, COUNTED), "{err}");
    server.asked();
    assert_eq!(
        server.asked(),
        (
            "POST /jobs/bulk".to_owned(),
            json!({
                "action": "retry", "dry_run": true,
                "filter": {"kind": "provision", "error": "timeout", "older_than": "2026-01-31T11:00:00Z"},
            })
        )
    );

    // Nobody is there to ask.
    let server = Server::answering(&[(200, JSON, "ok"), (200, JSON, PLAN), (200, JSON, SAMPLED)]);
    let (exit, _, err) = server.run(&retry);
    assert_eq!(exit, USAGE, "{err}");
    assert!(
        err.starts_with(COUNTED) && err.contains("--yes") && err.contains("--dry-run"),
        "{err}"
    );

    let none = r#"{"matched":0,"sample":[],"filter_token":"t1"}"#;
    let server = Server::answering(&[(200, JSON, none)]);
    let (exit, out, _) = server.run(&["jobs", "cancel", "--where", "kind=stop", "--yes"]);
    assert_eq!((exit, out.as_str()), (DONE, "no job matches\n"));

    for wrong in [
        &["jobs", "retry"][..],
        &["jobs", "retry", "--where", ""],
        &["jobs", "retry", "--where", "staat=dead"],
        &["jobs", "retry", "j1", "--where", "state=dead"],
        &["jobs", "retry", "j1", "--yes"],
    ] {
        assert_eq!(run(longshore().args(wrong)).0, USAGE, "{wrong:?}");
    }
}

#[test]
fn a_counted_set_is_followed_to_its_end_and_failures_count() {
    let progress = r#"{"done":7,"matched":12,"failed":1}"#;
    let stream = format!(
        "id: 1\nevent: progress\ndata: {}\n\n",
        json!({"step": "applying", "message": progress, "percent": 66})
    );
    for (failed, code, told) in [
        (0, DONE, "12 of 12 jobs retried\n"),
        (2, FAILED, "10 of 12 jobs retried, 2 failed\n"),
    ] {
        let ended = json!({
            "id": "b1", "kind": "bulk", "state": "succeeded",
            "result": {"done": 12 - failed, "matched": 12, "failed": failed},
        })
        .to_string();
        let server = Server::answering(&[
            (200, JSON, PLAN),
            (202, JSON, r#"{"job_id":"b1","job":{"id":"b1"}}"#),
            (200, "text/event-stream", &stream),
            (200, JSON, &ended),
        ]);
        let (exit, out, err) = server.run(&["jobs", "retry", "--where", "state=dead", "--yes"]);
        assert_eq!((exit, out.as_str()), (code, told), "{err}");
        assert!(err.contains("7 of 12 done, 1 failed"), "{err}");
        server.asked();
        let apply = json!({"action": "retry", "filter_token": "t1"});
        assert_eq!(server.asked(), ("POST /jobs/bulk".to_owned(), apply));
    }
}

#[test]
fn an_age_in_a_list_is_counted_from_the_servers_now() {
    let list = r#"{"items":[],"next_cursor":null}"#;
    let server = Server::answering(&[(200, JSON, "ok"), (200, JSON, list)]);
    let (exit, _, err) = server.run(&["jobs", "list", "--older-than", "1h 30m"]);
    assert_eq!(exit, DONE, "{err}");
    server.asked();
    assert_eq!(
        server.asked().0,
        "GET /jobs?limit=50&older_than=2026-01-31T10%3A30%3A00Z"
    );
}
