//! Starting beside a Postgres that is not there, or not yet.

use std::process::Command;
use std::time::{Duration, Instant};

use longshore_tests::{OwnPostgres, PATIENCE, Process, longshore, wait_until};

/// The promise is about two seconds. A machine that runs other tests beside this one gets more.
const SOON: Duration = Duration::from_secs(5);
const KEY: &str = "0123456789abcdef0123456789abcdef";

fn process(role: &str, database: &str) -> Command {
    let mut command = longshore();
    command
        .arg(role)
        .env("DATABASE_URL", database)
        .env("ADMIN_TOKEN", "the-admin-token-of-this-test-installation")
        .env("SECRETS_ENCRYPTION_KEY", KEY)
        .env("LONGSHORE_METRICS_LISTEN", "none")
        .env("PORT", "0");
    command
}

#[test]
fn where_no_postgres_is_every_process_says_so_soon_and_without_the_password() {
    for role in ["api", "worker", "migrate"] {
        // The port of nothing: it is privileged and no service has it.
        let mut command = process(role, "postgres://me:hunter2@127.0.0.1:1/longshore");
        let began = Instant::now();
        let output = command.output().unwrap();
        let took = began.elapsed();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{role}: {said}");
        assert!(
            said.contains("nothing listens at 127.0.0.1:1"),
            "{role}: {said}"
        );
        assert!(said.contains("DATABASE_URL"), "{role}: {said}");
        assert!(!said.contains("hunter2"), "{role}: {said}");
        assert!(took < SOON, "{role}: {took:?}");
    }
}

#[tokio::test]
async fn a_postgres_that_is_starting_is_waited_for() {
    let postgres = OwnPostgres::starting().await;
    let place = tempfile::tempdir().unwrap();
    let mut command = process("migrate", &postgres.url());
    let mut patient = Process::start("patient", &mut command, place.path());
    wait_until("a connection to be refused", PATIENCE, || async {
        let log = postgres.log();
        if log.contains("FATAL:  the database system is not accepting connections") {
            Ok(())
        } else {
            Err(log)
        }
    })
    .await;
    postgres.let_start();
    let status = patient.ended(PATIENCE).await;
    assert!(status.success(), "{status}");
}

#[tokio::test]
async fn a_postgres_that_goes_on_starting_is_not_waited_for_forever() {
    let postgres = OwnPostgres::starting().await;
    let place = tempfile::tempdir().unwrap();
    let mut command = process("migrate", &postgres.url());
    let mut patient = Process::start("patient", &mut command, place.path());
    let status = patient.ended(PATIENCE).await;
    assert_eq!(status.code(), Some(1));
    let said = patient.log();
    assert!(said.contains("takes no connections after 10 s"), "{said}");
}
