//! A database of its own for every test, behind the cargo feature `testing`.
//!
//! The schema is migrated once into a template database, named after the migrations' checksums, and copied for each
//! test: a copy takes a few dozen milliseconds, a migration ten times that. The server is that of
//! `TEST_DATABASE_URL`; whoever connects there must be allowed to create databases. Like the fail points, this
//! reads the environment although it stands below the command line, since it exists only in tests.

use std::time::Duration;

use sqlx::migrate::Migrator;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, PgConnection, PgPool};

use crate::{ids, secret};

const VARIABLE: &str = "TEST_DATABASE_URL";
const DEFAULT_SERVER: &str = "postgres://longshore@127.0.0.1:54329/postgres";
/// Any number, the same for every test process: holds the others back while one makes the template.
const TEMPLATE_LOCK: i64 = 0x6c6f_6e67_7368;
const CONNECTIONS: u32 = 10;

/// A fresh database with the whole schema; dropped with this value.
pub struct TestDatabase {
    name: String,
    server: PgConnectOptions,
    pool: PgPool,
}

impl TestDatabase {
    /// Makes one. Panics, saying which server and why, when that is impossible: a test without its database has failed.
    pub async fn create(migrator: &Migrator) -> Self {
        let server = server();
        let name = format!("longshore_test_{}", ids::random_uuid().simple());
        let mut connection = connect(&server).await;
        let template = make_template(&mut connection, &server, migrator).await;
        run(
            &mut connection,
            format!("CREATE DATABASE {name} TEMPLATE {template}"),
        )
        .await;
        close(connection).await;
        let pool = PgPoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(Duration::from_secs(30))
            .connect_lazy_with(server.clone().database(&name));
        Self { name, server, pool }
    }

    /// Its URL, for what connects by itself.
    #[must_use]
    pub fn url(&self) -> String {
        self.server
            .clone()
            .database(&self.name)
            .to_url_lossy()
            .to_string()
    }

    /// A pool to it.
    #[must_use]
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// Moves the database's clock forward, instead of waiting.
    pub async fn advance(&self, by: Duration) {
        let moved = sqlx::query(
            "UPDATE installation SET clock_offset = clock_offset + make_interval(secs => $1)",
        )
        .bind(by.as_secs_f64())
        .execute(&self.pool)
        .await;
        if let Err(error) = moved {
            panic!("cannot move the clock of {}: {error}", self.name);
        }
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        let (server, name) = (self.server.clone(), self.name.clone());
        // The test's own runtime may be on its way out, and cannot be blocked on from here in any case.
        let dropped = std::thread::spawn(move || {
            let runtime = match tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
            {
                Ok(runtime) => runtime,
                Err(error) => panic!("no runtime to drop {name} with: {error}"),
            };
            runtime.block_on(async {
                let mut connection = connect(&server).await;
                // FORCE, since a failed test may leave connections behind.
                run(
                    &mut connection,
                    format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"),
                )
                .await;
                close(connection).await;
            });
        })
        .join();
        if dropped.is_err() {
            eprintln!("the database {} was left behind", self.name);
        }
    }
}

fn server() -> PgConnectOptions {
    let url = std::env::var(VARIABLE).unwrap_or_else(|_| DEFAULT_SERVER.to_owned());
    match url.parse() {
        Ok(options) => options,
        Err(error) => panic!("{VARIABLE} is not a valid postgres:// URL: {error}"),
    }
}

async fn connect(server: &PgConnectOptions) -> PgConnection {
    match server.connect().await {
        Ok(connection) => connection,
        Err(error) => panic!(
            "tests need a Postgres server that lets them create databases; {}:{} does not answer ({error}). \
             Set {VARIABLE}=postgres://user@host:port/postgres",
            server.get_host(),
            server.get_port()
        ),
    }
}

async fn make_template(
    connection: &mut PgConnection,
    server: &PgConnectOptions,
    migrator: &Migrator,
) -> String {
    let sums: Vec<u8> = migrator
        .iter()
        .flat_map(|migration| migration.checksum.iter().copied())
        .collect();
    let template = format!(
        "longshore_template_{}",
        &hex::encode(secret::sha256(&sums))[..16]
    );
    run(
        connection,
        format!("SELECT pg_advisory_lock({TEMPLATE_LOCK})"),
    )
    .await;
    if !exists(connection, &template).await {
        // Under another name until it is whole: a process that dies half-way must not leave a broken template.
        let unfinished = format!("{template}_unfinished");
        run(
            connection,
            format!("DROP DATABASE IF EXISTS {unfinished} WITH (FORCE)"),
        )
        .await;
        run(connection, format!("CREATE DATABASE {unfinished}")).await;
        let mut inside = connect(&server.clone().database(&unfinished)).await;
        if let Err(error) = migrator.run(&mut inside).await {
            panic!("the migrations do not run on an empty database: {error}");
        }
        close(inside).await;
        run(
            connection,
            format!("ALTER DATABASE {unfinished} RENAME TO {template}"),
        )
        .await;
    }
    run(
        connection,
        format!("SELECT pg_advisory_unlock({TEMPLATE_LOCK})"),
    )
    .await;
    template
}

async fn exists(connection: &mut PgConnection, database: &str) -> bool {
    let found = sqlx::query("SELECT 1 FROM pg_database WHERE datname = $1")
        .bind(database)
        .fetch_optional(connection)
        .await;
    match found {
        Ok(row) => row.is_some(),
        Err(error) => panic!("cannot list databases: {error}"),
    }
}

async fn run(connection: &mut PgConnection, sql: String) {
    // Only names made in this file are put into the text.
    if let Err(error) = sqlx::raw_sql(AssertSqlSafe(sql.clone()))
        .execute(connection)
        .await
    {
        panic!("`{sql}` failed: {error}");
    }
}

async fn close(connection: PgConnection) {
    if let Err(error) = connection.close().await {
        eprintln!("a connection did not close cleanly: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[tokio::test]
    async fn each_test_has_its_own_database_until_it_ends() {
        let migrator = sqlx::migrate!("../migrations");
        let first = TestDatabase::create(&migrator).await;
        let second = TestDatabase::create(&migrator).await;
        assert_ne!(first.url(), second.url());
        let before = clock::now(first.pool()).await.unwrap();
        first.advance(Duration::from_secs(3600)).await;
        let ahead = clock::now(first.pool()).await.unwrap() - before;
        assert!(ahead >= chrono::TimeDelta::hours(1), "{ahead}");
        let name = first.name.clone();
        drop(first);
        let mut connection = connect(&server()).await;
        assert!(!exists(&mut connection, &name).await);
        assert!(exists(&mut connection, &second.name).await);
    }
}
