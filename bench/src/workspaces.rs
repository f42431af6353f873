//! Workspaces of a benchmark: those of a Longshore of its own, and the same made raw.
//!
//! Raw means: the calls that `longshore_backends::docker` documents, with the same bodies, straight through bollard. Raw
//! containers are told never to register, which costs the engine less than ours do.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bollard::body_full;
use bollard::models::VolumeCreateRequest;
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, InspectContainerOptions, RemoveContainerOptionsBuilder,
    RemoveVolumeOptionsBuilder, StartContainerOptions, UploadToContainerOptionsBuilder,
};
use chrono::{DateTime, Utc};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use longshore_backends::docker::files_archive;
use longshore_backends::{ConfigFile, Docker, DockerConfig, StartSpec, WorkspaceAccess};
use longshore_base::{Secret, WorkspaceId, ids};
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use crate::client::Api;

/// Between two looks. What is measured are times on record, and whoever looks takes from the machine that is measured.
const POLL: Duration = Duration::from_millis(500);
const DEADLINE: Duration = Duration::from_secs(300);

/// What is measured.
#[derive(clap::Args)]
pub(crate) struct Binaries {
    /// The binary to measure.
    #[arg(
        long,
        env = "LONGSHORE_BIN",
        default_value = "target/release/longshore"
    )]
    longshore: PathBuf,
    /// The reference agent.
    #[arg(long, env = "LONGSHORE_AGENT_BIN")]
    agent: PathBuf,
}

/// A Longshore of its own.
pub(crate) struct Server {
    child: Child,
    api: Api,
    _data: tempfile::TempDir,
}

/// The engine, raw.
pub(crate) struct Raw {
    client: bollard::Docker,
    docker: Docker,
    pub(crate) image: String,
}

impl Server {
    pub(crate) async fn start(binaries: &Binaries) -> anyhow::Result<Self> {
        let data = tempfile::tempdir()?;
        let port = std::net::TcpListener::bind("127.0.0.1:0")?
            .local_addr()?
            .port();
        let child = Command::new(&binaries.longshore)
            .arg("up")
            .arg("--data")
            .arg(data.path())
            .arg("--listen")
            .arg(format!("127.0.0.1:{port}"))
            .arg("--agent-binary")
            .arg(&binaries.agent)
            .env_remove("DATABASE_URL")
            .env_remove("REDIS_URL")
            .env("RATE_LIMIT", "1000000")
            .env("LONGSHORE_LOG", "warn")
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", binaries.longshore.display()))?;
        let api = Api::when_ready(format!("http://127.0.0.1:{port}")).await?;
        let token = std::fs::read_to_string(data.path().join("admin-token"))?
            .trim()
            .to_owned();
        Ok(Self {
            child,
            api: api.with_token(token),
            _data: data,
        })
    }

    pub(crate) async fn stop(&mut self) -> anyhow::Result<()> {
        if let Some(pid) = self.child.id() {
            crate::resources::terminate(pid)?;
        }
        tokio::time::timeout(Duration::from_secs(20), self.child.wait()).await??;
        Ok(())
    }

    /// Posts one; answers its id and job.
    pub(crate) async fn post(&self, body: Value) -> anyhow::Result<(String, String)> {
        let made = self.api.post("/workspaces", body).await?;
        let text = |key: &str| {
            made[key]
                .as_str()
                .map(str::to_owned)
                .with_context(|| format!("no {key} in {made}"))
        };
        Ok((text("id")?, text("job_id")?))
    }

    /// Waits for the job's end; when it was asked for and when it ended.
    pub(crate) async fn finished(
        &self,
        job: &str,
    ) -> anyhow::Result<(DateTime<Utc>, DateTime<Utc>)> {
        let start = Instant::now();
        loop {
            let job = self.api.get(&format!("/jobs/{job}")).await?;
            if !job["finished_at"].is_null() {
                anyhow::ensure!(job["state"] == "succeeded", "a job ended badly: {job}");
                return Ok((
                    serde_json::from_value(job["created_at"].clone())?,
                    serde_json::from_value(job["finished_at"].clone())?,
                ));
            }
            anyhow::ensure!(start.elapsed() < DEADLINE, "a job did not end: {job}");
            tokio::time::sleep(POLL).await;
        }
    }

    pub(crate) async fn online(&self, id: &str) -> anyhow::Result<()> {
        let start = Instant::now();
        loop {
            let workspace = self.api.get(&format!("/workspaces/{id}")).await?;
            if workspace["status"] == "online" {
                return Ok(());
            }
            anyhow::ensure!(start.elapsed() < DEADLINE, "never online: {workspace}");
            tokio::time::sleep(POLL).await;
        }
    }

    /// Purges one and everything below it; when that was asked for and when it ended.
    pub(crate) async fn purge(&self, id: &str) -> anyhow::Result<(DateTime<Utc>, DateTime<Utc>)> {
        let path = format!("/workspaces/{id}?confirm=true&purge=true");
        let asked = self.api.delete(&path).await?;
        let job = asked["job_id"].as_str().context("no job purges it")?;
        self.finished(job).await
    }

    /// One workspace, so that image and network are there; tells which they are.
    pub(crate) async fn warm_up(&self) -> anyhow::Result<(String, String)> {
        let (id, job) = self.post(json!({ "name": "warm-up" })).await?;
        self.finished(&job).await?;
        self.online(&id).await?;
        let client = bollard::Docker::connect_with_local_defaults()?
            .negotiate_version()
            .await?;
        let id: WorkspaceId = id.parse()?;
        let container = client
            .inspect_container(&id.container_name(), None::<InspectContainerOptions>)
            .await?;
        let image = container
            .config
            .and_then(|config| config.image)
            .context("the container names no image")?;
        let networks = container
            .network_settings
            .and_then(|settings| settings.networks)
            .unwrap_or_default();
        let network = networks
            .into_keys()
            .next()
            .context("the container is on no network")?;
        self.purge(&id.to_string()).await?;
        Ok((image, network))
    }
}

impl Raw {
    pub(crate) fn connect(image: String, network: String) -> anyhow::Result<Self> {
        let mut config = DockerConfig::new(ids::random_uuid());
        config.network = network;
        Ok(Self {
            client: bollard::Docker::connect_with_local_defaults()?,
            docker: Docker::connect(config)?,
            image,
        })
    }

    fn spec(&self, id: WorkspaceId) -> StartSpec {
        StartSpec {
            workspace_id: id,
            runtime: "claude-code".into(),
            tier: 2,
            image: self.image.clone(),
            pull_always: false,
            env: vec![
                ("WORKSPACE_ID".into(), Secret::new(id.to_string())),
                ("PLATFORM_URL".into(), Secret::from("http://127.0.0.1:9")),
                ("AGENT_NEVER_REGISTER".into(), Secret::from("1")),
            ],
            files: vec![
                ConfigFile {
                    path: "config.yaml".into(),
                    mode: 0o644,
                    bytes: b"name: \"raw\"\n".to_vec(),
                },
                ConfigFile {
                    path: ".auth_token".into(),
                    mode: 0o600,
                    bytes: vec![b'x'; 43],
                },
                ConfigFile {
                    path: ".platform_inbound_secret".into(),
                    mode: 0o600,
                    bytes: vec![b'x'; 43],
                },
            ],
            workspace_dir: None,
            workspace_access: WorkspaceAccess::None,
            reset_session: false,
            generation: 1,
            run: ids::random_uuid(),
        }
    }

    fn volumes(id: WorkspaceId) -> [String; 3] {
        let name = id.container_name();
        [
            format!("{name}-configs"),
            format!("ws-{id}-workspace"),
            format!("{name}-claude-sessions"),
        ]
    }

    /// The documented calls of a fresh start, in their order.
    pub(crate) async fn start(&self, id: WorkspaceId) -> anyhow::Result<()> {
        let spec = self.spec(id);
        let body = self.docker.container_body(&spec).await?;
        let archive = files_archive(&spec.files)?;
        let labels = body.labels.clone();
        let volume = |name: String| {
            let request = VolumeCreateRequest {
                name: Some(name),
                labels: labels.clone(),
                ..VolumeCreateRequest::default()
            };
            self.client.create_volume(request)
        };
        let [configs, workspace, sessions] = Self::volumes(id);
        tokio::try_join!(volume(configs), volume(workspace), volume(sessions))?;
        let options = CreateContainerOptionsBuilder::new()
            .name(&id.container_name())
            .build();
        let made = self.client.create_container(Some(options), body).await?;
        let options = UploadToContainerOptionsBuilder::new()
            .path("/configs")
            .build();
        self.client
            .upload_to_container(&made.id, Some(options), body_full(archive))
            .await?;
        self.client
            .start_container(&made.id, None::<StartContainerOptions>)
            .await?;
        self.client
            .inspect_container(&made.id, None::<InspectContainerOptions>)
            .await?;
        Ok(())
    }

    pub(crate) async fn remove(&self, id: WorkspaceId) -> anyhow::Result<()> {
        let force = RemoveContainerOptionsBuilder::new().force(true).build();
        self.client
            .remove_container(&id.container_name(), Some(force))
            .await?;
        for volume in Self::volumes(id) {
            self.client
                .remove_volume(
                    &volume,
                    Some(RemoveVolumeOptionsBuilder::new().force(true).build()),
                )
                .await?;
        }
        Ok(())
    }

    /// As many as wanted, so many calls at the same time.
    pub(crate) async fn start_all(
        &self,
        count: usize,
        parallel: usize,
    ) -> anyhow::Result<Vec<WorkspaceId>> {
        let ids: Vec<WorkspaceId> = (0..count).map(|_| WorkspaceId::random()).collect();
        stream::iter(&ids)
            .map(|id| self.start(*id))
            .buffer_unordered(parallel)
            .try_collect::<Vec<()>>()
            .await?;
        Ok(ids)
    }

    /// Their containers and volumes, so many calls at the same time.
    pub(crate) async fn remove_all(
        &self,
        ids: &[WorkspaceId],
        parallel: usize,
    ) -> anyhow::Result<()> {
        stream::iter(ids)
            .map(|id| self.remove(*id))
            .buffer_unordered(parallel)
            .try_collect::<Vec<()>>()
            .await?;
        Ok(())
    }
}
