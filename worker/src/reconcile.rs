//! `reconcile` jobs: the reconcilers of this worker, and making a pass of one because it was asked for.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use longshore_jobs::reconcile::Args;
use longshore_ledger::{Executor, JobError, RunContext, Verdict};

use crate::driver::{Asked, Driven};

/// How soon a pass that cannot be made yet is tried again.
const SOON: Duration = Duration::from_secs(1);

type ByNameAndScope = HashMap<(String, String), Arc<Driven>>;

/// The reconcilers that this worker drives.
#[derive(Clone, Default)]
pub(crate) struct Reconcilers(Arc<RwLock<ByNameAndScope>>);

impl Reconcilers {
    pub(crate) fn add(&self, driven: &Arc<Driven>) {
        let key = (driven.name().to_owned(), driven.scope());
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        all.insert(key, Arc::clone(driven));
    }

    fn find(&self, args: &Args) -> Option<Arc<Driven>> {
        let key = (args.name.clone(), args.scope.clone());
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        all.get(&key).cloned()
    }
}

pub(crate) struct ReconcileExecutor(pub(crate) Reconcilers);

#[async_trait]
impl Executor for ReconcileExecutor {
    async fn run(&self, ctx: &RunContext) -> Verdict {
        let job = ctx.job();
        let args: Args = match job.read_args() {
            Ok(args) => args,
            Err(unreadable) => return Verdict::Permanent(unreadable),
        };
        let Args {
            name,
            scope,
            dry_run,
        } = &args;
        let Some(driven) = self.0.find(&args) else {
            return Verdict::Snooze(
                SOON,
                format!("this worker has no reconciler {name} for {scope} yet"),
            );
        };
        tracing::info!(job.id = %job.id, job.kind = job.kind, reconciler = name, scope, dry_run, by = job.created_by, "reconcile entered");
        match driven.pass_now(*dry_run, ctx.stopping()).await {
            Ok(Asked::Passed(report)) => Verdict::Done(Some(report)),
            Ok(Asked::Busy) => {
                Verdict::Snooze(SOON, format!("another pass of {name} is being made"))
            }
            Ok(Asked::Stopped) => ctx.stopped_verdict(),
            Ok(Asked::Disabled) => Verdict::Permanent(JobError::plain(format!(
                "reconciler {name} is disabled for {scope}; enable it first, or make a dry run"
            ))),
            Err(error) => {
                let failure = JobError::new(format!("the pass of {name} failed"), &*error);
                tracing::warn!(job.id = %job.id, reconciler = name, scope, detail = failure.detail, "a pass that was asked for failed");
                Verdict::Retry(failure)
            }
        }
    }
}
