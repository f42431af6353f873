//! Black-box tests, a file per subject. The kit is in `src`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod bad_input;
mod burst;
mod cli;
mod cli_queues;
mod crash;
mod fencing;
mod hibernate;
mod idempotency;
mod jobs;
mod pause;
mod postgres_restart;
mod provision;
mod purge;
mod queues;
mod reconcilers;
mod redaction;
mod redis_outage;
mod remote;
mod restart;
mod rotation;
mod secrets;
mod start;
mod status;
mod sweeps;
mod team;
mod trace;
mod up;
