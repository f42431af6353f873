//! `stale-tokens`: revokes the tokens of workspaces whose container is gone and that have not been heard for minutes
//! (`spec: lifecycle` §6.4, pass C).
//!
//! When a volume was wiped, the agent has no token on disk while live ones in the database make every registration a 401.
//! Without a live token its first registration is let in again.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use longshore_backends::Backend;
use longshore_base::WorkspaceId;
use longshore_fleet::sweep::{count_that_should_run, list_stale_holders, revoke_stale};
use longshore_fleet::workspace::organisation_root;
use longshore_jobs::{list_busy, reconcile};
use longshore_ledger::control::{Subject, open_controls};
use sqlx::{PgConnection, PgPool};

use crate::orphans::list_containers;
use crate::pass::{LEAST_BUDGET, Pass, PassError, PassReport, Reconciler};

const INTERVAL: Duration = Duration::from_secs(60);

pub(crate) struct StaleTokens {
    pub(crate) pool: PgPool,
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) engine_id: String,
}

impl StaleTokens {
    /// Those of the workspaces that no job is about and no hold covers.
    async fn free(
        &self,
        conn: &mut PgConnection,
        ids: Vec<WorkspaceId>,
    ) -> Result<Vec<WorkspaceId>, PassError> {
        let busy = list_busy(conn, &ids).await?;
        let controls = open_controls(conn).await?;
        let mut free = Vec::new();
        for id in ids.into_iter().filter(|id| !busy.contains(id)) {
            let tenant = organisation_root(conn, id).await?.to_string();
            let subject = Subject {
                kind: reconcile::KIND,
                place: Some(&self.engine_id),
                tenant: &tenant,
                workspace_id: Some(id),
            };
            if subject.closed_by(&controls).is_none() {
                free.push(id);
            }
        }
        Ok(free)
    }

    async fn revoke(&self, id: WorkspaceId) -> Result<bool, PassError> {
        let mut tx = self.pool.begin().await?;
        let revoked = revoke_stale(&mut tx, id, &self.engine_id).await?;
        tx.commit().await?;
        Ok(revoked)
    }
}

#[async_trait]
impl Reconciler for StaleTokens {
    fn name(&self) -> &'static str {
        "stale-tokens"
    }

    fn scope(&self) -> String {
        self.engine_id.clone()
    }

    fn interval(&self) -> Duration {
        INTERVAL
    }

    async fn pass(&self, pass: &Pass) -> Result<PassReport, PassError> {
        // Whoever made it: a container of that name is a reason to leave the tokens alone.
        let there: HashSet<String> = match list_containers(&*self.backend).await {
            Ok(listed) => listed.into_iter().map(|container| container.name).collect(),
            Err(report) => return Ok(report),
        };
        let mut conn = self.pool.acquire().await?;
        let stale = list_stale_holders(&mut conn, &self.engine_id).await?;
        let mut report = PassReport {
            seen: stale.len(),
            ..PassReport::default()
        };
        let gone = stale
            .into_iter()
            .filter(|id| !there.contains(&id.container_name()));
        let gone: Vec<_> = gone.collect();
        let unfree = gone.len();
        let gone = self.free(&mut conn, gone).await?;
        report.skipped = unfree - gone.len();
        if gone.len() > LEAST_BUDGET {
            let all = count_that_should_run(&mut conn, &self.engine_id).await?;
            report.seen = report.seen.max(all);
        }
        drop(conn);
        let wanted = gone.iter().map(ToString::to_string);
        if pass.may(&mut report, wanted.collect()) {
            for id in gone {
                match self.revoke(id).await {
                    Ok(true) => {
                        report.act(id);
                        tracing::warn!(
                            workspace.id = %id,
                            "tokens revoked: the container is gone and nobody used them, so the volume was likely wiped"
                        );
                    }
                    Ok(false) => report.skipped += 1,
                    Err(error) => {
                        report.failed += 1;
                        tracing::warn!(
                            workspace.id = %id, error = &*error as &dyn std::error::Error,
                            "stale tokens could not be revoked"
                        );
                    }
                }
            }
        }
        Ok(report)
    }
}
