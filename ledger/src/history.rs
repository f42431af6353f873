//! The history's partitions: one per outcome and day, made ahead, so that retention can drop whole days.

use sqlx::{AssertSqlSafe, PgPool};

use crate::LedgerError;

/// Days made ahead of today. What finishes beyond them falls into the default partition and is never lost.
const DAYS_AHEAD: i64 = 3;
const OUTCOMES: [&str; 4] = ["succeeded", "dead", "cancelled", "superseded"];

/// Makes today's and the next days' partitions. Safe to repeat and to run from several processes.
///
/// # Errors
/// [`LedgerError::Database`]; finished jobs then go to the default partition.
pub async fn ensure_partitions(pool: &PgPool) -> Result<(), LedgerError> {
    let database = |source| LedgerError::Database {
        doing: "making history partitions",
        source,
    };
    let mut tx = pool.begin().await.map_err(database)?;
    sqlx::query!("SELECT pg_advisory_xact_lock(hashtextextended('longshore.history', 0))")
        .execute(&mut *tx)
        .await
        .map_err(database)?;
    let today = longshore_base::clock::now(&mut *tx)
        .await
        .map_err(database)?
        .date_naive();
    for outcome in OUTCOMES {
        for ahead in 0..=DAYS_AHEAD {
            let day = today + chrono::Duration::days(ahead);
            let name = format!("job_history_{outcome}_{}", day.format("%Y%m%d"));
            let exists =
                sqlx::query_scalar!(r#"SELECT to_regclass($1) IS NOT NULL AS "exists!""#, name)
                    .fetch_one(&mut *tx)
                    .await
                    .map_err(database)?;
            if exists {
                continue;
            }
            // Names and dates are made here of fixed words and digits; identifiers cannot be bound.
            let sql = format!(
                "DO $$ BEGIN \
                   IF NOT EXISTS (SELECT 1 FROM job_history_{outcome}_default WHERE finished_at >= '{day} 00:00:00+00' AND finished_at < '{next} 00:00:00+00') THEN \
                     CREATE TABLE {name} PARTITION OF job_history_{outcome} FOR VALUES FROM ('{day} 00:00:00+00') TO ('{next} 00:00:00+00'); \
                   END IF; END $$",
                next = day + chrono::Duration::days(1),
            );
            sqlx::raw_sql(AssertSqlSafe(sql))
                .execute(&mut *tx)
                .await
                .map_err(database)?;
        }
    }
    tx.commit().await.map_err(database)
}
