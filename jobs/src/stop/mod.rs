//! `stop`: removes what runs for workspaces that are not to run any more.
//!
//! The end of a stop completes a hibernation. A missing container is success, one of a newer generation is left alone. Tried again while the engine is away.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use longshore_backends::{BackendError, Backends, StopTarget, VolumeScope};
use longshore_base::WorkspaceId;
use longshore_fleet::workspace::{Workspace, mark_hibernated, organisation_root};
use longshore_fleet::{Fleet, FleetError};
use longshore_ledger::{
    Backoff, Enqueued, Executor, Fenced, Jitter, JobError, Kinds, LedgerError, NewJob, Policy,
    RunContext, Verdict, enqueue, resolve_conflicts,
};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;

use crate::{instances, place, workspace_key};

/// The kind's name.
pub const KIND: &str = "stop";
/// Shapes of [`Args`] this version reads.
pub const ARGS_VERSIONS: &[i16] = &[1, 2];
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
    /// Why. The first shape has no word for it.
    #[serde(default)]
    pub source: Source,
}

/// Why a workspace is stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// It was paused, or deleted by an earlier version.
    #[default]
    Pause,
    /// It was claimed for hibernation, which the stop completes.
    Hibernate,
}

impl Source {
    /// The shape of arguments that tells it.
    const fn args_version(self) -> i16 {
        match self {
            Self::Pause => 1,
            Self::Hibernate => 2,
        }
    }
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
                source: Source::Pause,
            };
            stops
                .add(tx, workspace.engine_id.as_deref(), args, created_by)
                .await?;
        }
    }
    Ok(stops)
}

/// The same for a workspace that was claimed for hibernation; also where nothing may run, since the job completes the
/// claim.
///
/// # Errors
/// [`LedgerError`]; nothing may be committed then.
pub async fn request_hibernation(
    tx: &mut PgConnection,
    kinds: &Kinds,
    claimed: &Workspace,
    created_by: &str,
) -> Result<Stops, LedgerError> {
    let mut stops = Stops::default();
    stops.overtake(tx, kinds, claimed.id, created_by).await?;
    stops.add_hibernation(tx, claimed, created_by).await?;
    Ok(stops)
}

/// Asks once more for the stop of a claim. Where its job still waits, that is enough.
///
/// # Errors
/// [`LedgerError`]; nothing may be committed then.
pub async fn repeat_hibernation(
    tx: &mut PgConnection,
    claimed: &Workspace,
    created_by: &str,
) -> Result<Stops, LedgerError> {
    let mut stops = Stops::default();
    stops.add_hibernation(tx, claimed, created_by).await?;
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

    async fn add_hibernation(
        &mut self,
        tx: &mut PgConnection,
        claimed: &Workspace,
        created_by: &str,
    ) -> Result<(), LedgerError> {
        let args = Args {
            workspace_id: claimed.id,
            generation: claimed.provision_generation,
            remove_volumes: false,
            source: Source::Hibernate,
        };
        self.add(tx, claimed.engine_id.as_deref(), args, created_by)
            .await
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
                args_version: args.source.args_version(),
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
    /// Rows and the keys of workspaces.
    pub fleet: Arc<Fleet>,
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
        let instance_id = async {
            instances::flag_open_start(ctx, &*backend, id).await?;
            instances::on_file(ctx, id).await
        };
        let target = match instance_id.await {
            Ok(instance_id) => StopTarget {
                workspace_id: id,
                generation: args.generation,
                instance_id,
            },
            Err(error) => return instances::verdict_of(error),
        };
        let stopped = backend.stop(&target).await;
        let removed = match stopped {
            Ok(()) if args.remove_volumes => {
                backend
                    .remove_volumes(id, VolumeScope::ConfigAndSessions)
                    .await
            }
            other => other,
        };
        match removed {
            Ok(()) => match instances::forget(ctx, &target).await {
                Ok(()) => self.complete(ctx, &args).await,
                Err(error) => instances::verdict_of(error),
            },
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

impl StopExecutor {
    /// Nothing of it runs any more.
    async fn complete(&self, ctx: &RunContext, args: &Args) -> Verdict {
        let id = args.workspace_id;
        if args.source == Source::Hibernate {
            let marked = async {
                let mut tx = ctx.begin().await?;
                let marked = mark_hibernated(tx.connection(), id, args.generation).await;
                let marked = marked.map_err(NotMarked::Fleet)?;
                tx.commit().await?;
                Ok::<_, NotMarked>(marked)
            };
            match marked.await {
                Ok(true) => self.fleet.bus.poke(),
                Ok(false) => {
                    return Verdict::Superseded("the workspace is no longer to hibernate".into());
                }
                Err(NotMarked::Fenced(Fenced::Lost(_))) => return Verdict::GiveBack,
                Err(error) => {
                    return Verdict::Retry(JobError::new("the database was not available", &error));
                }
            }
        }
        // A beat that came after the request has set them again.
        self.fleet.presence.clear(id).await;
        Verdict::Done(None)
    }
}

#[derive(Debug, thiserror::Error)]
enum NotMarked {
    #[error(transparent)]
    Fenced(#[from] Fenced),
    #[error("workspace not marked")]
    Fleet(#[source] FleetError),
}
