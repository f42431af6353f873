//! The worker process: the job engine with every kind's executor, and the reconcilers.
//!
//! [`Worker::start`] registers, reads the queues of its engine, and runs the reconcilers it owns. It knows nothing of
//! HTTP; what it has to say goes into rows, events and metrics.

mod driver;
mod health_sweep;
mod hibernation;
mod hold_expiry;
mod image_watch;
mod leaks;
mod liveness;
mod orphans;
mod pass;
mod provision_timeout;
mod reconcile;
mod retention;
mod runtime;
mod stale_tokens;
mod stuck;

pub use runtime::{Worker, WorkerConfig, WorkerError, WorkerParts};
