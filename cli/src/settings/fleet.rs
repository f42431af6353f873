//! What the control plane knows of workspaces: rights, templates, images, the addresses handed to agents.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use longshore_fleet::restarting::RestartBudget;
use longshore_jobs::import::ImportPace;

use super::{SettingError, parse};

/// What the agents of a Docker engine can reach the host by, when nothing better is known.
const DEFAULT_PLATFORM_HOST: &str = "host.docker.internal";

/// The runtimes that come as images; the manifest may name more, which then have images of their own.
const CONTAINER_RUNTIMES: [&str; 4] = ["claude-code", "hermes", "openclaw", "codex"];

/// Settings of workspaces.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Workspaces")]
pub(crate) struct FleetSettings {
    /// Highest tier accepted, 1 to 4. Tiers 3 and 4 give an agent the host.
    #[arg(
        long = "max-tier",
        env = "LONGSHORE_MAX_TIER",
        value_name = "TIER",
        default_value_t = 2,
        value_parser = clap::value_parser!(i32).range(1..=4)
    )]
    pub(crate) max_tier: i32,

    /// Address of this API as agents reach it. Unset: `up` uses the gateway of the workspace network, the other commands
    /// `http://host.docker.internal:<port>`.
    #[arg(long = "platform-url", env = "PLATFORM_URL", value_name = "URL", value_parser = parse::http_url)]
    pub(crate) platform_url: Option<String>,

    /// Public address handed to external agents. Unset: taken from the request.
    #[arg(long = "external-platform-url", env = "EXTERNAL_PLATFORM_URL", value_name = "URL", value_parser = parse::http_url)]
    pub(crate) external_platform_url: Option<String>,

    /// Directory of the workspace templates. Unset: the first `workspace-configs-templates` found here or up to two
    /// directories above, else none.
    #[arg(long = "configs-dir", env = "CONFIGS_DIR", value_name = "DIR")]
    pub(crate) configs_dir: Option<PathBuf>,

    /// The manifest that lists the runtimes. Unset: `/app/manifest.json`, else `manifest.json` here or up to two
    /// directories above, else the built-in list.
    #[arg(
        long = "manifest",
        env = "WORKSPACE_MANIFEST_PATH",
        value_name = "FILE"
    )]
    pub(crate) manifest_path: Option<PathBuf>,

    /// Host directory mounted at `/workspace` of workspaces that ask for access and name none of their own.
    #[arg(long = "workspace-dir", env = "WORKSPACE_DIR", value_name = "DIR")]
    pub(crate) workspace_dir: Option<String>,

    /// Awareness service, handed to agents.
    #[arg(long = "awareness-url", env = "AWARENESS_URL", value_name = "URL", value_parser = parse::http_url)]
    pub(crate) awareness_url: Option<String>,

    /// Memory plugin, told by workers which workspaces were purged. Unset: nothing is told.
    #[arg(long = "memory-plugin-url", env = "MEMORY_PLUGIN_URL", value_name = "URL", hide_env_values = true, value_parser = parse::http_url)]
    pub(crate) memory_plugin_url: Option<String>,

    /// Mail domain of the git identity of agents.
    #[arg(
        long = "agent-git-email-domain",
        env = "AGENT_GIT_EMAIL_DOMAIN",
        value_name = "DOMAIN"
    )]
    pub(crate) agent_git_email_domain: Option<String>,

    /// Registry and owner of the runtime images, as in `<prefix>/workspace-template-<runtime>:latest`.
    #[arg(
        long = "image-prefix",
        env = "WORKSPACE_IMAGE_PREFIX",
        value_name = "REGISTRY/OWNER",
        default_value = "ghcr.io/longshore"
    )]
    pub(crate) image_prefix: String,

    /// Images of single runtimes, `runtime=image,…`; they win over the prefix. Unset: `up` points the four runtimes to
    /// the reference agent.
    #[arg(
        long = "runtime-images",
        env = "LONGSHORE_RUNTIME_IMAGES",
        value_name = "RUNTIME=IMAGE",
        value_delimiter = ',',
        value_parser = parse::pair
    )]
    pub(crate) runtime_images: Vec<(String, String)>,

    /// Whether image pins are ignored, for images built on this machine.
    #[arg(
        long = "image-local-override",
        env = "WORKSPACE_IMAGE_LOCAL_OVERRIDE",
        value_name = "BOOL",
        default_value = "false",
        value_parser = parse::boolean,
        action = clap::ArgAction::Set
    )]
    pub(crate) image_local_override: bool,

    /// Seconds after which a workspace that is still provisioning has failed, for every runtime. Unset: 600, hermes
    /// 1800, or what a template declares.
    #[arg(long = "provision-timeout", env = "PROVISION_TIMEOUT_SECONDS", value_name = "SECONDS", value_parser = parse::seconds)]
    pub(crate) provision_timeout: Option<Duration>,

    /// Times that a workspace found gone is restarted by itself within AUTO_RESTART_WINDOW_SECONDS; once more and it has
    /// failed. 0 restarts nothing by itself. The first comes at once, the second after 10 s, further ones after 60 s;
    /// restarts that somebody asked for, or that a changed secret needs, do not count.
    #[arg(
        long = "auto-restart-max",
        env = "AUTO_RESTART_MAX",
        value_name = "N",
        default_value_t = RestartBudget::DEFAULT.most,
        value_parser = clap::value_parser!(u32).range(0..=1000)
    )]
    auto_restart_max: u32,

    /// Seconds over which automatic restarts are counted.
    #[arg(
        long = "auto-restart-window",
        env = "AUTO_RESTART_WINDOW_SECONDS",
        value_name = "SECONDS",
        default_value = "600",
        value_parser = parse::seconds
    )]
    auto_restart_window: Duration,

    /// Workspaces of one imported organisation that are brought up at once, 1 to 64.
    #[arg(
        long = "import-concurrency",
        env = "IMPORT_CONCURRENCY",
        value_name = "N",
        default_value_t = ImportPace::DEFAULT.at_once,
        value_parser = clap::value_parser!(u16).range(1..=64)
    )]
    import_concurrency: u16,

    /// Milliseconds between the starts of two workspaces that an imported organisation has below the same one.
    #[arg(
        long = "import-pause",
        env = "IMPORT_PAUSE_MS",
        value_name = "MILLISECONDS",
        default_value_t = 2000,
        value_parser = clap::value_parser!(u64).range(0..=600_000)
    )]
    import_pause_ms: u64,

    /// Whether this process itself runs in a container, where a workspace's `127.0.0.1` address means nothing. Unset:
    /// whether `/.dockerenv` exists and the gateway of the workspace network is not an address of this machine.
    #[arg(long = "in-docker", env = "LONGSHORE_IN_DOCKER", value_name = "BOOL", value_parser = parse::boolean, action = clap::ArgAction::Set)]
    pub(crate) in_docker: Option<bool>,

    /// `self-hosted` or `saas`. Unset: `saas` when an organisation id is set.
    #[arg(
        long = "deploy-mode",
        env = "LONGSHORE_DEPLOY_MODE",
        value_name = "MODE"
    )]
    pub(crate) deploy_mode: Option<String>,

    /// Id of the hosted organisation this installation serves. Its workspaces run on instances of the remote control
    /// plane (CP_PROVISION_URL), never on the Docker engine, and requests must name it in `X-Longshore-Org-Id`.
    #[arg(long = "org-id", env = "LONGSHORE_ORG_ID", value_name = "ID", value_parser = parse::org_id)]
    pub(crate) org_id: Option<String>,
}

impl FleetSettings {
    /// Whether this is a hosted installation.
    pub(crate) fn is_saas(&self) -> Result<bool, SettingError> {
        let Some(mode) = &self.deploy_mode else {
            return Ok(self.org_id.is_some());
        };
        match mode.trim().to_ascii_lowercase().as_str() {
            "saas" => Ok(true),
            "self-hosted" | "selfhosted" | "standalone" => Ok(false),
            _ => Err(SettingError::new(
                "LONGSHORE_DEPLOY_MODE",
                "must be saas or self-hosted",
            )),
        }
    }

    /// Whether this process runs in a container, as far as can be told without asking the engine.
    pub(crate) fn is_in_docker(&self) -> bool {
        self.in_docker
            .unwrap_or_else(|| Path::new("/.dockerenv").exists())
    }

    /// How often a lost workspace is restarted by itself.
    pub(crate) const fn auto_restart(&self) -> RestartBudget {
        RestartBudget {
            most: self.auto_restart_max,
            window: self.auto_restart_window,
        }
    }

    /// How fast an imported organisation is brought up.
    pub(crate) const fn import_pace(&self) -> ImportPace {
        ImportPace {
            at_once: self.import_concurrency,
            apart: Duration::from_millis(self.import_pause_ms),
        }
    }

    /// The address agents use, for an API on this port.
    pub(crate) fn platform_url(&self, port: u16) -> String {
        self.platform_url
            .clone()
            .unwrap_or_else(|| format!("http://{DEFAULT_PLATFORM_HOST}:{port}"))
    }

    /// The template root: as set, which must exist, or discovered.
    pub(crate) fn templates(&self) -> Result<Option<PathBuf>, SettingError> {
        match &self.configs_dir {
            Some(dir) if dir.is_dir() => Ok(Some(dir.clone())),
            Some(dir) => Err(SettingError::new(
                "CONFIGS_DIR",
                format!("{} is not a directory", dir.display()),
            )),
            None => Ok(upward("workspace-configs-templates").find(|path| path.is_dir())),
        }
    }

    /// The manifest: as set or discovered. Whether it is readable is judged where it is read.
    pub(crate) fn manifest(&self) -> Option<PathBuf> {
        self.manifest_path.clone().or_else(|| {
            std::iter::once(PathBuf::from("/app/manifest.json"))
                .chain(upward("manifest.json"))
                .find(|path| path.is_file())
        })
    }

    /// Gives an image to every runtime that a container can run and that has none of its own yet.
    pub(crate) fn default_images(&mut self, image: &str) {
        for runtime in CONTAINER_RUNTIMES {
            if !self.runtime_images.iter().any(|(name, _)| name == runtime) {
                self.runtime_images
                    .push((runtime.to_owned(), image.to_owned()));
            }
        }
    }

    /// The images of single runtimes.
    pub(crate) fn images(&self) -> BTreeMap<String, String> {
        self.runtime_images.iter().cloned().collect()
    }
}

/// `name` here, one and two directories above.
fn upward(name: &'static str) -> impl Iterator<Item = PathBuf> {
    ["", "..", "../.."]
        .into_iter()
        .map(move |above| Path::new(above).join(name))
}
