//! The Redis side: one stream per queue that says which jobs have been admitted, and one channel that says that running
//! jobs are to be cancelled.
//!
//! A hint is a job id and a dispatch number. Publishing has a budget and a circuit breaker, for it must never hold
//! anybody up: a hint that is not sent is sent again by a later pass, and while Redis is away workers read the ledger.
//! Nor is a poke needed to arrive: workers look for cancel requests by themselves, only later.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use longshore_base::random::jittered;
use longshore_base::redis::{Redis, RedisUrlError};
use longshore_base::{JobId, Secret, failpoint};
use redis::aio::MultiplexedConnection;
use redis::streams::{StreamAutoClaimReply, StreamReadReply};
use redis::{AsyncConnectionConfig, Pipeline, RedisError};
use tokio::sync::Notify;

/// Longest a publish may take before the breaker opens, in milliseconds. A test that must see each publish allows more.
const PUBLISH_BUDGET_MS: usize = 100;
/// How long an open breaker lets nothing through.
const BREAKER_OPEN: Duration = Duration::from_secs(1);
/// Longest wait for anything Redis answers; more than the block of a read.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(3);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A read waits this long for a hint.
pub(crate) const READ_BLOCK: Duration = Duration::from_secs(1);
/// Entries another reader took but never acknowledged are taken over after this.
const RECLAIM_IDLE: Duration = Duration::from_secs(10);
/// A stream nobody reads keeps about this many entries; they are only hints.
const STREAM_CAP: usize = 20_000;
/// Carries pokes without content: whoever hears one asks the ledger what was cancelled.
const CANCEL_CHANNEL: &str = "jobs-cancelled";
/// A listener hears nothing from a server that is gone or is no master any more, so after a silence it begins anew.
const LISTEN_SILENCE: Duration = Duration::from_secs(30);
/// After a failed attempt to listen.
const LISTEN_RETRY: Duration = Duration::from_secs(1);
const GROUP: &str = "workers";
const FIELD: &str = "h";

/// How to reach Redis.
#[derive(Clone, Debug)]
pub struct HintConfig {
    /// As [`Redis::new`] reads it; may hold a password, hence secret.
    pub url: Secret<String>,
    /// Put before every key.
    pub prefix: String,
}

/// An admitted job, as Redis carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hint {
    pub(crate) job_id: JobId,
    pub(crate) dispatch: i32,
}

impl Hint {
    pub(crate) fn encode(&self) -> String {
        format!("{}:{}", self.job_id, self.dispatch)
    }

    fn decode(text: &str) -> Option<Self> {
        let (id, dispatch) = text.split_once(':')?;
        Some(Self {
            job_id: id.parse().ok()?,
            dispatch: dispatch.parse().ok()?,
        })
    }
}

/// A hint with the entry to acknowledge.
#[derive(Clone, Debug)]
pub(crate) struct Delivered {
    pub(crate) entry: String,
    /// `None` when the entry is not one of ours; it is acknowledged and dropped.
    pub(crate) hint: Option<Hint>,
}

/// The publishing side, shared by everybody in a process.
#[derive(Clone)]
pub struct Hints {
    inner: Arc<HintsInner>,
}

struct HintsInner {
    redis: Redis,
    prefix: String,
    publish_budget: Duration,
    link: tokio::sync::Mutex<Option<MultiplexedConnection>>,
    breaker: Mutex<Breaker>,
}

#[derive(Default)]
struct Breaker {
    open_until: Option<Instant>,
    /// Since when no publish was answered.
    silent_since: Option<Instant>,
}

impl Hints {
    /// Prepares; connects on first use.
    ///
    /// # Errors
    /// When the URL does not parse. The error does not quote it.
    pub fn new(config: &HintConfig) -> Result<Self, RedisUrlError> {
        let publish_budget = failpoint::number("LONGSHORE_PUBLISH_BUDGET_MS", PUBLISH_BUDGET_MS);
        Ok(Self {
            inner: Arc::new(HintsInner {
                redis: Redis::new(&config.url)?,
                prefix: config.prefix.clone(),
                publish_budget: Duration::from_millis(publish_budget as u64),
                link: tokio::sync::Mutex::new(None),
                breaker: Mutex::default(),
            }),
        })
    }

    /// Whether the last attempt to talk to Redis failed within the last second.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.breaker()
            .open_until
            .is_some_and(|until| Instant::now() < until)
    }

    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        self.inner
            .breaker
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes within the budget; what cannot be sent is counted and left to the next pass.
    pub(crate) async fn publish(&self, queue: &str, hints: &[Hint]) {
        // Redis takes an empty list of commands for a mistake, and the breaker would open.
        if hints.is_empty() {
            return;
        }
        let stream = self.stream(queue);
        let mut commands = redis::pipe();
        for hint in hints {
            commands
                .cmd("XADD")
                .arg(&stream)
                .arg("MAXLEN")
                .arg("~")
                .arg(STREAM_CAP)
                .arg("*")
                .arg(FIELD)
                .arg(hint.encode())
                .ignore();
        }
        let counter = if self.send(&commands).await {
            metrics::counter!("longshore_hints_published_total")
        } else {
            metrics::counter!("longshore_hints_lost_total")
        };
        counter.increment(hints.len() as u64);
    }

    /// Tells every worker to look for cancel requests, within the budget.
    pub(crate) async fn poke_cancels(&self) {
        let mut commands = redis::pipe();
        commands.publish(self.cancel_channel(), "").ignore();
        self.send(&commands).await;
    }

    /// Hears the pokes of [`Self::poke_cancels`], for as long as it runs. What was said while nobody listened counts as
    /// heard.
    pub(crate) async fn hear_cancels(&self, heard: &Notify) {
        loop {
            if let Err(error) = self.listen(heard).await {
                tracing::debug!(%error, "cannot hear of cancel requests; they are looked for every so often");
                tokio::time::sleep(jittered(LISTEN_RETRY)).await;
            }
        }
    }

    /// Listens until there has been silence for long.
    async fn listen(&self, heard: &Notify) -> Result<(), RedisError> {
        let subscribe = async {
            let (_, mut listening) = self.inner.redis.listen().await?;
            listening.subscribe(self.cancel_channel()).await?;
            Ok::<_, RedisError>(listening)
        };
        let mut listening = tokio::time::timeout(CONNECT_TIMEOUT, subscribe)
            .await
            .unwrap_or_else(|_| Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()))?;
        heard.notify_one();
        let mut pokes = listening.on_message();
        while let Ok(poke) = tokio::time::timeout(LISTEN_SILENCE, pokes.next()).await {
            if poke.is_none() {
                return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
            }
            heard.notify_one();
        }
        Ok(())
    }

    /// Sends within the budget, unless the breaker is open. Answers whether it was done.
    async fn send(&self, commands: &Pipeline) -> bool {
        if self.is_open() {
            return false;
        }
        match tokio::time::timeout(self.inner.publish_budget, self.try_send(commands)).await {
            Ok(Ok(())) => {
                self.breaker().silent_since = None;
                return true;
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "cannot publish hints; jobs go on more slowly");
                self.drop_link();
            }
            Err(_) => {
                tracing::warn!(
                    "Redis did not answer within the publish budget; jobs go on more slowly"
                );
                // One that is only slow is kept, for another is no quicker to make. One that hangs may have a successor.
                let since = *self.breaker().silent_since.get_or_insert_with(Instant::now);
                if since.elapsed() > RESPONSE_TIMEOUT {
                    self.drop_link();
                }
            }
        }
        self.breaker().open_until = Some(Instant::now() + BREAKER_OPEN);
        false
    }

    /// The next publish makes a new connection, unless one is being made.
    fn drop_link(&self) {
        if let Ok(mut link) = self.inner.link.try_lock() {
            *link = None;
            self.breaker().silent_since = None;
        }
    }

    async fn try_send(&self, commands: &Pipeline) -> Result<(), RedisError> {
        let mut link = self.link().await?;
        commands.query_async(&mut link).await
    }

    /// The connection. Making one goes on beyond the budget of the publish that wanted it, or a slow Redis would never
    /// have one.
    async fn link(&self) -> Result<MultiplexedConnection, RedisError> {
        if let Some(link) = &*self.inner.link.lock().await {
            return Ok(link.clone());
        }
        let inner = Arc::clone(&self.inner);
        let making = tokio::spawn(async move {
            let mut slot = inner.link.lock().await;
            if let Some(link) = &*slot {
                return Ok(link.clone());
            }
            let link = connect(&inner.redis).await?;
            Ok(slot.insert(link).clone())
        });
        making
            .await
            .map_err(|error| RedisError::from(std::io::Error::other(error)))?
    }

    fn stream(&self, queue: &str) -> String {
        format!("{}jobs:{queue}", self.inner.prefix)
    }

    fn cancel_channel(&self) -> String {
        self.inner.prefix.clone() + CANCEL_CHANNEL
    }

    /// A reader of one queue with a connection of its own.
    pub(crate) fn reader(&self, queue: &str, consumer: &str) -> HintReader {
        HintReader {
            redis: self.inner.redis.clone(),
            stream: self.stream(queue),
            consumer: consumer.to_owned(),
            link: None,
            // There is none; but a consumer that has read something is seen in the group even while it waits.
            own_pending_first: true,
            reclaimed_at: Instant::now(),
        }
    }
}

impl std::fmt::Debug for Hints {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hints")
    }
}

async fn connect(redis: &Redis) -> Result<MultiplexedConnection, RedisError> {
    let config = AsyncConnectionConfig::new()
        .set_response_timeout(Some(RESPONSE_TIMEOUT))
        .set_connection_timeout(Some(CONNECT_TIMEOUT));
    let (_, link) = redis.connect(&config).await?;
    Ok(link)
}

/// Reads one stream as one consumer of the group.
pub(crate) struct HintReader {
    redis: Redis,
    stream: String,
    consumer: String,
    link: Option<MultiplexedConnection>,
    /// After a connection was lost half-way, what had been delivered to us comes first.
    own_pending_first: bool,
    reclaimed_at: Instant,
}

impl HintReader {
    /// Waits up to [`READ_BLOCK`] for at most `most` hints.
    pub(crate) async fn read(&mut self, most: usize) -> Result<Vec<Delivered>, RedisError> {
        let read = self.try_read(most).await;
        if let Err(error) = &read {
            self.link = None;
            self.own_pending_first = true;
            if error.code() == Some("NOGROUP") {
                // FLUSHALL or a new Redis. From the beginning, never from `$`: hints may be there already.
                return self.create_group().await.map(|()| Vec::new());
            }
        }
        read
    }

    async fn try_read(&mut self, most: usize) -> Result<Vec<Delivered>, RedisError> {
        if self.reclaimed_at.elapsed() > RECLAIM_IDLE {
            self.reclaimed_at = Instant::now();
            let taken = self.reclaim(most).await?;
            if !taken.is_empty() {
                return Ok(taken);
            }
        }
        if self.own_pending_first {
            let pending = self.read_from("0", most).await?;
            if !pending.is_empty() {
                return Ok(pending);
            }
            self.own_pending_first = false;
        }
        self.read_from(">", most).await
    }

    async fn read_from(&mut self, from: &str, most: usize) -> Result<Vec<Delivered>, RedisError> {
        let mut command = redis::cmd("XREADGROUP");
        command
            .arg("GROUP")
            .arg(GROUP)
            .arg(&self.consumer)
            .arg("COUNT")
            .arg(most);
        command
            .arg("BLOCK")
            .arg(READ_BLOCK.as_millis() as u64)
            .arg("STREAMS")
            .arg(&self.stream)
            .arg(from);
        let reply: Option<StreamReadReply> = command.query_async(self.link().await?).await?;
        let entries = reply
            .into_iter()
            .flat_map(|reply| reply.keys)
            .flat_map(|key| key.ids);
        Ok(entries.map(delivered).collect())
    }

    /// Takes over what readers that died between delivery and claim left behind.
    async fn reclaim(&mut self, most: usize) -> Result<Vec<Delivered>, RedisError> {
        let mut command = redis::cmd("XAUTOCLAIM");
        command
            .arg(&self.stream)
            .arg(GROUP)
            .arg(&self.consumer)
            .arg(RECLAIM_IDLE.as_millis() as u64)
            .arg("0");
        command.arg("COUNT").arg(most);
        let reply: StreamAutoClaimReply = command.query_async(self.link().await?).await?;
        Ok(reply.claimed.into_iter().map(delivered).collect())
    }

    /// Acknowledges and deletes, right after the claim, won or lost.
    pub(crate) async fn acknowledge(&mut self, delivered: &[Delivered]) -> Result<(), RedisError> {
        let entries: Vec<&str> = delivered
            .iter()
            .map(|delivered| delivered.entry.as_str())
            .collect();
        let stream = self.stream.clone();
        let mut pipe = redis::pipe();
        pipe.cmd("XACK")
            .arg(&stream)
            .arg(GROUP)
            .arg(&entries)
            .ignore();
        pipe.cmd("XDEL").arg(&stream).arg(&entries).ignore();
        pipe.query_async(self.link().await?).await
    }

    /// Leaves the group, unless entries are still pending for this consumer: those another reader must find.
    pub(crate) async fn leave(&mut self) -> Result<(), RedisError> {
        let script = redis::Script::new(
            "if #redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, ARGV[2]) == 0 then \
               return redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2]) end return -1",
        );
        let (stream, consumer) = (self.stream.clone(), self.consumer.clone());
        let link = self.link().await?;
        let _left: i64 = script
            .key(stream)
            .arg(GROUP)
            .arg(consumer)
            .invoke_async(link)
            .await?;
        Ok(())
    }

    async fn create_group(&mut self) -> Result<(), RedisError> {
        let stream = self.stream.clone();
        let created: Result<(), RedisError> = redis::cmd("XGROUP")
            .arg("CREATE")
            .arg(stream)
            .arg(GROUP)
            .arg("0")
            .arg("MKSTREAM")
            .query_async(self.link().await?)
            .await;
        match created {
            Err(error) if error.code() == Some("BUSYGROUP") => Ok(()),
            other => other,
        }
    }

    async fn link(&mut self) -> Result<&mut MultiplexedConnection, RedisError> {
        match &mut self.link {
            Some(_) => {}
            None => self.link = Some(connect(&self.redis).await?),
        }
        self.link
            .as_mut()
            .ok_or_else(|| RedisError::from(std::io::Error::from(std::io::ErrorKind::NotConnected)))
    }
}

fn delivered(entry: redis::streams::StreamId) -> Delivered {
    let hint = entry
        .get::<String>(FIELD)
        .and_then(|text| Hint::decode(&text));
    Delivered {
        entry: entry.id,
        hint,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn publishing_nothing_asks_nothing_of_redis() {
        let hints = Hints::new(&HintConfig {
            url: Secret::new("redis://127.0.0.1:1".to_owned()),
            prefix: String::new(),
        })
        .unwrap();
        hints.publish("test", &[]).await;
        assert!(!hints.is_open(), "the breaker");
    }
}
