//! Removes what looks like a credential from memories before they are stored (`spec: memory` §1.3).
//!
//! Patterns, not known values: memories are written by agents, which see secrets nobody told us. Each pattern works on
//! what the one before it left. It never fails, and a second pass changes nothing.

use std::sync::LazyLock;

use longshore_base::WorkspaceId;
use regex::{Captures, Regex};

struct Pattern {
    label: &'static str,
    regex: Regex,
}

/// In the order they are applied. Word boundaries and white space are the ASCII ones. What the optional first group
/// captures is kept.
const PATTERNS: [(&str, &str); 9] = [
    (
        "API_KEY",
        r"(?i)(?-u:\b)[A-Z][A-Z0-9_]*_API_KEY[\t\n\f\r ]*=[\t\n\f\r ]*(?:Bearer[\t\n\f\r ]+)?[^\t\n\f\r ]+",
    ),
    (
        "TOKEN",
        r"(?i)(?-u:\b)[A-Z][A-Z0-9_]*_TOKEN[\t\n\f\r ]*=[\t\n\f\r ]*(?:Bearer[\t\n\f\r ]+)?[^\t\n\f\r ]+",
    ),
    (
        "SECRET",
        r"(?i)(?-u:\b)[A-Z][A-Z0-9_]*_SECRET[\t\n\f\r ]*=[\t\n\f\r ]*(?:Bearer[\t\n\f\r ]+)?[^\t\n\f\r ]+",
    ),
    ("BEARER_TOKEN", r"Bearer[\t\n\f\r ]+[^\t\n\f\r ]+"),
    ("SK_TOKEN", r"(^|[^A-Za-z])sk-[A-Za-z0-9\-_]{16,}"),
    ("CTX7_TOKEN", r"ctx7_[A-Za-z0-9]+"),
    (
        "GITHUB_TOKEN",
        r"(?-u:\b)(?:gh[ps]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{82})(?-u:\b)",
    ),
    ("AWS_ACCESS_KEY", r"(?-u:\b)AKIA[0-9A-Z]{16}(?-u:\b)"),
    ("BASE64_BLOB", r"[A-Za-z0-9+/]{33,}={0,2}"),
];

static COMPILED: LazyLock<Vec<Pattern>> = LazyLock::new(|| {
    PATTERNS
        .iter()
        .map(|(label, text)| Pattern {
            label,
            #[expect(
                clippy::expect_used,
                reason = "constants of this file, compiled by its tests"
            )]
            regex: Regex::new(text).expect("the patterns are valid"),
        })
        .collect()
});

/// The text without what looks like a credential; one warning per kind found, which never shows the value.
#[must_use]
pub fn redact(workspace: WorkspaceId, text: &str) -> String {
    let mut text = text.to_owned();
    for Pattern { label, regex } in COMPILED.iter() {
        if !regex.is_match(&text) {
            continue;
        }
        tracing::warn!(workspace.id = %workspace, redaction.label = label, "a memory held what looks like a credential");
        let replaced = regex.replace_all(&text, |found: &Captures<'_>| {
            let kept = found.get(1).map_or("", |group| group.as_str());
            format!("{kept}[REDACTED:{label}]")
        });
        text = replaced.into_owned();
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn clean(text: &str) -> String {
        redact(WorkspaceId::random(), text)
    }

    /// Input and output; the same text twice means that it is left alone.
    const VECTORS: [(&str, &str); 33] = [
        ("", ""),
        ("Deploys happen on Tuesdays", "Deploys happen on Tuesdays"),
        ("WEATHER_API_KEY=zk-778899", "[REDACTED:API_KEY]"),
        (
            "run with MAPS_V2_API_KEY=abc.def.ghi please",
            "run with [REDACTED:API_KEY] please",
        ),
        ("CI_TOKEN=not-a-real-value", "[REDACTED:TOKEN]"),
        ("SIGNING_SECRET=moonlight", "[REDACTED:SECRET]"),
        ("signing_secret \t= moonlight", "[REDACTED:SECRET]"),
        ("MAPS_API_KEY=\nnext line", "[REDACTED:API_KEY] line"),
        ("MAPS_API_KEY=\"one two\"", "[REDACTED:API_KEY] two\""),
        ("X_TOKEN=Bearer abc123 tail", "[REDACTED:TOKEN] tail"),
        ("éMAPS_API_KEY=abc", "é[REDACTED:API_KEY]"),
        (
            "API_KEY=abc TOKEN=abc password=abc",
            "API_KEY=abc TOKEN=abc password=abc",
        ),
        (
            "curl -H 'Authorization: Bearer qqq.www.eee' host",
            "curl -H 'Authorization: [REDACTED:BEARER_TOKEN] host",
        ),
        ("authorization: bearer qqq", "authorization: bearer qqq"),
        (
            "old key sk-fake-0000-1111-2222 rotated",
            "old key [REDACTED:SK_TOKEN] rotated",
        ),
        (
            "sk-aaaaaaaaaaaaaaaaaaaa,sk-bbbbbbbbbbbbbbbbbbbb",
            "[REDACTED:SK_TOKEN],[REDACTED:SK_TOKEN]",
        ),
        ("key_sk-aaaaaaaaaaaaaaaaaaaa", "key_[REDACTED:SK_TOKEN]"),
        ("sk-aaaaaaaaaaaaaaa", "sk-aaaaaaaaaaaaaaa"),
        ("sk-aaaaaaaaaaaaaaaa", "[REDACTED:SK_TOKEN]"),
        (
            "task-queue-consumer-worker and risk-register-for-quarter",
            "task-queue-consumer-worker and risk-register-for-quarter",
        ),
        ("docs via ctx7_Qq11Ww22", "docs via [REDACTED:CTX7_TOKEN]"),
        (
            "clone with ghp_Ab1Ab1Ab1Ab1Ab1Ab1Ab1Ab1Ab1Ab1Ab1Ab1 now",
            "clone with [REDACTED:GITHUB_TOKEN] now",
        ),
        (
            "ghp_b1Ab1Ab1Ab1Ab1Ab1Ab is too short",
            "ghp_b1Ab1Ab1Ab1Ab1Ab1Ab is too short",
        ),
        (
            "AKIAFAKEFAKEFAKE0000 is the id",
            "[REDACTED:AWS_ACCESS_KEY] is the id",
        ),
        (
            "blob Zm9vYmFyYmF6cXV4Zm9vYmFyYmF6cXV4Zm9v/w== end",
            "blob [REDACTED:BASE64_BLOB] end",
        ),
        (
            "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        ),
        (
            "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            "[REDACTED:BASE64_BLOB]",
        ),
        (
            "commit 0123456789abcdef0123456789abcdef01234567 landed",
            "commit [REDACTED:BASE64_BLOB] landed",
        ),
        (
            "see platform/crates/memory/search/ranking/module",
            "see [REDACTED:BASE64_BLOB]",
        ),
        (
            "see src/api/memory_v2/routes.rs",
            "see src/api/memory_v2/routes.rs",
        ),
        (
            "id a3c1f0de-5b7e-4c02-9d5a-6e1f2b3c4d50",
            "id a3c1f0de-5b7e-4c02-9d5a-6e1f2b3c4d50",
        ),
        (
            "a=MAPS_API_KEY=sk-fake-0000-1111-2222 b=Bearer qqq c=sk-fake-3333-4444-5555",
            "a=[REDACTED:API_KEY] b=[REDACTED:BEARER_TOKEN] c=[REDACTED:SK_TOKEN]",
        ),
        (
            "[REDACTED:API_KEY] and [REDACTED:BASE64_BLOB]",
            "[REDACTED:API_KEY] and [REDACTED:BASE64_BLOB]",
        ),
    ];

    #[test]
    fn the_golden_vectors_come_out_and_stay_as_they_are() {
        for (input, output) in VECTORS {
            assert_eq!(clean(input), output, "{input:?}");
            assert_eq!(clean(output), output, "second pass of {input:?}");
        }
    }

    proptest! {
        #[test]
        fn a_second_pass_changes_nothing(text in "([A-Z]{0,3}(_API_KEY|_TOKEN|_SECRET|sk-|Bearer|ctx7_|ghp_|=| |\n|é|[a-z]{1,20})){0,8}") {
            let once = clean(&text);
            prop_assert_eq!(clean(&once), once);
        }
    }
}
