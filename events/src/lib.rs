//! The event log: append, tail, fan out; what Redis carries between processes.
//!
//! ```text
//! transaction ──append──▶ structure_events ──tailer──▶ Hub ──▶ subscribers (sockets, SSE)
//! after commit ──poke──▶ Redis channel ──▶ tailer        ▲
//! ephemeral ──broadcast──▶ Redis channel ────────────────┘
//! ```
//!
//! Promises: a recorded event reaches every reader exactly once per connection and in one order, `(xid, seq)`, whatever
//! Redis does; a request never waits for Redis, except a read of [`Presence`], which gives up after 250 ms and fails at
//! once while Redis is known to be away. An ephemeral event may be lost, and no process delivers what it wrote by any
//! way other than these two.

pub mod names;

mod bus;
mod hub;
mod link;
mod log;
mod message;
mod position;
mod presence;
mod subscription;
mod tailer;

pub use bus::{BroadcastEvent, EventBus, EventsConfig};
pub use hub::{Delivery, Filter, Hub, HubHealth, Received, Subscription};
pub use link::LinkHealth;
pub use log::{EventError, EventRow, NewEvent, append, list_events, list_events_after};
pub use message::Message;
pub use position::{ParsePositionError, Position};
pub use presence::Presence;

/// Buffer of a WebSocket subscriber (`spec: rest-api` §5.2).
pub const SOCKET_BUFFER: usize = 256;
/// Buffer of an SSE subscriber (`spec: rest-api` §5.4).
pub const STREAM_BUFFER: usize = 64;
