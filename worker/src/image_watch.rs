//! `image-watch`: restarts what runs on a moving tag when the tag moves (`spec: lifecycle` §6.6).
//!
//! Off unless `IMAGE_AUTO_REFRESH` is set. A first look at a tag only remembers what it names. What is pinned, or in a
//! rollout, is left to whoever decided that. An image that cannot be fetched moves nothing: the next pass tries again.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use longshore_backends::{Backend, Unwatched};
use longshore_base::WorkspaceId;
use longshore_fleet::Fleet;
use longshore_fleet::images::{
    Followed, list_followed, list_followers, normalise_digest, record_seen, settle,
};
use longshore_fleet::workspace::lock_workspace;
use longshore_jobs::restart::{Source, request_after_change};
use longshore_ledger::Admitter;
use sqlx::PgPool;

use crate::pass::{Pass, PassError, PassReport, Reconciler};

const INTERVAL: Duration = Duration::from_secs(300);
/// Between the restarts of two workspaces, so that a fleet does not go down at once.
const APART: Duration = Duration::from_millis(500);

pub(crate) struct ImageWatch {
    pub(crate) pool: PgPool,
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) admitter: Admitter,
}

impl ImageWatch {
    /// Looks at one tag. Who is to be restarted for it joins `outdated`.
    async fn look(
        &self,
        pass: &Pass,
        followed: &Followed,
        (report, outdated): (&mut PassReport, &mut Vec<WorkspaceId>),
    ) -> Result<(), PassError> {
        let Followed {
            runtime, reference, ..
        } = followed;
        let named = self.backend.tag_digest(reference).await?;
        let digest = normalise_digest(&named)
            .ok_or_else(|| format!("the registry names something that is no digest: {named}"))?;
        let is_first = followed.digest.is_none();
        let moves = !is_first && followed.digest.as_ref() != Some(&digest);
        if moves && !pass.dry_run {
            // Once here, so that one that cannot be fetched takes nobody down.
            self.backend.fetch_image(reference, &Unwatched).await?;
        }
        let mut tx = self.pool.begin().await?;
        if is_first || moves {
            record_seen(&mut tx, followed, &digest).await?;
        }
        if moves || followed.has_moved {
            let followers = list_followers(&mut tx, runtime).await?;
            report.seen += followers.len();
            let before = outdated.len();
            outdated.extend(
                followers
                    .iter()
                    .filter(|one| one.is_outdated)
                    .map(|one| one.id),
            );
            if outdated.len() == before {
                settle(&mut tx, runtime).await?;
            }
        }
        pass.keep(tx).await?;
        if moves && !pass.dry_run {
            tracing::info!(runtime, image = reference, digest, "a moving tag has moved");
        }
        Ok(())
    }

    async fn restart(&self, id: WorkspaceId, delay: Duration) -> Result<bool, PassError> {
        let mut tx = self.pool.begin().await?;
        let Some(workspace) = lock_workspace(&mut tx, id).await? else {
            return Ok(false);
        };
        let asked =
            request_after_change(&mut tx, &workspace, Source::Image, delay, self.name()).await?;
        tx.commit().await?;
        if let Some(job) = &asked {
            self.admitter.poke(&job.queue);
        }
        Ok(asked.is_some())
    }
}

#[async_trait]
impl Reconciler for ImageWatch {
    fn name(&self) -> &'static str {
        "image-watch"
    }

    fn scope(&self) -> String {
        "all".into()
    }

    fn interval(&self) -> Duration {
        INTERVAL
    }

    async fn pass(&self, pass: &Pass) -> Result<PassReport, PassError> {
        let followed = list_followed(&mut *self.pool.acquire().await?, &self.fleet).await?;
        let mut report = PassReport::default();
        let mut outdated = Vec::new();
        for one in &followed {
            if let Err(error) = self.look(pass, one, (&mut report, &mut outdated)).await {
                report.failed += 1;
                tracing::warn!(
                    runtime = one.runtime,
                    image = one.reference,
                    error = &*error as &dyn std::error::Error,
                    "an image could not be looked at or fetched; the next pass tries again"
                );
            }
        }
        let wanted = outdated.iter().map(ToString::to_string);
        if pass.may(&mut report, wanted.collect()) {
            let mut delay = Duration::ZERO;
            for id in outdated {
                match self.restart(id, delay).await {
                    Ok(true) => {
                        report.act(id);
                        delay += APART;
                    }
                    Ok(false) => report.skipped += 1,
                    Err(error) => {
                        report.failed += 1;
                        tracing::warn!(
                            workspace.id = %id, error = &*error as &dyn std::error::Error,
                            "a workspace on an older image could not be restarted"
                        );
                    }
                }
            }
        }
        Ok(report)
    }
}
