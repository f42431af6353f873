//! Moving tags that are watched: what each named last, and who runs something older (`spec: lifecycle` §6.6).

use longshore_base::WorkspaceId;
use sqlx::PgConnection;

use super::{is_moving_tag, runtime_image, runtimes, up};
use crate::status::WorkspaceStatus;
use crate::{Fleet, FleetError};

/// A runtime whose starts follow a moving tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Followed {
    /// The runtime.
    pub runtime: String,
    /// Its image.
    pub reference: String,
    /// What the tag named at the last look, 64 hexadecimal digits; `None` before the first look at this image.
    pub digest: Option<String>,
    /// The tag has moved since the first look, and who ran something else then may still run it.
    pub has_moved: bool,
}

/// The runtimes whose starts follow a moving tag: those without a pin, and without a rollout that is about to decide. None
/// where local images are taken for pins.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn list_followed(
    conn: &mut PgConnection,
    fleet: &Fleet,
) -> Result<Vec<Followed>, FleetError> {
    if fleet.config.image_local_override {
        return Ok(Vec::new());
    }
    let decided = sqlx::query_scalar!(
        r#"SELECT template_name AS "name!" FROM runtime_image_pins
           UNION SELECT template_name FROM image_rollouts WHERE state IN ('running', 'held', 'rolling_back')"#
    )
    .fetch_all(&mut *conn)
    .await?;
    let known = sqlx::query!(
        r#"SELECT template_name, reference, sha256_digest, moved_at IS NOT NULL AS "has_moved!" FROM watched_images"#
    )
    .fetch_all(conn)
    .await?;
    let free = runtimes(fleet)
        .into_iter()
        .filter(|runtime| !decided.contains(runtime));
    let followed = free.filter_map(|runtime| {
        let reference = runtime_image(fleet, &runtime)?;
        let last = known
            .iter()
            .find(|row| row.template_name == runtime && row.reference == reference);
        is_moving_tag(&reference).then(|| Followed {
            digest: last.map(|row| row.sha256_digest.clone()),
            has_moved: last.is_some_and(|row| row.has_moved),
            runtime,
            reference,
        })
    });
    Ok(followed.collect())
}

/// Writes down what the tag names now: 64 hexadecimal digits. A first look only remembers it; any other notes that it has
/// moved.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn record_seen(
    conn: &mut PgConnection,
    followed: &Followed,
    digest: &str,
) -> Result<(), FleetError> {
    sqlx::query!(
        "INSERT INTO watched_images (template_name, reference, sha256_digest) VALUES ($1, $2, $3)
         ON CONFLICT (template_name) DO UPDATE
         SET reference = excluded.reference, sha256_digest = excluded.sha256_digest, seen_at = longshore_now(),
             moved_at = CASE WHEN $4 THEN longshore_now() END",
        followed.runtime,
        followed.reference,
        digest,
        followed.digest.is_some(),
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// A workspace of a runtime that follows a moving tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Follower {
    /// Which.
    pub id: WorkspaceId,
    /// It began before the tag moved, on another digest than it names since.
    pub is_outdated: bool,
}

/// The workspaces of a runtime that are up and follow its tag: what a rollout gave one of its own is not the tag's. One that
/// was restarted since the tag moved is not outdated, whatever it runs: it would be restarted for ever.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn list_followers(
    conn: &mut PgConnection,
    runtime: &str,
) -> Result<Vec<Follower>, FleetError> {
    Ok(sqlx::query_as!(
        Follower,
        r#"SELECT w.id AS "id: WorkspaceId",
                  coalesce(w.runtime_image_digest <> seen.sha256_digest AND w.provision_started_at < seen.moved_at, false)
                      AS "is_outdated!"
           FROM workspaces w JOIN watched_images seen ON seen.template_name = w.runtime
           WHERE w.runtime = $1 AND w.status = ANY($2)
                 AND NOT EXISTS (SELECT 1 FROM workspace_image_pins own
                                 WHERE own.workspace_id = w.id AND own.template_name = $1)
           ORDER BY w.id"#,
        runtime,
        &up() as &[WorkspaceStatus],
    )
    .fetch_all(conn)
    .await?)
}

/// Nobody runs anything older any more, if the tag moved so long ago that whoever was on the way up then is there.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn settle(conn: &mut PgConnection, runtime: &str) -> Result<(), FleetError> {
    sqlx::query!(
        "UPDATE watched_images SET moved_at = NULL
         WHERE template_name = $1 AND moved_at < longshore_now() - interval '2 hours'",
        runtime,
    )
    .execute(conn)
    .await?;
    Ok(())
}
