//! Hibernation: stopping a workspace that has nothing to do until somebody wants to talk to it
//! (`spec: lifecycle` §4.9, §6.5).
//!
//! ```text
//! online, degraded ── claim, by one of many ─▶ hibernating ── stopped ─▶ hibernated ── message ─▶ provisioning
//! ```
//! The claim is made with the request for the stop, the rest when that has succeeded.

use longshore_base::{Timestamp, WorkspaceId};
use longshore_events::names;
use serde_json::json;
use sqlx::PgConnection;

use super::event::tell;
use super::row::{EXTERNAL, Workspace, find_workspace, find_workspaces, load_workspace};
use super::tree::find_paused_ancestor;
use crate::FleetError;
use crate::liveness::PAGE;
use crate::status::{Change, WorkspaceStatus};

/// Why a workspace is not hibernated. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum HibernateError {
    /// It is unknown, or not up.
    #[error("workspace not found or not in a hibernatable state (must be online or degraded)")]
    NotUp,
    /// It runs on a machine the platform does not control.
    #[error("external workspaces are not hibernated by the platform")]
    External,
    /// It works on something.
    #[error("workspace has active tasks; use ?force=true to terminate them")]
    ActiveTasks(i32),
    /// Somebody was quicker.
    #[error("workspace is {0}")]
    Changed(WorkspaceStatus),
    /// Nobody's mistake.
    #[error("the workspace could not be hibernated")]
    Fleet(#[from] FleetError),
}

/// Claims a workspace that is up for hibernation, with a new generation; only one of many who try at once gets it. Unless
/// `force` says so, one that has tasks is left alone. The stop is the caller's to request in the same transaction.
///
/// # Errors
/// [`HibernateError`].
pub async fn claim_hibernation(
    tx: &mut PgConnection,
    id: WorkspaceId,
    force: bool,
) -> Result<Workspace, HibernateError> {
    let seen = find_workspace(tx, id).await?;
    let Some(seen) = seen.filter(|workspace| workspace.status.is_up()) else {
        return Err(HibernateError::NotUp);
    };
    if seen.is_external() {
        return Err(HibernateError::External);
    }
    if seen.active_tasks > 0 && !force {
        return Err(HibernateError::ActiveTasks(seen.active_tasks));
    }
    let claimed = sqlx::query!(
        "UPDATE workspaces SET status = $2, provision_generation = provision_generation + 1, provision_started_at = NULL,
                               updated_at = longshore_now()
         WHERE id = $1 AND status = ANY($3) AND (active_tasks = 0 OR $4)",
        id as WorkspaceId,
        WorkspaceStatus::Hibernating as WorkspaceStatus,
        Change::HibernationClaimed.sources() as Vec<WorkspaceStatus>,
        force,
    )
    .execute(&mut *tx)
    .await
    .map_err(FleetError::from)?;
    let now = find_workspace(tx, id).await?.ok_or(HibernateError::NotUp)?;
    match claimed.rows_affected() {
        1 => Ok(now),
        // What stands in the way came after the first look.
        _ if now.status.is_up() => Err(HibernateError::ActiveTasks(now.active_tasks)),
        _ => Err(HibernateError::Changed(now.status)),
    }
}

/// Workspaces that have been idle for longer than they say, or than `default_minutes` where they say nothing; zero stands
/// for never. Only these are read, however many are up.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn list_idle(
    conn: &mut PgConnection,
    default_minutes: Option<i32>,
) -> Result<Vec<Workspace>, FleetError> {
    let mut ids = Vec::new();
    let mut last = (Timestamp::UNIX_EPOCH, WorkspaceId::LEAST);
    loop {
        let page = sqlx::query!(
            r#"SELECT due.id AS "id!: WorkspaceId", due.since AS "since!"
               FROM unnest($1::workspace_status[]) AS one (status)
               CROSS JOIN (VALUES (false, interval '0'), (true, make_interval(mins => nullif($2, 0)))) AS rule (inherits, wait)
               CROSS JOIN LATERAL (
                   SELECT id, idle_until + rule.wait AS since FROM workspaces
                   WHERE status = one.status AND (hibernation_idle_minutes IS NULL) = rule.inherits
                     AND coalesce(hibernation_idle_minutes, 1) > 0
                     AND idle_until < (SELECT longshore_now()) - rule.wait AND (idle_until, id) > ($3::timestamptz - rule.wait, $4)
                     AND active_tasks = 0 AND runtime <> $5
                   ORDER BY idle_until, id LIMIT $6
               ) AS due ORDER BY due.since, due.id LIMIT $6"#,
            Change::HibernationClaimed.sources() as Vec<WorkspaceStatus>,
            default_minutes,
            last.0,
            last.1 as WorkspaceId,
            EXTERNAL,
            i64::from(PAGE),
        )
        .fetch_all(&mut *conn)
        .await?;
        ids.extend(page.iter().map(|due| due.id));
        match page.last() {
            Some(due) if page.len() == usize::from(PAGE) => last = (due.since, due.id),
            _ => break,
        }
    }
    find_workspaces(conn, &ids).await
}

/// Claims one of those for hibernation, if it still is one. As [`claim_hibernation`] otherwise.
///
/// # Errors
/// [`FleetError`].
pub async fn claim_idle(
    tx: &mut PgConnection,
    id: WorkspaceId,
    default_minutes: Option<i32>,
) -> Result<Option<Workspace>, FleetError> {
    let claimed = sqlx::query!(
        "UPDATE workspaces SET status = $2, provision_generation = provision_generation + 1, provision_started_at = NULL,
                               updated_at = longshore_now()
         WHERE id = $1 AND status = ANY($3) AND active_tasks = 0
           AND coalesce(hibernation_idle_minutes, $4, 0) > 0
           AND idle_since < longshore_now() - make_interval(mins => coalesce(hibernation_idle_minutes, $4, 0))",
        id as WorkspaceId,
        WorkspaceStatus::Hibernating as WorkspaceStatus,
        Change::HibernationClaimed.sources() as Vec<WorkspaceStatus>,
        default_minutes,
    )
    .execute(&mut *tx)
    .await?;
    if claimed.rows_affected() == 0 {
        return Ok(None);
    }
    find_workspace(tx, id).await
}

/// Workspaces that were claimed longer ago than a stop takes, and whose stop may have been lost with its job.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn list_stuck_hibernating(
    conn: &mut PgConnection,
    after_minutes: i32,
) -> Result<Vec<Workspace>, FleetError> {
    let ids = sqlx::query_scalar!(
        r#"SELECT id AS "id: WorkspaceId" FROM workspaces
           WHERE status = $1 AND updated_at < (SELECT longshore_now()) - make_interval(mins => $2)"#,
        WorkspaceStatus::Hibernating as WorkspaceStatus,
        after_minutes,
    )
    .fetch_all(&mut *conn)
    .await?;
    find_workspaces(conn, &ids).await
}

/// Notes that nothing of a claimed workspace runs any more, with the event of that. False when it is no longer the claim
/// of this generation.
///
/// # Errors
/// [`FleetError`].
pub async fn mark_hibernated(
    tx: &mut PgConnection,
    id: WorkspaceId,
    generation: i64,
) -> Result<bool, FleetError> {
    let done = sqlx::query!(
        "UPDATE workspaces SET status = $2, url = '', container_id = NULL, idle_since = NULL, updated_at = longshore_now()
         WHERE id = $1 AND status = ANY($3) AND provision_generation = $4",
        id as WorkspaceId,
        WorkspaceStatus::Hibernated as WorkspaceStatus,
        Change::Hibernated.sources() as Vec<WorkspaceStatus>,
        generation,
    )
    .execute(&mut *tx)
    .await?;
    if done.rows_affected() == 0 {
        return Ok(false);
    }
    let workspace = load_workspace(tx, id).await?;
    let payload = json!({ "name": workspace.name, "tier": workspace.tier });
    tell(tx, id, names::WORKSPACE_HIBERNATED, payload).await?;
    Ok(true)
}

/// Lets a hibernated workspace wait to come up, with the event of that; the job is the caller's to request in the same
/// transaction. `None` when it does not hibernate any more, or something above it is paused.
///
/// # Errors
/// [`FleetError`].
pub async fn wake_workspace(
    tx: &mut PgConnection,
    id: WorkspaceId,
) -> Result<Option<Workspace>, FleetError> {
    if find_paused_ancestor(tx, id).await?.is_some() {
        return Ok(None);
    }
    let done = sqlx::query!(
        "UPDATE workspaces SET status = $2, url = '', container_id = NULL, provision_started_at = NULL, idle_since = NULL,
                               last_sample_error = '', updated_at = longshore_now()
         WHERE id = $1 AND status = ANY($3)",
        id as WorkspaceId,
        WorkspaceStatus::Provisioning as WorkspaceStatus,
        Change::Woken.sources() as Vec<WorkspaceStatus>,
    )
    .execute(&mut *tx)
    .await?;
    if done.rows_affected() == 0 {
        return Ok(None);
    }
    let workspace = load_workspace(tx, id).await?;
    let payload = json!({
        "name": workspace.name, "tier": workspace.tier, "runtime": workspace.runtime,
    });
    tell(tx, id, names::WORKSPACE_PROVISIONING, payload).await?;
    Ok(Some(workspace))
}
