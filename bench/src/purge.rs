//! `bench purge`: a tree of workspaces purged through the whole of Longshore beside `docker rm -f` and `docker volume rm` of
//! as many containers and volumes, made raw with the same parallelism.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::json;

use crate::stats::median;
use crate::workspaces::{Binaries, Raw, Server};

/// Requests at the same time while a tree is made.
const POSTS: usize = 8;

#[derive(clap::Args)]
pub(crate) struct PurgeArguments {
    #[command(flatten)]
    binaries: Binaries,
    /// Workspaces of a tree, all but its root right below it.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    workspaces: u32,
    /// Trees; ours and raw alternate.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Engine calls at the same time in the raw rounds; ours is the product's.
    #[arg(long, default_value_t = 8)]
    parallel: usize,
}

pub(crate) async fn run(arguments: PurgeArguments) -> anyhow::Result<()> {
    let mut server = Server::start(&arguments.binaries).await?;
    let outcome = measure(&arguments, &server).await;
    server.stop().await?;
    outcome
}

async fn measure(arguments: &PurgeArguments, server: &Server) -> anyhow::Result<()> {
    let (image, network) = server.warm_up().await?;
    let raw = Raw::connect(image, network)?;
    let count = arguments.workspaces as usize;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 1..=arguments.rounds {
        let bare = raw.time_removal(count, arguments.parallel).await?;
        let own = server.time_purge(count).await?;
        let (bare, own) = (bare.as_secs_f64(), own.as_secs_f64());
        println!(
            "  round {round}: ours {own:.2} s, raw {bare:.2} s, ratio {:.2}",
            own / bare
        );
        theirs.push(bare);
        ours.push(own);
    }
    println!(
        "a tree of {count}: ours {:.2} s from the request to the end, raw bollard ({} in parallel) {:.2} s, ratio {:.2} (medians of {})",
        median(&ours),
        arguments.parallel,
        median(&theirs),
        median(&ours) / median(&theirs),
        arguments.rounds
    );
    Ok(())
}

impl Server {
    /// Makes a tree, all of it online, and purges it.
    async fn time_purge(&self, count: usize) -> anyhow::Result<Duration> {
        let (root, job) = self.post(json!({ "name": "root" })).await?;
        let mut made: Vec<(String, String)> = stream::iter(1..count)
            .map(|number| self.post(json!({ "name": format!("leaf-{number}"), "parent_id": root })))
            .buffer_unordered(POSTS)
            .try_collect()
            .await?;
        made.push((root.clone(), job));
        for (id, job) in &made {
            self.finished(job).await?;
            self.online(id).await?;
        }
        let (asked, ended) = self.purge(&root).await?;
        (ended - asked)
            .to_std()
            .context("the purge ended before it was asked for")
    }
}

impl Raw {
    async fn time_removal(&self, count: usize, parallel: usize) -> anyhow::Result<Duration> {
        let ids = self.start_all(count, parallel).await?;
        let start = Instant::now();
        self.remove_all(&ids, parallel).await?;
        Ok(start.elapsed())
    }
}
