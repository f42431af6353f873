//! Rate limits (`spec: rest-api` §1.6): a fixed window of 60 s per credential once that is known to be good, per client
//! address before.
//!
//! A request is charged to its address when it arrives and, if its credential proves good, charged to that instead. So
//! guessing tokens is limited by address, while a fleet with good tokens behind one address is not: a credential that
//! has proved good lately does not look at the address at all.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use longshore_base::clock::Stopwatch;
use poem::http::HeaderMap;
use poem::http::HeaderValue;

const WINDOW: Duration = Duration::from_secs(60);
/// A bucket that nobody used for so long is dropped.
const IDLE: Duration = Duration::from_secs(600);
/// Past so many buckets those whose window is over are dropped at once: addresses are easily had.
const MOST_BUCKETS: usize = 100_000;
/// How often idle buckets are looked for.
const SWEEP: Duration = Duration::from_secs(300);

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Subject {
    /// SHA-256 of a bearer that has proved good.
    Credential([u8; 32]),
    /// A client address.
    Address(IpAddr),
}

impl Subject {
    /// The subject of a client address. One client has a whole IPv6 network of 64 bits to itself, so that is what counts.
    pub(crate) fn address(address: IpAddr) -> Self {
        Self::Address(match address {
            IpAddr::V4(_) => address,
            IpAddr::V6(v6) => {
                let [a, b, c, d, ..] = v6.segments();
                Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
            }
        })
    }
}

/// How a subject stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    limit: u32,
    remaining: u32,
    reset_seconds: u64,
    exhausted: bool,
}

impl Standing {
    /// Whether the request must be refused.
    pub(crate) const fn exhausted(self) -> bool {
        self.exhausted
    }

    /// Seconds until the next window.
    pub(crate) const fn reset_seconds(self) -> u64 {
        self.reset_seconds
    }

    /// Writes the headers of every answer.
    pub(crate) fn decorate(self, headers: &mut HeaderMap) {
        let Self {
            limit,
            remaining,
            reset_seconds,
            ..
        } = self;
        headers.insert("x-ratelimit-limit", HeaderValue::from(limit));
        headers.insert("x-ratelimit-remaining", HeaderValue::from(remaining));
        headers.insert("x-ratelimit-reset", HeaderValue::from(reset_seconds));
        let mut text = |name, value: String| {
            if let Ok(value) = HeaderValue::from_str(&value) {
                headers.insert(name, value);
            }
        };
        text("ratelimit-policy", format!("\"default\";q={limit};w=60"));
        text(
            "ratelimit",
            format!("\"default\";r={remaining};t={reset_seconds}"),
        );
    }
}

/// Writes the headers of an answer that nothing limits.
pub(crate) fn decorate_unlimited(headers: &mut HeaderMap) {
    headers.insert("x-ratelimit-limit", HeaderValue::from_static("unlimited"));
}

struct Bucket {
    window: Stopwatch,
    used: u32,
    touched: Stopwatch,
}

/// The counts of this process.
pub(crate) struct RateLimiter {
    limit: u32,
    window: Duration,
    state: Mutex<State>,
}

struct State {
    buckets: HashMap<Subject, Bucket>,
    swept: Stopwatch,
}

impl RateLimiter {
    /// Counts from zero, in windows of a minute.
    pub(crate) fn new(limit: u32) -> Self {
        Self::with_window(limit, WINDOW)
    }

    /// Counts from zero, in windows of this length.
    pub(crate) fn with_window(limit: u32, window: Duration) -> Self {
        Self {
            limit,
            window,
            state: Mutex::new(State {
                buckets: HashMap::new(),
                swept: Stopwatch::start(),
            }),
        }
    }

    /// Counts one request, unless the window is used up.
    pub(crate) fn charge(&self, subject: Subject) -> Standing {
        self.with(subject, |bucket, limit| {
            if bucket.used >= limit {
                return true;
            }
            bucket.used += 1;
            false
        })
    }

    /// Takes back one request that was counted here before its credential was known.
    pub(crate) fn refund(&self, subject: Subject) {
        self.with(subject, |bucket, _| {
            bucket.used = bucket.used.saturating_sub(1);
            false
        });
    }

    /// How a subject stands, without counting.
    pub(crate) fn look(&self, subject: Subject) -> Standing {
        self.with(subject, |_, _| false)
    }

    /// Whether this credential has proved good within the last ten minutes.
    pub(crate) fn knows(&self, subject: Subject) -> bool {
        self.lock().buckets.contains_key(&subject)
    }

    fn with(&self, subject: Subject, act: impl FnOnce(&mut Bucket, u32) -> bool) -> Standing {
        let mut state = self.lock();
        if state.swept.elapsed() >= SWEEP {
            state
                .buckets
                .retain(|_, bucket| bucket.touched.elapsed() < IDLE.max(self.window));
            state.swept = Stopwatch::start();
        }
        if state.buckets.len() >= MOST_BUCKETS {
            state
                .buckets
                .retain(|_, bucket| bucket.window.elapsed() < self.window);
        }
        let bucket = state.buckets.entry(subject).or_insert_with(|| Bucket {
            window: Stopwatch::start(),
            used: 0,
            touched: Stopwatch::start(),
        });
        bucket.touched = Stopwatch::start();
        if bucket.window.elapsed() >= self.window {
            bucket.window = Stopwatch::start();
            bucket.used = 0;
        }
        let exhausted = act(bucket, self.limit);
        let left = self.window.saturating_sub(bucket.window.elapsed());
        Standing {
            limit: self.limit,
            remaining: self.limit.saturating_sub(bucket.used),
            // Rounded up: a client that waits exactly so long finds the next window.
            reset_seconds: left.as_secs() + u64::from(left.subsec_nanos() > 0),
            exhausted,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_one_ipv6_network_are_one_client() {
        let subject = |text: &str| Subject::address(text.parse().unwrap());
        assert_eq!(subject("2001:db8::1"), subject("2001:db8::ffff:2"));
        assert_ne!(subject("2001:db8::1"), subject("2001:db8:0:1::1"));
        assert_ne!(subject("10.0.0.1"), subject("10.0.0.2"));
    }

    #[test]
    fn a_window_lets_so_many_pass_and_says_when_the_next_opens() {
        let limiter = RateLimiter::new(2);
        let one = Subject::Address([1, 1, 1, 1].into());
        let other = Subject::Credential([7; 32]);
        assert!(!limiter.knows(other));
        assert_eq!(limiter.charge(one).remaining, 1);
        assert!(!limiter.charge(one).exhausted());
        let third = limiter.charge(one);
        assert!(third.exhausted());
        assert_eq!((third.remaining, third.reset_seconds()), (0, 60));
        assert!(!limiter.charge(other).exhausted());
        assert!(limiter.knows(other));
        limiter.refund(one);
        assert!(!limiter.charge(one).exhausted());
        let mut headers = HeaderMap::new();
        limiter.look(one).decorate(&mut headers);
        assert_eq!(headers["ratelimit"], "\"default\";r=0;t=60");
        assert_eq!(headers["ratelimit-policy"], "\"default\";q=2;w=60");
    }
}
