//! Two Redis servers, one of them the other's replica, and three sentinels that make the replica the master when the
//! master is away for half a second.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use longshore_tests::{PATIENCE, Process, wait_until};
use nix::sys::signal::Signal;
use redis::FromRedisValue;
use tempfile::TempDir;

const MASTER: &str = "chaos";
const SENTINELS: usize = 3;
const DOWN_AFTER_MS: &str = "500";
const FAILOVER_TIMEOUT_MS: &str = "3000";
/// How often sentinels look, in milliseconds: their own times are made for failovers that may take a minute.
const TIMES: [(&str, &str); 7] = [
    ("info-period", "500"),
    ("ping-period", "200"),
    ("ask-period", "200"),
    ("publish-period", "300"),
    ("election-timeout", "2000"),
    ("min-link-reconnect-period", "1000"),
    ("tilt-period", "1000"),
];

/// All of them, and what has been done to the servers.
pub(crate) struct Sentinels {
    servers: [Node; 2],
    sentinels: Vec<Node>,
    /// The server that is killed or frozen at the moment.
    away: Option<usize>,
    place: TempDir,
    started: usize,
}

struct Node {
    port: u16,
    process: Process,
}

impl Sentinels {
    pub(crate) async fn start() -> Self {
        let place = tempfile::tempdir().unwrap();
        let [first, second] = [free_port(), free_port()];
        let servers = [
            launch_server(place.path(), "server-0", first, None),
            launch_server(place.path(), "server-1", second, Some(first)),
        ];
        for server in &servers {
            server.answers().await;
        }
        let sentinels = (0..SENTINELS)
            .map(|number| launch_sentinel(place.path(), number, first))
            .collect();
        let sentinels = Self {
            servers,
            sentinels,
            away: None,
            place,
            started: 0,
        };
        for sentinel in &sentinels.sentinels {
            sentinel.answers().await;
            for (name, value) in TIMES {
                let debug = ["SENTINEL", "DEBUG", name, value];
                sentinel.ask::<()>(&debug).await.unwrap();
            }
        }
        sentinels.until_ready().await;
        sentinels
    }

    /// What processes are given.
    pub(crate) fn url(&self) -> String {
        let addresses: Vec<String> = self
            .sentinels
            .iter()
            .map(|sentinel| format!("127.0.0.1:{}", sentinel.port))
            .collect();
        format!("redis+sentinel://{}/{MASTER}", addresses.join(","))
    }

    /// Waits until a majority can make a replica the master.
    pub(crate) async fn until_ready(&self) {
        wait_until("the sentinels to be ready", PATIENCE, || async {
            let (master, replica) = (self.master().await, self.replica_is_up().await);
            let quorum = ["SENTINEL", "CKQUORUM", MASTER];
            let quorum = self.sentinels[0].ask::<String>(&quorum).await;
            match (&quorum, master, replica) {
                (Ok(_), Some(_), true) => Ok(()),
                seen => Err(format!("{seen:?}")),
            }
        })
        .await;
    }

    async fn replica_is_up(&self) -> bool {
        let Some(master) = self.master().await else {
            return false;
        };
        let info = self.servers[1 - master]
            .ask::<String>(&["INFO", "replication"])
            .await;
        info.is_ok_and(|info| info.contains("role:slave") && info.contains("master_link_status:up"))
    }

    /// Which server all sentinels that answer say it is.
    pub(crate) async fn master(&self) -> Option<usize> {
        let mut named = None;
        for sentinel in &self.sentinels {
            let question = ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER];
            let Ok((_, port)) = sentinel.ask::<(String, u16)>(&question).await else {
                continue;
            };
            if named.is_some_and(|named| named != port) {
                return None;
            }
            named = Some(port);
        }
        self.servers
            .iter()
            .position(|server| Some(server.port) == named)
    }

    /// Asks a server.
    pub(crate) async fn ask<T: FromRedisValue>(&self, server: usize, words: &[&str]) -> Option<T> {
        self.servers[server].ask(words).await.ok()
    }

    /// `kill -9`, of the one that is frozen, or of the master.
    pub(crate) async fn kill(&mut self) {
        let victim = self.victim().await;
        self.servers[victim].process.kill();
    }

    /// SIGSTOP.
    pub(crate) async fn freeze(&mut self) {
        let victim = self.victim().await;
        self.servers[victim].process.signal(Signal::SIGSTOP);
    }

    async fn victim(&mut self) -> usize {
        let victim = match self.away {
            Some(victim) => victim,
            None => self.master().await.unwrap_or(0),
        };
        self.away = Some(victim);
        victim
    }

    pub(crate) fn thaw(&mut self) {
        if let Some(victim) = self.away.take() {
            self.servers[victim].process.signal(Signal::SIGCONT);
        }
    }

    /// Starts it again, empty, and as the master it may once have been.
    pub(crate) async fn start_again(&mut self) {
        if let Some(victim) = self.away.take() {
            self.started += 1;
            let name = format!("server-{victim}-{}", self.started);
            let port = self.servers[victim].port;
            self.servers[victim] = launch_server(self.place.path(), &name, port, None);
            self.servers[victim].answers().await;
        }
    }

    /// What an operator does before maintenance. Sentinels refuse it while a failover goes on.
    pub(crate) async fn fail_over(&self) {
        let order = ["SENTINEL", "FAILOVER", MASTER];
        self.sentinels[0].ask::<()>(&order).await.ok();
    }

    pub(crate) async fn flush(&self) {
        if let Some(master) = self.master().await {
            self.servers[master].ask::<()>(&["FLUSHALL"]).await.ok();
        }
    }

    /// How often another server became the master.
    pub(crate) fn failovers(&self) -> usize {
        let logs = self.sentinels.iter().map(|node| node.process.log());
        logs.map(|log| log.matches("+switch-master").count())
            .max()
            .unwrap_or_default()
    }
}

impl Node {
    async fn ask<T: FromRedisValue>(&self, words: &[&str]) -> redis::RedisResult<T> {
        let client = redis::Client::open(format!("redis://127.0.0.1:{}", self.port)).unwrap();
        let mut link = client.get_multiplexed_async_connection().await?;
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]).query_async(&mut link).await
    }

    async fn answers(&self) {
        wait_until("Redis", PATIENCE, || async {
            let pong = self.ask::<String>(&["PING"]).await;
            pong.map(drop).map_err(|error| error.to_string())
        })
        .await;
    }
}

fn launch_server(place: &Path, name: &str, port: u16, master: Option<u16>) -> Node {
    let mut command = Command::new("redis-server");
    command
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
        .args(["--save", "", "--appendonly", "no"])
        .args(["--maxmemory-policy", "noeviction"])
        .args(["--repl-diskless-sync-delay", "0", "--dir"])
        .arg(place);
    if let Some(master) = master {
        command.args(["--replicaof", "127.0.0.1", &master.to_string()]);
    }
    Node {
        port,
        process: Process::start(name, &mut command, place),
    }
}

fn launch_sentinel(place: &Path, number: usize, master: u16) -> Node {
    let port = free_port();
    let name = format!("sentinel-{number}");
    // It writes down there what it learns.
    let path = place.join(format!("{name}.conf"));
    let lines = [
        format!("port {port}"),
        "bind 127.0.0.1".to_owned(),
        format!("dir {}", place.display()),
        format!("sentinel monitor {MASTER} 127.0.0.1 {master} 2"),
        format!("sentinel down-after-milliseconds {MASTER} {DOWN_AFTER_MS}"),
        format!("sentinel failover-timeout {MASTER} {FAILOVER_TIMEOUT_MS}"),
    ];
    std::fs::write(&path, lines.join("\n")).unwrap();
    let mut command = Command::new("redis-server");
    command.arg(path).arg("--sentinel");
    Node {
        port,
        process: Process::start(&name, &mut command, place),
    }
}

/// One that is free now, for a server that comes back to the same one.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listener.local_addr().unwrap().port()
}
