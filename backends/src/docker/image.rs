//! Whether an image is there, and which it is (spec: lifecycle §2.6).

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bollard::models::ImageInspect;
use longshore_base::clock::Stopwatch;

use super::engine::{Docker, Engine, call};
use crate::{BackendError, CallFailure, StartSpec, StartWatch, steps};

/// How long a look at an image is good for. Only the recorded digest depends on it: an image that has vanished is
/// noticed by the create call, whatever is remembered here.
const LOOK_IS_GOOD_FOR: Duration = Duration::from_secs(30);

/// Images seen lately, by reference.
#[derive(Default)]
pub(super) struct PresentImages(Mutex<HashMap<String, Seen>>);

struct Seen {
    since: Stopwatch,
    digest: Option<String>,
}

/// An image that is there, as far as we know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ReadyImage {
    pub(super) digest: Option<String>,
    /// A pull was tried in this start; there is no use in a second.
    pub(super) pulled: bool,
}

impl PresentImages {
    fn seen(&self, reference: &str) -> Option<Option<String>> {
        let images = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = images.get(reference)?;
        (seen.since.elapsed() < LOOK_IS_GOOD_FOR).then(|| seen.digest.clone())
    }

    fn remember(&self, reference: &str, digest: Option<String>) {
        let mut images = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        images.retain(|_, seen| seen.since.elapsed() < LOOK_IS_GOOD_FOR);
        let since = Stopwatch::start();
        images.insert(reference.to_owned(), Seen { since, digest });
    }

    pub(super) fn forget(&self, reference: &str) {
        let mut images = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        images.remove(reference);
    }
}

impl Docker {
    /// Makes sure that the image is in the engine: pulls what moves and what is missing.
    pub(super) async fn ready_image(
        &self,
        engine: &Engine,
        spec: &StartSpec,
        watch: &dyn StartWatch,
    ) -> Result<ReadyImage, BackendError> {
        if !spec.pull_always
            && let Some(digest) = self.images.seen(&spec.image)
        {
            let pulled = false;
            return Ok(ReadyImage { digest, pulled });
        }
        watch.step(steps::IMAGE, None, None).await?;
        if !spec.pull_always
            && let Some(digest) = self.look_for_image(engine, &spec.image).await?
        {
            let pulled = false;
            return Ok(ReadyImage { digest, pulled });
        }
        self.pulled_image(engine, spec, watch).await
    }

    /// Pulls, and answers what is there afterwards. A failed pull is told and passed over while any copy is there.
    pub(super) async fn pulled_image(
        &self,
        engine: &Engine,
        spec: &StartSpec,
        watch: &dyn StartWatch,
    ) -> Result<ReadyImage, BackendError> {
        self.images.forget(&spec.image);
        let failure = match self.pull(engine, &spec.image, watch).await {
            Ok(()) => None,
            Err(BackendError::Abandoned(abandoned)) => return Err(abandoned.into()),
            Err(error) => {
                let chain = error.chain();
                tracing::warn!(workspace.id = %spec.workspace_id, image = spec.image, error = chain, "pull failed");
                Some(error)
            }
        };
        match self.look_for_image(engine, &spec.image).await? {
            Some(digest) => Ok(ReadyImage {
                digest,
                pulled: true,
            }),
            None => Err(no_such_image(spec, failure)),
        }
    }

    /// `None` when the image is not there; else its digest, when a registry gave it one.
    async fn look_for_image(
        &self,
        engine: &Engine,
        reference: &str,
    ) -> Result<Option<Option<String>>, BackendError> {
        match call("image_inspect", engine.client.inspect_image(reference)).await {
            Ok(found) => {
                let digest = digest(reference, &found);
                self.images.remember(reference, digest.clone());
                Ok(Some(digest))
            }
            Err(error) if error.failure() == CallFailure::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

pub(super) fn no_such_image(spec: &StartSpec, pull: Option<BackendError>) -> BackendError {
    BackendError::NoSuchImage {
        image: spec.image.clone(),
        runtime: spec.runtime.clone(),
        pull: pull.map(Box::new),
    }
}

/// The digest that is started, as 64 hex digits: the reference's own, else the first a registry gave the image.
fn digest(reference: &str, found: &ImageInspect) -> Option<String> {
    let hex = |text: &str| {
        let (_, digest) = text.rsplit_once('@')?;
        let digest = digest.strip_prefix("sha256:").unwrap_or(digest);
        let valid = digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit());
        valid.then(|| digest.to_ascii_lowercase())
    };
    hex(reference).or_else(|| {
        found
            .repo_digests
            .iter()
            .flatten()
            .find_map(|text| hex(text))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_is_the_pins_or_the_registrys() {
        let (pin, other) = ("AB".repeat(32), "cd".repeat(32));
        let found = ImageInspect {
            repo_digests: Some(vec![format!("reg/img@sha256:{other}")]),
            ..Default::default()
        };
        let lower = Some("ab".repeat(32));
        assert_eq!(digest(&format!("reg/img@sha256:{pin}"), &found), lower);
        assert_eq!(digest(&format!("reg/img@{pin}"), &found), lower);
        assert_eq!(digest("reg/img:1", &found), Some(other));
        assert_eq!(digest("reg/img:1", &ImageInspect::default()), None);
    }
}
