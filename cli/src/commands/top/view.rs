//! How it looks: parts below each other, each with a heading and rows, cut to what fits.

use std::collections::BTreeMap;
use std::time::Duration;

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::Widget as _;
use serde_json::Value;

use super::snapshot::Snapshot;
use crate::commands::queues;
use crate::commands::workers::{runs, slots};
use crate::output::{headline, items, moment, span, text};

/// Rows of holds that are shown before queues or workers give way.
const HOLDS: usize = 4;
const HEADING: Style = Style::new().add_modifier(Modifier::BOLD);
const FAINT: Style = Style::new().add_modifier(Modifier::DIM);
const WARNING: Style = Style::new().fg(Color::Yellow);
const ALARM: Style = Style::new().fg(Color::Red).add_modifier(Modifier::BOLD);

/// How new what is shown is.
pub(super) enum Freshness {
    /// Nothing has come yet.
    None,
    /// As new as was asked for.
    Now,
    /// The last look did not succeed.
    Lost {
        trouble: String,
        /// Since the last one that did.
        age: Option<Duration>,
    },
}

/// A part of the screen.
struct Part {
    header: Vec<&'static str>,
    rows: Vec<(Vec<String>, Style)>,
    /// What stands there when there are no rows.
    none: &'static str,
}

/// Draws what fits.
pub(super) fn draw(
    snapshot: &Snapshot,
    address: &str,
    freshness: &Freshness,
    area: Rect,
    buffer: &mut Buffer,
) {
    if area.is_empty() {
        return;
    }
    heading(snapshot, address, freshness).render(area.rows().next().unwrap_or(area), buffer);
    if matches!(
        freshness,
        Freshness::None | Freshness::Lost { age: None, .. }
    ) {
        return;
    }
    let parts = parts(snapshot);
    let heights = heights(&parts, usize::from(area.height).saturating_sub(1));
    let mut y = area.y + 1;
    for (part, rows) in parts.iter().zip(heights) {
        // A blank line, the heading of the columns, and the rows.
        let height = u16::try_from(rows + 1).unwrap_or(u16::MAX);
        let place = Rect::new(area.x, y + 1, area.width, height).intersection(area);
        if place.is_empty() {
            return;
        }
        part.render(rows, place, buffer);
        y = place.bottom();
    }
}

/// All of it as lines of text.
pub(super) fn plain(snapshot: &Snapshot, address: &str, columns: u16) -> Vec<String> {
    let rows: usize = parts(snapshot).iter().map(|part| part.wanted() + 2).sum();
    let height = u16::try_from(rows + 1).unwrap_or(u16::MAX);
    let area = Rect::new(0, 0, columns.max(1), height);
    let mut buffer = Buffer::empty(area);
    draw(snapshot, address, &Freshness::Now, area, &mut buffer);
    area.rows().map(|row| line(&buffer, row)).collect()
}

/// A row of the buffer as text. What is two columns wide takes two cells, the second of which is blank.
fn line(buffer: &Buffer, row: Rect) -> String {
    let mut text = String::new();
    let mut x = row.left();
    while let Some(cell) = buffer.cell((x, row.y)).filter(|_| x < row.right()) {
        text.push_str(cell.symbol());
        x += u16::try_from(Span::raw(cell.symbol()).width().max(1)).unwrap_or(1);
    }
    text.trim_end().to_owned()
}

fn heading<'a>(snapshot: &Snapshot, address: &'a str, freshness: &Freshness) -> Line<'a> {
    let state = match freshness {
        Freshness::None => Span::raw("asking…"),
        Freshness::Now => {
            let workers = items(&snapshot.workers);
            let up = workers
                .iter()
                .filter(|worker| text(worker, "state") == "up")
                .count();
            let running: usize = workers.iter().map(|worker| runs(worker).len()).sum();
            Span::raw(format!(
                "{running} running on {up} of {} workers",
                workers.len()
            ))
        }
        Freshness::Lost { trouble, age: None } => {
            Span::styled(format!("{trouble}; trying again"), ALARM)
        }
        Freshness::Lost {
            trouble,
            age: Some(age),
        } => Span::styled(
            format!("{} old: {trouble}; trying again", span(age.as_secs_f64())),
            ALARM,
        ),
    };
    Line::from(vec![
        Span::styled("longshore top", HEADING),
        Span::raw("  "),
        Span::raw(address),
        Span::raw("  "),
        state,
    ])
}

fn parts(snapshot: &Snapshot) -> Vec<Part> {
    let mut parts = vec![queues_part(&snapshot.queues)];
    if !items(&snapshot.holds).is_empty() {
        parts.push(holds_part(&snapshot.holds));
    }
    parts.push(workers_part(&snapshot.workers));
    parts.push(failures_part(&snapshot.failures));
    parts
}

fn queues_part(queues: &Value) -> Part {
    Part {
        header: queues::COLUMNS.to_vec(),
        rows: items(queues)
            .iter()
            .map(|queue| {
                let row = queues::row(queue);
                let style = match text(queue, "mode").as_str() {
                    "run" if row[8] != "0" && !row[8].is_empty() => ALARM,
                    "run" => Style::new(),
                    "reject" => ALARM,
                    _ => WARNING,
                };
                (row.into(), style)
            })
            .collect(),
        none: "no queues",
    }
}

fn holds_part(holds: &Value) -> Part {
    Part {
        header: vec![
            "HELD",
            "VALUE",
            "MODE",
            "SINCE (UTC)",
            "UNTIL (UTC)",
            "BY",
            "REASON",
        ],
        rows: items(holds)
            .iter()
            .map(|hold| {
                let row = vec![
                    text(hold, "scope"),
                    text(hold, "value"),
                    text(hold, "mode"),
                    moment(hold, "since"),
                    moment(hold, "until"),
                    text(hold, "set_by"),
                    headline(&text(hold, "reason"), 60),
                ];
                (row, WARNING)
            })
            .collect(),
        none: "",
    }
}

fn workers_part(workers: &Value) -> Part {
    Part {
        header: vec!["WORKER", "STATE", "FREE", "VERSION", "RUNNING"],
        rows: items(workers)
            .iter()
            .map(|worker| {
                let state = text(worker, "state");
                let style = match state.as_str() {
                    "up" => Style::new(),
                    "draining" => WARNING,
                    _ => ALARM,
                };
                let row = vec![
                    text(worker, "name"),
                    state,
                    slots(worker),
                    text(worker, "version"),
                    kinds(worker),
                ];
                (row, style)
            })
            .collect(),
        none: "no workers: nothing runs",
    }
}

/// What a worker runs, by kind: `provision 3, stop 1`.
fn kinds(worker: &Value) -> String {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for run in runs(worker) {
        *counts.entry(text(run, "kind")).or_default() += 1;
    }
    let counts: Vec<String> = counts
        .iter()
        .map(|(kind, count)| format!("{kind} {count}"))
        .collect();
    counts.join(", ")
}

fn failures_part(failures: &Value) -> Part {
    Part {
        header: vec!["FAILED (UTC)", "KIND", "JOB", "WORKSPACE", "ERROR"],
        rows: items(failures)
            .iter()
            .map(|job| {
                let row = vec![
                    moment(job, "finished_at"),
                    text(job, "kind"),
                    text(job, "id"),
                    text(job, "workspace_id"),
                    headline(&text(job, "last_error"), 200),
                ];
                (row, Style::new())
            })
            .collect(),
        none: "no dead jobs",
    }
}

impl Part {
    /// Rows it would like to have.
    fn wanted(&self) -> usize {
        self.rows.len().max(1)
    }

    fn render(&self, rows: usize, area: Rect, buffer: &mut Buffer) {
        let shown = if self.rows.len() > rows {
            rows.saturating_sub(1)
        } else {
            self.rows.len()
        };
        let widths: Vec<usize> = (0..self.header.len())
            .map(|column| {
                let cells = self
                    .rows
                    .iter()
                    .take(shown)
                    .map(|(cells, _)| &cells[column]);
                let widths = cells.map(|cell| Span::raw(cell.as_str()).width());
                widths.max().unwrap_or(0).max(self.header[column].len())
            })
            .collect();
        let mut lines = area.rows();
        if let Some(place) = lines.next() {
            cells(self.header.iter().copied(), &widths, HEADING, place, buffer);
        }
        for ((row, style), place) in self.rows.iter().take(shown).zip(&mut lines) {
            cells(
                row.iter().map(String::as_str),
                &widths,
                *style,
                place,
                buffer,
            );
        }
        let last = match self.rows.len() - shown {
            0 if self.rows.is_empty() => Span::styled(self.none, FAINT),
            0 => return,
            more => Span::styled(format!("… and {more} more"), FAINT),
        };
        if let Some(place) = lines.next() {
            last.render(place, buffer);
        }
    }
}

/// Texts in columns. What does not fit is cut at the right: no column is squeezed for another.
fn cells<'a>(
    texts: impl Iterator<Item = &'a str>,
    widths: &[usize],
    style: Style,
    place: Rect,
    buffer: &mut Buffer,
) {
    let mut x = place.left();
    for (text, width) in texts.zip(widths) {
        if x >= place.right() {
            return;
        }
        buffer.set_stringn(x, place.y, text, usize::from(place.right() - x), style);
        x = x.saturating_add(u16::try_from(width + 2).unwrap_or(u16::MAX));
    }
}

/// Rows of each part in so many lines: queues first, then holds, then workers and failures, who share what is left.
fn heights(parts: &[Part], lines: usize) -> Vec<usize> {
    let mut left = lines.saturating_sub(parts.len() * 2);
    let last = parts.len().saturating_sub(1);
    parts
        .iter()
        .enumerate()
        .map(|(index, part)| {
            let most = match index {
                0 => left,
                _ if index == last => left,
                // Workers leave failures what these want, or half.
                _ if index + 1 == last => {
                    let failures = parts.get(last).map_or(0, Part::wanted);
                    left - failures.min(left / 2)
                }
                _ => HOLDS.min(left),
            };
            let rows = part.wanted().min(most);
            left -= rows;
            rows
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn shown(columns: u16, rows: u16, snapshot: &Snapshot) -> Vec<String> {
        let area = Rect::new(0, 0, columns, rows);
        let mut buffer = Buffer::empty(area);
        draw(snapshot, "http://x", &Freshness::Now, area, &mut buffer);
        area.rows().map(|row| line(&buffer, row)).collect()
    }

    fn many() -> Snapshot {
        let list = |items: Vec<Value>| json!({"items": items});
        let numbered =
            |most: usize| (0..most).map(|n| json!({"name": format!("n{n}"), "id": n.to_string()}));
        Snapshot {
            queues: list(numbered(3).collect()),
            holds: list(numbered(9).collect()),
            workers: list(numbered(40).collect()),
            failures: list(numbered(50).collect()),
        }
    }

    #[test]
    fn what_does_not_fit_is_counted() {
        let lines = shown(100, 24, &many());
        let more: Vec<_> = lines.iter().filter(|line| line.starts_with('…')).collect();
        assert_eq!(
            more,
            ["… and 6 more", "… and 37 more", "… and 47 more"],
            "{lines:#?}"
        );
        for part in ["QUEUE", "HELD", "WORKER", "FAILED"] {
            assert!(
                lines.iter().any(|line| line.starts_with(part)),
                "{part}: {lines:#?}"
            );
        }
    }

    #[test]
    fn no_size_of_a_terminal_is_too_small() {
        for columns in 0..30 {
            for rows in 0..30 {
                shown(columns, rows, &many());
                shown(columns, rows, &Snapshot::default());
            }
        }
    }

    #[test]
    fn wide_letters_stay_letters_and_control_characters_do_nothing() {
        let snapshot = Snapshot {
            failures: json!({"items": [{"kind": "k", "last_error": "画像がない\u{1b}[2J"}]}),
            ..Snapshot::default()
        };
        let lines = shown(80, 20, &snapshot);
        assert!(
            lines.iter().any(|line| line.ends_with("画像がない[2J")),
            "{lines:#?}"
        );
    }
}
