//! Writing YAML by hand, for files whose keys have an order that is a promise.

use std::fmt::Write as _;

/// A double-quoted YAML scalar on one line that reads back as the text.
pub(crate) fn quoted(text: &str) -> String {
    let mut scalar = String::with_capacity(text.len() + 2);
    scalar.push('"');
    for c in text.chars() {
        match c {
            '\\' => scalar.push_str("\\\\"),
            '"' => scalar.push_str("\\\""),
            '\n' => scalar.push_str("\\n"),
            '\r' => scalar.push_str("\\r"),
            '\t' => scalar.push_str("\\t"),
            // Line and paragraph separators and the byte order mark are not printable in YAML either.
            c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}') => {
                // Writing into a String cannot fail.
                write!(scalar, "\\U{:08x}", u32::from(c)).ok();
            }
            c => scalar.push(c),
        }
    }
    scalar.push('"');
    scalar
}
