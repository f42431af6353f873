//! `reclaim`: removes one thing that nobody wants, a row of `leaks` (`spec: operations` §5).
//!
//! It has the workspace for itself, so it asks once more, of the row and of the engine, whether the thing is still there and
//! still unwanted; what is wanted again is adopted, what is gone is gone, and what is not certain stays.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use longshore_backends::{
    Backend, BackendError, Backends, Inventory, Marked, MarkedKind, StopTarget,
};
use longshore_base::WorkspaceId;
use longshore_fleet::instances::clear_instance;
use longshore_fleet::leaks::{
    Claim, Leak, Resource, Settled, Thing, Wanted, find_leak, list_claims, settle_leak,
};
use longshore_fleet::workspace::organisation_root;
use longshore_fleet::{Fleet, FleetError};
use longshore_ledger::{
    Backoff, Enqueued, Executor, Fenced, Jitter, JobError, LedgerError, NewJob, Policy, RunContext,
    Verdict, enqueue,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::PgConnection;
use uuid::Uuid;

pub use crate::deployment::TENANT;
use crate::place::{self, NOWHERE};
use crate::stopping::StoppingError;
use crate::{deployment, instances, verdicts, workspace_key};

/// The kind's name.
pub const KIND: &str = "reclaim";
/// Shapes of [`Args`] this version reads.
pub const ARGS_VERSIONS: &[i16] = &[1];
/// How removals are tried and limited. One that fails for good is asked for again by the next pass.
pub const POLICY: Policy = Policy {
    max_attempts: 5,
    backoff: Backoff {
        base: Duration::from_secs(2),
        cap: Duration::from_secs(60),
        jitter: Jitter::Full,
    },
    timeout: Duration::from_secs(300),
    deadline: Duration::from_secs(3600),
    concurrency: 2,
};

/// What to remove.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Args {
    /// The row of `leaks`.
    pub leak_id: Uuid,
}

/// A start that was never answered is known by the key of its call only: nothing at the control plane has that name.
#[must_use]
pub fn is_nameless(resource: &str, resource_id: &str) -> bool {
    resource == Resource::Instance.as_str() && resource_id.contains(':')
}

/// Asks for the removal. One that waits already is enough.
///
/// # Errors
/// [`LedgerError`]; nothing may be committed then.
pub async fn request(
    tx: &mut PgConnection,
    leak: &Leak,
    created_by: &str,
) -> Result<Enqueued, LedgerError> {
    let tenant = match leak.workspace_id {
        Some(id) => organisation_root(tx, id).await.unwrap_or(id).to_string(),
        None => TENANT.to_owned(),
    };
    let args = Args { leak_id: leak.id };
    let keys = leak.workspace_id.map(workspace_key).into_iter().collect();
    let job = deployment::job((KIND, &POLICY), keys, leak.id.to_string(), args, created_by);
    enqueue(
        tx,
        NewJob {
            queue: place::queue(KIND, leak.engine_id.as_deref().unwrap_or(NOWHERE)),
            tenant,
            workspace_id: leak.workspace_id,
            ..job
        },
    )
    .await
}

/// How a container or volume of an inventory is judged.
#[must_use]
pub fn thing<'a>(marked: &Marked, engine_id: &'a str) -> Thing<'a> {
    match marked.kind {
        MarkedKind::Volume => Thing::Volume {
            is_work: marked.is_work,
        },
        MarkedKind::Container => Thing::Container {
            is_named: marked
                .workspace_id
                .is_some_and(|id| id.container_name() == marked.name),
            generation: marked.generation,
            is_running: marked.is_running,
            engine_id,
        },
    }
}

/// The kind as rows of `leaks` have it.
#[must_use]
pub const fn resource(kind: MarkedKind) -> Resource {
    match kind {
        MarkedKind::Container => Resource::Container,
        MarkedKind::Volume => Resource::Volume,
    }
}

/// Whether a row of `leaks` is about it: by its id, or by its name, where that is all that was known.
#[must_use]
pub fn is_about(resource_of: &str, resource_id: &str, marked: &Marked) -> bool {
    resource_of == resource(marked.kind).as_str()
        && (resource_id == marked.id || resource_id == marked.name)
}

/// Runs removals.
pub struct ReclaimExecutor {
    /// The bus that is poked.
    pub fleet: Arc<Fleet>,
    /// Where workspaces run.
    pub backends: Arc<Backends>,
}

/// Why a run ends without the thing being settled.
enum Stuck {
    Fenced(Fenced),
    Fleet(FleetError),
    Backend(BackendError),
}

impl From<Fenced> for Stuck {
    fn from(fenced: Fenced) -> Self {
        Self::Fenced(fenced)
    }
}

impl From<StoppingError> for Stuck {
    fn from(error: StoppingError) -> Self {
        match error {
            StoppingError::Fenced(fenced) => Self::Fenced(fenced),
            StoppingError::Record(error) => Self::Fleet(error),
        }
    }
}

impl From<FleetError> for Stuck {
    fn from(error: FleetError) -> Self {
        Self::Fleet(error)
    }
}

impl From<BackendError> for Stuck {
    fn from(error: BackendError) -> Self {
        Self::Backend(error)
    }
}

#[async_trait]
impl Executor for ReclaimExecutor {
    async fn run(&self, ctx: &RunContext) -> Verdict {
        let job = ctx.job();
        let args: Args = match job.read_args() {
            Ok(args) => args,
            Err(unreadable) => return Verdict::Permanent(unreadable),
        };
        tracing::info!(leak.id = %args.leak_id, job.id = %job.id, job.kind = job.kind, attempt = job.attempt, "reclaim entered");
        let Ok(backend) = self.backends.choose() else {
            return Verdict::Retry(JobError::plain("no backend is available to look"));
        };
        let looked = tokio::select! {
            looked = self.look(ctx, &*backend, args.leak_id) => looked,
            () = ctx.stopping() => return ctx.stopped_verdict(),
        };
        match looked {
            Ok(verdict) => verdict,
            Err(Stuck::Fenced(fenced)) => verdicts::of_fence(&fenced),
            Err(Stuck::Fleet(error)) => verdicts::of_fleet(&error),
            Err(Stuck::Backend(error)) => {
                let (what, detail) = (error.to_string(), error.chain());
                tracing::warn!(leak.id = %args.leak_id, job.id = %job.id, error = detail, "what nobody wants could not be removed");
                let failure = JobError {
                    public: format!("it could not be removed: {what}"),
                    detail,
                };
                match error {
                    BackendError::StaleGeneration { .. } => Verdict::Superseded(what),
                    BackendError::NameTaken { .. } | BackendError::Unsupported { .. } => {
                        Verdict::Permanent(failure)
                    }
                    _ => Verdict::Retry(failure),
                }
            }
        }
    }
}

impl ReclaimExecutor {
    async fn look(
        &self,
        ctx: &RunContext,
        backend: &dyn Backend,
        id: Uuid,
    ) -> Result<Verdict, Stuck> {
        let mut tx = ctx.begin().await?;
        let leak = find_leak(tx.connection(), id).await?;
        let Some(leak) = leak.filter(|leak| leak.resolved_at.is_none()) else {
            return Ok(Verdict::Superseded("it is settled already".into()));
        };
        let ids: Vec<_> = leak.workspace_id.into_iter().collect();
        let claims = list_claims(tx.connection(), &ids).await?;
        drop(tx);
        let claim = claims.first();
        let settled = match leak.workspace_id {
            Some(workspace) if leak.resource == Resource::Instance.as_str() => {
                remove_instance(ctx, backend, workspace, &leak, claim).await?
            }
            _ => match backend.take_inventory().await? {
                Some(inventory) => remove_marked(backend, &inventory, &leak, claim).await?,
                None => None,
            },
        };
        let Some(settled) = settled else {
            let why = "whether anybody wants it cannot be told; it is left alone";
            return Ok(Verdict::Superseded(why.into()));
        };
        let mut tx = ctx.begin().await?;
        if let (Settled::Removed | Settled::Gone, Some(claim)) = (settled, claim) {
            clear_instance(tx.connection(), claim.id, &leak.resource_id).await?;
        }
        settle_leak(tx.connection(), leak.id, settled, None).await?;
        tx.commit().await?;
        self.fleet.bus.poke();
        tracing::info!(
            leak.id = %leak.id, resource = leak.resource, resource_id = leak.resource_id, state = settled.as_str(),
            "what was left behind is settled"
        );
        Ok(Verdict::Done(Some(json!({ "state": settled.as_str() }))))
    }
}

async fn remove_instance(
    ctx: &RunContext,
    backend: &dyn Backend,
    workspace_id: WorkspaceId,
    leak: &Leak,
    claim: Option<&Claim>,
) -> Result<Option<Settled>, Stuck> {
    if is_nameless(&leak.resource, &leak.resource_id) {
        return Err(Stuck::Backend(BackendError::Unsupported {
            what: "name for what a start made that was never answered",
        }));
    }
    let id = leak.resource_id.as_str();
    match (Thing::Instance { id }).wanted(claim) {
        Wanted::Yes => return Ok(Some(Settled::Adopted)),
        Wanted::Unsure => return Ok(None),
        Wanted::No(_) => {}
    }
    // Whether it runs is not asked: what does not may be about to. Only its stop says that it is over.
    let target = StopTarget {
        instance_id: Some(id.to_owned()),
        ..StopTarget::any_generation(workspace_id)
    };
    instances::stop(ctx, backend, &target).await??;
    Ok(Some(Settled::Removed))
}

async fn remove_marked(
    backend: &dyn Backend,
    inventory: &Inventory,
    leak: &Leak,
    claim: Option<&Claim>,
) -> Result<Option<Settled>, BackendError> {
    let mut ours = inventory.ours.iter();
    let found = ours.find(|marked| is_about(&leak.resource, &leak.resource_id, marked));
    let Some(marked) = found.filter(|marked| marked.workspace_id == leak.workspace_id) else {
        return Ok(Some(Settled::Gone));
    };
    let engine_id = backend.engine_id().unwrap_or_default();
    match thing(marked, engine_id).wanted(claim) {
        Wanted::Yes => return Ok(Some(Settled::Adopted)),
        Wanted::Unsure => return Ok(None),
        Wanted::No(_) => {}
    }
    let newest = claim.map_or(i64::MAX, |claim| claim.generation);
    backend
        .remove_marked(marked.kind, &marked.id, newest)
        .await?;
    Ok(Some(Settled::Removed))
}
