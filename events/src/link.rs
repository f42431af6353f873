//! One shared connection to Redis that never makes a caller wait for a reconnect.
//!
//! ```text
//! down ──supervisor connects──▶ up ──any I/O error or timeout──▶ down (backoff 0.25 s … 5 s, jittered)
//! ```
//!
//! The crate's connection manager reconnects inside the caller's command and keeps a connection whose answers time
//! out, as those of a stopped process do. Here a task owns reconnecting, and while the link is down every command fails at once.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use longshore_base::clock::Stopwatch;
use longshore_base::random::jittered;
use longshore_base::redis::Redis;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, FromRedisValue, Pipeline, RedisError, ServerErrorKind};
use tokio::sync::Notify;
use tokio::time::timeout;

/// Longest that one command may take, whoever waits for it.
pub(crate) const COMMAND_BUDGET: Duration = Duration::from_millis(250);
const CONNECT_BUDGET: Duration = Duration::from_secs(1);
const FIRST_BACKOFF: Duration = Duration::from_millis(250);
const LAST_BACKOFF: Duration = Duration::from_secs(5);

/// How a link to Redis is doing.
#[derive(Clone, Copy, Debug)]
pub struct LinkHealth {
    /// Whether commands are being answered.
    pub up: bool,
    /// For how long it has been so.
    pub since: Duration,
}

/// Why a command brought nothing. The cause is logged where the link goes down, once.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    #[error("Redis is away")]
    Down,
    #[error("Redis refused the command")]
    Refused(#[source] redis::RedisError),
}

pub(crate) struct Link {
    redis: Redis,
    state: Mutex<State>,
    lost: Notify,
}

struct State {
    connection: Option<MultiplexedConnection>,
    /// Counts connections, so that the late failure of an old one does not take down its successor.
    epoch: u64,
    since: Stopwatch,
}

impl Link {
    pub(crate) fn new(redis: Redis) -> Self {
        Self {
            redis,
            state: Mutex::new(State {
                connection: None,
                epoch: 0,
                since: Stopwatch::start(),
            }),
            lost: Notify::new(),
        }
    }

    pub(crate) fn redis(&self) -> &Redis {
        &self.redis
    }

    pub(crate) fn health(&self) -> LinkHealth {
        let state = self.lock();
        LinkHealth {
            up: state.connection.is_some(),
            since: state.since.elapsed(),
        }
    }

    /// Sends commands in one round trip, or fails: at once while Redis is away, else within [`COMMAND_BUDGET`].
    pub(crate) async fn run<T: FromRedisValue>(&self, commands: &Pipeline) -> Result<T, LinkError> {
        let (connection, epoch) = {
            let state = self.lock();
            (state.connection.clone(), state.epoch)
        };
        let Some(mut connection) = connection else {
            return Err(LinkError::Down);
        };
        match timeout(COMMAND_BUDGET, commands.query_async(&mut connection)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) if is_lost(&error) => {
                self.lose(epoch, &error);
                Err(LinkError::Down)
            }
            Ok(Err(error)) => Err(LinkError::Refused(error)),
            Err(elapsed) => {
                self.lose(epoch, &elapsed);
                Err(LinkError::Down)
            }
        }
    }

    /// Keeps the link connected for as long as it runs.
    pub(crate) async fn supervise(&self) {
        let mut backoff = FIRST_BACKOFF;
        let mut complained = false;
        let mut policy_known = false;
        loop {
            match self.connect().await {
                Ok((server, connection)) => {
                    let epoch = self.adopt(connection.clone());
                    if !policy_known {
                        policy_known = warn_of_eviction(connection).await;
                    }
                    tracing::info!(redis.role = "events", "connected to Redis");
                    complained = false;
                    backoff = FIRST_BACKOFF;
                    tokio::select! {
                        () = self.lost.notified() => {}
                        () = self.redis.moved_from(&server) => {
                            self.lose(epoch, &Moved);
                            self.lost.notified().await;
                        }
                    }
                }
                Err(error) => {
                    if !complained {
                        tracing::warn!(redis.role = "events", %error, "cannot connect to Redis; retrying");
                        complained = true;
                    }
                    metrics::gauge!("longshore_redis_up", "role" => "events").set(0.0);
                }
            }
            tokio::time::sleep(jittered(backoff)).await;
            backoff = (backoff * 2).min(LAST_BACKOFF);
        }
    }

    async fn connect(&self) -> Result<(Client, MultiplexedConnection), RedisError> {
        let attempt = async {
            let config = AsyncConnectionConfig::new();
            let (server, mut connection) = self.redis.connect(&config).await?;
            // A stopped process still accepts connections; only an answer proves it lives.
            redis::cmd("PING")
                .query_async::<()>(&mut connection)
                .await?;
            Ok((server, connection))
        };
        timeout(CONNECT_BUDGET, attempt)
            .await
            .unwrap_or_else(|_| Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()))
    }

    fn adopt(&self, connection: MultiplexedConnection) -> u64 {
        let mut state = self.lock();
        state.connection = Some(connection);
        state.epoch += 1;
        state.since = Stopwatch::start();
        metrics::gauge!("longshore_redis_up", "role" => "events").set(1.0);
        state.epoch
    }

    fn lose(&self, epoch: u64, error: &dyn std::error::Error) {
        let mut state = self.lock();
        if state.epoch != epoch || state.connection.is_none() {
            return;
        }
        state.connection = None;
        state.since = Stopwatch::start();
        drop(state);
        metrics::gauge!("longshore_redis_up", "role" => "events").set(0.0);
        tracing::warn!(redis.role = "events", %error, "lost Redis; going on without it");
        self.lost.notify_one();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sentinels name another server.
#[derive(Debug, thiserror::Error)]
#[error("another server is the master")]
pub(crate) struct Moved;

/// Whether another connection would do better: this one is broken, or its server was demoted to a replica.
fn is_lost(error: &RedisError) -> bool {
    error.is_io_error()
        || error.is_unrecoverable_error()
        || error.kind() == ServerErrorKind::ReadOnly.into()
}

/// Says so where Redis may throw keys away to make room. Answers whether Redis told its policy.
///
/// The policy is read from `INFO`, which managed Redis answers as well; most of them refuse `CONFIG`.
async fn warn_of_eviction(mut connection: MultiplexedConnection) -> bool {
    let mut info = redis::cmd("INFO");
    info.arg("memory");
    let asked = info.query_async::<redis::InfoDict>(&mut connection);
    let told = match timeout(COMMAND_BUDGET, asked).await {
        Ok(Ok(told)) => told,
        Ok(Err(error)) => {
            tracing::debug!(%error, "Redis does not tell its maxmemory-policy");
            return false;
        }
        Err(elapsed) => {
            tracing::debug!(error = %elapsed, "Redis does not tell its maxmemory-policy");
            return false;
        }
    };
    let Some(policy) = told.get::<String>("maxmemory_policy") else {
        return false;
    };
    if policy != "noeviction" {
        tracing::warn!(
            redis.maxmemory_policy = policy,
            "Redis may throw away streams and keys of ours when its memory is full, which slows everything down: set its \
             maxmemory-policy to noeviction"
        );
    }
    true
}
