//! A queue as operators see it.

use std::time::Duration;

use longshore_base::Timestamp;
use longshore_ledger::control::{Limits, QueueDetail, QueuePlace, QueueView, TenantWait};
use longshore_ledger::{Jitter, Policy};
use poem_openapi::Object;

/// A queue: all jobs of a kind, wherever they run.
#[derive(Object)]
pub(crate) struct Queue {
    /// The kind.
    name: String,
    /// `run`, `pause`, `drain` or `reject`.
    mode: String,
    #[oai(nullable)]
    mode_since: Option<Timestamp>,
    #[oai(nullable)]
    mode_by: Option<String>,
    #[oai(nullable)]
    mode_reason: Option<String>,
    /// Jobs that wait.
    waiting: i64,
    /// Jobs a worker may take at any moment.
    admitted: i64,
    running: i64,
    /// Jobs that were given up.
    dead: i64,
    /// Age of the oldest job that waits for nothing but its turn.
    #[oai(nullable)]
    oldest_waiting_seconds: Option<f64>,
    per_minute: QueueRate,
    limits: QueueLimits,
    policy: QueuePolicy,
    /// Workers that read it.
    workers: i64,
}

/// What ended in the last minute.
#[derive(Object)]
pub(crate) struct QueueRate {
    done: i64,
    failed: i64,
}

/// What operators allow at most; null is no limit.
#[derive(Object)]
pub(crate) struct QueueLimits {
    /// Runs at once, over all workers.
    #[oai(nullable)]
    max_running: Option<i32>,
    /// Runs at once in one worker.
    #[oai(nullable)]
    max_per_worker: Option<i32>,
    /// Starts a minute, evenly spaced.
    #[oai(nullable)]
    rate_per_minute: Option<i32>,
}

/// How jobs of the kind are tried again.
#[derive(Object)]
pub(crate) struct QueuePolicy {
    max_attempts: i32,
    backoff: QueueBackoff,
    /// Longest one run may take.
    timeout_seconds: f64,
    /// Age at which a job that makes no progress is given up.
    deadline_seconds: f64,
}

/// The wait between attempts: `base_seconds`, doubled with each failure.
#[derive(Object)]
pub(crate) struct QueueBackoff {
    base_seconds: f64,
    cap_seconds: f64,
    /// `full`: anywhere between zero and the wait; `none`: exactly the wait.
    jitter: String,
}

/// A queue with its places and its tenants.
#[derive(Object)]
pub(crate) struct QueueDetails {
    #[oai(flatten)]
    queue: Queue,
    /// Where its jobs run, by name.
    places: Vec<Place>,
    /// The twenty that have waited longest for a turn.
    tenants: Vec<WaitingTenant>,
}

/// One place of a queue.
#[derive(Object)]
#[oai(rename = "QueuePlace")]
pub(crate) struct Place {
    /// Kind and engine.
    queue: String,
    waiting: i64,
    admitted: i64,
    running: i64,
    workers: i64,
}

/// How long an organisation waits.
#[derive(Object)]
pub(crate) struct WaitingTenant {
    tenant: String,
    /// Its turns for each one of an organisation without a weight.
    weight: i32,
    /// Jobs that wait for nothing but their turn.
    waiting: i64,
    oldest_waiting_seconds: f64,
}

impl From<QueueView> for Queue {
    fn from(view: QueueView) -> Self {
        let (mode, since, by, reason) = match view.control {
            None => ("run", None, None, None),
            Some(control) => (
                control.mode.as_str(),
                Some(control.since),
                Some(control.set_by),
                control.reason,
            ),
        };
        Self {
            name: view.name,
            mode: mode.to_owned(),
            mode_since: since,
            mode_by: by,
            mode_reason: reason,
            waiting: view.waiting,
            admitted: view.admitted,
            running: view.running,
            dead: view.dead,
            oldest_waiting_seconds: view.oldest_waiting_seconds,
            per_minute: QueueRate {
                done: view.done_per_minute,
                failed: view.failed_per_minute,
            },
            limits: view.limits.into(),
            policy: view.policy.into(),
            workers: view.workers,
        }
    }
}

impl From<Limits> for QueueLimits {
    fn from(limits: Limits) -> Self {
        Self {
            max_running: limits.max_running,
            max_per_worker: limits.max_per_worker,
            rate_per_minute: limits.rate_per_minute,
        }
    }
}

impl From<Policy> for QueuePolicy {
    fn from(policy: Policy) -> Self {
        let seconds = |time: Duration| time.as_secs_f64();
        Self {
            max_attempts: policy.max_attempts,
            backoff: QueueBackoff {
                base_seconds: seconds(policy.backoff.base),
                cap_seconds: seconds(policy.backoff.cap),
                jitter: match policy.backoff.jitter {
                    Jitter::Full => "full".to_owned(),
                    Jitter::None => "none".to_owned(),
                },
            },
            timeout_seconds: seconds(policy.timeout),
            deadline_seconds: seconds(policy.deadline),
        }
    }
}

impl From<QueueDetail> for QueueDetails {
    fn from(detail: QueueDetail) -> Self {
        Self {
            queue: detail.view.into(),
            places: detail.places.into_iter().map(Place::from).collect(),
            tenants: detail
                .tenants
                .into_iter()
                .map(WaitingTenant::from)
                .collect(),
        }
    }
}

impl From<QueuePlace> for Place {
    fn from(place: QueuePlace) -> Self {
        Self {
            queue: place.queue,
            waiting: place.waiting,
            admitted: place.admitted,
            running: place.running,
            workers: place.workers,
        }
    }
}

impl From<TenantWait> for WaitingTenant {
    fn from(wait: TenantWait) -> Self {
        Self {
            tenant: wait.tenant,
            weight: i32::from(wait.weight),
            waiting: wait.waiting,
            oldest_waiting_seconds: wait.oldest_waiting_seconds,
        }
    }
}
