//! The HTTP, SSE and WebSocket surface: request in, transaction, answer out.
//!
//! ```text
//! request ─▶ gate (guard, route, limits, credential) ─▶ resource (parse, one transaction, map) ─▶ answer
//! ```
//!
//! The gate is the only way in. It looks every request up in the table of [`routes`], which says who may call it, and
//! turns whatever happens behind it into a declared answer. Resources hold no business rules and no SQL: those are in
//! `fleet`, `jobs`, `ledger` and `events`. Nothing here needs a service to be there for the API to be described:
//! [`openapi_document`] works without any.

mod config;
mod server;
mod state;

pub mod routes;

mod auth;
mod gate;
mod problem;

mod body;
mod client;
mod connections;
mod context;
mod cors;
mod document;
mod http_metrics;
mod idempotency;
mod imports;
mod operator;
mod paging;
mod rate_limit;
mod reason;
mod reconcilers;
mod security_headers;
mod sse;
mod tenant_guard;
mod wait_metrics;

mod a2a;
mod bundles;
mod events;
mod health;
mod holds;
mod images;
mod intake;
mod jobs;
mod leaks;
mod models;
mod orgs;
mod queues;
mod registry;
mod secrets;
mod socket;
mod templates;
mod tokens;
mod workers;
mod workspaces;

pub use config::ApiConfig;
pub use document::openapi_document;
pub use health::{HealthSource, PartHealth, PartMode, WatchedEngine};
pub use server::{Leaving, Listeners, StartError, build, serve};
pub use state::{ApiParts, ApiState};
