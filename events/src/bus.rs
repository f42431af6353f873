//! What this process tells the others through Redis. Everything goes through one bounded queue and one writer task,
//! so a caller never waits; what does not fit, or meets a dead Redis, is dropped and counted.

use std::sync::Arc;
use std::time::Duration;

use longshore_base::redis::Redis;
use longshore_base::{Secret, WorkspaceId};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::task::AbortOnDropHandle;

use crate::link::{Link, LinkError, LinkHealth};
use crate::{EventError, Presence};

/// The channel that carries ephemeral events and pokes.
const CHANNEL: &str = "events:broadcast";
/// What a poke looks like on the channel: not an event, so no reader takes it for one.
pub(crate) const POKE: &str = "poke";
/// Writes that may wait for Redis. Past this it is too slow to be of use and the newest are dropped.
const QUEUE: usize = 4096;
/// Writes sent in one round trip.
const BATCH: usize = 256;

/// Settings of the event bus.
#[derive(Clone, Debug)]
pub struct EventsConfig {
    /// As [`Redis::new`] reads it; may hold a password, hence secret.
    pub redis_url: Secret<String>,
    /// Put before every key and channel.
    pub redis_prefix: String,
    /// How long the liveness key of a workspace lives without a heartbeat.
    pub liveness_ttl: Duration,
}

impl EventsConfig {
    /// The liveness TTL in force: agents beat every 30 to 60 s and may block for a minute or two.
    pub const DEFAULT_LIVENESS_TTL: Duration = Duration::from_secs(180);
}

/// An event that is told to whoever listens now and recorded nowhere.
#[derive(Clone, Debug)]
pub struct BroadcastEvent {
    /// One of [`crate::names`].
    pub event_type: &'static str,
    /// The workspace it is about.
    pub workspace_id: Option<WorkspaceId>,
    /// What it says; an object.
    pub payload: Value,
}

/// An ephemeral event on the channel. It has no time: readers stamp it by the database's clock, which the sender may
/// not have at hand.
#[derive(Deserialize, Serialize)]
pub(crate) struct WireEvent {
    pub(crate) event: String,
    pub(crate) workspace_id: Option<WorkspaceId>,
    pub(crate) payload: Value,
}

/// A write on its way to Redis.
pub(crate) enum Write {
    Publish(String),
    Set {
        key: String,
        value: String,
        ttl: Duration,
    },
    Delete(Vec<String>),
}

impl Write {
    const fn what(&self) -> &'static str {
        match self {
            Self::Publish(_) => "broadcast",
            Self::Set { .. } | Self::Delete(_) => "presence",
        }
    }
}

/// This process's end of the event traffic. Cheap to clone; the tasks behind it end with the last clone.
#[derive(Clone)]
pub struct EventBus {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) config: EventsConfig,
    pub(crate) link: Arc<Link>,
    writes: mpsc::Sender<Write>,
    poke_others: Arc<Notify>,
    /// Counts pokes of this process, so that its own tailer needs no Redis.
    poke_self: watch::Sender<u64>,
    _tasks: [AbortOnDropHandle<()>; 2],
}

impl EventBus {
    /// Starts the tasks that connect and write. Redis need not be there, now or later. Wants a tokio runtime.
    ///
    /// # Errors
    /// [`EventError::RedisUrl`].
    pub fn connect(config: EventsConfig) -> Result<Self, EventError> {
        let link = Arc::new(Link::new(Redis::new(&config.redis_url)?));
        let (writes, queue) = mpsc::channel(QUEUE);
        let poke_others = Arc::new(Notify::new());
        let supervisor = {
            let link = link.clone();
            async move { link.supervise().await }
        };
        let writer = Writer {
            link: link.clone(),
            queue,
            poke: poke_others.clone(),
            channel: config.redis_prefix.clone() + CHANNEL,
        };
        Ok(Self {
            inner: Arc::new(Inner {
                config,
                link,
                writes,
                poke_others,
                poke_self: watch::Sender::new(0),
                _tasks: [
                    AbortOnDropHandle::new(tokio::spawn(supervisor)),
                    AbortOnDropHandle::new(tokio::spawn(writer.run())),
                ],
            }),
        })
    }

    /// Tells every reader to look at the log. Call it after the commit; it never blocks, and many calls become one.
    pub fn poke(&self) {
        self.inner.poke_self.send_modify(|count| *count += 1);
        self.inner.poke_others.notify_one();
    }

    /// Tells whoever listens now. Never blocks; lost if Redis is away.
    pub fn broadcast(&self, event: BroadcastEvent) {
        let wire = WireEvent {
            event: event.event_type.to_owned(),
            workspace_id: event.workspace_id,
            payload: event.payload,
        };
        match serde_json::to_string(&wire) {
            Ok(text) => self.inner.write(Write::Publish(text)),
            Err(error) => {
                tracing::error!(%error, event = wire.event, "cannot write an event as JSON");
            }
        }
    }

    /// The keys in Redis that say where workspaces are.
    #[must_use]
    pub fn presence(&self) -> Presence {
        Presence::new(self.inner.clone())
    }

    /// How the connection that writes is doing.
    #[must_use]
    pub fn health(&self) -> LinkHealth {
        self.inner.link.health()
    }

    pub(crate) fn own_pokes(&self) -> watch::Receiver<u64> {
        self.inner.poke_self.subscribe()
    }

    pub(crate) fn redis(&self) -> Redis {
        self.inner.link.redis().clone()
    }

    pub(crate) fn channel(&self) -> String {
        self.inner.config.redis_prefix.clone() + CHANNEL
    }
}

impl Inner {
    pub(crate) fn write(&self, write: Write) {
        if let Err(error) = self.writes.try_send(write) {
            let what = match error {
                mpsc::error::TrySendError::Full(write)
                | mpsc::error::TrySendError::Closed(write) => write.what(),
            };
            count_dropped(what);
        }
    }
}

fn count_dropped(what: &'static str) {
    metrics::counter!("longshore_redis_writes_dropped_total", "what" => what).increment(1);
}

struct Writer {
    link: Arc<Link>,
    queue: mpsc::Receiver<Write>,
    poke: Arc<Notify>,
    channel: String,
}

impl Writer {
    async fn run(mut self) {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            let mut poked = false;
            tokio::select! {
                received = self.queue.recv_many(&mut batch, BATCH) => {
                    if received == 0 {
                        return;
                    }
                }
                () = self.poke.notified() => poked = true,
            }
            self.send(&batch, poked).await;
            batch.clear();
        }
    }

    async fn send(&self, batch: &[Write], poked: bool) {
        let mut commands = redis::pipe();
        for write in batch {
            match write {
                Write::Publish(text) => commands.publish(&self.channel, text).ignore(),
                // A zero expiry is an error in Redis; the shortest it knows is a millisecond.
                Write::Set { key, value, ttl } => commands
                    .pset_ex(
                        key,
                        value,
                        u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).max(1),
                    )
                    .ignore(),
                Write::Delete(keys) => commands.del(keys).ignore(),
            };
        }
        if poked {
            commands.publish(&self.channel, POKE).ignore();
        }
        match self.link.run::<()>(&commands).await {
            Ok(()) => {}
            Err(error) => {
                if let LinkError::Refused(error) = error {
                    tracing::warn!(%error, "Redis refused a write of presence or events");
                }
                for write in batch {
                    count_dropped(write.what());
                }
            }
        }
    }
}
