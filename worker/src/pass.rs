//! What a reconciler is, what it is told of a pass, and what it says of it (`spec: operations` §4).

use std::collections::HashSet;
use std::time::Duration;

use async_trait::async_trait;
use serde::Serialize;
use sqlx::{Postgres, Transaction};

/// Destructive acts that every pass may do, however little it looked at.
pub(crate) const LEAST_BUDGET: usize = 5;
/// Of what a pass looked at, one in so many may be destroyed.
const BUDGET_SHARE: usize = 20;
/// How many a report names.
const SAMPLE: usize = 10;

/// Why a pass could not be made.
pub(crate) type PassError = Box<dyn std::error::Error + Send + Sync>;

/// Something that keeps something true: one pass over wanted and actual, without a loop and without a hint about what
/// changed.
#[async_trait]
pub(crate) trait Reconciler: Send + Sync + 'static {
    /// Its name, as operators know it.
    fn name(&self) -> &'static str;
    /// The part of the world it looks at: `all`, or an engine's id.
    fn scope(&self) -> String;
    /// Time between passes.
    fn interval(&self) -> Duration;
    /// One pass. A dry run changes nothing and says what it would have done.
    async fn pass(&self, pass: &Pass) -> Result<PassReport, PassError>;
}

/// What a pass may do.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pass {
    /// It may only look.
    pub(crate) dry_run: bool,
    /// What an operator lets it destroy beyond its budget.
    pub(crate) approved: Vec<String>,
}

/// What a pass saw and did.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct PassReport {
    /// Things looked at.
    pub(crate) seen: usize,
    /// Things changed.
    pub(crate) acted: usize,
    /// Things left alone on purpose.
    pub(crate) skipped: usize,
    /// Things that could not be looked at or changed.
    pub(crate) failed: usize,
    /// A few of what was acted on.
    pub(crate) sample: Vec<String>,
    /// Why it did less than it is there for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) note: Option<String>,
    /// Of a dry run: all that it would have acted on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) would: Option<Vec<String>>,
    /// It wanted to destroy more than it may.
    #[serde(skip)]
    pub(crate) blocked: Option<Blocked>,
    /// It could not look, so it says nothing of what an earlier one held back.
    #[serde(skip)]
    pub(crate) is_blind: bool,
}

/// More than a pass may destroy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Blocked {
    /// In words.
    pub(crate) reason: String,
    /// All that it wanted.
    pub(crate) wanted: Vec<String>,
    /// How much it may destroy without being asked.
    pub(crate) budget: usize,
}

impl PassReport {
    /// Of a pass that could not look.
    pub(crate) fn skipped_pass(note: impl Into<String>) -> Self {
        Self {
            failed: 1,
            note: Some(note.into()),
            is_blind: true,
            ..Self::default()
        }
    }

    /// Notes an act; the sample stays small.
    pub(crate) fn act(&mut self, on: impl ToString) {
        self.acted += 1;
        if self.sample.len() < SAMPLE {
            self.sample.push(on.to_string());
        }
    }
}

impl Pass {
    /// Ends the transaction of what was decided in it: a dry run takes everything back.
    pub(crate) async fn keep(&self, tx: Transaction<'_, Postgres>) -> Result<(), sqlx::Error> {
        if self.dry_run {
            tx.rollback().await
        } else {
            tx.commit().await
        }
    }

    /// The report of a pass that looked only at what it then acted on, or would have.
    pub(crate) fn report(&self, on: impl ExactSizeIterator<Item = impl ToString>) -> PassReport {
        let mut report = PassReport {
            seen: on.len(),
            would: self.dry_run.then(Vec::new),
            ..PassReport::default()
        };
        for one in on {
            self.note_act(&mut report, one.to_string());
        }
        report
    }

    /// Notes something that was done, or would have been.
    pub(crate) fn note_act(&self, report: &mut PassReport, what: String) {
        if self.dry_run {
            report.would.get_or_insert_default().push(what);
        } else {
            report.act(what);
        }
    }

    /// Whether acts that destroy nothing may be done, however many: not in a dry run, whose report names them instead.
    pub(crate) fn goes_ahead(
        &self,
        report: &mut PassReport,
        wanted: impl Iterator<Item = String>,
    ) -> bool {
        if self.dry_run {
            report.would.get_or_insert_default().extend(wanted);
        }
        !self.dry_run
    }

    /// Whether all of these destructive acts, which take something away or bring it down, may be done, given how much the
    /// report says was looked at. If not, the report says why, and nothing of it may be done.
    pub(crate) fn may(&self, report: &mut PassReport, wanted: Vec<String>) -> bool {
        let budget = LEAST_BUDGET.max(report.seen / BUDGET_SHARE);
        let approved: HashSet<_> = self.approved.iter().collect();
        let unasked = wanted.iter().filter(|one| !approved.contains(one));
        let within = unasked.count() <= budget;
        if within && !self.dry_run {
            return true;
        }
        let reason = format!(
            "{} of {} would be acted on, and a pass may act on {budget} without being asked",
            wanted.len(),
            report.seen
        );
        self.hold_back(report, wanted, budget, (!within).then_some(reason));
        false
    }

    /// Leaves everything that was wanted undone: in a dry run, or because of the reason.
    pub(crate) fn hold_back(
        &self,
        report: &mut PassReport,
        wanted: Vec<String>,
        budget: usize,
        reason: Option<String>,
    ) {
        if self.dry_run {
            if let Some(reason) = reason {
                report.note = Some(format!("the pass would be blocked: {reason}"));
            }
            report.would.get_or_insert_default().extend(wanted);
        } else if let Some(reason) = reason {
            report.skipped += wanted.len();
            report.note = Some(format!("blocked: {reason}"));
            report.blocked = Some(Blocked {
                reason,
                wanted,
                budget,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|n| format!("ws-{n}")).collect()
    }

    fn looked_at(seen: usize) -> PassReport {
        PassReport {
            seen,
            ..PassReport::default()
        }
    }

    #[test]
    fn a_pass_may_destroy_five_or_a_twentieth_of_what_it_looked_at() {
        for (seen, wanted, may) in [
            (0, 0, true),
            (5, 5, true),
            (6, 6, false),
            (100, 5, true),
            (119, 6, false),
            (120, 6, true),
            (1000, 50, true),
            (1000, 51, false),
        ] {
            let mut report = looked_at(seen);
            let answer = Pass::default().may(&mut report, names(wanted));
            assert_eq!(answer, may, "{wanted} of {seen}");
            let blocked = report.blocked.map(|blocked| blocked.wanted);
            assert_eq!(blocked, (!may).then(|| names(wanted)));
        }
    }

    #[test]
    fn what_was_approved_does_not_count_and_what_came_since_does() {
        let pass = Pass {
            approved: names(8),
            ..Pass::default()
        };
        assert!(pass.may(&mut looked_at(20), names(8)));
        assert!(pass.may(&mut looked_at(20), names(13)));
        let mut report = looked_at(20);
        assert!(!pass.may(&mut report, names(14)));
        assert_eq!(report.blocked.unwrap().wanted.len(), 14);
    }

    #[test]
    fn a_dry_run_may_nothing_and_says_what_it_would_do() {
        let pass = Pass {
            dry_run: true,
            ..Pass::default()
        };
        let mut report = looked_at(20);
        assert!(!pass.may(&mut report, names(2)));
        assert_eq!(report.would, Some(names(2)));
        assert_eq!((&report.note, &report.blocked), (&None, &None));
        let mut report = looked_at(20);
        assert!(!pass.may(&mut report, names(6)));
        let note = report.note.unwrap();
        assert!(
            note.starts_with("the pass would be blocked: 6 of 20"),
            "{note}"
        );
    }
}
