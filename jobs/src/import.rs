//! Importing workspaces: the rows of all of them, and the jobs that bring them up, in the caller's transaction.
//!
//! No kind of its own: each workspace gets a `provision` like any other, with what it needs of the import as the job's
//! payload. How many of an import run at once is said by keys that its jobs share.

use std::time::Duration;

use longshore_base::{WorkspaceId, ids};
use longshore_fleet::import::ImportNode;
use longshore_fleet::workspace::{CreateError, Workspace, create_workspace};
use longshore_fleet::{Fleet, FleetError};
use longshore_ledger::{Enqueued, LedgerError, save_payload};
use sqlx::{Connection as _, PgConnection};

use crate::provision::{self, Cause, Turn};

/// How fast an import goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImportPace {
    /// Workspaces of one import that are brought up at once, at least one.
    pub at_once: u16,
    /// Between the starts of two workspaces below the same one.
    pub apart: Duration,
}

impl ImportPace {
    /// Three at once, two seconds apart.
    pub const DEFAULT: Self = Self {
        at_once: 3,
        apart: Duration::from_secs(2),
    };
}

/// What became of one workspace.
#[derive(Debug)]
pub struct Imported {
    /// Its name.
    pub name: String,
    /// The place of its parent in the list.
    pub parent: Option<usize>,
    /// The row and the job that brings it up, none of an external one; or why it was not created, in words fit for the
    /// public.
    pub made: Result<(Workspace, Option<Enqueued>), String>,
}

impl Imported {
    /// Its id, if it was created.
    #[must_use]
    pub fn id(&self) -> Option<WorkspaceId> {
        self.made.as_ref().ok().map(|(workspace, _)| workspace.id)
    }
}

/// Why nothing was imported; nothing may be committed then.
#[derive(Debug, thiserror::Error)]
pub enum ImportFailed {
    /// The first workspace cannot be created.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// A job was not written.
    #[error("a job of the import was not written")]
    Ledger(#[from] LedgerError),
}

/// Writes the workspaces, each below its parent, and asks that they are brought up. One that cannot be created takes along
/// only what stands below it, unless it is the first. `pace` is none where nothing is to wait for anything.
///
/// # Errors
/// [`ImportFailed`].
pub async fn import(
    tx: &mut PgConnection,
    fleet: &Fleet,
    nodes: Vec<ImportNode>,
    (cause, pace): (Cause, Option<ImportPace>),
    created_by: &str,
) -> Result<Vec<Imported>, ImportFailed> {
    let turns = turns(&nodes, pace);
    let mut imported: Vec<Imported> = Vec::with_capacity(nodes.len());
    for (node, turn) in nodes.into_iter().zip(turns) {
        let name = node.new.name.clone();
        let parent = node.parent;
        let above = parent.map(|parent| imported[parent].id());
        let made = match above {
            Some(None) => Err("its parent was not imported".to_owned()),
            None | Some(Some(_)) => {
                match create(tx, fleet, node, above.flatten(), (cause, &turn), created_by).await {
                    Ok(made) => Ok(made),
                    Err(error) if imported.is_empty() => return Err(error),
                    Err(error) => {
                        tracing::error!(
                            workspace.name = name,
                            error = &error as &dyn std::error::Error,
                            "a workspace of an import was not created"
                        );
                        Err("failed to create workspace".to_owned())
                    }
                }
            }
        };
        imported.push(Imported { name, parent, made });
    }
    Ok(imported)
}

/// All of one workspace or nothing.
async fn create(
    tx: &mut PgConnection,
    fleet: &Fleet,
    mut node: ImportNode,
    parent: Option<WorkspaceId>,
    (cause, turn): (Cause, &Turn),
    created_by: &str,
) -> Result<(Workspace, Option<Enqueued>), ImportFailed> {
    let database = |error| CreateError::Fleet(FleetError::Database(error));
    let mut savepoint = tx.begin().await.map_err(database)?;
    if let Some(parent) = parent {
        node.new.parent_id = Some(parent.to_string());
    }
    let workspace = create_workspace(&mut savepoint, fleet, node.new).await?;
    let mut enqueued = None;
    if !workspace.is_external() {
        let job = provision::request_in_turn(&mut savepoint, &workspace, (cause, turn), created_by)
            .await?;
        let payload = serde_json::to_value(&node.files).unwrap_or_default();
        save_payload(&mut savepoint, job.job_id, workspace.id, &payload).await?;
        enqueued = Some(job);
    }
    savepoint.commit().await.map_err(database)?;
    Ok((workspace, enqueued))
}

/// When each may start: after its parent, siblings apart from each other, and no more at once than keys there are.
fn turns(nodes: &[ImportNode], pace: Option<ImportPace>) -> Vec<Turn> {
    let Some(pace) = pace else {
        return nodes.iter().map(|_| Turn::default()).collect();
    };
    let import = ids::random_uuid();
    let mut turns: Vec<Turn> = Vec::with_capacity(nodes.len());
    for (number, node) in nodes.iter().enumerate() {
        let elder = nodes[..number]
            .iter()
            .filter(|elder| elder.parent == node.parent)
            .count();
        let begins = node
            .parent
            .map_or(Duration::ZERO, |parent| turns[parent].delay);
        let lane = number % usize::from(pace.at_once.max(1));
        turns.push(Turn {
            delay: begins
                + pace
                    .apart
                    .saturating_mul(u32::try_from(elder).unwrap_or(u32::MAX)),
            keys: vec![format!("import:{import}:{lane}")],
        });
    }
    turns
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn below(parent: Option<usize>) -> ImportNode {
        ImportNode {
            parent,
            ..ImportNode::default()
        }
    }

    #[test]
    fn siblings_start_apart_and_share_so_many_keys_as_may_run_at_once() {
        let nodes = [
            below(None),
            below(Some(0)),
            below(Some(1)),
            below(Some(0)),
            below(Some(0)),
            below(None),
        ];
        let turns = turns(&nodes, Some(ImportPace::DEFAULT));
        let delays: Vec<_> = turns.iter().map(|turn| turn.delay.as_secs()).collect();
        assert_eq!(delays, [0, 0, 0, 2, 4, 2]);
        let keys: BTreeSet<_> = turns.iter().flat_map(|turn| &turn.keys).collect();
        assert_eq!(keys.len(), 3);
        let free = super::turns(&nodes, None);
        assert!(free.iter().all(|turn| *turn == Turn::default()));
    }
}
