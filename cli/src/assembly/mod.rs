//! Joining the crates below into processes: settings in, running parts out. The one place that sees all of them.
//!
//! [`Core`] is what every process needs; [`Core::serve_api`] and [`Core::run_worker`] put a part on top of it, and `up`
//! has both in one process.

mod api;
mod database;
mod docker;
mod memory;
mod metrics;
mod remote;
mod worker;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use longshore_api::WatchedEngine;
use longshore_backends::Backends;
use longshore_base::pools::Pools;
use longshore_base::redact::Redactor;
use longshore_events::{EventBus, EventsConfig};
use longshore_fleet::{DeployMode, Fleet, FleetConfig};
use longshore_ledger::{Admitter, HintConfig, Hints, Kinds};
use tokio_util::sync::CancellationToken;

pub(crate) use api::{Leave, RunningApi, Sockets};
pub(crate) use database::{application, connect, warn_of_too_many};
pub(crate) use docker::{DockerAt, Engines, connect_docker};
pub(crate) use metrics::{MetricsPage, bind_metrics, serve_metrics};
pub(crate) use remote::{remote_engines, take_tenant_config};
pub(crate) use worker::RunningWorker;

use crate::settings::fleet::FleetSettings;
use crate::settings::redis::RedisSettings;
use crate::settings::security::Security;
use crate::settings::worker::WorkerSettings;

/// Settings that every process needs.
pub(crate) struct CoreSettings {
    /// Who may come in, and what seals secrets.
    pub(crate) security: Security,
    /// Redis.
    pub(crate) redis: RedisSettings,
    /// Workspaces.
    pub(crate) fleet: FleetSettings,
    /// Workers; the API needs to know of them what a kind of job may do.
    pub(crate) worker: WorkerSettings,
    /// Port of the API, for the address agents are given.
    pub(crate) port: u16,
}

/// What every process is made of.
pub(crate) struct Core {
    security: Security,
    settings: FleetSettings,
    pools: Pools,
    bus: EventBus,
    fleet: Arc<Fleet>,
    backends: Backends,
    engine: Option<WatchedEngine>,
    hints: Hints,
    admitter: Admitter,
    kinds: Kinds,
    liveness_ttl: Duration,
    /// Ends the admitter's tasks.
    stop: CancellationToken,
}

impl Core {
    /// Joins the parts; connects to nothing new, so Redis may be away.
    pub(crate) fn build(
        settings: CoreSettings,
        pools: Pools,
        engines: Engines,
        redactor: Redactor,
    ) -> anyhow::Result<Self> {
        let CoreSettings {
            security,
            redis,
            fleet: fleet_settings,
            worker: worker_settings,
            port,
        } = settings;
        redactor.learn(security.secrets());
        let redis_url = redis.url();
        let bus = EventBus::connect(EventsConfig {
            redis_url: redis_url.clone(),
            redis_prefix: redis.prefix.clone(),
            liveness_ttl: redis.liveness_ttl,
        })
        .context("REDIS_URL cannot be used")?;
        let hints = Hints::new(&HintConfig {
            url: redis_url,
            prefix: redis.prefix.clone(),
        })
        .context("REDIS_URL cannot be used")?;
        let config = fleet_config(&fleet_settings, &security, port)?;
        let fleet = Arc::new(Fleet::load(
            config,
            security.sealer()?,
            redactor,
            bus.clone(),
        ));
        let stop = CancellationToken::new();
        let admitter = Admitter::new(pools.control.clone(), hints.clone(), stop.clone());
        let kinds = worker::kinds(&worker_settings, &engines.backends);
        Ok(Self {
            security,
            settings: fleet_settings,
            pools,
            bus,
            fleet,
            backends: engines.backends,
            engine: engines.watched,
            hints,
            admitter,
            kinds,
            liveness_ttl: redis.liveness_ttl,
            stop,
        })
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn fleet_config(
    settings: &FleetSettings,
    security: &Security,
    port: u16,
) -> anyhow::Result<FleetConfig> {
    Ok(FleetConfig {
        max_tier: settings.max_tier,
        configs_dir: settings.templates()?,
        manifest_path: settings.manifest(),
        dev_mode: security.dev_mode,
        deploy_mode: if settings.is_saas()? {
            DeployMode::Saas
        } else {
            DeployMode::SelfHosted
        },
        in_docker: settings.is_in_docker(),
        platform_url: settings.platform_url(port),
        external_platform_url: settings.external_platform_url.clone(),
        awareness_url: settings.awareness_url.clone(),
        workspace_dir: settings.workspace_dir.clone(),
        agent_git_email_domain: settings.agent_git_email_domain.clone(),
        image_prefix: settings.image_prefix.clone(),
        runtime_images: settings.images(),
        image_local_override: settings.image_local_override,
        provision_timeout: settings.provision_timeout,
        auto_restart: settings.auto_restart(),
    })
}
