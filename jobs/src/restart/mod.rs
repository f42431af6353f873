//! `restart`: stops what runs for a workspace and brings it up again, in one run (`spec: lifecycle` §4, §13.3).
//!
//! While it waits the running agent is left alone. Requests that come meanwhile are added to the one that waits; one that
//! comes while a restart runs is run once more afterwards, and sees what is newest then. The second half is provision's
//! own.

mod automatic;
mod changed;
mod run;

use std::time::Duration;

use async_trait::async_trait;
use longshore_base::WorkspaceId;
use longshore_fleet::provisioning::mark_failed;
use longshore_fleet::restart_template::TemplateChoice;
use longshore_fleet::restarting::{Asked, check_restart};
use longshore_fleet::workspace::{Workspace, lock_workspace, organisation_root};
use longshore_ledger::{
    Backoff, Enqueued, HookError, Hooks, Jitter, LedgerError, NewJob, Outcome, Policy, Revival,
    TerminalJob, drop_payloads, enqueue_merged,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::PgConnection;

pub use automatic::{AutoRestartError, Automatic, request_automatic};
pub use changed::{ChangeRestartError, request_after_change};
pub use run::RestartExecutor;

use crate::{place, workspace_key};

/// The kind's name.
pub const KIND: &str = "restart";
/// Shapes of [`Args`] this version reads.
pub const ARGS_VERSIONS: &[i16] = &[1];
/// Three attempts of 120 s each, and the waits between them.
const STOP_LIMIT: Duration = Duration::from_secs(420);
const DEADLINE: Duration = Duration::from_secs(24 * 3600);
/// Of a want of Postgres; whatever else fails is final.
const ATTEMPTS: i32 = 3;

/// How restarts are tried and limited.
#[must_use]
pub fn policy(concurrency: usize, provision_limit: Duration) -> Policy {
    Policy {
        max_attempts: ATTEMPTS,
        backoff: Backoff {
            base: Duration::from_secs(1),
            cap: Duration::from_secs(4),
            jitter: Jitter::Full,
        },
        timeout: STOP_LIMIT.saturating_add(provision_limit),
        deadline: DEADLINE,
        concurrency,
    }
}

/// Where a restart comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// Somebody asked for it.
    User,
    /// One of its secrets changed.
    Secret,
    /// Its model changed.
    Model,
    /// Its provider changed.
    Provider,
    /// One of its plugins changed.
    Plugin,
    /// It is to run on another image.
    Image,
    /// Its agent fell silent.
    Liveness,
    /// Its container was found gone.
    Health,
    /// A message could not be delivered, since its container is gone.
    Reactive,
}

impl Source {
    /// Who that is, as far as it decides whether there is a restart.
    #[must_use]
    pub const fn asked(self) -> Asked {
        match self {
            Self::User => Asked::ByUser,
            Self::Secret | Self::Model | Self::Provider | Self::Plugin | Self::Image => {
                Asked::ByChange
            }
            Self::Liveness | Self::Health | Self::Reactive => Asked::ByItself,
        }
    }

    /// Of two that are one restart, the one with the higher weight says what it may do.
    const fn weight(self) -> u8 {
        match self.asked() {
            Asked::ByUser => 2,
            Asked::ByChange => 1,
            Asked::ByItself => 0,
        }
    }
}

/// The arguments: ids and flags.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Args {
    /// The workspace to restart.
    pub workspace_id: WorkspaceId,
    /// Where it comes from.
    pub source: Source,
    /// Which template it applies, if any.
    #[serde(flatten)]
    pub choice: TemplateChoice,
    /// Begin without the sessions of before.
    #[serde(default)]
    pub reset_session: bool,
    /// How long it was to rest first.
    #[serde(default)]
    pub delay_ms: u64,
}

impl Args {
    /// Both requests in one: flags add up, of two templates the newer counts.
    fn and(self, newer: Self) -> Self {
        Self {
            workspace_id: newer.workspace_id,
            source: if newer.source.weight() >= self.source.weight() {
                newer.source
            } else {
                self.source
            },
            choice: TemplateChoice {
                template: newer.choice.template.or(self.choice.template),
                apply_template: self.choice.apply_template || newer.choice.apply_template,
                rebuild_config: self.choice.rebuild_config || newer.choice.rebuild_config,
            },
            reset_session: self.reset_session || newer.reset_session,
            delay_ms: self.delay_ms.min(newer.delay_ms),
        }
    }
}

fn merge(waiting: &Value, newer: &Value) -> Value {
    let read = |args: &Value| Args::deserialize(args).ok();
    match (read(waiting), read(newer)) {
        (Some(waiting), Some(newer)) => {
            serde_json::to_value(waiting.and(newer)).unwrap_or_default()
        }
        // Another version wrote it; ours is what this request asks for.
        _ => newer.clone(),
    }
}

/// A restart that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Where it comes from.
    pub source: Source,
    /// Which template it applies, if any.
    pub choice: TemplateChoice,
    /// Begin without the sessions of before.
    pub reset_session: bool,
    /// Not before this much from now.
    pub delay: Duration,
}

/// Asks for a restart, in the transaction that has locked the row and found that it may be restarted. One that waits takes
/// the request over.
///
/// # Errors
/// [`LedgerError`]; nothing may be committed then.
pub async fn request(
    tx: &mut PgConnection,
    workspace: &Workspace,
    request: Request,
    created_by: &str,
) -> Result<Enqueued, LedgerError> {
    let id = workspace.id;
    let args = Args {
        workspace_id: id,
        source: request.source,
        choice: request.choice,
        reset_session: request.reset_session,
        delay_ms: u64::try_from(request.delay.as_millis()).unwrap_or(u64::MAX),
    };
    let tenant = organisation_root(tx, id).await.unwrap_or(id);
    let queue = place::choose(tx, KIND, workspace.engine_id.as_deref()).await?;
    let job = NewJob {
        kind: KIND,
        queue,
        tenant: tenant.to_string(),
        workspace_id: Some(id),
        keys: vec![workspace_key(id)],
        dedupe_key: Some(id.to_string()),
        args: serde_json::to_value(&args).unwrap_or_default(),
        args_version: 1,
        priority: 0,
        delay: request.delay,
        deadline: DEADLINE,
        max_attempts: ATTEMPTS,
        created_by: created_by.to_owned(),
    };
    enqueue_merged(tx, job, merge).await
}

/// What a run has begun, kept over its death.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Begun {
    /// The generation it took.
    generation: i64,
}

fn begun(checkpoint: Option<&Value>) -> Option<Begun> {
    Begun::deserialize(checkpoint?).ok()
}

/// What the end of a restart means to its workspace: one that it had begun to bring up is not left waiting.
pub struct RestartHooks;

#[async_trait]
impl Hooks for RestartHooks {
    async fn on_terminal(&self, tx: &mut PgConnection, job: &TerminalJob) -> Result<(), HookError> {
        let reason = match job.outcome {
            // What was imported for it is in its volume now.
            Outcome::Succeeded => {
                let done = job.workspace_id.as_slice();
                return drop_payloads(tx, done)
                    .await
                    .map_err(|source| HookError::new("dropping what was imported", source));
            }
            Outcome::Superseded => return Ok(()),
            Outcome::Dead => job.reason.as_deref().unwrap_or("restart failed"),
            Outcome::Cancelled => job.reason.as_deref().unwrap_or("restart was cancelled"),
        };
        // One that never began has changed nothing.
        let (Some(id), Some(begun)) = (job.workspace_id, begun(job.checkpoint.as_ref())) else {
            return Ok(());
        };
        mark_failed(
            tx,
            id,
            Some(begun.generation),
            reason,
            serde_json::json!({}),
        )
        .await
        .map_err(|source| HookError::new(format!("marking workspace {id} failed"), source))?;
        Ok(())
    }

    async fn on_retry(
        &self,
        tx: &mut PgConnection,
        job: &TerminalJob,
    ) -> Result<Revival, HookError> {
        let (Some(id), Ok(args)) = (job.workspace_id, Args::deserialize(&job.args)) else {
            return Ok(Revival::Refused("it is about no workspace".into()));
        };
        let looking = |source| HookError::new(format!("looking at workspace {id}"), source);
        let Some(workspace) = lock_workspace(tx, id).await.map_err(looking)? else {
            return Ok(Revival::Refused("the workspace does not exist".into()));
        };
        let refusal = check_restart(tx, &workspace, args.source.asked())
            .await
            .map_err(looking)?;
        Ok(match refusal {
            None => Revival::Allowed,
            Some(refusal) => Revival::Refused(refusal.to_string()),
        })
    }
}

#[cfg(test)]
mod tests {
    use longshore_base::ids::random_uuid;
    use serde_json::json;

    use super::*;

    fn args(source: Source) -> Args {
        Args {
            workspace_id: WorkspaceId(random_uuid()),
            source,
            choice: TemplateChoice::default(),
            reset_session: false,
            delay_ms: 0,
        }
    }

    #[test]
    fn of_two_requests_flags_add_up_and_the_newer_template_counts() {
        let mut older = args(Source::Secret);
        older.choice.template = Some("one".into());
        older.choice.apply_template = true;
        older.delay_ms = 10_000;
        let mut newer = Args {
            source: Source::User,
            ..older.clone()
        };
        newer.choice = TemplateChoice {
            template: Some("two".into()),
            rebuild_config: true,
            ..TemplateChoice::default()
        };
        newer.reset_session = true;
        newer.delay_ms = 0;
        let both = older.clone().and(newer.clone());
        assert_eq!(both.choice.template.as_deref(), Some("two"));
        assert!(both.choice.apply_template && both.choice.rebuild_config && both.reset_session);
        assert_eq!((both.source, both.delay_ms), (Source::User, 0));

        newer.choice.template = None;
        let both = older.and(newer);
        assert_eq!(both.choice.template.as_deref(), Some("one"));
    }

    #[test]
    fn what_somebody_asked_for_stays_so_whatever_comes_after() {
        for (older, newer, expected) in [
            (Source::User, Source::Health, Source::User),
            (Source::Health, Source::User, Source::User),
            (Source::Secret, Source::Liveness, Source::Secret),
            (Source::Secret, Source::Model, Source::Model),
            (Source::Liveness, Source::Reactive, Source::Reactive),
        ] {
            let both = args(older).and(args(newer));
            assert_eq!(both.source, expected, "{older:?} {newer:?}");
        }
    }

    #[test]
    fn arguments_read_back_and_hold_flags_only() {
        let mut written = args(Source::User);
        written.choice.apply_template = true;
        let value = serde_json::to_value(&written).unwrap();
        assert_eq!(
            value,
            json!({
                "workspace_id": written.workspace_id, "source": "user", "apply_template": true,
                "rebuild_config": false, "reset_session": false, "delay_ms": 0,
            })
        );
        assert_eq!(Args::deserialize(&value).unwrap(), written);
        assert_eq!(merge(&json!({ "of": "another version" }), &value), value);
    }

    #[test]
    fn nothing_here_stops_a_workspace_but_the_one_stop() {
        for source in [include_str!("run.rs"), include_str!("automatic.rs")] {
            assert!(!source.contains("StopTarget") && !source.contains("backend.stop("));
        }
    }
}
