//! Postgres.

use clap::Args;
use longshore_base::Secret;
use longshore_base::pools::DatabaseConfig;

use super::SettingError;

const VARIABLE: &str = "DATABASE_URL";
/// Where a developer's own Postgres usually is; the server's name for it in every command but `up`.
const DEFAULT_URL: &str = "postgres://dev:dev@localhost:5432/longshore?sslmode=disable";

/// Settings of the connection to Postgres.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Postgres")]
pub(crate) struct DatabaseSettings {
    /// Postgres, as a `postgres://user:password@host:port/database` URL. Unset: `up` runs one of its own, the other
    /// commands use `postgres://dev:dev@localhost:5432/longshore?sslmode=disable`.
    #[arg(id = "database-url", long = "database-url", env = VARIABLE, value_name = "URL", hide_env_values = true)]
    pub(crate) url: Option<String>,

    /// Most connections of this process for its ordinary work, 2 to 1000. Five more are kept for beats, claims and
    /// admissions, so that load cannot starve them.
    #[arg(
        id = "database-connections", long = "database-connections",
        env = "LONGSHORE_DATABASE_CONNECTIONS",
        value_name = "N",
        default_value_t = 25,
        value_parser = clap::value_parser!(u32).range(2..=1000)
    )]
    pub(crate) connections: u32,
}

impl DatabaseSettings {
    /// The configuration of the pools, with the process' name for `pg_stat_activity` when the URL names none.
    pub(crate) fn config(&self, application: &str) -> Result<DatabaseConfig, SettingError> {
        let text = self.url.as_deref().unwrap_or(DEFAULT_URL);
        let wrong = || {
            SettingError::new(
                VARIABLE,
                "must be a postgres:// URL such as postgres://user:password@host:5432/longshore",
            )
        };
        let mut url: url::Url = text.parse().map_err(|_| wrong())?;
        if !matches!(url.scheme(), "postgres" | "postgresql") {
            return Err(wrong());
        }
        if !url.query_pairs().any(|(key, _)| key == "application_name") {
            url.query_pairs_mut()
                .append_pair("application_name", application);
        }
        Ok(DatabaseConfig {
            url: Secret::new(url.into()),
            max_connections: self.connections,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(url: &str) -> DatabaseSettings {
        DatabaseSettings {
            url: Some(url.to_owned()),
            connections: 25,
        }
    }

    #[test]
    fn a_url_that_is_none_is_refused_without_quoting_it() {
        let error = settings("mysql://me:hunter2@host/db")
            .config("longshore api")
            .unwrap_err();
        assert!(!error.to_string().contains("hunter2"), "{error}");
        assert!(error.to_string().starts_with("DATABASE_URL: "), "{error}");
    }

    #[test]
    fn the_process_names_itself_to_postgres_unless_the_url_does() {
        let url = |text| {
            settings(text)
                .config("longshore api")
                .unwrap()
                .url
                .expose()
                .clone()
        };
        assert_eq!(
            url("postgres://a@b/c"),
            "postgres://a@b/c?application_name=longshore+api"
        );
        assert_eq!(
            url("postgres://a@b/c?application_name=x"),
            "postgres://a@b/c?application_name=x"
        );
    }
}
