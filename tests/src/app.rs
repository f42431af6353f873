//! The control plane of one test.

use std::collections::BTreeMap;
use std::process::Output;
use std::time::Duration;

use longshore_base::random;
use longshore_base::secret::sha256;
use sqlx::PgPool;
use tempfile::TempDir;

use crate::builder::{Builder, NewWorker};
use crate::caller::Caller;
use crate::control_plane::ControlPlane;
use crate::engine::Engine;
use crate::process::Process;
use crate::programs::longshore;
use crate::servers::{OwnPostgres, OwnRedis};
use crate::stores::{Database, Redis};
use crate::switch::EngineSwitch;
use crate::wait::{PATIENCE, wait_until};

/// A control plane: an API process, workers, and everything below them. Gone when dropped.
pub struct TestApp {
    /// The API process.
    pub api: Process,
    /// The workers it was built with; more come from [`TestApp::start_worker`].
    pub workers: Vec<Process>,
    /// The engine, where the test has one.
    pub(crate) engine: Option<Engine>,
    /// The control plane, where the test has one.
    pub(crate) control_plane: Option<ControlPlane>,
    /// Before the engine, where the test takes it away.
    pub(crate) switch: Option<EngineSwitch>,
    pub(crate) redis: Redis,
    pub(crate) redis_prefix: String,
    pub(crate) settings: BTreeMap<String, String>,
    pub(crate) api_settings: Vec<(String, String)>,
    pub(crate) admin_token: String,
    pub(crate) http: reqwest::Client,
    pub(crate) port: u16,
    pub(crate) processes: usize,
    pub(crate) jobs_may_stay: bool,
    pub(crate) database: Database,
    pub(crate) place: TempDir,
}
impl TestApp {
    /// The ordinary one: an API process, a worker, the machine's Docker engine, the shared Postgres and Redis.
    #[must_use]
    pub fn build() -> Builder {
        Builder::default()
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

    /// Changes a setting of the processes that are started from now on.
    pub fn set(&mut self, name: &str, value: &str) {
        self.settings.insert(name.to_owned(), value.to_owned());
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
            .envs(self.settings.get_key_value("LONGSHORE_ORG_ID"))
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

    /// The remote control plane of this test.
    #[must_use]
    pub fn control_plane(&self) -> &ControlPlane {
        self.control_plane
            .as_ref()
            .expect("built with a control plane")
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
}

pub(crate) async fn launch_api(
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
