//! Stopping what may run on instances of a remote control plane, as every kind that stops must (`spec: lifecycle` §3.4,
//! `spec: jobs` §6). Where workspaces run in containers all of this does nothing.

use longshore_backends::{Backend, BackendError, StopTarget};
use longshore_base::{WorkspaceId, failpoint};
use longshore_fleet::FleetError;
use longshore_fleet::instances::{
    OpenStart, close_start, close_stop, find_open_start, forget_instance, open_stop, start_key,
};
use longshore_fleet::leaks::{FailedStop, LeftBehind, Resource, record_leak};
use longshore_ledger::{FencedTx, JobError, RunContext, Verdict};

use crate::stopping::{StopSource, StoppingError};
use crate::verdicts;

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

/// What a stop cannot stop: a start whose answer was never written down may have made an instance that only the control
/// plane knows. It is flagged, and not looked for any more.
pub(crate) async fn flag_open_start(
    ctx: &RunContext,
    backend: &dyn Backend,
    id: WorkspaceId,
) -> Result<(), StoppingError> {
    if backend.manner().start_uncertain_for.is_none() {
        return Ok(());
    }
    let mut tx = ctx.begin().await?;
    let Some(open) = find_open_start(tx.connection(), id).await? else {
        return Ok(());
    };
    let doubt = "the start was never answered, and the workspace is to stop";
    flag_start(&mut tx, backend, id, open, doubt).await?;
    close_start(tx.connection(), id, open.called_as).await?;
    Ok(tx.commit().await?)
}

/// Flags a start that nobody can say the outcome of: under its key, for its instance has no name.
pub(crate) async fn flag_start(
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
