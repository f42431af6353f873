//! Which image a workspace runs (`spec: lifecycle` §2.6), and when a local copy may be stale.

use sqlx::PgConnection;

use crate::runtimes::{DEFAULT_RUNTIME, PROVISIONABLE};
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

/// Chooses the image of a runtime: its pin, else the one set for it, else the one named after it; the default runtime's
/// for a runtime without an image. A pin that cannot be looked up is logged and passed over: starting something beats
/// starting nothing.
pub async fn choose(conn: &mut PgConnection, fleet: &Fleet, runtime: &str) -> ImageChoice {
    let pinned_digest = find_pin_or_go_on(conn, fleet, runtime).await;
    let image = runtime_image(fleet, runtime)
        .unwrap_or_else(|| runtime_image(fleet, DEFAULT_RUNTIME).unwrap_or_default());
    let reference = match &pinned_digest {
        Some(digest) => format!("{}@{DIGEST}{digest}", repository(&image)),
        None => image,
    };
    ImageChoice {
        reference,
        pinned_digest,
    }
}

/// The image of a runtime, without pins; `None` where the runtime has none.
fn runtime_image(fleet: &Fleet, runtime: &str) -> Option<String> {
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
    runtime: &str,
) -> Option<String> {
    if fleet.config.image_local_override || runtime_image(fleet, runtime).is_none() {
        return None;
    }
    match find_pin(conn, runtime).await {
        Ok(pin) => pin,
        Err(error) => {
            tracing::error!(
                runtime,
                error = &error as &dyn std::error::Error,
                "the image pin cannot be looked up; the unpinned image is used"
            );
            None
        }
    }
}

async fn find_pin(conn: &mut PgConnection, runtime: &str) -> Result<Option<String>, FleetError> {
    Ok(sqlx::query_scalar!(
        "SELECT sha256_digest FROM runtime_image_pins WHERE template_name = $1",
        runtime
    )
    .fetch_optional(conn)
    .await?)
}

/// The reference without its tag and digest.
fn repository(reference: &str) -> &str {
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
