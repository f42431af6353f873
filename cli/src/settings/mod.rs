//! Every setting of every process, one file per concern: a flag and an environment variable each, with its unit,
//! default and range in its description.
//!
//! What does not parse refuses to start with one sentence. An environment variable that is set but empty counts as
//! unset, since compose files write them so; the one exception says so. Values of settings marked with
//! `hide_env_values` are secrets: no help text, log line or error shows them.

pub(crate) mod client;
pub(crate) mod database;
pub(crate) mod docker;
pub(crate) mod fleet;
pub(crate) mod http;
pub(crate) mod log;
pub(crate) mod metrics;
pub(crate) mod parse;
pub(crate) mod redis;
pub(crate) mod reflect;
pub(crate) mod remote;
pub(crate) mod security;
pub(crate) mod worker;

/// A setting parses by itself but cannot be used. Never quotes a secret.
#[derive(Debug, thiserror::Error)]
#[error("{setting}: {problem}")]
pub(crate) struct SettingError {
    /// The environment variable, or the flag when there is none.
    pub(crate) setting: &'static str,
    /// What is wrong and what would be right.
    pub(crate) problem: String,
}

impl SettingError {
    /// One for `setting`.
    pub(crate) fn new(setting: &'static str, problem: impl Into<String>) -> Self {
        Self {
            setting,
            problem: problem.into(),
        }
    }
}
