//! Runs reconcilers: one pass each interval, by one owner at a time, supervised. Knows none of them.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt as _;
use longshore_base::clock::Stopwatch;
use longshore_base::random;
use longshore_ledger::ownership::{Owned, record_pass, take};
use serde::Serialize;
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);

/// What a pass saw and did.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct PassReport {
    /// Things looked at.
    pub(crate) seen: usize,
    /// Things changed.
    pub(crate) acted: usize,
    /// Things left alone on purpose.
    pub(crate) skipped: usize,
    /// Things that could not be looked at or changed.
    pub(crate) failed: usize,
    /// A few of what was acted on.
    pub(crate) sample: Vec<String>,
}

/// How many a report names.
const SAMPLE: usize = 10;

impl PassReport {
    /// Of a pass that looked only at what it then acted on.
    pub(crate) fn of_acted(on: impl ExactSizeIterator<Item = impl ToString>) -> Self {
        Self {
            seen: on.len(),
            acted: on.len(),
            sample: on.take(SAMPLE).map(|one| one.to_string()).collect(),
            ..Self::default()
        }
    }
}

/// Why a pass could not be made.
pub(crate) type PassError = Box<dyn std::error::Error + Send + Sync>;

/// Something that keeps something true: one pass over wanted and actual, without a loop and without a hint about what
/// changed.
#[async_trait]
pub(crate) trait Reconciler: Send + Sync + 'static {
    /// Its name, as operators know it.
    fn name(&self) -> &'static str;
    /// The part of the world it looks at.
    fn scope(&self) -> String;
    /// Time between passes.
    fn interval(&self) -> Duration;
    /// One pass.
    async fn pass(&self) -> Result<PassReport, PassError>;
}

/// Who the passes are made for.
#[derive(Clone)]
pub(crate) struct Owner {
    pub(crate) pool: PgPool,
    pub(crate) worker: Arc<dyn Fn() -> String + Send + Sync>,
}

/// Runs one reconciler until told to stop. A panic or an error costs a pass and a growing pause, never the loop.
pub(crate) async fn drive(reconciler: Arc<dyn Reconciler>, owner: Owner, stop: CancellationToken) {
    let mut backoff = FIRST_BACKOFF;
    loop {
        let pause = match AssertUnwindSafe(one_pass(&*reconciler, &owner))
            .catch_unwind()
            .await
        {
            Ok(Ok(())) => {
                backoff = FIRST_BACKOFF;
                random::jittered(reconciler.interval())
            }
            Ok(Err(error)) => {
                tracing::warn!(
                    reconciler = reconciler.name(),
                    error = &*error as &dyn std::error::Error,
                    "a pass failed"
                );
                grow(&mut backoff)
            }
            Err(_panic) => {
                tracing::error!(reconciler = reconciler.name(), "a pass panicked");
                grow(&mut backoff)
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

fn grow(backoff: &mut Duration) -> Duration {
    let now = *backoff;
    *backoff = (now * 2).min(LONGEST_BACKOFF);
    now
}

async fn one_pass(reconciler: &dyn Reconciler, owner: &Owner) -> Result<(), PassError> {
    let scope = reconciler.scope();
    let owned = Owned {
        name: reconciler.name(),
        scope: &scope,
    };
    let worker = (owner.worker)();
    let interval = i32::try_from(reconciler.interval().as_secs()).unwrap_or(i32::MAX);
    if !take(&owner.pool, owned, &worker, interval).await? {
        return Ok(());
    }
    let took = Stopwatch::start();
    let report = reconciler.pass().await?;
    metrics::counter!("longshore_reconciler_passes_total", "reconciler" => reconciler.name())
        .increment(1);
    metrics::counter!("longshore_reconciler_acted_total", "reconciler" => reconciler.name())
        .increment(report.acted as u64);
    if report.acted > 0 || report.failed > 0 {
        tracing::info!(
            reconciler = reconciler.name(), seen = report.seen, acted = report.acted, failed = report.failed, sample = ?report.sample,
            took_ms = took.elapsed_ms(), "reconciler pass"
        );
    }
    let mut kept = serde_json::to_value(&report)?;
    if let Some(kept) = kept.as_object_mut() {
        kept.insert("took_ms".into(), took.elapsed_ms().into());
    }
    record_pass(&owner.pool, owned, &worker, &kept).await?;
    Ok(())
}
