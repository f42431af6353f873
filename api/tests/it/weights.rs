//! Weights of organisations: set, listed, cleared, and what is none.

use longshore_base::WorkspaceId;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::app::{TestApp, expect};

#[tokio::test]
async fn a_weight_is_set_changed_listed_and_cleared() {
    let app = TestApp::start().await;
    let id = WorkspaceId::random().to_string();
    // Ids may be written in more than one way.
    let path = format!("/queues/weights/{}", id.to_uppercase());
    let why = json!({ "weight": 3, "reason": "they pay" });
    let set = app.operate(Method::PUT, &path, why).await;
    assert_eq!(
        (&set["tenant"], &set["weight"]),
        (&json!(id), &json!(3)),
        "{set}"
    );
    assert_eq!(
        (&set["reason"], &set["set_by"]),
        (&json!("they pay"), &json!("admin"))
    );
    assert!(set["since"].is_string());
    // The same again changes nothing.
    let again = app
        .operate(Method::PUT, &path, json!({ "weight": 3, "reason": "who?" }))
        .await;
    assert_eq!(again, set);
    let changed = app
        .operate(Method::PUT, &path, json!({ "weight": 100 }))
        .await;
    assert_eq!(
        (&changed["weight"], &changed["reason"]),
        (&json!(100), &Value::Null)
    );

    for tenant in ["acme", "Zoo"] {
        let path = format!("/queues/weights/{tenant}");
        app.operate(Method::PUT, &path, json!({ "weight": 1, "reason": null }))
            .await;
    }
    let mut listed = Vec::new();
    let mut query = "limit=2".to_owned();
    loop {
        let path = format!("/queues/weights?{query}");
        let page = app.operate(Method::GET, &path, Value::Null).await;
        for weight in page["items"].as_array().unwrap() {
            listed.push((weight["tenant"].clone(), weight["weight"].clone()));
        }
        match page["next_cursor"].as_str() {
            Some(cursor) => query = format!("limit=2&cursor={cursor}"),
            None => break,
        }
    }
    let mut all = vec![
        (json!(id), json!(100)),
        (json!("acme"), json!(1)),
        (json!("Zoo"), json!(1)),
    ];
    all.sort_by_key(|(tenant, _)| tenant.as_str().unwrap().to_owned());
    assert_eq!(listed, all);

    let clear = format!("{path}?reason=gone");
    let cleared = app.operate(Method::DELETE, &clear, Value::Null).await;
    assert_eq!(cleared, changed);
    let got = app.refusal(Method::DELETE, &path, Value::Null).await;
    assert_eq!(got, (404, "weight not found".to_owned()));

    let events = app.recorded("WEIGHT_").await;
    let names: Vec<_> = events.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names[..4], ["WEIGHT_SET"; 4]);
    assert_eq!(names[4..], ["WEIGHT_CLEARED"]);
    assert_eq!(
        events[0].1,
        json!({ "scope": "tenant", "value": id, "weight": 3, "by": "admin", "reason": "they pay" })
    );
    assert_eq!(
        events[4].1,
        json!({ "scope": "tenant", "value": id, "was": 100, "by": "admin", "reason": "gone" })
    );
}

#[tokio::test]
async fn a_queue_shows_what_those_who_wait_weigh() {
    let app = TestApp::start().await;
    let created = app.create(json!({ "name": "a" })).await;
    let tenant = created["id"].as_str().unwrap();
    for (weight, shown) in [(None, 1), (Some(7), 7)] {
        if let Some(weight) = weight {
            let path = format!("/queues/weights/{tenant}");
            app.operate(Method::PUT, &path, json!({ "weight": weight }))
                .await;
        }
        let queue = app
            .operate(Method::GET, "/queues/provision", Value::Null)
            .await;
        let waits = &queue["tenants"][0];
        assert_eq!(
            (&waits["tenant"], &waits["weight"]),
            (&json!(tenant), &json!(shown))
        );
    }
}

#[tokio::test]
async fn what_is_no_weight_is_refused_with_the_reason() {
    let app = TestApp::start().await;
    let long = format!("/queues/weights/{}", "a".repeat(256));
    let table = [
        (
            "acme",
            json!({ "weight": 0 }),
            "weight must be from 1 to 100",
        ),
        (
            "acme",
            json!({ "weight": 101 }),
            "weight must be from 1 to 100",
        ),
        (
            "acme",
            json!({ "weight": -1 }),
            "weight must be from 1 to 100",
        ),
        (
            "acme",
            json!({ "weight": 65_537 }),
            "weight must be from 1 to 100",
        ),
        (
            "acme",
            json!({ "weight": 3_000_000_000_u32 }),
            "invalid request body",
        ),
        ("acme", json!({ "weight": 1.5 }), "invalid request body"),
        ("acme", json!({ "weight": "3" }), "invalid request body"),
        ("acme", json!({ "weight": null }), "invalid request body"),
        ("acme", json!({}), "invalid request body"),
        (
            "acme",
            json!({ "weight": 2, "queue": "stop" }),
            "invalid request body",
        ),
        (
            "acme",
            json!({ "weight": 2, "reason": "r".repeat(501) }),
            "reason must be at most 500 characters",
        ),
        ("a%20b", json!({ "weight": 2 }), "invalid organisation"),
        (
            "acme?wait=1",
            json!({ "weight": 2 }),
            "unknown query parameter",
        ),
    ];
    for (tenant, body, error) in table {
        let path = format!("/queues/weights/{tenant}");
        let got = app.refusal(Method::PUT, &path, body.clone()).await;
        assert_eq!(got, (400, error.to_owned()), "{path} {body}");
    }
    for (method, path, status, error) in [
        (Method::PUT, long.as_str(), 400, "invalid organisation"),
        (
            Method::GET,
            "/queues/weights?limit=0",
            400,
            "limit must be from 1 to 500",
        ),
        (
            Method::GET,
            "/queues/weights/acme",
            405,
            "method not allowed",
        ),
        (
            Method::DELETE,
            "/queues/weights/acme",
            404,
            "weight not found",
        ),
    ] {
        let got = app
            .refusal(method.clone(), path, json!({ "weight": 2 }))
            .await;
        assert_eq!(got, (status, error.to_owned()), "{method} {path}");
    }
    assert_eq!(app.count("tenant_weights").await, 0);
    assert_eq!(app.count("structure_events").await, 0);
    // A queue's own routes are still there.
    let answer = app.admin(Method::GET, "/queues/provision").send().await;
    expect(answer.unwrap(), StatusCode::OK).await;
}
