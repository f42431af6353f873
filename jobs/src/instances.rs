//! Stopping what may run on instances of a remote control plane, as every kind that stops must (`spec: lifecycle` §3.4,
//! `spec: jobs` §6). Where workspaces run in containers all of this does nothing.

use std::time::Duration;

use longshore_backends::{
    Backend, BackendError, StartSpec, Started, StopTarget, Unwatched, WorkspaceAccess,
};
use longshore_base::{WorkspaceId, failpoint};
use longshore_fleet::FleetError;
use longshore_fleet::instances::{
    OpenStart, adopt_instance, close_start, close_stop, find_open_start, forget_instance,
    open_stop, start_key,
};
use longshore_fleet::leaks::{FailedStop, LeftBehind, Resource, record_leak};
use longshore_fleet::workspace::find_workspace;
use longshore_ledger::{FencedTx, JobError, RunContext, Verdict};

use crate::stopping::{StopSource, StoppingError};
use crate::verdicts;

/// Before each further attempt to ask what became of a start, or to write down what was started.
pub(crate) const AGAIN_AFTER: [Duration; 3] = [
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
];
/// Why a workspace waits whose start was called and may still be answered.
pub(crate) const UNCERTAIN: &str = "an earlier start of the workspace may still be answered";

/// Stops what runs for a workspace; what the backend refuses is the error inside. That the stop of an instance is called is
/// written down first: a control plane that knows no such instance, when the answer to an earlier stop was lost, has
/// ended it then. Whoever is told that it is stopped [forgets](forget_instance) it.
pub(crate) async fn stop(
    ctx: &RunContext,
    backend: &dyn Backend,
    target: &StopTarget,
) -> Result<Result<(), BackendError>, StoppingError> {
    let instance = target.instance_id.as_deref();
    let Some(instance) = instance.filter(|_| backend.manner().start_uncertain_for.is_some()) else {
        return Ok(backend.stop(target).await);
    };
    let mut tx = ctx.begin().await?;
    let was_called = open_stop(tx.connection(), target.workspace_id, instance).await?;
    tx.commit().await?;
    let stopped = backend.stop(target).await;
    failpoint::hit("instance.stopped").await;
    match stopped {
        Err(error) if was_called && error.is_unknown_instance() => {
            tracing::info!(
                workspace.id = %target.workspace_id, instance.id = instance,
                "the control plane does not know the instance: a stop whose answer was lost has ended it"
            );
            Ok(Ok(()))
        }
        Err(error) if !was_called && !error.is_unanswered() => {
            let mut tx = ctx.begin().await?;
            close_stop(tx.connection(), instance).await?;
            tx.commit().await?;
            Ok(Err(error))
        }
        stopped => Ok(stopped),
    }
}

/// What was stopped is not on file any more: a later stop must not stop it again, nor a later start.
pub(crate) async fn forget(ctx: &RunContext, stopped: &StopTarget) -> Result<(), StoppingError> {
    let Some(instance) = stopped.instance_id.as_deref() else {
        return Ok(());
    };
    let mut tx = ctx.begin().await?;
    forget_instance(tx.connection(), stopped.workspace_id, instance).await?;
    Ok(tx.commit().await?)
}

/// Settles a start of a workspace that is to stop, if nobody has written down what became of one: then there may be an
/// instance that only the control plane knows. Answers the instance that is on file now because of it, to be stopped. The
/// error inside says, in words fit for the public, why this cannot be told yet.
pub(crate) async fn settle_before_stop(
    ctx: &RunContext,
    backend: &dyn Backend,
    id: WorkspaceId,
) -> Result<Result<Option<String>, String>, StoppingError> {
    if backend.manner().start_uncertain_for.is_none() {
        return Ok(Ok(None));
    }
    let mut tx = ctx.begin().await?;
    let open = find_open_start(tx.connection(), id).await?;
    let (Some(open), Some(row)) = (open, find_workspace(tx.connection(), id).await?) else {
        return Ok(Ok(None));
    };
    drop(tx);
    if !open.uncertain_for.is_zero() {
        return Ok(Err(UNCERTAIN.to_owned()));
    }
    // Should the control plane have forgotten its key, it makes an instance that is stopped at once: nothing of the
    // workspace's is given to it.
    let spec = StartSpec {
        workspace_id: id,
        runtime: row.runtime,
        tier: row.tier,
        image: String::new(),
        pull_always: false,
        env: Vec::new(),
        files: Vec::new(),
        workspace_dir: None,
        workspace_access: WorkspaceAccess::None,
        reset_session: false,
        generation: open.called_as,
        run: ctx.job().token,
    };
    let settled = settle(ctx, backend, &spec, open).await?;
    Ok(settled.map_err(|error| error.to_string()))
}

/// Asks what became of a start that nobody wrote down, by calling it again under its own key: a control plane that keeps
/// keys answers as it did then. What it names is on file then, to be stopped; what it does not is flagged. One that fails
/// is asked again, patiently. The error inside: it could not be asked, and the start stays open.
pub(crate) async fn settle(
    ctx: &RunContext,
    backend: &dyn Backend,
    spec: &StartSpec,
    open: OpenStart,
) -> Result<Result<Option<String>, BackendError>, StoppingError> {
    let earlier = StartSpec {
        generation: open.called_as,
        ..spec.clone()
    };
    let mut waits = AGAIN_AFTER.iter();
    let (instance, doubt) = loop {
        match backend.start(&earlier, &Unwatched).await {
            Ok(Started::Instance(found)) => {
                let doubt = "the control plane does not say that it had seen the call before";
                let doubt = (!found.replayed).then(|| doubt.to_owned());
                break (Some(found.instance_id), doubt);
            }
            Ok(Started::Container(_)) => break (None, None),
            // Nobody answered, and who would start now would get no answer either.
            Err(error) if error.is_unanswered() => return Ok(Err(error)),
            Err(error) => match waits.next().filter(|_| error.retryable()) {
                Some(wait) => tokio::select! {
                    () = ctx.stopping() => return Ok(Err(error)),
                    () = tokio::time::sleep(*wait) => {}
                },
                None => break (None, Some(error.to_string())),
            },
        }
    };
    let id = spec.workspace_id;
    let mut tx = ctx.begin().await?;
    match &instance {
        Some(instance) => {
            adopt_instance(tx.connection(), id, open.called_as, instance).await?;
        }
        None => close_start(tx.connection(), id, open.called_as).await?,
    }
    if let Some(doubt) = doubt {
        flag_start(&mut tx, backend, id, open, &doubt).await?;
    }
    tx.commit().await?;
    Ok(Ok(instance))
}

/// Flags a start that nobody can say the outcome of: under its key, for its instance has no name.
async fn flag_start(
    tx: &mut FencedTx,
    backend: &dyn Backend,
    id: WorkspaceId,
    open: OpenStart,
    doubt: &str,
) -> Result<(), FleetError> {
    let key = start_key(id, open.called_as);
    tracing::error!(
        workspace_id = %id, instance_id = "", start_key = key, source = "provision", attempts = 1, last_error = doubt,
        "LEAK-SUSPECT: a start was called and what became of it is not known"
    );
    record_suspect(tx, backend, id, &key, doubt).await
}

/// Puts an instance, or the key of the call that may have made it, on the list of leaks.
pub(crate) async fn record_suspect(
    tx: &mut FencedTx,
    backend: &dyn Backend,
    id: WorkspaceId,
    resource_id: &str,
    error: &str,
) -> Result<(), FleetError> {
    let left = LeftBehind {
        workspace_id: id,
        backend: backend.kind(),
        engine_id: backend.engine_id(),
        resource: Resource::Instance,
        resource_id,
    };
    let failed = FailedStop {
        source: StopSource::Provision.as_str(),
        attempts: 1,
        error,
    };
    record_leak(tx.connection(), &left, &failed).await.map(drop)
}

/// The verdict of a run that cannot go on.
pub(crate) fn verdict_of(error: StoppingError) -> Verdict {
    match error {
        StoppingError::Fenced(fenced) => verdicts::of_fence(&fenced),
        StoppingError::Record(error) => {
            Verdict::Retry(JobError::new(verdicts::NO_DATABASE, &error))
        }
    }
}
