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
        let doublings = failures.saturating_sub(1).min(63);
        let factor = 1_u64 << doublings;
        u32::try_from(factor)
            .ok()
            .and_then(|factor| self.base.checked_mul(factor))
            .unwrap_or(self.cap)
            .min(self.cap)
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

    proptest! {
        #[test]
        fn a_wait_never_passes_its_cap_nor_overflows(base in 0_u64..1_000_000, cap in 0_u64..1_000_000, failures in any::<u32>()) {
            let backoff = Backoff { base: Duration::from_millis(base), cap: Duration::from_millis(cap), jitter: Jitter::Full };
            prop_assert!(backoff.wait(failures) <= backoff.cap);
            prop_assert!(backoff.ceiling(failures.saturating_add(1)) >= backoff.ceiling(failures).min(backoff.cap));
        }
    }
}
