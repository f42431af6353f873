//! The job engine.
//!
//! Every job is a row in Postgres, written in the caller's own transaction, so that it exists exactly if the rows it
//! is about exist. Redis Streams carry hints about admitted jobs; hints may be lost, doubled or late and nothing is
//! wrong. A worker must claim a row before it runs it, and every write of the run carries the claim's token.
//!
//! ```text
//!            enqueue                admit                 claim                finish
//! (nothing) ────────▶ scheduled ────────────▶ queued ────────────▶ running ────────────▶ history
//!                       ▲  wait = time|key|ready  │ hint in Redis     │   succeeded | dead | cancelled | superseded
//!                       └────── give back ────────┴── retry, snooze, ─┘
//!                                                     give back, reap
//! ```
//!
//! Kinds, tenants, queues and keys are opaque strings here; what a job does is an [`Executor`], what its end means to
//! others a [`Hooks`]. This crate knows nothing of workspaces beyond their id as a label, and nothing of HTTP.
//! Rules: `spec: jobs`.

mod admission;
mod apalis;
mod beat;
pub mod bulk;
mod cancel;
mod claim;
mod conflicts;
pub mod control;
mod engine;
mod enqueue;
mod fence;
mod finish;
mod hints;
mod history;
pub mod inspect;
mod job;
mod kind;
mod maintenance;
mod overdue;
pub mod ownership;
mod payload;
mod policy;
mod reader;
mod reaper;
mod revive;
mod run;
mod slots;
mod taker;
#[cfg(feature = "testing")]
pub mod testing;
mod trace;
mod verdict;

pub use admission::Admitter;
pub use cancel::{CancelOutcome, cancel};
pub use conflicts::{Conflict, Older, Resolution, resolve_conflicts};
pub use engine::{Engine, EngineConfig, EngineError, EngineHealth};
pub use enqueue::{Enqueued, NewJob, enqueue, enqueue_many, enqueue_merged, hurry};
pub use fence::{Fenced, FencedTx};
pub use hints::{HintConfig, Hints};
pub use history::{Pruned, Retention, ensure_partitions, list_due, list_pruned_outcomes, prune};
pub use job::{ClaimedJob, LedgerError, Outcome, Progress, TerminalJob};
pub use kind::{Executor, HookError, Hooks, KindSpec, Kinds, Revival};
pub use overdue::{OverdueRun, list_overdue_runs, take_overdue_run};
pub use payload::{drop_payloads, find_payload, save_payload};
pub use policy::{Backoff, Jitter, Policy};
pub use revive::{DiscardOutcome, Retried, RetryOutcome, discard, retry, retry_many};
pub use run::{RunContext, Stopped};
pub use trace::TraceContext;
pub use verdict::{JobError, Verdict};
