//! Database pools. Two per process, so that load on one cannot starve the other.

use std::io::ErrorKind;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Connection as _, PgConnection, PgPool};
use tokio::time::{sleep, timeout};

use crate::Secret;
use crate::clock::Stopwatch;

/// Connections of the control pool: beat, claim, finish, admit (`spec: jobs` §9).
pub const CONTROL_CONNECTIONS: u32 = 5;
const CONTROL_STATEMENT_TIMEOUT: Duration = Duration::from_secs(2);
/// The queue's tables are empty one minute and hold a million rows the next, so their statistics are always wrong. Every
/// control statement reads by index; these settings leave the planner no other choice, and let it plan once.
const INDEX_ONLY_PLANS: [(&str, &str); 5] = [
    ("jit", "off"),
    ("enable_seqscan", "off"),
    ("enable_bitmapscan", "off"),
    ("enable_mergejoin", "off"),
    ("plan_cache_mode", "force_generic_plan"),
];
/// A plan that was made while the queue's tables were empty, and kept, reads all of them once they are full.
const PLAN_FOR_EACH: (&str, &str) = ("plan_cache_mode", "force_custom_plan");
const IDLE_IN_TRANSACTION_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a Postgres that is there is waited for until it takes connections.
const STARTING_LIMIT: Duration = Duration::from_secs(10);
/// How long an address is tried where nothing listens: for servers that are started together, not for a wrong address.
const REFUSED_LIMIT: Duration = Duration::from_millis(1500);
/// How long a caller waits for a connection that others have.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);
const RETRY_PERIOD: Duration = Duration::from_millis(200);
/// SQLSTATE of a server that is starting, stopping or recovering.
const CANNOT_CONNECT_NOW: &str = "57P03";
/// SQLSTATE of a server whose connections are all taken.
const TOO_MANY_CONNECTIONS: &str = "53300";

/// How to reach Postgres.
#[derive(Clone, Debug)]
pub struct DatabaseConfig {
    /// A `postgres://` URL; may hold a password, hence secret.
    pub url: Secret<String>,
    /// Most connections of the work pool.
    pub max_connections: u32,
}

/// The pools of one process.
#[derive(Clone, Debug)]
pub struct Pools {
    /// Beats, claims, finishes and admissions; short statements only.
    pub control: PgPool,
    /// Everything else.
    pub work: PgPool,
}

/// Postgres could not be used as configured.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// The URL does not parse. The source is left out: it may quote the password.
    #[error("DATABASE_URL is not a valid postgres:// URL")]
    Url,
    /// There is no server at the address.
    #[error(
        "nothing listens at {address}: start Postgres there, or set DATABASE_URL to where it is"
    )]
    Refused {
        /// Where it was looked for, without user and password.
        address: String,
        /// What the driver said.
        source: sqlx::Error,
    },
    /// The address swallows what is sent to it.
    #[error(
        "nothing answered at {address} within {} s: is that where Postgres is (DATABASE_URL), and does a firewall let us \
         through?",
        STARTING_LIMIT.as_secs()
    )]
    Silent {
        /// Where it was looked for, without user and password.
        address: String,
    },
    /// The server is there and takes no connections yet.
    #[error(
        "Postgres at {address} takes no connections after {} s: start again once it has started",
        STARTING_LIMIT.as_secs()
    )]
    Starting {
        /// Where it is, without user and password.
        address: String,
        /// What the server said.
        source: sqlx::Error,
    },
    /// The server refused, or could not be spoken with.
    #[error("cannot connect to Postgres at {address}")]
    Connect {
        /// Where it was looked for, without user and password.
        address: String,
        /// What the driver or the server said.
        source: sqlx::Error,
    },
}

impl Pools {
    /// Connects both pools; answers once one connection of each works. Waits for a Postgres that is starting, but says
    /// soon where none is.
    ///
    /// # Errors
    /// [`PoolError`], with a text fit for the console.
    pub async fn connect(config: &DatabaseConfig) -> Result<Self, PoolError> {
        let options: PgConnectOptions = config.url.expose().parse().map_err(|_| PoolError::Url)?;
        wait_until_it_answers(&options).await?;
        let address = address(&options);
        let options = options.options([(
            "idle_in_transaction_session_timeout",
            IDLE_IN_TRANSACTION_TIMEOUT.as_millis().to_string(),
        )]);
        let timeout = CONTROL_STATEMENT_TIMEOUT.as_millis().to_string();
        let control_options = options
            .clone()
            .options([("statement_timeout", timeout.as_str())])
            .options(INDEX_ONLY_PLANS);
        let open = |options, most: u32| {
            PgPoolOptions::new()
                .max_connections(most)
                .acquire_timeout(ACQUIRE_TIMEOUT)
                .connect_with(options)
        };
        let connect = |source| PoolError::Connect {
            address: address.clone(),
            source,
        };
        Ok(Self {
            control: open(control_options, CONTROL_CONNECTIONS)
                .await
                .map_err(connect)?,
            work: open(options.options([PLAN_FOR_EACH]), config.max_connections)
                .await
                .map_err(connect)?,
        })
    }
}

/// The pools would take a refused connection for one that is late, and wait for it as for any other.
async fn wait_until_it_answers(options: &PgConnectOptions) -> Result<(), PoolError> {
    let since = Stopwatch::start();
    let mut answered = None;
    loop {
        let left = STARTING_LIMIT.saturating_sub(since.elapsed());
        let source = match timeout(left, PgConnection::connect_with(options)).await {
            Ok(Ok(connection)) => {
                // It has served; how it ends tells nothing.
                connection.close().await.ok();
                return Ok(());
            }
            Ok(Err(error)) => error,
            // The last try may have had too little time; what the one before it was told is the news.
            Err(_) => {
                let address = address(options);
                return Err(match answered {
                    Some(source) => Failure::of(&source).report(address, source),
                    None => PoolError::Silent { address },
                });
            }
        };
        let failure = Failure::of(&source);
        if since.elapsed() + RETRY_PERIOD > failure.patience() {
            return Err(failure.report(address(options), source));
        }
        answered = Some(source);
        sleep(RETRY_PERIOD).await;
    }
}

/// Why there is no connection, as far as it makes a difference.
enum Failure {
    Refused,
    Starting,
    Full,
    Other,
}

impl Failure {
    fn of(error: &sqlx::Error) -> Self {
        match error {
            sqlx::Error::Io(error)
                // A socket of this machine that is not there yet refuses in its own way.
                if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound) =>
            {
                Self::Refused
            }
            sqlx::Error::Database(error) => match error.code().as_deref() {
                Some(CANNOT_CONNECT_NOW) => Self::Starting,
                Some(TOO_MANY_CONNECTIONS) => Self::Full,
                _ => Self::Other,
            },
            _ => Self::Other,
        }
    }

    /// For how long it may pass by itself.
    const fn patience(&self) -> Duration {
        match self {
            Self::Refused => REFUSED_LIMIT,
            Self::Starting | Self::Full => STARTING_LIMIT,
            Self::Other => Duration::ZERO,
        }
    }

    fn report(&self, address: String, source: sqlx::Error) -> PoolError {
        match self {
            Self::Refused => PoolError::Refused { address, source },
            Self::Starting => PoolError::Starting { address, source },
            Self::Full | Self::Other => PoolError::Connect { address, source },
        }
    }
}

/// Where the options lead, for people.
fn address(options: &PgConnectOptions) -> String {
    let port = options.get_port();
    match options.get_socket() {
        Some(directory) => format!("{}/.s.PGSQL.{port}", directory.display()),
        None => format!("{}:{port}", options.get_host()),
    }
}
