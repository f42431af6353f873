//! Setting and lifting controls. Each change runs in the caller's transaction, which also writes the event about it.

use std::time::Duration;

use longshore_base::{Timestamp, ids};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use super::{Control, Mode, Scope, lock_exclusive};
use crate::LedgerError;
use crate::admission::wake_next;
use crate::job::Wait;

/// Between two looks at what still runs.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Longest wait for workers to see a change; a worker that is silent for ten seconds is declared dead.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a change did.
#[must_use = "after the commit: poke the queues, and `settle` before answering"]
#[derive(Clone, Debug)]
pub struct Changed {
    /// Whether anything is different now; repeating a change is no error.
    pub changed: bool,
    /// The control as it stands now.
    pub control: Control,
    /// Admitted jobs that went back to wait.
    pub taken_back: u64,
    /// Queues whose jobs may be admitted now: poke them after the commit.
    pub pokes: Vec<String>,
}

/// A hold to be set.
#[derive(Clone, Debug)]
pub struct NewHold {
    /// What is held; not [`Scope::Queue`], whose control is the queue's mode.
    pub scope: Scope,
    /// Which one; empty for all.
    pub value: String,
    /// How: pause or reject.
    pub mode: Mode,
    /// Why.
    pub reason: Option<String>,
    /// Who.
    pub set_by: String,
    /// It lifts itself then.
    pub until: Option<Timestamp>,
}

/// Sets the mode of a queue (a kind). The same mode again changes nothing but keeps who, why and since when.
///
/// # Errors
/// [`LedgerError::Database`]; nothing may be committed then.
pub async fn set_mode(
    tx: &mut PgConnection,
    queue: &str,
    mode: Mode,
    reason: Option<&str>,
    by: &str,
) -> Result<Changed, LedgerError> {
    lock_exclusive(tx).await?;
    if let Some(control) = open_of_queue(tx, queue).await? {
        if control.mode == mode {
            return Ok(Changed {
                changed: false,
                control,
                taken_back: 0,
                pokes: Vec::new(),
            });
        }
        end_control(tx, control.id, by).await?;
    }
    let hold = NewHold {
        scope: Scope::Queue,
        value: queue.to_owned(),
        mode,
        reason: reason.map(str::to_owned),
        set_by: by.to_owned(),
        until: None,
    };
    open(tx, hold).await
}

/// Opens a queue again. Answers its last control, or `None` when it was open already.
///
/// # Errors
/// [`LedgerError::Database`]; nothing may be committed then.
pub async fn resume(
    tx: &mut PgConnection,
    queue: &str,
    by: &str,
) -> Result<Option<Control>, LedgerError> {
    lock_exclusive(tx).await?;
    let Some(control) = open_of_queue(tx, queue).await? else {
        return Ok(None);
    };
    end_control(tx, control.id, by).await?;
    Ok(Some(control))
}

/// Sets a hold.
///
/// # Errors
/// [`LedgerError::Database`]; nothing may be committed then.
pub async fn set_hold(tx: &mut PgConnection, hold: NewHold) -> Result<Changed, LedgerError> {
    lock_exclusive(tx).await?;
    open(tx, hold).await
}

/// Lifts a hold. `None` when there is no such open one.
///
/// # Errors
/// [`LedgerError::Database`]; nothing may be committed then.
pub async fn lift_hold(
    tx: &mut PgConnection,
    id: Uuid,
    by: &str,
) -> Result<Option<Control>, LedgerError> {
    lock_exclusive(tx).await?;
    let control = sqlx::query_as!(
        Control,
        r#"SELECT id, scope AS "scope: Scope", value, mode AS "mode: Mode", reason, set_by, since, until
           FROM queue_controls WHERE id = $1 AND scope <> 'queue' AND ended_at IS NULL"#,
        id
    )
    .fetch_optional(&mut *tx)
    .await
    .map_err(LedgerError::database("reading a hold"))?;
    if let Some(control) = &control {
        end_control(tx, control.id, by).await?;
    }
    Ok(control)
}

/// Writes the end of holds that have lifted themselves; answers them.
///
/// # Errors
/// [`LedgerError::Database`].
pub async fn lift_expired(tx: &mut PgConnection) -> Result<Vec<Control>, LedgerError> {
    sqlx::query_as!(
        Control,
        r#"UPDATE queue_controls SET ended_at = until, ended_by = 'its own end'
           WHERE ended_at IS NULL AND until <= longshore_now()
           RETURNING id, scope AS "scope: Scope", value, mode AS "mode: Mode", reason, set_by, since, until"#
    )
    .fetch_all(tx)
    .await
    .map_err(LedgerError::database("ending holds that are over"))
}

/// Waits until every worker that has a job of the scope has seen the change, and has begun what it had claimed before, so
/// that nothing of the scope starts once this has answered. Call it after the commit; it holds no connection while it
/// waits. A worker that does not answer is dead to its peers sooner than to this: after twenty seconds it ends all the same.
///
/// # Errors
/// [`LedgerError::Database`].
pub async fn settle(pool: &PgPool, scope: Scope, value: &str) -> Result<(), LedgerError> {
    let database = |source| LedgerError::Database {
        doing: "waiting for workers to see a change",
        source,
    };
    let change =
        sqlx::query_scalar!(r#"SELECT coalesce(max(seq), 0) AS "seq!" FROM queue_controls"#)
            .fetch_one(pool)
            .await
            .map_err(database)?;
    let since = std::time::Instant::now();
    loop {
        let behind = sqlx::query_scalar!(
            r#"SELECT DISTINCT name FROM jobs JOIN workers ON name = worker
               WHERE state = 'running' AND seen_control < $3
                 AND CASE $1::control_scope
                     WHEN 'all' THEN true
                     WHEN 'queue' THEN kind = $2
                     WHEN 'kind' THEN kind = $2
                     WHEN 'engine' THEN split_part(queue, '@', 2) = $2
                     WHEN 'tenant' THEN tenant = $2
                     WHEN 'workspace' THEN workspace_id::text = $2
                 END"#,
            scope as Scope,
            value,
            change,
        )
        .fetch_all(pool)
        .await
        .map_err(database)?;
        if behind.is_empty() {
            return Ok(());
        }
        if since.elapsed() > PATIENCE {
            tracing::warn!(workers = ?behind, ?scope, value, "workers have not seen a change of controls");
            return Ok(());
        }
        tokio::time::sleep(LOOK_AGAIN / 4).await;
    }
}

/// Jobs of a queue (a kind) that are claimed or running. With `patience` it looks until there are none or time is up.
///
/// # Errors
/// [`LedgerError::Database`].
pub async fn in_flight(pool: &PgPool, queue: &str, patience: Duration) -> Result<i64, LedgerError> {
    let since = std::time::Instant::now();
    loop {
        let count = sqlx::query_scalar!(
            r#"SELECT count(*) AS "count!" FROM jobs WHERE kind = $1 AND state = 'running'"#,
            queue
        )
        .fetch_one(pool)
        .await
        .map_err(LedgerError::database("counting what still runs"))?;
        if count == 0 || since.elapsed() >= patience {
            return Ok(count);
        }
        tokio::time::sleep(LOOK_AGAIN.min(patience.saturating_sub(since.elapsed()))).await;
    }
}

/// Queues somebody reads: all of them, or those of a kind. To be poked when something was opened.
///
/// # Errors
/// [`LedgerError::Database`].
pub async fn queues_to_poke(
    conn: &mut PgConnection,
    kind: Option<&str>,
) -> Result<Vec<String>, LedgerError> {
    sqlx::query_scalar!(
        r#"SELECT DISTINCT queue AS "queue!" FROM workers, unnest(queues) AS queue
           WHERE $1::text IS NULL OR split_part(queue, '@', 1) = $1"#,
        kind
    )
    .fetch_all(conn)
    .await
    .map_err(LedgerError::database("looking for the queues of a kind"))
}

async fn open_of_queue(tx: &mut PgConnection, queue: &str) -> Result<Option<Control>, LedgerError> {
    sqlx::query_as!(
        Control,
        r#"SELECT id, scope AS "scope: Scope", value, mode AS "mode: Mode", reason, set_by, since, until
           FROM queue_controls WHERE scope = 'queue' AND value = $1 AND ended_at IS NULL"#,
        queue
    )
    .fetch_optional(tx)
    .await
    .map_err(LedgerError::database("reading the mode of a queue"))
}

async fn end_control(tx: &mut PgConnection, id: Uuid, by: &str) -> Result<(), LedgerError> {
    sqlx::query!(
        "UPDATE queue_controls SET ended_at = longshore_now(), ended_by = $2 WHERE id = $1",
        id,
        by
    )
    .execute(tx)
    .await
    .map_err(LedgerError::database("ending a queue control"))?;
    Ok(())
}

async fn open(tx: &mut PgConnection, hold: NewHold) -> Result<Changed, LedgerError> {
    let control = sqlx::query_as!(
        Control,
        r#"INSERT INTO queue_controls (id, scope, value, mode, reason, set_by, since, until)
           VALUES ($1, $2, $3, $4, $5, $6, longshore_now(), $7)
           RETURNING id, scope AS "scope: Scope", value, mode AS "mode: Mode", reason, set_by, since, until"#,
        ids::ordered_uuid(),
        hold.scope as Scope,
        hold.value,
        hold.mode as Mode,
        hold.reason,
        hold.set_by,
        hold.until,
    )
    .fetch_one(&mut *tx)
    .await
    .map_err(LedgerError::database("setting a queue control"))?;
    let (taken_back, pokes) = take_back_queued(tx, control.scope, &control.value).await?;
    Ok(Changed {
        changed: true,
        control,
        taken_back,
        pokes,
    })
}

/// Admitted jobs of the scope wait again and give their slots away; hints that are under way will find nothing.
async fn take_back_queued(
    tx: &mut PgConnection,
    scope: Scope,
    value: &str,
) -> Result<(u64, Vec<String>), LedgerError> {
    let back = sqlx::query!(
        r#"UPDATE jobs SET state = 'scheduled', wait = $3, queued_at = NULL, revision = revision + 1
           WHERE state = 'queued' AND CASE $1::control_scope
                 WHEN 'all' THEN true
                 WHEN 'queue' THEN kind = $2
                 WHEN 'kind' THEN kind = $2
                 WHEN 'engine' THEN split_part(queue, '@', 2) = $2
                 WHEN 'tenant' THEN tenant = $2
                 WHEN 'workspace' THEN workspace_id::text = $2
             END
           RETURNING id, keys"#,
        scope as Scope,
        value,
        Wait::Ready as Wait,
    )
    .fetch_all(&mut *tx)
    .await
    .map_err(LedgerError::database("taking admitted jobs back"))?;
    let ids: Vec<Uuid> = back.iter().map(|row| row.id).collect();
    let keys: Vec<String> = back
        .iter()
        .flat_map(|row| row.keys.iter().cloned())
        .collect();
    sqlx::query!(
        "DELETE FROM job_slots WHERE key = ANY($1) AND job_id = ANY($2)",
        &keys,
        &ids
    )
    .execute(&mut *tx)
    .await
    .map_err(LedgerError::database("freeing slots"))?;
    let pokes = wake_next(tx, &keys).await?;
    Ok((ids.len() as u64, pokes))
}
