//! Waiting for a condition instead of for time.

use std::future::Future;
use std::time::{Duration, Instant};

/// Long enough for everything that should happen soon, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Between two looks.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Looks until `look` answers `Ok`. An `Err` says what was seen instead; the last one is in the panic after `deadline`.
///
/// # Panics
/// When the deadline passes.
pub async fn wait_until<T, F>(what: &str, deadline: Duration, mut look: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, String>>,
{
    let began = Instant::now();
    loop {
        let seen = match look().await {
            Ok(found) => return found,
            Err(seen) => seen,
        };
        assert!(
            began.elapsed() < deadline,
            "waited {deadline:?} for {what}; last seen: {seen}"
        );
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}
