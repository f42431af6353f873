//! One server per test, on a port of its own, and callers that go through HTTP. What writes rows directly says so.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use longshore_api::{
    ApiConfig, ApiParts, ApiState, Leaving, Listeners, StartError, WatchedEngine, serve,
};
use longshore_backends::Backends;
use longshore_base::clock::Stopwatch;
use longshore_base::pools::Pools;
use longshore_base::redact::Redactor;
use longshore_base::schema::MIGRATOR;
use longshore_base::testing::TestDatabase;
use longshore_base::{JobId, Secret, WorkspaceId, ids};
use longshore_events::{EventBus, EventsConfig, Hub};
use longshore_fleet::restarting::RestartBudget;
use longshore_fleet::secrets::Sealer;
use longshore_fleet::status::WorkspaceStatus;
use longshore_fleet::workspace::{NewWorkspace, create_workspace};
use longshore_fleet::{DeployMode, Fleet, FleetConfig, tokens};
use longshore_jobs::import::ImportPace;
use longshore_ledger::{Admitter, HintConfig, Hints, KindSpec, Kinds, NewJob, enqueue};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(crate) const ADMIN: &str = "the-admin-token-of-this-test-installation";
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);
pub(crate) const CANVAS_ORIGIN: &str = "http://localhost:3000";

pub(crate) struct TestApp {
    pub(crate) address: String,
    pub(crate) database: TestDatabase,
    pub(crate) state: Arc<ApiState>,
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) bus: EventBus,
    pub(crate) hub: Hub,
    pub(crate) shutdown: CancellationToken,
    pub(crate) server: JoinHandle<Result<(), StartError>>,
    pub(crate) metrics_address: String,
    client: Client,
}

/// What a test may want otherwise.
pub(crate) struct Options {
    pub(crate) api: ApiConfig,
    pub(crate) fleet: FleetConfig,
    pub(crate) backends: Backends,
    pub(crate) engine: Option<WatchedEngine>,
    pub(crate) redis_url: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            api: ApiConfig {
                admin_token: Some(Secret::from(ADMIN)),
                dev_mode: false,
                test_tokens: false,
                cors_origins: vec![CANVAS_ORIGIN.to_owned()],
                rate_limit_per_minute: 100_000,
                trusted_proxies: Vec::new(),
                org_id: None,
                trust_same_origin_canvas: false,
                a2a_idle_timeout: Duration::from_secs(5),
                idempotency_ttl: ApiConfig::DEFAULT_IDEMPOTENCY_TTL,
                removal_wait: Duration::from_millis(50),
                import_pace: ImportPace::DEFAULT,
                version: "test",
                liveness_ttl: EventsConfig::DEFAULT_LIVENESS_TTL,
            },
            fleet: FleetConfig {
                max_tier: 2,
                configs_dir: None,
                manifest_path: None,
                dev_mode: false,
                deploy_mode: DeployMode::SelfHosted,
                in_docker: false,
                platform_url: "http://platform:8080".to_owned(),
                external_platform_url: None,
                awareness_url: None,
                workspace_dir: None,
                agent_git_email_domain: None,
                image_prefix: "registry.test/owner".to_owned(),
                runtime_images: BTreeMap::new(),
                image_local_override: false,
                provision_timeout: None,
                auto_restart: RestartBudget::DEFAULT,
            },
            backends: Backends::default(),
            engine: None,
            redis_url: None,
        }
    }
}

impl Options {
    pub(crate) fn dev_mode(mut self) -> Self {
        self.api.dev_mode = true;
        self.api.admin_token = None;
        self.fleet.dev_mode = true;
        self
    }
}

impl TestApp {
    pub(crate) async fn start() -> Self {
        Self::with(Options::default()).await
    }

    pub(crate) async fn with(options: Options) -> Self {
        // Another test of this process may have been first.
        rustls::crypto::ring::default_provider()
            .install_default()
            .unwrap_or(());
        let Options {
            api,
            fleet,
            backends,
            engine,
            redis_url,
        } = options;
        let database = TestDatabase::create(&MIGRATOR).await;
        let redis_url = redis_url.unwrap_or_else(|| {
            std::env::var("TEST_REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1:63790".to_owned())
        });
        let prefix = format!("{}:", ids::random_uuid());
        let bus = EventBus::connect(EventsConfig {
            redis_url: Secret::new(redis_url.clone()),
            redis_prefix: prefix.clone(),
            liveness_ttl: EventsConfig::DEFAULT_LIVENESS_TTL,
        })
        .unwrap();
        let keys = Sealer::from_settings(Some("0123456789abcdef0123456789abcdef"), None).unwrap();
        let fleet = Arc::new(Fleet::load(fleet, keys, Redactor::default(), bus.clone()));
        let hub = Hub::start(database.pool().clone(), &bus);
        let hints = Hints::new(&HintConfig {
            url: Secret::new(redis_url),
            prefix,
        })
        .unwrap();
        let shutdown = CancellationToken::new();
        let admitter = Admitter::new(database.pool().clone(), hints, shutdown.clone());
        let state = ApiState::new(ApiParts {
            config: api,
            pools: Pools {
                control: database.pool().clone(),
                work: database.pool().clone(),
            },
            fleet: fleet.clone(),
            hub: hub.clone(),
            bus: bus.clone(),
            admitter,
            kinds: kinds(),
            backends,
            engine,
            metrics: None,
            health: Vec::new(),
        })
        .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let metrics = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let metrics_address = format!("http://{}", metrics.local_addr().unwrap());
        let server = tokio::spawn(serve(
            state.clone(),
            Listeners {
                api: vec![listener],
                metrics: Some(metrics),
            },
            shutdown.clone(),
            Leaving {
                notice: Duration::ZERO,
                limit: Duration::from_secs(5),
            },
        ));
        Self {
            address,
            database,
            state,
            fleet,
            bus,
            hub,
            shutdown,
            server,
            metrics_address,
            client: Client::builder().no_proxy().build().unwrap(),
        }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.address)
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, self.url(path))
    }

    /// As nobody.
    pub(crate) fn get(&self, path: &str) -> RequestBuilder {
        self.request(Method::GET, path)
    }

    /// As nobody.
    pub(crate) fn post(&self, path: &str, body: &Value) -> RequestBuilder {
        self.request(Method::POST, path).json(body)
    }

    /// As the admin.
    pub(crate) fn admin(&self, method: Method, path: &str) -> RequestBuilder {
        self.request(method, path).bearer_auth(ADMIN)
    }

    /// Creates a workspace through the API.
    pub(crate) async fn create(&self, body: Value) -> Value {
        let answer = self
            .admin(Method::POST, "/workspaces")
            .json(&body)
            .send()
            .await
            .unwrap();
        expect(answer, StatusCode::CREATED).await
    }

    /// A workspace with a live token, written without the API and without a job.
    pub(crate) async fn insert_agent(&self, new: NewWorkspace) -> Agent {
        let mut tx = self.database.pool().begin().await.unwrap();
        let workspace = create_workspace(&mut tx, &self.fleet, new).await.unwrap();
        let token = tokens::issue(&mut tx, workspace.id).await.unwrap();
        tx.commit().await.unwrap();
        Agent {
            id: workspace.id,
            token: token.expose().clone(),
        }
    }

    pub(crate) async fn insert_named(&self, name: &str) -> Agent {
        self.insert_agent(named(name)).await
    }

    pub(crate) async fn insert_child(&self, name: &str, parent: WorkspaceId) -> Agent {
        self.insert_agent(NewWorkspace {
            parent_id: Some(parent.to_string()),
            ..named(name)
        })
        .await
    }

    /// An organisation's token, minted without the API.
    pub(crate) async fn insert_org_token(&self) -> String {
        let mut conn = self.database.pool().acquire().await.unwrap();
        let (_, token) = tokens::mint_org_token(&mut conn, Some("test"), "test", None)
            .await
            .unwrap();
        token.expose().clone()
    }

    /// A job that nobody runs, written without the API.
    pub(crate) async fn insert_job(&self, workspace_id: Option<WorkspaceId>) -> JobId {
        let mut tx = self.database.pool().begin().await.unwrap();
        let enqueued = enqueue(
            &mut tx,
            NewJob {
                kind: "rest",
                queue: "rest".to_owned(),
                tenant: "tenant".to_owned(),
                workspace_id,
                keys: Vec::new(),
                dedupe_key: None,
                args: json!({}),
                args_version: 1,
                priority: 0,
                delay: Duration::from_secs(3600),
                deadline: Duration::from_secs(7200),
                max_attempts: 3,
                created_by: "test".to_owned(),
            },
        )
        .await
        .unwrap();
        tx.commit().await.unwrap();
        enqueued.job_id
    }

    /// A worker that reads a queue and runs nothing, written without the API.
    pub(crate) async fn insert_worker(&self, name: &str, queue: &str) {
        sqlx::query(
            "INSERT INTO workers (name, host, version, kinds, queues, engine_id, slots) VALUES ($1, 'host', 'test', '[]', ARRAY[$2], 'engine-1', 4)",
        )
        .bind(name)
        .bind(queue)
        .execute(self.database.pool())
        .await
        .unwrap();
    }

    /// Puts a workspace into a status, without the API.
    pub(crate) async fn set_status(&self, id: WorkspaceId, status: WorkspaceStatus) {
        sqlx::query("UPDATE workspaces SET status = $2 WHERE id = $1")
            .bind(id)
            .bind(status)
            .execute(self.database.pool())
            .await
            .unwrap();
    }

    /// Tells a workspace's agent to be at a URL, without the API.
    pub(crate) async fn set_url(&self, id: WorkspaceId, url: &str) {
        sqlx::query("UPDATE workspaces SET url = $2 WHERE id = $1")
            .bind(id)
            .bind(url)
            .execute(self.database.pool())
            .await
            .unwrap();
    }

    /// How many rows a table has.
    pub(crate) async fn count(&self, table: &str) -> i64 {
        let sql = sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {table}"));
        sqlx::query_scalar(sql)
            .fetch_one(self.database.pool())
            .await
            .unwrap()
    }

    /// Waits until this process follows the log and hears Redis.
    pub(crate) async fn events_flow(&self) {
        until("events to flow", || {
            let health = self.hub.health();
            health.tail_age.is_some() && health.listener.up && self.bus.health().up
        })
        .await;
    }
}

/// The kinds of every process, and that of the jobs which tests write without the API.
fn kinds() -> Kinds {
    let real = longshore_jobs::kinds(longshore_jobs::JobsConfig {
        provision_concurrency: 2,
        restart_concurrency: 2,
        provision_limit: std::time::Duration::from_secs(480),
    });
    real.with(KindSpec {
        name: "rest",
        args_versions: &[1],
        policy: longshore_jobs::stop::POLICY,
        hooks: None,
    })
}

impl Drop for TestApp {
    fn drop(&mut self) {
        self.shutdown.cancel();
        self.server.abort();
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Agent {
    pub(crate) id: WorkspaceId,
    pub(crate) token: String,
}

pub(crate) fn named(name: &str) -> NewWorkspace {
    NewWorkspace {
        name: name.to_owned(),
        ..NewWorkspace::default()
    }
}

/// The body of an answer that must have this status.
pub(crate) async fn expect(answer: Response, status: StatusCode) -> Value {
    let got = answer.status();
    let text = answer.text().await.unwrap();
    assert_eq!(got, status, "{text}");
    serde_json::from_str(&text).unwrap_or_else(|_| panic!("not JSON: {text}"))
}

/// The text of an error that must have this status and the form of all errors.
pub(crate) async fn expect_error(answer: Response, status: StatusCode) -> String {
    let content_type = answer.headers()["content-type"]
        .to_str()
        .unwrap()
        .to_owned();
    let body = expect(answer, status).await;
    assert_eq!(content_type, "application/problem+json");
    assert_eq!(body["type"], "about:blank");
    assert!(
        body["title"].is_string() && body["detail"].is_string(),
        "{body}"
    );
    body["error"].as_str().unwrap().to_owned()
}

pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) {
    let started = Stopwatch::start();
    while !condition() {
        assert!(started.elapsed() < DEADLINE, "waited too long for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
