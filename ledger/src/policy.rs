//! How often and how soon a kind is tried again. Data, read by the engine and shown to operators.

use std::time::Duration;

use longshore_base::random;

/// Whether a wait is spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Jitter {
    /// Anywhere between zero and the computed wait, so that what failed together does not return together.
    Full,
    /// Exactly the computed wait.
    None,
}

/// Exponential backoff: `base`, doubled with each failure, at most `cap`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// Wait after the first failure.
    pub base: Duration,
    /// Longest wait.
    pub cap: Duration,
    /// Whether waits are spread.
    pub jitter: Jitter,
}

impl Backoff {
    /// The longest wait after `failures` failures (at least one), before jitter.
    #[must_use]
    pub fn ceiling(&self, failures: u32) -> Duration {
        let mut ceiling = self.base.min(self.cap);
        for _ in 1..failures {
            // No base takes more than 94 doublings to any cap, but nothing doubled stays nothing.
            if ceiling.is_zero() || ceiling == self.cap {
                break;
            }
            ceiling = ceiling.saturating_mul(2).min(self.cap);
        }
        ceiling
    }

    /// The wait after `failures` failures.
    #[must_use]
    pub fn wait(&self, failures: u32) -> Duration {
        let ceiling = self.ceiling(failures);
        match self.jitter {
            Jitter::Full => random::below(ceiling),
            Jitter::None => ceiling,
        }
    }
}

/// What the engine does with a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Failures after which a job is dead; at least one.
    pub max_attempts: i32,
    /// Wait between attempts.
    pub backoff: Backoff,
    /// Longest one run may take.
    pub timeout: Duration,
    /// Age at which a job that cannot make progress is dead.
    pub deadline: Duration,
    /// Runs of this kind at the same time in one worker.
    pub concurrency: usize,
}

/// Crashes from which a job runs alone in its worker.
pub(crate) const QUARANTINE_CRASHES: i32 = 2;
/// Crashes after which a job is poison: the third worker it kills is the last.
pub(crate) const MAX_CRASHES: i32 = 3;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn waits_double_up_to_the_cap() {
        let backoff = Backoff {
            base: Duration::from_secs(10),
            cap: Duration::from_secs(300),
            jitter: Jitter::None,
        };
        let waits: Vec<u64> = (1..=7).map(|n| backoff.wait(n).as_secs()).collect();
        assert_eq!(waits, [10, 20, 40, 80, 160, 300, 300]);
    }

    /// Any durations, among them the shortest and the longest there are.
    fn duration() -> impl Strategy<Value = Duration> {
        prop_oneof![
            Just(Duration::ZERO),
            Just(Duration::from_nanos(1)),
            Just(Duration::MAX),
            any::<u64>().prop_map(Duration::from_nanos),
            (0_u64..1_000_000).prop_map(Duration::from_millis),
            any::<u64>().prop_map(Duration::from_secs),
        ]
    }

    fn backoff(jitter: Jitter) -> impl Strategy<Value = Backoff> {
        (duration(), duration()).prop_map(move |(base, cap)| Backoff { base, cap, jitter })
    }

    fn failures() -> impl Strategy<Value = u32> {
        prop_oneof![0_u32..100, any::<u32>(), Just(u32::MAX)]
    }

    proptest! {
        #[test]
        fn without_jitter_a_wait_is_the_base_doubled_or_the_cap_never_less_and_never_more(backoff in backoff(Jitter::None), failures in failures()) {
            // More than 127 doublings of anything are past every cap.
            let factor = 1_u128 << failures.saturating_sub(1).min(127);
            let doubled = backoff.base.as_nanos().saturating_mul(factor);
            prop_assert_eq!(backoff.wait(failures).as_nanos(), doubled.min(backoff.cap.as_nanos()));
        }

        #[test]
        fn full_jitter_stays_below_what_the_wait_would_be_without_it(backoff in backoff(Jitter::Full), failures in failures()) {
            let ceiling = Backoff { jitter: Jitter::None, ..backoff }.wait(failures);
            let wait = backoff.wait(failures);
            prop_assert!(wait < ceiling || ceiling.is_zero(), "{:?} of {:?}", wait, ceiling);
            prop_assert!(wait <= backoff.cap);
        }

        #[test]
        fn another_failure_never_makes_the_wait_shorter(backoff in backoff(Jitter::None), failures in failures()) {
            prop_assert!(backoff.wait(failures.saturating_add(1)) >= backoff.wait(failures));
        }
    }

    #[test]
    fn full_jitter_uses_its_whole_range() {
        let backoff = Backoff {
            base: Duration::from_secs(8),
            cap: Duration::MAX,
            jitter: Jitter::Full,
        };
        let quarters: std::collections::BTreeSet<u64> =
            (0..1000).map(|_| backoff.wait(1).as_secs() / 2).collect();
        assert_eq!(quarters.into_iter().collect::<Vec<_>>(), [0, 1, 2, 3]);
    }
}
