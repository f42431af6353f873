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

    /// Makes passes until told to stop. A panic or an error costs a pass and a growing pause, never the loop.
    pub(crate) async fn drive(&self, stop: CancellationToken) {
        let mut backoff = Backoff::new();
        loop {
            let pause = match AssertUnwindSafe(self.pass_by_the_clock())
                .catch_unwind()
                .await
            {
                Ok(Ok(())) => random::jittered(self.reconciler.interval()),
                Ok(Err(error)) => {
                    tracing::warn!(
                        reconciler = self.name(),
                        error = &*error as &dyn std::error::Error,
                        "a pass failed"
                    );
                    backoff.grow()
                }
                Err(_panic) => {
                    tracing::error!(reconciler = self.name(), "a pass panicked");
                    self.give_back().await;
                    backoff.grow()
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    async fn pass_by_the_clock(&self) -> Result<(), PassError> {
        let _alone = self.one_at_a_time.lock().await;
        let scope = self.scope();
        let interval = i32::try_from(self.reconciler.interval().as_secs()).unwrap_or(i32::MAX);
        let worker = (self.owner.worker)();
        if let Some(turn) = take(&self.owner.pool, self.owned(&scope), &worker, interval).await? {
            self.pass(turn, false).await?;
        }
        Ok(())
    }

    /// Makes one pass because somebody asked for it.
    pub(crate) async fn pass_now(&self, dry_run: bool) -> Result<Asked, PassError> {
        let _alone = self.one_at_a_time.lock().await;
        let scope = self.scope();
        let worker = (self.owner.worker)();
        let extra = take_extra(&self.owner.pool, self.owned(&scope), &worker, dry_run).await?;
        Ok(match extra {
            Extra::Granted(turn) => Asked::Passed(self.pass(turn, dry_run).await?),
            Extra::Busy => Asked::Busy,
            Extra::Disabled => Asked::Disabled,
        })
    }

    /// Gives back the turn of a pass that was dropped.
    pub(crate) async fn give_back(&self) {
        let scope = self.scope();
        let worker = (self.owner.worker)();
        if let Err(error) = release(&self.owner.pool, self.owned(&scope), &worker).await {
            tracing::warn!(
                reconciler = self.name(),
                scope,
                error = &error as &dyn std::error::Error,
                "the turn could not be given back; nobody else makes a pass for 15 minutes"
            );
        }
    }

    fn owned<'a>(&self, scope: &'a str) -> Owned<'a> {
        Owned {
            name: self.name(),
            scope,
        }
    }

    async fn pass(&self, turn: Turn, dry_run: bool) -> Result<Value, PassError> {
        let pass = Pass {
            dry_run,
            approved: turn.approved,
        };
        let took = Stopwatch::start();
        let made = tokio::time::timeout(LONGEST_PASS, self.reconciler.pass(&pass)).await;
        let report = match made {
            Ok(Ok(report)) => report,
            failed => {
                self.give_back().await;
                return Err(match failed {
                    Ok(Err(error)) => error,
                    _ => "it took longer than 10 minutes and was dropped".into(),
                });
            }
        };
        self.tell(&report, &took);
        let mut kept = serde_json::to_value(&report)?;
        kept["took_ms"] = took.elapsed_ms().into();
        if dry_run {
            self.give_back().await;
        } else {
            self.record(&report, &kept, turn.was_blocked).await?;
        }
        Ok(kept)
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
        was_blocked: bool,
    ) -> Result<(), PassError> {
        let (name, scope) = (self.name(), self.scope());
        let blocked = report
            .blocked
            .as_ref()
            .map(serde_json::to_value)
            .transpose()?;
        let mut tx = self.owner.pool.begin().await?;
        let worker = (self.owner.worker)();
        let block = match &blocked {
            Some(blocked) => Block::Blocked(blocked),
            None if report.is_blind => Block::Unknown,
            None => Block::Free,
        };
        record_pass(&mut tx, self.owned(&scope), &worker, kept, block).await?;
        let newly = report.blocked.as_ref().filter(|_| !was_blocked);
        if let Some(blocked) = newly {
            let event = NewEvent {
                event_type: names::RECONCILER_BLOCKED,
                workspace_id: None,
                payload: json!({
                    "name": name, "scope": scope, "reason": blocked.reason, "wanted": blocked.wanted,
                    "budget": blocked.budget,
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
mod tests {
    use super::*;

    #[test]
    fn the_backoff_grows_to_its_cap_and_begins_anew_after_ten_healthy_minutes() {
        let mut backoff = Backoff::new();
        let pauses: Vec<u64> = (0..7).map(|_| backoff.grow().as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
        let (short, long) = (HEALTHY_AFTER - Duration::from_secs(1), HEALTHY_AFTER);
        assert_eq!(pause_after(LONGEST_BACKOFF, short), LONGEST_BACKOFF);
        assert_eq!(pause_after(LONGEST_BACKOFF, long), FIRST_BACKOFF);
    }
}
