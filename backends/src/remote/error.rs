//! A call to the control plane that did not succeed.

use std::error::Error as StdError;
use std::fmt;

use longshore_base::WorkspaceId;

use crate::CallFailure;

/// What was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemoteCall {
    /// An instance for a workspace.
    Start,
    /// Its end.
    Stop,
    /// Whether it runs.
    Status,
    /// What it wrote to its console.
    Console,
    /// The tenant's configuration.
    Config,
}

impl RemoteCall {
    /// The call as a label of a metric.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Status => "status",
            Self::Console => "console",
            Self::Config => "config",
        }
    }

    const fn asked(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Status => "tell the status of",
            Self::Console => "show the console of",
            Self::Config => "tell the configuration of",
        }
    }
}

/// The control plane did not do what it was asked. `Display` names workspace and status and is fit for everybody; what
/// the control plane said is in the source, which only the log may have.
#[derive(Debug)]
pub struct RemoteError {
    pub(super) call: RemoteCall,
    pub(super) workspace_id: Option<WorkspaceId>,
    pub(super) status: Option<u16>,
    pub(super) failure: CallFailure,
    pub(super) cause: Box<dyn StdError + Send + Sync>,
}

impl RemoteError {
    /// What was asked.
    #[must_use]
    pub fn call(&self) -> RemoteCall {
        self.call
    }

    /// The status of the answer, where there was one.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        self.status
    }

    /// How it failed.
    #[must_use]
    pub fn failure(&self) -> CallFailure {
        self.failure
    }

    /// A failed start that may have made an instance: no answer came although the request may have been read, or one came
    /// that does not say which instance it was.
    #[must_use]
    pub fn may_have_started(&self) -> bool {
        let unanswered = self.status.is_none() && self.failure != CallFailure::Unreachable;
        self.call == RemoteCall::Start && (unanswered || self.status == Some(201))
    }

    /// Whether the same call may succeed later. A stop or a look always may; a start that was refused will be again.
    pub(crate) fn retryable(&self) -> bool {
        let refused = matches!(
            self.failure,
            CallFailure::Refused | CallFailure::NotFound | CallFailure::Conflict
        );
        !(refused && self.call == RemoteCall::Start)
    }
}

impl fmt::Display for RemoteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the control plane did not {}", self.call.asked())?;
        match self.workspace_id {
            Some(id) => write!(f, " workspace {id}")?,
            None => f.write_str(" the tenant")?,
        }
        match (self.status, self.failure) {
            (Some(status), _) => write!(f, ": status {status}"),
            (None, CallFailure::Unreachable) => f.write_str(": it cannot be reached"),
            (None, CallFailure::TimedOut) => f.write_str(": it did not answer in time"),
            (None, _) => f.write_str(": its answer broke off"),
        }
    }
}

impl StdError for RemoteError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&*self.cause)
    }
}
