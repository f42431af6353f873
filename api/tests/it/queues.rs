//! Queues as operators see and steer them.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::app::{ADMIN, TestApp, expect, expect_error};

impl TestApp {
    pub(crate) async fn operate(&self, method: Method, path: &str, body: Value) -> Value {
        let answer = self.admin(method, path).json(&body).send().await.unwrap();
        expect(answer, StatusCode::OK).await
    }

    pub(crate) async fn refusal(&self, method: Method, path: &str, body: Value) -> (u16, String) {
        let answer = self.admin(method, path).json(&body).send().await.unwrap();
        let status = answer.status();
        (status.as_u16(), expect_error(answer, status).await)
    }

    /// Recorded events of some kind of name, oldest first: name and content.
    pub(crate) async fn recorded(&self, prefix: &str) -> Vec<(String, Value)> {
        let answer = self.admin(Method::GET, "/events").send().await.unwrap();
        let events = expect(answer, StatusCode::OK).await;
        let events = events.as_array().unwrap().iter().rev();
        events
            .map(|event| {
                let name = event["event_type"].as_str().unwrap().to_owned();
                (name, event["payload"].clone())
            })
            .filter(|(name, _)| name.starts_with(prefix))
            .collect()
    }
}

#[tokio::test]
async fn a_queue_is_a_kind_with_its_places_folded_in() {
    let app = TestApp::start().await;
    app.insert_job(None).await;
    app.insert_worker("w-1", "provision@e1").await;
    app.create(json!({ "name": "a" })).await;
    let list = app.operate(Method::GET, "/queues", Value::Null).await;
    let names: Vec<_> = list["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|queue| queue["name"].as_str().unwrap())
        .collect();
    assert!(names.is_sorted(), "{names:?}");
    for kind in ["provision", "rest", "stop"] {
        assert!(names.contains(&kind), "{names:?}");
    }
    assert_eq!(list["next_cursor"], Value::Null);
    let mut path = "/queues?limit=1".to_owned();
    for (index, name) in names.iter().enumerate() {
        let page = app.operate(Method::GET, &path, Value::Null).await;
        assert_eq!(page["items"][0]["name"], *name);
        let is_last = index + 1 == names.len();
        assert_eq!(page["next_cursor"].is_null(), is_last, "{page}");
        path = format!("/queues?limit=1&cursor={name}");
    }

    let queue = app
        .operate(Method::GET, "/queues/provision", Value::Null)
        .await;
    assert_eq!(queue["mode"], "run");
    for unset in ["mode_since", "mode_by", "mode_reason"] {
        assert_eq!(queue.get(unset), Some(&Value::Null), "{unset}");
    }
    let waiting = queue["waiting"].as_i64().unwrap() + queue["admitted"].as_i64().unwrap();
    assert_eq!(waiting, 1, "{queue}");
    assert_eq!((&queue["running"], &queue["dead"]), (&json!(0), &json!(0)));
    assert_eq!(queue["workers"], 1);
    assert!(queue["oldest_waiting_seconds"].is_f64(), "{queue}");
    assert_eq!(queue["per_minute"], json!({ "done": 0, "failed": 0 }));
    let no_limits = json!({ "max_running": null, "max_per_worker": null, "rate_per_minute": null });
    assert_eq!(queue["limits"], no_limits);
    assert_eq!(
        queue["policy"],
        json!({
            "max_attempts": 3,
            "backoff": { "base_seconds": 1.0, "cap_seconds": 4.0, "jitter": "full" },
            "timeout_seconds": 480.0,
            "deadline_seconds": 86400.0,
        })
    );
    assert_eq!(queue["places"][0]["queue"], "provision@e1");
    assert_eq!(queue["tenants"][0]["waiting"], 1);
}

#[tokio::test]
async fn a_mode_is_set_once_however_often_it_is_asked_for() {
    let app = TestApp::start().await;
    let why = json!({ "reason": "engine upgrade" });
    for (change, mode) in [
        ("pause", "pause"),
        ("drain", "drain"),
        ("reject", "reject"),
        ("resume", "run"),
    ] {
        let path = format!("/queues/provision/{change}");
        let first = app.operate(Method::POST, &path, why.clone()).await;
        assert_eq!(first["mode"], mode, "{first}");
        let answer = app.admin(Method::POST, &path).send().await.unwrap();
        let again = expect(answer, StatusCode::OK).await;
        assert_eq!(again["mode_since"], first["mode_since"]);
        assert_eq!(again["mode_reason"], first["mode_reason"]);
        if mode != "run" {
            assert_eq!(first["mode_by"], "admin");
            assert_eq!(first["mode_reason"], "engine upgrade");
            assert!(first["mode_since"].is_string());
        }
    }
    let events = app.recorded("QUEUE_").await;
    let names: Vec<_> = events.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        [
            "QUEUE_PAUSED",
            "QUEUE_DRAINING",
            "QUEUE_REJECTING",
            "QUEUE_RESUMED"
        ]
    );
    assert_eq!(
        events[0].1,
        json!({ "scope": "queue", "value": "provision", "mode": "pause", "by": "admin", "reason": "engine upgrade" })
    );
    let stop = app.operate(Method::GET, "/queues/stop", Value::Null).await;
    assert_eq!(stop["mode"], "run", "only what was named is changed");
}

#[tokio::test]
async fn an_empty_queue_is_drained_at_once() {
    let app = TestApp::start().await;
    let path = "/queues/provision/drain?wait=300";
    let drained = app.operate(Method::POST, path, json!({})).await;
    assert_eq!(drained, json!({ "drained": true }));
    let queue = app
        .operate(Method::GET, "/queues/provision", Value::Null)
        .await;
    assert_eq!(queue["mode"], "drain");
}

#[tokio::test]
async fn limits_are_changed_one_by_one() {
    let app = TestApp::start().await;
    let path = "/queues/provision";
    for (patch, limits) in [
        (json!({}), json!([null, null, null])),
        (
            json!({ "max_running": 4, "rate_per_minute": 0 }),
            json!([4, null, 0]),
        ),
        (json!({ "max_per_worker": 2 }), json!([4, 2, 0])),
        (json!({ "max_per_worker": 2 }), json!([4, 2, 0])),
        (
            json!({ "max_running": null, "max_per_worker": null, "rate_per_minute": null, "reason": "enough" }),
            json!([null, null, null]),
        ),
    ] {
        let queue = app.operate(Method::PATCH, path, patch.clone()).await;
        let found = &queue["limits"];
        let found = json!([
            found["max_running"],
            found["max_per_worker"],
            found["rate_per_minute"]
        ]);
        assert_eq!(found, limits, "{patch}");
    }
    let events = app.recorded("QUEUE_LIMITED").await;
    assert_eq!(events.len(), 3, "one for each difference: {events:?}");
    assert_eq!(events[1].1["limits"]["max_per_worker"], 2);
    assert_eq!(events[2].1["reason"], "enough");
}

#[tokio::test]
async fn what_makes_no_sense_of_a_queue_is_refused_with_the_reason() {
    let app = TestApp::start().await;
    let long = json!({ "reason": "r".repeat(501) });
    let table = [
        (
            Method::GET,
            "/queues/nobody",
            Value::Null,
            404,
            "queue not found",
        ),
        (
            Method::POST,
            "/queues/nobody/pause",
            json!({}),
            404,
            "queue not found",
        ),
        (
            Method::POST,
            "/queues/nobody/resume",
            json!({}),
            404,
            "queue not found",
        ),
        (
            Method::PATCH,
            "/queues/nobody",
            json!({}),
            404,
            "queue not found",
        ),
        // A place of a queue is not a queue.
        (
            Method::GET,
            "/queues/provision@e1",
            Value::Null,
            400,
            "invalid name",
        ),
        (
            Method::POST,
            "/queues/stop/pause",
            long,
            400,
            "reason must be at most 500 characters",
        ),
        (
            Method::POST,
            "/queues/stop/pause",
            json!({ "why": "x" }),
            400,
            "invalid request body",
        ),
        (
            Method::POST,
            "/queues/stop/pause",
            json!({ "reason": 7 }),
            400,
            "invalid request body",
        ),
        (
            Method::POST,
            "/queues/stop/pause?wait=1",
            json!({}),
            400,
            "unknown query parameter",
        ),
        (
            Method::POST,
            "/queues/stop/drain?wait=301",
            json!({}),
            400,
            "wait must be from 0 to 300",
        ),
        (
            Method::POST,
            "/queues/stop/drain?wait=-1",
            json!({}),
            400,
            "invalid wait",
        ),
        (
            Method::POST,
            "/queues/stop/drain?wait=soon",
            json!({}),
            400,
            "invalid wait",
        ),
        (
            Method::PATCH,
            "/queues/stop",
            json!({ "max_running": -1 }),
            400,
            "max_running must be zero or more",
        ),
        (
            Method::PATCH,
            "/queues/stop",
            json!({ "max_running": 1.5 }),
            400,
            "invalid request body",
        ),
        (
            Method::PATCH,
            "/queues/stop",
            json!({ "max_running": 3_000_000_000_u32 }),
            400,
            "invalid request body",
        ),
        (
            Method::PATCH,
            "/queues/stop",
            json!({ "concurrency": 1 }),
            400,
            "invalid request body",
        ),
        (
            Method::GET,
            "/queues?limit=0",
            Value::Null,
            400,
            "limit must be from 1 to 500",
        ),
        (
            Method::GET,
            "/queues?state=run",
            Value::Null,
            400,
            "unknown query parameter",
        ),
        (
            Method::GET,
            "/jobs?tenant=%00",
            Value::Null,
            400,
            "invalid tenant",
        ),
    ];
    for (method, path, body, status, error) in table {
        let got = app.refusal(method.clone(), path, body.clone()).await;
        assert_eq!(got, (status, error.to_owned()), "{method} {path} {body}");
    }
    let answer = app.admin(Method::GET, "/queues/nobody").send().await;
    let problem = expect(answer.unwrap(), StatusCode::NOT_FOUND).await;
    let told = problem["detail"].as_str().unwrap();
    assert!(
        told.starts_with("no queue is named nobody; there are: ")
            && told.ends_with("rest, restart, restart-context, rollout, secret-fanout, stop"),
        "{told}"
    );
    assert_eq!(app.count("queue_controls").await, 0);
    assert_eq!(app.count("queue_limits").await, 0);
    assert_eq!(app.count("structure_events").await, 0);
}

#[tokio::test]
async fn a_rejecting_queue_refuses_requests_for_its_work_alone() {
    let app = TestApp::start().await;
    app.operate(
        Method::POST,
        "/queues/provision/reject",
        json!({ "reason": "engine upgrade" }),
    )
    .await;
    let before = app.count("structure_events").await;
    let create = app
        .admin(Method::POST, "/workspaces")
        .json(&json!({ "name": "refused" }));
    let answer = create.send().await.unwrap();
    assert_eq!(answer.headers()["retry-after"], "30");
    let error = expect_error(answer, StatusCode::SERVICE_UNAVAILABLE).await;
    assert!(
        error.starts_with("queue provision is closed since ")
            && error.ends_with(" by admin: engine upgrade"),
        "{error}"
    );
    assert_eq!(app.count("workspaces").await, 0);
    assert_eq!(app.count("jobs").await, 0);
    assert_eq!(app.count("structure_events").await, before);
    // What needs no container needs no provision.
    app.create(json!({ "name": "elsewhere", "external": true }))
        .await;
    app.operate(Method::POST, "/queues/provision/resume", json!({}))
        .await;
    app.create(json!({ "name": "taken" })).await;
}

#[tokio::test]
async fn a_workspace_that_waits_shows_why_in_its_job_and_in_itself() {
    let app = TestApp::start().await;
    app.insert_worker("w-1", "provision@e1").await;
    let why = json!({ "reason": "engine upgrade" });
    app.operate(Method::POST, "/queues/provision/pause", why)
        .await;
    let created = app.create(json!({ "name": "a" })).await;
    let id = created["id"].as_str().unwrap();
    let idle = app.insert_named("idle").await;
    let job = format!("/jobs/{}", created["job_id"].as_str().unwrap());
    let job = app.operate(Method::GET, &job, Value::Null).await;
    assert_eq!(job["waiting"]["reason"], "paused");
    let text = job["waiting"]["text"].as_str().unwrap();
    assert!(
        text.starts_with("waiting: queue provision is paused since ")
            && text.ends_with(" by admin: engine upgrade"),
        "{text}"
    );
    let shown = app
        .operate(Method::GET, &format!("/workspaces/{id}"), Value::Null)
        .await;
    assert_eq!(shown["waiting"], text);
    let list = app.operate(Method::GET, "/workspaces", Value::Null).await;
    for entry in list.as_array().unwrap() {
        let expected = if entry["id"] == id {
            json!(text)
        } else {
            assert_eq!(entry["id"], json!(idle.id));
            Value::Null
        };
        assert_eq!(entry.get("waiting"), Some(&expected));
    }
    let cancel = format!("/jobs/{}/cancel", created["job_id"].as_str().unwrap());
    app.operate(Method::POST, &cancel, json!({})).await;
    let shown = app
        .operate(Method::GET, &format!("/workspaces/{id}"), Value::Null)
        .await;
    assert_eq!(shown["waiting"], Value::Null);
}

#[tokio::test]
async fn a_finished_job_is_retried_and_one_that_waits_is_discarded() {
    let app = TestApp::start().await;
    let agent = app.insert_named("a").await;
    let job = app.insert_job(Some(agent.id)).await;
    let path = |what: &str| format!("/jobs/{job}/{what}");
    let got = app.refusal(Method::POST, &path("retry"), json!({})).await;
    let only = "only dead or cancelled jobs can be retried".to_owned();
    assert_eq!(got, (409, only.clone()));
    app.operate(Method::POST, &path("cancel"), json!({})).await;
    let got = app.refusal(Method::POST, &path("discard"), json!({})).await;
    assert_eq!(
        got,
        (409, "only dead or waiting jobs can be discarded".to_owned())
    );

    app.operate(Method::POST, "/queues/rest/reject", json!({}))
        .await;
    let (status, _) = app.refusal(Method::POST, &path("retry"), json!({})).await;
    assert_eq!(status, 503, "a closed queue takes no retries from outside");
    app.operate(Method::POST, "/queues/rest/resume", json!({}))
        .await;
    let retry = app
        .request(Method::POST, &path("retry"))
        .bearer_auth(ADMIN)
        .header("Idempotency-Key", "once");
    let again = retry.try_clone().unwrap();
    let answer = retry.send().await.unwrap();
    assert_eq!(answer.headers()["location"], format!("/jobs/{job}"));
    let retried = expect(answer, StatusCode::ACCEPTED).await;
    assert!(["scheduled", "queued"].contains(&retried["state"].as_str().unwrap()));
    let answer = again.send().await.unwrap();
    assert_eq!(answer.headers()["idempotent-replayed"], "true");
    assert_eq!(answer.status(), StatusCode::ACCEPTED);

    let why = json!({ "reason": "not needed" });
    let gone = app.operate(Method::POST, &path("discard"), why).await;
    assert_eq!(gone["state"], "cancelled");
    let unknown = longshore_base::JobId::new();
    for what in ["retry", "discard"] {
        let path = format!("/jobs/{unknown}/{what}");
        let got = app.refusal(Method::POST, &path, json!({})).await;
        assert_eq!(got, (404, "job not found".to_owned()));
    }
    let events = app.recorded("JOB_").await;
    let names: Vec<_> = events.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["JOB_RETRIED", "JOB_DISCARDED"]);
    assert_eq!(
        events[1].1,
        json!({ "job_id": job, "kind": "rest", "by": "admin", "reason": "not needed" })
    );
}
