//! Cancelling: at once for what waits, by request for what runs.

use longshore_base::JobId;
use sqlx::PgConnection;

use crate::finish::{End, end, lock};
use crate::job::State;
use crate::{Kinds, LedgerError, Outcome};

/// What a cancel did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CancelOutcome {
    /// It waited and is cancelled now. The queues are to be poked after the commit.
    WasWaiting(Vec<String>),
    /// It runs; the worker has been asked. A success that commits first wins.
    Requested,
    /// It had ended before.
    Finished,
    /// There is no such job.
    Unknown,
}

/// Cancels a job on behalf of `by`. Safe to repeat; the first request's author and reason stay.
///
/// # Errors
/// [`LedgerError`]; nothing is changed then.
pub async fn cancel(
    tx: &mut PgConnection,
    kinds: &Kinds,
    id: JobId,
    by: &str,
    reason: Option<&str>,
) -> Result<CancelOutcome, LedgerError> {
    let Some(_) = lock(tx, id, None).await? else {
        let ended = sqlx::query_scalar!(
            r#"SELECT EXISTS (SELECT 1 FROM job_history WHERE id = $1) AS "ended!""#,
            id.0
        )
        .fetch_one(&mut *tx)
        .await
        .map_err(LedgerError::database("looking for a finished job"))?;
        return Ok(if ended {
            CancelOutcome::Finished
        } else {
            CancelOutcome::Unknown
        });
    };
    let text = match reason {
        Some(reason) => format!("cancelled by {by}: {reason}"),
        None => format!("cancelled by {by}"),
    };
    sqlx::query!(
        r#"UPDATE jobs SET revision = revision + 1,
               cancel_requested = coalesce(cancel_requested, jsonb_build_object('by', $2::text, 'reason', $3::text, 'at', longshore_now()))
           WHERE id = $1"#,
        id.0,
        by,
        text,
    )
    .execute(&mut *tx)
    .await
    .map_err(LedgerError::database("requesting a cancel"))?;
    let Some(live) = lock(tx, id, None).await? else {
        return Ok(CancelOutcome::Finished);
    };
    if live.state == State::Running {
        return Ok(CancelOutcome::Requested);
    }
    let pokes = end(tx, kinds, live, End::new(Outcome::Cancelled, Some(text))).await?;
    Ok(CancelOutcome::WasWaiting(pokes))
}
