//! Images: what is listed, what is refused, and rollouts up to their job, which no test here runs.

use std::sync::Arc;

use longshore_backends::{Backends, Docker, DockerConfig};
use longshore_base::ids;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::app::{Options, TestApp, expect};

async fn app() -> TestApp {
    let config = DockerConfig {
        host: Some("unix:///nowhere/docker.sock".to_owned()),
        ..DockerConfig::new(ids::random_uuid())
    };
    let docker = Docker::connect(config).unwrap();
    TestApp::with(Options {
        backends: Backends {
            docker: Some(Arc::new(docker)),
            ..Backends::default()
        },
        ..Options::default()
    })
    .await
}

fn digest(byte: &str) -> String {
    format!("sha256:{}", byte.repeat(32))
}

fn rollout(byte: &str) -> Value {
    json!({
        "digest": digest(byte), "rings": [{ "percent": 10 }, { "percent": 100 }], "max_failures": 1,
        "soak_seconds": 60,
    })
}

async fn begin(app: &TestApp, runtime: &str, body: &Value) -> Value {
    let path = format!("/images/{runtime}/rollouts");
    let request = app.admin(Method::POST, &path).json(body);
    expect(request.send().await.unwrap(), StatusCode::ACCEPTED).await
}

#[tokio::test]
async fn every_runtime_with_an_image_is_listed_with_who_runs_what() {
    let app = app().await;
    app.insert_named("one").await;
    let list = app.operate(Method::GET, "/images", Value::Null).await;
    let items = list["items"].as_array().unwrap();
    let runtimes: Vec<_> = items.iter().map(|item| item["runtime"].as_str()).collect();
    let expected = ["claude-code", "codex", "hermes", "openclaw"];
    assert_eq!(runtimes, expected.map(Some));
    assert_eq!(
        items[0]["workspaces"],
        json!([{ "digest": null, "count": 1 }])
    );
    assert_eq!(
        items[2]["image"],
        "registry.test/owner/workspace-template-hermes:latest"
    );
    for member in ["pin", "previous_pin", "rollout"] {
        assert_eq!(items[0][member], Value::Null);
    }
    let path = "/images/claude-code/workspaces?digest=none";
    let users = app.operate(Method::GET, path, Value::Null).await;
    assert_eq!(users["items"][0]["name"], "one");
    let path = format!("/images/claude-code/workspaces?digest={}", digest("ab"));
    let users = app.operate(Method::GET, &path, Value::Null).await;
    assert_eq!(users["items"], json!([]));
}

#[tokio::test]
async fn what_is_no_digest_no_pin_or_no_ring_is_refused_with_what_would_be_one() {
    let app = app().await;
    let rings = |percents: &[i32]| {
        let rings: Vec<_> = percents
            .iter()
            .map(|percent| json!({ "percent": percent }))
            .collect();
        let mut body = rollout("ab");
        body["rings"] = json!(rings);
        body
    };
    let mut failures = rollout("ab");
    failures["max_failures"] = json!(-1);
    let mut soak = rollout("ab");
    soak["soak_seconds"] = json!(604_801);
    let (pin, start) = ("/images/hermes/pin", "/images/hermes/rollouts");
    let bare = json!({ "digest": "ab".repeat(32) });
    for (method, path, body, status, error) in [
        (
            Method::PUT,
            pin,
            json!({ "digest": "latest" }),
            400,
            "invalid digest",
        ),
        (Method::PUT, pin, bare, 400, "invalid digest"),
        (
            Method::PUT,
            "/images/langgraph/pin",
            json!({ "digest": digest("ab") }),
            404,
            "no such runtime",
        ),
        (
            Method::PUT,
            pin,
            json!({ "digest": digest("ab") }),
            503,
            "the digest could not be fetched from its registry",
        ),
        (Method::DELETE, pin, Value::Null, 404, "pin not found"),
        (
            Method::GET,
            "/images/langgraph/workspaces",
            Value::Null,
            404,
            "no such runtime",
        ),
        (
            Method::GET,
            "/images/hermes/workspaces?digest=new",
            Value::Null,
            400,
            "invalid digest",
        ),
        (Method::POST, start, rings(&[]), 400, "invalid rings"),
        (Method::POST, start, rings(&[0]), 400, "invalid rings"),
        (Method::POST, start, rings(&[101]), 400, "invalid rings"),
        (Method::POST, start, rings(&[50, 50]), 400, "invalid rings"),
        (Method::POST, start, rings(&[50, 10]), 400, "invalid rings"),
        (
            Method::POST,
            start,
            failures,
            400,
            "max_failures must be from 0 to 10000",
        ),
        (
            Method::POST,
            start,
            soak,
            400,
            "soak_seconds must be from 0 to 604800",
        ),
        (
            Method::POST,
            "/images/external/rollouts",
            rollout("ab"),
            404,
            "no such runtime",
        ),
    ] {
        let got = app.refusal(method, path, body.clone()).await;
        assert_eq!(got, (status, error.to_owned()), "{path} {body}");
    }
}

#[tokio::test]
async fn a_runtime_has_one_open_rollout_and_what_makes_no_sense_is_a_conflict() {
    let app = app().await;
    let begun = begin(&app, "hermes", &rollout("ab")).await;
    assert_eq!(
        (&begun["state"], &begun["ring"], &begun["digest"]),
        (&json!("running"), &json!(1), &json!(digest("ab")))
    );
    // Another runtime is another matter.
    begin(&app, "codex", &rollout("ab")).await;
    let start = "/images/hermes/rollouts";
    let open = "a rollout of this runtime is open; abort it or roll it back first";
    let again = app.refusal(Method::POST, start, rollout("cd")).await;
    assert_eq!(again, (409, open.to_owned()));
    let unpinned = app
        .refusal(Method::DELETE, "/images/hermes/pin", Value::Null)
        .await;
    assert_eq!(unpinned, (409, open.to_owned()));

    let id = begun["id"].as_str().unwrap();
    let act = |verb: &str| format!("{start}/{id}/{verb}");
    let early = app.refusal(Method::POST, &act("resume"), json!({})).await;
    assert_eq!(early, (409, "the rollout is running".to_owned()));
    let other = format!("/images/codex/rollouts/{id}/abort");
    let other = app.refusal(Method::POST, &other, json!({})).await;
    assert_eq!(other, (404, "rollout not found".to_owned()));
    let why = json!({ "reason": "wrong one" });
    for _ in 0..2 {
        let aborted = app.operate(Method::POST, &act("abort"), why.clone()).await;
        assert_eq!(
            (&aborted["state"], &aborted["reason"]),
            (&json!("aborted"), &json!("wrong one"))
        );
    }
    // A later one decides from here on.
    begin(&app, "hermes", &rollout("cd")).await;
    let late = app.refusal(Method::POST, &act("rollback"), json!({})).await;
    assert_eq!(
        late,
        (409, "a later rollout of this runtime has begun".to_owned())
    );
    let events = app.recorded("ROLLOUT_").await;
    let names: Vec<_> = events.iter().map(|(name, _)| name.as_str()).collect();
    let started = "ROLLOUT_STARTED";
    assert_eq!(names, [started, started, "ROLLOUT_ABORTED", started]);
    assert_eq!(
        (&events[2].1["by"], &events[2].1["reason"]),
        (&json!("admin"), &json!("wrong one"))
    );
}

#[tokio::test]
async fn a_rollout_whose_job_is_cancelled_is_held_and_can_be_taken_back() {
    let app = app().await;
    let begun = begin(&app, "hermes", &rollout("ab")).await;
    let job = begun["job_id"].as_str().unwrap();
    let path = format!("/jobs/{job}/cancel");
    app.operate(Method::POST, &path, json!({})).await;
    let list = app.operate(Method::GET, "/images", Value::Null).await;
    let held = &list["items"][2]["rollout"];
    assert_eq!(held["state"], "held", "{held}");
    let path = format!("/jobs/{job}/retry");
    let refused = app.refusal(Method::POST, &path, json!({})).await;
    assert_eq!(refused.0, 409, "{refused:?}");
    let id = begun["id"].as_str().unwrap();
    let path = format!("/images/hermes/rollouts/{id}/rollback");
    let request = app.admin(Method::POST, &path).json(&json!({}));
    let back = expect(request.send().await.unwrap(), StatusCode::ACCEPTED).await;
    assert_eq!(back["state"], "rolling_back");
    assert_ne!(back["job_id"], job);
}
