//! A job that kills its worker each time it runs, in the middle of others that do not.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::arena::Arena;
use crate::check::violations;
use crate::requests::ask;
use crate::run::{admitter, directory, keep, live};
use crate::schedule::{Plan, Request};

/// As many as run beside it at once, and some that wait.
const NEIGHBOURS: usize = 12;
const DEADLINE: Duration = Duration::from_secs(90);

#[tokio::test]
async fn a_poison_job_dies_with_its_third_worker_and_takes_no_neighbour_along() {
    let directory = directory("quarantine");
    let (told, _nobody) = mpsc::unbounded_channel();
    // One worker, so that all are its neighbours each time.
    let mut arena = Arena::build(&directory, 1, told).await;
    let stop = CancellationToken::new();
    let (pool, sink) = (arena.pool().clone(), arena.sink());
    let requests: Vec<Request> = (0..=NEIGHBOURS)
        .map(|number| {
            request(if number == 3 {
                Plan::Die(3)
            } else {
                Plan::Succeed
            })
        })
        .collect();
    let asked = ask(&pool, &admitter(&arena, &stop), &sink, &requests, 1).await;
    let began = Instant::now();
    while live(&pool).await != Some(0) {
        arena.tend();
        if began.elapsed() > DEADLINE {
            keep(&pool, &directory, &arena).await;
            panic!(
                "jobs are left after {DEADLINE:?}; see {}",
                directory.display()
            );
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    arena.close().await;
    let ends: Vec<(String, i32, String)> = sqlx::query_as(
        "SELECT outcome::text, crashes, coalesce(errors -> -1 ->> 'error', '') FROM job_history ORDER BY outcome DESC",
    )
    .fetch_all(&pool)
    .await
    .unwrap();
    let (dead, well): (Vec<_>, Vec<_>) = ends.iter().partition(|(outcome, ..)| outcome == "dead");
    assert_eq!(
        well.len(),
        NEIGHBOURS,
        "see {}: {ends:#?}",
        directory.display()
    );
    assert!(
        well.iter()
            .all(|(outcome, crashes, _)| outcome == "succeeded" && *crashes <= 2)
    );
    assert_eq!((dead.len(), dead[0].1), (1, 3));
    assert!(dead[0].2.starts_with("poison job"), "{dead:?}");
    let wrong = violations(&pool, &asked, &arena.account, &directory.join("sink.jsonl")).await;
    assert!(wrong.is_empty(), "see {}: {wrong:#?}", directory.display());
    stop.cancel();
    std::fs::remove_dir_all(&directory).unwrap();
}

/// A job that takes a moment.
pub(crate) fn request(plan: Plan) -> Request {
    Request {
        at: Duration::ZERO,
        place: "left",
        tenant: "tenant".to_owned(),
        keys: Vec::new(),
        dedupe_key: None,
        delay: Duration::ZERO,
        // The poison works after the first step.
        steps: 2,
        step_ms: 300,
        plan,
        kind: "effect",
        args_version: 1,
        poke: true,
    }
}
