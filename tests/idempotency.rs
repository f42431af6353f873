//! Requests with an `Idempotency-Key`, sent again: at the same moment, to several processes, and after `kill -9`.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use longshore_tests::{Answer, Caller, PATIENCE, TestApp, needs_docker, wait_until};
use reqwest::Method;
use serde_json::{Value, json};

const AT_ONCE: usize = 64;

/// Creates a workspace with a key; answers whether the answer is one given before, and the answer.
async fn create(caller: &Caller, key: &str, body: &Value) -> reqwest::Result<(bool, Answer)> {
    let request = caller.request(Method::POST, "/workspaces").json(body);
    let request = request.header("Idempotency-Key", format!("\"{key}\""));
    let response = request.send().await?;
    let replayed = response.headers().contains_key("idempotent-replayed");
    Ok((replayed, Answer::from_response(response).await?))
}

/// Repeats a request until the one before it no longer is under way.
async fn create_in_the_end(caller: &Caller, key: &str, body: &Value) -> (bool, Answer) {
    wait_until("the key to be free", PATIENCE, || async {
        let answer = create(caller, key, body).await;
        match answer.map_err(|error| error.to_string())? {
            (_, answer) if answer.status == 409 => Err(answer.text()),
            done => Ok(done),
        }
    })
    .await
}

/// Sends the same request many times at once, to these in turn. All answers are one, or tell that it is under way;
/// exactly one was not given before. Answers the body.
async fn storm(callers: &[Caller], key: &str, body: &Value) -> Value {
    let requests = (0..AT_ONCE).map(|number| create(&callers[number % callers.len()], key, body));
    let mut bodies = BTreeSet::new();
    let mut first = 0;
    for answer in join_all(requests).await {
        let (replayed, answer) = answer.unwrap();
        if answer.status == 409 {
            assert!(answer.text().contains("still being processed"));
        } else {
            first += i32::from(!replayed);
            bodies.insert(answer.expect(201).to_string());
        }
    }
    assert_eq!((first, bodies.len()), (1, 1), "{bodies:?}");
    let (replayed, answer) = create(&callers[0], key, body).await.unwrap();
    assert!(replayed);
    let answer = answer.expect(201);
    assert!(bodies.contains(&answer.to_string()));
    answer
}

async fn count(app: &TestApp, table: &str) -> i64 {
    let sql = sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {table}"));
    sqlx::query_scalar(sql).fetch_one(app.pool()).await.unwrap()
}

/// Rounds of identical requests; `IDEMPOTENCY_ROUNDS` asks for more.
fn rounds() -> i64 {
    std::env::var("IDEMPOTENCY_ROUNDS").map_or(4, |rounds| rounds.parse().unwrap())
}

async fn until_in_database(app: &TestApp, what: &str, sql: &'static str) {
    wait_until(what, PATIENCE, || async {
        let found: i64 = sqlx::query_scalar(sql)
            .fetch_one(app.pool())
            .await
            .map_err(|error| error.to_string())?;
        if found > 0 {
            Ok(())
        } else {
            Err("not yet".to_owned())
        }
    })
    .await;
}

#[tokio::test]
async fn sixty_four_identical_posts_to_two_servers_make_one_workspace_round_after_round() {
    let mut app = TestApp::build().without_docker().start().await;
    app.abandon_jobs();
    let (_other, at_other) = app.start_another_api().await;
    let callers = [app.admin(), at_other];
    let mut ids = BTreeSet::new();
    let rounds = rounds();
    for round in 1..=rounds {
        let body = json!({ "name": format!("round {round}") });
        let created = storm(&callers, &format!("round-{round}"), &body).await;
        ids.insert(created["id"].to_string());
        for table in ["workspaces", "jobs"] {
            assert_eq!(count(&app, table).await, round, "{table}");
        }
    }
    assert_eq!(i64::try_from(ids.len()).unwrap(), rounds);
}

#[tokio::test]
async fn sixty_four_identical_posts_bring_one_container_up() {
    needs_docker!();
    let app = TestApp::start().await;
    let created = storm(&[app.admin()], "k", &json!({ "name": "only" })).await;
    let text = |member: &str| created[member].as_str().unwrap().to_owned();
    app.until_up(&text("id"), PATIENCE).await;
    app.until_job(&text("job_id"), "succeeded", PATIENCE).await;
    app.assert_whole(&text("id")).await;
    assert_eq!(app.engine().containers().await.len(), 1);
    // By now it is online, and still the answer is that of the beginning; nothing is started again.
    let (replayed, answer) = create(&app.admin(), "k", &json!({ "name": "only" }))
        .await
        .unwrap();
    assert!(replayed);
    assert_eq!(answer.expect(201), created);
    assert_eq!(
        app.workers[0].log_lines_saying("provision entered").len(),
        1
    );
}

#[tokio::test]
async fn a_server_killed_in_the_middle_of_a_request_leaves_nothing_but_the_key_to_try_again() {
    let mut app = TestApp::build().without_docker().start().await;
    app.abandon_jobs();
    let body = json!({ "name": "survivor" });
    let mut held = app.pool().begin().await.unwrap();
    sqlx::query("LOCK TABLE workspaces IN SHARE MODE")
        .execute(&mut *held)
        .await
        .unwrap();
    let (caller, same) = (app.admin(), body.clone());
    let request = tokio::spawn(async move { create(&caller, "k", &same).await });
    until_in_database(
        &app,
        "the request to be in its transaction",
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'",
    )
    .await;
    app.api.kill();
    assert!(request.await.unwrap().is_err(), "nobody answered");
    held.rollback().await.unwrap();
    app.start_api_again().await;
    let (replayed, answer) = create_in_the_end(&app.admin(), "k", &body).await;
    assert!(!replayed, "nothing was kept");
    answer.expect(201);
    for table in ["workspaces", "jobs", "idempotency_keys"] {
        assert_eq!(count(&app, table).await, 1, "{table}");
    }
}

#[tokio::test]
async fn a_server_killed_after_the_commit_has_done_it_and_its_successor_says_so() {
    let mut app = TestApp::build().without_docker().start().await;
    app.abandon_jobs();
    let body = json!({ "name": "done" });
    let (caller, same) = (app.admin(), body.clone());
    // Whether the answer still comes through is chance; a client that has not heard it does the same.
    let request = tokio::spawn(async move { create(&caller, "k", &same).await.is_ok() });
    until_in_database(&app, "the commit", "SELECT count(*) FROM idempotency_keys").await;
    app.api.kill();
    request.await.unwrap();
    app.start_api_again().await;
    let (replayed, answer) = create_in_the_end(&app.admin(), "k", &body).await;
    assert!(replayed);
    let created = answer.expect(201);
    assert_eq!(
        answer.location,
        format!("/jobs/{}", created["job_id"].as_str().unwrap())
    );
    for table in ["workspaces", "jobs", "idempotency_keys"] {
        assert_eq!(count(&app, table).await, 1, "{table}");
    }
}

#[tokio::test]
async fn a_token_is_told_again_and_is_nowhere_in_the_database() {
    let app = TestApp::build().without_docker().start().await;
    let body = json!({ "name": "outside", "external": true });
    let (_, first) = create(&app.admin(), "k", &body).await.unwrap();
    let (replayed, again) = create(&app.admin(), "k", &body).await.unwrap();
    assert!(replayed);
    assert_eq!(first.body, again.body);
    let created = first.expect(201);
    let token = created["connection"]["auth_token"].as_str().unwrap();
    let agent = app.with_token(Some(token));
    let own = format!("/workspaces/{}", created["id"].as_str().unwrap());
    agent.get(&own).await.expect(200);
    let row: String = sqlx::query_scalar("SELECT k::text FROM idempotency_keys k")
        .fetch_one(app.pool())
        .await
        .unwrap();
    for form in [token.to_owned(), hex::encode(token)] {
        assert!(!row.contains(&form), "{row}");
    }
    let refused = create(&app.admin(), "k", &json!({ "name": "another" })).await;
    let problem = refused.unwrap().1.expect(422);
    assert_eq!(
        problem["error"],
        "this Idempotency-Key was used for another request"
    );
}

#[tokio::test]
async fn an_answer_lives_as_long_as_the_setting_says() {
    let mut app = TestApp::build()
        .without_docker()
        .api_setting("LONGSHORE_IDEMPOTENCY_TTL_SECONDS", "60")
        .start()
        .await;
    app.abandon_jobs();
    let body = json!({ "name": "short" });
    assert!(!create(&app.admin(), "k", &body).await.unwrap().0);
    assert!(create(&app.admin(), "k", &body).await.unwrap().0);
    app.advance(Duration::from_secs(61)).await;
    assert!(!create(&app.admin(), "k", &body).await.unwrap().0);
    assert_eq!(count(&app, "workspaces").await, 2);
}

#[tokio::test]
async fn the_command_line_gives_each_invocation_a_key_of_its_own() {
    let mut app = TestApp::build().without_docker().start().await;
    app.abandon_jobs();
    for _ in 0..2 {
        let output = app.command(&["workspaces", "create", "same"]);
        assert!(output.status.success(), "{output:?}");
    }
    for table in ["workspaces", "idempotency_keys"] {
        assert_eq!(count(&app, table).await, 2, "{table}");
    }
}
