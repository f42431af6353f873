//! Removes known secret values from text that leaves the process: logs, events, error texts.
//!
//! This is the second line of defence; the first is not putting them there. It knows values, not patterns: patterns
//! would eat digests and container ids.

use std::sync::{Arc, RwLock};

use aho_corasick::{AhoCorasick, MatchKind};

/// Shorter values are not searched for: they would match by accident everywhere.
const MIN_LENGTH: usize = 8;
const MASK: &str = "[redacted]";

/// A shared set of values to mask. Clones see the same set.
#[derive(Clone, Debug, Default)]
pub struct Redactor {
    inner: Arc<RwLock<Known>>,
}

#[derive(Debug, Default)]
struct Known {
    values: Vec<String>,
    matcher: Option<AhoCorasick>,
}

impl Redactor {
    /// Starts to mask these values. Values under eight bytes are ignored.
    pub fn learn<'a>(&self, values: impl IntoIterator<Item = &'a str>) {
        let mut known = self
            .inner
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let before = known.values.len();
        for value in values {
            if value.len() >= MIN_LENGTH && !known.values.iter().any(|seen| seen == value) {
                known.values.push(value.to_owned());
            }
        }
        if known.values.len() != before {
            known.matcher = AhoCorasick::builder()
                .match_kind(MatchKind::LeftmostLongest)
                .build(&known.values)
                .ok();
        }
    }

    /// The text with every known value replaced by `[redacted]`.
    #[must_use]
    pub fn clean(&self, text: &str) -> String {
        let known = self
            .inner
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        match &known.matcher {
            Some(matcher) => matcher.replace_all(text, &vec![MASK; known.values.len()]),
            None => text.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values_are_masked_and_short_ones_left_alone() {
        let redactor = Redactor::default();
        redactor.learn(["sk-123456789", "abc", "sk-123456789-long"]);
        assert_eq!(
            redactor.clean("key=sk-123456789-long, sk-123456789 abc"),
            "key=[redacted], [redacted] abc"
        );
    }
}
