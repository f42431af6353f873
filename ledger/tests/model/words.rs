//! What both sides talk about.

use std::time::Duration;

/// Jobs are numbered as they are asked for, runs as they are claimed.
pub(crate) type JobNo = usize;
pub(crate) type RunNo = usize;
pub(crate) type Key = &'static str;

/// The hour, since the story began.
pub(crate) type Hour = i64;

/// The two kinds there are. Only the second has hooks and a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Plain,
    Hooked,
}

impl Kind {
    pub(crate) const ALL: [Self; 2] = [Self::Plain, Self::Hooked];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Hooked => "hooked",
        }
    }

    pub(crate) const fn queue(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Hooked => "hooked@engine",
        }
    }

    /// What a newer job of the third kind, which only asks, does to one of this kind.
    pub(crate) const fn when_overtaken(self, place: Place, backing_off: bool) -> Overtaken {
        match (self, place) {
            (Self::Plain, Place::Waiting | Place::Admitted) => Overtaken::Ends,
            (Self::Plain, Place::Running(_)) => Overtaken::IsAskedToStop,
            (Self::Hooked, Place::Waiting) if backing_off => Overtaken::Ends,
            (Self::Hooked, Place::Running(_)) => Overtaken::IsAskedToStop,
            _ => Overtaken::Stays,
        }
    }
}

/// What then happens to the older one.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Overtaken {
    Stays,
    Ends,
    IsAskedToStop,
}

/// What is asked for.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) kind: Kind,
    pub(crate) tenant: &'static str,
    pub(crate) workspace: Option<u128>,
    pub(crate) keys: Vec<Key>,
    pub(crate) dedupe: Option<&'static str>,
    pub(crate) priority: i16,
    pub(crate) delay: Hour,
    pub(crate) max_attempts: i32,
}

/// How a run ends, in hours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Done,
    Retry,
    RetryAfter(Hour),
    Permanent,
    Snooze(Hour),
    Cancelled,
    Superseded,
    GiveBack,
}

/// What an operator can close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Closed {
    Queue(Kind),
    All,
    Kind(Kind),
    Engine,
    Tenant(&'static str),
    Workspace(u128),
}

impl Closed {
    pub(crate) fn covers(self, request: &Request) -> bool {
        match self {
            Self::All => true,
            Self::Queue(kind) | Self::Kind(kind) => request.kind == kind,
            Self::Engine => request.kind == Kind::Hooked,
            Self::Tenant(tenant) => request.tenant == tenant,
            Self::Workspace(workspace) => request.workspace == Some(workspace),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Succeeded,
    Dead,
    Cancelled,
    Superseded,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Waiting,
    Admitted,
    Running(RunNo),
    Ended(Outcome),
}

impl Place {
    pub(crate) const fn is_live(self) -> bool {
        !matches!(self, Self::Ended(_))
    }
}

/// Hours as durations.
pub(crate) fn hours(count: Hour) -> Duration {
    Duration::from_secs(3600 * count.unsigned_abs())
}
