//! The tables a run ends with: medians of the rounds, how far these lie apart, and ours against each peer.

use std::time::Duration;

use super::stage::Measured;
use crate::stats::median;

struct Column {
    title: &'static str,
    decimals: usize,
    of: fn(&Measured) -> f64,
}

const COLUMNS: [Column; 9] = [
    Column {
        title: "jobs/s",
        decimals: 0,
        of: |m| m.run_rate,
    },
    Column {
        title: "enqueue/s",
        decimals: 0,
        of: |m| m.enqueue_rate,
    },
    Column {
        title: "idle p50 ms",
        decimals: 2,
        of: |m| milliseconds(m.idle_p50),
    },
    Column {
        title: "idle p99 ms",
        decimals: 2,
        of: |m| milliseconds(m.idle_p99),
    },
    Column {
        title: "CPU s/1000",
        decimals: 3,
        of: |m| m.enqueue_cpu + m.run_cpu,
    },
    Column {
        title: "redis peak B",
        decimals: 0,
        of: |m| m.redis_peak,
    },
    Column {
        title: "redis left B",
        decimals: 0,
        of: |m| m.redis_left,
    },
    Column {
        title: "pg left B",
        decimals: 0,
        of: |m| m.postgres_left,
    },
    Column {
        title: "WAL B",
        decimals: 0,
        of: |m| m.wal,
    },
];
/// Width of a system's name and of a number.
const NAME: usize = 24;
const NUMBER: usize = 14;

/// A system's name, its processes, and its rounds.
pub(crate) struct Rounds {
    pub(crate) name: &'static str,
    pub(crate) is_ours: bool,
    pub(crate) processes: usize,
    pub(crate) rounds: Vec<Measured>,
}

impl Rounds {
    fn values(&self, column: &Column) -> Vec<f64> {
        self.rounds.iter().map(column.of).collect()
    }
}

/// One line on a round, while the run goes on.
pub(crate) fn line(round: usize, name: &str, measured: &Measured) {
    println!(
        "  round {round} {name:<NAME$} {:>8.0} jobs/s, enqueued at {:.0}/s, CPU {:.3} + {:.3} s/1000",
        measured.run_rate, measured.enqueue_rate, measured.enqueue_cpu, measured.run_cpu
    );
}

/// The tables.
pub(crate) fn print(all: &[Rounds]) {
    head("medians (bytes and CPU seconds: of enqueuing and running, a job or a thousand)");
    for system in all {
        row(&label(system), |column| {
            number(median(&system.values(column)), column.decimals)
        });
    }
    if all.iter().any(|system| system.rounds.len() > 1) {
        head("spread of the rounds, (most - least) / median");
        for system in all {
            row(&label(system), |column| spread(&system.values(column)));
        }
    }
    let (all_ours, peers): (Vec<&Rounds>, Vec<&Rounds>) =
        all.iter().partition(|system| system.is_ours);
    if peers.is_empty() {
        return;
    }
    for ours in all_ours {
        head(&format!(
            "{} / peer (rates: above 1 is better; all else: below 1 is)",
            ours.name
        ));
        for peer in &peers {
            row(peer.name, |column| {
                let (own, other) = (median(&ours.values(column)), median(&peer.values(column)));
                // Next to nothing on either side makes no ratio.
                if own > 0.0 && other >= 0.5 * 10_f64.powi(-to_i32(column.decimals)) {
                    number(own / other, 2)
                } else {
                    "-".to_owned()
                }
            });
        }
    }
}

/// Not a number where nothing was measured.
fn milliseconds(time: Option<Duration>) -> f64 {
    time.map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
}

fn number(value: f64, decimals: usize) -> String {
    if value.is_nan() {
        "-".to_owned()
    } else {
        format!("{value:.decimals$}")
    }
}

fn to_i32(decimals: usize) -> i32 {
    i32::try_from(decimals).unwrap_or_default()
}

fn label(system: &Rounds) -> String {
    match system.processes {
        1 => system.name.to_owned(),
        processes => format!("{} x{processes}", system.name),
    }
}

fn spread(values: &[f64]) -> String {
    let most = values.iter().copied().fold(f64::MIN, f64::max);
    let least = values.iter().copied().fold(f64::MAX, f64::min);
    let middle = median(values);
    if middle.is_nan() || middle.abs() < f64::EPSILON {
        "-".to_owned()
    } else {
        format!("{:.1} %", (most - least) / middle.abs() * 100.0)
    }
}

fn head(title: &str) {
    println!("\n{title}");
    row("", |column| column.title.to_owned());
}

fn row(name: &str, cell: impl Fn(&Column) -> String) {
    print!("{name:<NAME$}");
    for column in &COLUMNS {
        print!("{:>NUMBER$}", cell(column));
    }
    println!();
}
