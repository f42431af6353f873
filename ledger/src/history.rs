//! The history's partitions: one per outcome and day, made ahead, so that retention drops whole days at the price of one.
//!
//! Making or dropping a day needs the table of its outcome for itself for some milliseconds, since the default leaf beside
//! the days forbids `DETACH … CONCURRENTLY`. Whoever waits for that lock holds up everybody who comes after, so nobody here
//! waits for long: behind a reader that keeps a transaction open, the day is left for the next pass, an hour later. Days
//! are made ahead and dropped late, so many passes may find them busy before anybody notices.
//!
//! With a day goes, in one transaction, a note between which ids its jobs lay. So of every job that was dropped it can be
//! said that it was, whatever the clocks of those who made ids and of Postgres thought of each other; the price is that
//! the same is said of ids in between that no job ever had.

use std::time::Duration;

use longshore_base::JobId;
use sqlx::{AssertSqlSafe, PgConnection, PgPool};

use crate::job::is_lock_timeout;
use crate::{LedgerError, Outcome};

/// Days made ahead of today. What finishes beyond them falls into the default partition and is never lost.
const DAYS_AHEAD: i64 = 3;
/// How long the table of an outcome is waited for, and thus how long ends of jobs can be held up behind whoever waits.
/// Ordinary transactions that use the history take a tenth of this.
const LOCK_PATIENCE: Duration = Duration::from_millis(200);
const OUTCOMES: [&str; 4] = ["succeeded", "dead", "cancelled", "superseded"];
/// Widens what is noted of an outcome by what was just dropped.
const NOTE: &str = "ON CONFLICT (outcome) DO UPDATE SET \
    oldest_id = least(job_history_pruned.oldest_id, excluded.oldest_id), \
    newest_id = greatest(job_history_pruned.newest_id, excluded.newest_id)";

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
    /// Partitions that were due and are still there, since somebody else uses them; the next pass tries again.
    pub busy: Vec<String>,
    /// Rows deleted from where no day had a partition.
    pub rows: u64,
}

/// Drops the days of the history that are older than what is kept of their outcome. Safe to repeat and to run from
/// several processes; never touches a day that is still due, nor live jobs. Never holds up the ends of jobs for longer
/// than a fraction of a second: a day that others use is left alone and told.
///
/// # Errors
/// [`LedgerError::Database`]; what was dropped before stays dropped.
pub async fn prune(pool: &PgPool, retention: Retention) -> Result<Pruned, LedgerError> {
    prune_days(pool, retention)
        .await
        .map_err(LedgerError::database("pruning the history"))
}

/// The days that [`prune`] would drop now.
///
/// # Errors
/// [`LedgerError::Database`].
pub async fn list_due(pool: &PgPool, retention: Retention) -> Result<Vec<String>, LedgerError> {
    due_days(pool, retention)
        .await
        .map_err(LedgerError::database("asking what history is due"))
}

async fn due_days(pool: &PgPool, retention: Retention) -> Result<Vec<String>, sqlx::Error> {
    let today = longshore_base::clock::now(pool).await?.date_naive();
    let mut due = Vec::new();
    for (outcome, days) in retention.by_outcome() {
        if days > 0 {
            let first_kept = today - chrono::Days::new(days.into());
            due.extend(days_before(pool, outcome, first_kept).await?);
        }
    }
    Ok(due)
}

async fn prune_days(pool: &PgPool, retention: Retention) -> Result<Pruned, sqlx::Error> {
    let mut pruned = Pruned::default();
    let today = {
        let mut conn = pool.acquire().await?;
        longshore_base::clock::now(&mut *conn).await?.date_naive()
    };
    for (outcome, days) in retention.by_outcome() {
        if days == 0 {
            continue;
        }
        let first_kept = today - chrono::Days::new(days.into());
        let mut due = days_before(pool, outcome, first_kept).await?.into_iter();
        while let Some(name) = due.next() {
            match drop_day(pool, outcome, &name).await? {
                Lock::Had => pruned.partitions.push(name),
                Lock::DayBusy => pruned.busy.push(name),
                Lock::OutcomeBusy => {
                    // Each further try would hold up the ends of jobs once more.
                    pruned.busy.push(name);
                    pruned.busy.extend(due.by_ref());
                }
            }
        }
        let start = first_kept.and_time(chrono::NaiveTime::MIN).and_utc();
        // The default leaf is empty unless somebody's clock or a missed tick made it otherwise.
        let sql = format!(
            "WITH gone AS (DELETE FROM job_history_{outcome}_default WHERE finished_at < $1 RETURNING id), \
             noted AS ( \
               INSERT INTO job_history_pruned (outcome, oldest_id, newest_id) \
               SELECT '{outcome}', min(id::text COLLATE \"C\")::uuid, max(id::text COLLATE \"C\")::uuid \
               FROM gone HAVING count(*) > 0 {NOTE}) \
             SELECT count(*) FROM gone"
        );
        let deleted: i64 = sqlx::query_scalar(AssertSqlSafe(sql))
            .bind(start)
            .fetch_one(pool)
            .await?;
        pruned.rows += deleted.unsigned_abs();
    }
    Ok(pruned)
}

/// As what a job of this id may have ended before retention dropped it; nothing if none with it was ever dropped. Of an id
/// that no job has had it cannot be told, if it lies among those of dropped jobs. To be asked after the job was not found.
///
/// # Errors
/// [`LedgerError::Database`].
pub async fn list_pruned_outcomes(
    conn: &mut PgConnection,
    id: JobId,
) -> Result<Vec<Outcome>, LedgerError> {
    sqlx::query_scalar!(
        r#"SELECT outcome AS "outcome: Outcome" FROM job_history_pruned WHERE $1 BETWEEN oldest_id AND newest_id ORDER BY outcome"#,
        id.0
    )
    .fetch_all(conn)
    .await
    .map_err(LedgerError::database("asking which jobs were dropped"))
}

/// The partitions of an outcome whose day is before another, oldest first.
async fn days_before(
    pool: &PgPool,
    outcome: &str,
    first_kept: chrono::NaiveDate,
) -> Result<Vec<String>, sqlx::Error> {
    let prefix = format!("job_history_{outcome}_");
    let mut partitions = sqlx::query_scalar!(
        r#"SELECT relname::text AS "name!" FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
               WHERE inhparent = to_regclass($1) ORDER BY 1"#,
        format!("job_history_{outcome}"),
    )
    .fetch_all(pool)
    .await?;
    partitions.retain(|name| {
        name.strip_prefix(&prefix)
            .and_then(|day| chrono::NaiveDate::parse_from_str(day, "%Y%m%d").ok())
            .is_some_and(|day| day < first_kept)
    });
    Ok(partitions)
}

/// What came of asking for the locks that a change of the days needs.
enum Lock {
    /// It was done.
    Had,
    /// Somebody uses the day itself.
    DayBusy,
    /// Somebody uses the whole outcome.
    OutcomeBusy,
}

impl Lock {
    /// A failed attempt to lock: busy, or something else that went wrong.
    fn refused(self, error: sqlx::Error) -> Result<Self, sqlx::Error> {
        if is_lock_timeout(&error) {
            Ok(self)
        } else {
            Err(error)
        }
    }
}

async fn drop_day(pool: &PgPool, outcome: &str, name: &str) -> Result<Lock, sqlx::Error> {
    let mut tx = pool.begin().await?;
    if let Err(error) = lock_outcome(&mut tx, outcome).await {
        return Lock::OutcomeBusy.refused(error);
    }
    // While the outcome is ours everybody else waits, so the day must be free at once. Another process may have dropped it
    // meanwhile. Names come from the catalogue and were matched against our own pattern; identifiers cannot be bound.
    let drop = format!(
        "DO $$ BEGIN \
           IF to_regclass('{name}') IS NOT NULL THEN \
             LOCK TABLE {name} IN ACCESS EXCLUSIVE MODE NOWAIT; \
             INSERT INTO job_history_pruned (outcome, oldest_id, newest_id) \
               SELECT '{outcome}', (SELECT id FROM {name} ORDER BY id LIMIT 1), (SELECT id FROM {name} ORDER BY id DESC LIMIT 1) \
               WHERE EXISTS (SELECT 1 FROM {name}) {NOTE}; \
             DROP TABLE {name}; \
           END IF; END $$"
    );
    if let Err(error) = execute(&mut tx, drop).await {
        return Lock::DayBusy.refused(error);
    }
    tx.commit().await?;
    Ok(Lock::Had)
}

/// Takes what making and dropping a day of an outcome has to lock beside the day itself. The default leaf is among it,
/// since which rows it may hold changes too.
async fn lock_outcome(tx: &mut PgConnection, outcome: &str) -> Result<(), sqlx::Error> {
    let patience = LOCK_PATIENCE.as_millis();
    let sql = format!(
        "SET LOCAL lock_timeout = {patience}; \
         LOCK TABLE ONLY job_history_{outcome} IN ACCESS EXCLUSIVE MODE; \
         LOCK TABLE job_history_{outcome}_default IN ACCESS EXCLUSIVE MODE NOWAIT",
    );
    execute(tx, sql).await
}

async fn execute(tx: &mut PgConnection, sql: String) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(tx).await?;
    Ok(())
}

/// Makes today's and the next days' partitions. Safe to repeat and to run from several processes. Days of an outcome that
/// others use are left for the next time; there are some ahead.
///
/// # Errors
/// [`LedgerError::Database`]; finished jobs then go to the default partition.
pub async fn ensure_partitions(pool: &PgPool) -> Result<(), LedgerError> {
    for outcome in OUTCOMES {
        let made = make_days(pool, outcome)
            .await
            .map_err(LedgerError::database("making history partitions"))?;
        if !matches!(made, Lock::Had) {
            tracing::warn!(
                outcome,
                "days of the job history are not made yet: somebody uses its tables"
            );
        }
    }
    Ok(())
}

async fn make_days(pool: &PgPool, outcome: &str) -> Result<Lock, sqlx::Error> {
    let mut tx = pool.begin().await?;
    sqlx::query!("SELECT pg_advisory_xact_lock(hashtextextended('longshore.history', 0))")
        .execute(&mut *tx)
        .await?;
    let today = longshore_base::clock::now(&mut *tx).await?.date_naive();
    let mut missing = Vec::new();
    for ahead in 0..=DAYS_AHEAD {
        let day = today + chrono::Duration::days(ahead);
        let name = format!("job_history_{outcome}_{}", day.format("%Y%m%d"));
        let exists =
            sqlx::query_scalar!(r#"SELECT to_regclass($1) IS NOT NULL AS "exists!""#, name)
                .fetch_one(&mut *tx)
                .await?;
        if !exists {
            missing.push((day, name));
        }
    }
    if missing.is_empty() {
        return Ok(Lock::Had);
    }
    if let Err(error) = lock_outcome(&mut tx, outcome).await {
        return Lock::OutcomeBusy.refused(error);
    }
    for (day, name) in missing {
        // Names and dates are made here of fixed words and digits; identifiers cannot be bound.
        let sql = format!(
            "DO $$ BEGIN \
               IF NOT EXISTS (SELECT 1 FROM job_history_{outcome}_default WHERE finished_at >= '{day} 00:00:00+00' AND finished_at < '{next} 00:00:00+00') THEN \
                 CREATE TABLE {name} PARTITION OF job_history_{outcome} FOR VALUES FROM ('{day} 00:00:00+00') TO ('{next} 00:00:00+00'); \
               END IF; END $$",
            next = day + chrono::Duration::days(1),
        );
        execute(&mut tx, sql).await?;
    }
    tx.commit().await?;
    Ok(Lock::Had)
}
