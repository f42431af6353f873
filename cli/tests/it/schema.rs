//! The database's schema: brought up to date by `migrate`, and by nobody else.

use std::borrow::Cow;

use longshore_base::schema::MIGRATOR;
use longshore_base::testing::TestDatabase;
use sqlx::migrate::Migrator;

use crate::process::{Up, longshore, run};

/// Runs a server against a database it must refuse; answers the sentence.
fn refusal(command: &str, database: &TestDatabase) -> String {
    let (code, _, err) = run(longshore()
        .args([command, "--metrics-listen", "none"])
        .env("LONGSHORE_LISTEN", "127.0.0.1:0")
        .env("LONGSHORE_LOG", "warn")
        .env("DATABASE_URL", database.url())
        .env("ADMIN_TOKEN", "a-token-of-enough-characters")
        .env("SECRETS_ENCRYPTION_KEY", "01234567890123456789012345678901"));
    assert_eq!(code, Some(1), "{err}");
    assert_eq!(err.lines().count(), 1, "{err}");
    err
}

fn migrate(database: &TestDatabase) -> String {
    let (code, out, err) = run(longshore()
        .arg("migrate")
        .env("DATABASE_URL", database.url()));
    assert_eq!(code, Some(0), "{err}");
    out
}

/// Writes a migration into the history that this binary does not know.
async fn record_migration_of_the_future(database: &TestDatabase) {
    sqlx::query(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES (9999, 'future', true, '\\x00', 0)",
    )
    .execute(database.pool())
    .await
    .unwrap();
}

#[tokio::test]
async fn an_empty_database_is_refused_until_it_is_migrated() {
    let nothing = Migrator::with_migrations(Vec::new());
    let database = TestDatabase::create(&nothing).await;
    for command in ["api", "worker"] {
        let err = refusal(command, &database);
        assert!(err.contains("run `longshore migrate`"), "{err}");
    }
    assert!(migrate(&database).ends_with("migrations applied\n"));
    assert_eq!(migrate(&database), "the schema is up to date\n");
}

#[tokio::test]
async fn a_database_that_is_behind_or_ahead_is_refused() {
    let mut first = Migrator::DEFAULT;
    first.migrations = Cow::Owned(MIGRATOR.migrations[..1].to_vec());
    let behind = TestDatabase::create(&first).await;
    let err = refusal("api", &behind);
    assert!(err.contains("needs version"), "{err}");

    let ahead = TestDatabase::create(&MIGRATOR).await;
    record_migration_of_the_future(&ahead).await;
    for command in ["api", "worker"] {
        let err = refusal(command, &ahead);
        assert!(err.contains("newer than the version"), "{err}");
    }
}

#[tokio::test]
async fn up_uses_the_servers_it_is_given_and_runs_none_of_its_own() {
    let database = TestDatabase::create(&MIGRATOR).await;
    let redis =
        std::env::var("TEST_REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1:63790".to_owned());
    let place = tempfile::tempdir().unwrap();
    let data = place.path().join("data");
    let mut up = Up::start(&data, |command| {
        command
            .env("DATABASE_URL", database.url())
            .env("REDIS_URL", redis)
            .env("LONGSHORE_REDIS_PREFIX", "cli-test:");
    });
    up.until_it_serves();
    assert_eq!(up.servers(), Vec::<i32>::new());
    assert!(!data.join("services").exists());
    assert!(up.stop().0.success());
}
