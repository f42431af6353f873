//! Postgres and Redis: the private ones, or those the operator named.

use std::time::Duration;

use longshore_base::Secret;

use super::account::ServiceAccount;
use super::data::DataDir;
use super::postgres::Postgres;
use super::redis::Redis;
use super::service::Running;

/// Redis forgets at once; nothing of it is worth waiting for.
const REDIS_LIMIT: Duration = Duration::from_millis(500);

/// The servers below the control plane.
pub(super) struct Services {
    postgres: Option<Running>,
    redis: Option<Running>,
}

/// How to reach them.
pub(super) struct ServiceUrls {
    /// Of the private Postgres.
    pub(super) database: Option<Secret<String>>,
    /// Of the private Redis.
    pub(super) redis: Option<Secret<String>>,
}

impl Services {
    /// Starts what is wanted, both at once.
    pub(super) async fn start(
        data: &DataDir,
        account: &ServiceAccount,
        own_postgres: bool,
        own_redis: bool,
    ) -> anyhow::Result<(Self, ServiceUrls)> {
        let mut urls = ServiceUrls {
            database: None,
            redis: None,
        };
        let mut services = Self {
            postgres: None,
            redis: None,
        };
        if !own_postgres && !own_redis {
            return Ok((services, urls));
        }
        let home = data.services_home(account)?;
        let redis = if own_redis {
            Some(Redis::prepare(&home, account)?)
        } else {
            None
        };
        let postgres = if own_postgres {
            Some(Postgres::prepare(&home, account).await?)
        } else {
            None
        };
        if let Some(redis) = redis {
            urls.redis = Some(redis.url()?);
            services.redis = Some(Running::start(redis).await?);
        }
        if let Some(postgres) = postgres {
            let url = postgres.url()?;
            match Running::start(postgres).await {
                Ok(running) => services.postgres = Some(running),
                Err(error) => {
                    services.stop(REDIS_LIMIT).await;
                    return Err(error);
                }
            }
            urls.database = Some(url);
        }
        Ok((services, urls))
    }

    /// Stops Redis, then Postgres, within about the limit.
    pub(super) async fn stop(self, limit: Duration) {
        if let Some(redis) = self.redis {
            redis.stop(REDIS_LIMIT.min(limit)).await;
        }
        if let Some(postgres) = self.postgres {
            postgres.stop(limit).await;
        }
    }
}
