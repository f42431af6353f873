//! What everything else stands on: names, ids, time, randomness, secrets, redaction and database pools.
//!
//! Nothing in here knows what a workspace or a job does. Wall time is the database's
//! ([`clock::now`]); the process clock measures durations only, so that tests can move time and two
//! machines never compare clocks.

pub mod brand;
pub mod capacity;
pub mod clock;
pub mod failpoint;
pub mod ids;
pub mod pools;
pub mod random;
pub mod redact;
pub mod redis;
pub mod schema;
pub mod secret;
#[cfg(feature = "testing")]
pub mod testing;

pub use ids::{JobId, WorkspaceId};
pub use secret::Secret;

/// A moment in UTC, as Postgres stores it (microseconds).
pub type Timestamp = chrono::DateTime<chrono::Utc>;
