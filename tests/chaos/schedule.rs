//! What goes wrong and what is asked for, and when: all of it drawn from a seed before anything starts.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde::Serialize;

use crate::proxy::Network;

pub(crate) const WORKERS: usize = 4;
/// Exclusive keys that jobs contend for.
const KEYS: usize = 10;
const DEDUPE_KEYS: usize = 4;
const TENANTS: usize = 3;
const JOBS_PER_SECOND: f64 = 25.0;
const WORKSPACES_PER_SECOND: f64 = 0.5;
/// Of the queues, both places in one.
const QUEUE: &str = "effect";

/// A fault, or the end of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// `kill -9`; it is started again soon after.
    Kill(Who),
    /// SIGSTOP.
    Stop(Who),
    /// SIGCONT.
    Continue(Who),
    /// SIGTERM, as in a deployment.
    Terminate(Who),
    /// The network between a process and Postgres.
    ToPostgres(Who, Network),
    /// The network between a process and Redis.
    ToRedis(Who, Network),
    FlushRedis,
    KillRedis,
    StartRedis,
    FreezeRedis,
    ThawRedis,
    /// The master and its replica change places.
    FailOver,
    /// SIGTERM to the Docker engine.
    StopEngine,
    /// SIGKILL.
    KillEngine,
    StartEngine,
    RestartPostgres,
    CrashPostgres,
    Operate(Operation),
}

/// A process of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    Worker(usize),
    Api,
}

/// What an operator asks of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// `pause`, `drain` or `resume`.
    Queue(&'static str, &'static str),
    /// `drain` or `undrain`.
    Worker(usize, &'static str),
}

/// How runs of a job are to end, as the kind `effect` reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Plan {
    Succeed,
    Fail(i32),
    Die(i32),
    Permanent,
    Panic,
}

/// A job to be asked for.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) kind: &'static str,
    pub(crate) args_version: i16,
    pub(crate) at: Duration,
    pub(crate) place: &'static str,
    pub(crate) tenant: String,
    pub(crate) keys: Vec<String>,
    pub(crate) dedupe_key: Option<String>,
    pub(crate) delay: Duration,
    pub(crate) steps: u32,
    pub(crate) step_ms: u64,
    pub(crate) plan: Plan,
    /// Whether anybody is told; else the workers find it.
    pub(crate) poke: bool,
}

/// What a run is made of, besides processes and Postgres.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scene {
    /// A Redis, with networks that can be cut, and no engine.
    Plain,
    /// A master and a replica of Redis, watched over by sentinels.
    Sentinels,
    /// The first, with a Docker engine.
    Engine,
}

/// One run of the suite.
#[derive(Clone, Debug)]
pub(crate) struct Schedule {
    pub(crate) faults: Vec<(Duration, Fault)>,
    pub(crate) requests: Vec<Request>,
    /// When workspaces are asked for.
    pub(crate) workspaces: Vec<Duration>,
}

impl Schedule {
    pub(crate) fn draw(seed: u64, length: Duration, scene: Scene) -> Self {
        let mut dice = Dice(StdRng::seed_from_u64(seed));
        let faults = dice.faults(length, scene);
        let requests = dice.requests(length);
        let workspaces = dice.moments(length, WORKSPACES_PER_SECOND);
        Self {
            faults,
            requests,
            workspaces,
        }
    }
}

struct Dice(StdRng);

impl Dice {
    fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.0.random_range(0..choices.len())]
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.0.random_range(0..100) < percent
    }

    fn millis(&mut self, range: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(self.0.random_range(range))
    }

    fn moments(&mut self, length: Duration, per_second: f64) -> Vec<Duration> {
        let count = (length.as_secs_f64() * per_second) as usize;
        let mut moments: Vec<_> = (0..count)
            .map(|_| length.mul_f64(self.0.random_range(0.0..1.0)))
            .collect();
        moments.sort();
        moments
    }

    fn who(&mut self) -> Who {
        match self.0.random_range(0..=WORKERS) {
            WORKERS => Who::Api,
            worker => Who::Worker(worker),
        }
    }

    fn faults(&mut self, length: Duration, scene: Scene) -> Vec<(Duration, Fault)> {
        let mut faults = Vec::new();
        let mut at = Duration::from_millis(500);
        let mut postgres_until = Duration::ZERO;
        // A failover takes a second and a half.
        let longest_away = if scene == Scene::Sentinels {
            5000
        } else {
            2000
        };
        let mut engine_until = Duration::ZERO;
        let sides = if scene == Scene::Engine { 38 } else { 30 };
        while at < length {
            let mut between = |from: Fault, lasts: Duration, to: Fault| {
                faults.push((at, from));
                faults.push((at + lasts, to));
            };
            match self.0.random_range(0..sides) {
                0..5 => faults.push((at, Fault::Kill(self.who()))),
                5..9 => {
                    let who = self.who();
                    between(
                        Fault::Stop(who),
                        self.millis(300..8000),
                        Fault::Continue(who),
                    );
                }
                9..11 => {
                    let worker = Who::Worker(self.0.random_range(0..WORKERS));
                    faults.push((at, Fault::Terminate(worker)));
                }
                11..14 => {
                    let (who, how) = (self.who(), self.one_of(&[Network::Stalled, Network::Cut]));
                    between(
                        Fault::ToPostgres(who, how),
                        self.millis(300..8000),
                        Fault::ToPostgres(who, Network::Whole),
                    );
                }
                14..17 if scene == Scene::Sentinels => faults.push((at, Fault::FailOver)),
                14..17 => {
                    let (who, how) = (self.who(), self.one_of(&[Network::Stalled, Network::Cut]));
                    between(
                        Fault::ToRedis(who, how),
                        self.millis(300..5000),
                        Fault::ToRedis(who, Network::Whole),
                    );
                }
                17..20 => faults.push((at, Fault::FlushRedis)),
                20..22 => between(
                    Fault::KillRedis,
                    self.millis(100..longest_away),
                    Fault::StartRedis,
                ),
                22 => between(Fault::FreezeRedis, self.millis(500..4000), Fault::ThawRedis),
                23..25 if at > postgres_until => {
                    postgres_until = at + Duration::from_secs(6);
                    faults.push((
                        at,
                        self.one_of(&[Fault::RestartPostgres, Fault::CrashPostgres]),
                    ));
                }
                25..28 => {
                    let close = self.one_of(&["pause", "drain"]);
                    between(
                        Fault::Operate(Operation::Queue(QUEUE, close)),
                        self.millis(300..3000),
                        Fault::Operate(Operation::Queue(QUEUE, "resume")),
                    );
                }
                30.. if at < engine_until => {}
                30.. => {
                    let how = self.one_of(&[Fault::StopEngine, Fault::KillEngine]);
                    let lasts = self.millis(100..2000);
                    engine_until = at + lasts + Duration::from_secs(2);
                    between(how, lasts, Fault::StartEngine);
                }
                _ => {
                    let worker = self.0.random_range(0..WORKERS);
                    between(
                        Fault::Operate(Operation::Worker(worker, "drain")),
                        self.millis(300..4000),
                        Fault::Operate(Operation::Worker(worker, "undrain")),
                    );
                }
            }
            at += self.millis(200..1100);
        }
        faults.sort_by_key(|(at, _)| *at);
        faults
    }

    fn requests(&mut self, length: Duration) -> Vec<Request> {
        self.moments(length, JOBS_PER_SECOND)
            .into_iter()
            .map(|at| self.request(at, length))
            .collect()
    }

    fn request(&mut self, at: Duration, length: Duration) -> Request {
        let keys: Vec<String> = match self.0.random_range(0..100) {
            0..40 => Vec::new(),
            40..85 => vec![self.key()],
            _ => {
                let mut keys = vec![self.key(), self.key()];
                keys.sort();
                keys.dedup();
                keys
            }
        };
        let dedupe_key = self
            .chance(8)
            .then(|| format!("twin-{}", self.0.random_range(0..DEDUPE_KEYS)));
        let delay = if self.chance(12) {
            self.millis(1..3000)
        } else {
            Duration::ZERO
        };
        // A job that takes three workers along needs their three funerals.
        let early = at < length.mul_f64(0.3);
        let plan = match self.0.random_range(0..1000) {
            // Which of the twins runs is not known, so they all want the same.
            _ if dedupe_key.is_some() => Plan::Succeed,
            0..80 => Plan::Fail(self.0.random_range(1..=3)),
            80..110 => Plan::Fail(4),
            110..130 => Plan::Permanent,
            130..140 => Plan::Panic,
            140..148 => Plan::Die(self.0.random_range(1..=2)),
            148..152 if early => Plan::Die(3),
            _ => Plan::Succeed,
        };
        Request {
            at,
            place: self.one_of(&["left", "right"]),
            tenant: format!("tenant-{}", self.0.random_range(0..TENANTS)),
            keys,
            dedupe_key,
            delay,
            steps: self.0.random_range(1..=4),
            step_ms: self.0.random_range(5..120),
            plan,
            kind: QUEUE,
            args_version: 1,
            poke: self.chance(70),
        }
    }

    fn key(&mut self) -> String {
        format!("key-{}", self.0.random_range(0..KEYS))
    }
}
