//! What may run of a queue at once, and how fast.

use longshore_events::{append, names};
use longshore_ledger::control::{self, LimitsPatch, Scope, queues_to_poke, set_limits};
use poem_openapi::Object;
use poem_openapi::types::MaybeUndefined;
use serde::Deserialize;
use serde_json::json;

use super::{NOT_CHANGED, commit_and_poke};
use crate::auth::Principal;
use crate::body::JsonRequest;
use crate::operator::change_event;
use crate::problem::{ApiError, ApiResult};
use crate::reason;
use crate::state::ApiState;

/// The limits to change; null removes one. Zero lets nothing start.
#[derive(Deserialize, Object)]
#[serde(deny_unknown_fields)]
pub(crate) struct UpdateQueueRequest {
    /// Runs at once, over all workers.
    #[serde(default)]
    #[oai(nullable)]
    max_running: MaybeUndefined<i32>,
    /// Runs at once in one worker.
    #[serde(default)]
    #[oai(nullable)]
    max_per_worker: MaybeUndefined<i32>,
    /// Starts a minute, evenly spaced.
    #[serde(default)]
    #[oai(nullable)]
    rate_per_minute: MaybeUndefined<i32>,
    /// Why; at most 500 characters.
    reason: Option<String>,
}

impl JsonRequest for UpdateQueueRequest {}

pub(super) async fn change(
    state: &ApiState,
    caller: &Principal,
    queue: &str,
    request: UpdateQueueRequest,
) -> ApiResult<()> {
    let ledger = |error| ApiError::ledger(error, NOT_CHANGED);
    let patch = LimitsPatch {
        max_running: limit("max_running", request.max_running)?,
        max_per_worker: limit("max_per_worker", request.max_per_worker)?,
        rate_per_minute: limit("rate_per_minute", request.rate_per_minute)?,
    };
    let reason = reason::check(request.reason)?;
    let by = caller.name();
    let mut tx = state.transaction(NOT_CHANGED).await?;
    let before = control::queue(&mut tx, &state.kinds, queue)
        .await
        .map_err(ledger)?
        .map(|found| found.view.limits)
        .unwrap_or_default();
    let after = set_limits(&mut tx, queue, patch, &by)
        .await
        .map_err(ledger)?;
    if after != before {
        let what = json!({ "scope": Scope::Queue, "value": queue, "limits": after });
        let event = change_event(names::QUEUE_LIMITED, what, &by, reason.as_deref());
        append(&mut tx, event)
            .await
            .map_err(|error| ApiError::internal(NOT_CHANGED, error))?;
    }
    let pokes = queues_to_poke(&mut tx, Some(queue)).await.map_err(ledger)?;
    commit_and_poke(state, tx, &pokes).await
}

fn limit(name: &str, wanted: MaybeUndefined<i32>) -> ApiResult<Option<Option<i32>>> {
    match wanted {
        MaybeUndefined::Undefined => Ok(None),
        MaybeUndefined::Null => Ok(Some(None)),
        MaybeUndefined::Value(most) if most >= 0 => Ok(Some(Some(most))),
        MaybeUndefined::Value(_) => Err(ApiError::bad_request(format!(
            "{name} must be zero or more"
        ))),
    }
}
