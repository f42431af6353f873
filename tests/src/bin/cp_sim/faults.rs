//! How often what goes wrong.

use longshore_base::random;
use serde_json::{Value, json};

/// Shares from 0 to 1, and a wait before every answer.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    /// Milliseconds before a call is looked at.
    pub(crate) latency_ms: u64,
    /// Of the starts, answered 500 with nothing done.
    pub(crate) starts: f64,
    /// Of the stops, answered 500 with nothing done.
    pub(crate) stops: f64,
    /// Of the looks, answered 500.
    pub(crate) statuses: f64,
    /// Of the looks, answered with the state of an instance that is still coming up.
    pub(crate) pending: f64,
    /// Of the starts, done and answered with a body that breaks off.
    pub(crate) lost_starts: f64,
}

impl Faults {
    /// Takes what a body names; leaves the rest.
    pub(crate) fn change(&mut self, body: &Value) {
        let share = |name: &str, share: &mut f64| {
            if let Some(value) = body[name].as_f64() {
                *share = value;
            }
        };
        share("starts", &mut self.starts);
        share("stops", &mut self.stops);
        share("statuses", &mut self.statuses);
        share("pending", &mut self.pending);
        share("lost_starts", &mut self.lost_starts);
        if let Some(latency_ms) = body["latency_ms"].as_u64() {
            self.latency_ms = latency_ms;
        }
    }

    /// As they are.
    pub(crate) fn shown(&self) -> Value {
        json!({
            "latency_ms": self.latency_ms, "starts": self.starts, "stops": self.stops,
            "statuses": self.statuses, "pending": self.pending, "lost_starts": self.lost_starts,
        })
    }
}

/// Whether it happens this time.
pub(crate) fn happens(share: f64) -> bool {
    let [a, b, c, d] = random::bytes::<4>();
    let drawn = f64::from(u32::from_be_bytes([a, b, c, d])) / f64::from(u32::MAX);
    share >= 1.0 || drawn < share
}
