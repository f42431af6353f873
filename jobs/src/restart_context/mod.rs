//! `restart-context`: tells an agent that has come online again what happened to it (`spec: lifecycle` §4.6).
//!
//! A message over A2A from nobody in particular, recorded nowhere. Requested by the transition to online; what cannot be
//! delivered is dropped, with a line.

mod message;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use longshore_base::{WorkspaceId, clock};
use longshore_fleet::restarting::RestartContext;
use longshore_fleet::secrets::list_secret_names;
use longshore_fleet::workspace::{Workspace, find_workspace, organisation_root};
use longshore_fleet::{Fleet, FleetError, url_safety};
use longshore_ledger::{
    Backoff, Enqueued, Executor, Fenced, Jitter, JobError, LedgerError, NewJob, Policy, RunContext,
    Verdict, enqueue,
};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;

use crate::Agents;

/// The kind's name.
pub const KIND: &str = "restart-context";
/// Shapes of [`Args`] this version reads.
pub const ARGS_VERSIONS: &[i16] = &[1];
/// How these are tried and limited: once, and not for long.
pub const POLICY: Policy = Policy {
    max_attempts: 1,
    backoff: Backoff {
        base: Duration::from_secs(1),
        cap: Duration::from_secs(1),
        jitter: Jitter::Full,
    },
    timeout: Duration::from_secs(60),
    deadline: Duration::from_secs(3600),
    concurrency: 8,
};
/// Pause between two looks whether the agent can be called already, and how long that is looked for.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
const LOOKS: u32 = 60;

/// Whom to tell and of what.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Args {
    /// The workspace that was restarted.
    pub workspace_id: WorkspaceId,
    /// What is known of it.
    #[serde(flatten)]
    pub context: RestartContext,
}

/// Asks for it, in the transaction that brought the workspace online.
///
/// # Errors
/// [`LedgerError`]; nothing may be committed then.
pub async fn request(
    tx: &mut PgConnection,
    id: WorkspaceId,
    context: RestartContext,
) -> Result<Enqueued, LedgerError> {
    let tenant = organisation_root(tx, id).await.unwrap_or(id);
    let args = Args {
        workspace_id: id,
        context,
    };
    let job = NewJob {
        kind: KIND,
        queue: KIND.to_owned(),
        tenant: tenant.to_string(),
        workspace_id: Some(id),
        keys: Vec::new(),
        dedupe_key: None,
        args: serde_json::to_value(&args).unwrap_or_default(),
        args_version: 1,
        priority: 0,
        delay: Duration::ZERO,
        deadline: POLICY.deadline,
        max_attempts: POLICY.max_attempts,
        created_by: "restart".to_owned(),
    };
    enqueue(tx, job).await
}

/// Tells agents.
pub struct RestartContextExecutor {
    /// Rows and secrets' names.
    pub fleet: Arc<Fleet>,
    /// The way to agents.
    pub agents: Agents,
}

/// Why an agent was not told.
#[derive(Debug, thiserror::Error)]
enum Untold {
    #[error("the run may not go on")]
    Fenced(#[from] Fenced),
    #[error("the workspace cannot be read")]
    Fleet(#[from] FleetError),
    #[error("the workspace is gone, or it was too long until it came online")]
    Late,
    #[error("its agent has no URL that may be called")]
    Url(#[source] Option<url_safety::UrlError>),
    #[error("its agent did not take the message")]
    Call(#[source] reqwest::Error),
}

#[async_trait]
impl Executor for RestartContextExecutor {
    async fn run(&self, ctx: &RunContext) -> Verdict {
        let job = ctx.job();
        let args: Args = match job.read_args() {
            Ok(args) => args,
            Err(unreadable) => return Verdict::Permanent(unreadable),
        };
        let told = tokio::select! {
            told = self.tell(ctx, &args) => told,
            () = ctx.stopping() => return ctx.stopped_verdict(),
        };
        match told {
            Ok(()) => Verdict::Done(None),
            Err(Untold::Fenced(Fenced::Lost(_))) => Verdict::GiveBack,
            Err(untold) => {
                let error = JobError::new("the agent was not told of its restart", &untold);
                tracing::warn!(
                    workspace.id = %args.workspace_id, job.id = %job.id, error = error.detail,
                    "an agent is not told of its restart"
                );
                Verdict::Superseded(untold.to_string())
            }
        }
    }
}

impl RestartContextExecutor {
    async fn tell(&self, ctx: &RunContext, args: &Args) -> Result<(), Untold> {
        let workspace = self.until_callable(ctx, args).await?;
        let names = {
            let mut tx = ctx.begin().await?;
            list_secret_names(tx.connection(), workspace.id).await?
        };
        let url = workspace
            .dispatch_url(&self.fleet.config)
            .ok_or(Untold::Url(None))?;
        let policy = self.fleet.config.url_policy();
        let url = url_safety::check(&policy, &url, workspace.url_owner())
            .await
            .map_err(|error| Untold::Url(Some(error)))?;
        let answer = self
            .agents
            .post(&url)
            .json(&message::envelope(&args.context, &names))
            .send()
            .await
            .and_then(reqwest::Response::error_for_status);
        answer.map_err(|error| Untold::Call(error.without_url()))?;
        tracing::info!(workspace.id = %workspace.id, "an agent was told of its restart");
        Ok(())
    }

    /// The agent may be heard before its start is written down, and be restarted again at any time.
    async fn until_callable(&self, ctx: &RunContext, args: &Args) -> Result<Workspace, Untold> {
        for _ in 0..LOOKS {
            let (found, now) = {
                let mut tx = ctx.begin().await?;
                let found = find_workspace(tx.connection(), args.workspace_id).await?;
                let now = clock::now(tx.connection())
                    .await
                    .map_err(FleetError::from)?;
                (found, now)
            };
            let workspace = found.ok_or(Untold::Late)?;
            let limit = self.fleet.provision_timeout(&workspace.runtime);
            let age = (now - args.context.restarted_at)
                .to_std()
                .unwrap_or_default();
            if age > limit {
                return Err(Untold::Late);
            }
            if workspace.status.is_up() && !workspace.url.is_empty() {
                return Ok(workspace);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Err(Untold::Late)
    }
}
