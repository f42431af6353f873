//! `kill -9` of a worker at every named point of a provision.
//!
//! Each time the same must hold: another worker takes over within 20 s, and in the end there is exactly one container,
//! the row's, whose token works and whose agent answers; nothing of ours is unlabelled, and the job's history tells what
//! happened.

use std::collections::BTreeSet;
use std::time::Duration;

use longshore_base::failpoint::POINTS;
use longshore_tests::{NewWorker, PATIENCE, Process, TestApp, needs_docker, wait_until};
use serde_json::{Value, json};

/// Ten seconds of silence, the beats on both sides of it, and the start of the successor.
const TAKEN_OVER: Duration = Duration::from_secs(20);

/// Makes a test for each point, and the list of them.
macro_rules! crashes_at {
    ($($name:ident: $point:literal,)*) => {
        const CRASHES: &[&str] = &[$($point,)*];

        $(
            #[tokio::test]
            async fn $name() {
                needs_docker!();
                Box::pin(survives_a_crash_at($point)).await;
            }
        )*
    };
}

crashes_at! {
    a_crash_when_the_claim_is_committed: "claim.committed",
    a_crash_when_the_provision_is_entered: "provision.entered",
    a_crash_when_the_environment_is_prepared: "provision.prepared",
    a_crash_when_the_token_is_issued: "provision.token_issued",
    a_crash_after_the_volumes: "docker.after_volumes",
    a_crash_after_the_old_container_is_removed: "docker.after_remove",
    a_crash_after_the_container_is_created: "docker.after_create",
    a_crash_after_the_files_are_in_place: "docker.after_configure",
    a_crash_after_the_container_is_started: "docker.after_start",
    a_crash_before_the_start_is_written_down: "provision.started",
    a_crash_after_the_start_is_written_down: "provision.persisted",
    a_crash_before_the_job_is_finished: "finish.before",
}

#[test]
fn every_point_of_a_provision_has_its_crash() {
    // The others are points of other kinds.
    let is_elsewhere = |point: &&str| {
        let kinds = [
            "purge.",
            "restart.",
            "reseal.",
            "fanout.",
            "rollout.",
            "instance.",
        ];
        kinds.iter().any(|kind| point.starts_with(kind))
    };
    let known: BTreeSet<&str> = POINTS
        .iter()
        .copied()
        .filter(|point| !is_elsewhere(point))
        .collect();
    // The worker admits only what comes back to it, which takes a crash of its own.
    let tested: BTreeSet<&str> = CRASHES.iter().copied().chain(["admit.committed"]).collect();
    assert_eq!(tested, known);
}

async fn survives_a_crash_at(point: &str) {
    let dying = NewWorker::default().failpoint(&format!("{point}*1"), "die");
    let mut app = TestApp::build().workers([dying]).start().await;
    let (id, job) = app.create("unlucky", json!({})).await;
    app.workers[0].died(PATIENCE).await;
    let successor = app.start_worker(NewWorker::default()).await;
    is_taken_over(&app, &job, &successor).await;
    let job = is_whole_in_the_end(&app, &id, &job).await;
    assert_eq!(job["crashes"], 1, "{job}");
    tells_of_the_death_of(&app.workers[0], &job);
}

#[tokio::test]
async fn a_crash_when_a_take_over_is_admitted() {
    needs_docker!();
    let dying = NewWorker::default().failpoint("provision.entered", "die");
    let mut app = TestApp::build().workers([dying]).start().await;
    let (id, job) = app.create("very unlucky", json!({})).await;
    app.workers[0].died(PATIENCE).await;
    // The second one finds the dead, admits the job again, and dies before it can tell anybody.
    let dying = NewWorker::default().failpoint("admit.committed", "die");
    let mut second = app.start_worker(dying).await;
    second.died(PATIENCE).await;
    let third = app.start_worker(NewWorker::default()).await;
    is_taken_over(&app, &job, &third).await;
    let job = is_whole_in_the_end(&app, &id, &job).await;
    assert_eq!(job["crashes"], 1, "only one died while running it: {job}");
    tells_of_the_death_of(&app.workers[0], &job);
}

async fn is_taken_over(app: &TestApp, job: &str, by: &Process) {
    let name = format!("-{}-", by.pid());
    wait_until("the successor to take the job over", TAKEN_OVER, || async {
        let job = app.job(job).await;
        let worker = job["worker"].as_str().unwrap_or_default();
        if worker.contains(&name) {
            Ok(())
        } else {
            Err(job.to_string())
        }
    })
    .await;
}

/// Waits for both ends, of the job and of the agent's start, and looks at what is there.
async fn is_whole_in_the_end(app: &TestApp, id: &str, job: &str) -> Value {
    let job = wait_until("the job to end", PATIENCE, || async {
        let job = app.job(job).await;
        match job["state"].as_str() {
            // Superseded: the dead one had come so far that nothing was left to do.
            Some("succeeded" | "superseded") => Ok(job),
            _ => Err(job.to_string()),
        }
    })
    .await;
    app.until_up(id, PATIENCE).await;
    app.assert_whole(id).await;
    job
}

fn tells_of_the_death_of(dead: &Process, job: &Value) {
    let name = format!("-{}-", dead.pid());
    let told = job["errors"].as_array().unwrap().iter().any(|error| {
        let text = error["error"].as_str().unwrap_or_default();
        let worker = error["worker"].as_str().unwrap_or_default();
        text.contains("died while running it") && worker.contains(&name)
    });
    assert!(told, "{job}");
}
