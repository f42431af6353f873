//! A deployment under load: every worker is asked to leave and replaced, one after the other.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::arena::Arena;
use crate::check::{ends, violations};
use crate::requests::ask;
use crate::run::{admitter, directory, keep, live};
use crate::schedule::{Fault, Plan, Request, WORKERS, Who};

/// As many more as `ROLLING_DEPLOY_JOBS` asks for.
const JOBS: usize = 2000;
/// So many of them are asked for during this time: longer than four replacements take.
const FLOW: Duration = Duration::from_secs(15);
const DEADLINE: Duration = Duration::from_secs(90);
/// Longest time in which no job may end while some are asked for.
const PAUSE: Duration = Duration::from_secs(2);

#[tokio::test]
async fn replacing_four_workers_under_load_loses_no_job_and_uses_no_attempt() {
    deploy("rolling-deploy", false).await;
}

#[tokio::test]
async fn a_version_with_another_kind_and_other_arguments_replaces_the_old_one_under_load() {
    deploy("rolling-upgrade", true).await;
}

/// With `upgrade`, what is asked for while the workers are replaced is partly of a kind and of arguments that only their
/// successors know.
async fn deploy(name: &str, upgrade: bool) {
    let jobs = std::env::var("ROLLING_DEPLOY_JOBS").map_or(JOBS, |jobs| jobs.parse().unwrap());
    let directory = directory(name);
    let (told, _nobody) = mpsc::unbounded_channel();
    let mut arena = Arena::build(&directory, WORKERS, told).await;
    let workers: Vec<Who> = (0..WORKERS).map(Who::Worker).collect();
    for who in &workers {
        until_taking(&mut arena, *who, 0).await;
    }
    let stop = CancellationToken::new();
    let (pool, sink, admitter) = (arena.pool().clone(), arena.sink(), admitter(&arena, &stop));
    let requests: Vec<Request> = (0..jobs)
        .map(|number| request(number, upgrade && number > jobs / 20))
        .collect();
    let asking = {
        let pool = pool.clone();
        tokio::spawn(async move { ask(&pool, &admitter, &sink, &requests, 4).await })
    };
    if upgrade {
        arena.upgrade();
    }
    for who in &workers {
        let (before, _) = arena.seen(*who).unwrap();
        arena.apply(Fault::Terminate(*who)).await;
        until_taking(&mut arena, *who, before).await;
    }
    assert!(
        !asking.is_finished(),
        "the workers were replaced while jobs flowed"
    );
    let asked = asking.await.unwrap();
    let began = Instant::now();
    while live(&pool).await != Some(0) {
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
    let counted: Vec<(String, i32, i32, i64)> = sqlx::query_as(
        "SELECT outcome::text, attempt, crashes, count(*) FROM job_history GROUP BY 1, 2, 3",
    )
    .fetch_all(&pool)
    .await
    .unwrap();
    let all = i64::try_from(jobs).unwrap();
    assert_eq!(
        counted,
        [("succeeded".to_owned(), 0, 0, all)],
        "see {}",
        directory.display()
    );
    let later: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM job_history WHERE kind = 'effect-later' OR args_version = 2",
    )
    .fetch_one(&pool)
    .await
    .unwrap();
    assert_eq!(later > 0, upgrade, "{later} jobs were of the later version");
    let log = directory.join("sink.jsonl");
    let wrong = violations(&pool, &asked, &arena.account, &log).await;
    assert!(wrong.is_empty(), "see {}: {wrong:#?}", directory.display());
    let ends = ends(&log);
    let longest = ends.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
    println!("longest time in which no job ended: {longest:?}");
    assert!(longest <= PAUSE, "{longest:?}");
    stop.cancel();
    std::fs::remove_dir_all(&directory).unwrap();
}

/// Waits until another process than this one takes jobs there.
async fn until_taking(arena: &mut Arena, who: Who, before: u32) {
    let began = Instant::now();
    loop {
        arena.tend();
        let seen = arena.seen(who);
        if seen.is_some_and(|(pid, is_taking)| pid != before && is_taking) {
            return;
        }
        assert!(began.elapsed() < DEADLINE, "{who:?}: {seen:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn request(number: usize, is_later: bool) -> Request {
    Request {
        kind: if is_later && number.is_multiple_of(5) {
            "effect-later"
        } else {
            "effect"
        },
        args_version: if is_later && number.is_multiple_of(4) {
            2
        } else {
            1
        },
        at: FLOW.mul_f64(number as f64 / JOBS as f64),
        place: if number.is_multiple_of(2) {
            "left"
        } else {
            "right"
        },
        tenant: format!("tenant-{}", number % 3),
        // A third contend for keys.
        keys: (number.is_multiple_of(3))
            .then(|| format!("key-{}", number % 40))
            .into_iter()
            .collect(),
        dedupe_key: None,
        delay: Duration::ZERO,
        steps: 1,
        step_ms: 20 + (number % 40) as u64,
        plan: Plan::Succeed,
        poke: true,
    }
}
