//! What was left behind, as operators see it.

use longshore_base::WorkspaceId;
use longshore_fleet::leaks::{FailedStop, LeftBehind, Resource, record_leak, resolve_leak};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::app::{TestApp, expect};

fn left(id: &str) -> LeftBehind<'_> {
    LeftBehind {
        workspace_id: WorkspaceId::random(),
        backend: "docker",
        engine_id: Some("e1"),
        resource: Resource::Container,
        resource_id: id,
    }
}

async fn list(app: &TestApp, query: &str) -> Value {
    let path = format!("/leaks{query}");
    let answer = app.admin(Method::GET, &path).send().await.unwrap();
    expect(answer, StatusCode::OK).await
}

fn ids(list: &Value) -> Vec<&str> {
    let items = list["items"].as_array().unwrap();
    items
        .iter()
        .map(|leak| leak["resource_id"].as_str().unwrap())
        .collect()
}

#[tokio::test]
async fn leaks_are_listed_newest_first_part_by_part_and_by_state() {
    let app = TestApp::start().await;
    assert_eq!(
        list(&app, "").await,
        json!({ "items": [], "next_cursor": null })
    );
    let mut conn = app.database.pool().acquire().await.unwrap();
    let failed = FailedStop {
        source: "pause",
        attempts: 3,
        error: "the container engine failed",
    };
    for id in ["a", "b", "c"] {
        record_leak(&mut conn, &left(id), &failed).await.unwrap();
    }
    assert!(resolve_leak(&mut conn, &left("b")).await.unwrap());
    assert!(!resolve_leak(&mut conn, &left("b")).await.unwrap());
    let all = list(&app, "").await;
    assert_eq!(ids(&all), ["c", "b", "a"]);
    let newest = &all["items"][0];
    assert_eq!(
        (&newest["source"], &newest["state"], &newest["attempts"]),
        (&json!("pause"), &json!("suspected"), &json!(3))
    );
    assert_eq!(newest["resolved_at"], Value::Null);
    assert_eq!(ids(&list(&app, "?state=gone").await), ["b"]);
    let first = list(&app, "?limit=2").await;
    assert_eq!(ids(&first), ["c", "b"]);
    let cursor = first["next_cursor"].as_str().unwrap();
    let rest = list(&app, &format!("?limit=2&cursor={cursor}")).await;
    assert_eq!(
        (ids(&rest), &rest["next_cursor"]),
        (vec!["a"], &Value::Null)
    );
    for bad in ["?state=lost", "?limit=0", "?cursor=x", "?unknown=1"] {
        let path = format!("/leaks{bad}");
        let answer = app.admin(Method::GET, &path).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{bad}");
    }
}
