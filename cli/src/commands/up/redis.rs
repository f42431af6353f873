//! The private Redis of `longshore up`. It holds hints and caches only, so it writes nothing to disk: whatever it forgets
//! is found again in Postgres. Like Postgres it listens on a Unix socket in a directory closed to others.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use longshore_base::Secret;
use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::process::Child;

use super::account::ServiceAccount;
use super::data::{make_private_dir, socket_dir};
use super::leftovers;
use super::service::{self, Service};

const PROGRAM: &str = "redis-server";
const PING_LIMIT: Duration = Duration::from_millis(500);

/// A private Redis.
pub(super) struct Redis {
    account: ServiceAccount,
    program: PathBuf,
    directory: PathBuf,
    socket: PathBuf,
    log: PathBuf,
}

impl Redis {
    /// Prepares one in `home`.
    pub(super) fn prepare(home: &Path, account: &ServiceAccount) -> anyhow::Result<Self> {
        let directory = home.join("redis");
        make_private_dir(&directory, account)?;
        let program = find().context(
            "Redis is not installed (no redis-server in PATH): `apt-get install redis-server`, or give REDIS_URL",
        )?;
        Ok(Self {
            account: account.clone(),
            program,
            socket: socket_dir(&directory, account)?.join("redis.sock"),
            log: directory.join("redis.log"),
            directory,
        })
    }

    /// How to connect.
    pub(super) fn url(&self) -> anyhow::Result<Secret<String>> {
        let path = url::Url::from_file_path(&self.socket)
            .ok()
            .context("the path of the Redis socket is not absolute")?;
        Ok(Secret::new(format!("redis+unix://{}", path.path())))
    }
}

impl Service for Redis {
    const NAME: &'static str = "Redis";
    const STOP: &'static [Signal] = &[Signal::SIGTERM];
    const START_LIMIT: Duration = Duration::from_secs(30);

    fn log(&self) -> &Path {
        &self.log
    }

    async fn is_ready(&self, _pid: u32) -> bool {
        tokio::time::timeout(PING_LIMIT, pings(&self.socket))
            .await
            .unwrap_or(false)
    }

    async fn launch(&self) -> anyhow::Result<Child> {
        leftovers::end(&self.directory, PROGRAM, Signal::SIGTERM).await?;
        let log = service::open_log(&self.log)?;
        let mut child = service::command(&self.program, &self.directory, &self.account)
            .args(["--port", "0", "--daemonize", "no"])
            .arg("--unixsocket")
            .arg(&self.socket)
            .args(["--unixsocketperm", "700", "--dir"])
            .arg(&self.directory)
            .args(["--appendonly", "no", "--save", ""])
            .args(["--maxmemory-policy", "noeviction"])
            .args(["--notify-keyspace-events", "Ex"])
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot run {}", self.program.display()))?;
        service::until_ready(self, &mut child).await?;
        Ok(child)
    }
}

async fn pings(socket: &Path) -> bool {
    let Ok(mut connection) = UnixStream::connect(socket).await else {
        return false;
    };
    let mut answer = [0; 5];
    connection.write_all(b"PING\r\n").await.is_ok()
        && connection.read_exact(&mut answer).await.is_ok()
        && answer == *b"+PONG"
}

fn find() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/bin".into(), "/usr/local/bin".into()])
        .map(|directory| directory.join(PROGRAM))
        .find(|program| program.is_file())
}
