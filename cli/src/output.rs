//! What commands show: tables and lines for people, JSON for scripts, a spinner while waiting on a terminal.

use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::time::Duration;

use clap::Args;
use comfy_table::Table;
use comfy_table::presets::NOTHING;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

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

/// The items of a list.
pub(crate) fn items(page: &Value) -> &[Value] {
    page.get("items")
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default()
}

/// A span of time in its two largest units: `2h 5m`.
pub(crate) fn span(seconds: f64) -> String {
    let seconds = Duration::try_from_secs_f64(seconds.floor()).unwrap_or_default();
    let text = humantime::format_duration(seconds).to_string();
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

/// The body of a change that takes a reason.
pub(crate) fn reasoned(reason: Option<&str>) -> Value {
    match reason {
        Some(reason) => json!({"reason": reason}),
        None => json!({}),
    }
}

/// Asks a question on the terminal; anything but yes is a no. `None`: nobody is there to ask.
pub(crate) fn confirmed(question: &str) -> std::io::Result<Option<bool>> {
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return Ok(None);
    }
    eprint!("{question} [y/N] ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(Some(matches!(answer.trim(), "y" | "Y" | "yes")))
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
        assert_eq!(items(&json!({"items": [1, 2]})).len(), 2);
        assert!(items(&Value::Null).is_empty());
    }

    #[test]
    fn spans_are_told_in_two_units_at_most() {
        for (seconds, text) in [
            (0.4, "0s"),
            (59.9, "59s"),
            (7_503.0, "2h 5m"),
            (90_061.0, "1day 1h"),
            (-1.0, "0s"),
        ] {
            assert_eq!(span(seconds), text);
        }
    }
}
