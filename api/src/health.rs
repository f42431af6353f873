//! Is it alive, is it ready, what does it measure, and what can it do.

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use longshore_backends::{Backend, BackendError};
use longshore_base::Timestamp;
use longshore_base::clock::Stopwatch;
use longshore_ledger::ownership::list_reconcilers;
use poem_openapi::param::Query;
use poem_openapi::payload::{Html, Json, PlainText, Response};
use poem_openapi::{ApiResponse, Enum, Object, OpenApi};
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::auth::AdminAccess;
use crate::document::{Tag, explorer_page, openapi_document};
use crate::problem::ApiResult;
use crate::security_headers::DOCS_POLICY;
use crate::state::{ApiState, Shared};

/// A part that answers later than this is away.
const CHECK_BUDGET: Duration = Duration::from_secs(2);
/// The log is read each second; past this nobody follows it.
const TAIL_LIMIT: Duration = Duration::from_secs(10);

/// That the process runs.
#[derive(Object)]
pub(crate) struct Health {
    /// Always `ok`.
    status: String,
}

/// Whether requests should be sent here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
#[oai(rename_all = "lowercase")]
pub(crate) enum Readiness {
    /// All parts are well.
    Ready,
    /// Serving, though something is away.
    Degraded,
    /// Cannot serve.
    Unready,
    /// About to leave.
    Draining,
}

/// How a part is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
#[oai(rename_all = "snake_case")]
pub enum PartMode {
    /// Well.
    Up,
    /// Away.
    Down,
    /// This process has none.
    NotConfigured,
}

/// One part of this process.
#[derive(Clone, Debug, Object)]
pub struct PartHealth {
    /// Its name.
    pub name: String,
    /// How it is.
    pub mode: PartMode,
    /// Seconds since it changed to that, or since it was last heard; null where that is not known.
    #[oai(nullable)]
    pub age_seconds: Option<f64>,
    /// Why it is not well, where that is known.
    #[oai(skip_serializing_if_is_none)]
    pub detail: Option<String>,
}

/// A reconciler that does not do all it is there for. Why is for operators: `GET /reconcilers`.
#[derive(Clone, Debug, Object)]
pub(crate) struct IdleReconciler {
    name: String,
    scope: String,
    /// An operator has disabled it.
    disabled: bool,
    /// It would destroy more than it may.
    blocked: bool,
    /// When it was disabled.
    #[oai(nullable)]
    since: Option<Timestamp>,
}

/// Parts that the API does not know of itself: those of a worker in the same process, for one.
pub trait HealthSource: Send + Sync {
    /// How they are now. Asked by every `/readyz`, so it must not wait.
    fn parts(&self) -> Vec<PartHealth>;
}

/// The container engine whose health is told. It may be one that the backends of this process lack, because it was away
/// when the process started.
#[derive(Clone)]
pub struct WatchedEngine {
    /// The engine.
    pub backend: Arc<dyn Backend>,
    /// Where it is looked for, in words that anybody may read.
    pub address: String,
}

/// Whether this process is ready.
#[derive(Object)]
pub(crate) struct ReadyReport {
    status: Readiness,
    /// Names of the parts that are away.
    degraded: Vec<String>,
    /// Every part; with `verbose` only.
    #[oai(skip_serializing_if_is_none)]
    parts: Option<Vec<PartHealth>>,
    /// Reconcilers that an operator has disabled, and those that hold back; with `verbose` only.
    #[oai(skip_serializing_if_is_none)]
    reconcilers: Option<Vec<IdleReconciler>>,
    /// Version of the binary; with `verbose` only.
    #[oai(skip_serializing_if_is_none)]
    version: Option<String>,
}

#[derive(ApiResponse)]
pub(crate) enum ReadyResponse {
    /// Requests are served.
    #[oai(status = 200)]
    Ready(Json<ReadyReport>),
    /// Send nothing here.
    #[oai(status = 503)]
    NotReady(Json<ReadyReport>),
}

#[derive(ApiResponse)]
pub(crate) enum MetricsResponse {
    /// Prometheus' text form.
    #[oai(
        status = 200,
        content_type = "text/plain; version=0.0.4; charset=utf-8"
    )]
    Metrics(PlainText<String>),
}

pub(crate) struct HealthApi;

#[OpenApi(tag = "Tag::System")]
impl HealthApi {
    /// Says that the process runs.
    #[oai(path = "/health", method = "get", operation_id = "get_health")]
    async fn get_health(&self) -> Json<Health> {
        Json(ok())
    }

    /// Says that the process runs, whatever its dependencies do.
    #[oai(path = "/livez", method = "get", operation_id = "get_liveness")]
    async fn get_liveness(&self) -> Json<Health> {
        Json(ok())
    }

    /// Says whether requests should be sent here: while Postgres answers and no shutdown has begun.
    #[oai(path = "/readyz", method = "get", operation_id = "get_readiness")]
    async fn get_readiness(
        &self,
        state: Shared<'_>,
        /// Lists every part; give it without a value, or as `true`.
        verbose: Query<Option<String>>,
    ) -> ReadyResponse {
        let verbose = verbose
            .0
            .is_some_and(|value| value != "false" && value != "0");
        readiness(&state, verbose).await
    }

    /// Shows what this process measures.
    #[oai(path = "/metrics", method = "get", operation_id = "get_metrics")]
    async fn get_metrics(
        &self,
        _access: AdminAccess,
        state: Shared<'_>,
    ) -> ApiResult<MetricsResponse> {
        let text = render_metrics(&state).await;
        Ok(MetricsResponse::Metrics(PlainText(text)))
    }

    /// Describes this API.
    #[oai(
        path = "/openapi.json",
        method = "get",
        operation_id = "get_openapi_document"
    )]
    async fn get_openapi_document(&self) -> DocumentResponse {
        DocumentResponse::Document(PlainText(openapi_document()))
    }

    /// Shows the description of this API as a page to try it from.
    #[oai(path = "/docs", method = "get", operation_id = "get_explorer_page")]
    async fn get_explorer_page(&self) -> Response<Html<String>> {
        Response::new(Html(explorer_page())).header("content-security-policy", DOCS_POLICY)
    }
}

#[derive(ApiResponse)]
pub(crate) enum DocumentResponse {
    /// An OpenAPI 3.0 document.
    #[oai(status = 200, content_type = "application/json")]
    Document(PlainText<String>),
}

/// Everything this process measures, in Prometheus' text form.
pub(crate) async fn render_metrics(state: &ApiState) -> String {
    let mut text = state
        .metrics
        .as_ref()
        .map(metrics_exporter_prometheus::PrometheusHandle::render)
        .unwrap_or_default();
    text.push_str(&state.http_metrics.render());
    text.push_str(&state.wait_metrics.render(state).await);
    text
}

fn ok() -> Health {
    Health {
        status: "ok".to_owned(),
    }
}

async fn readiness(state: &ApiState, verbose: bool) -> ReadyResponse {
    let reconcilers = async {
        if verbose {
            state.checked.reconcilers.or(list_idle(state)).await
        } else {
            None
        }
    };
    let (parts, reconcilers) = tokio::join!(state.checked.parts.or(check(state)), reconcilers);
    let degraded: Vec<String> = parts
        .iter()
        .filter(|part| part.mode != PartMode::Up)
        .map(|part| part.name.clone())
        .collect();
    let postgres_away = degraded.iter().any(|name| name == POSTGRES);
    let status = if state.is_draining() {
        Readiness::Draining
    } else if postgres_away {
        Readiness::Unready
    } else if degraded.is_empty() {
        Readiness::Ready
    } else {
        Readiness::Degraded
    };
    let report = Json(ReadyReport {
        status,
        degraded,
        parts: verbose.then_some(parts),
        reconcilers,
        version: verbose.then(|| state.config.version.to_owned()),
    });
    match status {
        Readiness::Ready | Readiness::Degraded => ReadyResponse::Ready(report),
        Readiness::Unready | Readiness::Draining => ReadyResponse::NotReady(report),
    }
}

const POSTGRES: &str = "postgres";
/// For how long a look at the parts is good.
const CHECK_TTL: Duration = Duration::from_millis(250);

/// The last look at something. The route is open and unlimited, and a look costs a connection that beats need: so one at
/// a time looks, and not more often than this.
struct LastLook<T>(Mutex<Option<(Stopwatch, T)>>);

impl<T> Default for LastLook<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Clone> LastLook<T> {
    async fn or(&self, look: impl Future<Output = T>) -> T {
        let mut last = self.0.lock().await;
        if let Some((since, seen)) = &*last
            && since.elapsed() < CHECK_TTL
        {
            return seen.clone();
        }
        let seen = look.await;
        *last = Some((Stopwatch::start(), seen.clone()));
        seen
    }
}

/// The last looks at the parts and, for those who want it verbose, at the reconcilers: `None` while the database does not
/// say.
#[derive(Default)]
pub(crate) struct Checked {
    parts: LastLook<Vec<PartHealth>>,
    reconcilers: LastLook<Option<Vec<IdleReconciler>>>,
}

async fn check(state: &ApiState) -> Vec<PartHealth> {
    // The control pool: a work pool that is merely busy does not make the process unready.
    let database = longshore_base::clock::now(&state.pools.control);
    let (database, engine) = tokio::join!(timeout(CHECK_BUDGET, database), check_engine(state));
    let link = state.bus.health();
    let hub = state.hub.health();
    let part = |name: &str, mode, age: Option<Duration>| PartHealth {
        name: name.to_owned(),
        mode,
        age_seconds: age.map(|age| age.as_secs_f64()),
        detail: None,
    };
    let mut parts = vec![
        part(POSTGRES, mode(matches!(database, Ok(Ok(_)))), None),
        part("redis", mode(link.up), Some(link.since)),
        part(
            "event_listener",
            mode(hub.listener.up),
            Some(hub.listener.since),
        ),
        part(
            "event_tailer",
            mode(hub.tail_age.is_some_and(|age| age < TAIL_LIMIT)),
            hub.tail_age,
        ),
        engine,
    ];
    parts.extend(state.health.iter().flat_map(|source| source.parts()));
    parts
}

async fn list_idle(state: &ApiState) -> Option<Vec<IdleReconciler>> {
    let read = async {
        let mut conn = state.pools.control.acquire().await.ok()?;
        list_reconcilers(&mut conn, None, None).await.ok()
    };
    let all = timeout(CHECK_BUDGET, read).await.ok().flatten()?;
    let idle = all
        .into_iter()
        .filter(|row| !row.enabled || row.blocked.is_some());
    let idle = idle.map(|row| IdleReconciler {
        name: row.name,
        scope: row.scope,
        disabled: !row.enabled,
        blocked: row.blocked.is_some(),
        since: row.changed_at.filter(|_| !row.enabled),
    });
    Some(idle.collect())
}

/// The engine as it is now. Without one no workspace can run, so a process that has none is degraded as well.
async fn check_engine(state: &ApiState) -> PartHealth {
    let (mode, detail) = match &state.engine {
        _ if state.backends.remote_org => return control_plane(state),
        None => (
            PartMode::NotConfigured,
            Some("this process has no container engine: no workspace can run".to_owned()),
        ),
        Some(engine) => match why_away(state, engine).await {
            None => (PartMode::Up, None),
            Some(why) => (PartMode::Down, Some(why)),
        },
    };
    PartHealth {
        name: "container_engine".to_owned(),
        mode,
        age_seconds: None,
        detail,
    }
}

/// A control plane is not asked how it is; that one is configured is all that can be told.
fn control_plane(state: &ApiState) -> PartHealth {
    let (mode, detail) = match &state.backends.remote {
        Some(_) => (PartMode::Up, None),
        None => (
            PartMode::NotConfigured,
            Some("a hosted organisation is configured (LONGSHORE_ORG_ID), and no control plane that can be used (CP_PROVISION_URL): no workspace can run".to_owned()),
        ),
    };
    PartHealth {
        name: "control_plane".to_owned(),
        mode,
        age_seconds: None,
        detail,
    }
}

/// What keeps workspaces from running there, if anything does.
async fn why_away(state: &ApiState, engine: &WatchedEngine) -> Option<String> {
    let address = &engine.address;
    match timeout(CHECK_BUDGET, engine.backend.check()).await {
        Ok(Ok(())) if state.backends.choose().is_ok() => None,
        Ok(Ok(())) => Some(format!(
            "the container engine at {address} answers, but did not when this process started: start it again"
        )),
        Ok(Err(error)) => Some(format!("looked for at {address}: {}", public_cause(&error))),
        Err(_) => Some(format!(
            "looked for at {address}: no answer within {} s",
            CHECK_BUDGET.as_secs()
        )),
    }
}

/// What anybody may read of the error: its fact and the kind of failure below it, no paths and no words of the engine.
fn public_cause(error: &BackendError) -> String {
    let mut kind = None;
    let mut cause = error.source();
    while let Some(below) = cause {
        kind = below.downcast_ref().map(std::io::Error::kind).or(kind);
        cause = below.source();
    }
    kind.map_or_else(|| error.to_string(), |kind| format!("{error}: {kind}"))
}

const fn mode(up: bool) -> PartMode {
    if up { PartMode::Up } else { PartMode::Down }
}
