//! Holds: what they keep, how they are listed, and what is no hold.

use longshore_base::WorkspaceId;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::app::{TestApp, expect, expect_error};

async fn set(app: &TestApp, hold: Value) -> Value {
    let answer = app.admin(Method::POST, "/holds").json(&hold).send().await;
    let answer = answer.unwrap();
    let location = answer.headers()["location"].to_str().unwrap().to_owned();
    let hold = expect(answer, StatusCode::CREATED).await;
    assert_eq!(location, format!("/holds/{}", hold["id"].as_str().unwrap()));
    hold
}

#[tokio::test]
async fn a_hold_is_set_shown_listed_and_lifted() {
    let app = TestApp::start().await;
    let workspace = WorkspaceId::random().to_string();
    let mut ids = Vec::new();
    for (hold, value) in [
        (json!({ "scope": "all", "mode": "pause" }), Value::Null),
        (
            json!({ "scope": "kind", "value": "stop", "mode": "pause" }),
            json!("stop"),
        ),
        (
            json!({ "scope": "engine", "value": "ABCD:1", "mode": "reject" }),
            json!("ABCD:1"),
        ),
        (
            json!({ "scope": "tenant", "value": "acme", "mode": "pause", "reason": null }),
            json!("acme"),
        ),
        (
            json!({
                "scope": "workspace", "value": workspace.to_uppercase(), "mode": "pause",
                "reason": "looking into it", "until": "2100-01-01T00:00:00+00:00",
            }),
            json!(workspace),
        ),
    ] {
        let found = set(&app, hold.clone()).await;
        assert_eq!(found["value"], value, "{hold}");
        assert_eq!(
            (&found["scope"], &found["mode"]),
            (&hold["scope"], &hold["mode"])
        );
        assert_eq!(found["reason"], hold["reason"]);
        assert_eq!(found["until"], hold["until"]);
        assert_eq!(found["set_by"], "admin");
        assert!(found["since"].is_string());
        let id = found["id"].as_str().unwrap().to_owned();
        let path = format!("/holds/{id}");
        assert_eq!(app.operate(Method::GET, &path, Value::Null).await, found);
        ids.push(id);
    }
    let mut listed = Vec::new();
    let mut query = "limit=2".to_owned();
    loop {
        let path = format!("/holds?{query}");
        let page = app.operate(Method::GET, &path, Value::Null).await;
        let items = page["items"].as_array().unwrap().clone();
        listed.extend(
            items
                .iter()
                .map(|hold| hold["id"].as_str().unwrap().to_owned()),
        );
        match page["next_cursor"].as_str() {
            Some(cursor) => query = format!("limit=2&cursor={cursor}"),
            None => break,
        }
    }
    assert_eq!(listed, ids);

    let path = format!("/holds/{}", ids[4]);
    let lifted = app
        .operate(
            Method::DELETE,
            &format!("{path}?reason=found%20it"),
            Value::Null,
        )
        .await;
    assert_eq!(lifted["id"], json!(ids[4]));
    for method in [Method::GET, Method::DELETE] {
        let got = app.refusal(method, &path, Value::Null).await;
        assert_eq!(got, (404, "hold not found".to_owned()));
    }
    let events = app.recorded("HOLD_").await;
    let names: Vec<_> = events.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names[..5], ["HOLD_SET"; 5]);
    assert_eq!(names[5..], ["HOLD_LIFTED"]);
    assert_eq!(
        events[4].1,
        json!({
            "hold_id": ids[4], "scope": "workspace", "value": workspace, "mode": "pause",
            "until": "2100-01-01T00:00:00Z", "by": "admin", "reason": "looking into it",
        })
    );
    assert_eq!(events[5].1["reason"], "found it");
}

#[tokio::test]
async fn the_same_request_with_the_same_key_sets_one_hold() {
    let app = TestApp::start().await;
    let hold = json!({ "scope": "all", "mode": "pause" });
    let mut seen = Vec::new();
    for _ in 0..2 {
        let answer = app
            .admin(Method::POST, "/holds")
            .header("Idempotency-Key", "k")
            .json(&hold)
            .send();
        seen.push(expect(answer.await.unwrap(), StatusCode::CREATED).await);
    }
    assert_eq!(seen[0], seen[1]);
    assert_eq!(app.count("queue_controls").await, 1);
}

#[tokio::test]
async fn what_is_no_hold_is_refused_with_the_reason() {
    let app = TestApp::start().await;
    const BODY: &str = "invalid request body";
    const NEEDED: &str = "value is required for every scope but all";
    for (hold, error) in [
        (json!({}), BODY),
        (json!({ "scope": "all" }), BODY),
        (
            json!({ "scope": "queue", "value": "stop", "mode": "pause" }),
            BODY,
        ),
        (json!({ "scope": "all", "mode": "drain" }), BODY),
        (
            json!({ "scope": "all", "mode": "pause", "for": "1h" }),
            BODY,
        ),
        (
            json!({ "scope": "all", "mode": "pause", "until": "tomorrow" }),
            BODY,
        ),
        (
            json!({ "scope": "all", "mode": "pause", "value": "a\0b" }),
            BODY,
        ),
        (
            json!({ "scope": "all", "mode": "pause", "value": "x" }),
            "scope all takes no value",
        ),
        (json!({ "scope": "kind", "mode": "pause" }), NEEDED),
        (
            json!({ "scope": "tenant", "value": "", "mode": "pause" }),
            NEEDED,
        ),
        (
            json!({ "scope": "kind", "value": "dance", "mode": "pause" }),
            "unknown kind",
        ),
        (
            json!({ "scope": "workspace", "value": "mine", "mode": "pause" }),
            "invalid workspace id",
        ),
        (
            json!({ "scope": "engine", "value": "e".repeat(256), "mode": "pause" }),
            "value must be at most 255 characters",
        ),
        (
            json!({ "scope": "all", "mode": "pause", "until": "2001-01-01T00:00:00Z" }),
            "until must be in the future",
        ),
        (
            json!({ "scope": "all", "mode": "pause", "reason": "r".repeat(501) }),
            "reason must be at most 500 characters",
        ),
    ] {
        let got = app.refusal(Method::POST, "/holds", hold.clone()).await;
        assert_eq!(got, (400, error.to_owned()), "{hold}");
    }
    for (method, path, error) in [
        (Method::GET, "/holds/nope", "invalid hold id"),
        (Method::DELETE, "/holds/nope", "invalid hold id"),
        (Method::GET, "/holds?cursor=x", "invalid cursor"),
        (Method::GET, "/holds?scope=all", "unknown query parameter"),
    ] {
        let got = app.refusal(method, path, Value::Null).await;
        assert_eq!(got, (400, error.to_owned()), "{path}");
    }
    assert_eq!(app.count("queue_controls").await, 0);
}

#[tokio::test]
async fn a_hold_that_rejects_refuses_what_is_below_it() {
    let app = TestApp::start().await;
    let root = app.insert_named("root").await;
    let until = (database_now(&app).await + std::time::Duration::from_secs(600)).to_rfc3339();
    let hold = json!({ "scope": "tenant", "value": root.id, "mode": "reject", "until": until });
    let hold = set(&app, hold).await;
    let create = |parent: Option<WorkspaceId>| {
        let body = json!({ "name": "new", "parent_id": parent });
        app.admin(Method::POST, "/workspaces").json(&body).send()
    };
    let answer = create(Some(root.id)).await.unwrap();
    let seconds: u64 = answer.headers()["retry-after"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!((500..=600).contains(&seconds), "{seconds}");
    let error = expect_error(answer, StatusCode::SERVICE_UNAVAILABLE).await;
    assert!(
        error.starts_with(&format!("organisation {} is held", root.id)),
        "{error}"
    );
    // Another organisation is not concerned.
    expect(create(None).await.unwrap(), StatusCode::CREATED).await;
    let path = format!("/holds/{}", hold["id"].as_str().unwrap());
    app.operate(Method::DELETE, &path, Value::Null).await;
    expect(create(Some(root.id)).await.unwrap(), StatusCode::CREATED).await;
}

async fn database_now(app: &TestApp) -> longshore_base::Timestamp {
    longshore_base::clock::now(app.database.pool())
        .await
        .unwrap()
}
