//! `orphans`: takes away containers of workspaces that are removed, or that nobody knows (`spec: lifecycle` §6.4, passes A
//! and B).
//!
//! It looks only at containers that carry this installation's and this engine's labels. It removes nothing itself: it asks
//! for a `stop` job, which has the workspace for itself, obeys holds, and is tried again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use longshore_backends::{Backend, BackendError, ListedContainer};
use longshore_base::WorkspaceId;
use longshore_fleet::sweep::{NamedWorkspace, list_by_id12};
use longshore_jobs::{list_busy, stop};
use longshore_ledger::Admitter;
use sqlx::PgPool;

use crate::pass::{Pass, PassError, PassReport, Reconciler};

const INTERVAL: Duration = Duration::from_secs(60);
/// For the engine to list what is there.
const LISTING_LIMIT: Duration = Duration::from_secs(30);

pub(crate) struct Orphans {
    pub(crate) pool: PgPool,
    pub(crate) admitter: Admitter,
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) engine_id: String,
}

/// A container that nobody wants.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Orphan {
    workspace_id: WorkspaceId,
    container: String,
    /// The newest generation that may be removed; `None` for a workspace that nobody knows.
    generation: Option<i64>,
}

/// What is on the engine under names of workspaces; why not, if the engine does not say.
pub(crate) async fn list_containers(
    backend: &dyn Backend,
) -> Result<Vec<ListedContainer>, PassReport> {
    let listed = within_limit(backend.list_containers()).await?;
    listed.ok_or_else(|| PassReport {
        note: Some("this backend cannot list what is there".to_owned()),
        ..PassReport::default()
    })
}

/// What the engine lists; the report of a pass that could not look, if it does not.
pub(crate) async fn within_limit<T>(
    listing: impl Future<Output = Result<T, BackendError>>,
) -> Result<T, PassReport> {
    match tokio::time::timeout(LISTING_LIMIT, listing).await {
        Ok(Ok(listed)) => Ok(listed),
        Ok(Err(error)) => {
            tracing::warn!(error = error.chain(), "the engine could not be listed");
            Err(PassReport::skipped_pass(format!(
                "pass skipped: the engine could not be listed: {error}"
            )))
        }
        Err(_elapsed) => Err(PassReport::skipped_pass(format!(
            "pass skipped: the engine did not list what it has within {} s",
            LISTING_LIMIT.as_secs()
        ))),
    }
}

/// Which of the containers nobody wants. A name that some other workspace may have too is never an orphan's.
fn orphans(listed: &[ListedContainer], known: &[NamedWorkspace]) -> Vec<Orphan> {
    let mut by_name: HashMap<String, Vec<&NamedWorkspace>> = HashMap::new();
    for workspace in known {
        let name = workspace.id.container_name();
        by_name.entry(name).or_default().push(workspace);
    }
    let judge = |container: &ListedContainer| {
        let workspace_id = container.workspace_id?;
        let orphan = |generation| Orphan {
            workspace_id,
            container: container.name.clone(),
            generation,
        };
        let Some(named) = by_name.get(&container.name) else {
            return Some(orphan(None));
        };
        let own = named.iter().find(|known| known.id == workspace_id)?;
        named
            .iter()
            .all(|known| known.removed)
            .then(|| orphan(Some(own.generation)))
    };
    listed.iter().filter_map(judge).collect()
}

impl Orphans {
    async fn ask_to_stop(&self, orphan: &Orphan) -> Result<(), PassError> {
        let mut tx = self.pool.begin().await?;
        let asked = stop::request_orphan(
            &mut tx,
            orphan.workspace_id,
            orphan.generation,
            &self.engine_id,
        )
        .await?;
        tx.commit().await?;
        self.admitter.poke(&asked.queue);
        tracing::warn!(
            workspace.id = %orphan.workspace_id, container = orphan.container, job.id = %asked.job_id,
            known = orphan.generation.is_some(), "a container that nobody wants is being removed"
        );
        Ok(())
    }
}

#[async_trait]
impl Reconciler for Orphans {
    fn name(&self) -> &'static str {
        "orphans"
    }

    fn scope(&self) -> String {
        self.engine_id.clone()
    }

    fn interval(&self) -> Duration {
        INTERVAL
    }

    async fn pass(&self, pass: &Pass) -> Result<PassReport, PassError> {
        // First the engine, then the rows: a row is there before its container, so what is listed and has no row lost it.
        let listed = match list_containers(&*self.backend).await {
            Ok(listed) => listed,
            Err(report) => return Ok(report),
        };
        let ours: Vec<_> = listed
            .iter()
            .filter_map(|container| container.workspace_id)
            .collect();
        let mut report = PassReport {
            seen: ours.len(),
            skipped: listed.len() - ours.len(),
            ..PassReport::default()
        };
        let mut unwanted = {
            let mut conn = self.pool.acquire().await?;
            let prefixes: Vec<_> = ours.iter().map(WorkspaceId::id12).collect();
            let mut unwanted = orphans(&listed, &list_by_id12(&mut conn, &prefixes).await?);
            // A job about it may be removing it already.
            let ids: Vec<_> = unwanted.iter().map(|orphan| orphan.workspace_id).collect();
            let busy = list_busy(&mut conn, &ids).await?;
            unwanted.retain(|orphan| !busy.contains(&orphan.workspace_id));
            unwanted
        };
        unwanted.sort_by_key(|orphan| orphan.workspace_id);
        let wanted = unwanted.iter().map(|orphan| orphan.container.clone());
        if pass.may(&mut report, wanted.collect()) {
            for orphan in &unwanted {
                match self.ask_to_stop(orphan).await {
                    Ok(()) => report.act(&orphan.container),
                    Err(error) => {
                        report.failed += 1;
                        tracing::warn!(
                            workspace.id = %orphan.workspace_id, container = orphan.container, error = &*error as &dyn std::error::Error,
                            "a container that nobody wants could not be given to a stop job"
                        );
                    }
                }
            }
        }
        Ok(report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(id: WorkspaceId, ours: bool) -> ListedContainer {
        ListedContainer {
            name: id.container_name(),
            container_id: format!("container of {id}"),
            workspace_id: ours.then_some(id),
        }
    }

    fn known(id: WorkspaceId, removed: bool) -> NamedWorkspace {
        NamedWorkspace {
            id,
            removed,
            generation: 7,
        }
    }

    #[test]
    fn only_what_is_ours_and_has_no_row_or_a_removed_one_is_unwanted() {
        let id = WorkspaceId::random();
        let judged = |ours, rows: &[NamedWorkspace]| -> Vec<Option<i64>> {
            let found = orphans(&[listed(id, ours)], rows);
            found.into_iter().map(|orphan| orphan.generation).collect()
        };
        assert_eq!(judged(true, &[]), [None]);
        assert_eq!(judged(true, &[known(id, true)]), [Some(7)]);
        assert_eq!(judged(true, &[known(id, false)]), []);
        assert_eq!(judged(false, &[]), []);
        assert_eq!(judged(false, &[known(id, true)]), []);
        // Another workspace whose id begins the same has the same name.
        let text = id.to_string();
        let twin: WorkspaceId = format!("{}{}", &text[..24], "000000000000")
            .parse()
            .unwrap();
        assert_eq!(judged(true, &[known(twin, true)]), []);
        assert_eq!(judged(true, &[known(id, true), known(twin, false)]), []);
        assert_eq!(
            judged(true, &[known(id, true), known(twin, true)]),
            [Some(7)]
        );
    }
}
