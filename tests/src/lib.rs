//! The kit of the black-box tests: the real binary, with a database, a Redis prefix, ports and directories of its own
//! for every test, and with the machine's Docker engine.
//!
//! A test starts with [`TestApp::build`], calls the API as some [`Caller`], and looks with [`wait_until`] until what it
//! wants has happened. What a test makes goes with its [`TestApp`], also when it panics: processes by their id,
//! containers and volumes by their installation label, the database by its name. What even that misses, because the
//! test itself was killed, the next test sweeps up ([`leftovers`]).
//!
//! Where things are comes from the environment: `TEST_DATABASE_URL`, `TEST_REDIS_URL`, `LONGSHORE_BIN` (built with the
//! feature `failpoints`), `LONGSHORE_AGENT_BIN`, `DOCKER_HOST`. Without a Docker engine the tests that need one fail,
//! unless `LONGSHORE_TEST_WITHOUT_DOCKER=1` says that this is known.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a kit that cannot go on has failed its test"
)]

mod app;
mod builder;
mod caller;
mod control_plane;
mod engine;
pub mod image;
pub mod leftovers;
mod place;
mod process;
mod programs;
mod registry;
mod servers;
mod stores;
mod streams;
mod stub;
mod switch;
mod teardown;
mod wait;
mod workspaces;

pub use app::TestApp;
pub use builder::{Builder, NewWorker};
pub use caller::{Answer, Caller};
pub use control_plane::ControlPlane;
pub use engine::{Container, Engine, docker_answers};
pub use process::{LogLine, Process};
pub use programs::{agent_binary, longshore};
pub use registry::{Line, NewImage, OwnRegistry};
pub use servers::{OwnPostgres, OwnRedis};
pub use streams::{EventStream, Socket};
pub use stub::RecordingStub;
pub use switch::EngineSwitch;
pub use wait::{PATIENCE, wait_until};

/// Ends the test here, loudly, when no Docker engine answers and that was said to be all right.
#[macro_export]
macro_rules! needs_docker {
    () => {
        if !$crate::docker_answers().await {
            return;
        }
    };
}
