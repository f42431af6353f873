//! Workspaces that run on instances of a remote control plane (`spec: lifecycle` §3.4, `spec: jobs` §6).
//!
//! An instance has no name that could be looked up: its id comes with the answer to the call that started it. So the
//! call is written down before it is made ([`open_start`]) and stays open until its answer is ([`mark_instance_started`])
//! or nothing can have come of it ([`close_start`]). Whoever finds an open one knows that there may be an instance that
//! no row names.
//!
//! A stop is written down in the same way ([`open_stop`]), until its answer is ([`forget_instance`], [`close_stop`]): a
//! control plane that does not know an instance is an error, save where the answer to an earlier stop of it was lost.

use std::time::Duration;

use longshore_base::WorkspaceId;
use sqlx::PgConnection;

use crate::FleetError;
use crate::status::WorkspaceStatus;

/// A start that was called and whose answer nobody has written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenStart {
    /// The generation it was called under.
    pub called_as: i64,
    /// How long its answer may still come; zero when that is over.
    pub uncertain_for: Duration,
}

/// Writes down that a start is about to be called, and where. False when the attempt is no longer the current one: then
/// it must not be called. At most one is open: whoever calls has settled what was.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn open_start(
    tx: &mut PgConnection,
    id: WorkspaceId,
    generation: i64,
    place: &str,
    uncertain_for: Duration,
) -> Result<bool, FleetError> {
    let done = sqlx::query!(
        "UPDATE workspaces SET engine_id = $3, start_called_as = $2,
                               start_certain_at = longshore_now() + make_interval(secs => $4), updated_at = longshore_now()
         WHERE id = $1 AND provision_generation = $2 AND status <> $5",
        id as WorkspaceId,
        generation,
        place,
        uncertain_for.as_secs_f64(),
        WorkspaceStatus::Removed as WorkspaceStatus,
    )
    .execute(tx)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// The start of the workspace that is open, if one is.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn find_open_start(
    conn: &mut PgConnection,
    id: WorkspaceId,
) -> Result<Option<OpenStart>, FleetError> {
    let row = sqlx::query!(
        r#"SELECT start_called_as AS "called_as!",
                  extract(epoch FROM start_certain_at - longshore_now())::double precision AS "uncertain_secs!"
           FROM workspaces WHERE id = $1 AND start_called_as IS NOT NULL"#,
        id as WorkspaceId,
    )
    .fetch_optional(conn)
    .await?;
    Ok(row.map(|row| OpenStart {
        called_as: row.called_as,
        uncertain_for: Duration::from_secs_f64(row.uncertain_secs.max(0.0)),
    }))
}

/// A start was answered, and the answer did not tell what it made: that can be asked from now on.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn make_start_certain(
    tx: &mut PgConnection,
    id: WorkspaceId,
    called_as: i64,
) -> Result<(), FleetError> {
    sqlx::query!(
        "UPDATE workspaces SET start_certain_at = longshore_now() WHERE id = $1 AND start_called_as = $2",
        id as WorkspaceId,
        called_as,
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// It is known what became of a start, or nobody will ever know.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn close_start(
    tx: &mut PgConnection,
    id: WorkspaceId,
    called_as: i64,
) -> Result<(), FleetError> {
    sqlx::query!(
        "UPDATE workspaces SET start_called_as = NULL, start_certain_at = NULL
         WHERE id = $1 AND start_called_as = $2",
        id as WorkspaceId,
        called_as,
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Records the instance that was started and closes the start, whatever its agent has reported meanwhile. False when the
/// attempt is no longer the current one, or the workspace is gone: then the instance is to be stopped.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn mark_instance_started(
    tx: &mut PgConnection,
    id: WorkspaceId,
    generation: i64,
    instance_id: &str,
    place: &str,
) -> Result<bool, FleetError> {
    let done = sqlx::query!(
        "UPDATE workspaces SET instance_id = $3, engine_id = $4, start_called_as = NULL, start_certain_at = NULL,
                               updated_at = longshore_now()
         WHERE id = $1 AND provision_generation = $2 AND status <> $5",
        id as WorkspaceId,
        generation,
        instance_id,
        place,
        WorkspaceStatus::Removed as WorkspaceStatus,
    )
    .execute(tx)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Records an instance that an open start turned out to have made, and closes that start: it is to be stopped like any
/// other. Also on a workspace that has been removed.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn adopt_instance(
    tx: &mut PgConnection,
    id: WorkspaceId,
    called_as: i64,
    instance_id: &str,
) -> Result<bool, FleetError> {
    let done = sqlx::query!(
        "UPDATE workspaces SET instance_id = $3, start_called_as = NULL, start_certain_at = NULL,
                               updated_at = longshore_now()
         WHERE id = $1 AND start_called_as = $2",
        id as WorkspaceId,
        called_as,
        instance_id,
    )
    .execute(tx)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Takes an instance off the file that was stopped, or flagged because it could not be. One that was started since stays.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn clear_instance(
    tx: &mut PgConnection,
    id: WorkspaceId,
    instance_id: &str,
) -> Result<bool, FleetError> {
    let done = sqlx::query!(
        "UPDATE workspaces SET instance_id = NULL, updated_at = longshore_now() WHERE id = $1 AND instance_id = $2",
        id as WorkspaceId,
        instance_id,
    )
    .execute(tx)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Writes down that the stop of an instance is about to be called. Whether one was called before whose answer nobody has
/// written down: then it may have been stopped.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn open_stop(
    tx: &mut PgConnection,
    id: WorkspaceId,
    instance_id: &str,
) -> Result<bool, FleetError> {
    let done = sqlx::query!(
        "INSERT INTO instance_stops (instance_id, workspace_id) VALUES ($1, $2) ON CONFLICT (instance_id) DO NOTHING",
        instance_id,
        id as WorkspaceId,
    )
    .execute(tx)
    .await?;
    Ok(done.rows_affected() == 0)
}

/// The instances whose stops were called and whose answers nobody has written down: few, and mostly none.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn list_open_stops(conn: &mut PgConnection) -> Result<Vec<String>, FleetError> {
    let listed = sqlx::query_scalar!("SELECT instance_id FROM instance_stops");
    Ok(listed.fetch_all(conn).await?)
}

/// It is known how the stop of an instance ended. Whether it was open.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn close_stop(tx: &mut PgConnection, instance_id: &str) -> Result<bool, FleetError> {
    let done = sqlx::query!(
        "DELETE FROM instance_stops WHERE instance_id = $1",
        instance_id
    )
    .execute(tx)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// An instance is stopped: neither is it on file any more, nor is its stop open. Whether anything was.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn forget_instance(
    tx: &mut PgConnection,
    id: WorkspaceId,
    instance_id: &str,
) -> Result<bool, FleetError> {
    let was_open = close_stop(tx, instance_id).await?;
    Ok(clear_instance(tx, id, instance_id).await? || was_open)
}

/// The instance on file. `None` without one, and without a row.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn find_instance(
    conn: &mut PgConnection,
    id: WorkspaceId,
) -> Result<Option<String>, FleetError> {
    let found = sqlx::query_scalar!(
        "SELECT nullif(instance_id, '') FROM workspaces WHERE id = $1",
        id as WorkspaceId,
    )
    .fetch_optional(conn)
    .await?;
    Ok(found.flatten())
}

/// A start that nobody asks about any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForgottenStart {
    /// Whose.
    pub workspace_id: WorkspaceId,
    /// The generation it was called under.
    pub called_as: i64,
}

impl ForgottenStart {
    /// The key it was called with, which is all that is known of what it made.
    #[must_use]
    pub fn key(&self) -> String {
        start_key(self.workspace_id, self.called_as)
    }
}

/// The idempotency key of a start (`spec: jobs` §6).
#[must_use]
pub fn start_key(id: WorkspaceId, called_as: i64) -> String {
    format!("{id}:{called_as}")
}

/// Closes the starts that have been certain for longer than `after` and still open, of workspaces that do not wait to come
/// up. The caller flags them.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn take_forgotten_starts(
    tx: &mut PgConnection,
    after: Duration,
) -> Result<Vec<ForgottenStart>, FleetError> {
    Ok(sqlx::query_as!(
        ForgottenStart,
        r#"WITH forgotten AS (
               SELECT id, start_called_as FROM workspaces
               WHERE start_called_as IS NOT NULL AND status <> $2
                 AND start_certain_at < (SELECT longshore_now()) - make_interval(secs => $1)
               ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
           )
           UPDATE workspaces w SET start_called_as = NULL, start_certain_at = NULL
           FROM forgotten WHERE w.id = forgotten.id
           RETURNING w.id AS "workspace_id: WorkspaceId", forgotten.start_called_as AS "called_as!""#,
        after.as_secs_f64(),
        WorkspaceStatus::Provisioning as WorkspaceStatus,
    )
    .fetch_all(tx)
    .await?)
}
