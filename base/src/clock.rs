//! Time. Wall time is asked of the database; durations are measured here.

use std::time::{Duration, Instant};

use sqlx::PgExecutor;

use crate::Timestamp;

/// The system's wall time: the database's clock plus the offset that only tests set.
///
/// # Errors
/// Whatever the database says; there is no fallback to the process clock.
pub async fn now(executor: impl PgExecutor<'_>) -> Result<Timestamp, sqlx::Error> {
    sqlx::query_scalar!(r#"SELECT longshore_now() AS "now!""#)
        .fetch_one(executor)
        .await
}

/// A running measurement of elapsed time, unaffected by clock steps.
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch(Instant);

impl Stopwatch {
    /// Starts now.
    #[must_use]
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Time since the start.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }

    /// Time since the start in whole milliseconds, for log fields.
    #[must_use]
    pub fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.0.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}
