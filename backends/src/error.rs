//! What can go wrong where workspaces run.

use std::error::Error as StdError;
use std::fmt::Write as _;

use crate::{Abandoned, RemoteError};

/// A backend could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// Nobody answers where the engine should be.
    #[error("the container engine cannot be reached")]
    NotAvailable(#[source] CallError),
    /// The engine took the call and did not answer in time; it may have done it.
    #[error("the container engine did not answer in time")]
    TimedOut(#[source] CallError),
    /// The engine will not do it, however often it is asked.
    #[error("the container engine refused")]
    Refused(#[source] CallError),
    /// Something is in the way: a volume is still used, a container is being removed.
    #[error("something is in the way in the container engine")]
    InTheWay(#[source] CallError),
    /// The engine could not do it this time.
    #[error("the container engine failed")]
    Failed(#[source] CallError),
    /// The container is made, but its first process cannot be run.
    #[error("the container engine could not start the container")]
    NotStarted(#[source] CallError),
    /// The image is neither in the engine nor to be had.
    #[error("image {image} of runtime {runtime} is not in the engine and could not be pulled")]
    NoSuchImage {
        /// The reference that was looked for.
        image: String,
        /// The runtime it was chosen for.
        runtime: String,
        /// Why the pull failed, when one was tried.
        #[source]
        pull: Option<Box<BackendError>>,
    },
    /// The workspace has no container.
    #[error("the workspace has no container")]
    NoContainer,
    /// The name is held by something that is not ours, or not this workspace's. It was left alone.
    #[error("{name} exists and is not this workspace's: {holder}")]
    NameTaken {
        /// Name of the container or volume.
        name: String,
        /// Its id, or whose labels it carries.
        holder: String,
    },
    /// A newer (re)provision has its container there; this one is history.
    #[error("generation {theirs} of the workspace is there, newer than {ours}")]
    StaleGeneration {
        /// The caller's.
        ours: i64,
        /// The container's.
        theirs: i64,
    },
    /// Others kept making and removing containers of this name.
    #[error("{name} could not be won against others who make containers of that name")]
    NameContended {
        /// Name of the container.
        name: String,
    },
    /// What was to be started cannot be expressed to the engine.
    #[error("the workspace cannot be started as asked: {0}")]
    Unusable(String),
    /// There is no such thing on this backend.
    #[error("this backend has no {what}")]
    Unsupported {
        /// What was asked for.
        what: &'static str,
    },
    /// The remote control plane did not do what it was asked.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// A setting of this backend does not make sense.
    #[error("setting of the backend: {0}")]
    Misconfigured(String),
    /// The agent binary for the reference image cannot be read.
    #[error("the agent binary {path} cannot be read")]
    AgentBinary {
        /// Where it was looked for.
        path: String,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// The run lost its right to go on, or was cancelled.
    #[error("the start was abandoned")]
    Abandoned(#[from] Abandoned),
}

impl BackendError {
    /// Whether the same call may succeed later without anybody changing anything.
    #[must_use]
    pub fn retryable(&self) -> bool {
        match self {
            Self::NotAvailable(_)
            | Self::TimedOut(_)
            | Self::InTheWay(_)
            | Self::Failed(_)
            | Self::NameContended { .. } => true,
            Self::Remote(error) => error.retryable(),
            Self::Refused(_)
            | Self::NotStarted(_)
            | Self::NoSuchImage { .. }
            | Self::NoContainer
            | Self::Unsupported { .. }
            | Self::NameTaken { .. }
            | Self::StaleGeneration { .. }
            | Self::Unusable(_)
            | Self::Misconfigured(_)
            | Self::AgentBinary { .. }
            | Self::Abandoned(_) => false,
        }
    }

    /// Whether a failed start may have started something all the same, which nobody knows the name of.
    #[must_use]
    pub fn may_have_started(&self) -> bool {
        matches!(self, Self::Remote(error) if error.may_have_started())
    }

    /// A registry was asked for an image and does not know it.
    #[must_use]
    pub fn is_unknown_image(&self) -> bool {
        matches!(self, Self::Refused(error) if error.failure == CallFailure::NotFound)
    }

    /// The control plane knows no such instance. By itself that says nothing of whether it runs (spec: lifecycle §3.3).
    #[must_use]
    pub fn is_unknown_instance(&self) -> bool {
        matches!(self, Self::Remote(error) if error.failure() == CallFailure::NotFound)
    }

    /// Nobody answered a call, so that nothing is known of what was asked about.
    #[must_use]
    pub fn is_unanswered(&self) -> bool {
        match self {
            Self::Remote(error) => error.status().is_none(),
            Self::NotAvailable(_) | Self::TimedOut(_) => true,
            _ => false,
        }
    }

    /// The reason of a failed start that a row, an event or an answer may carry: no paths, no registry, no engine output.
    #[must_use]
    pub fn public(&self) -> &'static str {
        match self {
            Self::NotAvailable(_) => "workspace start failed: no Docker daemon is available",
            Self::Remote(_) => "provisioning failed",
            Self::TimedOut(_)
            | Self::Refused(_)
            | Self::InTheWay(_)
            | Self::Failed(_)
            | Self::NotStarted(_)
            | Self::NoSuchImage { .. }
            | Self::NoContainer
            | Self::Unsupported { .. }
            | Self::NameTaken { .. }
            | Self::StaleGeneration { .. }
            | Self::NameContended { .. }
            | Self::Unusable(_)
            | Self::Misconfigured(_)
            | Self::AgentBinary { .. }
            | Self::Abandoned(_) => "workspace start failed",
        }
    }

    /// This error and all its causes in one line, for the log where it is handled.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut told = text.clone();
        let mut cause = self.source();
        while let Some(error) = cause {
            let next = error.to_string();
            // Transparent wrappers of the client repeat their source word for word.
            if next != told && write!(text, ": {next}").is_ok() {
                told = next;
            }
            cause = error.source();
        }
        text
    }
}

/// One call to an engine that did not succeed.
#[derive(Debug, thiserror::Error)]
#[error("{call} failed")]
pub struct CallError {
    call: &'static str,
    failure: CallFailure,
    #[source]
    cause: Box<dyn StdError + Send + Sync>,
}

/// How a call failed, as far as callers act differently on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallFailure {
    /// No connection, or it broke.
    Unreachable,
    /// No answer within the call's limit.
    TimedOut,
    /// The engine knows no such thing: the only failure that says something is absent.
    NotFound,
    /// The engine has something else there.
    Conflict,
    /// Any other refusal.
    Refused,
    /// The engine's own failure, or an answer that makes no sense.
    Failed,
}

impl CallFailure {
    /// The failure as the `result` label of a metric.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::TimedOut => "timed_out",
            Self::NotFound => "not_found",
            Self::Conflict => "conflict",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
}

impl CallError {
    pub(crate) fn new(
        call: &'static str,
        failure: CallFailure,
        cause: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        Self {
            call,
            failure,
            cause: cause.into(),
        }
    }

    /// Name of the call: `container_create`.
    #[must_use]
    pub fn call(&self) -> &'static str {
        self.call
    }

    /// How it failed.
    #[must_use]
    pub fn failure(&self) -> CallFailure {
        self.failure
    }

    /// What the engine said; for decisions on its words, never for the public.
    pub(crate) fn said(&self, words: &str) -> bool {
        self.cause.to_string().contains(words)
    }
}

impl From<CallError> for BackendError {
    fn from(error: CallError) -> Self {
        match error.failure {
            CallFailure::Unreachable => Self::NotAvailable(error),
            CallFailure::TimedOut => Self::TimedOut(error),
            CallFailure::NotFound | CallFailure::Refused => Self::Refused(error),
            CallFailure::Conflict => Self::InTheWay(error),
            CallFailure::Failed => Self::Failed(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chain_tells_each_fact_once_and_the_public_reason_none_of_them() {
        let refused = BackendError::NoSuchImage {
            image: "reg.example/own/img:1".into(),
            runtime: "hermes".into(),
            pull: Some(Box::new(
                CallError::new("image_pull", CallFailure::Failed, "denied for token abc").into(),
            )),
        };
        assert_eq!(
            refused.chain(),
            "image reg.example/own/img:1 of runtime hermes is not in the engine and could not be pulled: \
             the container engine failed: image_pull failed: denied for token abc"
        );
        assert_eq!(refused.public(), "workspace start failed");
        assert!(!refused.retryable());
    }

    #[test]
    fn only_what_may_pass_by_itself_is_retryable() {
        let of = |failure| BackendError::from(CallError::new("x", failure, "y")).retryable();
        assert!(of(CallFailure::Unreachable));
        assert!(of(CallFailure::TimedOut));
        assert!(of(CallFailure::Failed));
        assert!(!of(CallFailure::NotFound));
        assert!(of(CallFailure::Conflict));
        assert!(!of(CallFailure::Refused));
        assert!(!BackendError::from(Abandoned).retryable());
    }
}
