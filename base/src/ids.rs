//! Ids, parsed at the border and typed inside.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Makes a random (v4) id: for what must not reveal when it was made.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "the one place ids are made")]
pub fn random_uuid() -> Uuid {
    Uuid::new_v4()
}

/// Makes a time-ordered (v7) id: for rows that are read in the order they were made.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "the one place ids are made")]
pub fn ordered_uuid() -> Uuid {
    Uuid::now_v7()
}

/// A workspace's id. Random, never time-ordered: its first twelve characters name containers and volumes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, sqlx::Type)]
#[serde(transparent)]
#[sqlx(transparent)]
pub struct WorkspaceId(pub Uuid);

/// A job's id; time-ordered.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, sqlx::Type)]
#[serde(transparent)]
#[sqlx(transparent)]
pub struct JobId(pub Uuid);

impl WorkspaceId {
    /// Smaller than every other: where reading in the order of ids begins.
    pub const LEAST: Self = Self(Uuid::nil());

    /// A new random id.
    #[must_use]
    pub fn random() -> Self {
        Self(random_uuid())
    }

    /// The first twelve characters, the dash at position nine included: `0b6f3c1e-4d2`.
    #[must_use]
    pub fn id12(&self) -> String {
        self.to_string()[..12].to_owned()
    }

    /// Name of its container, host name and network alias: `ws-<id12>`.
    #[must_use]
    pub fn container_name(&self) -> String {
        format!("ws-{}", self.id12())
    }

    /// Where other containers of its network reach the agent.
    #[must_use]
    pub fn internal_url(&self) -> String {
        format!("http://ws-{}:8000", self.id12())
    }
}

impl JobId {
    /// A new id, larger than those made before it.
    #[must_use]
    pub fn new() -> Self {
        Self(ordered_uuid())
    }
}

impl Default for JobId {
    fn default() -> Self {
        Self::new()
    }
}

/// The text is not a canonical 36-character hyphenated UUID.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not a canonical UUID")]
pub struct ParseIdError;

fn parse_canonical(text: &str) -> Result<Uuid, ParseIdError> {
    // `Uuid::parse_str` also takes braces, URNs and the form without hyphens; clients get only the canonical one.
    if text.len() != 36 {
        return Err(ParseIdError);
    }
    Uuid::try_parse(text).map_err(|_| ParseIdError)
}

macro_rules! id_text {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0.hyphenated(), f)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
        impl FromStr for $name {
            type Err = ParseIdError;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                parse_canonical(text).map(Self)
            }
        }
    };
}
id_text!(WorkspaceId);
id_text!(JobId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_canonical_form_is_an_id() {
        let text = "0B6F3C1E-4D2A-4C3B-9F00-0123456789AB";
        let id: WorkspaceId = text.parse().unwrap();
        assert_eq!(id.to_string(), text.to_lowercase());
        assert_eq!(id.container_name(), "ws-0b6f3c1e-4d2");
        for bad in [
            "",
            "nope",
            "0b6f3c1e4d2a4c3b9f000123456789ab",
            "{0b6f3c1e-4d2a-4c3b-9f00-0123456789ab}",
            "0b6f3c1e-4d2a-4c3b-9f00-0123456789ag",
        ] {
            assert_eq!(bad.parse::<WorkspaceId>(), Err(ParseIdError), "{bad}");
        }
    }
}
