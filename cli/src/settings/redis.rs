//! Redis.

use clap::Args;
use longshore_base::Secret;
use longshore_base::redis::Redis;

use super::SettingError;

const VARIABLE: &str = "REDIS_URL";
const DEFAULT_URL: &str = "redis://localhost:6379";

/// Settings of the connection to Redis.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Redis")]
pub(crate) struct RedisSettings {
    /// Redis: `redis://[[user]:password@]host[:port][/database]`, `redis+unix:///path/of/socket`, or the sentinels that
    /// know the master, `redis+sentinel://[[user]:password@]host[:port][,host[:port]…]/master-name[/database]`, with
    /// `?sentinel_username=…&sentinel_password=…` where they want credentials of their own. Unset: `up` runs a Redis of
    /// its own, the other commands use `redis://localhost:6379`.
    #[arg(id = "redis-url", long = "redis-url", env = VARIABLE, value_name = "URL", hide_env_values = true)]
    pub(crate) url: Option<String>,

    /// Text put before every key, stream and channel, so that several installations can share one Redis. The same for
    /// all processes of an installation.
    #[arg(
        id = "redis-prefix",
        long = "redis-prefix",
        env = "LONGSHORE_REDIS_PREFIX",
        value_name = "TEXT",
        default_value = ""
    )]
    pub(crate) prefix: String,

    /// Seconds a workspace's liveness key lives without a heartbeat; agents beat every 30 to 60.
    #[arg(long = "liveness-ttl", env = "LONGSHORE_LIVENESS_TTL_SECONDS", value_name = "SECONDS", default_value = "180", value_parser = super::parse::seconds)]
    pub(crate) liveness_ttl: std::time::Duration,
}

impl RedisSettings {
    /// Whether the URL is one, before anything is connected to or started.
    pub(crate) fn check(&self) -> Result<(), SettingError> {
        match Redis::new(&self.url()) {
            Ok(_) => Ok(()),
            Err(error) => Err(SettingError::new(VARIABLE, error.to_string())),
        }
    }

    /// The URL.
    pub(crate) fn url(&self) -> Secret<String> {
        Secret::from(self.url.as_deref().unwrap_or(DEFAULT_URL))
    }
}
