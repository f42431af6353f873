//! Runs that have not ended although their time is over.
//!
//! A worker ends its runs by their kind's timeout. One that beats and does not is broken in a way nobody has thought of, and
//! without this its job would hold its keys for ever. Taking the job from it is as safe as from a dead worker: what that run
//! still writes finds no token.

use std::time::Duration;

use longshore_base::{JobId, WorkspaceId};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::finish::{fail_run, lock};
use crate::{Kinds, LedgerError};

/// A run beyond its time.
#[derive(Clone, Debug)]
pub struct OverdueRun {
    /// The job.
    pub job_id: JobId,
    /// Its kind.
    pub kind: String,
    /// The workspace it is about.
    pub workspace_id: Option<WorkspaceId>,
    /// Who has it.
    pub worker: String,
    /// Since when it runs, in seconds.
    pub running_for_secs: i64,
    /// What its kind allows.
    pub limit_secs: i64,
    token: Uuid,
}

/// The runs that have gone on for longer than their kind's timeout and `slack`. Kinds that this process does not know are left
/// alone.
///
/// # Errors
/// [`LedgerError::Database`].
pub async fn list_overdue_runs(
    conn: &mut PgConnection,
    kinds: &Kinds,
    slack: Duration,
) -> Result<Vec<OverdueRun>, LedgerError> {
    let (names, limits): (Vec<_>, Vec<_>) = kinds
        .iter()
        .map(|kind| (kind.name.to_owned(), kind.policy.timeout.as_secs_f64()))
        .unzip();
    let rows = sqlx::query!(
        r#"SELECT jobs.id, jobs.kind, workspace_id AS "workspace_id: WorkspaceId", worker AS "worker!", token AS "token!",
                  extract(epoch FROM now - started_at)::bigint AS "running_for_secs!", secs::bigint AS "limit_secs!"
           FROM jobs JOIN unnest($1::text[], $2::float8[]) AS limits (kind, secs) ON limits.kind = jobs.kind,
                longshore_now() AS now
           WHERE state = 'running' AND started_at < now - make_interval(secs => secs + $3) ORDER BY jobs.id"#,
        &names,
        &limits,
        slack.as_secs_f64(),
    )
    .fetch_all(conn)
    .await
    .map_err(LedgerError::database("looking for runs beyond their time"))?;
    let runs = rows.into_iter().map(|row| OverdueRun {
        job_id: JobId(row.id),
        kind: row.kind,
        workspace_id: row.workspace_id,
        worker: row.worker,
        running_for_secs: row.running_for_secs,
        limit_secs: row.limit_secs,
        token: row.token,
    });
    Ok(runs.collect())
}

/// Takes the job from that run, as a failed attempt with this reason; answers the queues to poke after the commit. `None` when
/// the run has ended meanwhile, or has a transaction open.
///
/// # Errors
/// [`LedgerError`]; nothing may be committed then.
pub async fn take_overdue_run(
    tx: &mut PgConnection,
    kinds: &Kinds,
    run: &OverdueRun,
    reason: &str,
) -> Result<Option<Vec<String>>, LedgerError> {
    let free = sqlx::query_scalar!(
        "SELECT id FROM jobs WHERE id = $1 AND token = $2 AND state = 'running' FOR UPDATE SKIP LOCKED",
        run.job_id.0,
        run.token,
    )
    .fetch_optional(&mut *tx)
    .await
    .map_err(LedgerError::database("locking a job beyond its time"))?;
    if free.is_none() {
        return Ok(None);
    }
    match lock(tx, run.job_id, Some(run.token)).await? {
        Some(live) => Ok(Some(
            fail_run(tx, kinds, live, reason, None, &run.worker).await?,
        )),
        None => Ok(None),
    }
}
