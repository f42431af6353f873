//! An API process and a worker process of the real binary, and an operator's way in.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use longshore_base::random;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use crate::client::Api;

const PATIENCE: Duration = Duration::from_secs(60);

pub(super) struct Deployment {
    binary: PathBuf,
    settings: Vec<(&'static str, String)>,
    api: Api,
    api_process: Child,
    worker: Child,
    /// Where there is no engine.
    _nowhere: tempfile::TempDir,
}

impl Deployment {
    /// Makes the schema and starts both.
    pub(super) async fn start(
        binary: &Path,
        database_url: &str,
        redis_url: &str,
    ) -> anyhow::Result<Self> {
        let nowhere = tempfile::tempdir()?;
        let engine = format!("unix://{}/no-docker.sock", nowhere.path().display());
        let token = random::token();
        let settings = vec![
            ("DATABASE_URL", database_url.to_owned()),
            ("REDIS_URL", redis_url.to_owned()),
            ("ADMIN_TOKEN", token.clone()),
            (
                "SECRETS_ENCRYPTION_KEY",
                "0123456789abcdef0123456789abcdef".to_owned(),
            ),
            ("DOCKER_HOST", engine),
            ("LONGSHORE_IN_DOCKER", "false".to_owned()),
            ("LONGSHORE_METRICS_LISTEN", "none".to_owned()),
            ("LONGSHORE_LOG", "error".to_owned()),
            ("RATE_LIMIT", "1000000".to_owned()),
        ];
        let migrated = spawn(binary, &settings, &["migrate"])?.wait().await?;
        anyhow::ensure!(migrated.success(), "longshore migrate: {migrated}");
        let port = std::net::TcpListener::bind("127.0.0.1:0")?
            .local_addr()?
            .port();
        let listen = format!("127.0.0.1:{port}");
        let api_process = spawn(binary, &settings, &["api", "--listen", &listen])?;
        let api = Api::when_ready(format!("http://{listen}"))
            .await?
            .with_token(token);
        let worker = spawn(binary, &settings, &["worker"])?;
        let deployment = Self {
            binary: binary.to_owned(),
            settings,
            api,
            api_process,
            worker,
            _nowhere: nowhere,
        };
        deployment.until_worker_is_up().await?;
        Ok(deployment)
    }

    pub(super) fn api(&self) -> Api {
        self.api.clone()
    }

    pub(super) fn api_pid(&self) -> anyhow::Result<u32> {
        self.api_process.id().context("the API has ended")
    }

    pub(super) fn worker_pid(&self) -> anyhow::Result<u32> {
        self.worker.id().context("the worker has ended")
    }

    /// As `kill -9` does.
    pub(super) async fn kill_worker(&mut self) -> anyhow::Result<()> {
        self.worker.kill().await?;
        Ok(())
    }

    /// Another one in its place.
    pub(super) async fn start_worker(&mut self) -> anyhow::Result<()> {
        self.worker = spawn(&self.binary, &self.settings, &["worker"])?;
        self.until_worker_is_up().await
    }

    async fn until_worker_is_up(&self) -> anyhow::Result<()> {
        let pid = format!("-{}-", self.worker_pid()?);
        let start = Instant::now();
        loop {
            let workers = self.api.get("/workers").await?;
            let is_there = workers["items"].as_array().is_some_and(|all| {
                all.iter().any(|worker| {
                    worker["name"]
                        .as_str()
                        .is_some_and(|name| name.contains(&pid))
                })
            });
            if is_there {
                return Ok(());
            }
            anyhow::ensure!(
                start.elapsed() < PATIENCE,
                "no worker after a minute: {workers}"
            );
            sleep(Duration::from_millis(50)).await;
        }
    }

    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        for process in [&mut self.worker, &mut self.api_process] {
            let Some(pid) = process.id() else { continue };
            crate::resources::terminate(pid)?;
            timeout(PATIENCE, process.wait())
                .await
                .context("a process did not end within a minute")??;
        }
        Ok(())
    }
}

fn spawn(
    binary: &Path,
    settings: &[(&'static str, String)],
    arguments: &[&str],
) -> anyhow::Result<Child> {
    let mut command = Command::new(binary);
    command.args(arguments).env_clear();
    for name in ["PATH", "HOME"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command
        .envs(settings.iter().map(|(name, value)| (name, value)))
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot start {}", binary.display()))
}
