//! Workers as operators see them and send them to rest.

use reqwest::Method;
use serde_json::{Value, json};

use crate::app::TestApp;

#[tokio::test]
async fn a_worker_is_shown_drained_and_undrained() {
    let app = TestApp::start().await;
    for name in ["w-2", "w-1", "w-3"] {
        app.insert_worker(name, "provision@engine-1").await;
    }
    let page = app
        .operate(Method::GET, "/workers?limit=2", Value::Null)
        .await;
    let names = |page: &Value| -> Vec<String> {
        let items = page["items"].as_array().unwrap().iter();
        items
            .map(|worker| worker["name"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(names(&page), ["w-1", "w-2"]);
    let rest = format!(
        "/workers?limit=2&cursor={}",
        page["next_cursor"].as_str().unwrap()
    );
    let rest = app.operate(Method::GET, &rest, Value::Null).await;
    assert_eq!(names(&rest), ["w-3"]);
    assert_eq!(rest["next_cursor"], Value::Null);

    let worker = app.operate(Method::GET, "/workers/w-1", Value::Null).await;
    assert!(worker["started_at"].is_string() && worker["last_beat_at"].is_string());
    for (member, value) in [
        ("host", json!("host")),
        ("version", json!("test")),
        ("state", json!("up")),
        ("queues", json!(["provision@engine-1"])),
        ("engine", json!({ "id": "engine-1", "version": null })),
        ("slots", json!({ "total": 4, "free": 4 })),
        ("running", json!([])),
    ] {
        assert_eq!(worker[member], value, "{member}");
    }
    let why = json!({ "reason": "new kernel" });
    for (change, state) in [
        ("drain", "draining"),
        ("drain", "draining"),
        ("undrain", "up"),
        ("undrain", "up"),
    ] {
        let path = format!("/workers/w-1/{change}");
        let worker = app.operate(Method::POST, &path, why.clone()).await;
        assert_eq!(worker["state"], state);
    }
    let told = json!({ "worker": "w-1", "by": "admin", "reason": "new kernel" });
    assert_eq!(
        app.recorded("WORKER_").await,
        [
            ("WORKER_DRAINING".to_owned(), told.clone()),
            ("WORKER_UNDRAINED".to_owned(), told),
        ]
    );
    for (method, path, body, status, error) in [
        (
            Method::GET,
            "/workers/w-9",
            json!(null),
            404,
            "worker not found",
        ),
        (
            Method::POST,
            "/workers/w-9/drain",
            json!({}),
            404,
            "worker not found",
        ),
        (
            Method::POST,
            "/workers/w-9/undrain",
            json!({}),
            404,
            "worker not found",
        ),
        (
            Method::GET,
            "/workers/a%20b",
            json!(null),
            400,
            "invalid name",
        ),
        (
            Method::GET,
            "/workers?host=a",
            json!(null),
            400,
            "unknown query parameter",
        ),
        (
            Method::POST,
            "/workers/w-1/drain",
            json!({ "for": 1 }),
            400,
            "invalid request body",
        ),
    ] {
        let got = app.refusal(method, path, body).await;
        assert_eq!(got, (status, error.to_owned()), "{path}");
    }
}
