//! `longshore api`: an API server for deployments; any number of them beside each other.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use clap::Args;
use longshore_base::redact::Redactor;

use crate::assembly::{self, Core, CoreSettings, Leave, MetricsPage, Sockets};
use crate::exit::Exit;
use crate::listen::{ListenSettings, Listeners};
use crate::settings::database::DatabaseSettings;
use crate::settings::docker::DockerSettings;
use crate::settings::fleet::FleetSettings;
use crate::settings::http::HttpSettings;
use crate::settings::metrics::MetricsSettings;
use crate::settings::redis::RedisSettings;
use crate::settings::remote::RemoteSettings;
use crate::settings::security::SecuritySettings;
use crate::settings::worker::WorkerSettings;
use crate::signals::StopSignals;

/// Arguments of `longshore api`.
#[derive(Args, Debug)]
pub(crate) struct ApiArgs {
    #[command(flatten)]
    listen: ListenSettings,
    #[command(flatten)]
    http: HttpSettings,
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
    #[command(flatten)]
    worker: WorkerSettings,
}

/// Serves until told to stop.
pub(crate) async fn run(mut args: ApiArgs, redactor: Redactor) -> anyhow::Result<Exit> {
    let mut signals = StopSignals::listen()?;
    let security = args.security.for_api()?;
    args.redis.check()?;
    args.remote.check()?;
    assembly::take_tenant_config(&args.remote, &args.fleet, &security).await;
    let addresses = args.listen.addresses(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let listeners = Listeners::bind(&addresses).await?;
    let metrics_listener = assembly::bind_metrics(args.metrics).await?;
    let metrics = MetricsPage::start()?;
    let pools = assembly::connect(&args.database, "api").await?;
    redactor.learn(args.remote.secrets());
    let port = listeners.first()?.port();
    let engines = match assembly::remote_engines(&args.remote, &args.fleet, &security, port) {
        Some(engines) => engines,
        None => assembly::connect_docker(&args.docker, &mut args.fleet, &pools)
            .await?
            .engines_whenever(&args.docker),
    };
    let url = listeners.local_url()?;
    let settings = CoreSettings {
        security,
        redis: args.redis,
        fleet: args.fleet,
        worker: args.worker,
        port,
    };
    let core = Core::build(settings, pools, engines, redactor)?;
    let leave = Leave {
        notice: Duration::from_secs(args.http.shutdown_notice.into()),
        limit: args.http.shutdown_limit,
    };
    let sockets = Sockets {
        api: listeners.sockets,
        metrics: metrics_listener,
    };
    let mut api = core.serve_api(&args.http, sockets, &metrics, Vec::new(), leave)?;
    tracing::info!(url, "the API serves");
    tokio::select! {
        error = api.died() => return Err(error),
        signal = signals.next() => tracing::info!(signal, "stopping"),
    }
    tokio::select! {
        () = api.stop() => Ok(Exit::Done),
        signal = signals.next() => {
            tracing::warn!(signal, "ending now");
            Ok(Exit::Failed)
        }
    }
}
