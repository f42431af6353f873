//! Jobs as their owners and operators see them.

use std::time::Duration;

use longshore_base::JobId;
use longshore_ledger::{Retention, prune};
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::app::{DEADLINE, TestApp, expect, expect_error};

#[tokio::test]
async fn jobs_are_listed_filtered_and_paged() {
    let app = TestApp::start().await;
    let agent = app.insert_named("a").await;
    let mut all = Vec::new();
    for owner in [None, Some(agent.id), Some(agent.id), None, None] {
        all.push(app.insert_job(owner).await.to_string());
    }
    all.reverse();
    let list = async |query: &str| {
        let answer = app
            .admin(Method::GET, &format!("/jobs{query}"))
            .send()
            .await;
        let page = expect(answer.unwrap(), StatusCode::OK).await;
        let ids: Vec<String> = page["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|job| job["id"].as_str().unwrap().to_owned())
            .collect();
        (ids, page["next_cursor"].as_str().map(str::to_owned))
    };
    assert_eq!(list("").await, (all.clone(), None));
    let (first, cursor) = list("?limit=2").await;
    let (second, cursor) = list(&format!("?limit=2&cursor={}", cursor.unwrap())).await;
    let (third, end) = list(&format!("?limit=2&cursor={}", cursor.unwrap())).await;
    assert_eq!([first, second, third].concat(), all);
    assert_eq!(end, None);
    assert_eq!(
        list(&format!("?workspace_id={}", agent.id)).await.0.len(),
        2
    );
    assert_eq!(list("?state=scheduled&kind=rest").await.0.len(), 5);
    assert_eq!(list("?state=dead").await.0.len(), 0);
    assert_eq!(list("?newer_than=2100-01-01T00:00:00Z").await.0.len(), 0);

    for (query, error) in [
        ("?sort=asc", "unknown query parameter"),
        ("?limit=1&limit=2", "repeated query parameter"),
        ("?limit=0", "limit must be from 1 to 500"),
        ("?limit=501", "limit must be from 1 to 500"),
        ("?limit=many", "invalid limit"),
        ("?cursor=x", "invalid cursor"),
        ("?state=sleeping", "invalid state"),
        ("?older_than=yesterday", "invalid older_than"),
        ("?workspace_id=x", "invalid workspace_id"),
    ] {
        let answer = app.admin(Method::GET, &format!("/jobs{query}")).send();
        let got = expect_error(answer.await.unwrap(), StatusCode::BAD_REQUEST).await;
        assert_eq!(got, error, "{query}");
    }

    let own = app
        .get(&format!("/workspaces/{}/jobs?limit=1", agent.id))
        .bearer_auth(&agent.token)
        .send()
        .await
        .unwrap();
    let own = expect(own, StatusCode::OK).await;
    assert_eq!(own["items"][0]["workspace_id"], json!(agent.id));
    assert!(own["next_cursor"].is_string());
}

#[tokio::test]
async fn a_waiting_job_is_cancelled_once() {
    let app = TestApp::start().await;
    let id = app.insert_job(None).await;
    let path = format!("/jobs/{id}/cancel");
    for (body, error) in [
        (
            json!({ "reason": "r".repeat(501) }),
            "reason must be at most 500 characters",
        ),
        (json!({ "why": "x" }), "invalid request body"),
    ] {
        let answer = app.admin(Method::POST, &path).json(&body).send().await;
        let got = expect_error(answer.unwrap(), StatusCode::BAD_REQUEST).await;
        assert_eq!(got, error);
    }
    let answer = app
        .admin(Method::POST, &path)
        .json(&json!({ "reason": "not needed" }))
        .send()
        .await
        .unwrap();
    let job = expect(answer, StatusCode::OK).await;
    assert_eq!(job["state"], "cancelled");
    assert!(job["finished_at"].is_string());
    let again = app.admin(Method::POST, &path).send().await.unwrap();
    let error = expect_error(again, StatusCode::CONFLICT).await;
    assert_eq!(error, "job already finished");
    let unknown = format!("/jobs/{}/cancel", JobId::new());
    let answer = app.admin(Method::POST, &unknown).send().await.unwrap();
    expect_error(answer, StatusCode::NOT_FOUND).await;
}

#[tokio::test]
async fn a_job_that_retention_dropped_is_gone_and_not_unknown() {
    let app = TestApp::start().await;
    let agent = app.insert_named("a").await;
    let before = JobId::new();
    let first = app.insert_job(Some(agent.id)).await;
    let kept = app.insert_job(None).await;
    let never_there = JobId::new();
    let last = app.insert_job(None).await;
    for id in [first, last] {
        let path = format!("/jobs/{id}/cancel");
        let answer = app.admin(Method::POST, &path).send().await.unwrap();
        expect(answer, StatusCode::OK).await;
    }
    app.database.advance(Duration::from_secs(40 * 86_400)).await;
    prune(app.database.pool(), Retention::default())
        .await
        .unwrap();
    let status = async |method: Method, path: String| {
        let answer = app.admin(method, &path).send().await.unwrap();
        answer.status().as_u16()
    };
    // Of an id from between two dropped ones nobody knows any more whether there was a job.
    for (id, expected) in [
        (before, 404),
        (first, 410),
        (kept, 200),
        (never_there, 410),
        (last, 410),
        (JobId::new(), 404),
    ] {
        let path = format!("/jobs/{id}");
        assert_eq!(status(Method::GET, path).await, expected, "{id}");
    }
    let events = status(Method::GET, format!("/jobs/{first}/events"));
    assert_eq!(events.await, 410);
    for what in ["cancel", "retry", "discard"] {
        let path = format!("/jobs/{first}/{what}");
        assert_eq!(status(Method::POST, path).await, 410, "{what}");
    }
    for (id, expected) in [(first, 410), (kept, 404)] {
        let request = app.get(&format!("/jobs/{id}")).bearer_auth(&agent.token);
        assert_eq!(request.send().await.unwrap().status().as_u16(), expected);
    }
    let path = format!("/jobs/{first}");
    let answer = app.admin(Method::GET, &path).send().await.unwrap();
    let body = expect(answer, StatusCode::GONE).await;
    assert_eq!(body["error"], "job pruned");
    let detail = body["detail"].as_str().unwrap();
    assert!(
        detail.ends_with(" LONGSHORE_KEEP_CANCELLED_DAYS"),
        "{detail}"
    );
}

/// Reads a stream to its end.
async fn read_all(answer: reqwest::Response) -> String {
    tokio::time::timeout(DEADLINE, answer.text())
        .await
        .expect("the stream ends with the job")
        .unwrap()
}

fn events(text: &str) -> Vec<&str> {
    text.lines()
        .filter_map(|line| line.strip_prefix("event: "))
        .collect()
}

#[tokio::test]
async fn a_watched_job_is_told_to_its_end() {
    let app = TestApp::start().await;
    let agent = app.insert_named("a").await;
    let id = app.insert_job(Some(agent.id)).await;
    let path = format!("/jobs/{id}/events");
    let answer = app
        .get(&path)
        .bearer_auth(&agent.token)
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    assert_eq!(answer.headers()["cache-control"], "no-cache");
    let reader = tokio::spawn(read_all(answer));
    // The watcher must not miss what happens while it looks away.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let cancel = app
        .admin(Method::POST, &format!("/jobs/{id}/cancel"))
        .send();
    assert_eq!(cancel.await.unwrap().status(), StatusCode::OK);
    let text = reader.await.unwrap();
    assert!(text.contains(": ping\n\n"), "{text}");
    assert_eq!(events(&text), ["state", "log", "state"]);
    let last = text.trim_end().rsplit("data: ").next().unwrap();
    let job: serde_json::Value = serde_json::from_str(last).unwrap();
    assert_eq!(job["state"], "cancelled");
    assert!(text.contains(&format!("id: {}\n", job["revision"])));

    // Who comes back after the end is told how it ended.
    let answer = app
        .get(&path)
        .bearer_auth(&agent.token)
        .header("Last-Event-ID", job["revision"].to_string())
        .send()
        .await
        .unwrap();
    assert_eq!(events(&read_all(answer).await), ["log", "state"]);
    // In the description of one job and in its stream it looks the same.
    let shown = app.admin(Method::GET, &format!("/jobs/{id}")).send().await;
    let shown = expect(shown.unwrap(), StatusCode::OK).await;
    let names = |value: &serde_json::Value| {
        let mut names: Vec<String> = value.as_object().unwrap().keys().cloned().collect();
        names.sort();
        names
    };
    assert_eq!(names(&shown), names(&job));
}
