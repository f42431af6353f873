//! A worker that was only stopped, and comes back after another one has taken its work over.

use longshore_tests::{NewWorker, PATIENCE, TestApp, needs_docker, wait_until};
use nix::sys::signal::Signal;
use serde_json::json;

#[tokio::test]
async fn a_worker_stopped_between_remove_and_create_finds_itself_fenced() {
    needs_docker!();
    // The first one leaves a container behind, so that the second one has something to remove.
    let dying = NewWorker::default().failpoint("docker.after_create", "die");
    let mut app = TestApp::build().workers([dying]).start().await;
    let (id, job) = app.create("contested", json!({})).await;
    app.workers[0].died(PATIENCE).await;
    let first_container = app.engine().containers_of(&id).await;
    assert_eq!(first_container.len(), 1);

    let stopping = NewWorker::default().failpoint("docker.after_remove*1", "stop");
    let stopped = app.start_worker(stopping).await;
    stopped.stopped(PATIENCE).await;
    assert!(
        app.engine().containers_of(&id).await.is_empty(),
        "the old one is removed, the new one not made"
    );
    let mut successor = app.start_worker(NewWorker::default()).await;
    app.until_job(&job, "succeeded", PATIENCE).await;
    app.until_up(&id, PATIENCE).await;
    let containers = app.engine().containers_of(&id).await;
    let generation = app.generation_in_row(&id).await;

    stopped.signal(Signal::SIGCONT);
    let pattern = format!("%-{}-%", stopped.pid());
    wait_until("the fenced worker to come back", PATIENCE, || async {
        let found: Option<String> =
            sqlx::query_scalar("SELECT name FROM workers WHERE name LIKE $1")
                .bind(&pattern)
                .fetch_optional(app.pool())
                .await
                .unwrap();
        found.map(drop).ok_or_else(|| stopped.log())
    })
    .await;
    // It works again, under another name. To be sure that the next job is its own, the other one leaves.
    successor.signal(Signal::SIGTERM);
    successor.ended(PATIENCE).await;
    let (other, other_job) = app.create("next", json!({})).await;
    let done = app.until_job(&other_job, "succeeded", PATIENCE).await;
    let worker = done["worker"].as_str().unwrap();
    assert!(worker.contains(&format!("-{}-", stopped.pid())), "{done}");
    app.until_up(&other, PATIENCE).await;

    // Nothing of the contested one has changed.
    assert_eq!(app.engine().containers_of(&id).await, containers);
    assert_eq!(app.generation_in_row(&id).await, generation);
    app.assert_whole(&id).await;
    let job = app.job(&job).await;
    assert_eq!(job["crashes"], 2, "{job}");
    let worker = job["worker"].as_str().unwrap();
    assert!(worker.contains(&format!("-{}-", successor.pid())), "{job}");
    assert_eq!(app.entry(&id).await["status"], "online");
}
