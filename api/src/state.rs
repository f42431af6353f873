//! What handlers work with; made once, at start.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use longshore_backends::Backends;
use longshore_base::pools::Pools;
use longshore_events::{EventBus, Hub};
use longshore_fleet::Fleet;
use longshore_jobs::Agents;
use longshore_ledger::{Admitter, Kinds};
use metrics_exporter_prometheus::PrometheusHandle;
use poem::web::Data;
use sqlx::pool::PoolConnection;
use sqlx::{Postgres, Transaction};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::ApiConfig;
use crate::health::{Checked, HealthSource, WatchedEngine};
use crate::http_metrics::HttpMetrics;
use crate::problem::{ApiError, ApiResult};
use crate::rate_limit::RateLimiter;
use crate::wait_metrics::WaitMetrics;

/// The parts the API is joined from.
pub struct ApiParts {
    /// Settings.
    pub config: ApiConfig,
    /// Databases.
    pub pools: Pools,
    /// What is known of workspaces.
    pub fleet: Arc<Fleet>,
    /// The fan-out of events in this process.
    pub hub: Hub,
    /// The way to tell other processes.
    pub bus: EventBus,
    /// Told after a commit that enqueued something.
    pub admitter: Admitter,
    /// Every job kind; a cancel runs its kind's hooks.
    pub kinds: Kinds,
    /// Where containers are, for their logs.
    pub backends: Backends,
    /// The engine that `/readyz` looks at.
    pub engine: Option<WatchedEngine>,
    /// What renders the metrics of this process; without one only the HTTP families are shown.
    pub metrics: Option<PrometheusHandle>,
    /// Parts of this process that the API does not know of itself, for `/readyz`.
    pub health: Vec<Arc<dyn HealthSource>>,
}

/// The state as a parameter of an operation.
pub(crate) type Shared<'a> = Data<&'a Arc<ApiState>>;

/// All of it, with what the API itself keeps.
pub struct ApiState {
    pub(crate) config: ApiConfig,
    pub(crate) pools: Pools,
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) hub: Hub,
    pub(crate) bus: EventBus,
    pub(crate) admitter: Admitter,
    pub(crate) kinds: Kinds,
    pub(crate) backends: Backends,
    pub(crate) engine: Option<WatchedEngine>,
    pub(crate) metrics: Option<PrometheusHandle>,
    pub(crate) health: Vec<Arc<dyn HealthSource>>,
    pub(crate) http_metrics: Arc<HttpMetrics>,
    pub(crate) wait_metrics: WaitMetrics,
    pub(crate) limiter: RateLimiter,
    /// Of organisation tokens that are minted, by address.
    pub(crate) mint_limiter: RateLimiter,
    pub(crate) checked: Checked,
    pub(crate) agents: Agents,
    /// Sockets and forwarded messages, which outlive their request.
    pub(crate) tasks: TaskTracker,
    /// Ends streams when the server closes.
    pub(crate) closing: CancellationToken,
    draining: AtomicBool,
}

impl ApiState {
    /// Joins the parts.
    ///
    /// # Errors
    /// No HTTP client can be made for calls to agents.
    pub fn new(parts: ApiParts) -> Result<Arc<Self>, crate::StartError> {
        let ApiParts {
            config,
            pools,
            fleet,
            hub,
            bus,
            admitter,
            kinds,
            backends,
            engine,
            metrics,
            health,
        } = parts;
        Ok(Arc::new(Self {
            limiter: RateLimiter::new(config.rate_limit_per_minute),
            mint_limiter: crate::tokens::mint_limiter(),
            agents: Agents::new().map_err(crate::StartError::Client)?,
            checked: Checked::default(),
            config,
            pools,
            fleet,
            hub,
            bus,
            admitter,
            kinds,
            backends,
            engine,
            metrics,
            health,
            http_metrics: Arc::default(),
            wait_metrics: WaitMetrics::default(),
            tasks: TaskTracker::new(),
            closing: CancellationToken::new(),
            draining: AtomicBool::new(false),
        }))
    }

    /// Lets admission look at these queues now, and tells everybody of the events that were committed with them.
    pub(crate) fn poke(&self, queues: &[String]) {
        queues.iter().for_each(|queue| self.admitter.poke(queue));
        self.bus.poke();
    }

    /// From now on `/readyz` answers 503, so that balancers send nobody new.
    pub fn start_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// A connection to read with; `text` is what the client hears if there is none.
    pub(crate) async fn connection(
        &self,
        text: &'static str,
    ) -> ApiResult<PoolConnection<Postgres>> {
        self.pools
            .work
            .acquire()
            .await
            .map_err(|error| ApiError::database(error, text))
    }

    /// A transaction; `text` is what the client hears if there is none.
    pub(crate) async fn transaction(
        &self,
        text: &'static str,
    ) -> ApiResult<Transaction<'static, Postgres>> {
        self.pools
            .work
            .begin()
            .await
            .map_err(|error| ApiError::database(error, text))
    }
}
