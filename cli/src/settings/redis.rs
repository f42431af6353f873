//! Redis.

use std::time::Duration;

use clap::Args;
use longshore_base::Secret;
use longshore_base::redis::Redis;

use super::{SettingError, parse};

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

    /// Seconds without a heartbeat after which an agent counts as silent, 30 or more; agents beat every 30 to 60, and of
    /// their beats one is stored in 10 s.
    #[arg(long = "liveness-ttl", env = "LONGSHORE_LIVENESS_TTL_SECONDS", value_name = "SECONDS", default_value = "180", value_parser = liveness_ttl)]
    pub(crate) liveness_ttl: Duration,
}

/// Tests, which have fail points, do not wait for so long.
const LEAST_LIVENESS_TTL: Duration =
    Duration::from_secs(if cfg!(feature = "failpoints") { 1 } else { 30 });

fn liveness_ttl(text: &str) -> Result<Duration, String> {
    at_least(LEAST_LIVENESS_TTL, text)
}

fn at_least(least: Duration, text: &str) -> Result<Duration, String> {
    let ttl = parse::seconds(text)?;
    if ttl < least {
        return Err(format!(
            "must be {} or more: a beat that says nothing new is stored only every 10 s, so healthy agents would count as \
             silent",
            least.as_secs()
        ));
    }
    Ok(ttl)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_may_be_silent_for_longer_than_its_beats_are_stored_apart() {
        let least = Duration::from_secs(30);
        assert_eq!(at_least(least, "30"), Ok(least));
        let refused = at_least(least, "29").unwrap_err();
        assert!(refused.starts_with("must be 30 or more: "), "{refused}");
        assert!(at_least(least, "soon").is_err());
    }
}
