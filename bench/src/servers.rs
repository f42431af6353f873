//! The Postgres and Redis a benchmark runs on: their settings, their sizes, their processes.

use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use redis::aio::MultiplexedConnection;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};

use crate::stats::percentile;

/// Servers of the benchmark's own: their settings are changed and everything in them is lost.
pub(crate) struct Servers {
    database_url: url::Url,
    pub(crate) redis_url: String,
    postgres: PgConnection,
    pub(crate) redis: MultiplexedConnection,
    /// Postmaster and Redis.
    pub(crate) pids: [u32; 2],
}

impl Servers {
    pub(crate) async fn connect(database_url: &str, redis_url: &str) -> anyhow::Result<Self> {
        let mut postgres = PgConnection::connect(database_url)
            .await
            .context("cannot reach the benchmark's Postgres")?;
        let mut redis = redis::Client::open(redis_url)?
            .get_multiplexed_async_connection()
            .await
            .context("cannot reach the benchmark's Redis")?;
        let keys: u64 = redis::cmd("DBSIZE").query_async(&mut redis).await?;
        let databases: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM pg_database WHERE NOT datistemplate AND datname <> 'postgres'",
        )
        .fetch_one(&mut postgres)
        .await?;
        anyhow::ensure!(
            keys == 0 && databases == 0,
            "these servers hold {keys} keys and {databases} databases; a benchmark wants servers of its own"
        );
        let postmaster: String = sqlx::query_scalar("SELECT pg_read_file('postmaster.pid')")
            .fetch_one(&mut postgres)
            .await?;
        let postmaster = postmaster.lines().next().and_then(|pid| pid.parse().ok());
        let redis_pid = info(&mut redis, "server", "process_id").await?;
        Ok(Self {
            database_url: database_url.parse()?,
            redis_url: redis_url.to_owned(),
            postgres,
            redis,
            pids: [
                postmaster.context("postmaster.pid holds no id")?,
                u32::try_from(redis_pid)?,
            ],
        })
    }

    /// Makes Postgres keep what it confirmed, or forget it in a crash.
    pub(crate) async fn set_durable(&mut self, durable: bool) -> anyhow::Result<()> {
        let value = if durable { "on" } else { "off" };
        for name in ["fsync", "synchronous_commit", "full_page_writes"] {
            let statement = format!("ALTER SYSTEM SET {name} = {value}");
            self.postgres
                .execute(sqlx::raw_sql(AssertSqlSafe(statement)))
                .await?;
        }
        self.postgres
            .execute(sqlx::raw_sql("SELECT pg_reload_conf()"))
            .await?;
        // A reload is asynchronous, to this session too.
        let deadline = Instant::now() + Duration::from_secs(10);
        while setting(&mut self.postgres, "full_page_writes").await? != value {
            anyhow::ensure!(Instant::now() < deadline, "Postgres did not reload");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Empties Redis and makes it append to its file as told, or not at all.
    pub(crate) async fn reset_redis(&mut self, appendfsync: Option<&str>) -> anyhow::Result<()> {
        let redis = &mut self.redis;
        redis::cmd("FLUSHALL").exec_async(redis).await?;
        let append = if appendfsync.is_some() { "yes" } else { "no" };
        let mut settings = vec![("save", ""), ("appendonly", append)];
        settings.extend(appendfsync.map(|how| ("appendfsync", how)));
        for (name, value) in settings {
            redis::cmd("CONFIG")
                .arg("SET")
                .arg(name)
                .arg(value)
                .exec_async(redis)
                .await?;
        }
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let busy = info(redis, "persistence", "aof_rewrite_in_progress").await?
                + info(redis, "persistence", "aof_rewrite_scheduled").await?;
            if busy == 0 {
                return Ok(());
            }
            anyhow::ensure!(Instant::now() < deadline, "Redis keeps rewriting its file");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A new database; its address.
    pub(crate) async fn create_database(&mut self, name: &str) -> anyhow::Result<url::Url> {
        self.postgres
            .execute(sqlx::raw_sql(AssertSqlSafe(format!(
                "CREATE DATABASE {name}"
            ))))
            .await?;
        let mut url = self.database_url.clone();
        url.set_path(name);
        Ok(url)
    }

    pub(crate) async fn drop_database(&mut self, name: &str) -> anyhow::Result<()> {
        self.postgres
            .execute(sqlx::raw_sql(AssertSqlSafe(format!(
                "DROP DATABASE IF EXISTS {name} WITH (FORCE)"
            ))))
            .await?;
        Ok(())
    }

    /// Prints the settings a queue's numbers depend on.
    pub(crate) async fn print_settings(&mut self) -> anyhow::Result<()> {
        let names = [
            "server_version",
            "fsync",
            "synchronous_commit",
            "full_page_writes",
            "wal_sync_method",
            "shared_buffers",
            "max_connections",
            "max_wal_size",
        ];
        print!("postgres:");
        for name in names {
            print!(" {name}={}", setting(&mut self.postgres, name).await?);
        }
        println!();
        Ok(())
    }
}

async fn setting(postgres: &mut PgConnection, name: &str) -> anyhow::Result<String> {
    Ok(sqlx::query_scalar("SELECT current_setting($1)")
        .bind(name)
        .fetch_one(postgres)
        .await?)
}

/// One number of Redis' INFO.
async fn info(redis: &mut MultiplexedConnection, section: &str, name: &str) -> anyhow::Result<u64> {
    let text: String = redis::cmd("INFO").arg(section).query_async(redis).await?;
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(field, _)| *field == name)
        .and_then(|(_, value)| value.trim().parse().ok())
        .with_context(|| format!("INFO {section} has no {name}"))
}

/// Redis' memory in use now, in bytes.
pub(crate) async fn redis_memory(redis: &mut MultiplexedConnection) -> anyhow::Result<u64> {
    info(redis, "memory", "used_memory").await
}

/// Median time of an 8 KiB write with fdatasync in a directory.
pub(crate) fn fsync_time(directory: &Path) -> anyhow::Result<Duration> {
    let mut file = tempfile::tempfile_in(directory)?;
    let block = [0_u8; 8192];
    let mut samples = Vec::new();
    for _ in 0..200 {
        let start = Instant::now();
        file.write_all(&block)?;
        file.sync_data()?;
        samples.push(start.elapsed());
    }
    Ok(percentile(&mut samples, 0.5))
}
