//! The Postgres and the Redis of a test: its part of the shared ones, or servers of its own.

use longshore_base::testing::TestDatabase;
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;

use crate::programs::longshore;
use crate::servers::{OwnPostgres, OwnRedis};

/// The database.
pub(crate) enum Database {
    Shared(Box<TestDatabase>),
    Own(OwnPostgres, PgPool),
}

/// The Redis.
pub(crate) enum Redis {
    Shared(String),
    Own(OwnRedis),
}
impl Database {
    pub(crate) async fn own() -> Self {
        let postgres = OwnPostgres::start().await;
        let migrated = longshore()
            .arg("migrate")
            .env("DATABASE_URL", postgres.url())
            .output()
            .unwrap();
        assert!(
            migrated.status.success(),
            "{}",
            String::from_utf8_lossy(&migrated.stderr)
        );
        let pool = PgPoolOptions::new()
            .max_connections(5)
            .connect_lazy(&postgres.url())
            .unwrap();
        Self::Own(postgres, pool)
    }

    pub(crate) fn pool(&self) -> &PgPool {
        match self {
            Self::Shared(database) => database.pool(),
            Self::Own(_, pool) => pool,
        }
    }

    pub(crate) fn url(&self) -> String {
        match self {
            Self::Shared(database) => database.url(),
            Self::Own(postgres, _) => postgres.url(),
        }
    }
}
impl Redis {
    pub(crate) fn url(&self) -> String {
        match self {
            Self::Shared(url) => url.clone(),
            Self::Own(redis) => redis.url(),
        }
    }
}
