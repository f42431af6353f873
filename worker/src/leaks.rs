//! `leaks`: compares what is there with what the rows want, both ways (`spec: operations` §5, `spec: jobs` §12).
//!
//! On an engine it looks at every container and volume with this installation's and this engine's labels; what lacks one of
//! them is counted and nothing else. A remote control plane cannot list its instances, so there it looks at those that a row
//! or an earlier doubt names. What nobody wants is suspected first, and removed only when it has been known for ten minutes
//! of the database's clock and is still there and unwanted: so no clock of an engine is believed. It removes nothing itself:
//! it asks for a `reclaim` job, which has the workspace for itself and obeys holds. A volume of a workspace's work is never
//! removed without an operator's word, since nothing can make it again.
//!
//! The other way, a row whose container or instance is gone, is the business of `health`.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use longshore_backends::{Backend, Inventory, Marked};
use longshore_base::WorkspaceId;
use longshore_fleet::Fleet;
use longshore_fleet::instances::list_open_stops;
use longshore_fleet::leaks::{
    Claim, FailedStop, KnownLeak, LeftBehind, Resource, Settled, Thing, Wanted, confirm_leak,
    find_leak, list_claims, list_known_leaks, list_unwanted_instances, record_leak, settle_leak,
};
use longshore_jobs::{list_busy, reclaim};
use longshore_ledger::Admitter;
use sqlx::{Connection as _, PgConnection, PgPool};

use crate::orphans::within_limit;
use crate::pass::{Pass, PassError, PassReport, Reconciler};

const INTERVAL: Duration = Duration::from_secs(300);
/// What was found later may belong to somebody whose row is about to say so.
const GRACE: Duration = Duration::from_secs(600);
/// A look at an instance that takes longer is a doubt.
const LOOK_WITHIN: Duration = Duration::from_secs(15);

pub(crate) struct Leaks {
    pub(crate) pool: PgPool,
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) engine_id: String,
    pub(crate) admitter: Admitter,
}

/// Something that is there.
struct Found {
    resource: Resource,
    id: String,
    /// How people know it.
    shown: String,
    workspace_id: WorkspaceId,
    wanted: Wanted,
    is_work: bool,
    /// The row that is about it, open or kept.
    known: Option<KnownLeak>,
}

/// What a pass knows before it decides.
#[derive(Default)]
struct Seen {
    found: Vec<Found>,
    /// Open rows of what is not there any more.
    gone: Vec<KnownLeak>,
    busy: Vec<WorkspaceId>,
    strangers: usize,
    unreadable: usize,
    doubtful: usize,
}

#[async_trait]
impl Reconciler for Leaks {
    fn name(&self) -> &'static str {
        "leaks"
    }

    fn scope(&self) -> String {
        self.engine_id.clone()
    }

    fn interval(&self) -> Duration {
        INTERVAL
    }

    async fn pass(&self, pass: &Pass) -> Result<PassReport, PassError> {
        let seen = match within_limit(self.backend.take_inventory()).await {
            Ok(Some(inventory)) => self.see_inventory(&inventory).await?,
            Ok(None) => self.see_instances().await?,
            Err(report) => return Ok(report),
        };
        self.decide(pass, seen).await
    }
}

impl Leaks {
    async fn known(&self, conn: &mut PgConnection) -> Result<Vec<KnownLeak>, PassError> {
        let kind = self.backend.kind();
        Ok(list_known_leaks(conn, kind, &self.engine_id, GRACE).await?)
    }

    /// First the engine, then the rows: a row is there before its container.
    async fn see_inventory(&self, inventory: &Inventory) -> Result<Seen, PassError> {
        let mut conn = self.pool.acquire().await?;
        let mut known = self.known(&mut conn).await?;
        let (readable, unreadable): (Vec<_>, Vec<_>) = inventory
            .ours
            .iter()
            .partition(|marked| marked.workspace_id.is_some());
        let ids: BTreeSet<_> = readable.iter().filter_map(|one| one.workspace_id).collect();
        let (claims, busy) = asked(&mut conn, ids, &known).await?;
        let found = readable.into_iter().filter_map(|marked| {
            let workspace_id = marked.workspace_id?;
            let wanted = reclaim::thing(marked, &self.engine_id).wanted(claims.get(&workspace_id));
            Some(found(marked, workspace_id, wanted, &mut known))
        });
        Ok(Seen {
            found: found.collect(),
            strangers: inventory.strangers,
            unreadable: unreadable.len(),
            gone: known.into_iter().filter(|leak| !leak.kept).collect(),
            busy,
            doubtful: 0,
        })
    }

    async fn see_instances(&self) -> Result<Seen, PassError> {
        let mut conn = self.pool.acquire().await?;
        let mut known = self.known(&mut conn).await?;
        let mut doubtful = known.len();
        known.retain(|leak| !reclaim::is_nameless(&leak.resource, &leak.resource_id));
        doubtful -= known.len();
        let unwanted = list_unwanted_instances(&mut conn, &self.engine_id).await?;
        let mut instances: Vec<_> = unwanted
            .into_iter()
            .map(|one| (one.workspace_id, one.instance_id))
            .collect();
        for leak in &known {
            if let Some(id) = leak.workspace_id
                && instances
                    .iter()
                    .all(|(_, instance)| *instance != leak.resource_id)
            {
                instances.push((id, leak.resource_id.clone()));
            }
        }
        let ids = instances.iter().map(|(id, _)| *id).collect();
        let (claims, busy) = asked(&mut conn, ids, &known).await?;
        let called = list_open_stops(&mut conn).await?;
        drop(conn);
        let mut seen = Seen {
            busy,
            ..Seen::default()
        };
        for (workspace_id, id) in instances {
            let at = known.iter().position(|leak| leak.resource_id == id);
            let leak = at.map(|at| known.swap_remove(at));
            let wanted = Thing::Instance { id: &id }.wanted(claims.get(&workspace_id));
            let looked = self.backend.is_running(workspace_id, Some(&id));
            let seen_as = match tokio::time::timeout(LOOK_WITHIN, looked).await {
                // Its stop, asked once more, says that it is over.
                Ok(Err(error)) if error.is_unknown_instance() && called.contains(&id) => Some(true),
                // So it does of what is known as a leak and does not run: it may be about to.
                Ok(Ok(false)) if leak.is_some() => Some(true),
                Ok(looked) => looked.ok(),
                Err(_) => None,
            };
            match seen_as {
                Some(true) => seen.found.push(Found {
                    resource: Resource::Instance,
                    shown: format!("instance {id}"),
                    id,
                    workspace_id,
                    wanted,
                    is_work: false,
                    known: leak,
                }),
                Some(false) => {}
                None => doubtful += 1,
            }
        }
        seen.doubtful = doubtful;
        Ok(seen)
    }

    /// Writes down what was seen, and asks for what is to be removed. A dry run takes all of it back.
    async fn decide(&self, pass: &Pass, seen: Seen) -> Result<PassReport, PassError> {
        let mut report = PassReport {
            seen: seen.found.len() + seen.gone.len(),
            skipped: seen.strangers + seen.unreadable,
            failed: seen.doubtful,
            note: note(&seen),
            ..PassReport::default()
        };
        let mut tx = self.pool.begin().await?;
        for leak in &seen.gone {
            self.settle(&mut tx, pass, &mut report, leak, Settled::Gone)
                .await?;
        }
        let mut due = Vec::new();
        for found in &seen.found {
            let is_kept = found.known.as_ref().is_some_and(|leak| leak.kept);
            let is_busy = seen.busy.contains(&found.workspace_id);
            match (found.wanted, &found.known) {
                (Wanted::Yes, None) => {}
                (Wanted::Yes, Some(leak)) if !is_kept && !is_busy => {
                    self.settle(&mut tx, pass, &mut report, leak, Settled::Adopted)
                        .await?;
                }
                (Wanted::No(why), None) if !is_busy => {
                    if !pass.dry_run {
                        self.suspect(&mut tx, found, why).await?;
                    }
                    let text = format!("suspects {}: {why}", found.shown);
                    pass.note_act(&mut report, text);
                }
                (Wanted::No(_), Some(leak)) if !is_kept && !is_busy && leak.is_old => {
                    if found.is_work {
                        confirm_leak(&mut tx, leak.id).await?;
                        report.skipped += 1;
                    } else {
                        due.push((found, leak));
                    }
                }
                _ => report.skipped += 1,
            }
        }
        let mut queues = BTreeSet::new();
        let wanted = due.iter().map(|(found, _)| found.shown.clone());
        if pass.may(&mut report, wanted.collect()) {
            for (found, leak) in due {
                // One that cannot be asked for must not keep the others.
                let mut one = tx.begin().await?;
                match self.remove(&mut one, leak).await {
                    Ok(queue) => {
                        one.commit().await?;
                        if let Some(queue) = queue {
                            queues.insert(queue);
                            report.act(format!("removes {}", found.shown));
                        }
                    }
                    Err(error) => {
                        one.rollback().await?;
                        report.failed += 1;
                        tracing::warn!(leak.id = %leak.id, error = &*error as &dyn std::error::Error, "a removal could not be asked for");
                    }
                }
            }
        }
        pass.keep(tx).await?;
        if report.acted > 0 {
            self.fleet.bus.poke();
            queues.iter().for_each(|queue| self.admitter.poke(queue));
        }
        Ok(report)
    }

    async fn settle(
        &self,
        tx: &mut PgConnection,
        pass: &Pass,
        report: &mut PassReport,
        leak: &KnownLeak,
        state: Settled,
    ) -> Result<(), PassError> {
        if settle_leak(tx, leak.id, state, None).await? {
            let (resource, id) = (&leak.resource, &leak.resource_id);
            pass.note_act(report, format!("{resource} {id} is {}", state.as_str()));
        }
        Ok(())
    }

    async fn suspect(
        &self,
        tx: &mut PgConnection,
        found: &Found,
        why: &'static str,
    ) -> Result<(), PassError> {
        let left = LeftBehind {
            workspace_id: found.workspace_id,
            backend: self.backend.kind(),
            engine_id: Some(&self.engine_id),
            resource: found.resource,
            resource_id: &found.id,
        };
        let failed = FailedStop {
            source: "sweep",
            attempts: 0,
            error: why,
        };
        record_leak(tx, &left, &failed).await?;
        tracing::warn!(
            workspace_id = %found.workspace_id, backend = left.backend, resource = left.resource.as_str(),
            resource_id = left.resource_id, source = failed.source, attempts = failed.attempts, last_error = why,
            "LEAK-SUSPECT: something is there that nobody wants"
        );
        Ok(())
    }

    async fn remove(
        &self,
        tx: &mut PgConnection,
        known: &KnownLeak,
    ) -> Result<Option<String>, PassError> {
        if !confirm_leak(tx, known.id).await? {
            return Ok(None);
        }
        let Some(leak) = find_leak(tx, known.id).await? else {
            return Ok(None);
        };
        let asked = reclaim::request(tx, &leak, "reconciler leaks").await?;
        Ok(Some(asked.queue))
    }
}

/// What the rows of these workspaces say, and of those that known leaks are about; and which of them have a live job.
async fn asked(
    conn: &mut PgConnection,
    ids: BTreeSet<WorkspaceId>,
    known: &[KnownLeak],
) -> Result<(HashMap<WorkspaceId, Claim>, Vec<WorkspaceId>), PassError> {
    let mut ids = ids;
    ids.extend(known.iter().filter_map(|leak| leak.workspace_id));
    let ids: Vec<_> = ids.into_iter().collect();
    let claims = list_claims(conn, &ids).await?;
    let busy = list_busy(conn, &ids).await?;
    Ok((
        claims.into_iter().map(|claim| (claim.id, claim)).collect(),
        busy,
    ))
}

/// Takes the row that is about it out of those known: an operator's word goes before a doubt.
fn found(
    marked: &Marked,
    workspace_id: WorkspaceId,
    wanted: Wanted,
    known: &mut Vec<KnownLeak>,
) -> Found {
    let mut about = Vec::new();
    known.retain(|leak| {
        let is_about = reclaim::is_about(&leak.resource, &leak.resource_id, marked);
        if is_about {
            about.push(leak.clone());
        }
        !is_about
    });
    about.sort_by_key(|leak| !leak.kept);
    let resource = reclaim::resource(marked.kind);
    let shown = if marked.id == marked.name {
        format!("{} {}", resource.as_str(), marked.name)
    } else {
        let short: String = marked.id.chars().take(12).collect();
        format!("{} {} ({short})", resource.as_str(), marked.name)
    };
    Found {
        resource,
        id: marked.id.clone(),
        shown,
        workspace_id,
        wanted,
        is_work: marked.is_work,
        known: about.into_iter().next(),
    }
}

/// What was left alone, and why.
fn note(seen: &Seen) -> Option<String> {
    let work = seen
        .found
        .iter()
        .filter(|found| found.is_work && matches!(found.wanted, Wanted::No(_)))
        .count();
    let told = [
        (
            seen.strangers,
            "with names like ours and without our labels",
        ),
        (seen.unreadable, "with our labels that name no workspace"),
        (
            work,
            "with work of workspaces that no row has: remove or keep them by hand",
        ),
        (seen.doubtful, "that could not be looked at"),
    ];
    let told: Vec<_> = told
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    (!told.is_empty()).then(|| format!("left alone: {}", told.join("; ")))
}
