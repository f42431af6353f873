//! Requests that must be refused with a reason, and leave nothing behind.

use longshore_fleet::status::WorkspaceStatus;
use longshore_fleet::workspace::remove_workspaces;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::app::{TestApp, expect, expect_error};

/// Rows that a refused request must not add to.
async fn rows(app: &TestApp) -> [i64; 4] {
    [
        app.count("workspaces").await,
        app.count("jobs").await,
        app.count("structure_events").await,
        app.count("workspace_secrets").await,
    ]
}

async fn refused(app: &TestApp, body: String, status: u16) -> (String, String) {
    let before = rows(app).await;
    let answer = app
        .admin(Method::POST, "/workspaces")
        .header("content-type", "application/json")
        .body(body.clone())
        .send()
        .await
        .unwrap();
    let answer = expect(answer, StatusCode::from_u16(status).unwrap()).await;
    assert_eq!(rows(app).await, before, "{body} left something behind");
    let text = |name: &str| answer[name].as_str().unwrap().to_owned();
    (text("error"), text("detail"))
}

#[tokio::test]
async fn a_workspace_that_cannot_be_is_refused_with_the_reason() {
    let app = TestApp::start().await;
    const PAYLOAD: &str = "invalid workspace payload";
    const FIELDS: &str = "invalid workspace fields";
    let object = |mut fields: Value| {
        let object = fields.as_object_mut().unwrap();
        object.entry("name").or_insert(json!("a"));
        fields.to_string()
    };
    let deep = format!(
        r#"{{"name":"a","x":{}{}}}"#,
        "[".repeat(100),
        "]".repeat(100)
    );
    let table = [
        ("".to_owned(), 400, PAYLOAD, "not valid JSON"),
        (
            "{\"name\": \"a\"".to_owned(),
            400,
            PAYLOAD,
            "not valid JSON: EOF",
        ),
        (
            "{\"name\": \"a\", \"tier\": NaN}".to_owned(),
            400,
            PAYLOAD,
            "not valid JSON",
        ),
        (
            "{\"name\": \"a\", \"budget_limit\": 1e999}".to_owned(),
            400,
            PAYLOAD,
            "out of range",
        ),
        (
            "{\"name\": \"\\ud800\"}".to_owned(),
            400,
            PAYLOAD,
            "not valid JSON",
        ),
        ("[]".to_owned(), 400, PAYLOAD, "invalid"),
        ("\"name\"".to_owned(), 400, PAYLOAD, "invalid type: string"),
        ("null".to_owned(), 400, PAYLOAD, "invalid type: null"),
        ("[".repeat(100_000), 400, PAYLOAD, "recursion limit"),
        (deep, 400, PAYLOAD, "nested deeper than 64 levels"),
        ("{}".to_owned(), 400, PAYLOAD, "missing field `name`"),
        (
            object(json!({ "name": "" })),
            400,
            PAYLOAD,
            "name is required",
        ),
        (
            object(json!({ "name": 7 })),
            400,
            PAYLOAD,
            "name: invalid type",
        ),
        (
            object(json!({ "name": null })),
            400,
            PAYLOAD,
            "name: invalid type: null",
        ),
        (
            object(json!({ "tier": "two" })),
            400,
            PAYLOAD,
            "tier: invalid type: string \"two\"",
        ),
        (
            object(json!({ "secrets": { "A": 1 } })),
            400,
            PAYLOAD,
            "secrets.A: invalid type",
        ),
        (
            object(json!({ "canvas": { "x": [] } })),
            400,
            PAYLOAD,
            "canvas.x: invalid type",
        ),
        (
            object(json!({ "name": "a\0b" })),
            400,
            PAYLOAD,
            "the character NUL",
        ),
        (
            object(json!({ "name": "a".repeat(256) })),
            400,
            FIELDS,
            "name must be at most 255 characters",
        ),
        (
            object(json!({ "name": "a\nb" })),
            400,
            FIELDS,
            "name must not contain newline characters",
        ),
        (
            object(json!({ "name": "a{b" })),
            400,
            FIELDS,
            "name contains invalid characters",
        ),
        (
            object(json!({ "role": "r".repeat(1001) })),
            400,
            FIELDS,
            "role must be at most 1000 characters",
        ),
        (
            object(json!({ "tier": 9 })),
            400,
            FIELDS,
            "tier must be 1, 2, 3 or 4",
        ),
        (
            object(json!({ "tier": -1 })),
            400,
            FIELDS,
            "tier must be 1, 2, 3 or 4",
        ),
        (
            object(json!({ "tier": 4 })),
            403,
            "tier 4 is not allowed here: LONGSHORE_MAX_TIER is 2",
            "LONGSHORE_MAX_TIER",
        ),
        (
            object(json!({ "budget_limit": -5 })),
            400,
            FIELDS,
            "budget_limit",
        ),
        (
            object(json!({ "budget_limit": 1e300 })),
            400,
            FIELDS,
            "budget_limit",
        ),
        (
            object(json!({ "parent_id": "0b6f3c1e-4d2a-4c3b-9f00-0123456789ab" })),
            400,
            "invalid parent_id",
            "",
        ),
        (
            object(json!({ "parent_id": "nope" })),
            400,
            "invalid parent_id",
            "",
        ),
        (
            object(json!({ "template": "../etc" })),
            400,
            "invalid template",
            "",
        ),
        (
            object(json!({ "workspace_dir": "/etc" })),
            400,
            "invalid workspace directory",
            "",
        ),
        (
            object(json!({ "workspace_access": "read_only" })),
            400,
            "invalid workspace access",
            "",
        ),
        (
            object(json!({ "external": true, "url": "http://169.254.169.254/latest" })),
            400,
            "url targets a blocked address: link-local (cloud metadata)",
            "",
        ),
        (
            object(json!({ "external": true, "delivery_mode": "pigeon" })),
            400,
            "invalid delivery_mode",
            "",
        ),
    ];
    for (body, status, error, detail) in table {
        let shown: String = body.chars().take(60).collect();
        let (got_error, got_detail) = refused(&app, body, status).await;
        assert_eq!(got_error, error, "{shown}");
        assert!(got_detail.contains(detail), "{shown}: {got_detail}");
    }
}

#[tokio::test]
async fn of_a_repeated_key_the_last_one_counts() {
    let app = TestApp::start().await;
    let answer = app
        .admin(Method::POST, "/workspaces")
        .header("content-type", "application/json")
        .body(r#"{"name":"first","name":"second"}"#)
        .send()
        .await
        .unwrap();
    let created = expect(answer, StatusCode::CREATED).await;
    let path = format!("/workspaces/{}", created["id"].as_str().unwrap());
    let shown = app.admin(Method::GET, &path).send().await.unwrap();
    assert_eq!(expect(shown, StatusCode::OK).await["name"], "second");
}

#[tokio::test]
async fn a_body_is_taken_with_any_json_type_or_none_and_no_other() {
    let app = TestApp::start().await;
    let send = async |content_type: Option<&str>| {
        let mut request = app
            .admin(Method::POST, "/workspaces")
            .body(r#"{"name":"a"}"#);
        if let Some(content_type) = content_type {
            request = request.header("content-type", content_type);
        }
        request.send().await.unwrap()
    };
    for good in [
        None,
        Some("application/json"),
        Some("application/json; charset=utf-8"),
        Some("application/ld+json"),
    ] {
        assert_eq!(send(good).await.status(), StatusCode::CREATED, "{good:?}");
    }
    for bad in ["text/plain", "application/x-www-form-urlencoded", "x"] {
        let error = expect_error(send(Some(bad)).await, StatusCode::UNSUPPORTED_MEDIA_TYPE).await;
        assert_eq!(error, "Content-Type must be application/json");
    }
    // The canvas names the type on everything and sends nothing.
    let job = app.insert_job(None).await;
    for (method, path) in [
        (Method::GET, "/workspaces".to_owned()),
        (Method::POST, format!("/jobs/{job}/cancel")),
    ] {
        let answer = app
            .admin(method, &path)
            .header("content-type", "application/json")
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
    }
}

#[tokio::test]
async fn a_body_of_fifty_megabytes_is_refused_while_it_arrives() {
    let app = TestApp::start().await;
    let agent = app.insert_named("agent").await;
    let before = rows(&app).await;
    let a2a = format!("/workspaces/{}/a2a", agent.id);
    for (path, size) in [
        ("/workspaces", 50 * 1024 * 1024),
        ("/workspaces", 8 * 1024 * 1024 + 1),
        (a2a.as_str(), 1024 * 1024 + 1),
    ] {
        let body = format!(r#"{{"name":"{}"}}"#, "a".repeat(size));
        for chunked in [false, true] {
            let request = app
                .admin(Method::POST, path)
                .header("content-type", "application/json");
            let request = if chunked {
                // Without a length to look at.
                let chunks: Vec<_> = body
                    .as_bytes()
                    .chunks(64 * 1024)
                    .map(|chunk| Ok::<_, std::io::Error>(chunk.to_vec()))
                    .collect();
                request.body(reqwest::Body::wrap_stream(futures_util::stream::iter(
                    chunks,
                )))
            } else {
                request.body(body.clone())
            };
            let answer = request.send().await.unwrap();
            let error = expect_error(answer, StatusCode::PAYLOAD_TOO_LARGE).await;
            assert_eq!(error, "request body too large", "{path} {size}");
        }
    }
    assert_eq!(rows(&app).await, before);
}

#[tokio::test]
async fn ids_are_judged_before_credentials() {
    let app = TestApp::start().await;
    for (method, path, error) in [
        (Method::GET, "/workspaces/nope", "invalid workspace id"),
        (
            Method::PATCH,
            "/workspaces/0b6f3c1e4d2a4c3b9f000123456789ab",
            "invalid workspace id",
        ),
        (
            Method::DELETE,
            "/workspaces/{0b6f3c1e-4d2a-4c3b-9f00-0123456789ab}",
            "invalid workspace id",
        ),
        (
            Method::GET,
            "/workspaces/x'%20OR%201=1--/logs",
            "invalid workspace id",
        ),
        (Method::GET, "/registry/nope/peers", "invalid workspace id"),
        (Method::GET, "/events/nope", "invalid workspace id"),
        (Method::POST, "/workspaces/nope/a2a", "invalid workspace id"),
        (Method::GET, "/jobs/nope", "invalid job id"),
        (Method::POST, "/jobs/nope/cancel", "invalid job id"),
    ] {
        let answer = app.request(method, path).send().await.unwrap();
        assert_eq!(
            expect_error(answer, StatusCode::BAD_REQUEST).await,
            error,
            "{path}"
        );
    }
    for (method, path, status, error) in [
        (Method::GET, "/nowhere", 404, "not found"),
        (Method::GET, "/workspaces/", 404, "not found"),
        (Method::PUT, "/workspaces", 405, "method not allowed"),
        (Method::DELETE, "/health", 405, "method not allowed"),
        (Method::OPTIONS, "/workspaces", 405, "method not allowed"),
    ] {
        let answer = app.request(method, path).send().await.unwrap();
        let status = StatusCode::from_u16(status).unwrap();
        assert_eq!(expect_error(answer, status).await, error, "{path}");
    }
}

#[tokio::test]
async fn a_patch_is_judged_whole_before_anything_is_written() {
    let app = TestApp::start().await;
    let agent = app.insert_named("before").await;
    let child = app.insert_child("child", agent.id).await;
    let path = format!("/workspaces/{}", agent.id);
    let table = [
        (
            json!({ "name": "after", "tier": 9 }),
            400,
            "invalid workspace fields",
        ),
        (
            json!({ "name": "after", "tier": 4 }),
            403,
            "tier 4 is not allowed here: LONGSHORE_MAX_TIER is 2",
        ),
        (
            json!({ "name": "after", "runtime": "unheard-of" }),
            400,
            "unknown runtime",
        ),
        (
            json!({ "name": "a\nb" }),
            400,
            "name must not contain newline characters",
        ),
        (json!({ "name": null }), 400, "invalid request body"),
        (
            json!({ "name": "after", "collapsed": "yes" }),
            400,
            "invalid request body",
        ),
        (
            json!({ "name": "after", "x": "1" }),
            400,
            "invalid request body",
        ),
        (
            json!({ "name": "after", "parent_id": agent.id }),
            400,
            "parent_id would create a cycle",
        ),
        (
            json!({ "name": "after", "parent_id": child.id }),
            400,
            "parent_id would create a cycle",
        ),
        (
            json!({ "name": "after", "parent_id": "x" }),
            400,
            "invalid parent_id",
        ),
        (
            json!({ "name": "after", "workspace_dir": "/proc/1" }),
            400,
            "invalid workspace directory",
        ),
    ];
    for (body, status, error) in table {
        let answer = app
            .admin(Method::PATCH, &path)
            .json(&body)
            .send()
            .await
            .unwrap();
        let status = StatusCode::from_u16(status).unwrap();
        assert_eq!(expect_error(answer, status).await, error, "{body}");
    }
    for (field, value) in [
        ("tier", json!(1)),
        ("parent_id", json!(null)),
        ("runtime", json!("hermes")),
        ("workspace_dir", json!("/data")),
    ] {
        let answer = app
            .request(Method::PATCH, &path)
            .bearer_auth(&agent.token)
            .json(&json!({ field: value, "name": "after" }))
            .send()
            .await
            .unwrap();
        let error = expect_error(answer, StatusCode::FORBIDDEN).await;
        assert_eq!(
            error,
            format!("admin credential required to change {field}")
        );
    }
    let shown = app.admin(Method::GET, &path).send().await.unwrap();
    assert_eq!(expect(shown, StatusCode::OK).await["name"], "before");
}

#[tokio::test]
async fn a_registration_that_may_not_be_is_refused() {
    let app = TestApp::start().await;
    let agent = app.insert_named("agent").await;
    let gone = app.insert_named("gone").await;
    let paused = app.insert_named("paused").await;
    let mut tx = app.database.pool().begin().await.unwrap();
    remove_workspaces(&mut tx, gone.id).await.unwrap();
    tx.commit().await.unwrap();
    app.set_status(paused.id, WorkspaceStatus::Paused).await;

    let unknown = longshore_base::WorkspaceId::random();
    let register = async |id: longshore_base::WorkspaceId, token: &str, body: Value| {
        let mut fields =
            json!({ "id": id, "url": id.internal_url(), "agent_card": { "name": "x" } });
        fields
            .as_object_mut()
            .unwrap()
            .extend(body.as_object().unwrap().clone());
        app.post("/registry/register", &fields)
            .bearer_auth(token)
            .send()
            .await
            .unwrap()
    };
    let table = [
        (unknown, &agent.token, json!({}), 404, "workspace not found"),
        (gone.id, &gone.token, json!({}), 410, "workspace removed"),
        (
            paused.id,
            &paused.token,
            json!({}),
            409,
            "workspace is paused",
        ),
        (
            agent.id,
            &paused.token,
            json!({}),
            401,
            "invalid workspace auth token",
        ),
        (
            agent.id,
            &agent.token,
            json!({ "url": "http://169.254.169.254/latest/meta-data" }),
            400,
            "url targets a blocked address: link-local (cloud metadata)",
        ),
        (
            agent.id,
            &agent.token,
            json!({ "url": "http://[::ffff:a9fe:a9fe]/" }),
            400,
            "url targets a blocked address: link-local (cloud metadata)",
        ),
        (
            agent.id,
            &agent.token,
            json!({ "url": "http://10.0.0.8:8000" }),
            400,
            "url targets a blocked address: private",
        ),
        (
            agent.id,
            &agent.token,
            json!({ "url": "file:///etc/passwd" }),
            400,
            "url scheme must be http or https, got \"file\"",
        ),
        (
            agent.id,
            &agent.token,
            json!({ "url": "" }),
            400,
            "url is required",
        ),
        (
            agent.id,
            &agent.token,
            json!({ "agent_card": null }),
            400,
            "invalid request body",
        ),
        (
            agent.id,
            &agent.token,
            json!({ "agent_card": "\0" }),
            400,
            "invalid request body",
        ),
        (
            agent.id,
            &agent.token,
            json!({ "id": "nope" }),
            400,
            "invalid request body",
        ),
        (
            agent.id,
            &agent.token,
            json!({ "delivery_mode": "pigeon" }),
            400,
            "invalid delivery_mode",
        ),
    ];
    for (id, token, body, status, error) in table {
        let answer = register(id, token, body.clone()).await;
        let status = StatusCode::from_u16(status).unwrap();
        assert_eq!(expect_error(answer, status).await, error, "{body}");
    }
    let shown = app
        .admin(Method::GET, &format!("/workspaces/{}", agent.id))
        .send()
        .await
        .unwrap();
    let shown = expect(shown, StatusCode::OK).await;
    assert_eq!(shown["status"], "provisioning");
    assert_eq!(shown["agent_card"], Value::Null);
}
