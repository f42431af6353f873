//! Database pools. Two per process, so that load on one cannot starve the other.

use std::time::Duration;

use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

use crate::Secret;

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
const IDLE_IN_TRANSACTION_TIMEOUT: Duration = Duration::from_secs(60);

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
    /// Nobody answered, or the login was refused.
    #[error("cannot connect to Postgres at {host}:{port}")]
    Connect {
        /// Host of the URL.
        host: String,
        /// Port of the URL.
        port: u16,
        /// What the driver said.
        source: sqlx::Error,
    },
}

impl Pools {
    /// Connects both pools; answers once one connection of each works.
    ///
    /// # Errors
    /// [`PoolError`], with a text fit for the console.
    pub async fn connect(config: &DatabaseConfig) -> Result<Self, PoolError> {
        let options: PgConnectOptions = config.url.expose().parse().map_err(|_| PoolError::Url)?;
        let (host, port) = (options.get_host().to_owned(), options.get_port());
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
                .acquire_timeout(Duration::from_secs(10))
                .connect_with(options)
        };
        let connect = |source| PoolError::Connect {
            host: host.clone(),
            port,
            source,
        };
        Ok(Self {
            control: open(control_options, CONTROL_CONNECTIONS)
                .await
                .map_err(connect)?,
            work: open(options, config.max_connections)
                .await
                .map_err(connect)?,
        })
    }
}
