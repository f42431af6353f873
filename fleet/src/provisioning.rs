//! The workspace's side of being brought up: which attempt is the current one, and how it ended.
//!
//! Every attempt has a generation. [`begin`] takes a new one, and delete (like pause and hibernate) takes one too, so
//! that whatever a slow older attempt still wants to write finds that it is no longer meant. Failure is written in one
//! place ([`mark_failed`]), only while the row still waits to come up: status, reason and event together.

use longshore_base::WorkspaceId;
use longshore_events::names;
use serde_json::{Value, json};
use sqlx::PgConnection;

use crate::images::normalise_digest;
use crate::status::{Change, WorkspaceStatus};
use crate::workspace::event::tell;
use crate::workspace::{EXTERNAL, Workspace, load_workspace, lock_workspace};
use crate::{Fleet, FleetError};

/// Stored and told when there is nothing that could run a workspace.
pub const NO_BACKEND: &str =
    "Docker not available — workspace containers require a Docker daemon or external provisioning.";

/// The answer of [`begin`].
#[derive(Clone, Debug, PartialEq)]
pub enum Begin {
    /// Go on, with this row; its generation is this attempt's.
    Go(Box<Workspace>),
    /// There is nothing to bring up.
    NotWanted(NotWanted),
}

/// Why a workspace is not to be brought up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotWanted {
    /// There is no such row.
    #[error("the workspace does not exist")]
    Unknown,
    /// It runs on a machine the platform does not control.
    #[error("the workspace is external")]
    External,
    /// It is in a status from which nobody asked to bring it up.
    #[error("the workspace is {0}")]
    Status(WorkspaceStatus),
}

/// What a backend started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Started {
    /// Where the platform reaches the agent.
    pub url: String,
    /// The container.
    pub container_id: String,
    /// The engine it is on.
    pub engine_id: String,
    /// Digest of its image, with or without `sha256:` or a repository before it.
    pub image_digest: Option<String>,
}

/// Begins an attempt: takes a new generation and starts its clock. Safe to repeat; each call is a new attempt.
///
/// A workspace that is up although no container was ever recorded for its generation is begun anew: whoever started it
/// died before it could write down what, and its agent was faster than the successor. It goes back to waiting, with the
/// event of that.
///
/// # Errors
/// [`FleetError`].
pub async fn begin(tx: &mut PgConnection, id: WorkspaceId) -> Result<Begin, FleetError> {
    let Some(workspace) = lock_workspace(tx, id).await? else {
        return Ok(Begin::NotWanted(NotWanted::Unknown));
    };
    if workspace.is_external() {
        return Ok(Begin::NotWanted(NotWanted::External));
    }
    if workspace.status != WorkspaceStatus::Provisioning && !is_up_unrecorded(&workspace) {
        return Ok(Begin::NotWanted(NotWanted::Status(workspace.status)));
    }
    sqlx::query!(
        "UPDATE workspaces SET status = $2, provision_generation = provision_generation + 1, container_id = NULL,
                               provision_started_at = longshore_now(), idle_since = NULL, updated_at = longshore_now()
         WHERE id = $1",
        id as WorkspaceId,
        WorkspaceStatus::Provisioning as WorkspaceStatus,
    )
    .execute(&mut *tx)
    .await?;
    if workspace.status != WorkspaceStatus::Provisioning {
        append_provisioning(tx, &workspace).await?;
    }
    Ok(Begin::Go(Box::new(load_workspace(tx, id).await?)))
}

/// An attempt has begun, and nobody has written down yet what it started. An agent that is heard now was quicker than
/// the worker that started it.
#[must_use]
pub fn is_start_unrecorded(workspace: &Workspace) -> bool {
    workspace.status == WorkspaceStatus::Provisioning
        && workspace.provision_started_at.is_some()
        && workspace.container_id.is_none()
        && workspace.instance_id.is_none()
}

fn is_up_unrecorded(workspace: &Workspace) -> bool {
    use WorkspaceStatus::{Degraded, Offline, Online};
    matches!(workspace.status, Online | Degraded | Offline)
        && workspace.container_id.is_none()
        && workspace.instance_id.is_none()
        && workspace.provision_generation > 0
}

/// Sets a workspace back so that a dead provision can be tried again: a new generation, no clock until the run begins, an
/// event. The caller requests the job in the same transaction.
///
/// # Errors
/// [`FleetError`].
pub async fn reopen(tx: &mut PgConnection, id: WorkspaceId) -> Result<Begin, FleetError> {
    let Some(workspace) = lock_workspace(tx, id).await? else {
        return Ok(Begin::NotWanted(NotWanted::Unknown));
    };
    if workspace.is_external() {
        return Ok(Begin::NotWanted(NotWanted::External));
    }
    let done = sqlx::query!(
        "UPDATE workspaces SET status = $2, url = '', provision_generation = provision_generation + 1,
                               provision_started_at = NULL, last_sample_error = '', updated_at = longshore_now()
         WHERE id = $1 AND status = ANY($3)",
        id as WorkspaceId,
        WorkspaceStatus::Provisioning as WorkspaceStatus,
        Change::ProvisionRetried.sources() as Vec<WorkspaceStatus>,
    )
    .execute(&mut *tx)
    .await?;
    if done.rows_affected() == 0 {
        return Ok(Begin::NotWanted(NotWanted::Status(workspace.status)));
    }
    append_provisioning(tx, &workspace).await?;
    Ok(Begin::Go(Box::new(load_workspace(tx, id).await?)))
}

/// Records where an attempt is about to make something: before its first container or volume, so that a workspace
/// without an engine is known to have left nothing anywhere. False when the attempt is no longer the current one.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn mark_engine(
    tx: &mut PgConnection,
    id: WorkspaceId,
    generation: i64,
    engine_id: &str,
) -> Result<bool, FleetError> {
    let done = sqlx::query!(
        "UPDATE workspaces SET engine_id = $3, updated_at = longshore_now()
         WHERE id = $1 AND provision_generation = $2 AND status <> $4",
        id as WorkspaceId,
        generation,
        engine_id,
        WorkspaceStatus::Removed as WorkspaceStatus,
    )
    .execute(tx)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Records what was started, whatever the agent has reported meanwhile. False when the attempt is no longer the current
/// one, or the workspace is gone: then what was started is to be taken down.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn mark_started(
    tx: &mut PgConnection,
    id: WorkspaceId,
    generation: i64,
    started: Started,
) -> Result<bool, FleetError> {
    let done = sqlx::query!(
        "UPDATE workspaces SET url = $3, container_id = $4, engine_id = $5, runtime_image_digest = $6,
                               updated_at = longshore_now()
         WHERE id = $1 AND provision_generation = $2 AND status <> $7",
        id as WorkspaceId,
        generation,
        started.url,
        started.container_id,
        started.engine_id,
        started.image_digest.as_deref().and_then(normalise_digest),
        WorkspaceStatus::Removed as WorkspaceStatus,
    )
    .execute(tx)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Records that the workspace could not be brought up: status, reason and event. Does nothing and is false when it does
/// not wait to come up any more, or another attempt took over (`generation`; `None` stands for whichever is current).
/// `reason` and `extras` must be fit for the public; `extras` is an object that joins the event.
///
/// # Errors
/// [`FleetError`].
pub async fn mark_failed(
    tx: &mut PgConnection,
    id: WorkspaceId,
    generation: Option<i64>,
    reason: &str,
    extras: Value,
) -> Result<bool, FleetError> {
    let done = sqlx::query!(
        "UPDATE workspaces SET status = $2, last_sample_error = $3, updated_at = longshore_now()
         WHERE id = $1 AND status = ANY($4) AND provision_generation = coalesce($5, provision_generation)",
        id as WorkspaceId,
        WorkspaceStatus::Failed as WorkspaceStatus,
        reason,
        Change::ProvisionFailed.sources() as Vec<WorkspaceStatus>,
        generation,
    )
    .execute(&mut *tx)
    .await?;
    if done.rows_affected() == 0 {
        return Ok(false);
    }
    append_failed(tx, id, reason, extras).await?;
    Ok(true)
}

/// What is done where nothing can run workspaces: the settings a canvas shows are kept, and the workspace has failed with
/// that reason. False when it does not wait to come up any more.
///
/// # Errors
/// [`FleetError`].
pub async fn persist_no_backend(
    tx: &mut PgConnection,
    workspace: &Workspace,
) -> Result<bool, FleetError> {
    let data = json!({
        "name": workspace.name,
        "runtime": workspace.runtime,
        "tier": workspace.tier,
        "template": workspace.template.as_deref().unwrap_or(""),
    });
    sqlx::query!(
        "INSERT INTO workspace_config (workspace_id, data) VALUES ($1, $2)
         ON CONFLICT (workspace_id) DO UPDATE SET data = excluded.data, updated_at = longshore_now()",
        workspace.id as WorkspaceId,
        data,
    )
    .execute(&mut *tx)
    .await?;
    mark_failed(tx, workspace.id, None, NO_BACKEND, json!({})).await
}

/// The generation and status right now: what an attempt asks before each step. `None` when the row is gone.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn current_generation(
    conn: &mut PgConnection,
    id: WorkspaceId,
) -> Result<Option<(i64, WorkspaceStatus)>, FleetError> {
    let row = sqlx::query!(
        r#"SELECT provision_generation, status AS "status: WorkspaceStatus" FROM workspaces WHERE id = $1"#,
        id as WorkspaceId,
    )
    .fetch_optional(conn)
    .await?;
    Ok(row.map(|row| (row.provision_generation, row.status)))
}

/// A workspace whose bringing-up has begun, and which is not there yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Awaited {
    /// The workspace.
    pub id: WorkspaceId,
    /// The attempt.
    pub generation: i64,
    /// Its runtime.
    pub runtime: String,
    /// How long it may take.
    pub timeout_secs: i64,
    /// It has taken longer.
    pub is_overdue: bool,
}

/// Every workspace whose bringing-up has begun, with its deadline ([`Fleet::provision_timeout`]), counted from the start of
/// its run; one whose job still waits has no clock yet and is not among them.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn list_awaited(
    conn: &mut PgConnection,
    fleet: &Fleet,
) -> Result<Vec<Awaited>, FleetError> {
    let rows = sqlx::query!(
        r#"SELECT id AS "id: WorkspaceId", runtime, provision_generation,
                  extract(epoch FROM (SELECT longshore_now()) - provision_started_at)::double precision AS "age_secs!"
           FROM workspaces WHERE status = $1 AND provision_started_at IS NOT NULL ORDER BY id"#,
        WorkspaceStatus::Provisioning as WorkspaceStatus,
    )
    .fetch_all(conn)
    .await?;
    let awaited = rows.into_iter().map(|row| {
        let timeout = fleet.provision_timeout(&row.runtime);
        Awaited {
            id: row.id,
            generation: row.provision_generation,
            runtime: row.runtime,
            timeout_secs: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            is_overdue: row.age_secs > timeout.as_secs_f64(),
        }
    });
    Ok(awaited.collect())
}

/// Fails a workspace that has taken too long. False, and nothing happens, when it has come up or began anew since.
///
/// # Errors
/// [`FleetError`].
pub async fn fail_overdue(tx: &mut PgConnection, overdue: &Awaited) -> Result<bool, FleetError> {
    let reason = format!(
        "provisioning timed out: nothing was heard of the agent within {} s of its start; \
         look at its logs and at whether it reaches PLATFORM_URL",
        overdue.timeout_secs
    );
    let extras = json!({
        "timeout_secs": overdue.timeout_secs,
        "runtime": overdue.runtime,
        "source": "provision_timeout_sweep",
    });
    mark_failed(tx, overdue.id, Some(overdue.generation), &reason, extras).await
}

/// Workspaces that have waited to come up for so many minutes without any run having begun, with their generations. Mostly
/// their jobs wait.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn list_unstarted(
    conn: &mut PgConnection,
    after_minutes: i32,
) -> Result<Vec<(WorkspaceId, i64)>, FleetError> {
    let rows = sqlx::query!(
        r#"SELECT id AS "id: WorkspaceId", provision_generation FROM workspaces
           WHERE status = $1 AND provision_started_at IS NULL AND runtime <> $3
             AND updated_at < (SELECT longshore_now()) - make_interval(mins => $2)
           ORDER BY id"#,
        WorkspaceStatus::Provisioning as WorkspaceStatus,
        after_minutes,
        EXTERNAL,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| (row.id, row.provision_generation))
        .collect())
}

pub(crate) async fn append_provisioning(
    tx: &mut PgConnection,
    workspace: &Workspace,
) -> Result<(), FleetError> {
    let payload = json!({
        "name": workspace.name, "tier": workspace.tier, "runtime": workspace.runtime,
    });
    tell(tx, workspace.id, names::WORKSPACE_PROVISIONING, payload).await
}

async fn append_failed(
    tx: &mut PgConnection,
    id: WorkspaceId,
    reason: &str,
    extras: Value,
) -> Result<(), FleetError> {
    let mut payload = json!({ "error": reason });
    if let (Value::Object(payload), Value::Object(extras)) = (&mut payload, extras) {
        payload.extend(extras.into_iter().filter(|(key, _)| key != "error"));
    }
    tell(tx, id, names::WORKSPACE_PROVISION_FAILED, payload).await
}
