//! `stop`: removes what runs for workspaces that are not to run any more.
//!
//! The end of a stop completes a hibernation. A missing container is success, one of a newer generation is left alone. Tried again while the engine is away.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use longshore_backends::{Backends, StopTarget, VolumeScope};
use longshore_base::WorkspaceId;
use longshore_fleet::Fleet;
use longshore_fleet::workspace::{Workspace, find_workspace, mark_hibernated, organisation_root};
use longshore_ledger::{
    Backoff, Enqueued, Executor, Jitter, JobError, Kinds, LedgerError, NewJob, Policy, Progress,
    RunContext, Verdict, enqueue, resolve_conflicts,
};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;

use crate::stopping::{Running, STEPS, Stop, StopPolicy, StopSource, Stopping, StoppingError};
use crate::{instances, place, workspace_key};

/// The kind's name.
pub const KIND: &str = "stop";
/// Shapes of [`Args`] this version reads.
pub const ARGS_VERSIONS: &[i16] = &[1, 2, 3];
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
    /// Nobody wants it.
    Sweep,
}

impl Source {
    const fn stop_source(self) -> StopSource {
        match self {
            Self::Pause => StopSource::Pause,
            Self::Hibernate => StopSource::Hibernate,
            Self::Sweep => StopSource::Sweep,
        }
    }

    /// The shape of arguments that tells it.
    const fn args_version(self) -> i16 {
        match self {
            Self::Pause => 1,
            Self::Hibernate => 2,
            Self::Sweep => 3,
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

/// Asks that a container which nobody wants is removed, with its config and sessions: that of a removed workspace, up to
/// its generation, or of one that nobody knows.
///
/// # Errors
/// [`LedgerError`]; nothing may be committed then.
pub async fn request_orphan(
    tx: &mut PgConnection,
    id: WorkspaceId,
    generation: Option<i64>,
    engine_id: &str,
) -> Result<Enqueued, LedgerError> {
    let tenant = organisation_root(tx, id).await.unwrap_or(id);
    let any = StopTarget::any_generation(id).generation;
    let args = Args {
        workspace_id: id,
        generation: generation.unwrap_or(any),
        remove_volumes: true,
        source: Source::Sweep,
    };
    enqueue(
        tx,
        NewJob {
            kind: KIND,
            queue: place::queue(KIND, engine_id),
            tenant: tenant.to_string(),
            workspace_id: Some(id),
            keys: vec![workspace_key(id)],
            dedupe_key: Some(format!("{id}:removed")),
            args: serde_json::to_value(&args).unwrap_or_default(),
            args_version: args.source.args_version(),
            priority: 0,
            delay: Duration::ZERO,
            deadline: POLICY.deadline,
            max_attempts: POLICY.max_attempts,
            created_by: "reconciler orphans".to_owned(),
        },
    )
    .await
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
        let source = args.source.stop_source();
        let stop = Stop {
            ctx,
            backend: &*backend,
            source,
            policy: StopPolicy::of(&*backend, source),
            progress,
        };
        let stopped = async {
            let running = find_running(ctx, &args).await?;
            stop.run(&running).await
        };
        match stopped.await {
            Ok(Stopping::Stopped) => {}
            Ok(Stopping::Newer) => {
                return Verdict::Superseded("a newer container is there; it is left alone".into());
            }
            Ok(Stopping::Cancelled) => return ctx.stopped_verdict(),
            Ok(Stopping::Left(why)) => {
                return Verdict::Retry(JobError::plain(format!(
                    "workspace {id} could not be stopped: {why}"
                )));
            }
            Err(error) => return instances::verdict_of(error),
        }
        if args.remove_volumes {
            let scope = VolumeScope::ConfigAndSessions;
            if let Err(error) = backend.remove_volumes(id, scope).await {
                tracing::warn!(workspace.id = %id, job.id = %job.id, error = error.chain(), "its volumes cannot be removed yet");
                return Verdict::Retry(JobError {
                    public: format!("the volumes of workspace {id} could not be removed"),
                    detail: error.chain(),
                });
            }
        }
        self.complete(ctx, &args).await
    }
}

/// What may run of it, by its row; a row that is gone knows nothing more than the job.
async fn find_running(ctx: &RunContext, args: &Args) -> Result<Running, StoppingError> {
    let mut tx = ctx.begin().await?;
    let row = find_workspace(tx.connection(), args.workspace_id).await?;
    Ok(Running {
        workspace_id: args.workspace_id,
        generation: args.generation,
        container_id: row.as_ref().and_then(|row| row.container_id.clone()),
        instance_id: row.as_ref().and_then(|row| row.instance_id.clone()),
        engine_id: row.and_then(|row| row.engine_id),
    })
}

fn progress(step: &'static str) -> Progress {
    let done = STEPS.iter().position(|name| *name == step).unwrap_or(0);
    Progress {
        step: step.to_owned(),
        steps_done: u32::try_from(done).unwrap_or(0),
        steps_total: u32::try_from(STEPS.len()).ok(),
        message: None,
        percent: None,
    }
}

impl StopExecutor {
    /// Nothing of it runs any more.
    async fn complete(&self, ctx: &RunContext, args: &Args) -> Verdict {
        let id = args.workspace_id;
        if args.source == Source::Hibernate {
            let marked = async {
                let mut tx = ctx.begin().await?;
                let marked = mark_hibernated(tx.connection(), id, args.generation).await?;
                tx.commit().await?;
                Ok::<_, StoppingError>(marked)
            };
            match marked.await {
                Ok(true) => self.fleet.bus.poke(),
                Ok(false) => {
                    return Verdict::Superseded("the workspace is no longer to hibernate".into());
                }
                Err(error) => return instances::verdict_of(error),
            }
        }
        // A beat that came after the request has set them again.
        self.fleet.presence.clear(id).await;
        Verdict::Done(None)
    }
}
