//! What agents tell of themselves: that they are there, how they do, who they are (`spec: rest-api` §6.4).
//!
//! Each call is judged by one gate, which fails closed; each write repeats the status it was judged on; an event is
//! recorded only for a row that changed. The transaction is the caller's, and what must wait for its commit (presence in
//! Redis, ephemeral events) is done by `after_commit` of what the calls return.

mod capabilities;
mod card;
mod gate;
mod heartbeat;
mod register;

pub use capabilities::{Capabilities, RuntimeMetadata};
pub use card::update_card;
pub use gate::{GateError, Presented};
pub use heartbeat::{Beaten, Heartbeat, heartbeat};
pub use register::{
    CheckedRegistration, RegisterError, Registered, Registration, check_registration, register,
};
