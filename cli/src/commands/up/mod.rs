//! `longshore up`: the whole control plane on one machine.
//!
//! ```text
//! start: lock ▸ credentials ▸ bind ▸ Redis, Postgres ▸ migrate ▸ engine, reference image ▸ worker ▸ API
//! stop:  API ▸ worker ▸ Redis ▸ Postgres, within ten seconds; workspaces keep running
//! ```
//!
//! Whatever cannot be had is one sentence and a non-zero exit, save Docker: without it everything but workspaces works.
//! A start after `kill -9` ends the servers that were left behind ([`leftovers`]) and finds its workspaces again.

mod account;
mod banner;
mod data;
mod leftovers;
mod postgres;
mod redis;
mod service;
mod services;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use longshore_base::clock::Stopwatch;
use longshore_base::pools::Pools;
use longshore_base::redact::Redactor;
use longshore_base::schema;
use tokio::net::TcpListener;

use crate::assembly::{
    self, Core, CoreSettings, DockerAt, Engines, Leave, MetricsPage, RunningApi, RunningWorker,
    Sockets,
};
use crate::exit::Exit;
use crate::listen::{ListenSettings, Listeners};
use crate::output::print_line;
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

use account::ServiceAccount;
use banner::Banner;
use data::DataDir;
use services::Services;

const DEFAULT_DATA: &str = ".longshore";
/// From the first signal until the last server is gone.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// What requests under way are given; clients repeat them.
const API_LIMIT: Duration = Duration::from_millis(500);
const WORKER_GRACE: Duration = Duration::from_secs(8);
/// What Postgres has at least, whatever the others took.
const POSTGRES_LIMIT: Duration = Duration::from_secs(1);

/// Arguments of `longshore up`.
#[derive(Args, Debug)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    place: PlaceSettings,
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

/// What belongs to this machine.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "This machine")]
struct PlaceSettings {
    /// Directory that keeps the database, the admin token and the sealing key; made the first time.
    #[arg(long = "data", env = "LONGSHORE_DATA", value_name = "DIR", default_value = DEFAULT_DATA)]
    data: PathBuf,

    /// The reference agent, a static binary that becomes the image of every runtime without one of its own. Unset:
    /// `longshore-agent` beside this program.
    #[arg(
        long = "agent-binary",
        env = "LONGSHORE_AGENT_BINARY",
        value_name = "FILE"
    )]
    agent_binary: Option<PathBuf>,
}

/// What was made ready before the parts are joined.
struct Ground {
    listeners: Listeners,
    metrics: Option<TcpListener>,
    own_token: bool,
    own_postgres: bool,
}

/// Everything joined and serving.
struct Up {
    api: RunningApi,
    worker: RunningWorker,
    grace: Duration,
    core: Core,
}

/// Runs until told to stop.
pub(crate) async fn run(mut args: UpArgs, redactor: Redactor) -> anyhow::Result<Exit> {
    args.redis.check()?;
    args.remote.check()?;
    let mut signals = StopSignals::listen()?;
    let account = ServiceAccount::choose()?;
    let data = DataDir::open(&args.place.data, &account)?;
    let own_token = keep_credentials(&mut args.security, &data)?;
    let addresses = args.listen.addresses(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let ground = Ground {
        listeners: Listeners::bind(&addresses).await?,
        metrics: assembly::bind_metrics(args.metrics).await?,
        own_token,
        own_postgres: args.database.url.is_none(),
    };
    let own_redis = args.redis.url.is_none();
    let (services, urls) = Services::start(&data, &account, ground.own_postgres, own_redis).await?;

    // From here on nothing may return without stopping them.
    let started = tokio::select! {
        started = async {
            if let Some(url) = urls.database {
                data.write_private("database-url", url.expose())?;
                args.database.url = Some(url.expose().clone());
            }
            if let Some(url) = urls.redis {
                data.write_private("redis-url", url.expose())?;
                args.redis.url = Some(url.expose().clone());
            }
            start(args, &data, ground, redactor).await
        } => started,
        signal = signals.next() => Err(anyhow::anyhow!("stopped by {signal} before it served")),
    };
    let (ended, stopping) = match started {
        Ok(up) => serve(up, &mut signals).await,
        Err(error) => (Err(error), Stopwatch::start()),
    };
    let rest = STOP_LIMIT.saturating_sub(stopping.elapsed());
    services.stop(rest.max(POSTGRES_LIMIT)).await;
    tracing::info!(took_ms = stopping.elapsed_ms(), "stopped");
    ended
}

/// Puts the kept token and key where the operator gave none. Answers whether the token is ours.
fn keep_credentials(security: &mut SecuritySettings, data: &DataDir) -> anyhow::Result<bool> {
    if security.sealing_key.is_none() && security.sealing_ring.is_none() {
        security.sealing_key = Some(data.sealing_key()?.expose().clone());
    }
    if security.admin_token.is_some() {
        return Ok(false);
    }
    security.admin_token = Some(data.admin_token()?.expose().clone());
    Ok(true)
}

/// Joins the parts and starts them; says so once they serve.
async fn start(
    mut args: UpArgs,
    data: &DataDir,
    mut ground: Ground,
    redactor: Redactor,
) -> anyhow::Result<Up> {
    let pools = database(&args.database, ground.own_postgres).await?;
    let (url, port) = (
        ground.listeners.local_url()?,
        ground.listeners.first()?.port(),
    );
    let security = args.security.for_api()?;
    redactor.learn(args.remote.secrets());
    let mut warnings = Vec::new();
    let engines = match assembly::remote_engines(&args.remote, &args.fleet, &security, port) {
        Some(engines) => {
            warnings.extend(without_control_plane(&engines, &args.fleet));
            engines
        }
        None => {
            let docker = assembly::connect_docker(&args.docker, &mut args.fleet, &pools).await?;
            let agent = args.place.agent_binary.as_deref();
            let listeners = &mut ground.listeners;
            warnings.extend(use_engine(&docker, &mut args.fleet, agent, listeners).await?);
            docker.engines_now(&args.docker)
        }
    };
    let platform_url = args.fleet.platform_url(port);
    let settings = CoreSettings {
        security,
        redis: args.redis,
        fleet: args.fleet,
        worker: args.worker.clone(),
        port,
    };
    let core = Core::build(settings, pools, engines, redactor)?;
    let metrics = MetricsPage::start()?;
    let worker = core.run_worker(&args.worker).await?;
    let leave = Leave {
        notice: Duration::ZERO,
        limit: API_LIMIT,
    };
    let sockets = Sockets {
        api: ground.listeners.sockets,
        metrics: ground.metrics,
    };
    let api = match core.serve_api(&args.http, sockets, &metrics, vec![worker.health()], leave) {
        Ok(api) => api,
        Err(error) => {
            worker.stop(Duration::ZERO).await;
            return Err(error);
        }
    };
    data.write_address(&url)?;
    let token_file = data.admin_token_file();
    let data_shown = args.place.data.as_path();
    let banner = Banner {
        url: &url,
        platform_url: &platform_url,
        token_file: ground.own_token.then_some(token_file.as_path()),
        data: (data_shown != Path::new(DEFAULT_DATA)).then_some(data_shown),
        warnings: &warnings,
    };
    print_line(&banner.text());
    Ok(Up {
        api,
        worker,
        grace: args.worker.grace.unwrap_or(WORKER_GRACE),
        core,
    })
}

/// Connects and brings the schema up to date.
async fn database(settings: &DatabaseSettings, own_postgres: bool) -> anyhow::Result<Pools> {
    let config = settings.config(&assembly::application("up"))?;
    if own_postgres {
        schema::create_database(&config.url)
            .await
            .context("cannot make the database in the private Postgres")?;
    }
    let pools = Pools::connect(&config).await?;
    schema::migrate(&pools.work)
        .await
        .context("the schema was not migrated")?;
    assembly::warn_of_too_many(&pools, settings.connections).await;
    Ok(pools)
}

/// Makes the API reachable from the workspace network and the reference image present. Answers what will not work: an
/// engine that is away or refuses takes workspaces with it, not the rest.
async fn use_engine(
    docker: &DockerAt,
    fleet: &mut FleetSettings,
    agent: Option<&Path>,
    listeners: &mut Listeners,
) -> anyhow::Result<Option<String>> {
    let agent = agent_binary(agent)?;
    let docker = match docker {
        DockerAt::Here(docker) => docker,
        DockerAt::Away(_, why) => return Ok(Some(without_engine("does not answer", why))),
    };
    match docker.network_gateway().await {
        Ok(Some(gateway)) => {
            listeners.also(gateway).await?;
            let address = SocketAddr::new(gateway, listeners.first()?.port());
            fleet
                .platform_url
                .get_or_insert_with(|| format!("http://{address}"));
        }
        Ok(None) => {}
        Err(error) => return Ok(Some(without_engine("refuses", &error.chain()))),
    }
    let Some(binary) = agent else {
        return Ok(Some(format!(
            "there is no reference agent beside this program (--agent-binary), so workspaces use the images of {}",
            fleet.image_prefix
        )));
    };
    let image = reference_image(&binary)?;
    fleet.default_images(&image);
    let imported = docker.ensure_reference_image(&image, &binary).await;
    Ok(imported
        .err()
        .map(|error| without_engine("refuses the reference image", &error.chain())))
}

/// What will not work for a hosted organisation.
fn without_control_plane(engines: &Engines, fleet: &FleetSettings) -> Option<String> {
    if engines.backends.remote.is_none() {
        return Some(
            "an organisation is set (LONGSHORE_ORG_ID) and no control plane that can be used (CP_PROVISION_URL): workspaces \
             will fail; everything else works"
                .to_owned(),
        );
    }
    fleet.platform_url.is_none().then(|| {
        "instances are not told an address that they can reach (PLATFORM_URL): their agents will not come online".to_owned()
    })
}

fn without_engine(what: &str, why: &str) -> String {
    format!(
        "Docker {what} ({why}): workspaces will fail until that is mended and `longshore up` is started again; \
         everything else works"
    )
}

/// Waits for a signal or the death of a part, then stops API and worker. Answers when stopping began.
async fn serve(up: Up, signals: &mut StopSignals) -> (anyhow::Result<Exit>, Stopwatch) {
    let Up {
        mut api,
        mut worker,
        grace,
        core,
    } = up;
    let ended = tokio::select! {
        signal = signals.next() => {
            tracing::info!(signal, "stopping; workspaces keep running");
            Ok(Exit::Done)
        }
        error = api.died() => Err(error),
        error = worker.died() => Err(error),
    };
    let stopping = Stopwatch::start();
    let leave = async {
        api.stop().await;
        worker.stop(grace).await;
    };
    tokio::select! {
        () = leave => {}
        () = tokio::time::sleep(STOP_LIMIT.saturating_sub(POSTGRES_LIMIT)) => {
            tracing::warn!("API and worker took too long to stop; the next start takes their jobs over");
        }
        signal = signals.next() => tracing::warn!(signal, "ending now"),
    }
    // Its admitter served both of them to the end.
    drop(core);
    (ended, stopping)
}

/// The reference agent: as named, which must exist, or beside this program, if it is there.
fn agent_binary(named: Option<&Path>) -> anyhow::Result<Option<PathBuf>> {
    if let Some(path) = named {
        anyhow::ensure!(
            path.is_file(),
            "the reference agent {} does not exist (--agent-binary)",
            path.display()
        );
        return Ok(Some(path.to_owned()));
    }
    let beside = std::env::current_exe()
        .ok()
        .and_then(|program| Some(program.parent()?.join("longshore-agent")));
    Ok(beside.filter(|path| path.is_file()))
}

/// Its image, named by its content: a changed agent is another image, and a pinned tag is never pulled.
fn reference_image(binary: &Path) -> anyhow::Result<String> {
    let bytes = std::fs::read(binary)
        .with_context(|| format!("cannot read the reference agent {}", binary.display()))?;
    let digest = hex::encode(longshore_base::secret::sha256(&bytes));
    Ok(format!("longshore/reference-agent:{}", &digest[..12]))
}
