//! The control plane of one test.

use std::collections::BTreeMap;
use std::process::Output;
use std::time::Duration;

use longshore_base::random;
use longshore_base::schema::MIGRATOR;
use longshore_base::secret::sha256;
use longshore_base::testing::TestDatabase;
use serde_json::{Value, json};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tempfile::TempDir;
use uuid::Uuid;

use crate::caller::{Caller, client};
use crate::engine::Engine;
use crate::process::Process;
use crate::programs::longshore;
use crate::servers::{OwnPostgres, OwnRedis};
use crate::wait::{PATIENCE, wait_until};

/// The default of `TEST_REDIS_URL`.
const REDIS: &str = "redis://127.0.0.1:63790";
/// The runtimes that the reference agent stands in for.
const RUNTIMES: [&str; 4] = ["claude-code", "hermes", "openclaw", "codex"];
/// Jobs under way may take this long to end after a test has seen what it wanted.
const JOBS_END: Duration = Duration::from_secs(20);

/// How a [`TestApp`] is to be.
pub struct Builder {
    docker: bool,
    own_redis: bool,
    own_postgres: bool,
    workers: Vec<NewWorker>,
    settings: Vec<(String, String)>,
    api_settings: Vec<(String, String)>,
}

/// How a worker process is to be.
#[derive(Clone, Default)]
pub struct NewWorker {
    settings: Vec<(String, String)>,
    elsewhere: bool,
}

enum Database {
    Shared(Box<TestDatabase>),
    Own(OwnPostgres, PgPool),
}

enum Redis {
    Shared(String),
    Own(OwnRedis),
}

/// A control plane: an API process, workers, and everything below them. Gone when dropped.
pub struct TestApp {
    /// The API process.
    pub api: Process,
    /// The workers it was built with; more come from [`TestApp::start_worker`].
    pub workers: Vec<Process>,
    /// The engine, where the test has one.
    engine: Option<Engine>,
    redis: Redis,
    redis_prefix: String,
    settings: BTreeMap<String, String>,
    api_settings: Vec<(String, String)>,
    admin_token: String,
    http: reqwest::Client,
    port: u16,
    processes: usize,
    jobs_may_stay: bool,
    database: Database,
    place: TempDir,
}

impl NewWorker {
    /// Does this at a fail point: `die`, `stop`, `sleep:MS` or `gate:PATH`.
    #[must_use]
    pub fn failpoint(self, point: &str, action: &str) -> Self {
        self.setting("LONGSHORE_FAILPOINTS", &format!("{point}={action}"))
    }

    /// A setting of this worker alone.
    #[must_use]
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With another engine than the machine's, or none: its start does not wait for the engine to be known.
    #[must_use]
    pub fn on_engine(mut self, host: &str) -> Self {
        self.elsewhere = true;
        self.setting("DOCKER_HOST", host)
    }
}

impl Builder {
    /// Without the machine's Docker engine, and without workers.
    #[must_use]
    pub fn without_docker(mut self) -> Self {
        self.docker = false;
        self.workers.clear();
        self
    }

    /// With a Redis that only this test uses, so it can be stopped.
    #[must_use]
    pub fn own_redis(mut self) -> Self {
        self.own_redis = true;
        self
    }

    /// With a Postgres that only this test uses, so it can be restarted.
    #[must_use]
    pub fn own_postgres(mut self) -> Self {
        self.own_postgres = true;
        self
    }

    /// With exactly these workers, started one after the other.
    #[must_use]
    pub fn workers(mut self, workers: impl IntoIterator<Item = NewWorker>) -> Self {
        self.workers = workers.into_iter().collect();
        self
    }

    /// A setting of all processes.
    #[must_use]
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A setting of the API alone.
    #[must_use]
    pub fn api_setting(mut self, name: &str, value: &str) -> Self {
        self.api_settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts it all and waits until it serves.
    pub async fn start(self) -> TestApp {
        let place = tempfile::tempdir().unwrap();
        let redis = if self.own_redis {
            Redis::Own(OwnRedis::start().await)
        } else {
            Redis::Shared(std::env::var("TEST_REDIS_URL").unwrap_or_else(|_| REDIS.to_owned()))
        };
        let database = if self.own_postgres {
            Database::own().await
        } else {
            Database::Shared(Box::new(TestDatabase::create(&MIGRATOR).await))
        };
        let installation = write_installation_directly(database.pool()).await;
        let engine = if self.docker {
            Some(Engine::prepare(installation).await)
        } else {
            None
        };
        let admin_token = random::token();
        let redis_prefix = format!("test:{}:", installation.simple());
        let mut settings = BTreeMap::from([
            ("DATABASE_URL".to_owned(), database.url()),
            ("REDIS_URL".to_owned(), redis.url()),
            ("LONGSHORE_REDIS_PREFIX".to_owned(), redis_prefix.clone()),
            ("ADMIN_TOKEN".to_owned(), admin_token.clone()),
            ("SECRETS_ENCRYPTION_KEY".to_owned(), sealing_key()),
        ]);
        let common = [
            ("LONGSHORE_METRICS_LISTEN", "none"),
            ("LONGSHORE_DATABASE_CONNECTIONS", "10"),
            ("LONGSHORE_LOG", "info"),
            ("LONGSHORE_LOG_FORMAT", "json"),
            ("LONGSHORE_IN_DOCKER", "false"),
            ("LONGSHORE_DOCKER_NETWORK", Engine::network()),
            ("RATE_LIMIT", "1000000"),
        ];
        settings.extend(common.map(|(name, value)| (name.to_owned(), value.to_owned())));
        if let Some(engine) = &engine {
            let images = RUNTIMES.map(|runtime| format!("{runtime}={}", engine.image));
            settings.insert("LONGSHORE_RUNTIME_IMAGES".to_owned(), images.join(","));
        } else {
            let nowhere = format!("unix://{}/no-docker.sock", place.path().display());
            settings.insert("DOCKER_HOST".to_owned(), nowhere);
        }
        settings.extend(self.settings);
        let (api, port) = launch_api(&settings, &self.api_settings, 0, &place, "api").await;
        if let Some(engine) = &engine {
            let platform = format!("http://{}:{port}", engine.gateway);
            settings
                .entry("PLATFORM_URL".to_owned())
                .or_insert(platform);
        }
        let mut app = TestApp {
            api,
            workers: Vec::new(),
            engine,
            redis,
            redis_prefix,
            settings,
            api_settings: self.api_settings,
            admin_token,
            http: client(),
            port,
            processes: 0,
            jobs_may_stay: false,
            database,
            place,
        };
        for worker in self.workers {
            let worker = app.start_worker(worker).await;
            app.workers.push(worker);
        }
        app
    }
}

impl TestApp {
    /// The ordinary one: an API process, a worker, the machine's Docker engine, the shared Postgres and Redis.
    #[must_use]
    pub fn build() -> Builder {
        Builder {
            docker: true,
            own_redis: false,
            own_postgres: false,
            workers: vec![NewWorker::default()],
            settings: Vec::new(),
            api_settings: Vec::new(),
        }
    }

    /// The ordinary one, started.
    pub async fn start() -> Self {
        Self::build().start().await
    }

    // --- processes --------------------------------------------------------------------------------------------------

    /// Starts one more worker and waits until it takes jobs.
    pub async fn start_worker(&mut self, new: NewWorker) -> Process {
        self.processes += 1;
        let mut command = longshore();
        command
            .arg("worker")
            .envs(&self.settings)
            .envs(new.settings)
            .current_dir(self.place.path());
        let name = format!("worker-{}", self.processes);
        let mut worker = Process::start(&name, &mut command, self.place.path());
        let named = format!("%-{}-%", worker.pid());
        let knows_engine = self.engine.is_some() && !new.elsewhere;
        let pool = self.database.pool();
        let process = std::cell::RefCell::new(&mut worker);
        wait_until("the worker to register", PATIENCE, || {
            let status = process.borrow_mut().status();
            let named = named.clone();
            async move {
                if let Some(status) = status {
                    panic!("the worker did not start: {status}");
                }
                let found: Option<Option<String>> =
                    sqlx::query_scalar("SELECT engine_id FROM workers WHERE name LIKE $1")
                        .bind(named)
                        .fetch_optional(pool)
                        .await
                        .map_err(|error| error.to_string())?;
                match found {
                    Some(Some(_)) => Ok(()),
                    Some(None) if !knows_engine => Ok(()),
                    Some(None) => Err("it does not know its engine".to_owned()),
                    None => Err("it has no row".to_owned()),
                }
            }
        })
        .await;
        worker
    }

    /// Starts an API process again, at the port of the one before, which must have ended.
    pub async fn start_api_again(&mut self) {
        self.processes += 1;
        let name = format!("api-{}", self.processes);
        let settings = [];
        let (api, _) = launch_api(&self.settings, &settings, self.port, &self.place, &name).await;
        self.api = api;
    }

    /// Starts one more API process, at a port of its own; answers it and an admin's way to it.
    pub async fn start_another_api(&mut self) -> (Process, Caller) {
        self.processes += 1;
        let name = format!("api-{}", self.processes);
        let (api, port) =
            launch_api(&self.settings, &self.api_settings, 0, &self.place, &name).await;
        let base = format!("http://127.0.0.1:{port}");
        let caller = Caller::new(self.http.clone(), &base, Some(&self.admin_token));
        (api, caller)
    }

    /// Runs an operator's command against the API, as the admin.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Output {
        self.command_of(arguments, Some(&self.admin_token))
    }

    /// The same with another token, or none.
    #[must_use]
    pub fn command_of(&self, arguments: &[&str], token: Option<&str>) -> Output {
        let mut command = longshore();
        command
            .args(arguments)
            .env("LONGSHORE_URL", self.base())
            .current_dir(self.place.path());
        if let Some(token) = token {
            command.env("LONGSHORE_TOKEN", token);
        }
        command.output().unwrap()
    }

    /// A path of this test's own directory.
    #[must_use]
    pub fn path(&self, name: &str) -> String {
        self.place.path().join(name).display().to_string()
    }

    // --- what is below ----------------------------------------------------------------------------------------------

    /// The engine of the machine.
    #[must_use]
    pub fn engine(&self) -> &Engine {
        self.engine.as_ref().expect("built with Docker")
    }

    /// The Redis of this test alone.
    pub fn redis(&mut self) -> &mut OwnRedis {
        match &mut self.redis {
            Redis::Own(redis) => redis,
            Redis::Shared(_) => panic!("not built with a Redis of its own"),
        }
    }

    /// The Postgres of this test alone.
    pub fn postgres(&mut self) -> &mut OwnPostgres {
        match &mut self.database {
            Database::Own(postgres, _) => postgres,
            Database::Shared(_) => panic!("not built with a Postgres of its own"),
        }
    }

    /// The database, for reading what no answer tells.
    #[must_use]
    pub fn pool(&self) -> &PgPool {
        self.database.pool()
    }

    /// Moves the clock of everything forward.
    pub async fn advance(&self, by: Duration) {
        match &self.database {
            Database::Shared(database) => database.advance(by).await,
            Database::Own(..) => panic!("the clock is moved in shared databases only"),
        }
    }

    /// This test ends with jobs that nobody will run.
    pub fn abandon_jobs(&mut self) {
        self.jobs_may_stay = true;
    }

    // --- callers ----------------------------------------------------------------------------------------------------

    /// Where the API answers.
    #[must_use]
    pub fn base(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The operator.
    #[must_use]
    pub fn admin(&self) -> Caller {
        self.with_token(Some(&self.admin_token))
    }

    /// Somebody without a credential.
    #[must_use]
    pub fn nobody(&self) -> Caller {
        self.with_token(None)
    }

    /// Somebody with this token, whatever it is worth.
    #[must_use]
    pub fn with_token(&self, token: Option<&str>) -> Caller {
        Caller::new(self.http.clone(), &self.base(), token)
    }

    /// The agent of a workspace: with the token that is in its container.
    pub async fn agent(&self, workspace: &str) -> Caller {
        let containers = self.engine().containers_of(workspace).await;
        assert_eq!(containers.len(), 1, "{containers:?}");
        let token = self.engine().token_in(&containers[0].id).await;
        self.with_token(Some(&token))
    }

    /// An organisation's token. Written as a row: no route mints one.
    pub async fn write_org_token_directly(&self) -> Caller {
        let token = random::token();
        sqlx::query(
            "INSERT INTO org_api_tokens (token_hash, prefix, name) VALUES ($1, $2, 'test')",
        )
        .bind(&sha256(token.as_bytes())[..])
        .bind(&token[..8])
        .execute(self.pool())
        .await
        .unwrap();
        self.with_token(Some(&token))
    }

    /// Puts a workspace into a status that no route leads to.
    pub async fn write_status_directly(&self, workspace: &str, status: &str) {
        sqlx::query("UPDATE workspaces SET status = $2::workspace_status WHERE id = $1::uuid")
            .bind(workspace)
            .bind(status)
            .execute(self.pool())
            .await
            .unwrap();
    }

    /// Revokes a workspace's tokens.
    pub async fn write_revocation_directly(&self, workspace: &str) {
        sqlx::query("UPDATE workspace_auth_tokens SET revoked_at = longshore_now() WHERE workspace_id = $1::uuid")
            .bind(workspace)
            .execute(self.pool())
            .await
            .unwrap();
    }

    // --- workspaces and jobs ----------------------------------------------------------------------------------------

    /// Creates a managed workspace; answers its id and the job that brings it up.
    pub async fn create(&self, name: &str, more: Value) -> (String, String) {
        let mut body = json!({ "name": name });
        let fields = body.as_object_mut().unwrap();
        fields.extend(more.as_object().cloned().unwrap_or_default());
        let created = self.admin().post("/workspaces", &body).await.expect(201);
        let text = |member: &str| created[member].as_str().unwrap().to_owned();
        (text("id"), text("job_id"))
    }

    /// Creates an external workspace whose agent has not come yet; answers its id and its agent.
    pub async fn create_external(&self, name: &str) -> (String, Caller) {
        let body = json!({ "name": name, "external": true });
        let created = self.admin().post("/workspaces", &body).await.expect(201);
        let token = created["connection"]["auth_token"].as_str().unwrap();
        let id = created["id"].as_str().unwrap().to_owned();
        (id, self.with_token(Some(token)))
    }

    /// The workspace as the list shows it, which is more than its own page does.
    pub async fn entry(&self, workspace: &str) -> Value {
        let list = self.admin().get("/workspaces").await.expect(200);
        let found = list.as_array().unwrap().iter();
        found
            .clone()
            .find(|entry| entry["id"] == workspace)
            .unwrap_or_else(|| panic!("{workspace} is not listed: {list}"))
            .clone()
    }

    /// Waits until a workspace has a status; answers its entry of the list.
    pub async fn until_status(&self, workspace: &str, status: &str, deadline: Duration) -> Value {
        wait_until(&format!("{workspace} to be {status}"), deadline, || async {
            let entry = self.entry(workspace).await;
            if entry["status"] == status {
                Ok(entry)
            } else {
                Err(entry.to_string())
            }
        })
        .await
    }

    /// Waits until a workspace is online and the platform has written down where: an agent may be quicker to register
    /// than the worker to note the container it has started.
    pub async fn until_up(&self, workspace: &str, deadline: Duration) -> Value {
        let what = format!("{workspace} to be online, its container known");
        wait_until(&what, deadline, || async {
            let entry = self.entry(workspace).await;
            let container = self.container_in_row(workspace).await;
            if entry["status"] == "online" && container.is_some() {
                Ok(entry)
            } else {
                Err(format!("container {container:?} of {entry}"))
            }
        })
        .await
    }

    /// The job as the API shows it.
    pub async fn job(&self, job: &str) -> Value {
        self.admin().get(&format!("/jobs/{job}")).await.expect(200)
    }

    /// Waits until a job has a state.
    pub async fn until_job(&self, job: &str, state: &str, deadline: Duration) -> Value {
        wait_until(&format!("job {job} to be {state}"), deadline, || async {
            let found = self.job(job).await;
            if found["state"] == state {
                Ok(found)
            } else {
                Err(found.to_string())
            }
        })
        .await
    }

    /// Names of the recorded events of a workspace, oldest first.
    pub async fn event_names(&self, workspace: &str) -> Vec<String> {
        let events = self.admin().get(&format!("/events/{workspace}")).await;
        let events = events.expect(200);
        let events = events.as_array().unwrap().iter().rev();
        events
            .map(|event| event["event_type"].as_str().unwrap().to_owned())
            .collect()
    }

    /// Sends a text to a workspace's agent and answers the text of its answer.
    pub async fn say(&self, workspace: &str, text: &str) -> String {
        let path = format!("/workspaces/{workspace}/a2a");
        let answer = self.admin().post(&path, &message(text)).await.expect(200);
        let found = find_text(&answer["result"]);
        found.unwrap_or_else(|| panic!("no text in {answer}"))
    }

    /// What must hold of a workspace whose bringing-up is over, whatever happened on the way: one container, the row's;
    /// nothing without our labels; its token works and its agent answers.
    pub async fn assert_whole(&self, workspace: &str) {
        let containers = self.engine().containers_of(workspace).await;
        assert_eq!(containers.len(), 1, "one container: {containers:#?}");
        let container = &containers[0];
        assert_eq!(container.state, "running");
        let row = self.container_in_row(workspace).await;
        assert_eq!(
            row.as_deref(),
            Some(container.id.as_str()),
            "its id is the row's"
        );
        let generation = self.generation_in_row(workspace).await;
        assert_eq!(container.generation(), generation, "the row's generation");
        let unlabelled = self.engine().unlabelled_of(workspace).await;
        assert!(unlabelled.is_empty(), "{unlabelled:?}");
        let agent = self.agent(workspace).await;
        let beat = json!({ "workspace_id": workspace });
        agent.post("/registry/heartbeat", &beat).await.expect(200);
        let echo = self.say(workspace, "still there?").await;
        assert!(echo.contains("still there?"), "{echo}");
    }

    /// What the row says is its container. No answer tells it.
    pub async fn container_in_row(&self, workspace: &str) -> Option<String> {
        sqlx::query_scalar("SELECT container_id FROM workspaces WHERE id = $1::uuid")
            .bind(workspace)
            .fetch_one(self.pool())
            .await
            .unwrap()
    }

    /// The generation of the workspace's newest provision.
    pub async fn generation_in_row(&self, workspace: &str) -> i64 {
        sqlx::query_scalar("SELECT provision_generation FROM workspaces WHERE id = $1::uuid")
            .bind(workspace)
            .fetch_one(self.pool())
            .await
            .unwrap()
    }

    /// How many rows every table has that a request could write to.
    pub async fn row_counts(&self) -> BTreeMap<String, i64> {
        let tables: Vec<String> = sqlx::query_scalar(
            "SELECT relname::text FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace
             WHERE nspname = 'public' AND relkind = 'r' AND relname NOT IN ('workers', 'reconcilers')",
        )
        .fetch_all(self.pool())
        .await
        .unwrap();
        let mut counts = BTreeMap::new();
        for table in tables {
            let sql = format!("SELECT count(*) FROM {table}");
            let count = sqlx::query_scalar(sqlx::AssertSqlSafe(sql))
                .fetch_one(self.pool())
                .await
                .unwrap();
            counts.insert(table, count);
        }
        counts
    }
}

/// A message of a text, as A2A writes it.
fn message(text: &str) -> Value {
    json!({
        "jsonrpc": "2.0",
        "id": "1",
        "method": "message/send",
        "params": { "message": { "role": "user", "messageId": random::token(), "parts": [{ "kind": "text", "text": text }] } },
    })
}

/// The first text part anywhere in an answer, which is a message or a task around one.
fn find_text(value: &Value) -> Option<String> {
    match value {
        Value::Object(members) => {
            let own = members.get("text").and_then(Value::as_str);
            own.map(str::to_owned)
                .or_else(|| members.values().find_map(find_text))
        }
        Value::Array(items) => items.iter().find_map(find_text),
        _ => None,
    }
}

async fn launch_api(
    settings: &BTreeMap<String, String>,
    more: &[(String, String)],
    port: u16,
    place: &TempDir,
    name: &str,
) -> (Process, u16) {
    let mut command = longshore();
    command
        .args(["api", "--listen", &format!("0.0.0.0:{port}")])
        .envs(settings)
        .envs(more.iter().cloned())
        .current_dir(place.path());
    let mut api = Process::start(name, &mut command, place.path());
    let process = std::cell::RefCell::new(&mut api);
    let port = wait_until("the API to serve", PATIENCE, || {
        let mut process = process.borrow_mut();
        if let Some(status) = process.status() {
            panic!("the API did not start: {status}");
        }
        let serves = process.log_lines_saying("the API serves");
        let log = process.log();
        async move {
            let url = serves.first().map(|line| line.field("url").to_owned());
            let port = url.and_then(|url| url.rsplit(':').next()?.parse().ok());
            port.ok_or(log)
        }
    })
    .await;
    (api, port)
}

fn sealing_key() -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(random::bytes::<32>())
}

/// A database is a copy of a template and has its id too; an installation of its own wants another one.
async fn write_installation_directly(pool: &PgPool) -> Uuid {
    sqlx::query_scalar("UPDATE installation SET id = gen_random_uuid() RETURNING id")
        .fetch_one(pool)
        .await
        .unwrap()
}

impl Database {
    async fn own() -> Self {
        let postgres = OwnPostgres::start().await;
        let migrated = longshore()
            .arg("migrate")
            .env("DATABASE_URL", postgres.url())
            .output()
            .unwrap();
        assert!(
            migrated.status.success(),
            "{}",
            String::from_utf8_lossy(&migrated.stderr)
        );
        let pool = PgPoolOptions::new()
            .max_connections(5)
            .connect_lazy(&postgres.url())
            .unwrap();
        Self::Own(postgres, pool)
    }

    fn pool(&self) -> &PgPool {
        match self {
            Self::Shared(database) => database.pool(),
            Self::Own(_, pool) => pool,
        }
    }

    fn url(&self) -> String {
        match self {
            Self::Shared(database) => database.url(),
            Self::Own(postgres, _) => postgres.url(),
        }
    }
}

impl Redis {
    fn url(&self) -> String {
        match self {
            Self::Shared(url) => url.clone(),
            Self::Own(redis) => redis.url(),
        }
    }
}

impl Drop for TestApp {
    fn drop(&mut self) {
        let failing = std::thread::panicking();
        let left = if failing || self.jobs_may_stay {
            Vec::new()
        } else {
            jobs_left(&self.database.url())
        };
        // Before their containers and their database.
        self.workers.drain(..).for_each(drop);
        self.api.kill();
        if let Some(engine) = &self.engine {
            engine.remove_everything_blocking();
        }
        if let Redis::Shared(url) = &self.redis
            && let Err(error) = remove_keys(url, &self.redis_prefix)
        {
            eprintln!("keys {}* may be left behind: {error}", self.redis_prefix);
        }
        assert!(left.is_empty(), "jobs were left over: {left:#?}");
    }
}

/// Takes this test's keys out of the shared Redis. Blocking, for the destructor.
fn remove_keys(url: &str, prefix: &str) -> redis::RedisResult<()> {
    let mut link = redis::Client::open(url)?.get_connection()?;
    let pattern = format!("{prefix}*");
    let mut cursor = 0_u64;
    loop {
        let (next, keys): (u64, Vec<String>) = redis::cmd("SCAN")
            .arg(cursor)
            .arg("MATCH")
            .arg(&pattern)
            .arg("COUNT")
            .arg(1000)
            .query(&mut link)?;
        if !keys.is_empty() {
            let () = redis::cmd("UNLINK").arg(keys).query(&mut link)?;
        }
        if next == 0 {
            return Ok(());
        }
        cursor = next;
    }
}

/// Jobs that have not ended, and do not end soon.
fn jobs_left(database: &str) -> Vec<String> {
    std::thread::scope(|scope| {
        let looking = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let pool = PgPoolOptions::new()
                    .max_connections(1)
                    .connect_lazy(database)
                    .unwrap();
                let look = wait_until("all jobs to end", JOBS_END, || async {
                    let left = list_jobs(&pool).await;
                    if left.is_empty() {
                        Ok(())
                    } else {
                        Err(format!("{left:?}"))
                    }
                });
                // The panic of the wait would be one in a destructor; what is left is asked once more instead.
                match tokio::time::timeout(JOBS_END / 2, look).await {
                    Ok(()) => Vec::new(),
                    Err(_) => list_jobs(&pool).await,
                }
            })
        });
        looking
            .join()
            .unwrap_or_else(|_| vec!["the database could not be asked".to_owned()])
    })
}

async fn list_jobs(pool: &PgPool) -> Vec<String> {
    sqlx::query_scalar("SELECT concat(kind, ' ', state, ' ', progress) FROM jobs")
        .fetch_all(pool)
        .await
        .unwrap()
}
