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
mod operator;
mod proxy;
mod quarantine;
mod requests;
mod rolling_deploy;
mod run;
mod schedule;

use std::time::Duration;

const SHORT: Duration = Duration::from_secs(12);

#[tokio::test]
async fn nothing_is_lost_doubled_or_overlaps_whatever_fails() {
    let seed = run::seed();
    Box::pin(run::chaos(seed, run::length().unwrap_or(SHORT))).await;
}
