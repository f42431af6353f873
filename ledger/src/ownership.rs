//! One owner at a time for what must not be done twice: a row, taken by compare-and-set.
//!
//! The owner is a worker by name. A dead worker's row in `workers` is gone, and with it its ownerships; a session lock
//! could be stranded on a pooled connection instead. The owner makes the passes by the clock; any worker may make one
//! that an operator asks for, and `passing` keeps the two apart.

mod operate;

pub use operate::{ReconcilerRow, Tick, approve, list_reconcilers, list_ticks, set_enabled};

use sqlx::{PgConnection, PgPool};

use crate::LedgerError;

/// What is owned.
#[derive(Clone, Copy, Debug)]
pub struct Owned<'a> {
    /// The reconciler.
    pub name: &'a str,
    /// What part of the world it looks at: an engine's id, or `all`.
    pub scope: &'a str,
}

/// The right to make one pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// The pass before was blocked.
    pub was_blocked: bool,
    /// What an operator lets this pass destroy beyond its budget.
    pub approved: Vec<String>,
}

impl Turn {
    fn read(was_blocked: bool, approved: Option<serde_json::Value>) -> Self {
        Self {
            was_blocked,
            approved: approved
                .and_then(|list| serde_json::from_value(list).ok())
                .unwrap_or_default(),
        }
    }
}

/// What became of asking for a pass out of turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Extra {
    /// It may be made.
    Granted(Turn),
    /// Another worker makes one now.
    Busy,
    /// An operator has disabled it.
    Disabled,
}

/// Takes, or keeps, the ownership for a worker, and the right to make one pass, which [`record_pass`] or [`release`] gives
/// back. `None` while another live worker has one of them, or it is disabled. A new scope of a reconciler that is disabled
/// in all others is born disabled.
///
/// # Errors
/// [`LedgerError::Database`]: nothing may be done then.
pub async fn take(
    pool: &PgPool,
    owned: Owned<'_>,
    worker: &str,
    interval_seconds: i32,
) -> Result<Option<Turn>, LedgerError> {
    let taken = sqlx::query!(
        r#"INSERT INTO reconcilers AS r (name, scope, owner, interval_seconds, passing, passing_since,
                                         enabled, changed_by, changed_at, change_reason)
           SELECT $1, $2, $3, $4, $3, longshore_now(), coalesce(bool_or(s.enabled), true),
                  max(s.changed_by) FILTER (WHERE NOT s.enabled), max(s.changed_at) FILTER (WHERE NOT s.enabled),
                  max(s.change_reason) FILTER (WHERE NOT s.enabled)
           FROM reconcilers s WHERE s.name = $1 AND s.scope <> $2
           ON CONFLICT (name, scope) DO UPDATE
           SET owner = $3, beat = r.beat + 1, interval_seconds = $4, passing = $3, passing_since = longshore_now()
           WHERE r.enabled
             AND (r.owner = $3 OR NOT EXISTS (SELECT 1 FROM workers WHERE workers.name = r.owner))
             AND (r.passing IS NULL OR r.passing = $3 OR r.passing_since < longshore_now() - interval '15 minutes'
                  OR NOT EXISTS (SELECT 1 FROM workers WHERE workers.name = r.passing))
           RETURNING enabled, blocked IS NOT NULL AS "was_blocked!", approved"#,
        owned.name,
        owned.scope,
        worker,
        interval_seconds,
    )
    .fetch_optional(pool)
    .await
    .map_err(LedgerError::database("taking a reconciler"))?;
    match taken {
        Some(row) if row.enabled => Ok(Some(Turn::read(row.was_blocked, row.approved))),
        Some(_born_disabled) => {
            release(pool, owned, worker).await?;
            Ok(None)
        }
        None => Ok(None),
    }
}

/// Takes the right to make one pass without owning the reconciler: an operator asked for it. A dry run may be made of a
/// disabled one too.
///
/// # Errors
/// [`LedgerError::Database`]: nothing may be done then.
pub async fn take_extra(
    pool: &PgPool,
    owned: Owned<'_>,
    worker: &str,
    dry_run: bool,
) -> Result<Extra, LedgerError> {
    let taken = sqlx::query!(
        r#"UPDATE reconcilers r SET passing = $3, passing_since = longshore_now()
           WHERE r.name = $1 AND r.scope = $2 AND (r.enabled OR $4)
             AND (r.passing IS NULL OR r.passing = $3 OR r.passing_since < longshore_now() - interval '15 minutes'
                  OR NOT EXISTS (SELECT 1 FROM workers WHERE workers.name = r.passing))
           RETURNING blocked IS NOT NULL AS "was_blocked!", approved"#,
        owned.name,
        owned.scope,
        worker,
        dry_run,
    )
    .fetch_optional(pool)
    .await
    .map_err(LedgerError::database("taking a reconciler for one pass"))?;
    if let Some(row) = taken {
        return Ok(Extra::Granted(Turn::read(row.was_blocked, row.approved)));
    }
    let enabled = sqlx::query_scalar!(
        "SELECT enabled FROM reconcilers WHERE name = $1 AND scope = $2",
        owned.name,
        owned.scope,
    )
    .fetch_optional(pool)
    .await
    .map_err(LedgerError::database(
        "asking whether a reconciler is disabled",
    ))?;
    Ok(if enabled == Some(false) && !dry_run {
        Extra::Disabled
    } else {
        Extra::Busy
    })
}

/// Gives the right to make a pass back without one having ended.
///
/// # Errors
/// [`LedgerError::Database`]; the worker has it until its next try, or for 15 minutes.
pub async fn release(pool: &PgPool, owned: Owned<'_>, worker: &str) -> Result<(), LedgerError> {
    sqlx::query!(
        "UPDATE reconcilers SET passing = NULL, passing_since = NULL WHERE name = $1 AND scope = $2 AND passing = $3",
        owned.name,
        owned.scope,
        worker,
    )
    .execute(pool)
    .await
    .map_err(LedgerError::database("releasing a reconciler"))?;
    Ok(())
}

/// Whether a pass held back.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Block<'a> {
    /// It did all that it is there for.
    Free,
    /// It wanted to destroy too much: `{reason, wanted, budget}`.
    Blocked(&'a serde_json::Value),
    /// It could not look: as before, and what was approved still waits.
    Unknown,
}

/// Keeps what a pass saw and did and whether it was blocked, uses up what its turn was approved, and gives the turn back. What
/// was approved during the pass waits for the next. Since when it is blocked is kept from the first blocked pass on.
///
/// Answers whether the turn was still the worker's. If not, nothing is kept, and nothing may be told of the pass.
///
/// # Errors
/// [`LedgerError::Database`].
pub async fn record_pass(
    tx: &mut PgConnection,
    owned: Owned<'_>,
    worker: &str,
    turn: &Turn,
    (report, block): (&serde_json::Value, Block<'_>),
) -> Result<bool, LedgerError> {
    let blocked = match block {
        Block::Blocked(blocked) => Some(blocked),
        Block::Free | Block::Unknown => None,
    };
    let recorded = sqlx::query!(
        r#"UPDATE reconcilers
           SET last_pass = $4, last_pass_at = longshore_now(), passing = NULL, passing_since = NULL,
               approved = CASE WHEN $6 OR coalesce(approved, '[]') <> $7 THEN approved END,
               blocked = CASE WHEN $6 THEN blocked ELSE
                   $5::jsonb || jsonb_build_object('since', coalesce(blocked->'since', to_jsonb(longshore_now()))) END
           WHERE name = $1 AND scope = $2 AND passing = $3"#,
        owned.name,
        owned.scope,
        worker,
        report,
        blocked,
        block == Block::Unknown,
        serde_json::json!(turn.approved),
    )
    .execute(tx)
    .await
    .map_err(LedgerError::database("recording a pass"))?;
    Ok(recorded.rows_affected() == 1)
}
