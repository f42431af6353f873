//! The binary as its users meet it: arguments, exit codes, and the servers `up` runs.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on has failed, and says where"
)]

mod client;
mod operate;
mod process;
mod schema;
mod server;
mod settings;
mod top;
mod up;
