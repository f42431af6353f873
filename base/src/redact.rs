//! Removes known secret values from text that leaves the process: logs, events, error texts.
//!
//! This is the second line of defence; the first is not putting them there. It knows values, not patterns: patterns
//! would eat digests and container ids. It knows them also as JSON, URLs and base64 write them, since that is how a value
//! gets into a line with other things around it.

use std::collections::HashSet;
use std::sync::{Arc, RwLock};

use aho_corasick::{AhoCorasick, MatchKind};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};

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
    values: HashSet<String>,
    forms: Vec<String>,
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
            if value.len() >= MIN_LENGTH && known.values.insert(value.to_owned()) {
                known.forms.extend(forms(value));
            }
        }
        if known.values.len() != before {
            known.matcher = AhoCorasick::builder()
                .match_kind(MatchKind::LeftmostLongest)
                .build(&known.forms)
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
            Some(matcher) => matcher.replace_all(text, &vec![MASK; known.forms.len()]),
            None => text.to_owned(),
        }
    }
}

/// A value as it may stand in a text. The one without padding is in the one with it; the longest match wins.
fn forms(value: &str) -> Vec<String> {
    let json = serde_json::Value::from(value).to_string();
    let mut forms = vec![
        value.to_owned(),
        json[1..json.len() - 1].to_owned(),
        url_encoded(value, "%20"),
        url_encoded(value, "+"),
        STANDARD.encode(value),
        STANDARD_NO_PAD.encode(value),
        URL_SAFE_NO_PAD.encode(value),
    ];
    forms.sort_unstable();
    forms.dedup();
    forms
}

fn url_encoded(value: &str, space: &str) -> String {
    let mut encoded = String::with_capacity(value.len());
    for byte in value.bytes() {
        match byte {
            b' ' => encoded.push_str(space),
            b'-' | b'.' | b'_' | b'~' => encoded.push(char::from(byte)),
            byte if byte.is_ascii_alphanumeric() => encoded.push(char::from(byte)),
            byte => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_masked_however_it_is_written() {
        let redactor = Redactor::default();
        let value = "a \"quoted\" back\\slash/+=é\n";
        redactor.learn([value]);
        for line in [
            value.to_owned(),
            serde_json::json!({ "value": value }).to_string(),
            format!("https://x.test/?a={}&b=1", url_encoded(value, "+")),
            format!("https://x.test/{}", url_encoded(value, "%20")),
            format!("Basic {}", STANDARD.encode(value)),
            format!("token={}.", URL_SAFE_NO_PAD.encode(value)),
        ] {
            let clean = redactor.clean(&line);
            assert!(clean.contains(MASK), "{clean}");
            assert!(
                !clean.contains("quoted") && !clean.contains("YSAi"),
                "{clean}"
            );
        }
    }

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
