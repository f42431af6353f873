//! Servers of one test alone, for tests that stop them. All others share those of the environment.

use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::{User, geteuid};
use sqlx::ConnectOptions as _;
use sqlx::postgres::PgConnectOptions;
use tempfile::TempDir;

use crate::process::Process;
use crate::wait::{PATIENCE, wait_until};

const NAME: &str = "longshore";

/// A Redis on a Unix socket, so that it can come back at the same address.
pub struct OwnRedis {
    process: Process,
    place: TempDir,
}

impl OwnRedis {
    /// Starts one, and waits until it answers.
    pub async fn start() -> Self {
        let place = tempfile::tempdir().unwrap();
        let mut redis = Self {
            process: launch_redis(place.path()),
            place,
        };
        redis.answers().await;
        redis
    }

    /// How to connect.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis+unix://{}", self.socket().display())
    }

    /// Where it listens.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        socket(self.place.path())
    }

    /// Freezes it: connections stay open and nothing answers.
    pub fn freeze(&self) {
        self.process.signal(Signal::SIGSTOP);
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.process.signal(Signal::SIGCONT);
    }

    /// Ends it at once.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again, empty.
    pub async fn start_again(&mut self) {
        self.process.kill();
        self.process = launch_redis(self.place.path());
        self.answers().await;
    }

    /// Forgets everything.
    pub async fn flush(&self) {
        self.command(&["FLUSHALL"]).await;
    }

    /// Does what it is told.
    pub async fn command(&self, words: &[&str]) {
        let client = redis::Client::open(self.url()).unwrap();
        let mut link = client.get_multiplexed_async_connection().await.unwrap();
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        let () = command.query_async(&mut link).await.unwrap();
    }

    async fn answers(&mut self) {
        let client = redis::Client::open(self.url()).unwrap();
        wait_until("Redis", PATIENCE, || async {
            let mut link = client
                .get_multiplexed_async_connection()
                .await
                .map_err(|error| error.to_string())?;
            let pong: Result<String, _> = redis::cmd("PING").query_async(&mut link).await;
            pong.map(drop).map_err(|error| error.to_string())
        })
        .await;
    }
}

fn socket(place: &Path) -> PathBuf {
    place.join("redis.sock")
}

fn launch_redis(place: &Path) -> Process {
    let mut command = Command::new("redis-server");
    command
        .args(["--port", "0", "--save", "", "--appendonly", "no"])
        .args(["--maxmemory-policy", "noeviction"])
        .args(["--notify-keyspace-events", "KEA", "--unixsocket"])
        .arg(socket(place))
        .arg("--dir")
        .arg(place);
    Process::start("redis", &mut command, place)
}

/// A Postgres on a Unix socket.
pub struct OwnPostgres {
    process: Process,
    programs: PathBuf,
    place: TempDir,
}

impl OwnPostgres {
    /// Starts one, and waits until it answers.
    pub async fn start() -> Self {
        let postgres = Self::launch(&[]);
        postgres.answers().await;
        postgres
    }

    /// One that goes on starting, and says so to whoever connects, until it is let: a standby nobody may read from.
    pub async fn starting() -> Self {
        let postgres = Self::launch(&["standby.signal"]);
        wait_until("Postgres to be a standby", PATIENCE, || async {
            let log = postgres.process.log();
            if log.contains("consistent recovery state reached") {
                Ok(())
            } else {
                Err(log)
            }
        })
        .await;
        postgres
    }

    /// Lets it take connections.
    pub fn let_start(&self) {
        std::fs::write(self.place.path().join("data/promote"), "").unwrap();
        self.process.signal(Signal::SIGUSR1);
    }

    /// What it wrote.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.log()
    }

    fn launch(signals: &[&str]) -> Self {
        let programs = programs();
        // Not below a directory that the server's user cannot enter.
        let place = tempfile::Builder::new()
            .prefix("longshore-test-")
            .tempdir_in("/var/tmp")
            .unwrap();
        if let Some(user) = server_user() {
            let path = place.path();
            chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
        }
        std::fs::set_permissions(place.path(), Permissions::from_mode(0o755)).unwrap();
        let made = as_server_user(&programs.join("initdb"), place.path())
            .arg("--pgdata")
            .arg(place.path().join("data"))
            .args(["--username", NAME, "--encoding=UTF8", "--no-locale"])
            .args(["--auth=trust", "--no-sync"])
            .output()
            .unwrap();
        assert!(
            made.status.success(),
            "initdb: {}",
            String::from_utf8_lossy(&made.stderr)
        );
        for name in signals {
            std::fs::write(place.path().join("data").join(name), "").unwrap();
        }
        Self {
            process: launch_postgres(&programs, place.path()),
            programs,
            place,
        }
    }

    /// How to connect as its superuser.
    #[must_use]
    pub fn url(&self) -> String {
        // The database every server has; a test that has the server has it too.
        format!(
            "postgres://{NAME}@localhost/postgres?host={}",
            self.place.path().display()
        )
    }

    /// Where it listens.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        // The port nobody listens on names the socket.
        self.place.path().join(".s.PGSQL.5432")
    }

    /// Stops it in the fast way, which cuts all connections, and starts it again.
    pub async fn restart(&mut self) {
        self.start_again_after(Signal::SIGINT).await;
    }

    /// Ends it without giving it time to write anything down, and starts it again: it recovers from its log.
    pub async fn crash(&mut self) {
        self.start_again_after(Signal::SIGQUIT).await;
    }

    async fn start_again_after(&mut self, signal: Signal) {
        self.process.signal(signal);
        self.process.ended(PATIENCE).await;
        self.process = launch_postgres(&self.programs, self.place.path());
        self.answers().await;
    }

    async fn answers(&self) {
        let options: PgConnectOptions = self.url().parse().unwrap();
        wait_until("Postgres", Duration::from_secs(60), || async {
            let connected = options.connect().await;
            connected.map(drop).map_err(|error| error.to_string())
        })
        .await;
    }
}

impl Drop for OwnPostgres {
    fn drop(&mut self) {
        // Killed outright it would leave its children to find out by themselves.
        self.process.end(Signal::SIGQUIT, PATIENCE);
    }
}

fn launch_postgres(programs: &Path, place: &Path) -> Process {
    let mut command = as_server_user(&programs.join("postgres"), place);
    command
        .arg("-D")
        .arg(place.join("data"))
        .args(["-c", "hot_standby=off", "-c", "listen_addresses=", "-c"])
        .arg(format!("unix_socket_directories={}", place.display()));
    Process::start("postgres", &mut command, place)
}

/// Postgres refuses to run as root.
fn as_server_user(program: &Path, place: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(place).env("HOME", "/");
    if let Some(user) = server_user() {
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    command
}

fn server_user() -> Option<User> {
    geteuid().is_root().then(|| {
        User::from_name("postgres")
            .unwrap()
            .expect("the package postgresql made the user postgres")
    })
}

/// The programs of the newest version on this machine.
fn programs() -> PathBuf {
    let mut found: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let version = entry.file_name().to_str()?.parse().ok()?;
            let programs = entry.path().join("bin");
            programs
                .join("postgres")
                .is_file()
                .then_some((version, programs))
        })
        .collect();
    found.sort();
    found
        .pop()
        .expect("Postgres is installed below /usr/lib/postgresql")
        .1
}
