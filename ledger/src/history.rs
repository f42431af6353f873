//! The history's partitions: one per outcome and day, made ahead, so that retention drops whole days at the price of one.

use sqlx::{AssertSqlSafe, PgPool};

use crate::LedgerError;

/// Days made ahead of today. What finishes beyond them falls into the default partition and is never lost.
const DAYS_AHEAD: i64 = 3;
const OUTCOMES: [&str; 4] = ["succeeded", "dead", "cancelled", "superseded"];

/// How long finished jobs are kept, in whole days after the day they finished. Zero keeps them for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Those that did what they were for.
    pub succeeded_days: u32,
    /// Dead ones.
    pub dead_days: u32,
    /// Cancelled ones.
    pub cancelled_days: u32,
    /// Superseded ones.
    pub superseded_days: u32,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            succeeded_days: 7,
            dead_days: 90,
            cancelled_days: 30,
            superseded_days: 7,
        }
    }
}

impl Retention {
    const fn by_outcome(self) -> [(&'static str, u32); 4] {
        let [succeeded, dead, cancelled, superseded] = OUTCOMES;
        [
            (succeeded, self.succeeded_days),
            (dead, self.dead_days),
            (cancelled, self.cancelled_days),
            (superseded, self.superseded_days),
        ]
    }
}

/// What a pass of retention did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Partitions dropped, by name.
    pub partitions: Vec<String>,
    /// Rows deleted from where no day had a partition.
    pub rows: u64,
}

/// Drops the days of the history that are older than what is kept of their outcome. Safe to repeat and to run from
/// several processes; never touches a day that is still due, nor live jobs.
///
/// # Errors
/// [`LedgerError::Database`]; what was dropped before stays dropped.
pub async fn prune(pool: &PgPool, retention: Retention) -> Result<Pruned, LedgerError> {
    let database = |source| LedgerError::Database {
        doing: "pruning the history",
        source,
    };
    let mut pruned = Pruned::default();
    let today = {
        let mut conn = pool.acquire().await.map_err(database)?;
        longshore_base::clock::now(&mut *conn)
            .await
            .map_err(database)?
            .date_naive()
    };
    for (outcome, days) in retention.by_outcome() {
        if days == 0 {
            continue;
        }
        let first_kept = today - chrono::Days::new(days.into());
        let prefix = format!("job_history_{outcome}_");
        let partitions = sqlx::query_scalar!(
            r#"SELECT relname::text AS "name!" FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
               WHERE inhparent = to_regclass($1) ORDER BY 1"#,
            format!("job_history_{outcome}"),
        )
        .fetch_all(pool)
        .await
        .map_err(database)?;
        for name in partitions {
            let day = name
                .strip_prefix(&prefix)
                .and_then(|day| chrono::NaiveDate::parse_from_str(day, "%Y%m%d").ok());
            if day.is_none_or(|day| day >= first_kept) {
                continue;
            }
            drop_partition(pool, &name).await?;
            pruned.partitions.push(name);
        }
        let start = first_kept.and_time(chrono::NaiveTime::MIN).and_utc();
        // The default leaf is empty unless somebody's clock or a missed tick made it otherwise.
        let sql = format!("DELETE FROM job_history_{outcome}_default WHERE finished_at < $1");
        let deleted = sqlx::query(AssertSqlSafe(sql))
            .bind(start)
            .execute(pool)
            .await
            .map_err(database)?;
        pruned.rows += deleted.rows_affected();
    }
    Ok(pruned)
}

/// Takes the lock that dropping needs only if it can be had soon, so that writers of the history never queue up behind it:
/// the next pass tries again.
async fn drop_partition(pool: &PgPool, name: &str) -> Result<(), LedgerError> {
    // Names come from the catalogue and were matched against our own pattern; identifiers cannot be bound.
    let sql = format!("SET LOCAL lock_timeout = '500ms'; DROP TABLE IF EXISTS {name}");
    let database = |source| LedgerError::Database {
        doing: "dropping a day of the history",
        source,
    };
    let mut tx = pool.begin().await.map_err(database)?;
    sqlx::raw_sql(AssertSqlSafe(sql))
        .execute(&mut *tx)
        .await
        .map_err(database)?;
    tx.commit().await.map_err(database)
}

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
