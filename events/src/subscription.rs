//! Listens on the Redis channel: pokes go to the tailer, ephemeral events to the hub. Reconnects for ever.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use longshore_base::random::jittered;
use longshore_base::redis::Redis;
use redis::Client;
use redis::aio::{PubSubSink, PubSubStream};
use tokio::sync::Notify;
use tokio::time::{interval, timeout};

use crate::bus::{POKE, WireEvent};
use crate::hub::Shared;
use crate::link::Moved;

const CONNECT_BUDGET: Duration = Duration::from_secs(2);
/// A listener hears nothing from a dead peer, so it asks.
const PING_PERIOD: Duration = Duration::from_secs(5);
const PING_BUDGET: Duration = Duration::from_secs(2);
const FIRST_BACKOFF: Duration = Duration::from_millis(250);
const LAST_BACKOFF: Duration = Duration::from_secs(5);

pub(crate) struct Listener {
    pub(crate) redis: Redis,
    pub(crate) channel: String,
    pub(crate) shared: Arc<Shared>,
    pub(crate) pokes: Arc<Notify>,
}

#[derive(Debug, thiserror::Error)]
enum ListenError {
    #[error("Redis does not answer in time")]
    Timeout(#[from] tokio::time::error::Elapsed),
    #[error("Redis: {0}")]
    Redis(#[from] redis::RedisError),
    #[error("Redis closed the subscription")]
    Closed,
    #[error(transparent)]
    Moved(#[from] Moved),
}

impl Listener {
    pub(crate) async fn run(self) {
        let mut backoff = FIRST_BACKOFF;
        let mut complained = false;
        loop {
            let (heard, error) = self.listen().await;
            self.shared.note_listening(false);
            if heard {
                backoff = FIRST_BACKOFF;
                complained = false;
            }
            if !complained {
                tracing::warn!(%error, "not listening on the event channel; retrying");
                complained = true;
            }
            tokio::time::sleep(jittered(backoff)).await;
            backoff = (backoff * 2).min(LAST_BACKOFF);
        }
    }

    /// Listens until it fails; also says whether it was connected at all.
    async fn listen(&self) -> (bool, ListenError) {
        let (server, (mut sink, mut messages)) = match self.subscribe().await {
            Ok(halves) => halves,
            Err(error) => return (false, error),
        };
        self.shared.note_listening(true);
        // Pokes sent while nobody listened are lost.
        self.pokes.notify_one();
        let mut ping = interval(PING_PERIOD);
        ping.reset();
        let mut moved = pin!(self.redis.moved_from(&server));
        loop {
            tokio::select! {
                message = messages.next() => match message {
                    Some(message) => self.receive(message.get_payload_bytes()),
                    None => return (true, ListenError::Closed),
                },
                _ = ping.tick() => match timeout(PING_BUDGET, sink.ping::<redis::Value>()).await {
                    Ok(Ok(_)) => {}
                    Ok(Err(error)) => return (true, error.into()),
                    Err(elapsed) => return (true, elapsed.into()),
                },
                () = &mut moved => return (true, Moved.into()),
            }
        }
    }

    async fn subscribe(&self) -> Result<(Client, (PubSubSink, PubSubStream)), ListenError> {
        let attempt = async {
            let (server, mut subscription) = self.redis.listen().await?;
            subscription.subscribe(&self.channel).await?;
            Ok::<_, redis::RedisError>((server, subscription.split()))
        };
        Ok(timeout(CONNECT_BUDGET, attempt).await??)
    }

    fn receive(&self, payload: &[u8]) {
        if payload == POKE.as_bytes() {
            self.pokes.notify_one();
            return;
        }
        match serde_json::from_slice::<WireEvent>(payload) {
            Ok(event) => self.shared.deliver_ephemeral(event),
            Err(error) => tracing::debug!(%error, "something on the event channel is no event"),
        }
    }
}
