//! `stop`: removes what runs for workspaces that are not to run any more.
//!
//! A missing container is success, one of a newer generation is left alone. Tried again while the engine is away.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use longshore_backends::{BackendError, Backends, StopTarget, VolumeScope};
use longshore_base::WorkspaceId;
use longshore_fleet::workspace::{Workspace, organisation_root};
use longshore_ledger::{
    Backoff, Enqueued, Executor, Jitter, JobError, Kinds, LedgerError, NewJob, Policy, RunContext,
    Verdict, enqueue, resolve_conflicts,
};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;

use crate::{place, workspace_key};

/// The kind's name.
pub const KIND: &str = "stop";
/// Shapes of [`Args`] this version reads.
pub const ARGS_VERSIONS: &[i16] = &[1];
/// How stops are tried and limited.
pub const POLICY: Policy = Policy {
    max_attempts: 20,
    backoff: Backoff {
        base: Duration::from_secs(2),
        cap: Duration::from_secs(300),
        jitter: Jitter::Full,
    },
    timeout: Duration::from_secs(1800),
    deadline: Duration::from_secs(24 * 3600),
    concurrency: 4,
};

/// What to stop.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Args {
    /// The workspace.
    pub workspace_id: WorkspaceId,
    /// The newest generation that may be removed.
    pub generation: i64,
    /// Whether config and session volumes go too. Deletes asked so before there was `purge`; such jobs may still wait.
    #[serde(default)]
    pub remove_volumes: bool,
}

/// What was set going.
#[must_use = "after the commit the queues must be poked"]
#[derive(Debug, Default)]
pub struct Stops {
    /// The jobs that stop what runs, in the order of the workspaces.
    pub jobs: Vec<(WorkspaceId, Enqueued)>,
    /// Queues to poke after the commit.
    pub pokes: Vec<String>,
}

/// Asks that what runs for paused workspaces is stopped: a job for each that can have something running. What they have
/// written stays. Older jobs that would bring one of them up end or are asked to.
///
/// # Errors
/// [`LedgerError`]; nothing may be committed then.
pub async fn request_pause(
    tx: &mut PgConnection,
    kinds: &Kinds,
    paused: &[Workspace],
    created_by: &str,
) -> Result<Stops, LedgerError> {
    let mut stops = Stops::default();
    for workspace in paused {
        stops.overtake(tx, kinds, workspace.id, created_by).await?;
        if workspace.may_have_run() {
            let args = Args {
                workspace_id: workspace.id,
                generation: workspace.provision_generation,
                remove_volumes: false,
            };
            stops
                .add(tx, workspace.engine_id.as_deref(), args, created_by)
                .await?;
        }
    }
    Ok(stops)
}

impl Stops {
    async fn overtake(
        &mut self,
        tx: &mut PgConnection,
        kinds: &Kinds,
        id: WorkspaceId,
        created_by: &str,
    ) -> Result<(), LedgerError> {
        let keys = [workspace_key(id)];
        let freed = resolve_conflicts(tx, kinds, KIND, &keys, created_by).await?;
        self.pokes.extend(freed);
        Ok(())
    }

    async fn add(
        &mut self,
        tx: &mut PgConnection,
        engine_id: Option<&str>,
        args: Args,
        created_by: &str,
    ) -> Result<(), LedgerError> {
        let id = args.workspace_id;
        let queue = place::choose(tx, KIND, engine_id).await?;
        let tenant = organisation_root(tx, id).await.unwrap_or(id);
        let job = enqueue(
            tx,
            NewJob {
                kind: KIND,
                queue,
                tenant: tenant.to_string(),
                workspace_id: Some(id),
                keys: vec![workspace_key(id)],
                // Whoever asks has raised the generation, save who repeats a request.
                dedupe_key: Some(format!("{id}:{}", args.generation)),
                args: serde_json::to_value(&args).unwrap_or_default(),
                args_version: 1,
                priority: 0,
                delay: Duration::ZERO,
                deadline: POLICY.deadline,
                max_attempts: POLICY.max_attempts,
                created_by: created_by.to_owned(),
            },
        )
        .await?;
        self.pokes.push(job.queue.clone());
        self.jobs.push((id, job));
        Ok(())
    }
}

/// Runs stops.
pub struct StopExecutor {
    /// Where workspaces run.
    pub backends: Arc<Backends>,
}

#[async_trait]
impl Executor for StopExecutor {
    async fn run(&self, ctx: &RunContext) -> Verdict {
        let job = ctx.job();
        let args: Args = match job.read_args() {
            Ok(args) => args,
            Err(unreadable) => return Verdict::Permanent(unreadable),
        };
        let Ok(backend) = self.backends.choose() else {
            return Verdict::Retry(JobError::plain(
                "no backend is available to stop the workspace",
            ));
        };
        let id = args.workspace_id;
        tracing::info!(workspace.id = %id, job.id = %job.id, job.kind = job.kind, attempt = job.attempt, "stop entered");
        let stopped = backend
            .stop(&StopTarget {
                workspace_id: id,
                generation: args.generation,
            })
            .await;
        let removed = match stopped {
            Ok(()) if args.remove_volumes => {
                backend
                    .remove_volumes(id, VolumeScope::ConfigAndSessions)
                    .await
            }
            other => other,
        };
        match removed {
            Ok(()) => Verdict::Done(None),
            Err(BackendError::StaleGeneration { .. }) => {
                Verdict::Superseded("a newer container is there; it is left alone".into())
            }
            Err(error) => {
                tracing::warn!(workspace.id = %id, job.id = %job.id, error = error.chain(), "cannot stop the workspace yet");
                Verdict::Retry(JobError {
                    public: format!("workspace {id} could not be stopped"),
                    detail: error.chain(),
                })
            }
        }
    }
}
