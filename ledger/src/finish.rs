//! From running to the history, or back to scheduled; and what every other end of a job shares.
//!
//! Jobs whose end means nothing to others are finished in batches by one statement. The rest end one by one, their
//! hooks in the same transaction, so that a workspace is never left 'provisioning' by a job that is gone.

use std::collections::BTreeSet;
use std::time::Duration;

use longshore_base::{JobId, WorkspaceId, failpoint};
use sqlx::{PgConnection, PgPool};
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::admission::{Admitter, wake_next};
use crate::job::{ErrorEntry, State, Wait, push_error};
use crate::policy::MAX_CRASHES;
use crate::{ClaimedJob, Kinds, LedgerError, Outcome, TerminalJob, Verdict};

/// Jobs finished by one statement.
const BATCH: usize = 1000;
/// Where so many runs end at once, more do in a moment; fewer are written without waiting.
const MANY: usize = 32;
/// That moment. A larger batch costs Postgres less a job.
const GATHER: Duration = Duration::from_millis(2);
/// Finishes waiting for their turn before runs are held up.
pub(crate) const BACKLOG: usize = 4096;
/// Pause before a failed flush is tried again.
const RETRY: Duration = Duration::from_millis(250);
/// A job that could not be run by this version is offered to others after this.
const GIVE_BACK_DELAY: Duration = Duration::from_secs(1);

/// A run that has ended.
pub(crate) struct Finish {
    pub(crate) job: ClaimedJob,
    pub(crate) verdict: Verdict,
}

/// Writes the ends of runs until every sender is gone.
pub(crate) async fn finish_runs(
    pool: PgPool,
    kinds: Kinds,
    admitter: Admitter,
    worker: String,
    mut ended: mpsc::Receiver<Finish>,
) {
    let mut batch = Vec::with_capacity(BATCH);
    let mut many = false;
    while ended.recv_many(&mut batch, BATCH).await > 0 {
        // After many, the first of the next ones often comes alone, and its transaction would keep them waiting.
        many |= batch.len() >= MANY;
        if many && batch.len() < BATCH {
            tokio::time::sleep(GATHER).await;
            while batch.len() < BATCH
                && let Ok(finish) = ended.try_recv()
            {
                batch.push(finish);
            }
        }
        many = batch.len() >= MANY;
        failpoint::hit("finish.before").await;
        let (plain, special): (Vec<_>, Vec<_>) =
            batch.drain(..).partition(|finish| is_plain(&kinds, finish));
        if !plain.is_empty() {
            until_written(|| finish_plain(&pool, &plain, &admitter)).await;
        }
        for finish in &special {
            until_written(|| finish_one(&pool, &kinds, finish, &worker, &admitter)).await;
        }
    }
}

async fn until_written<Fut: Future<Output = Result<(), LedgerError>> + Send>(
    write: impl Fn() -> Fut + Send,
) {
    while let Err(error) = write().await {
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            "cannot write the end of runs yet; trying again"
        );
        tokio::time::sleep(RETRY).await;
    }
}

fn is_plain(kinds: &Kinds, finish: &Finish) -> bool {
    matches!(finish.verdict, Verdict::Done(_))
        && kinds
            .find(&finish.job.kind)
            .is_none_or(|kind| kind.hooks.is_none())
}

/// The statement looks up ids and keys with `= ANY`, never by a join: planned while its tables are empty and kept, a join
/// reads all of them for each run. `IS TRUE` keeps the planner from making one of what only checks.
async fn finish_plain(
    pool: &PgPool,
    batch: &[Finish],
    admitter: &Admitter,
) -> Result<(), LedgerError> {
    // In the order of the ids, as all who lock several jobs.
    let mut runs: Vec<(Uuid, Uuid)> = batch
        .iter()
        .map(|finish| (finish.job.id.0, finish.job.token))
        .collect();
    runs.sort_unstable();
    let (ids, tokens): (Vec<_>, Vec<_>) = runs.into_iter().unzip();
    let results: serde_json::Map<String, serde_json::Value> = batch
        .iter()
        .filter_map(|finish| Some((finish.job.id.to_string(), result_of(&finish.verdict)?)))
        .collect();
    let mut tx = pool
        .begin()
        .await
        .map_err(LedgerError::database("beginning to finish jobs"))?;
    let freed = sqlx::query_scalar!(
        r#"WITH ended AS (
               DELETE FROM jobs WHERE id = ANY ($1) AND ((id, token) IN (SELECT * FROM unnest($1::uuid[], $2::uuid[]))) IS TRUE
               RETURNING *
           ), kept AS (
               INSERT INTO job_history (id, outcome, finished_at, seq, kind, queue, tenant, workspace_id, keys, dedupe_key,
                   args, args_version, priority, dispatch, attempt, crashes, snoozes, max_attempts, run_at, deadline_at, worker,
                   cancel_requested, progress, revision, errors, trace_context, created_by, created_at, started_at, result)
               SELECT id, $3, now, seq, kind, queue, tenant, workspace_id, keys, dedupe_key,
                   args, args_version, priority, dispatch, attempt, crashes, snoozes, max_attempts, run_at, deadline_at, worker,
                   cancel_requested, progress, revision + 1, errors, trace_context, created_by, created_at, started_at,
                   $4::jsonb -> id::text
               FROM ended, longshore_now() AS now
           )
           DELETE FROM job_slots WHERE key = ANY (ARRAY(SELECT unnest(keys) FROM ended))
             AND (job_id IN (SELECT unnest($1::uuid[]))) IS TRUE RETURNING key"#,
        &ids,
        &tokens,
        Outcome::Succeeded as Outcome,
        serde_json::Value::Object(results),
    )
    .fetch_all(&mut *tx)
    .await
    .map_err(LedgerError::database("finishing jobs"))?;
    for finish in batch {
        forget_keys(&mut tx, finish.job.id, &finish.job.keys).await?;
    }
    let woken = wake_next(&mut tx, &freed).await?;
    tx.commit()
        .await
        .map_err(LedgerError::database("committing finished jobs"))?;
    poke_all(admitter, woken);
    admitter.poke_limited(batch.iter().map(|finish| finish.job.queue.as_str()));
    metrics::counter!("longshore_jobs_finished_total", "outcome" => Outcome::Succeeded.as_str())
        .increment(batch.len() as u64);
    Ok(())
}

fn result_of(verdict: &Verdict) -> Option<serde_json::Value> {
    match verdict {
        Verdict::Done(result) => result.clone(),
        _ => None,
    }
}

async fn finish_one(
    pool: &PgPool,
    kinds: &Kinds,
    finish: &Finish,
    worker: &str,
    admitter: &Admitter,
) -> Result<(), LedgerError> {
    let mut tx = pool
        .begin()
        .await
        .map_err(LedgerError::database("beginning to finish a job"))?;
    let Some(live) = lock(&mut tx, finish.job.id, Some(finish.job.token)).await? else {
        tracing::info!(job.id = %finish.job.id, job.kind = finish.job.kind, "the end of a fenced run is not written");
        return Ok(());
    };
    let pokes = settle(&mut tx, kinds, live, finish, worker).await?;
    tx.commit()
        .await
        .map_err(LedgerError::database("committing the end of a job"))?;
    poke_all(admitter, pokes);
    admitter.poke_limited(std::iter::once(finish.job.queue.as_str()));
    Ok(())
}

/// Turns a verdict into the job's next state.
async fn settle(
    tx: &mut PgConnection,
    kinds: &Kinds,
    live: LiveJob,
    finish: &Finish,
    worker: &str,
) -> Result<Vec<String>, LedgerError> {
    match &finish.verdict {
        Verdict::Done(result) => {
            end(
                tx,
                kinds,
                live,
                End::new(Outcome::Succeeded, None).with_result(result.clone()),
            )
            .await
        }
        Verdict::Superseded(reason) => {
            end(
                tx,
                kinds,
                live,
                End::new(Outcome::Superseded, Some(reason.clone())),
            )
            .await
        }
        Verdict::Cancelled => {
            let reason = live.cancel_reason();
            end(tx, kinds, live, End::new(Outcome::Cancelled, reason)).await
        }
        Verdict::Permanent(error) => {
            end(
                tx,
                kinds,
                live,
                End::new(Outcome::Dead, Some(error.public.clone())).failed_on(worker),
            )
            .await
        }
        Verdict::Retry(error) => fail_run(tx, kinds, live, &error.public, None, worker).await,
        Verdict::RetryAfter(error, wait) => {
            fail_run(tx, kinds, live, &error.public, Some(*wait), worker).await
        }
        Verdict::Snooze(wait, _) => {
            go_back(
                tx,
                kinds,
                live,
                GoBack {
                    delay: *wait,
                    snoozed: true,
                    ..GoBack::default()
                },
                worker,
            )
            .await
        }
        Verdict::GiveBack => {
            go_back(
                tx,
                kinds,
                live,
                GoBack {
                    delay: Duration::ZERO,
                    ..GoBack::default()
                },
                worker,
            )
            .await
        }
    }
}

/// Ends a locked job's run as a failed attempt: back to wait, by the kind's backoff if nothing else is said, or dead after
/// the last one.
pub(crate) async fn fail_run(
    tx: &mut PgConnection,
    kinds: &Kinds,
    live: LiveJob,
    error: &str,
    wait: Option<Duration>,
    worker: &str,
) -> Result<Vec<String>, LedgerError> {
    let failures = live.attempt + 1;
    if failures >= live.max_attempts {
        let end_of = End::new(Outcome::Dead, Some(error.to_owned())).failed_on(worker);
        return end(tx, kinds, live, end_of).await;
    }
    let delay = wait.unwrap_or_else(|| {
        kinds.find(&live.kind).map_or(GIVE_BACK_DELAY, |kind| {
            kind.policy.backoff.wait(failures.unsigned_abs())
        })
    });
    let how = GoBack {
        delay,
        failed: Some(error.to_owned()),
        ..GoBack::default()
    };
    go_back(tx, kinds, live, how, worker).await
}

/// A live job's row, locked.
pub(crate) struct LiveJob {
    pub(crate) id: JobId,
    pub(crate) kind: String,
    pub(crate) queue: String,
    pub(crate) state: State,
    pub(crate) backing_off: bool,
    workspace_id: Option<WorkspaceId>,
    args: serde_json::Value,
    args_version: i16,
    keys: Vec<String>,
    attempt: i32,
    crashes: i32,
    max_attempts: i32,
    worker: Option<String>,
    errors: Vec<ErrorEntry>,
    cancel_requested: Option<serde_json::Value>,
    checkpoint: Option<serde_json::Value>,
}

impl LiveJob {
    fn cancelled_by(&self) -> Option<String> {
        let by = self.cancel_requested.as_ref()?.get("by")?.as_str()?;
        Some(by.to_owned())
    }

    fn cancel_reason(&self) -> Option<String> {
        let reason = self.cancel_requested.as_ref()?.get("reason")?.as_str()?;
        Some(reason.to_owned())
    }
}

/// Locks a live job; with a token only while that run owns it. `FOR UPDATE`, so a run's open transaction goes first.
pub(crate) async fn lock(
    tx: &mut PgConnection,
    id: JobId,
    token: Option<Uuid>,
) -> Result<Option<LiveJob>, LedgerError> {
    let row = sqlx::query!(
        r#"SELECT kind, queue, state AS "state: State", backing_off, workspace_id, args, args_version, keys, attempt, crashes, max_attempts,
               worker, errors, cancel_requested, checkpoint
           FROM jobs WHERE id = $1 AND ($2::uuid IS NULL OR (token = $2 AND state = 'running')) FOR UPDATE"#,
        id.0,
        token
    )
    .fetch_optional(&mut *tx)
    .await
    .map_err(LedgerError::database("locking a job"))?;
    let Some(row) = row else { return Ok(None) };
    let errors = serde_json::from_value(row.errors).map_err(|_| LedgerError::Unreadable {
        id,
        what: "its error history",
    })?;
    Ok(Some(LiveJob {
        id,
        kind: row.kind,
        queue: row.queue,
        state: row.state,
        backing_off: row.backing_off,
        workspace_id: row.workspace_id.map(WorkspaceId),
        args: row.args,
        args_version: row.args_version,
        keys: row.keys,
        attempt: row.attempt,
        crashes: row.crashes,
        max_attempts: row.max_attempts,
        worker: row.worker,
        errors,
        cancel_requested: row.cancel_requested,
        checkpoint: row.checkpoint,
    }))
}

/// How a job ends.
pub(crate) struct End {
    outcome: Outcome,
    reason: Option<String>,
    result: Option<serde_json::Value>,
    /// The worker whose run failed; counts as one more attempt.
    failed_on: Option<String>,
}

impl End {
    pub(crate) fn new(outcome: Outcome, reason: Option<String>) -> Self {
        Self {
            outcome,
            reason,
            result: None,
            failed_on: None,
        }
    }

    fn with_result(mut self, result: Option<serde_json::Value>) -> Self {
        self.result = result;
        self
    }

    pub(crate) fn failed_on(mut self, worker: &str) -> Self {
        self.failed_on = Some(worker.to_owned());
        self
    }
}

/// Ends a locked job: hook, history, slots, successors. Answers the queues to poke after the commit.
pub(crate) async fn end(
    tx: &mut PgConnection,
    kinds: &Kinds,
    mut live: LiveJob,
    how: End,
) -> Result<Vec<String>, LedgerError> {
    if let Some(hooks) = kinds.find(&live.kind).and_then(|kind| kind.hooks.as_ref()) {
        let job = TerminalJob {
            id: live.id,
            kind: live.kind.clone(),
            workspace_id: live.workspace_id,
            args: live.args.clone(),
            args_version: live.args_version,
            outcome: how.outcome,
            reason: how.reason.clone(),
            cancelled_by: live.cancelled_by(),
            checkpoint: live.checkpoint.clone(),
        };
        hooks
            .on_terminal(&mut *tx, &job)
            .await
            .map_err(|source| LedgerError::Hook {
                id: live.id,
                kind: live.kind.clone(),
                source,
            })?;
    }
    let mut attempt = live.attempt;
    if let Some(error) = how
        .reason
        .clone()
        .filter(|_| how.outcome != Outcome::Succeeded)
    {
        attempt += i32::from(how.failed_on.is_some());
        let at = longshore_base::clock::now(&mut *tx)
            .await
            .map_err(LedgerError::database("reading the clock"))?;
        let worker = how.failed_on.or(live.worker);
        push_error(
            &mut live.errors,
            ErrorEntry {
                attempt,
                at,
                worker,
                error,
                retried_at: None,
            },
        );
    }
    sqlx::query!(
        r#"WITH ended AS (DELETE FROM jobs WHERE id = $1 RETURNING *)
           INSERT INTO job_history (id, outcome, finished_at, seq, kind, queue, tenant, workspace_id, keys, dedupe_key,
               args, args_version, priority, dispatch, attempt, crashes, snoozes, max_attempts, run_at, deadline_at, worker,
               cancel_requested, progress, revision, errors, trace_context, created_by, created_at, started_at, result)
           SELECT id, $2, longshore_now(), seq, kind, queue, tenant, workspace_id, keys, dedupe_key,
               args, args_version, priority, dispatch, $3, crashes, snoozes, max_attempts, run_at, deadline_at, worker,
               cancel_requested, progress, revision + 1, $4, trace_context, created_by, created_at, started_at, $5
           FROM ended"#,
        live.id.0,
        how.outcome as Outcome,
        attempt,
        errors_json(&live.errors),
        how.result,
    )
    .execute(&mut *tx)
    .await
    .map_err(LedgerError::database("moving a job to the history"))?;
    metrics::counter!("longshore_jobs_finished_total", "outcome" => how.outcome.as_str())
        .increment(1);
    tracing::info!(job.id = %live.id, job.kind = live.kind, outcome = how.outcome.as_str(), reason = how.reason, "job ended");
    forget_keys(tx, live.id, &live.keys).await?;
    free_slots(tx, live.id, &live.keys).await
}

/// How a job goes back to scheduled.
#[derive(Default)]
pub(crate) struct GoBack {
    delay: Duration,
    /// The public reason of a failed attempt; none when no attempt is used.
    failed: Option<String>,
    snoozed: bool,
    crashed: bool,
}

impl GoBack {
    /// The worker died while running it.
    pub(crate) fn crashed() -> Self {
        Self {
            crashed: true,
            ..Self::default()
        }
    }
}

/// Puts a locked job back; a waiting twin (same dedupe key) takes over instead, and a poison job is dead.
pub(crate) async fn go_back(
    tx: &mut PgConnection,
    kinds: &Kinds,
    mut live: LiveJob,
    how: GoBack,
    worker: &str,
) -> Result<Vec<String>, LedgerError> {
    let crashes = live.crashes + i32::from(how.crashed);
    if crashes >= MAX_CRASHES {
        let reason = format!("poison job: {crashes} workers died while running it");
        record_crashes(tx, live.id, crashes).await?;
        return end(tx, kinds, live, End::new(Outcome::Dead, Some(reason))).await;
    }
    let has_twin = has_twin(tx, &live).await?;
    let reason = if how.crashed {
        Some(format!("worker {worker} died while running it"))
    } else {
        how.failed.clone()
    };
    let attempt = live.attempt + i32::from(how.failed.is_some());
    if let Some(error) = reason {
        let at = longshore_base::clock::now(&mut *tx)
            .await
            .map_err(LedgerError::database("reading the clock"))?;
        let retried_at = chrono::Duration::from_std(how.delay)
            .ok()
            .filter(|_| !has_twin)
            .map(|delay| at + delay);
        push_error(
            &mut live.errors,
            ErrorEntry {
                attempt,
                at,
                worker: Some(worker.to_owned()),
                error,
                retried_at,
            },
        );
    }
    if has_twin {
        // What this run cost counts all the same.
        record_crashes(tx, live.id, crashes).await?;
        live.attempt = attempt;
        let reason = "a newer request of the same kind took over".to_owned();
        return end(tx, kinds, live, End::new(Outcome::Superseded, Some(reason))).await;
    }
    let wait = if how.delay > Duration::ZERO {
        Wait::Time
    } else {
        Wait::Ready
    };
    sqlx::query!(
        r#"UPDATE jobs SET state = 'scheduled', wait = $2, backing_off = $3, run_at = longshore_now() + $4::float8 * interval '1 second',
               attempt = $5, crashes = $6, snoozes = snoozes + $7, errors = $8, worker = NULL, token = NULL, queued_at = NULL,
               started_at = NULL, progress = NULL, revision = revision + 1
           WHERE id = $1"#,
        live.id.0,
        wait as Wait,
        how.failed.is_some(),
        how.delay.as_secs_f64(),
        attempt,
        crashes,
        i32::from(how.snoozed),
        errors_json(&live.errors),
    )
    .execute(&mut *tx)
    .await
    .map_err(LedgerError::database("putting a job back"))?;
    let mut pokes = free_slots(tx, live.id, &live.keys).await?;
    pokes.push(live.queue);
    Ok(pokes)
}

async fn record_crashes(tx: &mut PgConnection, id: JobId, crashes: i32) -> Result<(), LedgerError> {
    sqlx::query!("UPDATE jobs SET crashes = $2 WHERE id = $1", id.0, crashes)
        .execute(&mut *tx)
        .await
        .map_err(LedgerError::database("counting a crash"))?;
    Ok(())
}

async fn has_twin(tx: &mut PgConnection, live: &LiveJob) -> Result<bool, LedgerError> {
    sqlx::query_scalar!(
        r#"SELECT EXISTS (
               SELECT 1 FROM jobs AS twin JOIN jobs AS own ON own.id = $1
               WHERE twin.kind = own.kind AND twin.dedupe_key = own.dedupe_key AND twin.id <> own.id
                 AND twin.state IN ('scheduled', 'queued') AND own.state = 'running'
           ) AS "twin!""#,
        live.id.0
    )
    .fetch_one(&mut *tx)
    .await
    .map_err(LedgerError::database("looking for a waiting twin"))
}

async fn free_slots(
    tx: &mut PgConnection,
    id: JobId,
    keys: &[String],
) -> Result<Vec<String>, LedgerError> {
    free_slots_of(tx, id, keys).await?;
    wake_next(tx, keys).await
}

/// Forgets the several keys of a job, if it has ended: that of a fenced run lives on, and is to be found by its keys.
async fn forget_keys(tx: &mut PgConnection, id: JobId, keys: &[String]) -> Result<(), LedgerError> {
    if keys.len() > 1 {
        sqlx::query!(
            "DELETE FROM job_keys WHERE key = ANY($1) AND job_id = $2 AND NOT EXISTS (SELECT 1 FROM jobs WHERE id = $2)",
            keys,
            id.0
        )
        .execute(&mut *tx)
        .await
        .map_err(LedgerError::database("forgetting the keys of a job"))?;
    }
    Ok(())
}

async fn free_slots_of(
    tx: &mut PgConnection,
    id: JobId,
    keys: &[String],
) -> Result<(), LedgerError> {
    sqlx::query!(
        "DELETE FROM job_slots WHERE key = ANY($1) AND job_id = $2",
        keys,
        id.0
    )
    .execute(&mut *tx)
    .await
    .map_err(LedgerError::database("freeing slots"))?;
    Ok(())
}

fn errors_json(errors: &[ErrorEntry]) -> serde_json::Value {
    serde_json::to_value(errors).unwrap_or_default()
}

/// Pokes each queue once.
pub(crate) fn poke_all(admitter: &Admitter, queues: Vec<String>) {
    for queue in queues.into_iter().collect::<BTreeSet<_>>() {
        admitter.poke(&queue);
    }
}
