//! One run of a provision.
//!
//! ```text
//! entered → [tx: generation] → [tx: secrets, env, preflight, files, image, token] → image, pull, create, configure,
//! start (the backend, asking before each step) → [tx: url, container] → started
//! ```
//! Right when killed anywhere: the successor takes a higher generation, which decides whose container stays.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use longshore_backends::{
    Abandoned, Backend, BackendError, Backends, KeptConfig, StartWatch, Started, StartedInstance,
    StopTarget, steps,
};
use longshore_base::clock::Stopwatch;
use longshore_base::failpoint;
use longshore_fleet::config_source::Kept;
use longshore_fleet::instances::open_start;
use longshore_fleet::provisioning::{
    self, Begin, NO_BACKEND, begin, current_generation, mark_engine, mark_failed, mark_started,
    persist_no_backend,
};
use longshore_fleet::restart_template::TemplateChoice;
use longshore_fleet::workspace::Workspace;
use longshore_fleet::{Fleet, FleetError, PrepareError, WorkspaceStatus, images};
use longshore_ledger::{Executor, Fenced, JobError, Progress, RunContext, Verdict};
use tokio::sync::Mutex;

use super::Args;
use super::instance::Instances;
use super::prepare::prepare;
use crate::stopping::StoppingError;
use crate::verdicts;

/// Names of all steps, in their order: what `steps_done` counts.
pub(crate) const STEPS: [&str; 14] = [
    "entered",
    "secrets",
    "env",
    "mutators",
    "preflight",
    "config-source",
    "token",
    "image",
    "pull",
    "create",
    "configure",
    "start",
    "persist",
    "started",
];
/// Tells of a long step (a pull) are written at most this often.
const TELL_EVERY: Duration = Duration::from_millis(500);

/// Runs provisions.
pub struct ProvisionExecutor {
    /// Rows, secrets, templates.
    pub fleet: Arc<Fleet>,
    /// Where workspaces run.
    pub backends: Arc<Backends>,
}

/// How a workspace that has begun is brought up: what the kinds that do so differ in.
pub(crate) struct Plan {
    /// Where its configuration comes from.
    pub(crate) config: ConfigPlan,
    /// Begin without the sessions of before.
    pub(crate) reset_session: bool,
    /// All steps of the kind, for its progress.
    pub(crate) steps: &'static [&'static str],
}

/// Where the configuration of a start comes from.
pub(crate) enum ConfigPlan {
    /// What was asked for when the workspace was created.
    AsCreated,
    /// It was up before: a template if one was chosen, else what is kept.
    Again {
        /// Which template, if any.
        choice: TemplateChoice,
        /// What its volume holds.
        kept: Kept,
    },
}

/// Why a run ends before its end.
pub(crate) enum Stop {
    Fenced(Fenced),
    Verdict(Verdict),
}

impl Stop {
    /// How the job's run ends.
    pub(crate) fn verdict(self) -> Verdict {
        match self {
            Self::Fenced(fenced) => verdicts::of_fence(&fenced),
            Self::Verdict(verdict) => verdict,
        }
    }
}

impl From<Fenced> for Stop {
    fn from(fenced: Fenced) -> Self {
        Self::Fenced(fenced)
    }
}

impl From<StoppingError> for Stop {
    fn from(error: StoppingError) -> Self {
        match error {
            StoppingError::Fenced(fenced) => fenced.into(),
            StoppingError::Record(error) => database(error),
        }
    }
}

#[async_trait]
impl Executor for ProvisionExecutor {
    async fn run(&self, ctx: &RunContext) -> Verdict {
        let job = ctx.job();
        let args: Args = match job.read_args() {
            Ok(args) => args,
            Err(unreadable) => return Verdict::Permanent(unreadable),
        };
        let id = args.workspace_id;
        tracing::info!(
            workspace.id = %id, job.id = %job.id, job.kind = job.kind, attempt = job.attempt, cause = ?args.cause,
            "provision entered"
        );
        let elapsed = Stopwatch::start();
        let brought_up = async {
            let workspace = self.enter(ctx, &args).await?;
            let plan = Plan {
                config: self.config_plan(ctx, &args, &workspace).await?,
                reset_session: args.reset_session,
                steps: &STEPS,
            };
            self.bring_up(ctx, &workspace, &plan).await
        };
        let verdict = match brought_up.await {
            Ok(started) => {
                tracing::info!(
                    workspace.id = %id, job.id = %job.id, container.id = started.container_id(),
                    instance.id = started.instance_id(), took_ms = elapsed.elapsed_ms(),
                    "provision started the workspace"
                );
                Verdict::Done(Some(told(&started)))
            }
            Err(stop) => stop.verdict(),
        };
        match &verdict {
            Verdict::Permanent(error) | Verdict::Retry(error) => tracing::error!(
                workspace.id = %id, job.id = %job.id, reason = error.public, detail = self.fleet.redactor.clean(&error.detail),
                took_ms = elapsed.elapsed_ms(), "provision failed"
            ),
            Verdict::Superseded(reason) => {
                tracing::info!(workspace.id = %id, job.id = %job.id, reason, "provision superseded")
            }
            Verdict::Cancelled => {
                tracing::info!(workspace.id = %id, job.id = %job.id, "provision cancelled")
            }
            _ => {}
        }
        self.fleet.bus.poke();
        verdict
    }
}

impl ProvisionExecutor {
    /// One that was up before goes on with what it had.
    async fn config_plan(
        &self,
        ctx: &RunContext,
        args: &Args,
        workspace: &Workspace,
    ) -> Result<ConfigPlan, Stop> {
        let backend = match (args.cause, self.backends.choose()) {
            (cause, _) if cause.is_first() => return Ok(ConfigPlan::AsCreated),
            (_, Err(_)) => return Ok(ConfigPlan::AsCreated),
            (_, Ok(backend)) => backend,
        };
        Ok(ConfigPlan::Again {
            choice: TemplateChoice::default(),
            kept: self.read_kept(ctx, &*backend, workspace).await?,
        })
    }

    /// What is in the workspace's config volume. A backend that cannot tell keeps nobody from being started.
    pub(crate) async fn read_kept(
        &self,
        ctx: &RunContext,
        backend: &dyn Backend,
        workspace: &Workspace,
    ) -> Result<Kept, Stop> {
        let image = {
            let mut tx = ctx.begin().await?;
            images::choose(
                tx.connection(),
                &self.fleet,
                workspace.id,
                &workspace.runtime,
            )
            .await
        };
        Ok(
            match backend.read_config(workspace.id, &image.reference).await {
                Ok(KeptConfig::Found(text)) => Kept::Found(text),
                Ok(KeptConfig::Missing) => Kept::Missing,
                Ok(KeptConfig::Elsewhere) => Kept::Unknown,
                Err(error) => {
                    tracing::warn!(
                        workspace.id = %workspace.id, error = error.chain(), "cannot look into the workspace's config volume"
                    );
                    Kept::Unknown
                }
            },
        )
    }

    /// Brings up a workspace whose attempt has begun: the one way there is, whoever wanted it.
    pub(crate) async fn bring_up(
        &self,
        ctx: &RunContext,
        workspace: &Workspace,
        plan: &Plan,
    ) -> Result<Started, Stop> {
        failpoint::hit("provision.entered").await;
        let Ok(backend) = self.backends.choose() else {
            return Err(self.no_backend(ctx, workspace).await);
        };
        Instances::of(ctx, &*backend, workspace.id)
            .wait_for_earlier()
            .await?;
        let spec = {
            let mut tx = ctx.begin().await?;
            let delivers = backend.manner().delivers;
            match prepare(
                &mut tx,
                &self.fleet,
                workspace,
                plan,
                delivers,
                ctx.job().token,
            )
            .await
            {
                Ok(spec) => {
                    if let Err(fenced) = tx.commit().await {
                        // The inbound secret just made was remembered, but may not have been stored.
                        self.fleet.inbound_secrets.reset();
                        return Err(fenced.into());
                    }
                    spec
                }
                Err(error) => {
                    drop(tx);
                    return Err(self.refused(ctx, workspace, &error).await);
                }
            }
        };
        failpoint::hit("provision.token_issued").await;
        let instances = Instances::of(ctx, &*backend, workspace.id);
        instances.make_way(&spec).await?;
        let watch = Watch {
            ctx,
            workspace,
            plan,
            backend: &*backend,
            told: Mutex::new(None),
        };
        let started = match backend.start(&spec, &watch).await {
            Ok(started) => started,
            Err(error) => return Err(self.not_started(ctx, workspace, &*backend, error).await),
        };
        failpoint::hit("provision.started").await;
        self.persist(ctx, workspace, plan, &*backend, &started)
            .await?;
        failpoint::hit("provision.persisted").await;
        Ok(started)
    }

    /// Takes this attempt's generation, unless the workspace no longer waits to come up.
    async fn enter(&self, ctx: &RunContext, args: &Args) -> Result<Box<Workspace>, Stop> {
        let mut tx = ctx.begin().await?;
        let begun = begin(tx.connection(), args.workspace_id)
            .await
            .map_err(database)?;
        let workspace = match begun {
            Begin::Go(workspace) => workspace,
            Begin::NotWanted(reason) => {
                return Err(Stop::Verdict(Verdict::Superseded(reason.to_string())));
            }
        };
        tx.record_progress(&progress(&STEPS, "entered", None, None))
            .await?;
        tx.commit().await?;
        Ok(workspace)
    }

    async fn no_backend(&self, ctx: &RunContext, workspace: &Workspace) -> Stop {
        let written = async {
            let mut tx = ctx.begin().await?;
            persist_no_backend(tx.connection(), workspace)
                .await
                .map_err(database)?;
            tx.commit().await.map_err(Stop::from)
        };
        match written.await {
            Ok(()) => Stop::Verdict(Verdict::Permanent(JobError::plain(NO_BACKEND))),
            Err(stop) => stop,
        }
    }

    /// The workspace cannot be started as it is: said on the row with what is missing, in the words of the preflight.
    async fn refused(&self, ctx: &RunContext, workspace: &Workspace, error: &PrepareError) -> Stop {
        let failure = JobError::new(error.public(), error);
        if error.retryable() {
            return Stop::Verdict(Verdict::Retry(failure));
        }
        let written = async {
            let mut tx = ctx.begin().await?;
            mark_failed(
                tx.connection(),
                workspace.id,
                Some(workspace.provision_generation),
                &failure.public,
                error.extras(),
            )
            .await
            .map_err(database)?;
            tx.commit().await.map_err(Stop::from)
        };
        match written.await {
            Ok(()) => Stop::Verdict(Verdict::Permanent(failure)),
            Err(stop) => stop,
        }
    }

    async fn not_started(
        &self,
        ctx: &RunContext,
        workspace: &Workspace,
        backend: &dyn Backend,
        error: BackendError,
    ) -> Stop {
        let instances = Instances::of(ctx, backend, workspace.id);
        let generation = workspace.provision_generation;
        if let Err(stop) = instances.close_failed(generation, &error).await {
            return stop;
        }
        match error {
            BackendError::Abandoned(_) => self.abandoned(ctx, workspace, backend).await,
            BackendError::StaleGeneration { .. } => Stop::Verdict(Verdict::Superseded(
                "a newer attempt holds the container".into(),
            )),
            error => Stop::Verdict(Verdict::Permanent(JobError {
                public: error.public().to_owned(),
                detail: error.chain(),
            })),
        }
    }

    /// The run was told to stop or found that it is no longer meant. What it made goes, unless somebody newer owns it.
    async fn abandoned(
        &self,
        ctx: &RunContext,
        workspace: &Workspace,
        backend: &dyn Backend,
    ) -> Stop {
        let mut tx = match ctx.begin().await {
            Ok(tx) => tx,
            // Fenced: the successor deals with the container, by its generation.
            Err(fenced) => return fenced.into(),
        };
        let current = match current_generation(tx.connection(), workspace.id).await {
            Ok(current) => current,
            Err(error) => return database(error),
        };
        drop(tx);
        let verdict = if is_current(current, workspace) {
            ctx.stopped_verdict()
        } else {
            superseded(current)
        };
        if !matches!(verdict, Verdict::GiveBack) {
            self.take_down(workspace, backend).await;
        }
        Stop::Verdict(verdict)
    }

    async fn persist(
        &self,
        ctx: &RunContext,
        workspace: &Workspace,
        plan: &Plan,
        backend: &dyn Backend,
        started: &Started,
    ) -> Result<(), Stop> {
        let started = match started {
            Started::Container(container) => container,
            Started::Instance(instance) => {
                return self
                    .persist_instance(ctx, workspace, plan, backend, instance)
                    .await;
            }
        };
        let mut tx = ctx.begin().await?;
        tx.record_progress(&progress(plan.steps, "persist", None, None))
            .await?;
        let kept = mark_started(
            tx.connection(),
            workspace.id,
            workspace.provision_generation,
            provisioning::Started {
                url: started.url.clone(),
                container_id: started.container_id.clone(),
                engine_id: started.engine_id.clone(),
                image_digest: started.image_digest.clone(),
            },
        )
        .await
        .map_err(database)?;
        if !kept {
            drop(tx);
            self.take_down(workspace, backend).await;
            return Err(Stop::Verdict(Verdict::Superseded(
                "the workspace was removed or begun anew meanwhile".into(),
            )));
        }
        tx.record_progress(&progress(plan.steps, "started", None, None))
            .await?;
        tx.commit().await?;
        let presence = &self.fleet.presence;
        presence.cache_url(workspace.id, &started.url).await;
        presence
            .cache_internal_url(workspace.id, &started.internal_url)
            .await;
        Ok(())
    }

    async fn persist_instance(
        &self,
        ctx: &RunContext,
        workspace: &Workspace,
        plan: &Plan,
        backend: &dyn Backend,
        started: &StartedInstance,
    ) -> Result<(), Stop> {
        let instances = Instances::of(ctx, backend, workspace.id);
        let told = ["persist", "started"].map(|step| progress(plan.steps, step, None, None));
        if instances.store(workspace, started, &told).await? {
            return Ok(());
        }
        instances
            .take_down(workspace.provision_generation, started)
            .await?;
        Err(Stop::Verdict(Verdict::Superseded(
            "the workspace was removed or begun anew meanwhile".into(),
        )))
    }

    async fn take_down(&self, workspace: &Workspace, backend: &dyn Backend) {
        let target = StopTarget {
            workspace_id: workspace.id,
            generation: workspace.provision_generation,
            instance_id: None,
        };
        match backend.stop(&target).await {
            Ok(()) | Err(BackendError::StaleGeneration { .. }) => {}
            Err(error) => tracing::error!(
                workspace.id = %workspace.id, error = error.chain(), "LEAK-SUSPECT: the container of an abandoned start could not be removed"
            ),
        }
    }
}

/// Asked by the backend before each step: the job must still be ours, the attempt still the current one.
struct Watch<'a> {
    ctx: &'a RunContext,
    workspace: &'a Workspace,
    plan: &'a Plan,
    backend: &'a dyn Backend,
    told: Mutex<Option<(&'static str, Stopwatch)>>,
}

impl Watch<'_> {
    /// The engine, if this step is about to make something there and the row does not say so yet.
    fn engine_to_record(&self, step: &'static str) -> Option<&str> {
        let engine = self.backend.engine_id()?;
        let is_recorded = self.workspace.engine_id.as_deref() == Some(engine);
        let is_needed = !is_recorded || self.backend.manner().start_uncertain_for.is_some();
        (step == steps::CREATE && is_needed).then_some(engine)
    }
}

#[async_trait]
impl StartWatch for Watch<'_> {
    async fn step(
        &self,
        step: &'static str,
        message: Option<String>,
        percent: Option<u8>,
    ) -> Result<(), Abandoned> {
        if self.ctx.stopped().is_some() {
            return Err(Abandoned);
        }
        let mut told = self.told.lock().await;
        if told
            .as_ref()
            .is_some_and(|(last, since)| *last == step && since.elapsed() < TELL_EVERY)
        {
            return Ok(());
        }
        let written = async {
            let mut tx = self.ctx.begin().await?;
            let current = current_generation(tx.connection(), self.workspace.id)
                .await
                .map_err(database)?;
            if !is_current(current, self.workspace) {
                return Err(Stop::Verdict(superseded(current)));
            }
            match self.engine_to_record(step) {
                None => tx.make_forgettable().await?,
                // Kept through a crash of Postgres: a delete that finds no engine stops nothing.
                Some(engine) => {
                    let (id, generation) = (self.workspace.id, self.workspace.provision_generation);
                    let recorded = match self.backend.manner().start_uncertain_for {
                        None => mark_engine(tx.connection(), id, generation, engine).await,
                        // And what is about to be called, for it cannot be looked for afterwards.
                        Some(limit) => {
                            open_start(tx.connection(), id, generation, engine, limit).await
                        }
                    };
                    let recorded = recorded.map_err(database)?;
                    if !recorded {
                        return Err(Stop::Verdict(superseded(current)));
                    }
                }
            }
            tx.record_progress(&progress(self.plan.steps, step, message, percent))
                .await?;
            tx.commit().await.map_err(Stop::from)
        };
        written.await.map_err(|_| Abandoned)?;
        *told = Some((step, Stopwatch::start()));
        Ok(())
    }
}

fn is_current(current: Option<(i64, WorkspaceStatus)>, workspace: &Workspace) -> bool {
    current.is_some_and(|(generation, status)| {
        generation == workspace.provision_generation && status != WorkspaceStatus::Removed
    })
}

fn superseded(current: Option<(i64, WorkspaceStatus)>) -> Verdict {
    Verdict::Superseded(match current {
        None => "the workspace does not exist any more".to_owned(),
        Some((_, status)) => format!("the workspace is {status}, or a newer attempt began"),
    })
}

/// What a job that started a workspace says in the end.
pub(crate) fn told(started: &Started) -> serde_json::Value {
    match started {
        Started::Container(container) => serde_json::json!({
            "container_id": container.container_id, "engine_id": container.engine_id,
        }),
        Started::Instance(instance) => serde_json::json!({
            "instance_id": instance.instance_id, "engine_id": instance.place,
        }),
    }
}

pub(crate) fn progress(
    steps: &[&'static str],
    step: &'static str,
    message: Option<String>,
    percent: Option<u8>,
) -> Progress {
    let done = steps.iter().position(|name| *name == step).unwrap_or(0);
    Progress {
        step: step.to_owned(),
        steps_done: u32::try_from(done).unwrap_or(0),
        steps_total: u32::try_from(steps.len()).ok(),
        message,
        percent,
    }
}

pub(crate) fn database(error: FleetError) -> Stop {
    Stop::Verdict(verdicts::of_fleet(&error))
}
