//! What happens when a test is over, well or badly.

use std::time::Duration;

use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;

use crate::app::TestApp;
use crate::stores::Redis;
use crate::wait::LOOK_AGAIN;

/// Jobs under way may take this long to end after a test has seen what it wanted.
const JOBS_END: Duration = Duration::from_secs(10);

impl Drop for TestApp {
    fn drop(&mut self) {
        let failing = std::thread::panicking();
        let left = if failing || self.jobs_may_stay {
            Vec::new()
        } else {
            jobs_left(&self.database.url())
        };
        // Before their containers and their database.
        self.workers.drain(..).for_each(drop);
        self.api.kill();
        if let Some(engine) = &self.engine {
            engine.remove_everything_blocking(failing);
        }
        if let Redis::Shared(url) = &self.redis
            && let Err(error) = remove_keys(url, &self.redis_prefix)
        {
            eprintln!("keys {}* may be left behind: {error}", self.redis_prefix);
        }
        assert!(left.is_empty(), "jobs were left over: {left:#?}");
    }
}
/// Takes this test's keys out of the shared Redis. Blocking, for the destructor.
fn remove_keys(url: &str, prefix: &str) -> redis::RedisResult<()> {
    let mut link = redis::Client::open(url)?.get_connection()?;
    let pattern = format!("{prefix}*");
    let mut cursor = 0_u64;
    loop {
        let (next, keys): (u64, Vec<String>) = redis::cmd("SCAN")
            .arg(cursor)
            .arg("MATCH")
            .arg(&pattern)
            .arg("COUNT")
            .arg(1000)
            .query(&mut link)?;
        if !keys.is_empty() {
            let () = redis::cmd("UNLINK").arg(keys).query(&mut link)?;
        }
        if next == 0 {
            return Ok(());
        }
        cursor = next;
    }
}

/// Jobs that have not ended, and do not end soon.
fn jobs_left(database: &str) -> Vec<String> {
    std::thread::scope(|scope| {
        let looking = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let pool = PgPoolOptions::new()
                    .max_connections(1)
                    .connect_lazy(database)
                    .unwrap();
                let look = async {
                    loop {
                        if list_jobs(&pool).await.is_empty() {
                            return;
                        }
                        tokio::time::sleep(LOOK_AGAIN).await;
                    }
                };
                // Not `wait_until`, whose panic would be one in a destructor.
                match tokio::time::timeout(JOBS_END, look).await {
                    Ok(()) => Vec::new(),
                    Err(_) => list_jobs(&pool).await,
                }
            })
        });
        looking
            .join()
            .unwrap_or_else(|_| vec!["the database could not be asked".to_owned()])
    })
}

async fn list_jobs(pool: &PgPool) -> Vec<String> {
    sqlx::query_scalar("SELECT concat(kind, ' ', state, ' ', progress) FROM jobs")
        .fetch_all(pool)
        .await
        .unwrap()
}
