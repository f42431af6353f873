//! Bringing finished jobs back, and putting away what nobody wants any more (`spec: jobs` §7, `operations` §1).
//!
//! Both work on many jobs at once, so that a bulk action over a hundred thousand is a few hundred statements.

use std::collections::HashSet;

use longshore_base::{JobId, WorkspaceId};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::finish::{End, end, lock};
use crate::job::State;
use crate::{Kinds, LedgerError, Outcome, Revival, TerminalJob, payload};

/// What a retry did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RetryOutcome {
    /// It waits again, with all its attempts. The queue is to be poked after the commit.
    Retried {
        /// Where it waits.
        queue: String,
    },
    /// It is not to be run again; the text says why.
    Refused(String),
    /// It is neither dead nor cancelled.
    NotRetryable,
    /// There is no such job.
    Unknown,
}

/// What a discard did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiscardOutcome {
    /// It is put away. The queues are to be poked after the commit.
    Discarded(Vec<String>),
    /// It is neither dead nor waiting.
    NotDiscardable,
    /// There is no such job.
    Unknown,
}

/// What a retry of many did.
#[derive(Clone, Debug, Default)]
pub struct Retried {
    /// These wait again.
    pub jobs: Vec<JobId>,
    /// These are not to be run again, with why.
    pub refused: Vec<(JobId, String)>,
    /// Queues to poke after the commit.
    pub queues: Vec<String>,
}

/// Runs a dead or cancelled job once more, if its kind allows it: a new place at the end of its queue, all attempts
/// again, its error history kept, and as long a deadline as it had at first.
///
/// # Errors
/// [`LedgerError`]; nothing may be committed then.
pub async fn retry(
    tx: &mut PgConnection,
    kinds: &Kinds,
    id: JobId,
    by: &str,
) -> Result<RetryOutcome, LedgerError> {
    let mut retried = retry_many(&mut *tx, kinds, &[id], by).await?;
    if let Some(queue) = retried.queues.pop() {
        return Ok(RetryOutcome::Retried { queue });
    }
    if let Some((_, reason)) = retried.refused.pop() {
        return Ok(RetryOutcome::Refused(reason));
    }
    Ok(if is_known(tx, id).await? {
        RetryOutcome::NotRetryable
    } else {
        RetryOutcome::Unknown
    })
}

/// The same for many; ids of jobs that are neither dead nor cancelled are left out of the answer.
///
/// # Errors
/// [`LedgerError`]; nothing may be committed then.
pub async fn retry_many(
    tx: &mut PgConnection,
    kinds: &Kinds,
    ids: &[JobId],
    by: &str,
) -> Result<Retried, LedgerError> {
    let ids: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
    let found = sqlx::query!(
        r#"SELECT id, kind, workspace_id, args, args_version, dedupe_key, outcome AS "outcome: Outcome",
               (SELECT jobs.id FROM jobs WHERE jobs.kind = job_history.kind AND jobs.dedupe_key = job_history.dedupe_key
                AND state IN ('scheduled', 'queued') LIMIT 1) AS twin
           FROM job_history WHERE id = ANY ($1) AND outcome IN ('dead', 'cancelled') ORDER BY id DESC FOR UPDATE"#,
        &ids
    )
    .fetch_all(&mut *tx)
    .await
    .map_err(LedgerError::database("reading jobs to retry"))?;
    let mut answer = Retried::default();
    let mut wanted = Vec::with_capacity(found.len());
    // Of several dead jobs that stand for the same request, the newest comes back.
    let mut asked = HashSet::new();
    for row in found {
        let id = JobId(row.id);
        let twin = row.twin.map(JobId);
        let is_second = row
            .dedupe_key
            .is_some_and(|key| !asked.insert((row.kind.clone(), key)));
        if twin.is_some() || is_second {
            let text = match twin {
                Some(twin) => format!("job {twin} already waits to do the same"),
                None => "a newer job for the same is tried again".to_owned(),
            };
            answer.refused.push((id, text));
            continue;
        }
        let Some(kind) = kinds.find(&row.kind) else {
            let text = format!("this version knows no kind {}", row.kind);
            answer.refused.push((id, text));
            continue;
        };
        if let Some(hooks) = &kind.hooks {
            let job = TerminalJob {
                id,
                kind: row.kind.clone(),
                workspace_id: row.workspace_id.map(WorkspaceId),
                args: row.args,
                args_version: row.args_version,
                outcome: row.outcome,
                reason: None,
                cancelled_by: None,
                checkpoint: None,
            };
            let revival =
                hooks
                    .on_retry(&mut *tx, &job)
                    .await
                    .map_err(|source| LedgerError::Hook {
                        id,
                        kind: row.kind,
                        source,
                    })?;
            if let Revival::Refused(reason) = revival {
                answer.refused.push((id, reason));
                continue;
            }
        }
        wanted.push(row.id);
    }
    if wanted.is_empty() {
        return Ok(answer);
    }
    let back = sqlx::query!(
        r#"WITH gone AS (
               DELETE FROM job_history WHERE id = ANY ($1) AND outcome IN ('dead', 'cancelled') RETURNING *
           ), keyed AS (
               INSERT INTO job_keys (key, job_id)
               SELECT DISTINCT key, id FROM gone, unnest(keys) AS key WHERE cardinality(keys) > 1
           )
           INSERT INTO jobs (id, kind, queue, tenant, workspace_id, keys, dedupe_key, args, args_version, priority, wait, dispatch,
               max_attempts, revision, errors, trace_context, created_by, created_at, run_at, deadline_at)
           SELECT id, kind, queue, tenant, workspace_id, keys, dedupe_key, args, args_version, priority, 'ready', dispatch,
               max_attempts, revision + 1, errors, trace_context, created_by, created_at, now, now + (deadline_at - created_at)
           FROM gone, longshore_now() AS now ORDER BY seq
           RETURNING id, queue"#,
        &wanted
    )
    .fetch_all(tx)
    .await
    .map_err(LedgerError::database("bringing jobs back"))?;
    tracing::info!(jobs = back.len(), by, "jobs are tried again");
    metrics::counter!("longshore_jobs_retried_total").increment(back.len() as u64);
    answer.queues = back.iter().map(|row| row.queue.clone()).collect();
    answer.queues.sort_unstable();
    answer.queues.dedup();
    answer.jobs = back.into_iter().map(|row| JobId(row.id)).collect();
    Ok(answer)
}

/// Puts a job away: a waiting one is cancelled, a dead one is dead no more but cancelled, and no list of dead jobs shows
/// it again. Its history stays.
///
/// # Errors
/// [`LedgerError`]; nothing may be committed then.
pub async fn discard(
    tx: &mut PgConnection,
    kinds: &Kinds,
    id: JobId,
    by: &str,
    reason: Option<&str>,
) -> Result<DiscardOutcome, LedgerError> {
    if let Some(live) = lock(&mut *tx, id, None).await? {
        if live.state == State::Running {
            return Ok(DiscardOutcome::NotDiscardable);
        }
        let text = match reason {
            Some(reason) => format!("discarded by {by}: {reason}"),
            None => format!("discarded by {by}"),
        };
        let how = End::new(Outcome::Cancelled, Some(text));
        payload::drop_of_jobs(&mut *tx, &[id.0]).await?;
        return Ok(DiscardOutcome::Discarded(end(tx, kinds, live, how).await?));
    }
    if discard_dead(&mut *tx, &[id]).await? > 0 {
        return Ok(DiscardOutcome::Discarded(Vec::new()));
    }
    Ok(if is_known(tx, id).await? {
        DiscardOutcome::NotDiscardable
    } else {
        DiscardOutcome::Unknown
    })
}

/// Puts dead jobs away; answers how many there were.
pub(crate) async fn discard_dead(tx: &mut PgConnection, ids: &[JobId]) -> Result<u64, LedgerError> {
    let ids: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
    payload::drop_of_jobs(&mut *tx, &ids).await?;
    let gone = sqlx::query!(
        "UPDATE job_history SET outcome = $2, revision = revision + 1 WHERE id = ANY ($1) AND outcome = 'dead'",
        &ids,
        Outcome::Cancelled as Outcome,
    )
    .execute(tx)
    .await
    .map_err(LedgerError::database("putting dead jobs away"))?;
    Ok(gone.rows_affected())
}

async fn is_known(tx: &mut PgConnection, id: JobId) -> Result<bool, LedgerError> {
    sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT 1 FROM jobs WHERE id = $1) OR EXISTS (SELECT 1 FROM job_history WHERE id = $1) AS "known!""#,
        id.0
    )
    .fetch_one(tx)
    .await
    .map_err(LedgerError::database("looking for a job"))
}
