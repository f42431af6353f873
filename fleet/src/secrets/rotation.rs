//! Sealing every stored secret with the current key, part by part, while all of them stay readable (`spec: lifecycle` §9.1).
//!
//! Every row is looked at, also one that names the current key: another key may have had its id. A row that somebody
//! changes or holds meanwhile is left to the next pass; nobody waits for a rotation, and it waits for nobody.

use longshore_base::WorkspaceId;
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use uuid::Uuid;

use super::sealer::BOUND;
use super::{Owner, Sealed};
use crate::{Fleet, FleetError};

/// Rows in one transaction.
const PART: i64 = 100;
/// Secrets named one by one when they do not open.
const NAMED: usize = 10;

/// Whether a rotation can begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prospect {
    /// The id of the current key.
    pub key_id: String,
    /// How many secrets do not name it.
    pub waiting: i64,
}

/// Why it cannot.
#[derive(Debug, thiserror::Error)]
pub enum RotationError {
    /// Secrets are stored in plain text.
    #[error(
        "no sealing key is configured: set SECRETS_ENCRYPTION_KEYS to id:key for all processes and start them again"
    )]
    NoKey,
    /// Some secrets open with no key of the ring.
    #[error(
        "{secret} and perhaps others were sealed with {}, which is not configured: add that key to SECRETS_ENCRYPTION_KEYS, \
         after the new one, and start all processes again",
        .key_id.as_ref().map_or_else(|| "a key without an id".to_owned(), |id| format!("another key called {id}"))
    )]
    KeyMissing {
        /// One of them: `global:NAME`, or `NAME of workspace ID`.
        secret: String,
        /// What the row says of its key.
        key_id: Option<String>,
    },
    /// The rows could not be read.
    #[error(transparent)]
    Fleet(#[from] FleetError),
}

/// Where a rotation is; kept between its parts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rotation {
    /// Those of workspaces come after the global ones.
    in_workspaces: bool,
    /// The last row that was looked at.
    after: Uuid,
    /// Rows that were looked at in this pass.
    pub seen: u64,
    /// Rows that were sealed anew, in all passes.
    pub resealed: u64,
    /// Rows that somebody changed or held in this pass.
    pub skipped: u64,
    /// Rows of this pass that no key opens.
    pub unreadable: u64,
    /// The first of these.
    pub named: Vec<String>,
    /// The pass has looked at every row.
    pub finished: bool,
}

impl Rotation {
    /// The next pass over all rows.
    #[must_use]
    pub fn again(&self) -> Self {
        Self {
            resealed: self.resealed,
            ..Self::default()
        }
    }
}

struct Row {
    id: Uuid,
    workspace_id: Option<WorkspaceId>,
    key: String,
    sealed: Sealed,
}

impl Row {
    const fn owner(&self) -> Owner {
        match self.workspace_id {
            Some(id) => Owner::Workspace(id),
            None => Owner::Global,
        }
    }

    fn label(&self) -> String {
        match self.workspace_id {
            Some(id) => format!("{} of workspace {id}", self.key),
            None => format!("global:{}", self.key),
        }
    }
}

/// Looks whether a rotation can begin: one secret of each key is tried.
///
/// # Errors
/// [`RotationError`], whose text is fit for the operator.
pub async fn check_rotation(
    conn: &mut PgConnection,
    fleet: &Fleet,
) -> Result<Prospect, RotationError> {
    let key_id = fleet.keys.current_id().ok_or(RotationError::NoKey)?;
    let samples = sqlx::query!(
        r#"SELECT DISTINCT ON (workspace_id IS NULL, encryption_version, key_id)
                  workspace_id AS "workspace_id: WorkspaceId", key AS "key!", encrypted_value AS "value!",
                  encryption_version AS "version!", key_id
           FROM (SELECT NULL::uuid AS workspace_id, key, encrypted_value, encryption_version, key_id FROM global_secrets
                 UNION ALL
                 SELECT workspace_id, key, encrypted_value, encryption_version, key_id FROM workspace_secrets) AS s"#
    )
    .fetch_all(&mut *conn)
    .await
    .map_err(FleetError::from)?;
    for sample in samples {
        let row = Row {
            id: Uuid::nil(),
            workspace_id: sample.workspace_id,
            key: sample.key,
            sealed: Sealed {
                bytes: sample.value,
                version: sample.version,
                key_id: sample.key_id,
            },
        };
        if let Err(error) = fleet.keys.open_bytes(row.owner(), &row.key, &row.sealed) {
            tracing::warn!(%error, "a secret does not open, so its key is not rotated");
            return Err(RotationError::KeyMissing {
                secret: row.label(),
                key_id: row.sealed.key_id,
            });
        }
    }
    Ok(Prospect {
        waiting: count_sealed_otherwise(conn, key_id).await?,
        key_id: key_id.to_owned(),
    })
}

/// How many secrets are not sealed with this key, as far as their rows say.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn count_sealed_otherwise(
    conn: &mut PgConnection,
    key_id: &str,
) -> Result<i64, FleetError> {
    Ok(sqlx::query_scalar!(
        r#"SELECT (SELECT count(*) FROM global_secrets
                   WHERE key_id IS DISTINCT FROM $1 OR encryption_version <> $2)
                + (SELECT count(*) FROM workspace_secrets
                   WHERE key_id IS DISTINCT FROM $1 OR encryption_version <> $2) AS "count!""#,
        key_id,
        BOUND,
    )
    .fetch_one(conn)
    .await?)
}

/// Does the next part: at most a hundred rows.
///
/// # Errors
/// [`FleetError::Database`]. What does not open is counted and named, and left as it is.
pub async fn rotate_part(
    tx: &mut PgConnection,
    fleet: &Fleet,
    rotation: &Rotation,
) -> Result<Rotation, FleetError> {
    let mut next = rotation.clone();
    let rows = read(tx, rotation).await?;
    let mut changes = Changes::default();
    for row in &rows {
        next.seen += 1;
        next.after = row.id;
        match fleet.keys.reseal(row.owner(), &row.key, &row.sealed) {
            Ok(None) => {}
            Ok(Some(sealed)) => changes.push(row, sealed),
            Err(error) => {
                tracing::warn!(secret = row.label(), %error, "a secret cannot be sealed anew");
                next.unreadable += 1;
                if next.named.len() < NAMED {
                    next.named.push(row.label());
                }
            }
        }
    }
    let wanted = changes.ids.len() as u64;
    let written = if wanted == 0 {
        0
    } else if rotation.in_workspaces {
        changes.write_workspace(tx).await?
    } else {
        changes.write_global(tx).await?
    };
    next.resealed += written;
    next.skipped += wanted.saturating_sub(written);
    if rows.is_empty() {
        next.after = Uuid::nil();
        next.finished = rotation.in_workspaces;
        next.in_workspaces = true;
    }
    Ok(next)
}

/// The next rows of the table the rotation is in.
async fn read(tx: &mut PgConnection, rotation: &Rotation) -> Result<Vec<Row>, FleetError> {
    macro_rules! rows {
        ($sql:literal) => {
            sqlx::query!($sql, rotation.after, PART)
                .fetch_all(tx)
                .await?
                .into_iter()
                .map(|row| Row {
                    id: row.id,
                    workspace_id: row.workspace_id,
                    key: row.key,
                    sealed: Sealed {
                        bytes: row.encrypted_value,
                        version: row.encryption_version,
                        key_id: row.key_id,
                    },
                })
                .collect()
        };
    }
    Ok(if rotation.in_workspaces {
        rows!(
            r#"SELECT id, workspace_id AS "workspace_id?: WorkspaceId", key, encrypted_value, encryption_version, key_id
               FROM workspace_secrets WHERE id > $1 ORDER BY id LIMIT $2"#
        )
    } else {
        rows!(
            r#"SELECT id, NULL::uuid AS "workspace_id?: WorkspaceId", key, encrypted_value, encryption_version, key_id
               FROM global_secrets WHERE id > $1 ORDER BY id LIMIT $2"#
        )
    })
}

/// What is written, row by row, where it still is what was read. All are sealed with the same key and version.
#[derive(Default)]
struct Changes {
    ids: Vec<Uuid>,
    before: Vec<Vec<u8>>,
    after: Vec<Vec<u8>>,
    version: i32,
    key_id: Option<String>,
}

impl Changes {
    fn push(&mut self, row: &Row, sealed: Sealed) {
        self.ids.push(row.id);
        self.before.push(row.sealed.bytes.clone());
        self.after.push(sealed.bytes);
        self.version = sealed.version;
        self.key_id = sealed.key_id;
    }

    async fn write_global(&self, tx: &mut PgConnection) -> Result<u64, FleetError> {
        let done = sqlx::query!(
            "UPDATE global_secrets AS s
             SET encrypted_value = new.after, encryption_version = $4, key_id = $5
             FROM unnest($1::uuid[], $2::bytea[], $3::bytea[]) AS new(id, before, after)
             WHERE s.id = new.id AND s.encrypted_value = new.before
               AND s.id IN (SELECT id FROM global_secrets WHERE id = ANY($1) FOR NO KEY UPDATE SKIP LOCKED)",
            &self.ids,
            &self.before,
            &self.after,
            self.version,
            self.key_id,
        )
        .execute(tx)
        .await?;
        Ok(done.rows_affected())
    }

    async fn write_workspace(&self, tx: &mut PgConnection) -> Result<u64, FleetError> {
        let done = sqlx::query!(
            "UPDATE workspace_secrets AS s
             SET encrypted_value = new.after, encryption_version = $4, key_id = $5
             FROM unnest($1::uuid[], $2::bytea[], $3::bytea[]) AS new(id, before, after)
             WHERE s.id = new.id AND s.encrypted_value = new.before
               AND s.id IN (SELECT id FROM workspace_secrets WHERE id = ANY($1) FOR NO KEY UPDATE SKIP LOCKED)",
            &self.ids,
            &self.before,
            &self.after,
            self.version,
            self.key_id,
        )
        .execute(tx)
        .await?;
        Ok(done.rows_affected())
    }
}
