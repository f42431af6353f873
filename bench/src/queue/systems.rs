//! The measured systems: how each is started, and how it is seen to be done.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::ValueEnum;
use redis::aio::MultiplexedConnection;
use sqlx::PgConnection;
use tokio::process::Command;

/// What ours is measured beside.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Peer {
    Bullmq,
    GraphileWorker,
    PgBoss,
    ApalisPostgres,
    None,
}

/// Where the programs of peers are. `./dev bench` installs them and tells.
#[derive(clap::Args)]
pub(crate) struct Programs {
    /// The folder with the Node peers and what they depend on.
    #[arg(long, env = "BENCH_NODE_PEERS")]
    node_peers: Option<PathBuf>,
    /// The Node that runs them.
    #[arg(long, env = "BENCH_NODE", default_value = "node")]
    node: PathBuf,
    /// The apalis peer.
    #[arg(long, env = "BENCH_APALIS")]
    apalis: Option<PathBuf>,
}

impl Programs {
    /// Prints which versions of the Node peers are measured; those of the others stand in their lock files.
    pub(crate) async fn print_versions(&self) -> anyhow::Result<()> {
        let Some(folder) = &self.node_peers else {
            return Ok(());
        };
        let node = Command::new(&self.node).arg("--version").output().await?;
        print!("node {}", String::from_utf8_lossy(&node.stdout).trim());
        for name in ["bullmq", "graphile-worker", "pg-boss"] {
            let path = folder.join("node_modules").join(name).join("package.json");
            let package: serde_json::Value = serde_json::from_slice(&std::fs::read(path)?)?;
            print!(", {name} {}", package["version"].as_str().unwrap_or("?"));
        }
        println!();
        Ok(())
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Table {
    Durable,
    Volatile,
}

impl Table {
    pub(crate) fn describe(self) -> &'static str {
        match self {
            Self::Durable => {
                "durable: Postgres with fsync and synchronous_commit; Redis appends to its file for BullMQ"
            }
            Self::Volatile => {
                "volatile: Postgres without fsync and synchronous_commit; Redis in memory only"
            }
        }
    }
}

#[derive(Clone)]
pub(crate) struct System {
    pub(crate) name: &'static str,
    /// Nothing for ours.
    peer: Option<Peer>,
    /// Its jobs are exclusive, each with a key of its own; only ours can be.
    exclusive: bool,
    /// How Redis' file is kept, for the system whose truth it is.
    pub(crate) appendfsync: Option<&'static str>,
    /// Processes that run jobs.
    pub(crate) processes: usize,
}

impl System {
    pub(crate) fn all(table: Table, peers: &[Peer]) -> Vec<Self> {
        let system = |name, peer, appendfsync| Self {
            name,
            peer,
            exclusive: false,
            appendfsync,
            processes: 1,
        };
        let ours = system("ours", None, None);
        let exclusive = Self {
            name: "ours (exclusive)",
            exclusive: true,
            ..ours.clone()
        };
        let mut systems = vec![ours, exclusive];
        for &peer in peers {
            let durable = table == Table::Durable;
            match peer {
                // The documented setting may lose a second of confirmed jobs; the other is what Postgres promises.
                Peer::Bullmq if durable => systems.extend([
                    system("bullmq (everysec)", Some(peer), Some("everysec")),
                    system("bullmq (always)", Some(peer), Some("always")),
                ]),
                Peer::Bullmq => systems.push(system("bullmq", Some(peer), None)),
                Peer::GraphileWorker => systems.push(system("graphile-worker", Some(peer), None)),
                Peer::PgBoss => systems.push(system("pg-boss", Some(peer), None)),
                Peer::ApalisPostgres => systems.push(system("apalis-postgres", Some(peer), None)),
                Peer::None => {}
            }
        }
        systems
    }

    pub(crate) fn is_ours(&self) -> bool {
        self.peer.is_none()
    }

    /// What starts one process of the system, still without its surroundings.
    pub(crate) fn command(&self, programs: &Programs) -> anyhow::Result<Command> {
        let Some(peer) = self.peer else {
            let mut command = Command::new(std::env::current_exe()?);
            command.arg("queue-process");
            if self.exclusive {
                command.arg("--exclusive");
            }
            return Ok(command);
        };
        let module = match peer {
            Peer::Bullmq => "bullmq",
            Peer::GraphileWorker => "graphile-worker",
            Peer::PgBoss => "pg-boss",
            Peer::ApalisPostgres => {
                let program = programs.apalis.as_ref();
                return Ok(Command::new(
                    program.context("the apalis peer is not built")?,
                ));
            }
            Peer::None => anyhow::bail!("no peer"),
        };
        let folder = programs
            .node_peers
            .as_ref()
            .context("the Node peers are not installed")?;
        let mut command = Command::new(&programs.node);
        command.arg("main.mjs").arg(module).current_dir(folder);
        Ok(command)
    }

    /// Whether the system still holds a job that is not finished.
    pub(crate) async fn holds_jobs(
        &self,
        postgres: &mut PgConnection,
        redis: &mut MultiplexedConnection,
    ) -> anyhow::Result<bool> {
        let query = match self.peer {
            None => "SELECT EXISTS (SELECT FROM jobs)",
            Some(Peer::GraphileWorker) => {
                "SELECT EXISTS (SELECT FROM graphile_worker._private_jobs)"
            }
            Some(Peer::PgBoss) => {
                "SELECT EXISTS (SELECT FROM pgboss.job WHERE name = 'noop' AND state < 'completed')"
            }
            Some(Peer::ApalisPostgres) => {
                "SELECT EXISTS (SELECT FROM apalis.jobs WHERE status <> 'Done')"
            }
            Some(Peer::Bullmq | Peer::None) => {
                let (waiting, active): (u64, u64) = redis::pipe()
                    .cmd("LLEN")
                    .arg("bull:noop:wait")
                    .cmd("LLEN")
                    .arg("bull:noop:active")
                    .query_async(redis)
                    .await?;
                return Ok(waiting + active > 0);
            }
        };
        Ok(sqlx::query_scalar(query).fetch_one(postgres).await?)
    }

    /// Jobs of ours that ended well, in all; the peers keep no such count.
    pub(crate) async fn succeeded(
        &self,
        postgres: &mut PgConnection,
    ) -> anyhow::Result<Option<u64>> {
        if !self.is_ours() {
            return Ok(None);
        }
        let count: i64 =
            sqlx::query_scalar("SELECT count(*) FROM job_history WHERE outcome = 'succeeded'")
                .fetch_one(postgres)
                .await?;
        Ok(Some(u64::try_from(count)?))
    }
}
