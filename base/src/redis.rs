//! The way to Redis. Every connection of every process is made through here, so that one place knows what `REDIS_URL`
//! may say.
//!
//! Behind sentinels the server is another one after a failover. So they are asked before each connection, all of them at
//! once: the first that names a master which says so of itself is believed, and one that hangs holds nobody up.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use redis::aio::{MultiplexedConnection, PubSub};
use redis::sentinel::{SentinelClient, SentinelNodeConnectionInfo, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, ConnectionInfo, ErrorKind, IntoConnectionInfo as _,
    RedisConnectionInfo, RedisError, Role, ServerErrorKind,
};
use tokio::time::{interval, timeout};

use crate::Secret;

/// Longest time for sentinels to name a master.
const LOOKUP_BUDGET: Duration = Duration::from_secs(1);
/// How often somebody who only listens asks whether it listens to the right server.
const LOOK_PERIOD: Duration = Duration::from_secs(5);
const SENTINEL_SCHEME: &str = "redis+sentinel";
const SENTINEL_PORT: u16 = 26379;

/// Where Redis is: a server, or the master of a set that sentinels watch over. Cheap to clone.
#[derive(Clone)]
pub struct Redis {
    place: Arc<Place>,
}

enum Place {
    Server(Client),
    Watched(Watched),
}

struct Watched {
    sentinels: Vec<ConnectionInfo>,
    /// What they call the master.
    name: String,
    /// Credentials and database.
    settings: RedisConnectionInfo,
}

/// The URL does not name a Redis. Says what it must be and quotes nothing of it, for it may hold a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RedisUrlError {
    /// Of one server.
    #[error(
        "must be redis://[[user]:password@]host[:port][/database], redis+unix:///path/of/socket or \
         redis+sentinel://[[user]:password@]host[:port][,host[:port]…]/master-name[/database]"
    )]
    Server,
    /// Of sentinels.
    #[error(
        "must be redis+sentinel://[[user]:password@]host[:port][,host[:port]…]/master-name[/database]\
         [?sentinel_username=…&sentinel_password=…], with the sentinels' addresses and the name they give the master"
    )]
    Sentinel,
}

impl Redis {
    /// Reads the URL; connects to nothing.
    ///
    /// # Errors
    /// When it is none.
    pub fn new(url: &Secret<String>) -> Result<Self, RedisUrlError> {
        let url = url.expose();
        let place = match url.split_once("://") {
            Some((SENTINEL_SCHEME, rest)) => {
                Place::Watched(Watched::parse(rest).ok_or(RedisUrlError::Sentinel)?)
            }
            _ => Place::Server(Client::open(url.as_str()).map_err(|_| RedisUrlError::Server)?),
        };
        Ok(Self {
            place: Arc::new(place),
        })
    }

    /// A connection to the server, which is no replica; and the server, for [`Redis::moved_from`].
    ///
    /// # Errors
    /// When there is none: no sentinel names a master that lives, nobody listens, or what answers was demoted.
    pub async fn connect(
        &self,
        config: &AsyncConnectionConfig,
    ) -> Result<(Client, MultiplexedConnection), RedisError> {
        let server = self.server().await?;
        let mut connection = server
            .get_multiplexed_async_connection_with_config(config)
            .await?;
        match redis::cmd("ROLE").query_async(&mut connection).await {
            Ok(Role::Replica { .. }) => Err(RedisError::from((
                ServerErrorKind::ReadOnly.into(),
                "this server is a replica",
            ))),
            Err(error) if error.is_io_error() => Err(error),
            // Some may not ask.
            Ok(_) | Err(_) => Ok((server, connection)),
        }
    }

    /// A connection that listens to channels.
    ///
    /// # Errors
    /// As [`Redis::connect`].
    pub async fn listen(&self) -> Result<(Client, PubSub), RedisError> {
        let server = self.server().await?;
        let listening = server.get_async_pubsub().await?;
        Ok((server, listening))
    }

    async fn server(&self) -> Result<Client, RedisError> {
        match &*self.place {
            Place::Server(client) => Ok(client.clone()),
            Place::Watched(watched) => timeout(LOOKUP_BUDGET, watched.master())
                .await
                .unwrap_or_else(|_| Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into())),
        }
    }

    /// Returns once sentinels name another server than this client's; never for a Redis without sentinels.
    ///
    /// For connections that no refused write would tell: a demoted server lets them listen, and one that is cut off
    /// from its sentinels does not know that it is no master any more.
    pub async fn moved_from(&self, client: &Client) {
        if let Place::Server(_) = &*self.place {
            return std::future::pending().await;
        }
        let address = client.get_connection_info().addr();
        let mut looks = interval(LOOK_PERIOD);
        looks.tick().await;
        loop {
            looks.tick().await;
            if let Ok(master) = self.server().await
                && master.get_connection_info().addr() != address
            {
                return;
            }
        }
    }
}

impl std::fmt::Debug for Redis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Redis")
    }
}

impl Watched {
    /// What follows the scheme. A URL has one host, so each is put into one of its own.
    fn parse(text: &str) -> Option<Self> {
        let (text, options) = text.split_once('?').unwrap_or((text, ""));
        let (authority, path) = text.split_once('/')?;
        let (credentials, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (name, database) = path.split_once('/').unwrap_or((path, ""));
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
        if name.is_empty() || !name.bytes().all(is_name) {
            return None;
        }
        let own_credentials = sentinel_credentials(options)?;
        let sentinels: Option<Vec<_>> = hosts
            .split(',')
            .map(|host| server(&own_credentials, &with_port(host), ""))
            .collect();
        let any = server(credentials, "any", database)?;
        Some(Self {
            sentinels: sentinels?,
            name: name.to_owned(),
            settings: any.redis_settings().clone(),
        })
    }

    async fn master(&self) -> Result<Client, RedisError> {
        let mut answers: FuturesUnordered<_> = self
            .sentinels
            .iter()
            .map(|sentinel| self.master_of(sentinel))
            .collect();
        let mut told: Option<RedisError> = None;
        while let Some(answer) = answers.next().await {
            match answer {
                Ok(client) => return Ok(client),
                // What a sentinel says tells more than that another is away.
                Err(error) if told.as_ref().is_none_or(RedisError::is_io_error) => {
                    told = Some(error);
                }
                Err(_) => {}
            }
        }
        Err(told.unwrap_or_else(|| {
            RedisError::from((ErrorKind::InvalidClientConfig, "no sentinel is named"))
        }))
    }

    async fn master_of(&self, sentinel: &ConnectionInfo) -> Result<Client, RedisError> {
        let node =
            SentinelNodeConnectionInfo::default().set_redis_connection_info(self.settings.clone());
        let mut client = SentinelClient::build(
            vec![sentinel.clone()],
            self.name.clone(),
            Some(node),
            SentinelServerType::Master,
        )?;
        client.async_get_client().await
    }
}

fn server(credentials: &str, host: &str, database: &str) -> Option<ConnectionInfo> {
    format!("redis://{credentials}@{host}/{database}")
        .into_connection_info()
        .ok()
}

fn with_port(host: &str) -> String {
    // Colons inside brackets belong to an IPv6 address.
    if host.rsplit(']').next().is_some_and(|end| end.contains(':')) {
        host.to_owned()
    } else {
        format!("{host}:{SENTINEL_PORT}")
    }
}

/// As a URL has them before its host.
fn sentinel_credentials(options: &str) -> Option<String> {
    let (mut user, mut password) = ("", "");
    for option in options.split('&').filter(|option| !option.is_empty()) {
        match option.split_once('=')? {
            ("sentinel_username", value) => user = value,
            ("sentinel_password", value) => password = value,
            _ => return None,
        }
    }
    Some(match password {
        "" => user.to_owned(),
        _ => format!("{user}:{password}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watched(url: &str) -> Watched {
        let redis = Redis::new(&Secret::from(url)).unwrap();
        match Arc::into_inner(redis.place) {
            Some(Place::Watched(watched)) => watched,
            _ => panic!("{url} names sentinels"),
        }
    }

    #[test]
    fn sentinels_are_read_with_their_ports_credentials_and_the_masters_name() {
        let url = "redis+sentinel://me:p%40ss@one:1,two,[::1]:3,[::2]/my-master/7?sentinel_password=w%2Fo";
        let watched = watched(url);
        let seen: Vec<String> = watched
            .sentinels
            .iter()
            .map(|sentinel| sentinel.addr().to_string())
            .collect();
        assert_eq!(seen, ["one:1", "two:26379", "::1:3", "::2:26379"]);
        let own = watched.sentinels[0].redis_settings();
        assert_eq!((own.username(), own.password()), (None, Some("w/o")));
        assert_eq!(watched.name, "my-master");
        let settings = &watched.settings;
        assert_eq!(
            (settings.username(), settings.password(), settings.db()),
            (Some("me"), Some("p@ss"), 7)
        );
    }

    #[test]
    fn credentials_and_the_database_may_be_left_out() {
        let watched = watched("redis+sentinel://one/primary");
        assert_eq!(watched.sentinels[0].redis_settings().password(), None);
        assert_eq!(
            (watched.settings.username(), watched.settings.password()),
            (None, None)
        );
        assert_eq!(watched.settings.db(), 0);
    }

    #[test]
    fn what_is_no_redis_is_refused_without_being_quoted() {
        for url in [
            "redis+sentinel://one:1,two:2",
            "redis+sentinel://one:1/",
            "redis+sentinel:///primary",
            "redis+sentinel://one:1,,two:2/primary",
            "redis+sentinel://one:port/primary",
            "redis+sentinel://one:70000/primary",
            "redis+sentinel://one/primary/first",
            "redis+sentinel://one/primary?timeout=3",
            "redis+sentinel://me:hunter2@one/pri mary",
            "redis-sentinel://one/primary",
            "redis://me:hunter2@one:port",
            "redis://one/first",
            "http://me:hunter2@one",
            "one:6379",
            "",
        ] {
            let error = Redis::new(&Secret::from(url)).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{url}");
        }
        for url in [
            "redis://:hunter2@[::1]:6379/3",
            "redis+unix:///run/redis.sock",
            "redis://one",
        ] {
            assert!(Redis::new(&Secret::from(url)).is_ok(), "{url}");
        }
    }
}
