//! Weights of tenants: how many turns one gets for each one of another's. Admission reads them with each choice among
//! several tenants, so a change holds from the next pass on, in every process.

use longshore_base::Timestamp;
use sqlx::PgConnection;

use crate::LedgerError;

/// The most an operator can give; the least, and what is not given at all, is one.
pub const MAX_WEIGHT: i16 = 100;

/// A tenant's weight, as an operator has set it.
#[derive(Clone, Debug)]
pub struct TenantWeight {
    /// The organisation root.
    pub tenant: String,
    /// Turns for each one of a tenant without a weight.
    pub weight: i16,
    /// Why.
    pub reason: Option<String>,
    /// Who set it.
    pub set_by: String,
    /// Since when.
    pub since: Timestamp,
}

/// The weights there are, by tenant.
///
/// # Errors
/// [`LedgerError::Database`].
pub async fn weights(conn: &mut PgConnection) -> Result<Vec<TenantWeight>, LedgerError> {
    sqlx::query_as!(
        TenantWeight,
        "SELECT tenant, weight, reason, set_by, since FROM tenant_weights ORDER BY tenant COLLATE \"C\""
    )
    .fetch_all(conn)
    .await
    .map_err(LedgerError::database("reading the weights of tenants"))
}

/// Gives a tenant a weight, from one to [`MAX_WEIGHT`]; answers it, and whether it is another than before. The same weight
/// again changes nothing but keeps who, why and since when.
///
/// # Errors
/// [`LedgerError::Database`], also for a weight out of bounds; nothing may be committed then.
pub async fn set_weight(
    tx: &mut PgConnection,
    tenant: &str,
    weight: i16,
    reason: Option<&str>,
    by: &str,
) -> Result<(TenantWeight, bool), LedgerError> {
    let set = sqlx::query_as!(
        TenantWeight,
        r#"INSERT INTO tenant_weights (tenant, weight, reason, set_by, since) VALUES ($1, $2, $3, $4, longshore_now())
           ON CONFLICT (tenant) DO UPDATE
               SET weight = excluded.weight, reason = excluded.reason, set_by = excluded.set_by, since = excluded.since
               WHERE tenant_weights.weight <> excluded.weight
           RETURNING tenant, weight, reason, set_by, since"#,
        tenant,
        weight,
        reason,
        by,
    )
    .fetch_optional(&mut *tx)
    .await
    .map_err(LedgerError::database("setting the weight of a tenant"))?;
    if let Some(set) = set {
        return Ok((set, true));
    }
    // The statement has locked the row, so it is still there.
    let as_before = sqlx::query_as!(
        TenantWeight,
        "SELECT tenant, weight, reason, set_by, since FROM tenant_weights WHERE tenant = $1",
        tenant
    )
    .fetch_one(tx)
    .await
    .map_err(LedgerError::database("reading the weight of a tenant"))?;
    Ok((as_before, false))
}

/// Takes a tenant's weight away; answers it, or `None` when there was none.
///
/// # Errors
/// [`LedgerError::Database`]; nothing may be committed then.
pub async fn clear_weight(
    tx: &mut PgConnection,
    tenant: &str,
) -> Result<Option<TenantWeight>, LedgerError> {
    sqlx::query_as!(
        TenantWeight,
        "DELETE FROM tenant_weights WHERE tenant = $1 RETURNING tenant, weight, reason, set_by, since",
        tenant
    )
    .fetch_optional(tx)
    .await
    .map_err(LedgerError::database("clearing the weight of a tenant"))
}
