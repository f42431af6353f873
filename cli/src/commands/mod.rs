//! One file per command. Server commands (`up`, `api`, `worker`, `migrate`) join the crates below; the operator's
//! commands are clients of the API and know nothing of them.

pub(crate) mod api;
pub(crate) mod bundles;
pub(crate) mod completions;
pub(crate) mod config;
pub(crate) mod holds;
pub(crate) mod images;
pub(crate) mod jobs;
pub(crate) mod leaks;
pub(crate) mod lifecycle;
pub(crate) mod migrate;
pub(crate) mod models;
pub(crate) mod openapi;
pub(crate) mod orgs;
pub(crate) mod queues;
pub(crate) mod reconcilers;
pub(crate) mod secrets;
pub(crate) mod templates;
pub(crate) mod tokens;
pub(crate) mod top;
pub(crate) mod up;
pub(crate) mod worker;
pub(crate) mod workers;
pub(crate) mod workspaces;
