//! The processes of one chaos run, the servers and networks below them, and what is done to them.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use longshore_base::random;
use longshore_tests::{OwnPostgres, PATIENCE, Process, longshore, wait_until};
use nix::sys::signal::Signal;
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tokio::sync::mpsc;

use crate::engine::OwnEngine;
use crate::operator::Told;
use crate::proxy::{Network, Proxy};
use crate::schedule::{Fault, Operation, Who};
use crate::sentinels::free_port;
use crate::store::{Servers, Store};

/// Before every key.
pub(crate) const REDIS_PREFIX: &str = "chaos:";
/// A process that ended is started again after this.
const AWAY: Duration = Duration::from_millis(300);
/// The times that decide when a worker counts as gone, in seconds: shorter than the defaults, in the same order.
const TIMES: [(&str, &str); 4] = [
    ("LONGSHORE_WORKER_BEAT_SECONDS", "1"),
    ("LONGSHORE_WORKER_LOST_AFTER_SECONDS", "3"),
    ("LONGSHORE_WORKER_DEAD_AFTER_SECONDS", "5"),
    ("LONGSHORE_WORKER_GRACE_SECONDS", "3"),
];

/// What a run stands on, besides Postgres.
pub(crate) struct Ground {
    pub(crate) redis: Store,
    pub(crate) engine: Option<OwnEngine>,
}

impl Ground {
    pub(crate) async fn plain() -> Self {
        Self {
            redis: Store::one().await,
            engine: None,
        }
    }
}

/// Everything that runs.
pub(crate) struct Arena {
    pub(crate) postgres: OwnPostgres,
    pub(crate) redis: Store,
    pub(crate) engine: Option<OwnEngine>,
    sink: Process,
    sink_port: u16,
    workers: Vec<Place>,
    api: Place,
    pub(crate) api_port: u16,
    pub(crate) admin_token: String,
    settings: BTreeMap<String, String>,
    directory: PathBuf,
    pool: PgPool,
    began: Instant,
    started: usize,
    operator: mpsc::UnboundedSender<Told>,
    pub(crate) account: Account,
}

/// What was done, for the checker and for people.
#[derive(Default)]
pub(crate) struct Account {
    /// Processes whose runs may be taken over: killed, stopped, or cut off from Postgres.
    pub(crate) excused: HashSet<u32>,
    /// Ends of processes that nobody asked for.
    pub(crate) unexplained: Vec<String>,
    pub(crate) counts: BTreeMap<&'static str, usize>,
    /// What was applied, and when.
    pub(crate) journal: String,
}

/// Where a process runs, and the networks around it.
struct Place {
    name: String,
    process: Option<Process>,
    /// The signal it was sent, if it was to end it.
    sent: Option<Signal>,
    /// It was asked to leave; a SIGKILL after that may come when it has gone.
    is_leaving: bool,
    start_at: Instant,
    log: PathBuf,
    postgres: Proxy,
    /// None where sentinels tell the way around it.
    redis: Option<Proxy>,
    is_cut_from_postgres: bool,
}

impl Arena {
    /// Starts the servers, and makes room for so many workers and an API; [`Arena::tend`] starts those.
    pub(crate) async fn build(
        directory: &Path,
        workers: usize,
        operator: mpsc::UnboundedSender<Told>,
    ) -> Self {
        Self::build_on(Ground::plain().await, directory, workers, operator).await
    }

    pub(crate) async fn build_on(
        ground: Ground,
        directory: &Path,
        workers: usize,
        operator: mpsc::UnboundedSender<Told>,
    ) -> Self {
        let Ground { redis, engine } = ground;
        let postgres = OwnPostgres::start().await;
        let migrated = longshore()
            .arg("migrate")
            .env("DATABASE_URL", postgres.url())
            .status()
            .unwrap();
        assert!(migrated.success());
        let pool = PgPoolOptions::new()
            .max_connections(8)
            .acquire_timeout(Duration::from_secs(5))
            .connect_lazy(&postgres.url())
            .unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_effect-sink"));
        command.arg(directory.join("sink.jsonl"));
        let sink = Process::start("sink", &mut command, directory);
        let sink_port = wait_until("the sink", PATIENCE, || async {
            let log = sink.log();
            let port = log
                .trim()
                .rsplit(' ')
                .next()
                .and_then(|port| port.parse().ok());
            port.ok_or(log)
        })
        .await;
        let admin_token = random::token();
        let nowhere = format!("unix://{}/no-docker.sock", directory.display());
        let settings = [
            ("LONGSHORE_REDIS_PREFIX", REDIS_PREFIX),
            ("ADMIN_TOKEN", admin_token.as_str()),
            ("SECRETS_ENCRYPTION_KEY", "01234567890123456789012345678901"),
            ("DOCKER_HOST", nowhere.as_str()),
            ("LONGSHORE_METRICS_LISTEN", "none"),
            ("LONGSHORE_DATABASE_CONNECTIONS", "8"),
            ("LONGSHORE_LOG", "info"),
            ("LONGSHORE_LOG_FORMAT", "json"),
            ("LONGSHORE_IN_DOCKER", "false"),
            ("RATE_LIMIT", "1000000"),
        ];
        let api_port = free_port();
        let mut settings: BTreeMap<String, String> = settings
            .into_iter()
            .chain(TIMES)
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        if let Some(engine) = &engine {
            settings.extend(engine.settings(api_port));
        }
        let place = async |name: String| Place {
            name,
            process: None,
            sent: None,
            is_leaving: false,
            start_at: Instant::now(),
            log: PathBuf::new(),
            postgres: Proxy::to(postgres.socket()).await,
            redis: match redis.socket() {
                Some(socket) => Some(Proxy::to(socket).await),
                None => None,
            },
            is_cut_from_postgres: false,
        };
        let mut places = Vec::new();
        for number in 0..workers {
            places.push(place(format!("worker-{number}")).await);
        }
        let api = place("api".to_owned()).await;
        Self {
            sink,
            sink_port,
            workers: places,
            api,
            api_port,
            admin_token,
            settings,
            directory: directory.to_owned(),
            pool,
            began: Instant::now(),
            started: 0,
            operator,
            account: Account::default(),
            postgres,
            redis,
            engine,
        }
    }

    pub(crate) fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// What is started from now on is of a later version of the program.
    pub(crate) fn upgrade(&mut self) {
        self.settings
            .insert("LONGSHORE_EFFECT_LATER".to_owned(), "1".to_owned());
    }

    pub(crate) fn redis_url(&self) -> String {
        self.redis.url()
    }

    /// Where runs tell what they do.
    pub(crate) fn sink(&self) -> String {
        format!("127.0.0.1:{}", self.sink_port)
    }

    pub(crate) fn note(&mut self, what: &str) {
        let at = self.began.elapsed().as_secs_f64();
        writeln!(self.account.journal, "{at:8.3} {what}").unwrap();
    }

    /// Starts what has ended, and looks whether it might have.
    pub(crate) fn tend(&mut self) {
        for who in self.everybody() {
            if let Some(status) = self.place(who).process.as_mut().and_then(Process::status) {
                self.bury(who, status);
            }
            if self.place(who).process.is_none() && self.place(who).start_at <= Instant::now() {
                self.start(who);
            }
        }
    }

    fn everybody(&self) -> impl Iterator<Item = Who> + use<> {
        (0..self.workers.len()).map(Who::Worker).chain([Who::Api])
    }

    /// The process that is there, and whether it takes jobs, or requests.
    pub(crate) fn seen(&mut self, who: Who) -> Option<(u32, bool)> {
        let place = self.place(who);
        let process = place.process.as_ref()?;
        Some((process.pid(), has_started(&process.log())))
    }

    fn place(&mut self, who: Who) -> &mut Place {
        match who {
            Who::Worker(number) => &mut self.workers[number],
            Who::Api => &mut self.api,
        }
    }

    fn start(&mut self, who: Who) {
        self.started += 1;
        let started = self.started;
        let mut command = longshore();
        match who {
            // To every other one few are many, so it takes backlogs by itself.
            Who::Worker(nth) if nth % 2 == 1 => command.arg("worker").env("LONGSHORE_MANY", "2"),
            Who::Worker(_) => command.arg("worker"),
            Who::Api => command
                .arg("api")
                // Agents reach it from their network.
                .args(["--listen", &format!("0.0.0.0:{}", self.api_port)]),
        };
        command.envs(&self.settings).current_dir(&self.directory);
        let (directory, redis) = (self.directory.clone(), self.redis.url());
        let place = self.place(who);
        let redis = match &place.redis {
            Some(proxy) => format!("redis://127.0.0.1:{}", proxy.port()),
            None => redis,
        };
        let database = format!(
            "postgres://longshore@127.0.0.1:{}/postgres?sslmode=disable",
            place.postgres.port()
        );
        command
            .env("DATABASE_URL", database)
            .env("REDIS_URL", redis);
        let name = format!("{started:03}-{}", place.name);
        let process = Process::start(&name, &mut command, &directory);
        let pid = process.pid();
        place.process = Some(process);
        place.sent = None;
        place.is_leaving = false;
        place.log = directory.join(format!("{name}.log"));
        if place.is_cut_from_postgres {
            self.account.excused.insert(pid);
        }
        self.note(&format!("started {name} as process {pid}"));
    }

    /// Writes down how a process ended, and whether it might have.
    fn bury(&mut self, who: Who, status: ExitStatus) {
        let place = self.place(who);
        let Some(process) = place.process.take() else {
            return;
        };
        place.start_at = Instant::now() + AWAY;
        let (sent, name, pid) = (place.sent.take(), place.name.clone(), process.pid());
        let is_leaving = place.is_leaving;
        let log = std::fs::read_to_string(&place.log).unwrap_or_default();
        let had_started = has_started(&log);
        let is_explained = match (status.signal(), status.code()) {
            (Some(signal), _) if signal == Signal::SIGABRT as i32 => {
                *self
                    .account
                    .counts
                    .entry("jobs that killed their worker")
                    .or_default() += 1;
                self.account.excused.insert(pid);
                true
            }
            (Some(signal), _) => sent.is_some_and(|sent| sent as i32 == signal),
            (None, Some(0)) => is_leaving,
            // A second SIGTERM while it leaves ends it at once.
            (None, _) if log.contains("\"ending now\"") => is_leaving,
            // Nothing is there to be connected to; it says so, and is started again.
            (None, _) => !had_started,
        };
        if is_explained && status.code() != Some(0) {
            self.account.excused.insert(pid);
        }
        if !is_explained {
            self.account
                .unexplained
                .push(format!("{name} (process {pid}) ended: {status}"));
        }
        self.note(&format!("{name} (process {pid}) ended: {status}"));
    }

    /// Does it.
    pub(crate) async fn apply(&mut self, fault: Fault) {
        self.note(&format!("{fault:?}"));
        self.count(fault);
        match fault {
            Fault::Kill(who) => self.signal(who, Signal::SIGKILL),
            Fault::Stop(who) => self.signal(who, Signal::SIGSTOP),
            Fault::Continue(who) => self.signal(who, Signal::SIGCONT),
            Fault::Terminate(who) => self.signal(who, Signal::SIGTERM),
            Fault::ToPostgres(who, network) => {
                let place = self.place(who);
                place.postgres.set(network);
                place.is_cut_from_postgres = network != Network::Whole;
                let pid = place.process.as_ref().map(Process::pid);
                self.account.excused.extend(pid);
            }
            Fault::ToRedis(who, network) => {
                if let Some(redis) = &self.place(who).redis {
                    redis.set(network);
                }
            }
            Fault::FlushRedis
            | Fault::KillRedis
            | Fault::StartRedis
            | Fault::FreezeRedis
            | Fault::ThawRedis
            | Fault::FailOver => self.redis.apply(fault).await,
            Fault::StopEngine | Fault::KillEngine => {
                if let Some(engine) = &mut self.engine {
                    engine.end(match fault {
                        Fault::StopEngine => Signal::SIGTERM,
                        _ => Signal::SIGKILL,
                    });
                }
            }
            Fault::StartEngine => self.start_engine().await,
            Fault::RestartPostgres => self.while_postgres_is_away(Signal::SIGINT).await,
            Fault::CrashPostgres => self.while_postgres_is_away(Signal::SIGQUIT).await,
            Fault::Operate(Operation::Queue(queue, change)) => {
                self.tell(Told::Queue(queue, change));
            }
            Fault::Operate(Operation::Worker(number, change)) => {
                let pid = self.workers[number].process.as_ref().map(Process::pid);
                if let Some(pid) = pid {
                    self.tell(Told::Worker(pid, change));
                }
            }
        }
    }

    fn count(&mut self, fault: Fault) {
        let what = match fault {
            Fault::Kill(_) => "kills",
            Fault::Stop(_) => "stops",
            Fault::Terminate(_) => "terminations",
            Fault::ToPostgres(_, Network::Stalled | Network::Cut) => "cuts from Postgres",
            Fault::ToRedis(_, Network::Stalled | Network::Cut) => "cuts from Redis",
            Fault::FlushRedis => "flushes",
            Fault::KillRedis => "Redis restarts",
            Fault::FreezeRedis => "Redis freezes",
            Fault::FailOver => "orders to fail over",
            Fault::StopEngine => "engine restarts",
            Fault::KillEngine => "engine crashes",
            Fault::RestartPostgres => "Postgres restarts",
            Fault::CrashPostgres => "Postgres crashes",
            Fault::Operate(Operation::Queue(_, "pause" | "drain")) => "queues paused",
            Fault::Operate(Operation::Worker(_, "drain")) => "workers drained",
            _ => return,
        };
        *self.account.counts.entry(what).or_default() += 1;
    }

    async fn while_postgres_is_away(&mut self, signal: Signal) {
        // What is leaving at this moment cannot give its jobs back.
        let places = self.workers.iter().filter(|place| place.sent.is_some());
        let leaving = places.filter_map(|place| place.process.as_ref().map(Process::pid));
        self.account.excused.extend(leaving);
        match signal {
            Signal::SIGQUIT => self.postgres.crash().await,
            _ => self.postgres.restart().await,
        }
        self.note("Postgres answers again");
    }

    fn signal(&mut self, who: Who, signal: Signal) {
        let place = self.place(who);
        let Some(process) = &place.process else {
            return;
        };
        process.signal(signal);
        let pid = process.pid();
        match signal {
            Signal::SIGKILL => place.sent = Some(signal),
            Signal::SIGTERM => {
                place.sent.get_or_insert(signal);
                place.is_leaving = true;
            }
            _ => {}
        }
        if matches!(signal, Signal::SIGKILL | Signal::SIGSTOP) {
            self.account.excused.insert(pid);
        }
    }

    async fn start_engine(&mut self) {
        if let Some(engine) = &mut self.engine {
            engine.start_again().await;
            self.note("the engine answers again");
        }
    }

    fn tell(&self, told: Told) {
        self.operator.send(told).unwrap();
    }

    /// Ends every fault.
    pub(crate) async fn heal(&mut self) {
        self.note("all faults end");
        self.redis.heal().await;
        self.start_engine().await;
        for who in self.everybody() {
            let place = self.place(who);
            place.postgres.set(Network::Whole);
            if let Some(redis) = &place.redis {
                redis.set(Network::Whole);
            }
            place.is_cut_from_postgres = false;
            self.signal(who, Signal::SIGCONT);
        }
        self.tell(Told::Queue("effect", "resume"));
        self.tell(Told::UndrainAll);
    }

    /// Asks every process to leave, and looks that it does.
    pub(crate) async fn close(&mut self) {
        for who in self.everybody() {
            self.signal(who, Signal::SIGTERM);
        }
        for who in self.everybody() {
            let Some(process) = &mut self.place(who).process else {
                continue;
            };
            let status = process.ended(PATIENCE).await;
            self.bury(who, status);
        }
        self.sink.kill();
        if let Servers::Watched(sentinels) = &self.redis.servers {
            let failovers = sentinels.failovers();
            self.account.counts.insert("failovers", failovers);
        }
    }
}

fn has_started(log: &str) -> bool {
    log.contains("the worker takes jobs") || log.contains("the API serves")
}
