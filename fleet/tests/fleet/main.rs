//! The fleet against a real Postgres, a database per test.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

mod access;
mod activity;
mod create;
mod environment;
mod hibernate;
mod idempotency;
mod inbound_secret;
mod instances;
mod liveness;
mod patch;
mod pause;
mod provisioning;
mod purge;
mod registry;
mod remove;
mod restarting;
mod setup;
mod sql_text;
mod status;
mod sweep_plans;
mod tokens;
mod watched;
