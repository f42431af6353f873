//! What commands show: tables and lines for people, JSON for scripts, a spinner while waiting on a terminal.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use clap::Args;
use comfy_table::Table;
use comfy_table::presets::NOTHING;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

/// How a command answers.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct OutputArgs {
    /// Print the server's answer as JSON, for scripts.
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

/// Prints a value as JSON, one document.
pub(crate) fn print_json(value: &Value) {
    print_line(&format!("{value:#}"));
}

/// Prints a line to standard output. A reader that went away (`| head`) ends the command quietly.
pub(crate) fn print_line(line: &str) {
    let mut out = std::io::stdout().lock();
    if writeln!(out, "{line}").is_err() {
        std::process::exit(0);
    }
}

/// A table without lines, so that columns can be cut out.
pub(crate) fn print_table<const N: usize>(
    header: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(header);
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    for line in table.lines() {
        print_line(line.trim_end());
    }
}

/// Names and values below each other; empty values are left out.
pub(crate) fn print_fields(fields: &[(&str, String)]) {
    let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, value) in fields {
        if !value.is_empty() {
            print_line(&format!("{name:width$}  {value}"));
        }
    }
}

/// A member of an answer as text: empty when absent or null.
pub(crate) fn text(value: &Value, member: &str) -> String {
    match value.get(member) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

/// A timestamp without its fraction and zone, which is UTC everywhere.
pub(crate) fn moment(value: &Value, member: &str) -> String {
    text(value, member)
        .get(..19)
        .map(|moment| moment.replace('T', " "))
        .unwrap_or_default()
}

/// The first line of a text, at most `most` characters of it.
pub(crate) fn headline(text: &str, most: usize) -> String {
    let line = text.lines().next().unwrap_or_default();
    if line.chars().count() <= most {
        return line.to_owned();
    }
    let cut: String = line.chars().take(most.saturating_sub(1)).collect();
    format!("{cut}…")
}

/// What is shown while waiting: a spinner on a terminal, a line per change on standard error elsewhere.
pub(crate) struct Waiting {
    bar: Option<ProgressBar>,
    last: String,
}

impl Waiting {
    /// Begins to wait for `what`.
    pub(crate) fn start(what: &str) -> Self {
        if !std::io::stderr().is_terminal() {
            return Self {
                bar: None,
                last: String::new(),
            };
        }
        let bar = ProgressBar::new_spinner().with_message(what.to_owned());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(100));
        Self {
            bar: Some(bar),
            last: String::new(),
        }
    }

    /// Says how far it is.
    pub(crate) fn update(&mut self, state: &str) {
        if state == self.last {
            return;
        }
        state.clone_into(&mut self.last);
        match &self.bar {
            Some(bar) => bar.set_message(state.to_owned()),
            None => eprintln!("{state}"),
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn absent_null_and_other_members_become_text() {
        let value = json!({"a": "x", "b": null, "c": 3, "at": "2026-01-02T03:04:05.678Z"});
        assert_eq!(text(&value, "a"), "x");
        assert_eq!(text(&value, "b"), "");
        assert_eq!(text(&value, "c"), "3");
        assert_eq!(text(&value, "nope"), "");
        assert_eq!(moment(&value, "at"), "2026-01-02 03:04:05");
        assert_eq!(headline("first\nsecond", 40), "first");
        assert_eq!(headline("abcdef", 4), "abc…");
    }
}
