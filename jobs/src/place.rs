//! Where a job waits: a kind, and the engine it acts on.

use longshore_ledger::{LedgerError, inspect};
use sqlx::PgConnection;

/// The place of jobs for which no engine is known. Every worker reads it, and says why nothing can run if so it is.
pub const NOWHERE: &str = "none";

/// The queue of a kind at a place.
#[must_use]
pub fn queue(kind: &str, place: &str) -> String {
    format!("{kind}@{place}")
}

/// The queue for a workspace: that of the engine it is on, else of an engine some worker serves, else [`NOWHERE`].
pub(crate) async fn choose(
    tx: &mut PgConnection,
    kind: &str,
    engine_id: Option<&str>,
) -> Result<String, LedgerError> {
    if let Some(engine) = engine_id {
        return Ok(queue(kind, engine));
    }
    let nowhere = queue(kind, NOWHERE);
    let served = inspect::served_queues(tx, kind).await?;
    Ok(served
        .into_iter()
        .find(|queue| *queue != nowhere)
        .unwrap_or(nowhere))
}
