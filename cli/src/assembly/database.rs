//! The database of a process: connected, of the right schema, and with enough connections to give.

use longshore_base::capacity::server_connections;
use longshore_base::pools::{CONTROL_CONNECTIONS, Pools};
use longshore_base::{random, schema};

use crate::settings::database::DatabaseSettings;

/// What the names of all our processes begin with in `pg_stat_activity`.
const APPLICATION: &str = "longshore ";

/// Connects as a process of this role. Refuses a schema this binary was not made for.
pub(crate) async fn connect(settings: &DatabaseSettings, role: &str) -> anyhow::Result<Pools> {
    let pools = Pools::connect(&settings.config(&application(role))?).await?;
    schema::check(&pools.work).await?;
    warn_of_too_many(&pools, settings.connections).await;
    Ok(pools)
}

/// A name no other process has: pids repeat across containers.
pub(crate) fn application(role: &str) -> String {
    format!("{APPLICATION}{role} {}", hex::encode(random::bytes::<4>()))
}

/// Compares what all processes together may open with what the server has to give.
pub(crate) async fn warn_of_too_many(pools: &Pools, work_connections: u32) {
    let each = work_connections + CONTROL_CONNECTIONS;
    match server_connections(&pools.work, APPLICATION).await {
        Ok(found) if found.processes.saturating_mul(each) > found.usable => tracing::warn!(
            processes = found.processes,
            connections_each = each,
            usable = found.usable,
            "together the processes may open more connections than Postgres gives: raise its max_connections or \
             lower LONGSHORE_DATABASE_CONNECTIONS"
        ),
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "cannot ask Postgres for its limit of connections"),
    }
}
