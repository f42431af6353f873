//! The memories a workspace is created with (`spec: memory` §1.9).

use longshore_base::WorkspaceId;
use sqlx::{Connection as _, PgConnection};

use crate::FleetError;
use crate::redaction::redact;

/// Longer seeds are cut, before they are redacted.
const MAX_BYTES: usize = 100_000;
const SCOPES: [&str; 3] = ["LOCAL", "TEAM", "GLOBAL"];

/// A memory to start with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemorySeed {
    /// What to remember; empty is skipped.
    pub content: String,
    /// `LOCAL`, `TEAM` or `GLOBAL` in any case; empty means `LOCAL`, anything else is skipped.
    pub scope: String,
}

/// Stores the seeds of a workspace, redacted, under its awareness namespace. Each by itself: one that fails is logged
/// and the others are stored; the caller's transaction goes on.
pub async fn seed(
    tx: &mut PgConnection,
    id: WorkspaceId,
    namespace: &str,
    seeds: &[MemorySeed],
) -> usize {
    let mut stored = 0;
    for (index, seed) in seeds.iter().enumerate() {
        let Some((scope, content)) = prepare(id, index, seed) else {
            continue;
        };
        match insert(tx, id, namespace, scope, &content).await {
            Ok(()) => stored += 1,
            Err(error) => {
                tracing::warn!(workspace.id = %id, seed.index = index, error = %error, "an initial memory was not stored");
            }
        }
    }
    stored
}

fn prepare(id: WorkspaceId, index: usize, seed: &MemorySeed) -> Option<(&'static str, String)> {
    let asked = match seed.scope.as_str() {
        "" => "LOCAL".to_owned(),
        scope => scope.to_uppercase(),
    };
    let Some(scope) = SCOPES.into_iter().find(|scope| *scope == asked) else {
        tracing::warn!(workspace.id = %id, seed.index = index, "an initial memory has an unknown scope; skipped");
        return None;
    };
    if seed.content.is_empty() || seed.content.contains('\0') {
        return None;
    }
    let cut = &seed.content[..seed.content.floor_char_boundary(MAX_BYTES)];
    Some((scope, redact(id, cut)))
}

async fn insert(
    tx: &mut PgConnection,
    id: WorkspaceId,
    namespace: &str,
    scope: &str,
    content: &str,
) -> Result<(), FleetError> {
    let mut savepoint = tx.begin().await?;
    sqlx::query!(
        "INSERT INTO agent_memories (id, workspace_id, content, scope, namespace) VALUES ($1, $2, $3, $4, $5)",
        longshore_base::ids::random_uuid(),
        id as WorkspaceId,
        content,
        scope,
        namespace,
    )
    .execute(&mut *savepoint)
    .await?;
    savepoint.commit().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prepared(content: &str, scope: &str) -> Option<(&'static str, String)> {
        let seed = MemorySeed {
            content: content.to_owned(),
            scope: scope.to_owned(),
        };
        prepare(WorkspaceId::random(), 0, &seed)
    }

    #[test]
    fn scopes_are_folded_and_unknown_ones_skipped() {
        assert_eq!(prepared("x", "").unwrap().0, "LOCAL");
        assert_eq!(prepared("x", "team").unwrap().0, "TEAM");
        assert_eq!(prepared("x", "Global").unwrap().0, "GLOBAL");
        assert_eq!(prepared("x", "WORLD"), None);
        assert_eq!(prepared("", "LOCAL"), None);
    }

    #[test]
    fn long_seeds_are_cut_between_characters_and_then_redacted() {
        let (_, cut) = prepared(&"é ".repeat(50_000), "").unwrap();
        assert_eq!(
            cut.len(),
            99_999,
            "three bytes each, and the half of a character does not count"
        );
        let tail = format!("{}MAPS_API_KEY=abcdef", " ".repeat(MAX_BYTES - 16));
        assert!(
            prepared(&tail, "")
                .unwrap()
                .1
                .ends_with("[REDACTED:API_KEY]")
        );
    }
}
