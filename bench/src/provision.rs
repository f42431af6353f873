//! `bench provision`: workspaces through the whole of Longshore beside the same engine calls made raw, and `docker run`.
//!
//! Raw means: the calls of a fresh start as `longshore_backends::docker` documents them, with the same bodies, straight
//! through bollard. Raw containers are told never to register, which costs the engine less than ours do.

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
use serde_json::json;
use tokio::process::{Child, Command};

use crate::client::Api;
use crate::stats::{median, ms, percentile};

const DEADLINE: Duration = Duration::from_secs(300);

#[derive(clap::Args)]
pub(crate) struct ProvisionArguments {
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
    /// Workspaces posted at the same moment.
    #[arg(long, default_value_t = 100)]
    burst: usize,
    /// Bursts; ours and raw alternate.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Interleaved pairs of one alone.
    #[arg(long, default_value_t = 20)]
    pairs: usize,
    /// Engine calls at the same time in the raw bursts; ours is the product's default.
    #[arg(long, default_value_t = 8)]
    parallel: usize,
}

/// A Longshore of its own.
struct Server {
    child: Child,
    api: Api,
    _data: tempfile::TempDir,
}

/// The engine, raw.
struct Raw {
    client: bollard::Docker,
    docker: Docker,
    image: String,
}

pub(crate) async fn run(arguments: ProvisionArguments) -> anyhow::Result<()> {
    let mut server = Server::start(&arguments).await?;
    let outcome = measure(&arguments, &server).await;
    server.stop().await?;
    outcome
}

async fn measure(arguments: &ProvisionArguments, server: &Server) -> anyhow::Result<()> {
    let (image, network) = server.warm_up().await?;
    let raw = Raw::connect(image, network)?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 1..=arguments.rounds {
        let rate = raw.burst(arguments.burst, arguments.parallel).await?;
        theirs.push(rate);
        let own = server.burst(arguments.burst).await?;
        ours.push(own);
        println!(
            "  round {round}: ours {own:.2}/s, raw {rate:.2}/s, ratio {:.2}",
            own / rate
        );
    }
    println!(
        "{} at once: ours {:.2} containers/s, raw bollard ({} in parallel) {:.2}/s, ratio {:.2} (medians of {})",
        arguments.burst,
        median(&ours),
        arguments.parallel,
        median(&theirs),
        median(&ours) / median(&theirs),
        arguments.rounds
    );
    let (mut alone, mut alone_raw, mut overhead) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..arguments.pairs {
        let own = server.one().await?;
        let id = WorkspaceId::random();
        let start = Instant::now();
        raw.start(id).await?;
        let bare = start.elapsed();
        raw.remove(id).await?;
        overhead.push(own.as_secs_f64() * 1e3 - bare.as_secs_f64() * 1e3);
        alone.push(own);
        alone_raw.push(bare);
    }
    println!(
        "one alone: ours {} from commit to started, raw {}; ours − raw {:+.1} ms (medians of {} pairs)",
        ms(percentile(&mut alone, 0.5)),
        ms(percentile(&mut alone_raw, 0.5)),
        median(&overhead),
        arguments.pairs
    );
    let mut runs = raw.docker_runs(arguments.pairs).await?;
    println!(
        "docker run -d, one alone: {} (median of {})",
        ms(percentile(&mut runs, 0.5)),
        runs.len()
    );
    Ok(())
}

impl Server {
    async fn start(arguments: &ProvisionArguments) -> anyhow::Result<Self> {
        let data = tempfile::tempdir()?;
        let port = std::net::TcpListener::bind("127.0.0.1:0")?
            .local_addr()?
            .port();
        let child = Command::new(&arguments.longshore)
            .arg("up")
            .arg("--data")
            .arg(data.path())
            .arg("--listen")
            .arg(format!("127.0.0.1:{port}"))
            .arg("--agent-binary")
            .arg(&arguments.agent)
            .env_remove("DATABASE_URL")
            .env_remove("REDIS_URL")
            .env("RATE_LIMIT", "1000000")
            .env("LONGSHORE_LOG", "warn")
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", arguments.longshore.display()))?;
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

    async fn stop(&mut self) -> anyhow::Result<()> {
        if let Some(pid) = self.child.id() {
            crate::resources::terminate(pid)?;
        }
        tokio::time::timeout(Duration::from_secs(20), self.child.wait()).await??;
        Ok(())
    }

    /// Posts one; answers its id and job.
    async fn post(&self, name: &str) -> anyhow::Result<(String, String)> {
        let body = json!({ "name": name });
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
    async fn finished(&self, job: &str) -> anyhow::Result<(DateTime<Utc>, DateTime<Utc>)> {
        let start = Instant::now();
        loop {
            let job = self.api.get(&format!("/jobs/{job}")).await?;
            if !job["finished_at"].is_null() {
                anyhow::ensure!(
                    job["state"] == "succeeded",
                    "a provision ended badly: {job}"
                );
                return Ok((
                    serde_json::from_value(job["created_at"].clone())?,
                    serde_json::from_value(job["finished_at"].clone())?,
                ));
            }
            anyhow::ensure!(start.elapsed() < DEADLINE, "a provision did not end: {job}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn online(&self, id: &str) -> anyhow::Result<()> {
        let start = Instant::now();
        loop {
            let workspace = self.api.get(&format!("/workspaces/{id}")).await?;
            if workspace["status"] == "online" {
                return Ok(());
            }
            anyhow::ensure!(start.elapsed() < DEADLINE, "never online: {workspace}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    async fn delete(&self, id: &str) -> anyhow::Result<()> {
        let path = format!("/workspaces/{id}");
        self.api.delete(&path).await.map(drop)
    }

    /// One workspace, so that image and network are there; tells which they are.
    async fn warm_up(&self) -> anyhow::Result<(String, String)> {
        let (id, job) = self.post("warm-up").await?;
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
        self.delete(&id.to_string()).await?;
        Ok((image, network))
    }

    /// Posts a burst; containers started per second from the first request to the last start. All must come online.
    async fn burst(&self, count: usize) -> anyhow::Result<f64> {
        let names: Vec<String> = (0..count).map(|n| format!("burst-{n}")).collect();
        let made: Vec<(String, String)> = stream::iter(&names)
            .map(|name| self.post(name))
            .buffer_unordered(count)
            .try_collect()
            .await?;
        let mut spans = Vec::with_capacity(count);
        for (_, job) in &made {
            spans.push(self.finished(job).await?);
        }
        for (id, _) in &made {
            self.online(id).await?;
        }
        let first = spans
            .iter()
            .map(|span| span.0)
            .min()
            .context("no workspace")?;
        let last = spans
            .iter()
            .map(|span| span.1)
            .max()
            .context("no workspace")?;
        stream::iter(&made)
            .map(|(id, _)| self.delete(id))
            .buffer_unordered(4)
            .try_collect::<Vec<()>>()
            .await?;
        Ok(count as f64 / (last - first).as_seconds_f64())
    }

    /// One alone: from the commit of the request to the recorded start.
    async fn one(&self) -> anyhow::Result<Duration> {
        let (id, job) = self.post("alone").await?;
        let (asked, started) = self.finished(&job).await?;
        self.online(&id).await?;
        self.delete(&id).await?;
        Ok((started - asked).to_std()?)
    }
}

impl Raw {
    fn connect(image: String, network: String) -> anyhow::Result<Self> {
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
    async fn start(&self, id: WorkspaceId) -> anyhow::Result<()> {
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

    async fn remove(&self, id: WorkspaceId) -> anyhow::Result<()> {
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

    async fn burst(&self, count: usize, parallel: usize) -> anyhow::Result<f64> {
        let ids: Vec<WorkspaceId> = (0..count).map(|_| WorkspaceId::random()).collect();
        let start = Instant::now();
        stream::iter(&ids)
            .map(|id| self.start(*id))
            .buffer_unordered(parallel)
            .try_collect::<Vec<()>>()
            .await?;
        let rate = count as f64 / start.elapsed().as_secs_f64();
        stream::iter(&ids)
            .map(|id| self.remove(*id))
            .buffer_unordered(4)
            .try_collect::<Vec<()>>()
            .await?;
        Ok(rate)
    }

    async fn docker_runs(&self, count: usize) -> anyhow::Result<Vec<Duration>> {
        let mut times = Vec::with_capacity(count);
        for _ in 0..count {
            let start = Instant::now();
            let run = Command::new("docker")
                .args(["run", "-d", "--env", "AGENT_NEVER_REGISTER=1", "--env"])
                .arg(format!("WORKSPACE_ID={}", WorkspaceId::random()))
                .args(["--env", "PLATFORM_URL=http://127.0.0.1:9"])
                .arg(&self.image)
                .output()
                .await?;
            times.push(start.elapsed());
            anyhow::ensure!(
                run.status.success(),
                "docker run failed: {}",
                String::from_utf8_lossy(&run.stderr)
            );
            let id = String::from_utf8(run.stdout)?;
            Command::new("docker")
                .args(["rm", "-f", id.trim()])
                .stdout(Stdio::null())
                .status()
                .await?;
        }
        Ok(times)
    }
}
