//! Pins: what operators decided that a runtime's workspaces start on, and who runs what.

use longshore_base::{Timestamp, WorkspaceId};
use longshore_events::{NewEvent, append, names};
use serde_json::json;
use sqlx::PgConnection;

use super::{runtime_image, runtimes, shown_digest};
use crate::status::WorkspaceStatus;
use crate::workspace::EXTERNAL;
use crate::{Fleet, FleetError};

/// A pin that is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin {
    /// 64 lower-case hexadecimal digits.
    pub digest: String,
    /// Why.
    pub note: Option<String>,
    /// Who set it.
    pub set_by: Option<String>,
    /// When.
    pub set_at: Timestamp,
}

/// So many workspaces on one digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DigestCount {
    /// `None`: nothing was started yet, or no registry knows what was.
    pub digest: Option<String>,
    /// How many.
    pub count: i64,
}

/// The image of a runtime and who runs what of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeImage {
    /// The runtime.
    pub runtime: String,
    /// Its image without a pin.
    pub image: String,
    /// What new starts take instead.
    pub pin: Option<Pin>,
    /// The pin that was in force before the last change; `None` where there was none.
    pub previous_pin: Option<String>,
    /// Its workspaces by digest, most first.
    pub digests: Vec<DigestCount>,
}

/// Every runtime that has an image, by name.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn list_runtime_images(
    conn: &mut PgConnection,
    fleet: &Fleet,
) -> Result<Vec<RuntimeImage>, FleetError> {
    let pins = sqlx::query!(
        "SELECT template_name, sha256_digest, notes, pinned_by, updated_at FROM runtime_image_pins"
    )
    .fetch_all(&mut *conn)
    .await?;
    let changes = sqlx::query!(
        "SELECT DISTINCT ON (template_name) template_name, from_digest FROM image_pin_changes
         ORDER BY template_name, id DESC"
    )
    .fetch_all(&mut *conn)
    .await?;
    let counts = sqlx::query!(
        r#"SELECT runtime, runtime_image_digest, count(*) AS "count!" FROM workspaces
           WHERE status <> $1 AND runtime <> $2 GROUP BY runtime, runtime_image_digest
           ORDER BY count(*) DESC, runtime_image_digest"#,
        WorkspaceStatus::Removed as WorkspaceStatus,
        EXTERNAL,
    )
    .fetch_all(conn)
    .await?;
    let of = |runtime: String| {
        let pin = pins.iter().find(|pin| pin.template_name == runtime);
        let change = changes.iter().find(|row| row.template_name == runtime);
        let own = counts.iter().filter(|row| row.runtime == runtime);
        RuntimeImage {
            image: runtime_image(fleet, &runtime).unwrap_or_default(),
            pin: pin.map(|pin| Pin {
                digest: pin.sha256_digest.clone(),
                note: pin.notes.clone(),
                set_by: pin.pinned_by.clone(),
                set_at: pin.updated_at,
            }),
            previous_pin: change.and_then(|row| row.from_digest.clone()),
            digests: own
                .map(|row| DigestCount {
                    digest: row.runtime_image_digest.clone(),
                    count: row.count,
                })
                .collect(),
            runtime,
        }
    };
    Ok(runtimes(fleet).into_iter().map(of).collect())
}

/// A pin was not changed.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// A rollout is about to decide.
    #[error("a rollout of this runtime is open; abort it or roll it back first")]
    RolloutOpen,
    /// The rows could not be read or written.
    #[error(transparent)]
    Fleet(#[from] FleetError),
}

impl From<sqlx::Error> for PinError {
    fn from(error: sqlx::Error) -> Self {
        Self::Fleet(error.into())
    }
}

/// Pins a runtime to a digest of 64 lower-case hexadecimal digits, for every start from now on, with the event of it.
/// Nothing happens when it is pinned to that already.
///
/// # Errors
/// [`PinError`].
pub async fn set_pin(
    tx: &mut PgConnection,
    runtime: &str,
    digest: &str,
    note: Option<&str>,
    by: &str,
) -> Result<(), PinError> {
    refuse_while_open(tx, runtime).await?;
    Ok(change_pin(tx, runtime, Some(digest), note, by).await?)
}

/// Takes the pin of a runtime away: starts follow the moving tag again. What it was, or `None` if there was none.
///
/// # Errors
/// [`PinError`].
pub async fn clear_pin(
    tx: &mut PgConnection,
    runtime: &str,
    reason: Option<&str>,
    by: &str,
) -> Result<Option<String>, PinError> {
    refuse_while_open(tx, runtime).await?;
    let was = find_runtime_pin(tx, runtime).await?;
    change_pin(tx, runtime, None, reason, by).await?;
    Ok(was)
}

async fn refuse_while_open(tx: &mut PgConnection, runtime: &str) -> Result<(), PinError> {
    let open = sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT 1 FROM image_rollouts
                          WHERE template_name = $1 AND state IN ('running', 'held', 'rolling_back')) AS "open!""#,
        runtime
    )
    .fetch_one(tx)
    .await?;
    if open {
        return Err(PinError::RolloutOpen);
    }
    Ok(())
}

pub(super) async fn find_runtime_pin(
    tx: &mut PgConnection,
    runtime: &str,
) -> Result<Option<String>, FleetError> {
    Ok(sqlx::query_scalar!(
        "SELECT sha256_digest FROM runtime_image_pins WHERE template_name = $1 FOR UPDATE",
        runtime
    )
    .fetch_optional(tx)
    .await?)
}

/// The one place that changes a pin. What single workspaces were given goes with it.
pub(super) async fn change_pin(
    tx: &mut PgConnection,
    runtime: &str,
    digest: Option<&str>,
    note: Option<&str>,
    by: &str,
) -> Result<(), FleetError> {
    let was = find_runtime_pin(tx, runtime).await?;
    sqlx::query!(
        "DELETE FROM workspace_image_pins WHERE template_name = $1",
        runtime
    )
    .execute(&mut *tx)
    .await?;
    if was.as_deref() == digest {
        return Ok(());
    }
    // Whoever follows the tag again begins with a first look at it.
    sqlx::query!(
        "DELETE FROM watched_images WHERE template_name = $1",
        runtime
    )
    .execute(&mut *tx)
    .await?;
    let (event_type, payload) = match digest {
        Some(digest) => {
            sqlx::query!(
                "INSERT INTO runtime_image_pins (template_name, sha256_digest, pinned_by, notes) VALUES ($1, $2, $3, $4)
                 ON CONFLICT (template_name) DO UPDATE SET sha256_digest = excluded.sha256_digest,
                     pinned_by = excluded.pinned_by, notes = excluded.notes, updated_at = longshore_now()",
                runtime,
                digest,
                by,
                note,
            )
            .execute(&mut *tx)
            .await?;
            let payload = json!({
                "runtime": runtime, "digest": shown_digest(digest), "was": was.as_deref().map(shown_digest), "by": by,
                "reason": note,
            });
            (names::IMAGE_PINNED, payload)
        }
        None => {
            sqlx::query!(
                "DELETE FROM runtime_image_pins WHERE template_name = $1",
                runtime
            )
            .execute(&mut *tx)
            .await?;
            let payload = json!({
                "runtime": runtime, "was": was.as_deref().map(shown_digest), "by": by, "reason": note,
            });
            (names::IMAGE_UNPINNED, payload)
        }
    };
    sqlx::query!(
        "INSERT INTO image_pin_changes (template_name, from_digest, to_digest, changed_by, notes)
         VALUES ($1, $2, $3, $4, $5)",
        runtime,
        was,
        digest,
        by,
        note,
    )
    .execute(&mut *tx)
    .await?;
    let event = NewEvent {
        event_type,
        workspace_id: None,
        payload,
    };
    append(tx, event).await?;
    Ok(())
}

/// Which users of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OnDigest {
    /// All of them.
    Any,
    /// Those of this digest.
    Is(String),
    /// Those of which no digest is known.
    Unknown,
}

/// A workspace and what it was last started on.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the columns")]
pub struct ImageUser {
    pub id: WorkspaceId,
    pub name: String,
    pub status: WorkspaceStatus,
    pub digest: Option<String>,
    pub engine_id: Option<String>,
}

/// At most `limit` workspaces of a runtime with what they were last started on, in the order of their ids, behind `after`.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn list_image_users(
    conn: &mut PgConnection,
    runtime: &str,
    on: &OnDigest,
    after: Option<WorkspaceId>,
    limit: i64,
) -> Result<Vec<ImageUser>, FleetError> {
    let (digest, unknown) = match on {
        OnDigest::Any => (None, false),
        OnDigest::Is(digest) => (Some(digest.as_str()), false),
        OnDigest::Unknown => (None, true),
    };
    Ok(sqlx::query_as!(
        ImageUser,
        r#"SELECT id AS "id: WorkspaceId", name, status AS "status: WorkspaceStatus", runtime_image_digest AS digest,
                  engine_id
           FROM workspaces
           WHERE runtime = $1 AND status <> $2 AND ($3::text IS NULL OR runtime_image_digest = $3)
                 AND (NOT $4 OR runtime_image_digest IS NULL) AND ($5::uuid IS NULL OR id > $5)
           ORDER BY id LIMIT $6"#,
        runtime,
        WorkspaceStatus::Removed as WorkspaceStatus,
        digest,
        unknown,
        after as Option<WorkspaceId>,
        limit,
    )
    .fetch_all(conn)
    .await?)
}
