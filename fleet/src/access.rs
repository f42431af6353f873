//! Who may talk to whom (`spec: lifecycle` §12.1): siblings, and anybody above or below oneself.

use longshore_base::WorkspaceId;
use sqlx::PgConnection;

use crate::FleetError;
use crate::workspace::MAX_DEPTH;

/// A workspace and its ancestors, nearest first.
#[derive(Debug, Default)]
struct Chain {
    ids: Vec<WorkspaceId>,
    /// The walk ended before the root.
    cut: bool,
}

impl Chain {
    fn parent(&self) -> Option<&WorkspaceId> {
        self.ids.get(1)
    }
}

/// Whether `caller` may talk to `target`. Status does not matter; an unknown workspace, and a database that does not
/// answer, mean no.
pub async fn can_communicate(
    conn: &mut PgConnection,
    caller: WorkspaceId,
    target: WorkspaceId,
) -> bool {
    if caller == target {
        return true;
    }
    match load_chains(conn, caller, target).await {
        Ok([from, to]) => judge(&from, &to),
        Err(error) => {
            tracing::error!(
                caller.id = %caller, workspace.id = %target, error = &error as &dyn std::error::Error,
                "cannot look up who may talk to whom; denied"
            );
            false
        }
    }
}

fn judge(caller: &Chain, target: &Chain) -> bool {
    let (Some(caller_id), Some(target_id)) = (caller.ids.first(), target.ids.first()) else {
        return false;
    };
    if caller.cut || target.cut {
        tracing::warn!(caller.id = %caller_id, workspace.id = %target_id, "a tree is deeper than {MAX_DEPTH}, or a cycle");
    }
    // Two roots have no parent and are siblings too.
    caller_id == target_id
        || caller.parent() == target.parent()
        || target.ids.contains(caller_id)
        || caller.ids.contains(target_id)
}

async fn load_chains(
    conn: &mut PgConnection,
    caller: WorkspaceId,
    target: WorkspaceId,
) -> Result<[Chain; 2], FleetError> {
    let rows = sqlx::query!(
        r#"WITH RECURSIVE up AS (
               SELECT id AS start, id, parent_id, 0 AS depth FROM workspaces WHERE id IN ($1, $2)
               UNION ALL
               SELECT up.start, w.id, w.parent_id, up.depth + 1
               FROM up JOIN workspaces w ON w.id = up.parent_id WHERE up.depth < $3
           )
           SELECT start AS "start!: WorkspaceId", id AS "id!: WorkspaceId",
                  depth = $3 AND parent_id IS NOT NULL AS "cut!"
           FROM up ORDER BY depth"#,
        caller as WorkspaceId,
        target as WorkspaceId,
        MAX_DEPTH,
    )
    .fetch_all(conn)
    .await?;
    let mut chains = [Chain::default(), Chain::default()];
    for row in rows {
        let chain = &mut chains[usize::from(row.start != caller)];
        chain.ids.push(row.id);
        chain.cut |= row.cut;
    }
    Ok(chains)
}
