//! Black-box tests, a file per subject. The kit is in `src`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

/// Makes two tests of each function: with containers of the machine's engine, and with instances of a control plane that
/// takes its time.
macro_rules! on_both_backends {
    ($($test:ident,)*) => {
        mod docker {
            $(
                #[tokio::test]
                async fn $test() {
                    longshore_tests::needs_docker!();
                    Box::pin(super::$test(longshore_tests::TestApp::build())).await;
                }
            )*
        }
        mod remote {
            $(
                #[tokio::test]
                async fn $test() {
                    longshore_tests::needs_docker!();
                    Box::pin(super::$test(crate::remote::hosted(&["--latency-ms", "50"]))).await;
                }
            )*
        }
    };
}

mod bad_input;
mod burst;
mod cli;
mod cli_queues;
mod cli_settings;
mod crash;
mod fencing;
mod hibernate;
mod idempotency;
mod images;
mod imports;
mod jobs;
mod leaks;
mod outage;
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
mod stuck;
mod sweeps;
mod team;
mod trace;
mod up;
