//! Redis only carries hints: without it everything goes on, slower, and says so.

use std::time::{Duration, Instant};

use longshore_tests::{NewWorker, PATIENCE, TestApp, needs_docker, wait_until};
use serde_json::json;

const POSTS: usize = 100;
/// The promise is 500 ms for the slowest of a hundred. A machine that runs other tests beside this one gets more.
const SLOWEST_POST: Duration = Duration::from_secs(2);
/// From the commit, at the default settings.
const RUNS_WITHIN: f64 = 3.0;

#[tokio::test]
async fn a_job_whose_api_was_killed_before_it_could_tell_runs_all_the_same() {
    needs_docker!();
    let mut app = TestApp::build()
        .api_setting("LONGSHORE_FAILPOINTS", "admit.committed*1=die")
        .start()
        .await;
    let body = json!({ "name": "orphan" });
    let request = app.admin().request(reqwest::Method::POST, "/workspaces");
    // The answer may or may not come out before the end.
    let answer = request.json(&body).send().await;
    app.api.died(PATIENCE).await;
    drop(answer);
    let (waited, id): (f64, String) = wait_until("the job to run", PATIENCE, || async {
        let row: Option<(f64, String)> = sqlx::query_as(
            "SELECT extract(epoch FROM started_at - created_at)::float8, workspace_id::text FROM
             (SELECT started_at, created_at, workspace_id FROM jobs
              UNION ALL SELECT started_at, created_at, workspace_id FROM job_history) AS known
             WHERE started_at IS NOT NULL",
        )
        .fetch_optional(app.pool())
        .await
        .unwrap();
        row.ok_or_else(|| "no job has started".to_owned())
    })
    .await;
    println!("from the commit to the run: {waited:.2} s");
    assert!(waited <= RUNS_WITHIN, "{waited} s");
    // The agent finds the API at the same address again.
    app.start_api_again().await;
    app.until_up(&id, PATIENCE).await;
    app.assert_whole(&id).await;
}

#[tokio::test]
async fn while_redis_is_frozen_posts_are_quick_jobs_go_on_and_readyz_names_it() {
    // Jobs that end quickly, and badly, are the cheapest: there is no engine.
    let mut app = TestApp::build()
        .without_docker()
        .own_redis()
        .workers([NewWorker::default()])
        .start()
        .await;
    until_ready_is(&app, "ready").await;
    app.redis().freeze();
    let mut took = Vec::with_capacity(POSTS);
    let mut created = Vec::with_capacity(POSTS);
    for number in 0..POSTS {
        let began = Instant::now();
        created.push(app.create(&format!("w{number}"), json!({})).await);
        took.push(began.elapsed());
    }
    took.sort();
    let (median, p99) = (took[POSTS / 2], took[POSTS - POSTS / 100 - 1]);
    println!("POST /workspaces while Redis is frozen: p50 {median:?}, p99 {p99:?}");
    assert!(p99 < SLOWEST_POST, "{p99:?}");

    let ready = until_ready_is(&app, "degraded").await;
    assert!(
        ready["degraded"]
            .as_array()
            .unwrap()
            .contains(&json!("redis")),
        "{ready}"
    );
    for (id, job) in &created {
        let job = app.until_job(job, "dead", Duration::from_secs(60)).await;
        assert_eq!((&job["attempt"], &job["crashes"]), (&json!(1), &json!(0)));
        assert_eq!(app.entry(id).await["status"], "failed");
    }
    app.redis().thaw();
    until_ready_is(&app, "ready").await;
}

#[tokio::test]
async fn a_workspace_comes_online_while_redis_is_away() {
    needs_docker!();
    let mut app = TestApp::build().own_redis().start().await;
    app.redis().kill();
    let (id, job) = app.create("without hints", json!({})).await;
    app.until_job(&job, "succeeded", PATIENCE).await;
    app.until_up(&id, PATIENCE).await;
    app.assert_whole(&id).await;
    // What it missed comes back with it: the next one is as any other.
    app.redis().start_again().await;
    until_ready_is(&app, "ready").await;
    let (next, _) = app.create("with hints", json!({})).await;
    app.until_up(&next, PATIENCE).await;
}

#[tokio::test]
async fn a_redis_that_may_evict_is_warned_of_at_the_start() {
    let mut app = TestApp::build().without_docker().own_redis().start().await;
    assert_eq!(warnings_of_eviction(&app).await, 0);
    let policy = ["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"];
    app.redis().command(&policy).await;
    app.api.kill();
    app.start_api_again().await;
    assert_eq!(warnings_of_eviction(&app).await, 1);
    // A Redis that does not tell keeps nobody from starting.
    let silence = ["ACL", "SETUSER", "default", "-config", "-info"];
    app.redis().command(&silence).await;
    app.api.kill();
    app.start_api_again().await;
    assert_eq!(warnings_of_eviction(&app).await, 0);
    until_ready_is(&app, "ready").await;
}

/// How often the API process has warned, once it has had the occasion.
async fn warnings_of_eviction(app: &TestApp) -> usize {
    wait_until("the API to have met Redis", PATIENCE, || async {
        let met = app.api.log_lines_saying("connected to Redis");
        if met.is_empty() {
            Err(app.api.log())
        } else {
            Ok(())
        }
    })
    .await;
    let mut lines = app.api.log_lines();
    lines.retain(|line| {
        line.field("level") == "WARN" && line.field("message").contains("noeviction")
    });
    lines.len()
}

/// Waits until `/readyz` has this status; it is answered 200 whatever Redis does.
async fn until_ready_is(app: &TestApp, status: &str) -> serde_json::Value {
    wait_until(&format!("/readyz to be {status}"), PATIENCE, || async {
        let report = app.nobody().get("/readyz?verbose").await.expect(200);
        // Without an engine that part is away for the whole of the test.
        let mut report = report;
        if let Some(degraded) = report["degraded"].as_array_mut() {
            degraded.retain(|part| part != "container_engine");
            let is = if degraded.is_empty() {
                "ready"
            } else {
                "degraded"
            };
            report["status"] = json!(is);
        }
        if report["status"] == status {
            Ok(report)
        } else {
            Err(report.to_string())
        }
    })
    .await
}
