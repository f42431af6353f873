//! How many connections the database server has to give, so that a process can say at its start that they will not do.

use sqlx::PgPool;

/// What [`server_connections`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerConnections {
    /// `max_connections` less what is kept for superusers.
    pub usable: u32,
    /// Processes of ours connected now, this one included: distinct application names that begin with the given text.
    pub processes: u32,
}

/// Asks the server.
///
/// # Errors
/// Whatever the database says.
pub async fn server_connections(
    pool: &PgPool,
    application_prefix: &str,
) -> Result<ServerConnections, sqlx::Error> {
    let row = sqlx::query!(
        r#"SELECT current_setting('max_connections')::int
                - current_setting('superuser_reserved_connections')::int AS "usable!",
            (SELECT count(DISTINCT application_name) FROM pg_stat_activity
                WHERE starts_with(application_name, $1))::int AS "processes!""#,
        application_prefix
    )
    .fetch_one(pool)
    .await?;
    Ok(ServerConnections {
        usable: u32::try_from(row.usable).unwrap_or(0),
        processes: u32::try_from(row.processes).unwrap_or(0),
    })
}
