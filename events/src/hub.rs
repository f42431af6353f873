//! The fan-out of one process: the tailer and the listener put events in, bounded subscribers take them out.
//!
//! A subscriber that does not keep up loses its place at once and alone: it drains what it has, then learns that it
//! [`Received::Overflowed`], and its client comes back and refetches. Nobody else notices, and nothing is ever skipped
//! unawares.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use longshore_base::clock::Stopwatch;
use longshore_base::{Timestamp, WorkspaceId};
use sqlx::PgPool;
use tokio::sync::{Notify, mpsc};
use tokio_util::task::AbortOnDropHandle;

use crate::bus::WireEvent;
use crate::subscription::Listener;
use crate::tailer::Tailer;
use crate::{EventBus, LinkHealth, Message, Position};

/// What a subscriber wants to see.
#[derive(Clone, Copy, Debug)]
pub enum Filter {
    /// Every event.
    All,
    /// The events of one workspace.
    Workspace(WorkspaceId),
}

impl Filter {
    fn wants(self, about: Option<WorkspaceId>) -> bool {
        match self {
            Self::All => true,
            Self::Workspace(id) => about == Some(id),
        }
    }
}

/// One event on its way to a client.
#[derive(Debug)]
pub struct Delivery {
    /// Its place in the log; `None` for an ephemeral event.
    pub position: Option<Position>,
    /// The event.
    pub message: Message,
    /// The event as JSON, written once for all sockets.
    pub json: String,
}

/// What a subscriber got.
#[derive(Debug)]
pub enum Received {
    /// An event.
    Event(Arc<Delivery>),
    /// The subscriber was too slow; nothing more will come.
    Overflowed,
    /// The hub is shutting down; nothing more will come.
    Closed,
}

/// How the hub's two sources are doing.
#[derive(Clone, Copy, Debug)]
pub struct HubHealth {
    /// Time since the log was last read; `None` before the first time.
    pub tail_age: Option<Duration>,
    /// The subscription in Redis.
    pub listener: LinkHealth,
}

/// The fan-out of this process. Cheap to clone; its tasks end with the last clone.
#[derive(Clone)]
pub struct Hub {
    shared: Arc<Shared>,
    _tasks: Arc<[AbortOnDropHandle<()>; 2]>,
}

impl Hub {
    /// Starts to follow the log from its present end, and to listen. Neither service need be there yet.
    #[must_use]
    pub fn start(pool: PgPool, bus: &EventBus) -> Self {
        let shared = Arc::new(Shared::new());
        let pokes = Arc::new(Notify::new());
        let tailer = Tailer {
            pool,
            shared: shared.clone(),
            own_pokes: bus.own_pokes(),
            others_pokes: pokes.clone(),
        };
        let listener = Listener {
            redis: bus.redis(),
            channel: bus.channel(),
            shared: shared.clone(),
            pokes,
        };
        Self {
            shared,
            _tasks: Arc::new([
                AbortOnDropHandle::new(tokio::spawn(tailer.run())),
                AbortOnDropHandle::new(tokio::spawn(listener.run())),
            ]),
        }
    }

    /// Takes part from now on, with room for `capacity` events that have not been taken yet.
    #[must_use]
    pub fn subscribe(&self, filter: Filter, capacity: usize) -> Subscription {
        let (sender, events) = mpsc::channel(capacity);
        let end = Arc::new(AtomicU8::new(END_NONE));
        let mut state = self.shared.lock();
        let id = state.next_id;
        state.next_id += 1;
        if state.closed {
            end.store(END_CLOSED, Ordering::Release);
        } else {
            state.subscribers.insert(
                id,
                Subscriber {
                    filter,
                    sender,
                    end: end.clone(),
                },
            );
        }
        drop(state);
        Subscription {
            id,
            events,
            end,
            shared: self.shared.clone(),
        }
    }

    /// Ends every subscription, now and later; for shutdown.
    pub fn close(&self) {
        let mut state = self.shared.lock();
        state.closed = true;
        for (_, subscriber) in state.subscribers.drain() {
            subscriber.end.store(END_CLOSED, Ordering::Release);
        }
    }

    /// How the sources are doing.
    #[must_use]
    pub fn health(&self) -> HubHealth {
        let state = self.shared.lock();
        HubHealth {
            tail_age: state.tailed.map(|at| at.elapsed()),
            listener: LinkHealth {
                up: state.listening,
                since: state.listening_since.elapsed(),
            },
        }
    }
}

/// A place at the hub. Dropping it gives it up.
pub struct Subscription {
    id: u64,
    events: mpsc::Receiver<Arc<Delivery>>,
    end: Arc<AtomicU8>,
    shared: Arc<Shared>,
}

const END_NONE: u8 = 0;
const END_OVERFLOWED: u8 = 1;
const END_CLOSED: u8 = 2;

impl Subscription {
    /// The next event. Safe to drop half-way.
    pub async fn next(&mut self) -> Received {
        match self.events.recv().await {
            Some(delivery) => Received::Event(delivery),
            None if self.end.load(Ordering::Acquire) == END_OVERFLOWED => Received::Overflowed,
            None => Received::Closed,
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.shared.lock().subscribers.remove(&self.id);
    }
}

struct Subscriber {
    filter: Filter,
    sender: mpsc::Sender<Arc<Delivery>>,
    end: Arc<AtomicU8>,
}

pub(crate) struct Shared {
    state: Mutex<State>,
}

struct State {
    subscribers: HashMap<u64, Subscriber>,
    next_id: u64,
    closed: bool,
    /// The database's time and when it was read.
    time: Option<(Timestamp, Stopwatch)>,
    tailed: Option<Stopwatch>,
    listening: bool,
    listening_since: Stopwatch,
}

impl Shared {
    fn new() -> Self {
        Self {
            state: Mutex::new(State {
                subscribers: HashMap::new(),
                next_id: 0,
                closed: false,
                time: None,
                tailed: None,
                listening: false,
                listening_since: Stopwatch::start(),
            }),
        }
    }

    pub(crate) fn note_time(&self, now: Timestamp, read: Stopwatch) {
        self.lock().time = Some((now, read));
    }

    pub(crate) fn note_tail_ok(&self) {
        self.lock().tailed = Some(Stopwatch::start());
    }

    pub(crate) fn note_listening(&self, listening: bool) {
        let mut state = self.lock();
        if state.listening != listening {
            state.listening = listening;
            state.listening_since = Stopwatch::start();
        }
    }

    /// Stamps an ephemeral event by the database's clock, carried on by this process's, and delivers it.
    pub(crate) fn deliver_ephemeral(&self, event: WireEvent) {
        let Some((read, since)) = self.lock().time else {
            tracing::debug!(
                event = event.event,
                "an event before the database's time is known"
            );
            return;
        };
        let message = Message {
            event: event.event,
            workspace_id: event.workspace_id,
            timestamp: read + since.elapsed(),
            payload: event.payload,
        };
        self.deliver(None, message);
    }

    pub(crate) fn deliver(&self, position: Option<Position>, message: Message) {
        let mut state = self.lock();
        let about = message.workspace_id;
        if !state.subscribers.values().any(|it| it.filter.wants(about)) {
            return;
        }
        let json = match serde_json::to_string(&message) {
            Ok(json) => json,
            Err(error) => {
                tracing::error!(%error, event = message.event, "cannot write an event as JSON");
                return;
            }
        };
        let delivery = Arc::new(Delivery {
            position,
            message,
            json,
        });
        state.subscribers.retain(|_, subscriber| {
            if !subscriber.filter.wants(about) {
                return true;
            }
            let fits = subscriber.sender.try_send(delivery.clone()).is_ok();
            if !fits {
                subscriber.end.store(END_OVERFLOWED, Ordering::Release);
                metrics::counter!("longshore_event_subscribers_overflowed_total").increment(1);
            }
            fits
        });
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
