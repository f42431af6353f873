//! The one trait behind which workspaces run.

use std::pin::Pin;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::Stream;
use longshore_base::{Timestamp, WorkspaceId};

use crate::{BackendError, ConfigFile, StartSpec};

/// Names of the steps a start reports, in their order. The caller adds its own before and after.
pub mod steps {
    /// Looking whether the image is there.
    pub const IMAGE: &str = "image";
    /// Fetching it; the only step with a percentage.
    pub const PULL: &str = "pull";
    /// Volumes, whatever holds the container's name, and the container itself.
    pub const CREATE: &str = "create";
    /// Files into `/configs`.
    pub const CONFIGURE: &str = "configure";
    /// The container's first process.
    pub const START: &str = "start";
}

/// A place where workspaces run.
#[async_trait]
pub trait Backend: Send + Sync {
    /// The backend's name in logs and metrics: `docker`, `remote`.
    fn kind(&self) -> &'static str;

    /// Where it runs them: the engine's own id, or the name of the one place there is. `None` before the first contact
    /// with an engine.
    fn engine_id(&self) -> Option<&str>;

    /// How it differs from others, as far as callers must know.
    fn manner(&self) -> Manner;

    /// Makes contact if there was none yet, and asks whether the engine answers now.
    async fn check(&self) -> Result<(), BackendError>;

    /// Brings the workspace up and returns once its first process runs.
    ///
    /// Converges to exactly one container from whatever a dead predecessor left. Never touches a container of a
    /// higher generation ([`BackendError::StaleGeneration`]) or one that is not ours ([`BackendError::NameTaken`]).
    /// On an error the container this call made is gone again; on [`BackendError::Abandoned`], and when the future
    /// is dropped, it may be left for the successor, or for [`Backend::stop`].
    async fn start(
        &self,
        spec: &StartSpec,
        watch: &dyn StartWatch,
    ) -> Result<Started, BackendError>;

    /// Removes what the workspace runs in: its container, unless that is of a higher generation than the target's
    /// ([`BackendError::StaleGeneration`]), or the instance that the target names. Nothing there is success, and so is a
    /// target without an instance where workspaces run in instances.
    async fn stop(&self, target: &StopTarget) -> Result<(), BackendError>;

    /// Removes volumes; call it only after a successful stop. Missing ones are success.
    async fn remove_volumes(&self, id: WorkspaceId, scope: VolumeScope)
    -> Result<(), BackendError>;

    /// Whether the workspace's container, or the instance recorded for it, runs. **An error means alive on doubt**: only
    /// `Ok(false)` says that it is gone.
    async fn is_running(
        &self,
        id: WorkspaceId,
        instance_id: Option<&str>,
    ) -> Result<bool, BackendError>;

    /// The `config.yaml` that was kept from earlier starts. Where nothing runs the image is needed to look through.
    async fn read_config(
        &self,
        _id: WorkspaceId,
        _image: &str,
    ) -> Result<KeptConfig, BackendError> {
        Ok(KeptConfig::Elsewhere)
    }

    /// The files in the workspace's `/configs`, as its agent has them now. `None` where there is no container to look into.
    async fn read_files(&self, _id: WorkspaceId) -> Result<Option<Vec<ConfigFile>>, BackendError> {
        Ok(None)
    }

    /// Fetches an image, whether it is there or not, so that starts find it. [`BackendError::Unsupported`] where images are
    /// not ours to choose; [`BackendError::is_unknown_image`] when its registry does not know it.
    async fn fetch_image(
        &self,
        _reference: &str,
        _watch: &dyn StartWatch,
    ) -> Result<(), BackendError> {
        Err(BackendError::Unsupported { what: "images" })
    }

    /// The digest that a tag names in its registry now; fetches nothing. [`BackendError::Unsupported`] where images are not
    /// ours to choose.
    async fn tag_digest(&self, _reference: &str) -> Result<String, BackendError> {
        Err(BackendError::Unsupported { what: "images" })
    }

    /// Whether a start takes away what an older generation left, so that a restart whose stop failed may go on at once.
    fn replaces_on_start(&self) -> bool {
        false
    }

    /// Everything on the engine that has a workspace's name, whoever made it; `None` from a backend that cannot list. An
    /// error says nothing about what is there.
    async fn list_containers(&self) -> Result<Option<Vec<ListedContainer>>, BackendError> {
        Ok(None)
    }

    /// Everything on the engine that carries this installation's and this engine's labels, whatever its name; `None` from a
    /// backend that cannot list. An error says nothing about what is there.
    async fn take_inventory(&self) -> Result<Option<Inventory>, BackendError> {
        Ok(None)
    }

    /// Removes a container (with its anonymous volumes) or a volume that an inventory told of, by that id, after looking
    /// again whose it is: what does not carry all our labels is left alone ([`BackendError::NameTaken`]), and so is a
    /// container of a higher generation than `newest` ([`BackendError::StaleGeneration`]). Nothing there is success.
    async fn remove_marked(
        &self,
        _kind: MarkedKind,
        _id: &str,
        _newest: i64,
    ) -> Result<(), BackendError> {
        Err(BackendError::Unsupported {
            what: "containers or volumes",
        })
    }

    /// What the container wrote, oldest line first. [`BackendError::NoContainer`] when there is none,
    /// [`BackendError::Unsupported`] where workspaces do not run in containers.
    async fn logs(&self, id: WorkspaceId, query: LogsQuery) -> Result<LogStream, BackendError>;

    /// What the workspace's machine wrote to its console. [`BackendError::Unsupported`] where it has none.
    async fn console(&self, id: WorkspaceId) -> Result<String, BackendError>;
}

/// How a backend differs from others, as far as callers must know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Manner {
    /// What reaches the agent besides secrets and model.
    pub delivers: Delivers,
    /// A start is one call that cannot be repeated, and after so long it is certain to be over. `None` where a repeated
    /// start finds what an earlier one has made.
    pub start_uncertain_for: Option<Duration>,
    /// Longest a run that brings a workspace up may take, with the stop of what was there before.
    pub run_limit: Duration,
    /// How often to look whether what is up still runs.
    pub look_every: Duration,
}

/// What a backend brings to the agent (spec: lifecycle §2.4, §3.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivers {
    /// The whole environment, files, and a token among them.
    Everything,
    /// Secrets, git identity, model, role and parent as environment. The agent builds its files from that, and gets its
    /// token when it first registers.
    Environment,
}

/// Asked before each step of a start; says whether to go on and shows the step to whoever watches the job.
#[async_trait]
pub trait StartWatch: Send + Sync {
    /// `message` is fit for the public. `Err` means that the run lost its right or was cancelled: the start ends at once.
    async fn step(
        &self,
        step: &'static str,
        message: Option<String>,
        percent: Option<u8>,
    ) -> Result<(), Abandoned>;
}

/// Lets every step go on and shows it to nobody.
#[derive(Clone, Copy, Debug)]
pub struct Unwatched;

#[async_trait]
impl StartWatch for Unwatched {
    async fn step(
        &self,
        _step: &'static str,
        _message: Option<String>,
        _percent: Option<u8>,
    ) -> Result<(), Abandoned> {
        Ok(())
    }
}

/// The run may no longer act.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the run lost its right to go on or was cancelled")]
pub struct Abandoned;

/// A workspace that was brought up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Started {
    /// In a container.
    Container(StartedContainer),
    /// On an instance of its own.
    Instance(StartedInstance),
}

impl Started {
    /// The container's id, if it is one.
    #[must_use]
    pub fn container_id(&self) -> Option<&str> {
        match self {
            Self::Container(container) => Some(&container.container_id),
            Self::Instance(_) => None,
        }
    }

    /// The instance's id, if it is one.
    #[must_use]
    pub fn instance_id(&self) -> Option<&str> {
        match self {
            Self::Container(_) => None,
            Self::Instance(instance) => Some(&instance.instance_id),
        }
    }

    /// The engine, or the place that stands for one.
    #[must_use]
    pub fn engine_id(&self) -> &str {
        match self {
            Self::Container(container) => &container.engine_id,
            Self::Instance(instance) => &instance.place,
        }
    }
}

/// A container that was started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartedContainer {
    /// The container's id.
    pub container_id: String,
    /// Where the control plane reaches the agent.
    pub url: String,
    /// Where other workspaces reach it.
    pub internal_url: String,
    /// The engine it runs on.
    pub engine_id: String,
    /// Digest of the image that was started, 64 hex digits; `None` for an image no registry knows.
    pub image_digest: Option<String>,
}

/// An instance that was started. Where it is reached, its agent says when it registers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartedInstance {
    /// The instance's id.
    pub instance_id: String,
    /// The place it is at ([`Backend::engine_id`]).
    pub place: String,
    /// The answer was that of an earlier call under the same key: nothing was made now.
    pub replayed: bool,
}

/// What to stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StopTarget {
    /// Whose container or instance.
    pub workspace_id: WorkspaceId,
    /// The newest generation whose container may be removed.
    pub generation: i64,
    /// The instance on file: the row's `instance_id`, or what was read of it before the row went. Where workspaces run in
    /// instances, nothing else is stopped.
    pub instance_id: Option<String>,
}

impl StopTarget {
    /// Whatever container the workspace has: for rows that are gone, and for operators.
    #[must_use]
    pub fn any_generation(workspace_id: WorkspaceId) -> Self {
        Self {
            workspace_id,
            generation: i64::MAX,
            instance_id: None,
        }
    }
}

/// What a backend has kept of a workspace's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeptConfig {
    /// The text of its `config.yaml`, whatever the agent has made of it.
    Found(String),
    /// There is none.
    Missing,
    /// The backend keeps no files: the workspace makes them itself.
    Elsewhere,
}

/// A container with a workspace's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedContainer {
    /// Its name.
    pub name: String,
    /// Its id.
    pub container_id: String,
    /// The workspace it is of, if this installation made it on this engine; `None`: not ours, never to be touched.
    pub workspace_id: Option<WorkspaceId>,
}

/// What an engine has of ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    /// What carries both labels.
    pub ours: Vec<Marked>,
    /// How many containers and volumes have names like workspaces' and lack one of the labels: never to be touched.
    pub strangers: usize,
}

/// A container or volume with our labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marked {
    /// Which of the two.
    pub kind: MarkedKind,
    /// The container's id, or the volume's name.
    pub id: String,
    /// Its name, in both cases.
    pub name: String,
    /// The workspace it was made for, if its label can be read.
    pub workspace_id: Option<WorkspaceId>,
    /// The (re)provision that made it; only containers tell, and not those that never ran an agent.
    pub generation: Option<i64>,
    /// It is the volume of a workspace's work, which nothing can make again.
    pub is_work: bool,
    /// It is a container that runs.
    pub is_running: bool,
}

/// What can carry labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MarkedKind {
    /// A container, running or not.
    Container,
    /// A volume.
    Volume,
}

/// Which volumes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VolumeScope {
    /// Config and sessions: a removed workspace keeps its work.
    ConfigAndSessions,
    /// The work too: purge.
    All,
}

/// Which lines of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogsQuery {
    /// So many of the last lines; `None` is all.
    pub tail: Option<u32>,
    /// None older than this.
    pub since: Option<Timestamp>,
    /// Go on with what is written from now, until the container ends.
    pub follow: bool,
}

/// Lines as they come; ends with the container, or when all are told and `follow` is off.
pub type LogStream = Pin<Box<dyn Stream<Item = Result<LogLine, BackendError>> + Send>>;

/// One line of a container's output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// When the engine read it.
    pub at: Option<Timestamp>,
    /// From where.
    pub source: LogSource,
    /// The line without its end. May hold a secret the agent printed; redact before showing.
    pub text: String,
}

/// Which of a process's outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LogSource {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}
