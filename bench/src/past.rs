//! Finished jobs of days gone by, written straight into the history of a benchmark's database.

use anyhow::Context as _;
use sqlx::{AssertSqlSafe, PgPool};

/// Rows of one sort.
pub(crate) struct Past {
    /// `succeeded`, `dead`, `cancelled` or `superseded`.
    pub(crate) outcome: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) count: i64,
    /// They ended today and on the days before, so many days in all, the same number on each.
    pub(crate) days: i64,
    /// What each says went wrong; nothing if empty.
    pub(crate) error: &'static str,
}

/// Makes the partitions of the last days, today's left out, as the days themselves would have.
pub(crate) async fn make_days(pool: &PgPool, outcome: &str, days: i64) -> anyhow::Result<()> {
    let today: chrono::NaiveDate =
        sqlx::query_scalar("SELECT (longshore_now() AT TIME ZONE 'UTC')::date")
            .fetch_one(pool)
            .await?;
    for ago in 1..days {
        let day = today - chrono::Duration::days(ago);
        let next = day + chrono::Duration::days(1);
        let name = day.format("%Y%m%d");
        let sql = format!(
            "CREATE TABLE job_history_{outcome}_{name} PARTITION OF job_history_{outcome} \
             FOR VALUES FROM ('{day} 00:00:00+00') TO ('{next} 00:00:00+00')"
        );
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(pool).await?;
    }
    Ok(())
}

/// Writes them, through the table that every reader and writer names.
pub(crate) async fn insert(pool: &PgPool, past: &Past) -> anyhow::Result<()> {
    // Ids as ours are: ordered by the time of the request. A workspace, a tenant and a key of its own for each.
    sqlx::query(
        "WITH one AS (
             SELECT n, gen_random_uuid() AS workspace, least(longshore_now(),
                 date_trunc('day', longshore_now(), 'UTC') - (n % $4) * interval '1 day' + random() * interval '1 day') AS finished
             FROM generate_series(1, $3) AS n
         )
         INSERT INTO job_history (id, outcome, finished_at, seq, kind, queue, tenant, workspace_id, keys, dedupe_key,
             args, args_version, priority, dispatch, attempt, crashes, snoozes, max_attempts, run_at, deadline_at, worker,
             revision, errors, created_by, created_at, started_at)
         SELECT (lpad(to_hex((extract(epoch FROM finished - interval '1 minute') * 1000)::bigint), 12, '0') || '7'
                 || substr(md5(random()::text), 1, 3) || '8' || substr(md5(random()::text), 1, 15))::uuid,
             $1::job_outcome, finished, n, $2, $2 || '@none', workspace::text, workspace, ARRAY['ws:' || workspace], workspace || ':removed',
             jsonb_build_object('workspace_id', workspace, 'generation', 1, 'remove_volumes', true), 1, 0, 1, 1, 0, 0, 20,
             finished, finished + interval '1 day', 'bench-1-0', 5,
             CASE WHEN $5 = '' THEN '[]' ELSE jsonb_build_array(jsonb_build_object(
                 'attempt', 1, 'at', finished, 'worker', 'bench-1-0', 'error', $5, 'retried_at', NULL)) END,
             'bench', finished - interval '1 minute', finished - interval '30 seconds'
         FROM one",
    )
    .bind(past.outcome)
    .bind(past.kind)
    .bind(past.count)
    .bind(past.days)
    .bind(past.error)
    .execute(pool)
    .await
    .with_context(|| format!("cannot write {} {} jobs", past.count, past.outcome))?;
    Ok(())
}
