//! Postgres goes and comes back under running jobs.

use longshore_tests::{NewWorker, PATIENCE, TestApp, needs_docker, wait_until};
use serde_json::json;

const TEN: usize = 10;

#[tokio::test]
async fn a_restart_of_postgres_takes_no_running_job_from_its_worker() {
    needs_docker!();
    let gate = tempfile::tempdir().unwrap();
    let gate = gate.path().join("open");
    let worker = NewWorker::default()
        .failpoint("provision.entered", &format!("gate:{}", gate.display()))
        .setting("PROVISION_CONCURRENCY_DOCKER", "10");
    // The other one would take over what looks abandoned. It can run nothing itself: it knows no engine.
    let watching = NewWorker::default().on_engine("unix:///nonexistent/docker.sock");
    let mut app = TestApp::build()
        .own_postgres()
        .workers([worker, watching])
        .start()
        .await;
    let mut created = Vec::new();
    for number in 0..TEN {
        created.push(app.create(&format!("w{number}"), json!({})).await);
    }
    let mut workers = Vec::new();
    for (_, job) in &created {
        let job = wait_until("all ten to be entered", PATIENCE, || async {
            let job = app.job(job).await;
            if job["state"] == "running" && job["progress"]["step"] == "entered" {
                Ok(job)
            } else {
                Err(job.to_string())
            }
        })
        .await;
        workers.push(job["worker"].clone());
    }
    app.postgres().restart().await;
    std::fs::write(&gate, "").unwrap();

    for ((id, job), worker) in created.iter().zip(&workers) {
        let done = wait_until("the job to succeed", PATIENCE, || async {
            let answer = app.admin().get(&format!("/jobs/{job}")).await;
            if answer.status == 200 && answer.json()["state"] == "succeeded" {
                Ok(answer.json())
            } else {
                Err(answer.text())
            }
        })
        .await;
        assert_eq!(done["worker"], *worker, "{done}");
        assert_eq!((&done["crashes"], &done["attempt"]), (&json!(0), &json!(0)));
        app.until_up(id, PATIENCE).await;
    }
    app.assert_whole(&created[0].0).await;
}
