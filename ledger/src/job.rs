//! What a job is, at the points where code holds one.

use longshore_base::{JobId, Timestamp, WorkspaceId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::TraceContext;
use crate::verdict::JobError;

/// How a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, sqlx::Type)]
#[sqlx(type_name = "job_outcome", rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It did what it was for.
    Succeeded,
    /// It failed for good: attempts used up, a permanent error, a poison job, or past its deadline.
    Dead,
    /// Somebody cancelled it.
    Cancelled,
    /// Something newer made it pointless.
    Superseded,
}

impl Outcome {
    /// The word used in the API, the log and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Dead => "dead",
            Self::Cancelled => "cancelled",
            Self::Superseded => "superseded",
        }
    }
}

/// Where a live job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, sqlx::Type)]
#[sqlx(type_name = "job_state", rename_all = "snake_case")]
pub(crate) enum State {
    Scheduled,
    Queued,
    Running,
}

/// Why a scheduled job is not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, sqlx::Type)]
#[sqlx(type_name = "job_wait", rename_all = "snake_case")]
pub(crate) enum Wait {
    /// Due and first on its keys; only admission stands between.
    Ready,
    /// Due, behind another job on one of its keys.
    Key,
    /// Not due yet.
    Time,
}

/// A job this process has claimed. Holding one says nothing about still owning it: only a
/// [`FencedTx`](crate::FencedTx) does.
#[derive(Clone, Debug)]
pub struct ClaimedJob {
    /// Its id.
    pub id: JobId,
    /// What is to be done.
    pub kind: String,
    /// The queue it came through.
    pub queue: String,
    /// Whom it works for.
    pub tenant: String,
    /// The workspace it is about, if it is about one.
    pub workspace_id: Option<WorkspaceId>,
    /// What it has for itself while it runs.
    pub keys: Vec<String>,
    /// Ids and flags; what they mean is the kind's business.
    pub args: serde_json::Value,
    /// Shape of `args`.
    pub args_version: i16,
    /// Failures of the executor so far.
    pub attempt: i32,
    /// Failures after which it is dead.
    pub max_attempts: i32,
    /// Workers that died while running it.
    pub crashes: i32,
    /// Proof of this claim; fences every write.
    pub token: Uuid,
    /// When it gives up.
    pub deadline_at: Timestamp,
    /// Who asked for it.
    pub created_by: String,
    /// What an earlier run left for this one ([`FencedTx::record_checkpoint`](crate::FencedTx::record_checkpoint)).
    pub checkpoint: Option<serde_json::Value>,
    /// What it goes back to.
    pub trace: TraceContext,
}

impl ClaimedJob {
    /// Its arguments, as the kind knows them.
    ///
    /// # Errors
    /// They have another shape than their version promises; no later attempt could read them either.
    pub fn read_args<T: DeserializeOwned>(&self) -> Result<T, JobError> {
        T::deserialize(&self.args)
            .map_err(|error| JobError::new("the job's arguments cannot be read", &error))
    }
}

/// A job at its end, as hooks see it.
#[derive(Clone, Debug)]
pub struct TerminalJob {
    /// Its id.
    pub id: JobId,
    /// What was to be done.
    pub kind: String,
    /// The workspace it was about.
    pub workspace_id: Option<WorkspaceId>,
    /// Its arguments.
    pub args: serde_json::Value,
    /// Shape of `args`.
    pub args_version: i16,
    /// How it ended.
    pub outcome: Outcome,
    /// The public reason, for anything but success.
    pub reason: Option<String>,
    /// Who cancelled it, where somebody did.
    pub cancelled_by: Option<String>,
    /// What its last run left ([`FencedTx::record_checkpoint`](crate::FencedTx::record_checkpoint)); nothing of a job that
    /// is in the history already.
    pub checkpoint: Option<serde_json::Value>,
}

/// One failed attempt, as kept on the job.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ErrorEntry {
    pub(crate) attempt: i32,
    pub(crate) at: Timestamp,
    pub(crate) worker: Option<String>,
    pub(crate) error: String,
    pub(crate) retried_at: Option<Timestamp>,
}

/// How far a run is; shown to people.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The step it is in.
    pub step: String,
    /// Steps behind it.
    pub steps_done: u32,
    /// Steps in all, where known.
    pub steps_total: Option<u32>,
    /// What the step is busy with.
    pub message: Option<String>,
    /// Share of the step, 0 to 100, where known.
    pub percent: Option<u8>,
}

/// Bytes of one error text that are kept.
const ERROR_BYTES: usize = 4096;
/// First and last attempts whose errors are kept.
const FIRST_ERRORS: usize = 3;
const LAST_ERRORS: usize = 10;

/// Adds an entry: the first three and the last ten stay, each cut to 4 KiB at a character boundary.
pub(crate) fn push_error(history: &mut Vec<ErrorEntry>, mut entry: ErrorEntry) {
    if entry.error.len() > ERROR_BYTES {
        let cut = (0..=ERROR_BYTES)
            .rev()
            .find(|at| entry.error.is_char_boundary(*at))
            .unwrap_or(0);
        entry.error.truncate(cut);
    }
    history.push(entry);
    if history.len() > FIRST_ERRORS + LAST_ERRORS {
        history.remove(FIRST_ERRORS);
    }
}

/// Whether Postgres says that a lock was not had in time.
pub(crate) fn is_lock_timeout(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.as_deref() == Some("55P03")
}

/// The ledger could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// Postgres refused or was away; whether to try again is the caller's call.
    #[error("the job ledger could not be used while {doing}")]
    Database {
        /// What was being done.
        doing: &'static str,
        /// What the driver said.
        #[source]
        source: sqlx::Error,
    },
    /// A stored row does not have the shape this version knows.
    #[error("job {id} cannot be read: {what}")]
    Unreadable {
        /// The job.
        id: JobId,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A hook of the job's kind failed; nothing of that transaction was kept.
    #[error("the {kind} hook of job {id} failed")]
    Hook {
        /// The job.
        id: JobId,
        /// Its kind.
        kind: String,
        /// What the hook said.
        #[source]
        source: crate::HookError,
    },
    /// A list position was not one of ours.
    #[error("not a position in this list")]
    Cursor,
}

impl LedgerError {
    pub(crate) fn database(doing: &'static str) -> impl FnOnce(sqlx::Error) -> Self {
        move |source| Self::Database { doing, source }
    }

    /// Nothing was done, because somebody keeps a row or a table locked.
    pub(crate) fn is_lock_timeout(&self) -> bool {
        matches!(self, Self::Database { source, .. } if is_lock_timeout(source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(attempt: i32, error: String) -> ErrorEntry {
        ErrorEntry {
            attempt,
            at: chrono::DateTime::UNIX_EPOCH,
            worker: None,
            error,
            retried_at: None,
        }
    }

    #[test]
    fn the_first_three_and_last_ten_errors_are_kept() {
        let mut history = Vec::new();
        for attempt in 1..=40 {
            push_error(&mut history, entry(attempt, "x".into()));
        }
        let kept: Vec<i32> = history.iter().map(|e| e.attempt).collect();
        assert_eq!(kept, [1, 2, 3, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40]);
    }

    #[test]
    fn an_error_text_is_cut_at_a_character() {
        let mut history = Vec::new();
        push_error(&mut history, entry(1, "ä".repeat(4000)));
        assert_eq!(history[0].error.len(), 4096);
        push_error(&mut history, entry(1, format!("x{}", "ä".repeat(4000))));
        assert_eq!(history[1].error.len(), 4095);
    }
}
