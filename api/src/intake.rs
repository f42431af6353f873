//! Says that this process accepts heartbeats, for as long as it does: the sweep that gives silent agents up believes no silence
//! from a time in which nobody could be heard (`spec: jobs` §12).

use std::sync::Arc;
use std::time::Duration;

use longshore_fleet::liveness::{intake_interval, record_intake};

use crate::state::ApiState;

/// Ends when the server closes.
pub(crate) async fn keep_saying(state: Arc<ApiState>) {
    let every = intake_interval(state.config.liveness_ttl);
    loop {
        // Whoever waits longer for a connection has missed its time anyway.
        let said = tokio::time::timeout(every.max(Duration::from_secs(1)), say(&state)).await;
        if let Ok(Err(error)) = said {
            tracing::warn!(
                error = &*error as &dyn std::error::Error,
                "cannot say that heartbeats are accepted; nobody is given up meanwhile"
            );
        }
        tokio::select! {
            () = state.closing.cancelled() => return,
            () = tokio::time::sleep(every) => {}
        }
    }
}

async fn say(state: &ApiState) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut conn = state.pools.work.acquire().await?;
    record_intake(&mut conn, state.config.liveness_ttl).await?;
    Ok(())
}
