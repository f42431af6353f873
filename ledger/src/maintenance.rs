//! What every worker does each second for its queues, and now and then for all: the passes that heal.

use std::time::Duration;

use longshore_base::JobId;
use sqlx::PgPool;

use crate::admission::Admitter;
use crate::finish::{End, end, lock, poke_all};
use crate::hints::{Hint, Hints};
use crate::job::Wait;
use crate::{Kinds, LedgerError, Outcome};

/// Jobs one pass over deadlines ends.
const OVERDUE_BATCH: i64 = 100;
/// Waiters one repair pass looks at.
const REPAIR_BATCH: i64 = 1000;

/// Longest time between two hints of one job.
const REPUBLISH_CAP: Duration = Duration::from_secs(60);

/// Publishes again what was admitted but not claimed: first `after`, then at twice that age, and so on; from a minute on
/// once a minute. Heals a flushed Redis.
pub(crate) async fn republish(
    pool: &PgPool,
    hints: &Hints,
    queue: &str,
    after: Duration,
) -> Result<(), LedgerError> {
    let doublings = (REPUBLISH_CAP.as_secs_f64() / after.as_secs_f64().max(0.001))
        .log2()
        .ceil()
        .max(0.0) as i32;
    let rows = sqlx::query!(
        r#"UPDATE jobs SET republished = republished + 1 WHERE id IN (
               SELECT id FROM jobs WHERE queue = $1 AND state = 'queued'
                 AND queued_at < longshore_now() - interval '1 second' *
                     CASE WHEN republished < $3::int THEN $2::float8 * 2 ^ republished ELSE $4::float8 * (republished - $3::int + 1) END
               ORDER BY queued_at LIMIT 500 FOR UPDATE SKIP LOCKED
           ) RETURNING id, dispatch"#,
        queue,
        after.as_secs_f64(),
        doublings,
        REPUBLISH_CAP.as_secs_f64(),
    )
    .fetch_all(pool)
    .await
    .map_err(LedgerError::database("finding unclaimed jobs"))?;
    if !rows.is_empty() {
        let again: Vec<Hint> = rows
            .into_iter()
            .map(|row| Hint {
                job_id: JobId(row.id),
                dispatch: row.dispatch,
            })
            .collect();
        tracing::info!(queue, jobs = again.len(), "publishing hints again");
        metrics::counter!("longshore_hints_republished_total").increment(again.len() as u64);
        hints.publish(queue, &again).await;
    }
    Ok(())
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

/// Wakes waiters whose keys nobody holds. There should be none; a crash between two statements of another version, or
/// a hand in the database, could leave one.
pub(crate) async fn wake_forgotten(pool: &PgPool, admitter: &Admitter) -> Result<(), LedgerError> {
    let queues = sqlx::query_scalar!(
        r#"WITH forgotten AS (
               SELECT DISTINCT ON (keys) id FROM jobs
               WHERE state = 'scheduled' AND wait = 'key' AND NOT EXISTS (SELECT 1 FROM job_slots WHERE key = ANY(jobs.keys))
                 AND NOT EXISTS (SELECT 1 FROM jobs AS first WHERE first.keys[1] = jobs.keys[1] AND cardinality(first.keys) = 1
                                 AND first.state = 'scheduled' AND first.wait = 'ready')
               ORDER BY keys, seq LIMIT $1
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
