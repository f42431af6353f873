//! How much of each kind this worker runs at once, and how many admitted jobs it wants waiting for it.
//!
//! The window must be large enough that a slot never waits for a job, and as small as that allows: what stands in it has
//! been chosen, and nobody can be chosen before it any more. So it follows from how long runs take: what the slots will
//! use up in [`AHEAD`], never more than twice the slots. Admission adds the slots that are free.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::{KindSpec, Kinds};

/// Time within which a claimed job's place in the window is surely filled again.
const AHEAD: Duration = Duration::from_millis(25);
/// Weight of the newest run in the mean, as one in this many.
const SMOOTHING: u64 = 8;

/// The slots of a worker, by kind.
#[derive(Clone)]
pub(crate) struct Slots(Arc<HashMap<&'static str, KindSlots>>);

struct KindSlots {
    permits: Arc<Semaphore>,
    allowed: usize,
    size: Mutex<Size>,
    /// Mean time of a run in microseconds; zero before the first.
    mean_micros: AtomicU64,
}

#[derive(Clone, Copy)]
struct Size {
    wanted: usize,
    /// Permits in being; more than wanted while runs hold the difference.
    actual: usize,
}

impl Slots {
    pub(crate) fn new<'a>(kinds: impl Iterator<Item = &'a KindSpec>) -> Self {
        let slots = kinds.map(|kind| {
            let allowed = kind.policy.concurrency;
            let slots = KindSlots {
                permits: Arc::new(Semaphore::new(allowed)),
                allowed,
                size: Mutex::new(Size {
                    wanted: allowed,
                    actual: allowed,
                }),
                mean_micros: AtomicU64::new(0),
            };
            (kind.name, slots)
        });
        Self(Arc::new(slots.collect()))
    }

    /// The permits of a kind this worker runs.
    pub(crate) fn permits(&self, kind: &str) -> Option<Arc<Semaphore>> {
        self.0.get(kind).map(|slots| Arc::clone(&slots.permits))
    }

    /// How many runs of a kind its policy allows at once; none of a kind this worker does not run.
    pub(crate) fn allowed(&self, kind: &str) -> usize {
        self.0.get(kind).map_or(0, |slots| slots.allowed)
    }

    /// The kinds this worker runs.
    pub(crate) fn kinds<'a>(&'a self, kinds: &'a Kinds) -> impl Iterator<Item = &'a KindSpec> {
        kinds.iter().filter(|kind| self.0.contains_key(kind.name))
    }

    /// Runs this worker can have at once.
    pub(crate) fn total(&self) -> usize {
        self.0.values().map(|slots| slots.size().wanted).sum()
    }

    /// Brings the number of permits to the limits there are; kinds without one have what they allow by themselves. What
    /// runs above a new limit ends by itself.
    pub(crate) fn apply(&self, limits: &[(String, usize)]) {
        for (kind, slots) in self.0.iter() {
            let limit = limits.iter().find(|(limited, _)| limited == kind);
            slots.resize(limit.map_or(slots.allowed, |(_, most)| slots.allowed.min(*most)));
        }
    }

    /// Remembers how long a run took.
    pub(crate) fn record(&self, kind: &str, took: Duration) {
        let Some(slots) = self.0.get(kind) else {
            return;
        };
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1);
        let mean = slots.mean_micros.load(Ordering::Relaxed);
        let next = if mean == 0 {
            took
        } else {
            mean - mean / SMOOTHING + took / SMOOTHING
        };
        // Two runs that end at once may forget one of them; it is a mean.
        slots.mean_micros.store(next.max(1), Ordering::Relaxed);
    }

    /// Admitted jobs of a kind this worker wants waiting for it, in each of its queues, beside those it has slots free
    /// for; and its slots.
    pub(crate) fn window(&self, kind: &str) -> [usize; 2] {
        self.0
            .get(kind)
            .map_or([0, 0], |slots| [slots.window(), slots.size().wanted])
    }
}

impl KindSlots {
    fn size(&self) -> Size {
        *self.size.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn resize(&self, wanted: usize) {
        let mut size = self.size.lock().unwrap_or_else(PoisonError::into_inner);
        size.wanted = wanted;
        if wanted > size.actual {
            self.permits.add_permits(wanted - size.actual);
            size.actual = wanted;
        } else if wanted < size.actual {
            size.actual -= self.permits.forget_permits(size.actual - wanted);
        }
    }

    fn window(&self) -> usize {
        let slots = self.size().wanted;
        let mean = u128::from(self.mean_micros.load(Ordering::Relaxed)).max(1);
        let used = slots as u128 * AHEAD.as_micros() / mean;
        usize::try_from(used)
            .unwrap_or(usize::MAX)
            .clamp(slots.min(1), 2 * slots)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(concurrency: usize) -> Slots {
        let policy = crate::Policy {
            max_attempts: 1,
            backoff: crate::Backoff {
                base: Duration::ZERO,
                cap: Duration::ZERO,
                jitter: crate::Jitter::None,
            },
            timeout: Duration::MAX,
            deadline: Duration::MAX,
            concurrency,
        };
        let kind = KindSpec {
            name: "test",
            args_versions: &[1],
            policy,
            hooks: None,
        };
        Slots::new(std::iter::once(&kind))
    }

    #[test]
    fn the_window_shrinks_with_the_length_of_runs() {
        let slots = slots(8);
        assert_eq!(slots.window("test"), [16, 8], "nothing is known yet");
        for (millis, window) in [(50, 4), (100, 2), (60_000, 1)] {
            for _ in 0..100 {
                slots.record("test", Duration::from_millis(millis));
            }
            assert_eq!(slots.window("test"), [window, 8]);
        }
    }

    #[test]
    fn a_limit_takes_free_permits_at_once_and_the_rest_when_runs_end() {
        let slots = slots(4);
        let permits = slots.permits("test").unwrap();
        let running = permits.try_acquire_many(3).unwrap();
        slots.apply(&[("test".into(), 1)]);
        assert_eq!(permits.available_permits(), 0);
        drop(running);
        slots.apply(&[("test".into(), 1)]);
        assert_eq!((permits.available_permits(), slots.total()), (1, 1));
        slots.apply(&[]);
        assert_eq!((permits.available_permits(), slots.total()), (4, 4));
    }
}
