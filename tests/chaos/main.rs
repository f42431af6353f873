//! The chaos suite: a schedule of faults drawn from a seed, jobs whose effects are written down by a process of its own,
//! and a checker that afterwards reads the ledger and those effects. `./dev chaos` runs it for longer.
//!
//! What a failing run has seen stays in a directory it names: the schedule as it was applied, the sink's log, the ledger,
//! and the logs of all processes.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on has failed"
)]

mod arena;
mod check;
mod engine;
mod failover;
mod operator;
mod proxy;
mod quarantine;
mod requests;
mod rolling_deploy;
mod run;
mod schedule;
mod sentinels;
mod store;
mod workspaces;

use std::time::Duration;

use crate::schedule::Scene;

const SHORT: Duration = Duration::from_secs(12);
/// A failover more is waited for after it.
const SHORTER: Duration = Duration::from_secs(4);

#[tokio::test]
async fn nothing_is_lost_doubled_or_overlaps_whatever_fails() {
    let length = run::length().unwrap_or(SHORT);
    Box::pin(run::chaos(run::seed(), length, Scene::Plain)).await;
}

#[tokio::test]
async fn nothing_is_lost_doubled_or_overlaps_while_sentinels_change_the_master() {
    let length = run::length().unwrap_or(SHORTER);
    Box::pin(run::chaos(run::seed(), length, Scene::Sentinels)).await;
}

/// Takes a minute at least, so `./dev chaos` alone runs it.
#[tokio::test]
async fn nothing_is_lost_doubled_or_forgotten_while_the_engine_restarts() {
    let Some(length) = run::length() else {
        eprintln!("SKIPPED: ./dev chaos runs it");
        return;
    };
    Box::pin(run::chaos(run::seed(), length, Scene::Engine)).await;
}
