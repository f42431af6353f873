//! `longshore worker`: a worker for deployments; any number of them beside each other.

use std::time::Duration;

use clap::Args;
use longshore_base::redact::Redactor;

use crate::assembly::{self, Core, CoreSettings, MetricsPage};
use crate::exit::Exit;
use crate::listen::PortSettings;
use crate::settings::database::DatabaseSettings;
use crate::settings::docker::DockerSettings;
use crate::settings::fleet::FleetSettings;
use crate::settings::metrics::MetricsSettings;
use crate::settings::redis::RedisSettings;
use crate::settings::remote::RemoteSettings;
use crate::settings::security::SecuritySettings;
use crate::settings::worker::WorkerSettings;
use crate::signals::StopSignals;

const GRACE: Duration = Duration::from_secs(30);

/// Arguments of `longshore worker`.
#[derive(Args, Debug)]
pub(crate) struct WorkerArgs {
    #[command(flatten)]
    port: PortSettings,
    #[command(flatten)]
    worker: WorkerSettings,
    #[command(flatten)]
    metrics: MetricsSettings,
    #[command(flatten)]
    security: SecuritySettings,
    #[command(flatten)]
    database: DatabaseSettings,
    #[command(flatten)]
    redis: RedisSettings,
    #[command(flatten)]
    fleet: FleetSettings,
    #[command(flatten)]
    docker: DockerSettings,
    #[command(flatten)]
    remote: RemoteSettings,
}

/// Works until told to stop.
pub(crate) async fn run(mut args: WorkerArgs, redactor: Redactor) -> anyhow::Result<Exit> {
    let mut signals = StopSignals::listen()?;
    let security = args.security.for_worker()?;
    args.redis.check()?;
    args.remote.check()?;
    assembly::take_tenant_config(&args.remote, &args.fleet, &security).await;
    let metrics_listener = assembly::bind_metrics(args.metrics).await?;
    let metrics = MetricsPage::start()?;
    let pools = assembly::connect(&args.database, "worker").await?;
    redactor.learn(args.remote.secrets());
    let port = args.port.port;
    let engines = match assembly::remote_engines(&args.remote, &args.fleet, &security, port) {
        Some(engines) => engines,
        None => assembly::connect_docker(&args.docker, &mut args.fleet, &pools)
            .await?
            .engines_whenever(&args.docker),
    };
    let settings = CoreSettings {
        security,
        redis: args.redis,
        fleet: args.fleet,
        worker: args.worker.clone(),
        port,
    };
    let core = Core::build(settings, pools, engines, redactor)?;
    let mut worker = core.run_worker(&args.worker).await?;
    if let Some(listener) = metrics_listener {
        tokio::spawn(assembly::serve_metrics(metrics, listener));
    }
    tokio::select! {
        error = worker.died() => return Err(error),
        signal = signals.next() => tracing::info!(signal, "stopping"),
    }
    tokio::select! {
        () = worker.stop(args.worker.grace.unwrap_or(GRACE)) => Ok(Exit::Done),
        signal = signals.next() => {
            tracing::warn!(signal, "ending now");
            Ok(Exit::Failed)
        }
    }
}
