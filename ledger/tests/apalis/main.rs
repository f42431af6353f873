//! What `ledger::apalis` relies on (spec: jobs §10), a test per fact, against the version of apalis-core that is
//! compiled in. When a new version fails one, `apalis.rs`, `run.rs` and `Engine::stop` want to be read again with it.
//!
//! Workers are polled by hand and mostly without a runtime. Without its feature `sleep` apalis has no timer, so what is
//! pending while nobody is left to wake it is pending for ever.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on has failed"
)]

mod by_hand;
mod feed;
mod jobs;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::Poll;

use apalis_core::error::WorkerError;
use apalis_core::monitor::{Monitor, MonitorError};
use apalis_core::task::Task;
use apalis_core::task::builder::TaskBuilder;
use apalis_core::task::task_id::TaskId;
use apalis_core::worker::builder::WorkerBuilder;
use apalis_core::worker::context::WorkerContext;
use apalis_core::worker::ext::parallelize::ParallelizeExt as _;
use futures_util::FutureExt as _;
use tokio_util::sync::CancellationToken;
use tower::util::MapRequestLayer;

use by_hand::ByHand;
use feed::{Broken, Feed};
use jobs::{Jobs, PANICS};

#[test]
fn the_monitor_polls_all_workers_in_one_task_and_jobs_sit_inside_it() {
    let jobs = Jobs::default();
    let monitor = register(Monitor::new(), &Feed::of(&["a", "b"]), &jobs);
    let monitor = register(monitor, &Feed::of(&["c", "d"]), &jobs);
    let mut monitor = ByHand::new(monitor.run());
    assert!(monitor.poll().is_pending());
    // The hand is the only task there is, and there is no runtime to spawn another on.
    let began = ["a", "b", "c", "d"].map(|name| format!("{name} began"));
    assert_eq!(sorted(jobs.notes()), began);
    jobs.may_end.cancel();
    drop(monitor);
    assert_eq!(
        sorted(jobs.notes().split_off(began.len())),
        ["a dropped", "b dropped", "c dropped", "d dropped"],
        "they could have ended, but nobody else polls them"
    );
}

#[tokio::test]
async fn parallelize_with_spawn_leaves_jobs_behind_when_the_worker_is_dropped() {
    let jobs = Jobs::default();
    let worker = WorkerBuilder::new("one")
        .backend(Feed::of(&["a"]))
        .parallelize(tokio::spawn)
        .build(jobs.job());
    let mut worker = ByHand::new(worker.run());
    assert!(worker.poll().is_pending());
    jobs.until_noted(&["a began"]).await;
    drop(worker);
    jobs.may_end.cancel();
    jobs.until_noted(&["a began", "a ended"]).await;
}

#[test]
fn an_error_of_the_backend_ends_the_worker_and_drops_its_running_jobs() {
    let jobs = Jobs::default();
    let feed = Feed::of(&["a"]);
    let worker = WorkerBuilder::new("one")
        .backend(feed.clone())
        .build(jobs.job());
    let mut worker = ByHand::new(worker.run());
    assert!(worker.poll().is_pending());
    assert_eq!(jobs.notes(), ["a began"]);
    feed.answer(Some(Err(Broken)));
    assert!(matches!(
        worker.poll(),
        Poll::Ready(Err(WorkerError::BackendError(_)))
    ));
    assert_eq!(jobs.notes(), ["a began", "a dropped"]);
    assert_eq!(feed.closes(), 0, "the backend is not told either");
}

#[test]
fn a_backend_that_ends_without_a_shutdown_leaves_the_worker_pending_for_ever() {
    let jobs = Jobs::default();
    let feed = Feed::of(&["a"]);
    let context = WorkerContext::new("one");
    let worker = WorkerBuilder::new(&context)
        .backend(feed.clone())
        .build(jobs.job());
    let mut worker = ByHand::new(worker.run());
    feed.answer(None);
    assert!(worker.poll().is_pending());
    jobs.may_end.cancel();
    assert!(
        worker.poll().is_pending(),
        "although its last job has ended"
    );
    assert_eq!(jobs.notes(), ["a began", "a ended"]);
    assert_eq!(feed.closes(), 1);
    feed.answer(Some(Ok(Task::new("b"))));
    assert!(worker.poll().is_pending());
    assert_eq!(
        feed.unanswered(),
        1,
        "it looks as if it ran, but takes no job"
    );
    context.stop().unwrap();
    assert!(matches!(worker.poll(), Poll::Ready(Ok(()))));
}

#[test]
fn without_a_terminator_a_shutdown_waits_for_jobs_without_limit() {
    let jobs = Jobs::default();
    let feed = Feed::of(&["a"]);
    let shutdown = CancellationToken::new();
    let monitor = register(Monitor::new(), &feed, &jobs);
    let mut monitor =
        ByHand::new(monitor.run_with_signal(shutdown.clone().cancelled_owned().map(Ok)));
    assert!(monitor.poll().is_pending());
    shutdown.cancel();
    assert!(monitor.poll().is_pending(), "nothing will wake it");
    assert_eq!(jobs.notes(), ["a began"]);
    assert_eq!(feed.closes(), 0);
    jobs.may_end.cancel();
    assert!(matches!(monitor.poll(), Poll::Ready(Ok(()))));
    assert_eq!(jobs.notes(), ["a began", "a ended"]);
    assert_eq!(feed.closes(), 1);
}

#[test]
fn a_terminator_drops_jobs_in_the_middle_and_never_closes_the_backend() {
    let jobs = Jobs::default();
    let feed = Feed::of(&["a"]);
    let (shutdown, enough) = (CancellationToken::new(), CancellationToken::new());
    let monitor = Monitor::new().with_terminator(enough.clone().cancelled_owned());
    let monitor = register(monitor, &feed, &jobs);
    let mut monitor =
        ByHand::new(monitor.run_with_signal(shutdown.clone().cancelled_owned().map(Ok)));
    shutdown.cancel();
    assert!(monitor.poll().is_pending());
    assert_eq!(jobs.notes(), ["a began"]);
    enough.cancel();
    assert!(
        matches!(monitor.poll(), Poll::Ready(Ok(()))),
        "and calls that a success"
    );
    assert_eq!(jobs.notes(), ["a began", "a dropped"]);
    assert_eq!(feed.closes(), 0);
}

#[test]
fn a_panic_in_a_job_takes_its_siblings_along() {
    let fate = [
        "a began",
        "the one that panics began",
        "the one that panics dropped",
        "a dropped",
    ];
    let jobs = Jobs::default();
    let monitor = register(Monitor::new(), &Feed::of(&["a", PANICS, "b"]), &jobs);
    let Poll::Ready(Err(MonitorError::ExitError(error))) = ByHand::new(monitor.run()).poll() else {
        panic!("the worker goes on");
    };
    assert!(error.to_string().contains("Worker panicked: as asked"));
    assert_eq!(jobs.notes(), fate);

    // The same without a monitor, only that nobody catches it.
    let jobs = Jobs::default();
    let worker = WorkerBuilder::new("one")
        .backend(Feed::of(&["a", PANICS, "b"]))
        .build(jobs.job());
    let mut worker = ByHand::new(worker.run());
    assert!(catch_unwind(AssertUnwindSafe(|| worker.poll())).is_err());
    drop(worker);
    assert_eq!(jobs.notes(), fate);
}

#[test]
fn restarts_follow_each_other_without_any_pause() {
    const RESTARTS: usize = 1_000;
    let feed = Feed::default();
    for _ in 0..=RESTARTS {
        feed.answer(Some(Err(Broken)));
    }
    let monitor = register(Monitor::new(), &feed, &Jobs::default())
        .should_restart(|worker, _| worker.restarts() < RESTARTS);
    assert!(matches!(
        ByHand::new(monitor.run()).poll(),
        Poll::Ready(Err(MonitorError::ExitError(_)))
    ));
    assert_eq!(feed.unanswered(), 0);
}

/// With that feature the worker would panic at the first, which like ours has no id, and at the third.
#[test]
fn jobs_without_an_id_or_with_the_same_one_run_side_by_side_as_task_context_is_off() {
    let jobs = Jobs::default();
    let feed = Feed::of(&["a"]);
    for name in ["b", "c"] {
        let task = TaskBuilder::new(name).task_id(TaskId::from_int(1)).build();
        feed.answer(Some(Ok(task)));
    }
    let worker = WorkerBuilder::new("one").backend(feed).build(jobs.job());
    assert!(ByHand::new(worker.run()).poll().is_pending());
    assert_eq!(jobs.notes()[..3], ["a began", "b began", "c began"]);
}

/// The page of `WorkerBuilder` says the reverse.
#[test]
fn the_layer_added_first_is_the_outermost() {
    let jobs = Jobs::default();
    let layer = |name| {
        let jobs = jobs.clone();
        MapRequestLayer::new(move |task: Task<&'static str>| {
            jobs.note(name, "layer passed");
            task
        })
    };
    let worker = WorkerBuilder::new("one")
        .backend(Feed::of(&["a"]))
        .layer(layer("first"))
        .layer(layer("second"))
        .build(jobs.job());
    assert!(ByHand::new(worker.run()).poll().is_pending());
    assert_eq!(
        jobs.notes()[..3],
        ["first layer passed", "second layer passed", "a began"]
    );
}

/// They would try jobs again, or give them up, behind the ledger's back.
#[test]
fn the_retry_and_timeout_layers_and_all_features_of_the_core_are_not_compiled_in() {
    // A lock file names an optional dependency only when a feature that somebody switched on wants it.
    let lock = include_str!("../../../Cargo.lock");
    let package = |name: &str| {
        let first_line = format!("name = \"{name}\"\n");
        lock.split("[[package]]\n")
            .find(|package| package.starts_with(&first_line))
    };
    assert_eq!(package("apalis"), None, "the crate of the layers");
    let core = package("apalis-core").unwrap();
    assert!(core.contains(" \"futures-core\",\n"), "{core}");
    for optional in [
        "dashmap",
        "futures-timer",
        "serde",
        "tracing",
        "ulid",
        "uuid",
    ] {
        assert!(!core.contains(&format!(" \"{optional}")), "{core}");
    }
}

/// Lets a worker of that feed run in the monitor.
fn register(monitor: Monitor, feed: &Feed, jobs: &Jobs) -> Monitor {
    let (feed, job) = (feed.clone(), jobs.job());
    monitor.register(move |_| {
        WorkerBuilder::new("one")
            .backend(feed.clone())
            .build(job.clone())
    })
}

fn sorted(mut notes: Vec<String>) -> Vec<String> {
    notes.sort();
    notes
}
