//! Randomness from the operating system's generator.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::Rng as _;

/// Fills an array with random bytes.
#[must_use]
#[expect(
    clippy::disallowed_methods,
    reason = "the one place randomness is drawn"
)]
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::rng().fill(&mut bytes[..]);
    bytes
}

/// A credential: 256 random bits as 43 characters of URL-safe base64 without padding.
#[must_use]
pub fn token() -> String {
    URL_SAFE_NO_PAD.encode(bytes::<32>())
}

/// A duration between zero and `bound`, bound excluded; zero for a zero bound.
#[must_use]
#[expect(
    clippy::disallowed_methods,
    reason = "the one place randomness is drawn"
)]
pub fn below(bound: Duration) -> Duration {
    let nanos = u64::try_from(bound.as_nanos()).unwrap_or(u64::MAX);
    if nanos == 0 {
        return Duration::ZERO;
    }
    Duration::from_nanos(rand::rng().random_range(0..nanos))
}

/// `period` ± 20 %, so that processes started together drift apart.
#[must_use]
pub fn jittered(period: Duration) -> Duration {
    period.mul_f64(0.8) + below(period.mul_f64(0.4))
}
