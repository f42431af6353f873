//! One run of a restart.
//!
//! ```text
//! [tx: guard] → read what is kept → [tx: runtime] → stop → [tx: provisioning, generation] → provision's own steps
//! ```
//! Killed anywhere, it is run again from the beginning: stopping twice is harmless, and each beginning takes a higher
//! generation. A run that finds its own start written down has nothing left to do.

use std::time::Duration;

use async_trait::async_trait;
use longshore_backends::Backend;
use longshore_base::clock::Stopwatch;
use longshore_base::failpoint;
use longshore_fleet::config_source::Kept;
use longshore_fleet::provisioning::NO_BACKEND;
use longshore_fleet::restarting::{
    Asked, Beginning, begin_restart, lock_restartable, runtime_in, set_runtime,
};
use longshore_fleet::workspace::Workspace;
use longshore_ledger::control::{Subject, open_controls};
use longshore_ledger::{Executor, FencedTx, JobError, LedgerError, Progress, RunContext, Verdict};

use super::{Args, Begun, begun};
use crate::provision::{self, ConfigPlan, Plan, ProvisionExecutor, Stop, database, progress};
use crate::stopping::{self, Running, StopPolicy, StopSource, Stopping};
use crate::verdicts;

/// Names of all steps, in their order.
const STEPS: [&str; 23] = [
    "entered",
    "guard",
    "snapshot-context",
    "detect-runtime",
    "stop-1",
    "stop-2",
    "stop-3",
    "leak-suspect",
    "mark-provisioning",
    "clear-keys",
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
/// Pause between two looks whether provisions may run again.
const CLOSED_PAUSE: Duration = Duration::from_secs(5);

/// Runs restarts.
pub struct RestartExecutor {
    /// Brings up what was stopped.
    pub provision: ProvisionExecutor,
}

#[async_trait]
impl Executor for RestartExecutor {
    async fn run(&self, ctx: &RunContext) -> Verdict {
        let job = ctx.job();
        let args: Args = match job.read_args() {
            Ok(args) => args,
            Err(unreadable) => return Verdict::Permanent(unreadable),
        };
        let id = args.workspace_id;
        tracing::info!(
            workspace.id = %id, job.id = %job.id, job.kind = job.kind, attempt = job.attempt, source = ?args.source,
            "restart entered"
        );
        let elapsed = Stopwatch::start();
        let verdict = match self.restart(ctx, &args).await {
            Ok(result) => {
                tracing::info!(
                    workspace.id = %id, job.id = %job.id, took_ms = elapsed.elapsed_ms(), "restart started the workspace"
                );
                Verdict::Done(Some(result))
            }
            Err(stop) => stop.verdict(),
        };
        match &verdict {
            Verdict::Permanent(error) | Verdict::Retry(error) => tracing::error!(
                workspace.id = %id, job.id = %job.id, reason = error.public,
                detail = self.provision.fleet.redactor.clean(&error.detail), took_ms = elapsed.elapsed_ms(),
                "restart failed"
            ),
            Verdict::Superseded(reason) => {
                tracing::info!(workspace.id = %id, job.id = %job.id, reason, "restart superseded");
            }
            Verdict::Snooze(_, reason) => {
                tracing::info!(workspace.id = %id, job.id = %job.id, reason, "restart waits");
            }
            Verdict::Cancelled => {
                tracing::info!(workspace.id = %id, job.id = %job.id, "restart cancelled");
            }
            _ => {}
        }
        self.provision.fleet.bus.poke();
        verdict
    }
}

impl RestartExecutor {
    async fn restart(&self, ctx: &RunContext, args: &Args) -> Result<serde_json::Value, Stop> {
        let earlier = begun(ctx.job().checkpoint.as_ref());
        let beginning = Beginning {
            asked: args.source.asked(),
            again: earlier.is_some(),
        };
        let before = self.guard(ctx, args, beginning).await?;
        if let Some(earlier) = earlier
            && before.provision_generation == earlier.generation
            && let Some(result) = what_runs(&before)
        {
            return Ok(result);
        }
        failpoint::hit("restart.guarded").await;
        let Ok(backend) = self.provision.backends.choose() else {
            // Nothing could start it again, so nothing is stopped.
            return Err(Stop::Verdict(Verdict::Permanent(JobError::plain(
                NO_BACKEND,
            ))));
        };
        let kept = self.provision.read_kept(ctx, &*backend, &before).await?;
        self.detect_runtime(ctx, &before, &kept).await?;
        self.stop(ctx, &*backend, args, &before).await?;
        failpoint::hit("restart.stopped").await;
        let workspace = self.begin(ctx, args, beginning).await?;
        failpoint::hit("restart.begun").await;
        let plan = Plan {
            config: ConfigPlan::Again {
                choice: args.choice.clone(),
                kept,
            },
            reset_session: args.reset_session,
            steps: &STEPS,
        };
        let started = self.provision.bring_up(ctx, &workspace, &plan).await?;
        Ok(provision::told(&started))
    }

    /// Whether it is still wanted, and whether what is stopped now could be started again.
    async fn guard(
        &self,
        ctx: &RunContext,
        args: &Args,
        beginning: Beginning,
    ) -> Result<Box<Workspace>, Stop> {
        let mut tx = ctx.begin().await?;
        let locked = lock_restartable(tx.connection(), args.workspace_id, beginning)
            .await
            .map_err(database)?;
        let workspace = match locked {
            Ok(workspace) => workspace,
            Err(refusal) => {
                return Err(Stop::Verdict(Verdict::Superseded(refusal.to_string())));
            }
        };
        if let Some(closed) = provisions_closed(&mut tx, ctx).await? {
            return Err(Stop::Verdict(Verdict::Snooze(CLOSED_PAUSE, closed)));
        }
        tx.record_progress(&shown("guard")).await?;
        tx.commit().await?;
        Ok(workspace)
    }

    /// The agent may have changed its runtime in its own configuration; a name that nobody knows counts for nothing.
    async fn detect_runtime(
        &self,
        ctx: &RunContext,
        before: &Workspace,
        kept: &Kept,
    ) -> Result<(), Stop> {
        let Kept::Found(text) = kept else {
            return Ok(());
        };
        let Some(runtime) = runtime_in(&self.provision.fleet, text) else {
            return Ok(());
        };
        if runtime == before.runtime {
            return Ok(());
        }
        tracing::info!(
            workspace.id = %before.id, from = before.runtime, to = runtime, "the workspace's configuration names another runtime"
        );
        let mut tx = ctx.begin().await?;
        set_runtime(tx.connection(), before.id, &runtime)
            .await
            .map_err(database)?;
        tx.record_progress(&shown("detect-runtime")).await?;
        tx.commit().await.map_err(Stop::from)
    }

    async fn stop(
        &self,
        ctx: &RunContext,
        backend: &dyn Backend,
        args: &Args,
        before: &Workspace,
    ) -> Result<(), Stop> {
        let source = match args.source.asked() {
            Asked::ByUser => StopSource::Restart,
            Asked::ByChange | Asked::ByItself => StopSource::AutoRestart,
        };
        let stop = stopping::Stop {
            ctx,
            backend,
            source,
            policy: StopPolicy::of(backend, source),
            progress: shown,
        };
        match stop.run(&Running::from(before)).await {
            // What is left is told of; to refuse now would leave the workspace down for it.
            Ok(Stopping::Stopped | Stopping::Left(_)) => Ok(()),
            Ok(Stopping::Newer) => Err(Stop::Verdict(Verdict::Superseded(
                "a newer attempt holds the container".into(),
            ))),
            Ok(Stopping::Cancelled) => Err(Stop::Verdict(ctx.stopped_verdict())),
            Err(error) => Err(error.into()),
        }
    }

    async fn begin(
        &self,
        ctx: &RunContext,
        args: &Args,
        beginning: Beginning,
    ) -> Result<Box<Workspace>, Stop> {
        let fleet = &self.provision.fleet;
        let mut tx = ctx.begin().await?;
        let begun = begin_restart(tx.connection(), fleet, args.workspace_id, beginning)
            .await
            .map_err(database)?;
        let workspace = match begun {
            Ok(workspace) => workspace,
            Err(refusal) => {
                return Err(Stop::Verdict(Verdict::Superseded(refusal.to_string())));
            }
        };
        let begun = Begun {
            generation: workspace.provision_generation,
        };
        tx.record_checkpoint(serde_json::to_value(begun).unwrap_or_default())
            .await?;
        tx.record_progress(&shown("mark-provisioning")).await?;
        tx.commit().await?;
        fleet.presence.clear(workspace.id).await;
        fleet.bus.poke();
        Ok(workspace)
    }
}

/// What an earlier run of the job has started, if it came to write that down.
fn what_runs(workspace: &Workspace) -> Option<serde_json::Value> {
    let container = workspace.container_id.as_deref();
    let instance = workspace.instance_id.as_deref();
    (container.is_some() || instance.is_some()).then(|| {
        serde_json::json!({ "container_id": container, "instance_id": instance, "engine_id": workspace.engine_id })
    })
}

/// The control that keeps provisions of this workspace from starting, in its words.
async fn provisions_closed(tx: &mut FencedTx, ctx: &RunContext) -> Result<Option<String>, Stop> {
    let job = ctx.job();
    let controls = open_controls(tx.connection()).await.map_err(ledger)?;
    let subject = Subject {
        kind: provision::KIND,
        place: job.queue.split_once('@').map(|(_, place)| place),
        tenant: &job.tenant,
        workspace_id: job.workspace_id,
    };
    Ok(subject.closed_by(&controls).map(|control| control.text()))
}

fn ledger(error: LedgerError) -> Stop {
    let failure = JobError::new(verdicts::NO_DATABASE, &error);
    Stop::Verdict(Verdict::Retry(failure))
}

fn shown(step: &'static str) -> Progress {
    progress(&STEPS, step, None, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_steps_are_its_own_and_then_those_of_a_provision_and_of_a_stop() {
        // A provision's first step is its entry, which is ours here.
        assert_eq!(STEPS[10..], provision::STEPS[1..]);
        assert_eq!(STEPS[4..8], stopping::STEPS);
    }
}
