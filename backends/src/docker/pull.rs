//! Fetching an image, with its progress told and its time bounded.

use std::collections::HashMap;
use std::time::Duration;

use bollard::auth::DockerCredentials;
use bollard::models::CreateImageInfo;
use bollard::query_parameters::CreateImageOptionsBuilder;
use futures_util::StreamExt as _;
use longshore_base::clock::Stopwatch;
use tokio::time::{MissedTickBehavior, interval};

use super::config::{RegistryAuth, platform};
use super::engine::{Docker, Engine, LOOK_LIMIT, call_within, count, failed};
use crate::{BackendError, CallError, CallFailure, StartWatch, steps};

/// The whole of a pull; the image refresh uses the same bound.
const PULL_LIMIT: Duration = Duration::from_secs(300);
/// How often progress is told, and how soon a pull notices that its run was cancelled.
const TELL_EVERY: Duration = Duration::from_secs(1);
const CALL: &str = "image_pull";
const ASK: &str = "image_distribution";

impl Docker {
    /// Pulls an image. The engine's progress is read to its end, or the engine would abandon the pull.
    pub(super) async fn pull(
        &self,
        engine: &Engine,
        reference: &str,
        watch: &dyn StartWatch,
    ) -> Result<(), BackendError> {
        let since = Stopwatch::start();
        let result = match tokio::time::timeout(
            PULL_LIMIT,
            self.follow_pull(engine, reference, watch),
        )
        .await
        {
            Ok(result) => result,
            Err(elapsed) => Err(CallError::new(CALL, CallFailure::TimedOut, elapsed).into()),
        };
        let error = match &result {
            Err(
                BackendError::NotAvailable(error)
                | BackendError::TimedOut(error)
                | BackendError::Refused(error)
                | BackendError::InTheWay(error)
                | BackendError::Failed(error),
            ) => Some(error),
            // Abandoned by the run itself, which says nothing about the engine.
            _ => None,
        };
        count(CALL, error, since);
        result
    }

    /// Asks the registry, through the engine, what a tag names.
    pub(super) async fn registry_digest(&self, reference: &str) -> Result<String, BackendError> {
        let engine = self.engine().await?;
        let login = self.login_for(reference);
        let asked = engine.client.inspect_registry_image(reference, login);
        let found = call_within(LOOK_LIMIT, ASK, asked).await?;
        found.descriptor.digest.ok_or_else(|| {
            let cause = "the registry does not tell the digest";
            CallError::new(ASK, CallFailure::Failed, cause).into()
        })
    }

    fn login_for(&self, reference: &str) -> Option<DockerCredentials> {
        let auth = self.config.registry_auth.as_ref()?;
        credentials(auth, reference)
    }

    async fn follow_pull(
        &self,
        engine: &Engine,
        reference: &str,
        watch: &dyn StartWatch,
    ) -> Result<(), BackendError> {
        let mut options = CreateImageOptionsBuilder::default().from_image(reference);
        if !names_one_image(reference) {
            // Without a tag the engine would pull every tag there is.
            options = options.tag("latest");
        }
        if let Some(platform) = platform(self.config.platform.as_deref()) {
            options = options.platform(&platform);
        }
        let credentials = self.login_for(reference);
        // The registry may take its time before the first word, which the client's usual limit would cut off.
        let client = engine.client.clone().with_timeout(PULL_LIMIT);
        let mut events = client.create_image(Some(options.build()), None, credentials);
        let mut progress = Progress::default();
        let mut tick = interval(TELL_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tick.tick() => {
                    watch.step(steps::PULL, Some(progress.message()), progress.percent()).await?;
                }
                event = events.next() => match event {
                    None => return Ok(()),
                    Some(event) => progress.note(&event.map_err(|error| failed(CALL, error))?),
                },
            }
        }
    }
}

/// A tag or digest says which of a repository's images is meant; a colon before the last slash is a port.
fn names_one_image(reference: &str) -> bool {
    let last = reference.rsplit('/').next().unwrap_or(reference);
    reference.contains('@') || last.contains(':')
}

/// Credentials go to the registry they are for and to no other.
fn credentials(auth: &RegistryAuth, reference: &str) -> Option<DockerCredentials> {
    let (host, _) = reference.split_once('/')?;
    (host == auth.registry).then(|| DockerCredentials {
        username: Some(auth.username.clone()),
        password: Some(auth.token.expose().clone()),
        serveraddress: Some(auth.registry.clone()),
        ..Default::default()
    })
}

/// How far the layers are.
#[derive(Default)]
struct Progress {
    layers: HashMap<String, Layer>,
    shown: u8,
}

#[derive(Default)]
struct Layer {
    fetched_bytes: u64,
    size_bytes: u64,
    done: bool,
}

impl Progress {
    fn note(&mut self, event: &CreateImageInfo) {
        let (Some(id), Some(status)) = (&event.id, event.status.as_deref()) else {
            return;
        };
        match status {
            "Pulling fs layer" | "Waiting" => {
                self.layers.entry(id.clone()).or_default();
            }
            "Downloading" => {
                let layer = self.layers.entry(id.clone()).or_default();
                if let Some(detail) = &event.progress_detail {
                    let bytes =
                        |count: Option<i64>| count.and_then(|count| u64::try_from(count).ok());
                    layer.fetched_bytes = bytes(detail.current).unwrap_or(layer.fetched_bytes);
                    layer.size_bytes = bytes(detail.total).unwrap_or(layer.size_bytes);
                }
            }
            "Already exists" | "Pull complete" => {
                let layer = self.layers.entry(id.clone()).or_default();
                layer.fetched_bytes = layer.size_bytes;
                layer.done = true;
            }
            "Download complete" => {
                let layer = self.layers.entry(id.clone()).or_default();
                layer.fetched_bytes = layer.size_bytes;
            }
            _ => {}
        }
    }

    fn message(&self) -> String {
        match self.layers.len() {
            0 => "asking the registry".to_owned(),
            all => {
                let done = self.layers.values().filter(|layer| layer.done).count();
                format!("{done} of {all} layers")
            }
        }
    }

    /// Never falls, though sizes of further layers become known on the way; 100 is for the end only.
    fn percent(&mut self) -> Option<u8> {
        let fetched: u64 = self.layers.values().map(|layer| layer.fetched_bytes).sum();
        let size: u64 = self.layers.values().map(|layer| layer.size_bytes).sum();
        let now = (fetched.min(size) * 99).checked_div(size)?;
        self.shown = self.shown.max(u8::try_from(now).unwrap_or(99));
        Some(self.shown)
    }
}

#[cfg(test)]
mod tests {
    use bollard::models::ProgressDetail;
    use longshore_base::Secret;

    use super::*;

    #[test]
    fn credentials_go_to_their_own_registry_only() {
        let auth = RegistryAuth {
            registry: "ghcr.io".into(),
            username: "me".into(),
            token: Secret::from("t"),
        };
        let sent = |reference| credentials(&auth, reference).is_some();
        assert!(sent("ghcr.io/own/img:1"));
        for other in [
            "ghcr.io.evil.example/own/img",
            "localhost:5000/ghcr.io/img",
            "own/img:1",
            "img",
        ] {
            assert!(!sent(other), "{other}");
        }
    }

    #[test]
    fn a_reference_without_tag_or_digest_names_more_than_one_image() {
        for one in ["img:1", "reg/img@sha256:x", "localhost:5000/img:1"] {
            assert!(names_one_image(one), "{one}");
        }
        for many in ["img", "localhost:5000/img", "reg/own/img"] {
            assert!(!names_one_image(many), "{many}");
        }
    }

    #[test]
    fn the_percentage_never_falls_and_ends_below_a_hundred() {
        let event = |id: &str, status: &str, current, total| CreateImageInfo {
            id: Some(id.into()),
            status: Some(status.into()),
            progress_detail: Some(ProgressDetail { current, total }),
            ..Default::default()
        };
        let mut progress = Progress::default();
        assert_eq!(progress.percent(), None);
        assert_eq!(progress.message(), "asking the registry");
        let mut told = vec![];
        for event in [
            event("a", "Pulling fs layer", None, None),
            event("a", "Downloading", Some(50), Some(100)),
            event("b", "Downloading", Some(0), Some(900)),
            event("a", "Pull complete", None, None),
            event("b", "Download complete", None, None),
        ] {
            progress.note(&event);
            told.push(progress.percent());
        }
        assert_eq!(told, [None, Some(49), Some(49), Some(49), Some(99)]);
        assert_eq!(progress.message(), "1 of 2 layers");
    }
}
