//! One beat per worker process, and what it brings back.

use sqlx::PgPool;
use uuid::Uuid;

use crate::LedgerError;

/// What a worker says of itself.
#[derive(Clone, Debug)]
pub(crate) struct Registration {
    pub(crate) name: String,
    pub(crate) host: String,
    pub(crate) version: String,
    pub(crate) kinds: serde_json::Value,
    pub(crate) queues: Vec<String>,
    pub(crate) engine_id: Option<String>,
    pub(crate) slots: i32,
    /// Admitted jobs it wants waiting for it, by queue.
    pub(crate) windows: serde_json::Value,
}

/// Writes the worker's row; again under the same name it renews queues and slots.
pub(crate) async fn register(pool: &PgPool, worker: &Registration) -> Result<(), LedgerError> {
    sqlx::query!(
        r#"INSERT INTO workers (name, host, version, kinds, queues, engine_id, slots, windows) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
           ON CONFLICT (name) DO UPDATE SET queues = excluded.queues, engine_id = excluded.engine_id, slots = excluded.slots,
               windows = excluded.windows"#,
        worker.name,
        worker.host,
        worker.version,
        worker.kinds,
        &worker.queues,
        worker.engine_id,
        worker.slots,
        worker.windows,
    )
    .execute(pool)
    .await
    .map_err(LedgerError::database("registering a worker"))?;
    Ok(())
}

/// What a beat found.
pub(crate) struct Beat {
    /// The row is gone: somebody declared this worker dead.
    pub(crate) declared_dead: bool,
    /// An operator asked this process to take no more.
    pub(crate) draining: bool,
}

/// Beats once.
pub(crate) async fn beat(pool: &PgPool, name: &str) -> Result<Beat, LedgerError> {
    let row = sqlx::query_scalar!(
        "UPDATE workers SET beat = beat + 1, last_beat_at = longshore_now() WHERE name = $1 RETURNING draining",
        name
    )
    .fetch_optional(pool)
    .await
    .map_err(LedgerError::database("beating"))?;
    Ok(Beat {
        declared_dead: row.is_none(),
        draining: row.unwrap_or(false),
    })
}

/// Running jobs of this worker that somebody wants cancelled: their tokens.
pub(crate) async fn cancels(pool: &PgPool, name: &str) -> Result<Vec<Uuid>, LedgerError> {
    sqlx::query_scalar!(
        r#"SELECT token AS "token!" FROM jobs WHERE worker = $1 AND state = 'running' AND cancel_requested IS NOT NULL"#,
        name
    )
    .fetch_all(pool)
    .await
    .map_err(LedgerError::database("reading cancel requests"))
}

/// The newest change of controls.
pub(crate) async fn newest_control(pool: &PgPool) -> Result<i64, LedgerError> {
    sqlx::query_scalar!(r#"SELECT coalesce(max(seq), 0) AS "seq!" FROM queue_controls"#)
        .fetch_one(pool)
        .await
        .map_err(LedgerError::database("looking for changes of controls"))
}

/// Says that this worker has seen a change, and has begun everything it had claimed before. `false`: it has no row.
pub(crate) async fn say_seen(pool: &PgPool, name: &str, seq: i64) -> Result<bool, LedgerError> {
    let row = sqlx::query!(
        "UPDATE workers SET seen_control = $2 WHERE name = $1",
        name,
        seq
    )
    .execute(pool)
    .await
    .map_err(LedgerError::database("saying which control was seen"))?;
    Ok(row.rows_affected() == 1)
}

/// Says that this worker takes no more, so that nothing is admitted for it: it is about to leave.
pub(crate) async fn stop_taking(pool: &PgPool, name: &str) -> Result<(), LedgerError> {
    sqlx::query!("UPDATE workers SET draining = true WHERE name = $1", name)
        .execute(pool)
        .await
        .map_err(LedgerError::database("saying that a worker leaves"))?;
    Ok(())
}

/// Takes the worker's row away: it has left, and nothing of it runs.
pub(crate) async fn leave(pool: &PgPool, name: &str) -> Result<(), LedgerError> {
    sqlx::query!("DELETE FROM workers WHERE name = $1 AND NOT EXISTS (SELECT 1 FROM jobs WHERE worker = $1 AND state = 'running')", name)
        .execute(pool)
        .await
        .map_err(LedgerError::database("leaving"))?;
    Ok(())
}
