//! One action over every job that matches a filter: counted first, then applied to exactly the counted set.
//!
//! A plan keeps the filter and the moment of the count. What ended or was asked for after that moment is not touched,
//! so the set can only shrink, never grow; and what the action did is no longer in the set, so applying twice, or going on
//! after a crash, does nothing twice.

use std::time::Duration;

use longshore_base::{JobId, Timestamp, ids};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::cancel::{CancelOutcome, cancel};
use crate::revive::{discard_dead, retry_many};
use crate::{DiscardOutcome, Kinds, LedgerError, discard};

/// Jobs one transaction of a bulk action takes.
pub const BATCH: i64 = 500;
/// How long a plan can be applied.
pub const PLAN_TTL: Duration = Duration::from_secs(600);
/// Jobs shown of a plan.
const SAMPLE: i64 = 10;
/// States whose jobs are in the history.
const ENDED: [&str; 2] = ["dead", "cancelled"];

/// What is to be done with every matching job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BulkAction {
    /// Run dead ones (or cancelled ones, where the filter says so) again.
    Retry,
    /// Cancel waiting and running ones.
    Cancel,
    /// Put dead ones (or waiting ones, where the filter says so) away.
    Discard,
}

/// Which jobs. All given parts must match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BulkFilter {
    /// Exactly this queue.
    pub queue: Option<String>,
    /// Exactly this kind.
    pub kind: Option<String>,
    /// `dead`, `cancelled`, `scheduled`, `queued` or `running`, as the action allows.
    pub state: Option<String>,
    /// About this workspace.
    pub workspace_id: Option<Uuid>,
    /// Of this tenant.
    pub tenant: Option<String>,
    /// Some error contains this text.
    pub error: Option<String>,
    /// Asked for before this.
    pub older_than: Option<Timestamp>,
    /// Asked for after this.
    pub newer_than: Option<Timestamp>,
}

/// A counted set.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BulkPlan {
    /// Its token.
    pub id: Uuid,
    /// What is to be done.
    pub action: BulkAction,
    /// With which.
    pub filter: BulkFilter,
    /// Only what was there by then.
    pub boundary: Timestamp,
    /// How many there were.
    pub matched: i64,
    /// The first of them.
    pub sample: Vec<JobId>,
    /// Until when it can be applied.
    pub expires_at: Timestamp,
    /// Why it is applied, in the words of whoever does; kept with what is cancelled or thrown away.
    #[serde(default)]
    pub reason: Option<String>,
}

/// How far a bulk action has come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BulkProgress {
    /// The last job looked at.
    pub cursor: Option<Uuid>,
    /// Jobs the action was done with.
    pub done: i64,
    /// Jobs it could not be done with.
    pub failed: i64,
    /// Whether nothing is left.
    pub finished: bool,
}

/// A plan cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum BulkError {
    /// The action does nothing to jobs in that state.
    #[error("{action} works on {allowed} jobs, not on {state} ones")]
    State {
        /// The action.
        action: &'static str,
        /// What it works on.
        allowed: &'static str,
        /// What was asked for.
        state: String,
    },
    /// The ledger could not be used.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

impl BulkAction {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Cancel => "cancel",
            Self::Discard => "discard",
        }
    }

    /// States the action works on; the first are those it takes when the filter does not say.
    const fn states(
        self,
    ) -> (
        &'static [&'static str],
        &'static [&'static str],
        &'static str,
    ) {
        match self {
            Self::Retry => (&["dead"], &["dead", "cancelled"], "dead or cancelled"),
            Self::Cancel => (
                &["scheduled", "queued", "running"],
                &["scheduled", "queued", "running"],
                "scheduled, queued or running",
            ),
            Self::Discard => (
                &["dead"],
                &["dead", "scheduled", "queued"],
                "dead, scheduled or queued",
            ),
        }
    }

    fn chosen(self, filter: &BulkFilter) -> Result<Vec<String>, BulkError> {
        let (usual, allowed, text) = self.states();
        match &filter.state {
            None => Ok(usual.iter().map(|state| (*state).to_owned()).collect()),
            Some(state) if allowed.contains(&state.as_str()) => Ok(vec![state.clone()]),
            Some(state) => Err(BulkError::State {
                action: self.as_str(),
                allowed: text,
                state: state.clone(),
            }),
        }
    }
}

/// Counts what an action would touch, and keeps that as a plan.
///
/// # Errors
/// [`BulkError`].
pub async fn plan(
    tx: &mut PgConnection,
    action: BulkAction,
    filter: BulkFilter,
    by: &str,
) -> Result<BulkPlan, BulkError> {
    let states = action.chosen(&filter)?;
    let boundary = longshore_base::clock::now(&mut *tx)
        .await
        .map_err(LedgerError::database("reading the clock"))?;
    let ids = sqlx::query!(
        r#"WITH matching AS (
               SELECT id FROM jobs WHERE state::text = ANY ($1) AND created_at <= $2 AND ($3::text IS NULL OR queue = $3)
                 AND ($4::text IS NULL OR kind = $4) AND ($5::uuid IS NULL OR workspace_id = $5) AND ($6::text IS NULL OR tenant = $6)
                 AND ($7::text IS NULL OR position(lower($7) IN lower(errors::text)) > 0)
                 AND ($8::timestamptz IS NULL OR created_at < $8) AND ($9::timestamptz IS NULL OR created_at > $9)
               UNION ALL
               SELECT id FROM job_history WHERE outcome::text = ANY ($1) AND outcome IN ('dead', 'cancelled') AND finished_at <= $2
                 AND ($3::text IS NULL OR queue = $3)
                 AND ($4::text IS NULL OR kind = $4) AND ($5::uuid IS NULL OR workspace_id = $5) AND ($6::text IS NULL OR tenant = $6)
                 AND ($7::text IS NULL OR position(lower($7) IN lower(errors::text)) > 0)
                 AND ($8::timestamptz IS NULL OR created_at < $8) AND ($9::timestamptz IS NULL OR created_at > $9)
           )
           SELECT (SELECT count(*) FROM matching) AS "matched!", ARRAY(SELECT id FROM matching ORDER BY id LIMIT $10) AS "sample!""#,
        &states,
        boundary,
        filter.queue,
        filter.kind,
        filter.workspace_id,
        filter.tenant,
        filter.error,
        filter.older_than,
        filter.newer_than,
        SAMPLE,
    )
    .fetch_one(&mut *tx)
    .await
    .map_err(LedgerError::database("counting what a bulk action would touch"))?;
    let plan = BulkPlan {
        id: ids::ordered_uuid(),
        action,
        filter,
        boundary,
        matched: ids.matched,
        sample: ids.sample.into_iter().map(JobId).collect(),
        expires_at: boundary + PLAN_TTL,
        reason: None,
    };
    sqlx::query!("DELETE FROM bulk_plans WHERE expires_at < longshore_now()")
        .execute(&mut *tx)
        .await
        .map_err(LedgerError::database("forgetting old plans"))?;
    sqlx::query!(
        "INSERT INTO bulk_plans (id, action, filter, boundary, matched, created_by, expires_at) VALUES ($1, $2, $3, $4, $5, $6, $7)",
        plan.id,
        action.as_str(),
        serde_json::json!(plan.filter),
        plan.boundary,
        plan.matched,
        by,
        plan.expires_at,
    )
    .execute(tx)
    .await
    .map_err(LedgerError::database("keeping a plan"))?;
    Ok(plan)
}

/// A plan that can still be applied; it is gone afterwards, so a token works once.
///
/// # Errors
/// [`LedgerError`].
pub async fn take_plan(tx: &mut PgConnection, id: Uuid) -> Result<Option<BulkPlan>, LedgerError> {
    let row = sqlx::query!(
        r#"DELETE FROM bulk_plans WHERE id = $1 AND expires_at > longshore_now()
           RETURNING action, filter, boundary, matched, expires_at"#,
        id
    )
    .fetch_optional(tx)
    .await
    .map_err(LedgerError::database("reading a plan"))?;
    let Some(row) = row else { return Ok(None) };
    let unreadable = |what| LedgerError::Unreadable {
        id: JobId(id),
        what,
    };
    Ok(Some(BulkPlan {
        id,
        action: serde_json::from_value(row.action.into()).map_err(|_| unreadable("its action"))?,
        filter: serde_json::from_value(row.filter).map_err(|_| unreadable("its filter"))?,
        boundary: row.boundary,
        matched: row.matched,
        sample: Vec::new(),
        expires_at: row.expires_at,
        reason: None,
    }))
}

/// Does the next part of a plan. Answers how far it is now, and the queues to poke after the commit.
///
/// # Errors
/// [`BulkError`]; nothing may be committed then.
pub async fn step(
    tx: &mut PgConnection,
    kinds: &Kinds,
    plan: &BulkPlan,
    by: &str,
    own: JobId,
    progress: &BulkProgress,
) -> Result<(BulkProgress, Vec<String>), BulkError> {
    let states = plan.action.chosen(&plan.filter)?;
    let filter = &plan.filter;
    // No index knows all states, so where none of them can be found is not looked at all: what comes back by hundreds of
    // parts would be read through by each of them. Where they can be, the planner must know how many have them: if it
    // takes them for few it reads all there are and sorts, instead of following the ids as far as the limit.
    let (in_history, in_jobs): (Vec<String>, Vec<String>) = states
        .into_iter()
        .partition(|state| ENDED.contains(&state.as_str()));
    let found = sqlx::query!(
        r#"(SELECT id AS "id!", true AS "live!" FROM jobs WHERE cardinality($1::text[]) > 0 AND state = ANY ($1::text[]::job_state[]) AND created_at <= $2 AND id <> $12
                 AND ($11::uuid IS NULL OR id > $11) AND ($3::text IS NULL OR queue = $3)
                 AND ($4::text IS NULL OR kind = $4) AND ($5::uuid IS NULL OR workspace_id = $5) AND ($6::text IS NULL OR tenant = $6)
                 AND ($7::text IS NULL OR position(lower($7) IN lower(errors::text)) > 0)
                 AND ($8::timestamptz IS NULL OR created_at < $8) AND ($9::timestamptz IS NULL OR created_at > $9)
            ORDER BY id LIMIT $10)
           UNION ALL
           (SELECT id, false FROM job_history WHERE cardinality($13::text[]) > 0 AND outcome = ANY ($13::text[]::job_outcome[]) AND outcome IN ('dead', 'cancelled') AND finished_at <= $2
                 AND ($11::uuid IS NULL OR id > $11) AND ($3::text IS NULL OR queue = $3)
                 AND ($4::text IS NULL OR kind = $4) AND ($5::uuid IS NULL OR workspace_id = $5) AND ($6::text IS NULL OR tenant = $6)
                 AND ($7::text IS NULL OR position(lower($7) IN lower(errors::text)) > 0)
                 AND ($8::timestamptz IS NULL OR created_at < $8) AND ($9::timestamptz IS NULL OR created_at > $9)
            ORDER BY id LIMIT $10)
           ORDER BY 1 LIMIT $10"#,
        &in_jobs,
        plan.boundary,
        filter.queue,
        filter.kind,
        filter.workspace_id,
        filter.tenant,
        filter.error,
        filter.older_than,
        filter.newer_than,
        BATCH,
        progress.cursor,
        own.0,
        &in_history,
    )
    .fetch_all(&mut *tx)
    .await
    .map_err(LedgerError::database("finding the next jobs of a bulk action"))?;
    let mut next = progress.clone();
    next.finished = (found.len() as i64) < BATCH;
    next.cursor = found.last().map_or(progress.cursor, |row| Some(row.id));
    let total = found.len() as i64;
    let reason = plan.reason.as_deref();
    let (live, ended): (Vec<_>, Vec<_>) = found.into_iter().partition(|row| row.live);
    let ended: Vec<JobId> = ended.into_iter().map(|row| JobId(row.id)).collect();
    let mut done = 0_i64;
    let mut pokes = Vec::new();
    match plan.action {
        BulkAction::Retry => {
            let retried = retry_many(&mut *tx, kinds, &ended, by).await?;
            done += retried.jobs.len() as i64;
            pokes = retried.queues;
        }
        BulkAction::Discard => {
            done += i64::try_from(discard_dead(&mut *tx, &ended).await?).unwrap_or(0);
            for row in live {
                if let DiscardOutcome::Discarded(queues) =
                    discard(&mut *tx, kinds, JobId(row.id), by, reason).await?
                {
                    done += 1;
                    pokes.extend(queues);
                }
            }
        }
        BulkAction::Cancel => {
            for row in live {
                match cancel(&mut *tx, kinds, JobId(row.id), by, reason).await? {
                    CancelOutcome::WasWaiting(queues) => {
                        done += 1;
                        pokes.extend(queues);
                    }
                    CancelOutcome::Requested => done += 1,
                    CancelOutcome::Finished | CancelOutcome::Unknown => {}
                }
            }
        }
    }
    next.done += done;
    next.failed += total - done;
    Ok((next, pokes))
}
