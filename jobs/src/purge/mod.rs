//! `purge`: takes down what removed workspaces left running, and with `purge` deletes them for good
//! (`spec: lifecycle` §5, §13.4).
//!
//! One job for the whole set that a delete covers, with the keys of all of it. Only where the set is spread over several
//! engines there is one for each of them, since a worker reaches its own engine alone: each takes down its part, and
//! whichever finds that nothing is left anywhere deletes the rows. That something may be left is written in the rows
//! themselves (`engine_id`), so no job has to know of another.
//!
//! A collapse is the same without its root, which lives on.
//!
//! The first pass answers the delete ([`look`]); after it the job goes on by itself.

mod namespaces;
mod run;

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use longshore_base::secret::sha256;
use longshore_base::{JobId, WorkspaceId};
use longshore_fleet::FleetError;
use longshore_fleet::leaks::{FailedStop, record_leak};
use longshore_fleet::workspace::{RemovedSet, find_workspace, organisation_root};
use longshore_ledger::inspect::{find_checkpoint, find_job};
use longshore_ledger::{
    Backoff, Enqueued, HookError, Hooks, Jitter, Kinds, LedgerError, NewJob, Outcome, Policy,
    TerminalJob, drop_payloads, enqueue, hurry, resolve_conflicts,
};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;

pub use namespaces::{NamespaceError, Namespaces};
pub use run::PurgeExecutor;

use crate::place::{self, NOWHERE};
use crate::stopping::{Running, StopSource};
use crate::workspace_key;

/// The kind's name.
pub const KIND: &str = "purge";
/// Shapes of [`Args`] this version reads.
pub const ARGS_VERSIONS: &[i16] = &[1];
/// How purges are tried and limited. A try that finds the engine away, save the first, counts for nothing.
pub const POLICY: Policy = Policy {
    max_attempts: 5,
    backoff: Backoff {
        base: Duration::from_secs(10),
        cap: Duration::from_secs(300),
        jitter: Jitter::Full,
    },
    timeout: Duration::from_secs(1800),
    deadline: Duration::from_secs(24 * 3600),
    concurrency: 2,
};

/// What to take down.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Args {
    /// The workspace that was deleted, or whose team was collapsed: then it is not among the `ids`.
    pub root_id: WorkspaceId,
    /// The whole set, the root last if it is in it. What each needs for its stop stands in its row, which is there until all is done.
    pub ids: Vec<WorkspaceId>,
    /// Whether the rows go, and with them what only a purge removes.
    pub purge: bool,
    /// The engine whose part of the set this job takes down; none where nothing is known to have run.
    pub engine_id: Option<String>,
}

/// What a run leaves for the next one, and for whoever waits for the first pass.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Checkpoint {
    /// Passes that have ended without being done.
    passes: u32,
    /// What could not be taken down in the last one.
    failed: Vec<Failed>,
    /// The rows could not be deleted in the last one.
    rows_failed: bool,
    /// This job has deleted the rows.
    rows_deleted: bool,
}

/// Something that could not be taken down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Failed {
    id: WorkspaceId,
    what: Part,
    /// The backend that was asked; none where there is none.
    backend: Option<String>,
    /// In words fit for the public.
    error: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Part {
    Stop,
    Volumes,
}

/// What a delete set going.
#[must_use = "after the commit the queues must be poked"]
#[derive(Debug, Default)]
pub struct Removal {
    /// The jobs; that of the root's engine first. None where there is nothing to do.
    pub jobs: Vec<Asked>,
    /// Everything the delete covers, the root last.
    pub ids: Vec<WorkspaceId>,
    /// Queues to poke after the commit.
    pub pokes: Vec<String>,
}

/// A job that was asked for, or found waiting.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// The job.
    pub job_id: JobId,
    /// Passes it had made before.
    passes: u32,
}

/// Asks that removed workspaces are taken down, in the transaction that removed them. Older jobs that would bring one of
/// them up end or are asked to. A job that waits to try the same again tries now.
///
/// # Errors
/// [`LedgerError`]; nothing may be committed then.
pub async fn request(
    tx: &mut PgConnection,
    kinds: &Kinds,
    removed: &RemovedSet,
    purge: bool,
    created_by: &str,
) -> Result<Removal, LedgerError> {
    let set: Vec<_> = removed.to_take_down(purge).collect();
    let Some(last) = set.last() else {
        return Ok(Removal::default());
    };
    let ids: Vec<_> = set.iter().map(|workspace| workspace.id).collect();
    let keys: Vec<_> = ids.iter().copied().map(workspace_key).collect();
    drop_payloads(tx, &ids).await?;
    let mut removal = Removal {
        pokes: resolve_conflicts(tx, kinds, KIND, &keys, created_by).await?,
        ids,
        ..Removal::default()
    };
    let may_have_run = set
        .iter()
        .rev()
        .filter(|workspace| workspace.may_have_run());
    let mut engines: BTreeSet<_> = may_have_run
        .map(|workspace| workspace.engine_id.clone())
        .collect();
    let mut queues = Vec::new();
    // The root's first.
    if engines.remove(&last.engine_id) {
        let queue = place::choose(tx, KIND, last.engine_id.as_deref()).await?;
        queues.push((last.engine_id.clone(), queue));
    }
    for engine_id in engines {
        let queue = place::choose(tx, KIND, engine_id.as_deref()).await?;
        queues.push((engine_id, queue));
    }
    if queues.is_empty() && purge {
        // No engine is needed, so any worker will do.
        queues.push((None, place::queue(KIND, NOWHERE)));
    }
    let root = removed.root;
    let tenant = organisation_root(tx, root).await.unwrap_or(root);
    for (engine_id, queue) in queues {
        let args = Args {
            root_id: root,
            ids: removal.ids.clone(),
            purge,
            engine_id,
        };
        let mut new = new_job(&args, queue, tenant, keys.clone(), created_by);
        if !removed.covers_root() {
            // A collapse may come again with another set, which a waiting job would not take over.
            let set = digest(&removal.ids);
            new.dedupe_key = new.dedupe_key.map(|key| format!("{key}:{set}"));
        }
        let asked = ask(tx, new).await?;
        removal.pokes.push(asked.1);
        removal.jobs.push(asked.0);
    }
    Ok(removal)
}

fn new_job(
    args: &Args,
    queue: String,
    tenant: WorkspaceId,
    keys: Vec<String>,
    created_by: &str,
) -> NewJob {
    let at = args.engine_id.as_deref().unwrap_or(NOWHERE);
    NewJob {
        kind: KIND,
        queue,
        tenant: tenant.to_string(),
        workspace_id: Some(args.root_id),
        keys,
        dedupe_key: Some(format!("{}:{}:{at}", args.root_id, args.purge)),
        args: serde_json::to_value(args).unwrap_or_default(),
        args_version: 1,
        priority: 0,
        delay: Duration::ZERO,
        deadline: POLICY.deadline,
        max_attempts: POLICY.max_attempts,
        created_by: created_by.to_owned(),
    }
}

/// Tells sets of workspaces apart.
fn digest(ids: &[WorkspaceId]) -> String {
    let mut ids: Vec<_> = ids.iter().map(|id| id.0).collect();
    ids.sort_unstable();
    let all: Vec<u8> = ids.iter().flat_map(|id| *id.as_bytes()).collect();
    sha256(&all)[..8]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

async fn ask(tx: &mut PgConnection, new: NewJob) -> Result<(Asked, String), LedgerError> {
    let Enqueued {
        job_id,
        queue,
        existing,
    } = enqueue(tx, new).await?;
    let mut passes = 0;
    if existing {
        hurry(tx, job_id).await?;
        passes = checkpoint_of(tx, job_id).await?.passes;
    }
    Ok((Asked { job_id, passes }, queue))
}

/// How a job stands, as far as the answer to a delete depends on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pass {
    /// The first pass since it was asked for has not ended.
    UnderWay,
    /// It has, and these are not stopped. The job tries again, unless it has ended.
    NotStopped(Vec<(WorkspaceId, String)>),
    /// It has, everything is stopped, and the job goes on with the rest.
    Stopped,
    /// It has, and the rows could not be deleted. The job tries again.
    RowsNotDeleted,
    /// All is done.
    Done,
}

/// Looks at a job.
///
/// # Errors
/// [`LedgerError`].
pub async fn look(conn: &mut PgConnection, asked: Asked) -> Result<Pass, LedgerError> {
    // What a pass left is gone when the job ends, so it is read first.
    let checkpoint = checkpoint_of(conn, asked.job_id).await?;
    if checkpoint.passes > asked.passes {
        return Ok(pass_of(&checkpoint));
    }
    let Some(job) = find_job(conn, asked.job_id).await? else {
        return Ok(Pass::UnderWay);
    };
    Ok(match job.state {
        "succeeded" => Pass::Done,
        // Another job for the same took over; nobody knows here how far that is.
        "superseded" => Pass::UnderWay,
        state if job.is_terminal() => {
            let ids = match serde_json::from_value::<Args>(job.args) {
                // The root of a collapse was never to be stopped.
                Ok(args) if !args.ids.contains(&args.root_id) => args.ids,
                _ => job.workspace_id.into_iter().collect(),
            };
            let ended = |id| (id, format!("the job is {state}"));
            Pass::NotStopped(ids.into_iter().map(ended).collect())
        }
        _ => Pass::UnderWay,
    })
}

fn pass_of(checkpoint: &Checkpoint) -> Pass {
    let stops = checkpoint
        .failed
        .iter()
        .filter(|failed| failed.what == Part::Stop);
    let not_stopped: Vec<_> = stops.map(|stop| (stop.id, stop.error.clone())).collect();
    if !not_stopped.is_empty() {
        Pass::NotStopped(not_stopped)
    } else if checkpoint.rows_failed {
        Pass::RowsNotDeleted
    } else {
        Pass::Stopped
    }
}

async fn checkpoint_of(conn: &mut PgConnection, id: JobId) -> Result<Checkpoint, LedgerError> {
    Ok(read_checkpoint(find_checkpoint(conn, id).await?))
}

fn read_checkpoint(stored: Option<serde_json::Value>) -> Checkpoint {
    stored
        .and_then(|value| serde_json::from_value(value).ok())
        .unwrap_or_default()
}

/// What the end of a purge means: whatever it could not stop is suspected to run on, for nobody tries again.
pub struct PurgeHooks;

#[async_trait]
impl Hooks for PurgeHooks {
    async fn on_terminal(&self, tx: &mut PgConnection, job: &TerminalJob) -> Result<(), HookError> {
        if job.outcome != Outcome::Dead {
            return Ok(());
        }
        let checkpoint = checkpoint_of(tx, job.id)
            .await
            .map_err(|source| HookError::new("reading what a purge left", source))?;
        for failed in checkpoint.failed {
            tracing::error!(
                workspace_id = %failed.id, source = StopSource::Purge.as_str(), attempts = POLICY.max_attempts,
                last_error = failed.error, job.id = %job.id, what = ?failed.what,
                "LEAK-SUSPECT: a removed workspace could not be taken down"
            );
            let (Part::Stop, Some(backend)) = (failed.what, &failed.backend) else {
                continue;
            };
            let Some(row) = find_workspace(tx, failed.id).await.map_err(not_recorded)? else {
                continue;
            };
            let (running, name) = (Running::from(&row), row.id.container_name());
            let left = running.left(backend, &name);
            let stop = FailedStop {
                source: StopSource::Purge.as_str(),
                attempts: POLICY.max_attempts.unsigned_abs(),
                error: &failed.error,
            };
            record_leak(tx, &left, &stop).await.map_err(not_recorded)?;
        }
        Ok(())
    }
}

fn not_recorded(source: FleetError) -> HookError {
    HookError::new("recording what a purge left running", source)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_is_told_by_its_worst_part() {
        let id = WorkspaceId::random();
        let failed = |what| Failed {
            id,
            what,
            backend: None,
            error: "away".into(),
        };
        let of = |failed, rows_failed| {
            pass_of(&Checkpoint {
                passes: 1,
                failed,
                rows_failed,
                rows_deleted: false,
            })
        };
        assert_eq!(
            of(vec![failed(Part::Volumes), failed(Part::Stop)], false),
            Pass::NotStopped(vec![(id, "away".into())])
        );
        assert_eq!(of(vec![failed(Part::Volumes)], false), Pass::Stopped);
        assert_eq!(of(vec![], true), Pass::RowsNotDeleted);
    }
}
