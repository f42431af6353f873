//! One owner at a time for what must not be done twice: a row, taken by compare-and-set.
//!
//! The owner is a worker by name. A dead worker's row in `workers` is gone, and with it its ownerships; a session lock
//! could be stranded on a pooled connection instead.

use longshore_base::Timestamp;
use sqlx::PgPool;

use crate::LedgerError;

/// What is owned.
#[derive(Clone, Copy, Debug)]
pub struct Owned<'a> {
    /// The reconciler.
    pub name: &'a str,
    /// What part of the world it looks at: an engine's id, or `all`.
    pub scope: &'a str,
}

/// Takes, or keeps, the ownership for a worker. False while another live worker has it, or it is disabled.
///
/// # Errors
/// [`LedgerError::Database`]: nothing may be done then.
pub async fn take(
    pool: &PgPool,
    owned: Owned<'_>,
    worker: &str,
    interval_seconds: i32,
) -> Result<bool, LedgerError> {
    let taken = sqlx::query_scalar!(
        r#"INSERT INTO reconcilers (name, scope, owner, interval_seconds) VALUES ($1, $2, $3, $4)
           ON CONFLICT (name, scope) DO UPDATE SET owner = $3, beat = reconcilers.beat + 1, interval_seconds = $4
           WHERE reconcilers.enabled
             AND (reconcilers.owner = $3 OR NOT EXISTS (SELECT 1 FROM workers WHERE workers.name = reconcilers.owner))
           RETURNING beat"#,
        owned.name,
        owned.scope,
        worker,
        interval_seconds,
    )
    .fetch_optional(pool)
    .await
    .map_err(LedgerError::database("taking a reconciler"))?;
    Ok(taken.is_some())
}

/// Keeps what a pass saw and did.
///
/// # Errors
/// [`LedgerError::Database`].
pub async fn record_pass(
    pool: &PgPool,
    owned: Owned<'_>,
    worker: &str,
    report: &serde_json::Value,
) -> Result<(), LedgerError> {
    sqlx::query!(
        "UPDATE reconcilers SET last_pass = $4, last_pass_at = longshore_now() WHERE name = $1 AND scope = $2 AND owner = $3",
        owned.name,
        owned.scope,
        worker,
        report,
    )
    .execute(pool)
    .await
    .map_err(LedgerError::database("recording a pass"))?;
    Ok(())
}

/// When each reconciler last ended a pass.
#[derive(Clone, Debug)]
pub struct LastPass {
    /// The reconciler.
    pub name: String,
    /// Its scope.
    pub scope: String,
    /// The end of its last pass, by anybody.
    pub at: Option<Timestamp>,
    /// Seconds since then.
    pub seconds_ago: Option<f64>,
}

/// The reconcilers this database has ever seen.
///
/// # Errors
/// [`LedgerError::Database`].
pub async fn list_passes(pool: &PgPool) -> Result<Vec<LastPass>, LedgerError> {
    sqlx::query_as!(
        LastPass,
        r#"SELECT name, scope, last_pass_at AS at, extract(epoch FROM longshore_now() - last_pass_at)::float8 AS seconds_ago
           FROM reconcilers ORDER BY name, scope"#
    )
    .fetch_all(pool)
    .await
    .map_err(LedgerError::database("listing reconcilers"))
}
