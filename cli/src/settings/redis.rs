//! Redis.

use clap::Args;
use longshore_base::Secret;

use super::SettingError;

const VARIABLE: &str = "REDIS_URL";
const DEFAULT_URL: &str = "redis://localhost:6379";

/// Settings of the connection to Redis.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Redis")]
pub(crate) struct RedisSettings {
    /// Redis, as a `redis://`, `rediss://` or `redis+unix://` URL. Unset: `up` runs one of its own, the other commands
    /// use `redis://localhost:6379`.
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
    /// The URL, known to be one.
    pub(crate) fn url(&self) -> Result<Secret<String>, SettingError> {
        let text = self.url.as_deref().unwrap_or(DEFAULT_URL);
        let scheme = text.split_once("://").map(|(scheme, _)| scheme);
        match scheme {
            Some("redis" | "rediss" | "redis+unix" | "unix")
                if text.parse::<url::Url>().is_ok() =>
            {
                Ok(Secret::from(text))
            }
            _ => Err(SettingError::new(
                VARIABLE,
                "must be a redis://, rediss:// or redis+unix:// URL",
            )),
        }
    }
}
