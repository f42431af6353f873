//! Weights: how many turns an organisation gets for each one of another's, in every queue.

use longshore_base::Timestamp;
use longshore_events::{append, names};
use longshore_ledger::control::{self, MAX_WEIGHT, Scope, TenantWeight, clear_weight, set_weight};
use poem_openapi::param::{Path, Query};
use poem_openapi::payload::Json;
use poem_openapi::{Object, OpenApi};
use serde::Deserialize;
use serde_json::json;

use super::{FAILED, commit_and_poke};
use crate::auth::AdminAccess;
use crate::body::{JsonBody, JsonRequest};
use crate::document::Tag;
use crate::operator::{canonical_tenant, change_event};
use crate::paging;
use crate::problem::{ApiError, ApiResult};
use crate::reason;
use crate::state::Shared;

const NOT_SET: &str = "failed to set weight";
const NOT_CLEARED: &str = "failed to clear weight";

/// A weight to be set.
#[derive(Deserialize, Object)]
#[serde(deny_unknown_fields)]
pub(crate) struct SetWeightRequest {
    /// From 1, as without a weight, to 100.
    weight: i32,
    /// Why; at most 500 characters.
    #[oai(nullable)]
    reason: Option<String>,
}

impl JsonRequest for SetWeightRequest {}

/// The weight of an organisation.
#[derive(Object)]
#[oai(rename = "TenantWeight")]
pub(crate) struct WeightDetails {
    /// The organisation, by its root workspace.
    tenant: String,
    /// Turns for each one of an organisation without a weight.
    weight: i32,
    #[oai(nullable)]
    reason: Option<String>,
    set_by: String,
    since: Timestamp,
}

/// Part of the list of weights, by organisation.
#[derive(Object)]
#[oai(rename = "TenantWeightList")]
pub(crate) struct WeightList {
    items: Vec<WeightDetails>,
    /// Give it back as `cursor` for the next part; null at the end.
    #[oai(nullable)]
    next_cursor: Option<String>,
}

pub(crate) struct WeightsApi;

#[OpenApi(tag = "Tag::Queues")]
impl WeightsApi {
    /// Lists the organisations that have a weight. All others weigh 1.
    #[oai(
        path = "/queues/weights",
        method = "get",
        operation_id = "list_weights"
    )]
    async fn list_weights(
        &self,
        _access: AdminAccess,
        state: Shared<'_>,
        /// At most so many, 1 to 500.
        limit: Query<Option<i64>>,
        cursor: Query<Option<String>>,
    ) -> ApiResult<Json<WeightList>> {
        let limit = paging::limit(limit.0)?;
        let mut conn = state.connection(FAILED).await?;
        let all = control::weights(&mut conn)
            .await
            .map_err(|error| ApiError::ledger(error, FAILED))?;
        let (items, next_cursor) = paging::part(
            all,
            |weight| weight.tenant.clone(),
            limit,
            cursor.0.as_deref(),
        );
        Ok(Json(WeightList {
            items: items.into_iter().map(WeightDetails::from).collect(),
            next_cursor,
        }))
    }

    /// Gives an organisation a weight: where it and another have enough waiting, it gets so many turns for each one of an
    /// organisation without a weight. It holds from the next choice on; what had been admitted stays so.
    #[oai(
        path = "/queues/weights/:tenant",
        method = "put",
        operation_id = "update_weight"
    )]
    async fn update_weight(
        &self,
        access: AdminAccess,
        state: Shared<'_>,
        /// The organisation, by its root workspace.
        tenant: Path<String>,
        body: JsonBody<SetWeightRequest>,
    ) -> ApiResult<Json<WeightDetails>> {
        let weight = i16::try_from(body.0.weight)
            .ok()
            .filter(|weight| (1..=MAX_WEIGHT).contains(weight))
            .ok_or_else(|| ApiError::bad_request("weight must be from 1 to 100"))?;
        let reason = reason::check(body.0.reason)?;
        let tenant = canonical_tenant(tenant.0);
        let by = access.0.name();
        let mut tx = state.transaction(NOT_SET).await?;
        let (set, changed) = set_weight(&mut tx, &tenant, weight, reason.as_deref(), &by)
            .await
            .map_err(|error| ApiError::ledger(error, NOT_SET))?;
        if changed {
            let what = json!({ "scope": Scope::Tenant, "value": set.tenant, "weight": set.weight });
            let event = change_event(names::WEIGHT_SET, what, &by, reason.as_deref());
            append(&mut tx, event)
                .await
                .map_err(|error| ApiError::internal(NOT_SET, error))?;
        }
        commit_and_poke(&state, tx, &[]).await?;
        Ok(Json(set.into()))
    }

    /// Takes the weight of an organisation away: it weighs 1 again.
    #[oai(
        path = "/queues/weights/:tenant",
        method = "delete",
        operation_id = "delete_weight"
    )]
    async fn delete_weight(
        &self,
        access: AdminAccess,
        state: Shared<'_>,
        /// The organisation, by its root workspace.
        tenant: Path<String>,
        /// Why; at most 500 characters.
        reason: Query<Option<String>>,
    ) -> ApiResult<Json<WeightDetails>> {
        let reason = reason::check(reason.0)?;
        let tenant = canonical_tenant(tenant.0);
        let by = access.0.name();
        let mut tx = state.transaction(NOT_CLEARED).await?;
        let was = clear_weight(&mut tx, &tenant)
            .await
            .map_err(|error| ApiError::ledger(error, NOT_CLEARED))?
            .ok_or_else(|| ApiError::not_found("weight not found"))?;
        let what = json!({ "scope": Scope::Tenant, "value": was.tenant, "was": was.weight });
        let event = change_event(names::WEIGHT_CLEARED, what, &by, reason.as_deref());
        append(&mut tx, event)
            .await
            .map_err(|error| ApiError::internal(NOT_CLEARED, error))?;
        commit_and_poke(&state, tx, &[]).await?;
        Ok(Json(was.into()))
    }
}

impl From<TenantWeight> for WeightDetails {
    fn from(weight: TenantWeight) -> Self {
        Self {
            tenant: weight.tenant,
            weight: i32::from(weight.weight),
            reason: weight.reason,
            set_by: weight.set_by,
            since: weight.since,
        }
    }
}
