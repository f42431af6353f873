//! Which image a workspace runs (`spec: lifecycle` §2.6), and when a local copy may be stale.

mod members;
mod pins;
mod rings;
mod rollouts;
mod watched;

use std::collections::BTreeSet;

use longshore_base::WorkspaceId;
use sqlx::{Connection as _, PgConnection};

pub use members::{
    RingCounts, Taken, count_parts, count_rings, list_candidates, list_failed, list_members,
    list_restorable, record_part, take, tally,
};
pub use pins::{
    DigestCount, ImageUser, OnDigest, Pin, PinError, RuntimeImage, clear_pin, list_image_users,
    list_runtime_images, set_pin,
};
pub use rings::{Member, Next, Part, Seen, Tally, judge, next_step};
pub use rollouts::{
    NewRollout, Rollout, RolloutError, RolloutState, begin_rollback, create_rollout,
    find_newest_rollout, finish_rollback, finish_rollout, load_rollout, lock_rollout, next_ring,
    record_aborted, record_checked, record_held, record_job, record_resumed, start_soak,
};
pub use watched::{Followed, Follower, list_followed, list_followers, record_seen, settle};

use crate::runtimes::{DEFAULT_RUNTIME, PROVISIONABLE};
use crate::status::WorkspaceStatus;
use crate::workspace::EXTERNAL;
use crate::{Fleet, FleetError};

const MOVING_TAGS: [&str; 7] = [
    "latest", "staging", "main", "dev", "edge", "nightly", "rolling",
];
const DIGEST: &str = "sha256:";

/// The image to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageChoice {
    /// The reference to pull and start.
    pub reference: String,
    /// The pin it came from: 64 hexadecimal digits.
    pub pinned_digest: Option<String>,
}

/// Chooses the image of a workspace: what a rollout gave it, else its runtime's pin, else the image set for the runtime,
/// else the one named after it; the default runtime's for a runtime without an image. A pin that cannot be looked up is
/// logged and passed over: starting something beats starting nothing.
pub async fn choose(
    conn: &mut PgConnection,
    fleet: &Fleet,
    id: WorkspaceId,
    runtime: &str,
) -> ImageChoice {
    let pinned_digest = find_pin_or_go_on(conn, fleet, id, runtime).await;
    let image = runtime_image(fleet, runtime)
        .unwrap_or_else(|| runtime_image(fleet, DEFAULT_RUNTIME).unwrap_or_default());
    let reference = match &pinned_digest {
        Some(digest) => with_digest(&image, digest),
        None => image,
    };
    ImageChoice {
        reference,
        pinned_digest,
    }
}

/// The statuses of a workspace that runs something.
fn up() -> Vec<WorkspaceStatus> {
    let all = WorkspaceStatus::ALL.into_iter();
    all.filter(|status| status.is_up()).collect()
}

/// The image of a runtime by a digest of its repository; `None` where the runtime has no image.
#[must_use]
pub fn pinned_reference(fleet: &Fleet, runtime: &str, digest: &str) -> Option<String> {
    runtime_image(fleet, runtime).map(|image| with_digest(&image, digest))
}

fn with_digest(image: &str, digest: &str) -> String {
    format!("{}@{DIGEST}{digest}", repository(image))
}

/// The runtimes that have an image.
#[must_use]
pub fn runtimes(fleet: &Fleet) -> BTreeSet<String> {
    let known = fleet.runtimes.names().chain(PROVISIONABLE);
    known
        .chain(fleet.config.runtime_images.keys().map(String::as_str))
        .filter(|runtime| runtime_image(fleet, runtime).is_some())
        .map(str::to_owned)
        .collect()
}

/// A digest as everybody outside writes it.
#[must_use]
pub fn shown_digest(hex: &str) -> String {
    format!("{DIGEST}{hex}")
}

/// The image of a runtime, without pins; `None` where the runtime has none.
#[must_use]
pub fn runtime_image(fleet: &Fleet, runtime: &str) -> Option<String> {
    if let Some(image) = fleet.config.runtime_images.get(runtime) {
        return Some(image.clone());
    }
    let has_image =
        PROVISIONABLE.contains(&runtime) || (runtime != EXTERNAL && fleet.runtimes.knows(runtime));
    if !has_image {
        return None;
    }
    let name = format!("workspace-template-{runtime}:latest");
    Some(match fleet.config.image_prefix.trim_end_matches('/') {
        "" => name,
        prefix => format!("{prefix}/{name}"),
    })
}

async fn find_pin_or_go_on(
    conn: &mut PgConnection,
    fleet: &Fleet,
    id: WorkspaceId,
    runtime: &str,
) -> Option<String> {
    if fleet.config.image_local_override || runtime_image(fleet, runtime).is_none() {
        return None;
    }
    match find_pin(conn, id, runtime).await {
        Ok(pin) => pin,
        Err(error) => {
            tracing::error!(
                workspace.id = %id,
                runtime,
                error = &error as &dyn std::error::Error,
                "the image pin cannot be looked up; the unpinned image is used"
            );
            None
        }
    }
}

/// Behind a savepoint, since a statement that fails would take the caller's whole transaction along.
async fn find_pin(
    conn: &mut PgConnection,
    id: WorkspaceId,
    runtime: &str,
) -> Result<Option<String>, FleetError> {
    let mut apart = conn.begin().await?;
    let pin = sqlx::query_scalar!(
        "SELECT coalesce(
             (SELECT sha256_digest FROM workspace_image_pins WHERE workspace_id = $1 AND template_name = $2),
             (SELECT sha256_digest FROM runtime_image_pins WHERE template_name = $2))",
        id as WorkspaceId,
        runtime,
    )
    .fetch_one(&mut *apart)
    .await;
    match pin {
        Ok(pin) => {
            apart.commit().await?;
            Ok(pin)
        }
        Err(error) => {
            apart.rollback().await?;
            Err(error.into())
        }
    }
}

/// The reference without its tag and digest.
#[must_use]
pub fn repository(reference: &str) -> &str {
    let reference = reference.split('@').next().unwrap_or(reference);
    match tag(reference) {
        Some(tag) => &reference[..reference.len() - tag.len() - 1],
        None => reference,
    }
}

/// What follows the last colon after the last slash; a colon before that belongs to a port.
fn tag(reference: &str) -> Option<&str> {
    let name = reference.rsplit('/').next().unwrap_or(reference);
    name.rsplit_once(':').map(|(_, tag)| tag)
}

/// Whether the reference names whatever was pushed last, so that a local copy may be stale. When in doubt it does not.
#[must_use]
pub fn is_moving_tag(reference: &str) -> bool {
    if reference.contains('@') {
        return false;
    }
    tag(reference).is_none_or(|tag| MOVING_TAGS.contains(&tag))
}

/// The 64 lower-case hexadecimal digits of a digest, written with or without `sha256:` or a repository before it; `None`
/// if it is none.
#[must_use]
pub fn normalise_digest(text: &str) -> Option<String> {
    let digest = text.rsplit('@').next().unwrap_or(text);
    let hex = digest.strip_prefix(DIGEST).unwrap_or(digest);
    let is_digest = hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_digest.then(|| hex.to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_well_known_tags_move() {
        let digest = format!("reg/own/img@sha256:{}", "a".repeat(64));
        let both = format!("reg/own/img:latest@sha256:{}", "a".repeat(64));
        for (reference, moving) in [
            ("reg/own/img", true),
            ("img", true),
            ("reg/own/img:latest", true),
            ("reg/own/img:staging", true),
            ("reg/own/img:main", true),
            ("reg/own/img:dev", true),
            ("reg/own/img:edge", true),
            ("reg/own/img:nightly", true),
            ("reg/own/img:rolling", true),
            ("localhost:5000/foo", true),
            ("localhost:5000/foo:latest", true),
            ("localhost:5000/foo:v1.2.3", false),
            ("reg/own/img:1.4.0", false),
            ("reg/own/img:v1.4.0", false),
            ("reg/own/img:sha-abc1234", false),
            ("reg/own/img:2026-05-02", false),
            ("reg/own/img:20260502", false),
            ("reg/own/img:build-812", false),
            (digest.as_str(), false),
            (both.as_str(), false),
            ("workspace-template:hermes", false),
            ("reg/own/img:Latest", false),
            ("img:latest-debug", false),
        ] {
            assert_eq!(is_moving_tag(reference), moving, "{reference}");
        }
    }

    #[test]
    fn the_repository_is_what_stands_before_tag_and_digest() {
        for (reference, expected) in [
            ("reg/own/img:latest", "reg/own/img"),
            ("localhost:5000/foo", "localhost:5000/foo"),
            ("localhost:5000/foo:v1", "localhost:5000/foo"),
            ("img:v1@sha256:abc", "img"),
            ("img", "img"),
        ] {
            assert_eq!(repository(reference), expected);
        }
    }

    #[test]
    fn digests_are_stored_in_one_form() {
        let hex = "AB".repeat(32);
        for form in [
            hex.clone(),
            format!("sha256:{hex}"),
            format!("reg/img@sha256:{hex}"),
        ] {
            assert_eq!(normalise_digest(&form), Some("ab".repeat(32)), "{form}");
        }
        for bad in ["", "sha256:abc", "latest", &"g".repeat(64)] {
            assert_eq!(normalise_digest(bad), None, "{bad}");
        }
    }
}
