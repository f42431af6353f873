//! Bringing a workspace up (spec: lifecycle §2.2): the ordered steps, and what happens when somebody else is there.
//!
//! ```text
//! image ── create ─────────────────────────────── configure ── start ── (address)
//!          volumes │ clear the name │ container
//! ```
//!
//! The image comes before everything that leaves a trace, so that a start without an image leaves none, and a long pull
//! does not stand between clearing the name and taking it. Before each call that changes something the watch is asked;
//! after each stands a fail point. From the moment the container exists every failure removes it again, by its id.

use std::time::Duration;

use bollard::body_full;
use bollard::models::{ContainerCreateBody, ContainerInspectResponse};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, StartContainerOptions, UploadToContainerOptionsBuilder,
};
use bytes::Bytes;
use longshore_base::clock::Stopwatch;
use longshore_base::failpoint::hit;

use super::config::platform;
use super::container::{Tier, Volumes, check, create_body, internal_url};
use super::engine::{BETWEEN_LOOKS, CALL_LIMIT, Docker, Engine, LOOK_LIMIT, call};
use super::files::files_archive;
use super::image::{ReadyImage, no_such_image};
use super::labels::Holder;
use super::names::{AGENT_PORT, AGENT_PORT_KEY, CONFIGS};
use crate::{BackendError, CallError, CallFailure, StartSpec, StartWatch, StartedContainer, steps};

/// How long the name is fought for before we admit that others keep taking it. A time and not a number of rounds: a
/// loaded engine refuses the name of a container it does not show yet for longer than any number of quick rounds.
const LIMIT_FOR_THE_NAME: Duration = Duration::from_secs(60);
/// How often, and how far apart, the engine is asked for the host port.
const LOOKS_FOR_THE_PORT: u32 = 3;
const BETWEEN_LOOKS_FOR_THE_PORT: Duration = Duration::from_millis(500);

impl Docker {
    /// The body with which a start creates its container: what a bench must send to do the same work.
    ///
    /// # Errors
    /// The spec cannot be expressed, or no contact with the engine, whose id is in the labels.
    pub async fn container_body(
        &self,
        spec: &StartSpec,
    ) -> Result<ContainerCreateBody, BackendError> {
        check(spec)?;
        let engine = self.engine().await?;
        Ok(self.body(engine, spec))
    }

    fn body(&self, engine: &Engine, spec: &StartSpec) -> ContainerCreateBody {
        let mark = self.mark(engine);
        let network = &self.config.network;
        create_body(spec, mark, network, &self.config.tiers, engine.cpus())
    }

    /// [`Backend::start`](crate::Backend::start), answering with what only a container has.
    ///
    /// # Errors
    /// As there.
    pub async fn bring_up(
        &self,
        spec: &StartSpec,
        watch: &dyn StartWatch,
    ) -> Result<StartedContainer, BackendError> {
        check(spec)?;
        let archive = match spec.files[..] {
            [] => None,
            _ => Some(files_archive(&spec.files)?),
        };
        let engine = self.engine().await?;
        let image = self.ready_image(engine, spec, watch).await?;
        self.ensure_network(engine).await?;
        self.make_room(engine, spec, watch).await?;
        let (container_id, image) = self.create(engine, spec, watch, image).await?;
        hit("docker.after_create").await;
        match self.run(engine, spec, watch, &container_id, archive).await {
            Ok(url) => Ok(StartedContainer {
                url,
                internal_url: internal_url(spec.workspace_id, Tier::of(spec.tier)),
                container_id,
                engine_id: engine.id().to_owned(),
                image_digest: image.digest,
            }),
            Err(BackendError::Abandoned(abandoned)) => Err(abandoned.into()),
            Err(error) => {
                self.discard(engine, spec, &container_id).await;
                Err(error)
            }
        }
    }

    /// Volumes, and a look at who holds the name where somebody may.
    async fn make_room(
        &self,
        engine: &Engine,
        spec: &StartSpec,
        watch: &dyn StartWatch,
    ) -> Result<(), BackendError> {
        let id = spec.workspace_id;
        let volumes = Volumes::of(spec);
        let (fresh_session, kept_session) = match wants_fresh_session(spec) {
            true => (volumes.session, None),
            false => (None, volumes.session),
        };
        watch
            .step(steps::CREATE, Some("volumes".to_owned()), None)
            .await?;
        let names = [
            Some(&volumes.config),
            volumes.workspace.as_ref(),
            kept_session.as_ref(),
        ];
        self.make_volumes(engine, id, names.into_iter().flatten())
            .await?;
        hit("docker.after_volumes").await;
        // A first generation has no predecessor, so nothing is looked for; should there be one, the create says so.
        if spec.generation > 1 || fresh_session.is_some() {
            self.clear_name(engine, spec, watch).await?;
        }
        hit("docker.after_remove").await;
        if let Some(session) = fresh_session {
            // Only now: until its container was removed, the old session volume was in use.
            watch
                .step(steps::CREATE, Some("fresh session".to_owned()), None)
                .await?;
            self.drop_sessions(engine, id).await;
            self.make_volumes(engine, id, [&session].into_iter())
                .await?;
        }
        Ok(())
    }

    /// Removes a predecessor's container and says whether there was one. Whatever is newer or not ours is an error.
    async fn clear_name(
        &self,
        engine: &Engine,
        spec: &StartSpec,
        watch: &dyn StartWatch,
    ) -> Result<bool, BackendError> {
        let Some(found) = self.find(engine, spec.workspace_id, CALL_LIMIT).await? else {
            return Ok(false);
        };
        match found.holder {
            Holder::Ours { generation } if generation > spec.generation => {
                Err(BackendError::StaleGeneration {
                    ours: spec.generation,
                    theirs: generation,
                })
            }
            // Of our own generation it can only be a dead run's, or our own lost answer: two living runs never share a
            // generation, since each takes a new one when it begins.
            Holder::Ours { .. } => {
                watch
                    .step(
                        steps::CREATE,
                        Some("removing the old container".to_owned()),
                        None,
                    )
                    .await?;
                self.remove_container(engine, &found.id).await?;
                Ok(true)
            }
            Holder::OursElsewhere | Holder::Stranger => Err(BackendError::NameTaken {
                name: spec.workspace_id.container_name(),
                holder: found.described,
            }),
        }
    }

    /// Takes the name. The engine lets exactly one create through; the others look who it was.
    async fn create(
        &self,
        engine: &Engine,
        spec: &StartSpec,
        watch: &dyn StartWatch,
        mut image: ReadyImage,
    ) -> Result<(String, ReadyImage), BackendError> {
        let mut network_made = false;
        let since = Stopwatch::start();
        loop {
            watch
                .step(steps::CREATE, Some("container".to_owned()), None)
                .await?;
            let error = match self.create_once(engine, spec).await {
                Ok(container_id) => return Ok((container_id, image)),
                Err(error) => error,
            };
            match error.failure() {
                CallFailure::Conflict if since.elapsed() >= LIMIT_FOR_THE_NAME => {
                    return Err(BackendError::NameContended {
                        name: spec.workspace_id.container_name(),
                    });
                }
                CallFailure::Conflict => {
                    if !self.clear_name(engine, spec, watch).await? {
                        // The engine keeps a name while it makes the container and while it removes it, and shows no
                        // container then.
                        tokio::time::sleep(BETWEEN_LOOKS).await;
                    }
                    hit("docker.after_remove").await;
                }
                _ if is_about_missing_network(&error) && !network_made => {
                    network_made = true;
                    self.network.forget();
                    self.ensure_network(engine).await?;
                }
                CallFailure::NotFound if !image.pulled => {
                    image = self.pulled_image(engine, spec, watch).await?;
                }
                CallFailure::NotFound => {
                    self.images.forget(&spec.image);
                    return Err(no_such_image(spec, Some(error.into())));
                }
                CallFailure::TimedOut | CallFailure::Unreachable => {
                    // The engine may have made it after all.
                    self.discard_lost(engine, spec).await;
                    return Err(error.into());
                }
                CallFailure::Refused | CallFailure::Failed => return Err(error.into()),
            }
        }
    }

    async fn create_once(&self, engine: &Engine, spec: &StartSpec) -> Result<String, CallError> {
        let name = spec.workspace_id.container_name();
        let mut options = CreateContainerOptionsBuilder::default().name(&name);
        if let Some(platform) = platform(self.config.platform.as_deref()) {
            options = options.platform(&platform);
        }
        let body = self.body(engine, spec);
        let created = engine.client.create_container(Some(options.build()), body);
        Ok(call("container_create", created).await?.id)
    }

    /// From a created container to its address.
    async fn run(
        &self,
        engine: &Engine,
        spec: &StartSpec,
        watch: &dyn StartWatch,
        container_id: &str,
        archive: Option<Bytes>,
    ) -> Result<String, BackendError> {
        watch.step(steps::CONFIGURE, None, None).await?;
        if let Some(archive) = archive {
            let options = UploadToContainerOptionsBuilder::default()
                .path(CONFIGS)
                .build();
            let client = &engine.client;
            let upload =
                client.upload_to_container(container_id, Some(options), body_full(archive));
            call("container_upload", upload).await?;
        }
        hit("docker.after_configure").await;
        watch.step(steps::START, None, None).await?;
        self.start_process(engine, container_id).await?;
        hit("docker.after_start").await;
        self.address(engine, spec, container_id).await
    }

    async fn start_process(&self, engine: &Engine, container_id: &str) -> Result<(), BackendError> {
        let start = || {
            let options = None::<StartContainerOptions>;
            let started = engine.client.start_container(container_id, options);
            call("container_start", started)
        };
        let mut result = start().await;
        if result.as_ref().is_err_and(is_about_missing_network) {
            // This engine looks for the network only now, and somebody has removed it since we saw it.
            self.network.forget();
            self.ensure_network(engine).await?;
            result = start().await;
        }
        result.map_err(|error| match error.failure() {
            CallFailure::Unreachable | CallFailure::TimedOut => error.into(),
            // Engines answer 400, 404 or 500 alike for an image whose entrypoint cannot be run.
            CallFailure::NotFound
            | CallFailure::Conflict
            | CallFailure::Refused
            | CallFailure::Failed => BackendError::NotStarted(error),
        })
    }

    /// Where the control plane reaches the agent. The port may come late; without one the internal address must do.
    async fn address(
        &self,
        engine: &Engine,
        spec: &StartSpec,
        container_id: &str,
    ) -> Result<String, BackendError> {
        let tier = Tier::of(spec.tier);
        let internal = internal_url(spec.workspace_id, tier);
        if self.config.in_docker {
            return Ok(internal);
        }
        if tier.on_host_network() {
            return Ok(format!("http://{}:{AGENT_PORT}", self.address.host_name()));
        }
        for look in 1..=LOOKS_FOR_THE_PORT {
            let inspected = engine.client.inspect_container(container_id, None);
            match call("container_inspect", inspected).await {
                Ok(found) => {
                    if let Some(url) = host_url(found) {
                        return Ok(url);
                    }
                }
                // A successor has taken it away.
                Err(error) if error.failure() == CallFailure::NotFound => return Err(error.into()),
                Err(error) => {
                    let error = BackendError::from(error).chain();
                    tracing::warn!(workspace.id = %spec.workspace_id, error, "cannot look for the host port");
                }
            }
            if look < LOOKS_FOR_THE_PORT {
                tokio::time::sleep(BETWEEN_LOOKS_FOR_THE_PORT).await;
            }
        }
        tracing::warn!(workspace.id = %spec.workspace_id, container.id = container_id, "the container has no host port");
        Ok(internal)
    }

    /// Takes back what this start made. The name may be a successor's by now, the id never is.
    async fn discard(&self, engine: &Engine, spec: &StartSpec, container_id: &str) {
        if let Err(error) = self.remove_container(engine, container_id).await {
            let error = error.chain();
            tracing::error!(
                workspace.id = %spec.workspace_id, container.id = container_id, error,
                "the container of a failed start was left behind"
            );
        }
    }

    /// The same, when the engine never told the id: only a container with this very run's label is ours to take back.
    async fn discard_lost(&self, engine: &Engine, spec: &StartSpec) {
        match self.find(engine, spec.workspace_id, LOOK_LIMIT).await {
            Ok(Some(found)) if found.run == Some(spec.run) => {
                self.discard(engine, spec, &found.id).await;
            }
            Ok(_) => {}
            Err(error) => {
                let error = error.chain();
                tracing::warn!(workspace.id = %spec.workspace_id, error, "cannot tell whether a container was made");
            }
        }
    }
}

/// The address of the agent's port on the engine's machine, once it has one.
fn host_url(found: ContainerInspectResponse) -> Option<String> {
    let bindings = found.network_settings?.ports?.remove(AGENT_PORT_KEY)??;
    bindings.into_iter().find_map(|binding| {
        let port = binding.host_port.filter(|port| !port.is_empty())?;
        let ip = binding.host_ip.unwrap_or_default();
        let everywhere = matches!(ip.as_str(), "" | "0.0.0.0" | "::");
        let ip = if everywhere { "127.0.0.1" } else { ip.as_str() };
        Some(format!("http://{ip}:{port}"))
    })
}

/// The engine says 404 for images, containers and networks alike; only its words tell which.
fn is_about_missing_network(error: &CallError) -> bool {
    error.failure() == CallFailure::NotFound && error.said("network")
}

/// The flag, or the variable a user may set (spec: lifecycle §2.2).
fn wants_fresh_session(spec: &StartSpec) -> bool {
    let asked = spec
        .env
        .iter()
        .rev()
        .find(|(name, _)| name == "WORKSPACE_RESET_SESSION");
    let asked = asked.is_some_and(|(_, value)| {
        let value = value.expose().trim().to_ascii_lowercase();
        matches!(value.as_str(), "1" | "t" | "true")
    });
    spec.reset_session || asked
}
