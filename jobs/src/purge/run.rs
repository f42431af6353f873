//! One run of a purge.
//!
//! ```text
//! entered → stop i/n, volumes i/n (descendants beside each other, the root last) → keys
//!         → with `purge`, once nothing is left: [tx: rows] → namespaces i/n → done
//! ```
//! Right when killed anywhere: stops and volumes are gone when they are gone, rows go in one transaction that also says so,
//! and namespaces are forgotten again by the next run.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::{FutureExt as _, StreamExt as _, stream};
use longshore_backends::{Backend, BackendError, Backends, VolumeScope};
use longshore_base::{WorkspaceId, failpoint, random};
use longshore_fleet::Fleet;
use longshore_fleet::leaks::resolve_leak;
use longshore_fleet::workspace::{
    Purged, Workspace, clear_footprints, find_workspaces, purge_workspaces,
};
use longshore_ledger::{Executor, JobError, Progress, RunContext, Verdict};
use serde_json::json;

use super::{Args, Checkpoint, Failed, Namespaces, Part, read_checkpoint};
use crate::stopping::Running;
use crate::{instances, verdicts};

/// Longest that one workspace may take, stop and volumes together.
const ONE_WITHIN: Duration = Duration::from_secs(30);
/// Descendants taken down beside each other.
const AT_ONCE: usize = 8;
/// Between two looks at an engine that is away.
const LOOK_AGAIN: Duration = Duration::from_secs(15);
/// Workspaces that an error names.
const NAMED: usize = 10;

/// Runs purges.
pub struct PurgeExecutor {
    /// Rows and the keys of workspaces.
    pub fleet: Arc<Fleet>,
    /// Where workspaces run.
    pub backends: Arc<Backends>,
    /// Where their memories are, if a memory plugin is configured.
    pub namespaces: Option<Arc<dyn Namespaces>>,
}

/// Something that could not be taken down, with the whole story.
struct Failure {
    failed: Failed,
    detail: String,
    /// Nobody answers; it says nothing of this workspace.
    away: bool,
}

#[async_trait]
impl Executor for PurgeExecutor {
    async fn run(&self, ctx: &RunContext) -> Verdict {
        let job = ctx.job();
        let args: Args = match job.read_args() {
            Ok(args) => args,
            Err(unreadable) => return Verdict::Permanent(unreadable),
        };
        tracing::info!(
            workspace.id = %args.root_id, job.id = %job.id, job.kind = job.kind, attempt = job.attempt,
            workspaces = args.ids.len(), purge = args.purge, "purge entered"
        );
        let ended = Run {
            executor: self,
            ctx,
            args: &args,
            before: read_checkpoint(job.checkpoint.clone()),
        };
        match ended.to_the_end().await {
            Ok(verdict) | Err(verdict) => verdict,
        }
    }
}

struct Run<'a> {
    executor: &'a PurgeExecutor,
    ctx: &'a RunContext,
    args: &'a Args,
    before: Checkpoint,
}

impl Run<'_> {
    /// Both sides are verdicts; the error is one that came before the end.
    async fn to_the_end(&self) -> Result<Verdict, Verdict> {
        let rows = self.enter().await?;
        failpoint::hit("purge.entered").await;
        let here: Vec<_> = rows
            .iter()
            .filter(|row| row.may_have_run() && row.engine_id == self.args.engine_id)
            .collect();
        let failures = self.take_down_all(&here).await?;
        failpoint::hit("purge.taken_down").await;
        let presence = &self.executor.fleet.presence;
        for row in &rows {
            presence.clear(row.id).await;
        }
        let taken: Vec<_> = here
            .iter()
            .map(|row| row.id)
            .filter(|id| failures.iter().all(|failure| failure.failed.id != *id))
            .collect();
        if self.args.purge && !taken.is_empty() {
            let mut tx = self
                .ctx
                .begin()
                .await
                .map_err(|fenced| verdicts::of_fence(&fenced))?;
            clear_footprints(tx.connection(), &taken)
                .await
                .map_err(|error| verdicts::of_fleet(&error))?;
            tx.commit()
                .await
                .map_err(|fenced| verdicts::of_fence(&fenced))?;
        }
        if !failures.is_empty() {
            return Err(self.not_taken_down(failures).await);
        }
        if !self.args.purge {
            return Ok(Verdict::Done(Some(json!({ "stopped": here.len() }))));
        }
        let deleted = self.delete_rows().await?;
        failpoint::hit("purge.rows_deleted").await;
        let namespaces = match (&deleted, &self.executor.namespaces) {
            (Rows::LeftToAnother(_), _) => json!("left to the job that deletes the rows"),
            (Rows::Deleted, None) => {
                tracing::info!(
                    workspace.id = %self.args.root_id, job.id = %self.ctx.job().id,
                    "no memory plugin is configured; no namespace was forgotten"
                );
                json!("no memory plugin is configured")
            }
            (Rows::Deleted, Some(namespaces)) => self.forget(&**namespaces).await?,
        };
        let rows = match &deleted {
            Rows::Deleted => json!("deleted"),
            Rows::LeftToAnother(ids) => json!({ "waiting_for": ids }),
        };
        Ok(Verdict::Done(Some(
            json!({ "stopped": here.len(), "rows": rows, "namespaces": namespaces }),
        )))
    }

    async fn enter(&self) -> Result<Vec<Workspace>, Verdict> {
        let mut tx = self
            .ctx
            .begin()
            .await
            .map_err(|fenced| verdicts::of_fence(&fenced))?;
        tx.record_progress(&progress("entered", None))
            .await
            .map_err(|fenced| verdicts::of_fence(&fenced))?;
        let rows = find_workspaces(tx.connection(), &self.args.ids)
            .await
            .map_err(|error| verdicts::of_fleet(&error))?;
        tx.commit()
            .await
            .map_err(|fenced| verdicts::of_fence(&fenced))?;
        Ok(rows)
    }

    /// Descendants beside each other, the root last, each once whatever became of the others.
    async fn take_down_all(&self, here: &[&Workspace]) -> Result<Vec<Failure>, Verdict> {
        if here.is_empty() {
            return Ok(Vec::new());
        }
        let Ok(backend) = self.executor.backends.choose() else {
            let none = |row: &&Workspace| Failure {
                failed: Failed {
                    id: row.id,
                    what: Part::Stop,
                    backend: None,
                    error: "no backend is available to stop it".into(),
                },
                detail: "no backend is configured".into(),
                away: true,
            };
            return Ok(here.iter().map(none).collect());
        };
        let begun = AtomicUsize::new(0);
        let (root, descendants): (Vec<_>, Vec<_>) = here
            .iter()
            .copied()
            .partition(|row| row.id == self.args.root_id);
        let one = |row| self.take_down(&*backend, row, (&begun, here.len()));
        let descendants: Vec<_> = descendants.into_iter().map(&one).collect();
        let mut ended: Vec<_> = stream::iter(descendants)
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        for row in root {
            ended.push(one(row).await);
        }
        let ended: Result<Vec<_>, _> = ended.into_iter().collect();
        Ok(ended?.into_iter().flatten().collect())
    }

    async fn take_down(
        &self,
        backend: &dyn Backend,
        row: &Workspace,
        (begun, all): (&AtomicUsize, usize),
    ) -> Result<Option<Failure>, Verdict> {
        let id = row.id;
        let number = begun.fetch_add(1, Ordering::Relaxed) + 1;
        let down = async {
            self.tell("stop", (number, all)).await?;
            let mut running = Running::from(row);
            let settled = instances::settle_before_stop(self.ctx, backend, id).await;
            match settled.map_err(instances::verdict_of)? {
                Ok(Some(instance)) => running.instance_id = Some(instance),
                Ok(None) => {}
                Err(why) => return Ok(Some(not_known_yet(backend, id, why))),
            }
            let target = running.target();
            let stopped = instances::stop(self.ctx, backend, &target).await;
            if let Err(error) = stopped.map_err(instances::verdict_of)? {
                return Ok(Some(self.failure(backend, id, Part::Stop, &error)));
            }
            instances::forget(self.ctx, &target)
                .await
                .map_err(instances::verdict_of)?;
            self.forget_leak(backend, &running).await?;
            self.tell("volumes", (number, all)).await?;
            let scope = if self.args.purge {
                VolumeScope::All
            } else {
                VolumeScope::ConfigAndSessions
            };
            let removed = backend.remove_volumes(id, scope).await;
            Ok(removed
                .err()
                .map(|error| self.failure(backend, id, Part::Volumes, &error)))
        };
        tokio::time::timeout(ONE_WITHIN, down)
            .await
            .unwrap_or_else(|_| {
                let seconds = ONE_WITHIN.as_secs();
                Ok(Some(Failure {
                    failed: Failed {
                        id,
                        what: Part::Stop,
                        backend: Some(backend.kind().to_owned()),
                        error: format!("not stopped within {seconds} s"),
                    },
                    detail: "the backend took too long".into(),
                    away: false,
                }))
            })
    }

    /// What a purge before had left running is gone now.
    async fn forget_leak(&self, backend: &dyn Backend, running: &Running) -> Result<(), Verdict> {
        let name = running.workspace_id.container_name();
        let left = running.left(backend.kind(), &name);
        let mut tx = self
            .ctx
            .begin()
            .await
            .map_err(|fenced| verdicts::of_fence(&fenced))?;
        let resolved = resolve_leak(tx.connection(), &left).await;
        if resolved.map_err(|error| verdicts::of_fleet(&error))? {
            tx.commit()
                .await
                .map_err(|fenced| verdicts::of_fence(&fenced))?;
        }
        Ok(())
    }

    fn failure(
        &self,
        backend: &dyn Backend,
        id: WorkspaceId,
        what: Part,
        error: &BackendError,
    ) -> Failure {
        let away = matches!(error, BackendError::NotAvailable(_));
        let detail = error.chain();
        tracing::warn!(
            workspace.id = %id, job.id = %self.ctx.job().id, ?what, error = detail, "a removed workspace could not be taken down yet"
        );
        Failure {
            failed: Failed {
                id,
                what,
                backend: Some(backend.kind().to_owned()),
                error: error.to_string(),
            },
            detail,
            away,
        }
    }

    /// Leaves what has failed for whoever waits and for the next run. While the engine is away, every look after the first
    /// costs no attempt: it is there when it is back, however long that takes.
    async fn not_taken_down(&self, failures: Vec<Failure>) -> Verdict {
        let away = failures.iter().all(|failure| failure.away);
        let error = describe(&failures, self.args.ids.len());
        let failed = failures.into_iter().map(|failure| failure.failed);
        let left = Checkpoint {
            passes: self.before.passes + 1,
            failed: failed.collect(),
            rows_failed: false,
            ..self.before
        };
        if let Err(verdict) = self.leave(&left).await {
            return verdict;
        }
        if away && self.ctx.job().attempt > 0 {
            Verdict::Snooze(random::jittered(LOOK_AGAIN), error.public)
        } else {
            Verdict::Retry(error)
        }
    }

    async fn delete_rows(&self) -> Result<Rows, Verdict> {
        let deleted = async {
            let mut tx = self
                .ctx
                .begin()
                .await
                .map_err(|fenced| verdicts::of_fence(&fenced))?;
            let purged = purge_workspaces(tx.connection(), &self.args.ids).await;
            match purged.map_err(|error| verdicts::of_fleet(&error))? {
                Purged::Leftovers(ids) => return Ok(Rows::LeftToAnother(ids)),
                // Somebody else has deleted them; a run of this job before, if it says so.
                Purged::Rows(0) if !self.before.rows_deleted => {
                    return Ok(Rows::LeftToAnother(Vec::new()));
                }
                Purged::Rows(_) => {}
            }
            let left = Checkpoint {
                rows_deleted: true,
                ..self.before.clone()
            };
            tx.record_checkpoint(json!(left))
                .await
                .map_err(|fenced| verdicts::of_fence(&fenced))?;
            tx.commit()
                .await
                .map_err(|fenced| verdicts::of_fence(&fenced))?;
            Ok::<_, Verdict>(Rows::Deleted)
        };
        match deleted.await {
            Err(Verdict::Retry(error)) => {
                let left = Checkpoint {
                    passes: self.before.passes + 1,
                    failed: Vec::new(),
                    rows_failed: true,
                    ..self.before
                };
                self.leave(&left).await?;
                Err(Verdict::Retry(error))
            }
            other => other,
        }
    }

    /// One call for each, whatever becomes of it.
    async fn forget(&self, namespaces: &dyn Namespaces) -> Result<serde_json::Value, Verdict> {
        let (mut forgotten, mut not_forgotten) = (0, Vec::new());
        for (index, id) in self.args.ids.iter().enumerate() {
            self.tell("namespaces", (index + 1, self.args.ids.len()))
                .await?;
            let caught = AssertUnwindSafe(namespaces.forget(*id)).catch_unwind();
            match caught.await {
                Ok(Ok(())) => forgotten += 1,
                Ok(Err(error)) => {
                    tracing::warn!(workspace.id = %id, error = &*error as &dyn std::error::Error, "its memories could not be forgotten");
                    not_forgotten.push(*id);
                }
                Err(_panic) => {
                    tracing::error!(workspace.id = %id, "forgetting its memories panicked");
                    not_forgotten.push(*id);
                }
            }
        }
        Ok(json!({ "forgotten": forgotten, "not_forgotten": not_forgotten }))
    }

    /// Shows a step, and ends the run if it lost its right or was told to stop.
    async fn tell(&self, step: &'static str, (number, all): (usize, usize)) -> Result<(), Verdict> {
        if self.ctx.stopped().is_some() {
            return Err(self.ctx.stopped_verdict());
        }
        let mut tx = self
            .ctx
            .begin()
            .await
            .map_err(|fenced| verdicts::of_fence(&fenced))?;
        tx.make_forgettable()
            .await
            .map_err(|fenced| verdicts::of_fence(&fenced))?;
        tx.record_progress(&progress(step, Some((number, all))))
            .await
            .map_err(|fenced| verdicts::of_fence(&fenced))?;
        tx.commit()
            .await
            .map_err(|fenced| verdicts::of_fence(&fenced))
    }

    async fn leave(&self, checkpoint: &Checkpoint) -> Result<(), Verdict> {
        let mut tx = self
            .ctx
            .begin()
            .await
            .map_err(|fenced| verdicts::of_fence(&fenced))?;
        tx.record_checkpoint(json!(checkpoint))
            .await
            .map_err(|fenced| verdicts::of_fence(&fenced))?;
        tx.commit()
            .await
            .map_err(|fenced| verdicts::of_fence(&fenced))
    }
}

/// What may run for it nobody can say before its start was settled; that costs no attempt.
fn not_known_yet(backend: &dyn Backend, id: WorkspaceId, why: String) -> Failure {
    Failure {
        failed: Failed {
            id,
            what: Part::Stop,
            backend: Some(backend.kind().to_owned()),
            error: why.clone(),
        },
        detail: why,
        away: true,
    }
}

/// What became of the rows.
enum Rows {
    Deleted,
    /// Of these something may still be on other engines, whose jobs go on; or another job has deleted them.
    LeftToAnother(Vec<WorkspaceId>),
}

fn describe(failures: &[Failure], all: usize) -> JobError {
    let named = failures.iter().take(NAMED).map(|failure| {
        let what = match failure.failed.what {
            Part::Stop => "not stopped",
            Part::Volumes => "its volumes are still there",
        };
        format!("{} {what}: {}", failure.failed.id, failure.failed.error)
    });
    let named: Vec<_> = named.collect();
    let details: Vec<_> = failures
        .iter()
        .take(NAMED)
        .map(|failure| failure.detail.as_str())
        .collect();
    JobError {
        public: format!(
            "{} of {all} workspaces could not be taken down: {}",
            failures.len(),
            named.join("; ")
        ),
        detail: details.join("; "),
    }
}

fn progress(step: &'static str, of: Option<(usize, usize)>) -> Progress {
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    Progress {
        step: match of {
            Some((number, all)) => format!("{step} {number}/{all}"),
            None => step.to_owned(),
        },
        steps_done: of.map_or(0, |(number, _)| count(number - 1)),
        steps_total: of.map(|(_, all)| count(all)),
        message: None,
        percent: None,
    }
}
