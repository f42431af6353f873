//! What a run stands on: the settings that decide its numbers, read from the servers themselves.

use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use sqlx::PgPool;

use crate::stats::percentile;

/// Prints the Postgres settings a queue number depends on.
pub(crate) async fn print_postgres(pool: &PgPool) -> anyhow::Result<()> {
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
        let value: String = sqlx::query_scalar("SELECT current_setting($1)")
            .bind(name)
            .fetch_one(pool)
            .await?;
        print!(" {name}={value}");
    }
    println!();
    Ok(())
}

/// Redis' memory in use now, in bytes.
pub(crate) async fn redis_memory(
    link: &mut redis::aio::MultiplexedConnection,
) -> anyhow::Result<u64> {
    let info: String = redis::cmd("INFO").arg("memory").query_async(link).await?;
    info.lines()
        .find_map(|line| line.strip_prefix("used_memory:"))
        .and_then(|value| value.trim().parse().ok())
        .context("INFO memory has no used_memory")
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
