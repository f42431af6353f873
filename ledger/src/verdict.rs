//! What an executor says of its run.

use std::error::Error;
use std::time::Duration;

/// Why a run failed: a text anybody may read, and the whole story for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobError {
    /// Stored with the job and shown to its owner. No paths, no provider output, no secrets.
    pub public: String,
    /// Logged once, never stored.
    pub detail: String,
}

impl JobError {
    /// An error whose chain goes to the log and whose reader sees `public`.
    #[must_use]
    pub fn new(public: impl Into<String>, source: &(dyn Error + 'static)) -> Self {
        let mut detail = source.to_string();
        let mut next = source.source();
        while let Some(cause) = next {
            detail.push_str(": ");
            detail.push_str(&cause.to_string());
            next = cause.source();
        }
        Self {
            public: public.into(),
            detail,
        }
    }

    /// An error with nothing to hide.
    #[must_use]
    pub fn plain(public: impl Into<String>) -> Self {
        let public = public.into();
        Self {
            detail: public.clone(),
            public,
        }
    }
}

/// How a run ended, in the executor's words. The engine turns it into a state.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// Done; the value is kept as the job's result.
    Done(Option<serde_json::Value>),
    /// Failed; try again after the kind's backoff, while attempts are left.
    Retry(JobError),
    /// Failed, and the other side said when to come back. May exceed the cap, up to the job's deadline.
    RetryAfter(JobError, Duration),
    /// Failed for good.
    Permanent(JobError),
    /// Not now; uses no attempt.
    Snooze(Duration, String),
    /// Stopped because it was asked to.
    Cancelled,
    /// Something newer made it pointless; the text says what.
    Superseded(String),
    /// The lease is gone or the process is stopping: another run takes it. Uses no attempt.
    GiveBack,
}
