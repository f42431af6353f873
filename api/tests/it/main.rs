//! The API over real TCP, with a real Postgres, a database per test, and Redis under a prefix of its own.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod app;

mod access;
mod bad_input;
mod events;
mod health;
mod holds;
mod idempotency;
mod images;
mod imports;
mod jobs;
mod leaks;
mod lifecycle;
mod messages;
mod queues;
mod registry;
mod restart;
mod secrets;
mod teams;
mod templates;
mod tokens;
mod transport;
mod weights;
mod workers;
mod workspaces;
