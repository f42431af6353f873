//! `Idempotency-Key`: work that is asked for twice is done once.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use longshore_api::routes::{self, Repeat, Verb};
use longshore_api::{ApiConfig, openapi_document};
use longshore_base::JobId;
use longshore_base::clock::Stopwatch;
use reqwest::header::{CONTENT_TYPE, HeaderMap, LOCATION, RETRY_AFTER};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};

use crate::app::{DEADLINE, Options, TestApp, expect, expect_error};

const REPLAYED: &str = "idempotent-replayed";

/// POST by the admin, with a key.
fn keyed(app: &TestApp, path: &str, key: &str, body: &Value) -> RequestBuilder {
    let request = app.admin(Method::POST, path).json(body);
    request.header("Idempotency-Key", key)
}

async fn create(app: &TestApp, key: &str, body: &Value) -> Response {
    keyed(app, "/workspaces", key, body).send().await.unwrap()
}

/// The parts of an answer that a repetition must have too: not those of this very request.
async fn essence(answer: Response) -> (StatusCode, HeaderMap, Vec<u8>) {
    let status = answer.status();
    let mut headers = answer.headers().clone();
    for name in [
        "date",
        "x-request-id",
        "x-ratelimit-remaining",
        "x-ratelimit-reset",
        "ratelimit",
        REPLAYED,
    ] {
        headers.remove(name);
    }
    (status, headers, answer.bytes().await.unwrap().to_vec())
}

fn assert_replay(answer: &Response) {
    assert_eq!(answer.headers()[REPLAYED], "true");
}

/// A transaction of somebody else that no workspace can be written under.
async fn hold_workspaces(app: &TestApp) -> sqlx::Transaction<'static, sqlx::Postgres> {
    let mut tx = app.database.pool().begin().await.unwrap();
    sqlx::query("LOCK TABLE workspaces IN SHARE MODE")
        .execute(&mut *tx)
        .await
        .unwrap();
    tx
}

/// Waits until a request hangs on [`hold_workspaces`].
async fn until_one_waits(app: &TestApp) {
    let started = Stopwatch::start();
    loop {
        let waiting: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM pg_stat_activity
             WHERE datname = current_database() AND wait_event_type = 'Lock'",
        )
        .fetch_one(app.database.pool())
        .await
        .unwrap();
        if waiting > 0 {
            return;
        }
        assert!(started.elapsed() < DEADLINE, "nobody waits");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_repetition_gets_the_first_answer_to_the_byte_and_starts_nothing() {
    let app = TestApp::start().await;
    let body = json!({ "name": "once" });
    let first = create(&app, "\"key-1\"", &body).await;
    assert_eq!(first.status(), StatusCode::CREATED);
    assert!(!first.headers().contains_key(REPLAYED));
    assert!(first.headers().contains_key(LOCATION));
    let first = essence(first).await;
    // Quoted or not, it is the same key.
    for key in ["\"key-1\"", "key-1"] {
        let again = create(&app, key, &body).await;
        assert_replay(&again);
        assert_eq!(essence(again).await, first);
    }
    for (table, rows) in [("workspaces", 1), ("jobs", 1), ("structure_events", 1)] {
        assert_eq!(app.count(table).await, rows, "{table}");
    }
    let other = create(&app, "key-2", &body).await;
    assert_eq!(other.status(), StatusCode::CREATED);
    assert!(!other.headers().contains_key(REPLAYED));
    assert_eq!(app.count("workspaces").await, 2);
}

#[tokio::test]
async fn an_answer_with_a_token_is_given_again_and_is_not_readable_in_the_database() {
    let app = TestApp::start().await;
    let body = json!({ "name": "outside", "external": true });
    let created = create(&app, "k", &body).await;
    let first = expect(created, StatusCode::CREATED).await;
    let token = first["connection"]["auth_token"].as_str().unwrap();
    assert_eq!(token.len(), 43);
    let again = expect(create(&app, "k", &body).await, StatusCode::CREATED).await;
    assert_eq!(again["connection"]["auth_token"], token);
    assert_eq!(app.count("workspace_auth_tokens").await, 1);
    let row: Vec<u8> = sqlx::query_scalar(
        "SELECT convert_to(k::text, 'UTF8') || k.encrypted_body FROM idempotency_keys k",
    )
    .fetch_one(app.database.pool())
    .await
    .unwrap();
    assert!(!String::from_utf8_lossy(&row).contains(token));
    assert!(!String::from_utf8_lossy(&row).contains("auth_token"));
}

#[tokio::test]
async fn a_key_that_was_used_for_another_request_is_refused() {
    let app = TestApp::start().await;
    create(&app, "k", &json!({ "name": "one" })).await;
    let refused = create(&app, "k", &json!({ "name": "two" })).await;
    assert!(!refused.headers().contains_key(REPLAYED));
    let error = expect_error(refused, StatusCode::UNPROCESSABLE_ENTITY).await;
    assert_eq!(error, "this Idempotency-Key was used for another request");
    let query = keyed(&app, "/workspaces?x=1", "k", &json!({ "name": "one" }));
    let refused = query.send().await.unwrap();
    expect_error(refused, StatusCode::UNPROCESSABLE_ENTITY).await;
    // The first answer is as good as before.
    let again = create(&app, "k", &json!({ "name": "one" })).await;
    assert_replay(&again);
    assert_eq!(app.count("workspaces").await, 1);
}

#[tokio::test]
async fn a_key_belongs_to_the_credential_and_the_route() {
    let app = TestApp::start().await;
    let body = json!({ "name": "mine" });
    let mine = expect(create(&app, "k", &body).await, StatusCode::CREATED).await;
    let mut ids = BTreeSet::from([mine["id"].to_string()]);
    for _ in 0..2 {
        let token = app.insert_org_token().await;
        let request = app.post("/workspaces", &body).bearer_auth(token);
        let theirs = request.header("Idempotency-Key", "k").send().await.unwrap();
        assert!(!theirs.headers().contains_key(REPLAYED));
        let theirs = expect(theirs, StatusCode::CREATED).await;
        assert!(ids.insert(theirs["id"].to_string()));
    }
    let job = mine["job_id"].as_str().unwrap();
    for (path, replayed) in [
        (format!("/jobs/{job}/cancel"), false),
        (format!("/jobs/{}/cancel", job.to_uppercase()), true),
    ] {
        let request = app.admin(Method::POST, &path);
        let answer = request.header("Idempotency-Key", "k").send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(answer.headers().contains_key(REPLAYED), replayed);
    }
}

#[tokio::test]
async fn while_the_first_is_under_way_a_repetition_is_told_so() {
    let app = TestApp::start().await;
    let body = json!({ "name": "slow" });
    let held = hold_workspaces(&app).await;
    let first = tokio::spawn(keyed(&app, "/workspaces", "k", &body).send());
    until_one_waits(&app).await;
    let second = create(&app, "k", &body).await;
    assert_eq!(second.headers()[RETRY_AFTER], "1");
    let error = expect_error(second, StatusCode::CONFLICT).await;
    assert_eq!(
        error,
        "a request with this Idempotency-Key is still being processed"
    );
    held.rollback().await.unwrap();
    let first = first.await.unwrap().unwrap();
    assert_eq!(first.status(), StatusCode::CREATED);
    // That it was told to wait is not what is kept.
    let third = create(&app, "k", &body).await;
    assert_replay(&third);
    assert_eq!(essence(third).await, essence(first).await);
    assert_eq!(app.count("workspaces").await, 1);
}

#[tokio::test]
async fn a_request_whose_client_goes_away_leaves_its_key_free() {
    let app = TestApp::start().await;
    let body = json!({ "name": "impatient" });
    let held = hold_workspaces(&app).await;
    let impatient = tokio::spawn(keyed(&app, "/workspaces", "k", &body).send());
    until_one_waits(&app).await;
    impatient.abort();
    held.rollback().await.unwrap();
    let started = Stopwatch::start();
    let answer = loop {
        let answer = create(&app, "k", &body).await;
        if answer.status() != StatusCode::CONFLICT {
            break answer;
        }
        assert!(started.elapsed() < DEADLINE, "the key is still held");
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert_eq!(answer.status(), StatusCode::CREATED);
    assert_eq!(app.count("workspaces").await, 1);
}

#[tokio::test]
async fn sixty_four_at_once_make_one_workspace_and_one_job() {
    let app = TestApp::start().await;
    let body = json!({ "name": "popular" });
    let answers = join_all((0..64).map(|_| create(&app, "k", &body))).await;
    let mut bodies = BTreeSet::new();
    let mut original = 0;
    for answer in answers {
        match answer.status() {
            StatusCode::CREATED => {
                original += i32::from(!answer.headers().contains_key(REPLAYED));
                bodies.insert(answer.text().await.unwrap());
            }
            status => assert_eq!(status, StatusCode::CONFLICT),
        }
    }
    assert_eq!((original, bodies.len()), (1, 1), "{bodies:?}");
    for (table, rows) in [("workspaces", 1), ("jobs", 1), ("idempotency_keys", 1)] {
        assert_eq!(app.count(table).await, rows, "{table}");
    }
}

#[tokio::test]
async fn a_refusal_that_comes_from_the_state_is_kept() {
    let app = TestApp::start().await;
    let unknown = format!("/jobs/{}/cancel", JobId::new());
    let job = app.insert_job(None).await;
    let finished = format!("/jobs/{job}/cancel");
    let done = app.admin(Method::POST, &finished).send().await.unwrap();
    assert_eq!(done.status(), StatusCode::OK);
    for (path, status) in [
        (unknown, StatusCode::NOT_FOUND),
        (finished, StatusCode::CONFLICT),
    ] {
        let first = keyed(&app, &path, "k", &json!({})).send().await.unwrap();
        assert!(!first.headers().contains_key(REPLAYED));
        assert_eq!(first.status(), status);
        assert_eq!(first.headers()[CONTENT_TYPE], "application/problem+json");
        let again = keyed(&app, &path, "k", &json!({})).send().await.unwrap();
        assert_replay(&again);
        assert_eq!(essence(again).await, essence(first).await);
        let other = keyed(&app, &path, "k", &json!({ "reason": "x" }));
        let other = other.send().await.unwrap();
        expect_error(other, StatusCode::UNPROCESSABLE_ENTITY).await;
    }
}

#[tokio::test]
async fn what_is_wrong_with_the_request_or_with_us_is_not_kept() {
    let app = TestApp::start().await;
    let good = json!({ "name": "n" });
    for (body, status) in [
        (json!({ "name": "" }), StatusCode::BAD_REQUEST),
        (json!({ "nome": "n" }), StatusCode::BAD_REQUEST),
        (
            json!({ "name": "n", "parent_id": JobId::new() }),
            StatusCode::BAD_REQUEST,
        ),
        (json!({ "name": "n", "tier": 4 }), StatusCode::FORBIDDEN),
    ] {
        let refused = create(&app, "k", &body).await;
        expect_error(refused, status).await;
    }
    let stranger = app.post("/workspaces", &good).bearer_auth("nobody");
    let refused = stranger.header("Idempotency-Key", "k").send().await;
    expect_error(refused.unwrap(), StatusCode::UNAUTHORIZED).await;
    let text = app
        .admin(Method::POST, "/workspaces")
        .body(good.to_string());
    let text = text.header(CONTENT_TYPE, "text/plain");
    let refused = text.header("Idempotency-Key", "k").send().await.unwrap();
    expect_error(refused, StatusCode::UNSUPPORTED_MEDIA_TYPE).await;
    let large = json!({ "name": "n", "role": "x".repeat(9 * 1024 * 1024) });
    let refused = create(&app, "k", &large).await;
    expect_error(refused, StatusCode::PAYLOAD_TOO_LARGE).await;

    let rename = async |from: &str, to: &str| {
        let sql = sqlx::AssertSqlSafe(format!("ALTER TABLE {from} RENAME TO {to}"));
        sqlx::query(sql).execute(app.database.pool()).await.unwrap();
    };
    rename("jobs", "jobs_away").await;
    let failed = create(&app, "k", &good).await;
    expect_error(failed, StatusCode::INTERNAL_SERVER_ERROR).await;
    rename("jobs_away", "jobs").await;

    for table in ["idempotency_keys", "workspaces"] {
        assert_eq!(app.count(table).await, 0, "{table}");
    }
    // After all that the key is as good as new.
    let created = create(&app, "k", &good).await;
    assert!(!created.headers().contains_key(REPLAYED));
    expect(created, StatusCode::CREATED).await;
}

#[tokio::test]
async fn a_refusal_for_too_many_requests_is_not_kept() {
    let mut options = Options::default();
    options.api.rate_limit_per_minute = 1;
    let app = TestApp::with(options).await;
    let body = json!({ "name": "n" });
    expect(create(&app, "k-1", &body).await, StatusCode::CREATED).await;
    let refused = create(&app, "k-2", &body).await;
    expect_error(refused, StatusCode::TOO_MANY_REQUESTS).await;
    assert_eq!(app.count("idempotency_keys").await, 1);
}

#[tokio::test]
async fn an_answer_is_kept_as_long_as_the_setting_says() {
    let mut options = Options::default();
    options.api.idempotency_ttl = Duration::from_secs(3600);
    let app = TestApp::with(options).await;
    assert_eq!(
        ApiConfig::DEFAULT_IDEMPOTENCY_TTL,
        Duration::from_secs(86400)
    );
    let body = json!({ "name": "n" });
    create(&app, "k", &body).await;
    app.database.advance(Duration::from_secs(3500)).await;
    assert_replay(&create(&app, "k", &body).await);
    app.database.advance(Duration::from_secs(200)).await;
    let late = create(&app, "k", &json!({ "name": "another" })).await;
    assert!(!late.headers().contains_key(REPLAYED));
    expect(late, StatusCode::CREATED).await;
    assert_eq!(app.count("workspaces").await, 2);
    assert_eq!(app.count("idempotency_keys").await, 1);
}

#[tokio::test]
async fn in_dev_mode_keys_work_without_a_credential() {
    let app = TestApp::with(Options::default().dev_mode()).await;
    let body = json!({ "name": "n" });
    let post = async || {
        let request = app.post("/workspaces", &body);
        request.header("Idempotency-Key", "k").send().await.unwrap()
    };
    assert_eq!(post().await.status(), StatusCode::CREATED);
    assert_replay(&post().await);
}

/// Every POST of the table, with a header that is no key: where keys count it is refused, elsewhere nobody reads it.
#[tokio::test]
async fn keys_are_read_on_the_routes_that_say_so_and_ignored_elsewhere() {
    let app = TestApp::start().await;
    let agent = app.insert_named("a").await;
    let job = app.insert_job(None).await;
    for route in routes::all().filter(|route| route.verb == Verb::Post) {
        let path = route
            .path
            .replace("{id}", &agent.id.to_string())
            .replace("{job_id}", &job.to_string())
            .replace("{leak_id}", &job.to_string())
            .replace("{runtime}", "hermes")
            .replace("{rollout_id}", &agent.id.to_string())
            .replace("{name}", "rest");
        let sent = keyed(&app, &path, "no key", &json!({})).send().await;
        let answer = sent.unwrap();
        let status = answer.status();
        let text = answer.text().await.unwrap();
        let refused = text.contains("invalid Idempotency-Key");
        assert_eq!(
            refused,
            route.repeat == Some(Repeat::Keyed),
            "{path}: {text}"
        );
        if refused {
            assert_eq!(status, StatusCode::BAD_REQUEST);
            assert!(text.contains("1 to 255"), "it says what to do: {text}");
        }
    }
    assert_eq!(app.count("idempotency_keys").await, 0);
}

/// What the description says of a route agrees with the table; and whoever answers with a job has started work, so he
/// must take a key.
#[test]
fn every_post_that_starts_work_takes_a_key() {
    let document: Value = serde_json::from_str(&openapi_document()).unwrap();
    for route in routes::all().filter(|route| route.verb == Verb::Post) {
        let operation = &document["paths"][route.path]["post"];
        let is_keyed = route.repeat == Some(Repeat::Keyed);
        let takes_key = operation["parameters"]
            .as_array()
            .is_some_and(|parameters| {
                parameters.iter().any(|parameter| {
                    parameter["name"] == "Idempotency-Key"
                        && parameter["in"] == "header"
                        && parameter["required"] == false
                })
            });
        assert_eq!(takes_key, is_keyed, "{}: {operation}", route.path);
        for (status, response) in operation["responses"].as_object().unwrap() {
            if !status.starts_with('2') {
                continue;
            }
            let says_replayed = response["headers"]["Idempotent-Replayed"].is_object();
            assert_eq!(says_replayed, is_keyed, "{} {status}", route.path);
            // A message is its agent's to judge; a drain that goes on is no job; what is aborted names the job it had.
            let starts_work = status == "202"
                && !route.path.ends_with("/a2a")
                && route.path != "/queues/{name}/drain"
                || response["headers"]["Location"].is_object()
                || answers_with_a_job(&document, response) && !route.path.ends_with("/abort");
            assert!(is_keyed || !starts_work, "{} {status}", route.path);
        }
    }
}

fn answers_with_a_job(document: &Value, response: &Value) -> bool {
    let content = response["content"].as_object().into_iter().flatten();
    content
        .filter_map(|(_, media)| media["schema"]["$ref"].as_str())
        .any(|schema| {
            let name = schema.rsplit('/').next().unwrap();
            name == "Job"
                || document["components"]["schemas"][name]["properties"]["job_id"].is_object()
        })
}
