//! `bench provision`: workspaces through the whole of Longshore beside the same engine calls made raw, and `docker run`.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use longshore_base::WorkspaceId;
use serde_json::json;
use tokio::process::Command;

use crate::stats::{median, ms, percentile};
use crate::workspaces::{Binaries, Raw, Server};

#[derive(clap::Args)]
pub(crate) struct ProvisionArguments {
    #[command(flatten)]
    binaries: Binaries,
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

pub(crate) async fn run(arguments: ProvisionArguments) -> anyhow::Result<()> {
    let mut server = Server::start(&arguments.binaries).await?;
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
    /// Posts a burst; containers started per second from the first request to the last start. All must come online.
    async fn burst(&self, count: usize) -> anyhow::Result<f64> {
        let names: Vec<String> = (0..count).map(|n| format!("burst-{n}")).collect();
        let made: Vec<(String, String)> = stream::iter(&names)
            .map(|name| self.post(json!({ "name": name })))
            .buffer_unordered(count)
            .try_collect()
            .await?;
        let mut spans = Vec::with_capacity(count);
        // The last one first: once it has ended, nearly all have.
        for (_, job) in made.iter().rev() {
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
            .map(|(id, _)| self.purge(id))
            .buffer_unordered(4)
            .try_collect::<Vec<_>>()
            .await?;
        Ok(count as f64 / (last - first).as_seconds_f64())
    }

    /// One alone: from the commit of the request to the recorded start.
    async fn one(&self) -> anyhow::Result<Duration> {
        let (id, job) = self.post(json!({ "name": "alone" })).await?;
        let (asked, started) = self.finished(&job).await?;
        self.online(&id).await?;
        self.purge(&id).await?;
        Ok((started - asked).to_std()?)
    }
}

impl Raw {
    async fn burst(&self, count: usize, parallel: usize) -> anyhow::Result<f64> {
        let start = Instant::now();
        let ids = self.start_all(count, parallel).await?;
        let rate = count as f64 / start.elapsed().as_secs_f64();
        self.remove_all(&ids, 4).await?;
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
