//! The API of a process.

use std::time::Duration;

use longshore_api::{
    ApiConfig, ApiParts, ApiState, HealthSource, Leaving, Listeners, StartError, serve,
};
use longshore_events::Hub;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{Core, MetricsPage};
use crate::settings::http::HttpSettings;

/// How a stopping API leaves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Leave {
    /// Says so for this long first.
    pub(crate) notice: Duration,
    /// Then waits this long for requests under way.
    pub(crate) limit: Duration,
}

/// Where the API serves, and its metrics alone.
pub(crate) struct Sockets {
    pub(crate) api: Vec<TcpListener>,
    pub(crate) metrics: Option<TcpListener>,
}

/// An API that serves.
pub(crate) struct RunningApi {
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), StartError>>,
}

impl Core {
    /// Starts serving.
    pub(crate) fn serve_api(
        &self,
        settings: &HttpSettings,
        sockets: Sockets,
        metrics: &MetricsPage,
        health: Vec<std::sync::Arc<dyn HealthSource>>,
        leave: Leave,
    ) -> anyhow::Result<RunningApi> {
        let state = ApiState::new(ApiParts {
            config: self.api_config(settings),
            pools: self.pools.clone(),
            fleet: self.fleet.clone(),
            hub: Hub::start(self.pools.work.clone(), &self.bus),
            bus: self.bus.clone(),
            admitter: self.admitter.clone(),
            kinds: self.kinds.clone(),
            backends: self.backends.clone(),
            engine: self.engine.clone(),
            metrics: Some(metrics.0.clone()),
            health,
        })?;
        let shutdown = CancellationToken::new();
        let listeners = Listeners {
            api: sockets.api,
            metrics: sockets.metrics,
        };
        let leaving = Leaving {
            notice: leave.notice,
            limit: leave.limit,
        };
        let task = tokio::spawn(serve(state, listeners, shutdown.clone(), leaving));
        Ok(RunningApi { shutdown, task })
    }

    fn api_config(&self, settings: &HttpSettings) -> ApiConfig {
        ApiConfig {
            admin_token: self.security.admin_token.clone(),
            dev_mode: self.security.dev_mode,
            test_tokens: self.security.test_tokens,
            cors_origins: settings
                .cors_origins
                .iter()
                .map(|origin| origin.trim().to_owned())
                .collect(),
            rate_limit_per_minute: settings.rate_limit,
            trusted_proxies: settings.trusted_proxies.clone(),
            org_id: self.settings.org_id.clone(),
            trust_same_origin_canvas: settings.trust_same_origin_canvas
                && settings.canvas_proxy_url.is_some(),
            a2a_idle_timeout: settings.a2a_idle_timeout,
            idempotency_ttl: settings.idempotency_ttl,
            removal_wait: ApiConfig::DEFAULT_REMOVAL_WAIT,
            import_pace: self.settings.import_pace(),
            version: env!("CARGO_PKG_VERSION"),
            liveness_ttl: self.liveness_ttl,
        }
    }
}

impl RunningApi {
    /// Ends only if the API does, which it should not.
    pub(crate) async fn died(&mut self) -> anyhow::Error {
        match (&mut self.task).await {
            Ok(Ok(())) => anyhow::anyhow!("the API stopped by itself"),
            Ok(Err(error)) => anyhow::Error::new(error).context("the API stopped"),
            Err(error) => anyhow::Error::new(error).context("the API crashed"),
        }
    }

    /// Stops serving, as it was told to leave.
    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        if self.task.is_finished() {
            return;
        }
        match self.task.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the API did not stop cleanly"),
            Err(error) => tracing::error!(%error, "the API crashed while stopping"),
        }
    }
}
