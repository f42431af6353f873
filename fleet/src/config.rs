//! Settings of the fleet, built once from the command line, and who this installation is.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use sqlx::PgConnection;
use uuid::Uuid;

use crate::FleetError;
use crate::restarting::RestartBudget;
use crate::url_safety::UrlPolicy;

/// What the fleet needs to know. Nothing here is secret.
#[derive(Clone, Debug)]
pub struct FleetConfig {
    /// Highest tier that is accepted (`LONGSHORE_MAX_TIER`).
    pub max_tier: i32,
    /// Root of the templates.
    pub configs_dir: Option<PathBuf>,
    /// The runtime manifest, if there is one.
    pub manifest_path: Option<PathBuf>,
    /// The relaxed rules for developers are in force.
    pub dev_mode: bool,
    /// Which agent URLs are acceptable.
    pub deploy_mode: DeployMode,
    /// This process itself runs in a container, so `127.0.0.1` is not the engine's host.
    pub in_docker: bool,
    /// The platform's URL as agents see it.
    pub platform_url: String,
    /// Its URL as agents outside see it; `None` takes it from the request.
    pub external_platform_url: Option<String>,
    /// The awareness service, told to agents.
    pub awareness_url: Option<String>,
    /// Host directory for `/workspace` where a workspace names none.
    pub workspace_dir: Option<String>,
    /// Domain of the agents' git addresses.
    pub agent_git_email_domain: Option<String>,
    /// Registry and owner of the runtime images.
    pub image_prefix: String,
    /// Images by runtime that beat those made from the prefix.
    pub runtime_images: BTreeMap<String, String>,
    /// Pins are not looked up.
    pub image_local_override: bool,
    /// Deadline of every bringing-up, whatever its template says.
    pub provision_timeout: Option<Duration>,
    /// How often a lost workspace is restarted by itself.
    pub auto_restart: RestartBudget,
}

impl FleetConfig {
    /// The tier of a workspace that names none.
    pub const DEFAULT_TIER: i32 = 2;

    /// Which agent URLs are acceptable here.
    #[must_use]
    pub const fn url_policy(&self) -> UrlPolicy {
        match (self.dev_mode, self.deploy_mode) {
            (true, _) => UrlPolicy::Dev,
            (false, DeployMode::Saas) => UrlPolicy::Hosted,
            (false, DeployMode::SelfHosted) => UrlPolicy::SelfHosted,
        }
    }
}

/// Whose network the agents live in: what decides about private addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeployMode {
    /// Agents of strangers must not point the platform at its own network.
    SelfHosted,
    /// Agents run on machines of one private network.
    Saas,
}

/// This installation's id, the mark on everything it makes in an engine.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn installation_id(conn: &mut PgConnection) -> Result<Uuid, FleetError> {
    Ok(sqlx::query_scalar!("SELECT id FROM installation")
        .fetch_one(conn)
        .await?)
}
