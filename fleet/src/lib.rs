//! What the control plane knows of workspaces: rows, the status machine, the tree, secrets, tokens, runtimes, templates
//! and image pins.
//!
//! This crate decides and remembers; it starts nothing. Every function takes the connection or transaction it works on,
//! and what changes a workspace writes its event there too, so that the two exist together or not at all. Callers
//! commit, then poke the bus. Nothing here knows HTTP or jobs.

mod error;
mod fleet;

pub mod config;
pub mod status;

pub mod workspace;

pub mod access;
pub mod activity;
pub mod connection;
pub mod idempotency;
pub mod memories;
pub mod redaction;
pub mod tokens;

pub mod liveness;
pub mod registry;
pub mod sweep;
pub mod url_safety;

pub mod bundle;
pub mod config_source;
pub mod environment;
pub mod images;
pub mod import;
pub mod inbound_secret;
pub mod instances;
pub mod leaks;
pub mod models;
pub mod org;
pub mod preflight;
pub mod prepare;
pub mod provisioning;
pub mod restart_template;
pub mod restarting;
pub mod runtimes;
pub mod secrets;
pub mod templates;
mod yaml;

pub use config::{DeployMode, FleetConfig, installation_id};
pub use error::FleetError;
pub use fleet::Fleet;
pub use prepare::PrepareError;
pub use status::WorkspaceStatus;
