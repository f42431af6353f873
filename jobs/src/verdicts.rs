//! What trouble with its own job or with Postgres means for a run, whatever its kind.

use longshore_fleet::FleetError;
use longshore_ledger::{Fenced, JobError, Verdict};

/// What is told of a run that Postgres did not answer.
pub(crate) const NO_DATABASE: &str = "the database was not available";

/// Of a run that may not write: another has the job, or nobody can tell.
pub(crate) fn of_fence(fenced: &Fenced) -> Verdict {
    match fenced {
        Fenced::Lost(_) => Verdict::GiveBack,
        Fenced::Database { .. } => Verdict::Retry(JobError::new(NO_DATABASE, fenced)),
    }
}

/// Of a statement that failed.
pub(crate) fn of_fleet(error: &FleetError) -> Verdict {
    let failure = JobError::new(NO_DATABASE, error);
    if error.retryable() {
        Verdict::Retry(failure)
    } else {
        Verdict::Permanent(failure)
    }
}
