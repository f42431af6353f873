//! What every worker does each second for its queues, and now and then for all: the passes that heal.

use longshore_base::JobId;
use sqlx::PgPool;

use crate::admission::Admitter;
use crate::finish::{End, end, lock, poke_all};
use crate::job::Wait;
use crate::{Kinds, LedgerError, Outcome};

/// Jobs one pass over deadlines ends.
const OVERDUE_BATCH: i64 = 100;
/// Waiters one repair pass looks at.
const REPAIR_BATCH: i64 = 1000;

/// Summarises what is new in the table of jobs for the index by deadline: without, each look for overdue jobs would read all
/// of a backlog that vacuum has not come to yet. Where it may not, or vacuum is at it, it does nothing.
pub(crate) async fn summarise_deadlines(pool: &PgPool) {
    let summarise = async {
        let mut tx = pool.begin().await?;
        // Less than what Postgres waits before it ends an autovacuum for somebody's sake.
        sqlx::query!("SET LOCAL lock_timeout = '50ms'")
            .execute(&mut *tx)
            .await?;
        sqlx::query!("SELECT brin_summarize_new_values('jobs_deadline_at_idx')")
            .fetch_one(&mut *tx)
            .await?;
        tx.commit().await
    };
    if let Err(error) = summarise.await {
        tracing::debug!(
            error = &error as &dyn std::error::Error,
            "deadlines of jobs are not summarised now"
        );
    }
}

/// Ends waiting jobs that are past their deadline. Time under a pause or a hold does not count: a deadline moves by as much
/// as the job's scope was closed since it was asked for.
pub(crate) async fn end_overdue(
    pool: &PgPool,
    kinds: &Kinds,
    admitter: &Admitter,
) -> Result<(), LedgerError> {
    let overdue = sqlx::query_scalar!(
        r#"SELECT id FROM jobs WHERE state IN ('scheduled', 'queued') AND deadline_at < longshore_now()
             AND deadline_at + coalesce((
                 SELECT sum(upper(closed) - lower(closed)) FROM (
                     SELECT unnest(range_agg(tstzrange(greatest(since, jobs.created_at), least(ended_at, until, longshore_now())))) AS closed
                     FROM queue_controls
                     WHERE coalesce(ended_at, 'infinity') > jobs.created_at AND coalesce(until, 'infinity') > greatest(since, jobs.created_at)
                       AND CASE scope
                           WHEN 'all' THEN true
                           WHEN 'queue' THEN value = jobs.kind
                           WHEN 'kind' THEN value = jobs.kind
                           WHEN 'engine' THEN value = split_part(jobs.queue, '@', 2)
                           WHEN 'tenant' THEN value = jobs.tenant
                           WHEN 'workspace' THEN value = jobs.workspace_id::text
                       END
                 ) AS spans
             ), interval '0') < longshore_now()
           LIMIT $1"#,
        OVERDUE_BATCH
    )
    .fetch_all(pool)
    .await
    .map_err(LedgerError::database("looking for overdue jobs"))?;
    for id in overdue {
        let mut tx = pool
            .begin()
            .await
            .map_err(LedgerError::database("beginning to end an overdue job"))?;
        let Some(live) = lock(&mut tx, JobId(id), None).await? else {
            continue;
        };
        if live.state == crate::job::State::Running {
            continue;
        }
        let reason = "its deadline passed before it could finish".to_owned();
        let pokes = end(&mut tx, kinds, live, End::new(Outcome::Dead, Some(reason))).await?;
        tx.commit().await.map_err(LedgerError::database(
            "committing the end of an overdue job",
        ))?;
        poke_all(admitter, pokes);
    }
    Ok(())
}

/// Wakes waiters whose keys nobody holds, nor is about to be given, nor has waited for longer. There should be none; a crash
/// between two statements of another version, or a hand in the database, could leave one.
pub(crate) async fn wake_forgotten(pool: &PgPool, admitter: &Admitter) -> Result<(), LedgerError> {
    let queues = sqlx::query_scalar!(
        r#"WITH forgotten AS (
               SELECT id FROM jobs
               WHERE state = 'scheduled' AND wait = 'key' AND NOT EXISTS (SELECT 1 FROM job_slots WHERE key = ANY(jobs.keys))
                 AND NOT EXISTS (SELECT 1 FROM jobs AS first WHERE first.keys[1] = ANY(jobs.keys) AND cardinality(first.keys) = 1
                                 AND first.state = 'scheduled' AND first.wait <> 'time'
                                 AND (first.wait = 'ready' OR first.seq < jobs.seq))
                 AND NOT EXISTS (SELECT 1 FROM job_keys JOIN jobs AS first ON first.id = job_keys.job_id
                                 WHERE job_keys.key = ANY(jobs.keys) AND first.state = 'scheduled' AND first.wait <> 'time'
                                 AND (first.wait = 'ready' OR first.seq < jobs.seq))
               ORDER BY seq LIMIT $1
           ), woken AS (
               UPDATE jobs SET wait = $2 FROM forgotten WHERE jobs.id = forgotten.id AND jobs.state = 'scheduled' RETURNING jobs.queue
           )
           SELECT DISTINCT queue AS "queue!" FROM woken"#,
        REPAIR_BATCH,
        Wait::Ready as Wait,
    )
    .fetch_all(pool)
    .await
    .map_err(LedgerError::database("waking forgotten jobs"))?;
    if !queues.is_empty() {
        tracing::warn!(?queues, "jobs waited for keys nobody held; woken");
    }
    poke_all(admitter, queues);
    Ok(())
}
