//! Runs reconcilers: one pass each interval, by one owner at a time, supervised. Knows none of them.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use longshore_base::clock::Stopwatch;
use longshore_base::random;
use longshore_events::{NewEvent, append, names};
use longshore_ledger::ownership::{
    Block, Extra, Owned, Turn, record_pass, release, take, take_extra,
};
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::pass::{Pass, PassError, PassReport, Reconciler};

const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);
/// After so long without a failure the backoff begins anew (`spec: lifecycle` §6.8).
const HEALTHY_AFTER: Duration = Duration::from_secs(600);
/// How many of what a pass wanted its event names; the reconciler's own page has them all.
const TOLD: usize = 20;
/// A pass that takes longer is dropped. Within the time after which its turn is taken from it.
const LONGEST_PASS: Duration = Duration::from_secs(600);

/// Who the passes are made for.
#[derive(Clone)]
pub(crate) struct Owner {
    pub(crate) pool: PgPool,
    pub(crate) bus: longshore_events::EventBus,
    pub(crate) worker: Arc<dyn Fn() -> String + Send + Sync>,
}

/// A reconciler with what keeps its passes apart in this process.
pub(crate) struct Driven {
    reconciler: Arc<dyn Reconciler>,
    owner: Owner,
    one_at_a_time: Mutex<()>,
}

/// What became of a pass that was asked for.
pub(crate) enum Asked {
    /// It was made; this is its report.
    Passed(Value),
    /// Another pass is being made.
    Busy,
    /// It is disabled.
    Disabled,
    /// It was dropped because it was told to stop.
    Stopped,
}

/// A turn, with what it was granted for and to whom. Only under the lock: another pass of this worker has the same name.
struct Granted<'a> {
    owned: Owned<'a>,
    worker: &'a str,
    turn: Turn,
}

struct Backoff {
    next: Duration,
    since_failure: Stopwatch,
}

impl Backoff {
    fn new() -> Self {
        Self {
            next: FIRST_BACKOFF,
            since_failure: Stopwatch::start(),
        }
    }

    fn grow(&mut self) -> Duration {
        let healthy_for = self.since_failure.elapsed();
        self.since_failure = Stopwatch::start();
        let now = pause_after(self.next, healthy_for);
        self.next = (now * 2).min(LONGEST_BACKOFF);
        now
    }
}

fn pause_after(next: Duration, healthy_for: Duration) -> Duration {
    if healthy_for >= HEALTHY_AFTER {
        FIRST_BACKOFF
    } else {
        next
    }
}

impl Driven {
    pub(crate) fn new(reconciler: Arc<dyn Reconciler>, owner: Owner) -> Self {
        Self {
            reconciler,
            owner,
            one_at_a_time: Mutex::new(()),
        }
    }

    pub(crate) fn name(&self) -> &'static str {
        self.reconciler.name()
    }

    pub(crate) fn scope(&self) -> String {
        self.reconciler.scope()
    }

    /// Makes passes until told to stop, which drops the pass that is being made. A panic or an error costs a pass and a growing pause, never the loop.
    pub(crate) async fn drive(&self, stop: CancellationToken) {
        let mut backoff = Backoff::new();
        loop {
            let pause = match self.pass_by_the_clock(&stop).await {
                Ok(()) => random::jittered(self.reconciler.interval()),
                Err(error) => {
                    tracing::warn!(
                        reconciler = self.name(),
                        error = &*error as &dyn std::error::Error,
                        "a pass failed"
                    );
                    backoff.grow()
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    async fn pass_by_the_clock(&self, stop: &CancellationToken) -> Result<(), PassError> {
        let _alone = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            alone = self.one_at_a_time.lock() => alone,
        };
        let (scope, worker) = (self.scope(), (self.owner.worker)());
        let owned = self.owned(&scope);
        let interval = i32::try_from(self.reconciler.interval().as_secs()).unwrap_or(i32::MAX);
        if let Some(turn) = take(&self.owner.pool, owned, &worker, interval).await? {
            let granted = Granted {
                owned,
                worker: &worker,
                turn,
            };
            self.pass(&granted, false, stop.cancelled()).await?;
        }
        Ok(())
    }

    /// Makes one pass because somebody asked for it, unless one is being made, and drops it when `stop` ends.
    pub(crate) async fn pass_now(
        &self,
        dry_run: bool,
        stop: impl Future<Output = ()>,
    ) -> Result<Asked, PassError> {
        let Ok(_alone) = self.one_at_a_time.try_lock() else {
            return Ok(Asked::Busy);
        };
        let (scope, worker) = (self.scope(), (self.owner.worker)());
        let owned = self.owned(&scope);
        let turn = match take_extra(&self.owner.pool, owned, &worker, dry_run).await? {
            Extra::Granted(turn) => turn,
            Extra::Busy => return Ok(Asked::Busy),
            Extra::Disabled => return Ok(Asked::Disabled),
        };
        let granted = Granted {
            owned,
            worker: &worker,
            turn,
        };
        let kept = self.pass(&granted, dry_run, stop).await?;
        Ok(kept.map_or(Asked::Stopped, Asked::Passed))
    }

    fn owned<'a>(&self, scope: &'a str) -> Owned<'a> {
        Owned {
            name: self.name(),
            scope,
        }
    }

    /// Makes a pass and answers what is kept of it; nothing, if it was dropped because `stop` ended. A turn that no record
    /// has ended is given back.
    async fn pass(
        &self,
        granted: &Granted<'_>,
        dry_run: bool,
        stop: impl Future<Output = ()>,
    ) -> Result<Option<Value>, PassError> {
        let passed = self.pass_and_record(granted, dry_run, stop).await;
        if dry_run || !matches!(passed, Ok(Some(_))) {
            self.give_back(granted).await;
        }
        passed
    }

    async fn give_back(&self, Granted { owned, worker, .. }: &Granted<'_>) {
        if let Err(error) = release(&self.owner.pool, *owned, worker).await {
            tracing::warn!(
                reconciler = owned.name,
                scope = owned.scope,
                error = &error as &dyn std::error::Error,
                "the turn could not be given back; nobody else makes a pass for 15 minutes"
            );
        }
    }

    async fn pass_and_record(
        &self,
        granted: &Granted<'_>,
        dry_run: bool,
        stop: impl Future<Output = ()>,
    ) -> Result<Option<Value>, PassError> {
        let pass = Pass {
            dry_run,
            approved: granted.turn.approved.clone(),
        };
        let took = Stopwatch::start();
        let made = tokio::select! {
            biased;
            made = self.make(&pass) => made,
            () = stop => return Ok(None),
        };
        let report = made?;
        self.tell(&report, &took);
        let mut kept = serde_json::to_value(&report)?;
        kept["took_ms"] = took.elapsed_ms().into();
        if !dry_run {
            self.record(&report, &kept, granted).await?;
        }
        Ok(Some(kept))
    }

    /// The pass itself; a panic, or that it takes too long, is an error.
    async fn make(&self, pass: &Pass) -> Result<PassReport, PassError> {
        let made = AssertUnwindSafe(self.reconciler.pass(pass)).catch_unwind();
        match tokio::time::timeout(LONGEST_PASS, made).await {
            Ok(Ok(made)) => made,
            Ok(Err(_panic)) => {
                tracing::error!(reconciler = self.name(), "a pass panicked");
                Err("it panicked".into())
            }
            Err(_elapsed) => Err("it took longer than 10 minutes and was dropped".into()),
        }
    }

    fn tell(&self, report: &PassReport, took: &Stopwatch) {
        let name = self.name();
        metrics::counter!("longshore_reconciler_passes_total", "reconciler" => name).increment(1);
        metrics::counter!("longshore_reconciler_acted_total", "reconciler" => name)
            .increment(report.acted as u64);
        if report.acted > 0 || report.failed > 0 {
            tracing::info!(
                reconciler = name, scope = self.scope(), seen = report.seen, acted = report.acted, failed = report.failed,
                sample = ?report.sample, note = report.note, took_ms = took.elapsed_ms(), "reconciler pass"
            );
        }
    }

    async fn record(
        &self,
        report: &PassReport,
        kept: &Value,
        granted: &Granted<'_>,
    ) -> Result<(), PassError> {
        let Granted {
            owned,
            worker,
            turn,
        } = granted;
        let (name, scope) = (self.name(), owned.scope);
        let blocked = report
            .blocked
            .as_ref()
            .map(serde_json::to_value)
            .transpose()?;
        let mut tx = self.owner.pool.begin().await?;
        let block = match &blocked {
            Some(blocked) => Block::Blocked(blocked),
            None if report.is_blind => Block::Unknown,
            None => Block::Free,
        };
        if !record_pass(&mut tx, *owned, worker, turn, (kept, block)).await? {
            tx.rollback().await?;
            return Err(format!(
                "worker {worker} lost its turn before the pass ended, so nothing is kept of it"
            )
            .into());
        }
        let newly = report.blocked.as_ref().filter(|_| !turn.was_blocked);
        if let Some(blocked) = newly {
            let event = NewEvent {
                event_type: names::RECONCILER_BLOCKED,
                workspace_id: None,
                payload: json!({
                    "name": name, "scope": scope, "reason": blocked.reason, "budget": blocked.budget,
                    "count": blocked.wanted.len(), "wanted": blocked.wanted.iter().take(TOLD).collect::<Vec<_>>(),
                }),
            };
            append(&mut tx, event).await?;
        }
        tx.commit().await?;
        if let Some(blocked) = &report.blocked {
            metrics::counter!("longshore_reconciler_blocked_total", "reconciler" => name)
                .increment(1);
            tracing::error!(
                reconciler = name,
                scope,
                budget = blocked.budget,
                wanted = blocked.wanted.len(),
                "a pass wanted to destroy more than it may and destroyed nothing: look at GET /reconcilers/{name}, then \
                 approve it, or disable it"
            );
        }
        if newly.is_some() {
            self.owner.bus.poke();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
