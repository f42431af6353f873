//! Restarts, the workspace's side (`spec: lifecycle` §4.1, §4.6, §4.7): who may have one, how a run begins, how often one
//! comes without being asked for, and what the agent is told of it afterwards.

use std::time::Duration;

use longshore_base::{Timestamp, WorkspaceId};
use longshore_events::{NewEvent, append, names};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::PgConnection;

use crate::provisioning::append_provisioning;
use crate::status::{Change, WorkspaceStatus};
use crate::templates::parse_template;
use crate::workspace::{EXTERNAL, Workspace, find_paused_ancestor, load_workspace, lock_workspace};
use crate::{Fleet, FleetError};

/// How much automatic restarting a workspace gets before it counts as one that only crashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestartBudget {
    /// Automatic restarts within the window; 0 restarts nothing by itself.
    pub most: u32,
    /// What they are counted over.
    pub window: Duration,
}

impl RestartBudget {
    /// Three in ten minutes.
    pub const DEFAULT: Self = Self {
        most: 3,
        window: Duration::from_secs(600),
    };
}

/// Rest before the first, the second and every further automatic restart within the window.
const COOL_DOWNS: [Duration; 3] = [
    Duration::ZERO,
    Duration::from_secs(10),
    Duration::from_secs(60),
];

/// Who wants a restart, as far as it decides whether there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Somebody asked for it.
    ByUser,
    /// Something the agent runs with has changed.
    ByChange,
    /// It was found gone.
    ByItself,
}

/// Why there is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no such row.
    #[error("workspace not found")]
    Unknown,
    /// It is a tombstone.
    #[error("workspace removed")]
    Removed,
    /// It runs where the platform has no say.
    #[error("external workspaces are not restarted by the platform")]
    External,
    /// It was stopped on purpose.
    #[error("workspace is paused — resume it first")]
    Paused,
    /// What it belongs to was stopped on purpose.
    #[error("parent workspace \"{name}\" is paused — resume it first")]
    ParentPaused {
        /// The nearest such ancestor.
        name: String,
    },
    /// It sleeps, and nobody woke it.
    #[error("workspace is {0}")]
    Asleep(WorkspaceStatus),
    /// It was heard again before its turn came.
    #[error("the workspace is {0} again")]
    Back(WorkspaceStatus),
}

/// Whether a workspace may be restarted now.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn check_restart(
    conn: &mut PgConnection,
    workspace: &Workspace,
    asked: Asked,
) -> Result<Option<Refusal>, FleetError> {
    if let Some(refusal) = refusal_of(workspace.status, workspace.is_external(), asked) {
        return Ok(Some(refusal));
    }
    let paused = find_paused_ancestor(conn, workspace.id).await?;
    Ok(paused.map(|name| Refusal::ParentPaused { name }))
}

fn refusal_of(status: WorkspaceStatus, external: bool, asked: Asked) -> Option<Refusal> {
    use WorkspaceStatus::{Hibernated, Hibernating, Paused, Removed};
    match status {
        Removed => Some(Refusal::Removed),
        _ if external => Some(Refusal::External),
        Paused => Some(Refusal::Paused),
        Hibernated | Hibernating if asked != Asked::ByUser => Some(Refusal::Asleep(status)),
        _ => None,
    }
}

/// A run that wants to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beginning {
    /// Who wanted it.
    pub asked: Asked,
    /// An earlier run of the same job has begun and did not get to its end: it was counted and is not refused for what it
    /// has changed itself.
    pub again: bool,
}

/// Begins the second half of a restart, once what ran is stopped: the workspace waits to come up in a new generation, with
/// the event of that. An automatic one is counted. `Err` inside says why it is not wanted any more.
///
/// # Errors
/// [`FleetError`].
pub async fn begin_restart(
    tx: &mut PgConnection,
    fleet: &Fleet,
    id: WorkspaceId,
    beginning: Beginning,
) -> Result<Result<Box<Workspace>, Refusal>, FleetError> {
    let before = match lock_restartable(tx, id, beginning).await? {
        Ok(workspace) => workspace,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let counts = beginning.asked == Asked::ByItself && !beginning.again;
    sqlx::query!(
        r#"UPDATE workspaces
           SET status = $2, url = '', provision_generation = provision_generation + 1, container_id = NULL,
               instance_id = NULL, provision_started_at = now, idle_since = NULL, last_sample_error = '',
               updated_at = now,
               restart_context = coalesce(CASE WHEN $4 THEN restart_context END,
                   jsonb_build_object('restarted_at', now, 'previous_heartbeat_at', last_heartbeat_at)),
               auto_restarted_at = CASE WHEN $5 THEN
                   ARRAY(SELECT at FROM unnest(auto_restarted_at) AS at WHERE at > now - make_interval(secs => $6)) || now
                   ELSE auto_restarted_at END
           FROM longshore_now() AS now WHERE id = $1 AND status = ANY($3)"#,
        id as WorkspaceId,
        WorkspaceStatus::Provisioning as WorkspaceStatus,
        Change::Restarted.sources() as Vec<WorkspaceStatus>,
        beginning.again,
        counts,
        fleet.config.auto_restart.window.as_secs_f64(),
    )
    .execute(&mut *tx)
    .await?;
    append_provisioning(tx, &before).await?;
    Ok(Ok(Box::new(load_workspace(tx, id).await?)))
}

/// Locks a workspace that a run is about to restart, and asks once more whether it is to.
///
/// # Errors
/// [`FleetError`].
pub async fn lock_restartable(
    tx: &mut PgConnection,
    id: WorkspaceId,
    beginning: Beginning,
) -> Result<Result<Box<Workspace>, Refusal>, FleetError> {
    let Some(workspace) = lock_workspace(tx, id).await? else {
        return Ok(Err(Refusal::Unknown));
    };
    if let Some(refusal) = check_restart(tx, &workspace, beginning.asked).await? {
        return Ok(Err(refusal));
    }
    let is_back = workspace.status.is_up();
    if beginning.asked == Asked::ByItself && !beginning.again && is_back {
        return Ok(Err(Refusal::Back(workspace.status)));
    }
    Ok(Ok(Box::new(workspace)))
}

/// Corrects the runtime of a workspace to what its configuration says.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn set_runtime(
    tx: &mut PgConnection,
    id: WorkspaceId,
    runtime: &str,
) -> Result<(), FleetError> {
    sqlx::query!(
        "UPDATE workspaces SET runtime = $2, updated_at = longshore_now() WHERE id = $1",
        id as WorkspaceId,
        runtime,
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// The runtime that a kept `config.yaml` names, if that is one a container can run.
#[must_use]
pub fn runtime_in(fleet: &Fleet, config: &str) -> Option<String> {
    let runtime = parse_template("", config).ok()?.runtime?;
    (runtime != EXTERNAL && fleet.runtimes.knows(&runtime)).then_some(runtime)
}

/// What is done for a workspace that was lost.
#[derive(Clone, Debug, PartialEq)]
pub enum AutoRestart {
    /// It is restarted, after a rest.
    After(Duration, Box<Workspace>),
    /// It was restarted too often: it has failed, with that reason.
    GivenUp,
    /// It is not restarted.
    Refused(Refusal),
    /// Nothing is restarted by itself here.
    Off,
}

/// Decides whether a lost workspace is restarted by itself, in the transaction that found it lost. One whose budget is
/// used up has failed from here on; the caller requests the job of any other.
///
/// # Errors
/// [`FleetError`].
pub async fn plan_auto_restart(
    tx: &mut PgConnection,
    fleet: &Fleet,
    id: WorkspaceId,
) -> Result<AutoRestart, FleetError> {
    let budget = fleet.config.auto_restart;
    if budget.most == 0 {
        return Ok(AutoRestart::Off);
    }
    let Some(workspace) = lock_workspace(tx, id).await? else {
        return Ok(AutoRestart::Refused(Refusal::Unknown));
    };
    if let Some(refusal) = check_restart(tx, &workspace, Asked::ByItself).await? {
        return Ok(AutoRestart::Refused(refusal));
    }
    let spent = count_recent(tx, id, budget.window).await?;
    if spent >= budget.most {
        give_up(tx, id, budget).await?;
        return Ok(AutoRestart::GivenUp);
    }
    Ok(AutoRestart::After(cool_down(spent), Box::new(workspace)))
}

fn cool_down(spent: u32) -> Duration {
    COOL_DOWNS[(spent as usize).min(COOL_DOWNS.len() - 1)]
}

async fn count_recent(
    tx: &mut PgConnection,
    id: WorkspaceId,
    window: Duration,
) -> Result<u32, FleetError> {
    let count = sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM workspaces, unnest(auto_restarted_at) AS at
           WHERE id = $1 AND at > longshore_now() - make_interval(secs => $2)"#,
        id as WorkspaceId,
        window.as_secs_f64(),
    )
    .fetch_one(tx)
    .await?;
    Ok(u32::try_from(count).unwrap_or(u32::MAX))
}

async fn give_up(
    tx: &mut PgConnection,
    id: WorkspaceId,
    budget: RestartBudget,
) -> Result<(), FleetError> {
    let reason = format!(
        "crash loop: lost again after {} automatic restarts within {} s; look at its logs, then restart it",
        budget.most,
        budget.window.as_secs()
    );
    let done = sqlx::query!(
        "UPDATE workspaces SET status = $2, last_sample_error = $3, updated_at = longshore_now()
         WHERE id = $1 AND status = ANY($4)",
        id as WorkspaceId,
        WorkspaceStatus::Failed as WorkspaceStatus,
        reason,
        Change::CrashLooped.sources() as Vec<WorkspaceStatus>,
    )
    .execute(&mut *tx)
    .await?;
    if done.rows_affected() == 0 {
        return Ok(());
    }
    let event = NewEvent {
        event_type: names::WORKSPACE_PROVISION_FAILED,
        workspace_id: Some(id),
        payload: json!({
            "error": reason, "source": "crash_loop", "restarts": budget.most, "window_secs": budget.window.as_secs(),
        }),
    };
    append(tx, event).await?;
    Ok(())
}

/// What an agent is told about its restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartContext {
    /// When it began.
    pub restarted_at: Timestamp,
    /// The last sign of life before it.
    pub previous_heartbeat_at: Option<Timestamp>,
}

/// Takes what is to be told to an agent that has just come online; nothing is told twice.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn take_restart_context(
    tx: &mut PgConnection,
    id: WorkspaceId,
) -> Result<Option<RestartContext>, FleetError> {
    let taken = sqlx::query_scalar!(
        r#"WITH kept AS (SELECT id, restart_context FROM workspaces WHERE id = $1 FOR NO KEY UPDATE)
           UPDATE workspaces w SET restart_context = NULL FROM kept
           WHERE w.id = kept.id AND kept.restart_context IS NOT NULL
           RETURNING kept.restart_context AS "context!""#,
        id as WorkspaceId,
    )
    .fetch_optional(tx)
    .await?;
    Ok(taken.and_then(|context| match serde_json::from_value(context) {
        Ok(context) => Some(context),
        Err(error) => {
            tracing::warn!(workspace.id = %id, %error, "what was kept for a restarted agent cannot be read");
            None
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_decides_what_may_be_restarted() {
        use WorkspaceStatus::{Hibernated, Hibernating, Paused, Removed};
        for status in WorkspaceStatus::ALL {
            for asked in [Asked::ByUser, Asked::ByChange, Asked::ByItself] {
                let refused = refusal_of(status, false, asked);
                let expected = match status {
                    Removed => Some(Refusal::Removed),
                    Paused => Some(Refusal::Paused),
                    Hibernated | Hibernating if asked != Asked::ByUser => {
                        Some(Refusal::Asleep(status))
                    }
                    _ => None,
                };
                assert_eq!(refused, expected, "{status} {asked:?}");
                let refused = refusal_of(status, true, asked);
                let expected = match status {
                    Removed => Refusal::Removed,
                    _ => Refusal::External,
                };
                assert_eq!(refused, Some(expected), "external, {status} {asked:?}");
            }
        }
    }

    #[test]
    fn the_rest_grows_with_each_automatic_restart() {
        let rests = [0, 1, 2, 3, 9].map(|spent| cool_down(spent).as_secs());
        assert_eq!(rests, [0, 10, 60, 60, 60]);
    }
}
