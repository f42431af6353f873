//! Job kinds: a specification with its hooks, known to every process, and an executor, known to workers.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use sqlx::PgConnection;

use crate::{Conflict, Older, Policy, Resolution, RunContext, TerminalJob, Verdict};

/// A hook failed; its transaction is rolled back and the end of the job is tried again.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct HookError {
    /// What was being done.
    pub what: String,
    /// Why it failed.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl HookError {
    /// A failure with its cause.
    pub fn new(
        what: impl Into<String>,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        Self {
            what: what.into(),
            source: Some(Box::new(source)),
        }
    }
}

/// What the end of a job means to the rows it was about. Runs in the transaction that ends the job, whoever ends it:
/// executor, reaper, cancel or deadline.
#[async_trait]
pub trait Hooks: Send + Sync + 'static {
    /// The job has ended. Must be safe when the workspace row is gone.
    ///
    /// # Errors
    /// Rolls the whole end back; it is tried again.
    async fn on_terminal(&self, tx: &mut PgConnection, job: &TerminalJob) -> Result<(), HookError>;

    /// Somebody wants the ended job to run again; whatever its end did to other rows is undone here, or the retry is
    /// refused with a reason for people.
    ///
    /// # Errors
    /// Rolls the retry back.
    async fn on_retry(&self, _: &mut PgConnection, _: &TerminalJob) -> Result<Revival, HookError> {
        Ok(Revival::Allowed)
    }
}

/// Whether an ended job may run again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Revival {
    /// It may.
    Allowed,
    /// It may not; the text says why.
    Refused(String),
}

/// Does the work of one kind. Right when run twice, when killed between any two lines, and when the row is gone.
#[async_trait]
pub trait Executor: Send + Sync + 'static {
    /// One run. Gets no pool: every write goes through [`RunContext::begin`].
    async fn run(&self, ctx: &RunContext) -> Verdict;
}

/// What every process knows of a kind.
#[derive(Clone)]
pub struct KindSpec {
    /// One imperative word: `provision`.
    pub name: &'static str,
    /// Shapes of arguments this version can read.
    pub args_versions: &'static [i16],
    /// Attempts, waits, limits.
    pub policy: Policy,
    /// What its end means to others; none for kinds about nothing.
    pub hooks: Option<Arc<dyn Hooks>>,
}

/// The kinds a process knows, by name.
#[derive(Clone, Default)]
pub struct Kinds {
    specs: BTreeMap<&'static str, KindSpec>,
    conflicts: &'static [Conflict],
}

impl Kinds {
    /// Adds one; a later registration of the same name replaces the earlier.
    #[must_use]
    pub fn with(mut self, spec: KindSpec) -> Self {
        self.specs.insert(spec.name, spec);
        self
    }

    /// Says what newer jobs do to older ones of the same key.
    #[must_use]
    pub fn with_conflicts(mut self, table: &'static [Conflict]) -> Self {
        self.conflicts = table;
        self
    }

    /// What happens to an older job when a newer one is asked for; what stands in no cell waits.
    #[must_use]
    pub fn resolution(&self, newer: &str, older: &str, when: Older) -> Resolution {
        self.conflicts
            .iter()
            .find(|cell| (cell.newer, cell.older, cell.when) == (newer, older, when))
            .map_or(Resolution::Wait, |cell| cell.then)
    }

    /// The specification of a kind this process knows.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&KindSpec> {
        self.specs.get(name)
    }

    /// All of them, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = &KindSpec> {
        self.specs.values()
    }
}

impl std::fmt::Debug for Kinds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.specs.keys()).finish()
    }
}
