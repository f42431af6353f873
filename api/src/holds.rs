//! Holds: what operators keep from starting, beside whole queues (`spec: operations` §2).

use longshore_base::{Timestamp, clock};
use longshore_events::{append, names};
use longshore_ledger::control::{
    self, Control, Hold, Mode, NewHold, Scope, lift_hold, queues_to_poke, set_hold, settle,
};
use poem_openapi::param::{Path, Query};
use poem_openapi::payload::Json;
use poem_openapi::{ApiResponse, Enum, Object, OpenApi};
use serde::Deserialize;
use serde_json::json;
use uuid::Uuid;

use crate::auth::AdminAccess;
use crate::body::{JsonBody, JsonRequest};
use crate::document::Tag;
use crate::idempotency::{IdempotencyKey, Idempotent};
use crate::operator::{canonical_tenant, change_event};
use crate::paging;
use crate::problem::{ApiError, ApiResult};
use crate::queues::{commit_and_poke, queue_names};
use crate::reason;
use crate::state::{ApiState, Shared};

const FAILED: &str = "query failed";
const NOT_SET: &str = "failed to set hold";
const NOT_LIFTED: &str = "failed to lift hold";
const LONGEST_VALUE: usize = 255;

/// What is held.
#[derive(Clone, Copy, Debug, Deserialize, Enum, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
#[oai(rename_all = "snake_case")]
pub(crate) enum HoldScope {
    /// Everything.
    All,
    /// A kind of job.
    Kind,
    /// What runs on an engine.
    Engine,
    /// An organisation, by its root workspace.
    Tenant,
    /// A workspace.
    Workspace,
}

/// How it is held.
#[derive(Clone, Copy, Debug, Deserialize, Enum)]
#[serde(rename_all = "snake_case")]
#[oai(rename_all = "snake_case")]
pub(crate) enum HoldMode {
    /// Nothing of it starts.
    Pause,
    /// Nothing of it starts, and requests for it are refused.
    Reject,
}

/// A hold to be set.
#[derive(Deserialize, Object)]
#[serde(deny_unknown_fields)]
pub(crate) struct CreateHoldRequest {
    scope: HoldScope,
    /// Which one; left out for `all`.
    #[oai(nullable)]
    value: Option<String>,
    mode: HoldMode,
    /// Why; at most 500 characters.
    #[oai(nullable)]
    reason: Option<String>,
    /// It lifts itself then.
    #[oai(nullable)]
    until: Option<Timestamp>,
}

impl JsonRequest for CreateHoldRequest {}

/// A hold.
#[derive(Object)]
#[oai(rename = "Hold")]
pub(crate) struct HoldDetails {
    id: Uuid,
    /// `all`, `kind`, `engine`, `tenant` or `workspace`.
    scope: String,
    /// Which one; null for `all`.
    #[oai(nullable)]
    value: Option<String>,
    /// `pause` or `reject`.
    mode: String,
    #[oai(nullable)]
    reason: Option<String>,
    set_by: String,
    since: Timestamp,
    /// When it lifts itself, if it does.
    #[oai(nullable)]
    until: Option<Timestamp>,
}

/// Part of the list of holds, oldest first.
#[derive(Object)]
pub(crate) struct HoldList {
    items: Vec<HoldDetails>,
    /// Give it back as `cursor` for the next part; null at the end.
    #[oai(nullable)]
    next_cursor: Option<String>,
}

#[derive(ApiResponse)]
pub(crate) enum CreateHoldResponse {
    /// It holds.
    #[oai(status = 201)]
    Set(
        Json<HoldDetails>,
        /// The hold.
        #[oai(header = "Location")]
        String,
    ),
}

pub(crate) struct HoldsApi;

#[OpenApi(tag = "Tag::Queues")]
impl HoldsApi {
    /// Lists the holds that are in force, oldest first.
    #[oai(path = "/holds", method = "get", operation_id = "list_holds")]
    async fn list_holds(
        &self,
        _access: AdminAccess,
        state: Shared<'_>,
        /// At most so many, 1 to 500.
        limit: Query<Option<i64>>,
        cursor: Query<Option<Uuid>>,
    ) -> ApiResult<Json<HoldList>> {
        let limit = paging::limit(limit.0)?;
        let mut conn = state.connection(FAILED).await?;
        let mut all = control::holds(&mut conn)
            .await
            .map_err(|error| ApiError::ledger(error, FAILED))?;
        // Their ids rise with time, and are what a cursor names.
        all.sort_by_key(|hold| hold.id);
        let after = cursor.0.map(|id| id.to_string());
        let (items, next_cursor) =
            paging::part(all, |hold| hold.id.to_string(), limit, after.as_deref());
        Ok(Json(HoldList {
            items: items.into_iter().map(HoldDetails::from).collect(),
            next_cursor,
        }))
    }

    /// Shows a hold that is in force.
    #[oai(path = "/holds/:hold_id", method = "get", operation_id = "get_hold")]
    async fn get_hold(
        &self,
        _access: AdminAccess,
        state: Shared<'_>,
        hold_id: Path<Uuid>,
    ) -> ApiResult<Json<HoldDetails>> {
        let mut conn = state.connection(FAILED).await?;
        let found = control::hold(&mut conn, hold_id.0)
            .await
            .map_err(|error| ApiError::ledger(error, FAILED))?;
        Ok(Json(found.ok_or_else(not_found)?.into()))
    }

    /// Sets a hold: once this is answered, nothing of what it holds starts.
    #[oai(path = "/holds", method = "post", operation_id = "create_hold")]
    async fn create_hold(
        &self,
        access: AdminAccess,
        state: Shared<'_>,
        /// Makes the request safe to send again: a repetition with the same key and body gets the first answer.
        #[oai(name = "Idempotency-Key")]
        key: IdempotencyKey,
        body: JsonBody<CreateHoldRequest>,
    ) -> ApiResult<Idempotent<CreateHoldResponse>> {
        let ledger = |error| ApiError::ledger(error, NOT_SET);
        let by = access.0.name();
        let hold = body.0.into_hold(&state, &by)?;
        let (answer, set) = key
            .once(&state, NOT_SET, async |tx| {
                let now = clock::now(&mut *tx)
                    .await
                    .map_err(|error| ApiError::database(error, NOT_SET))?;
                if hold.until.is_some_and(|until| until <= now) {
                    return Err(ApiError::bad_request("until must be in the future"));
                }
                let changed = set_hold(tx, hold).await.map_err(ledger)?;
                let control = changed.control;
                let what = json!({
                    "hold_id": control.id, "scope": control.scope, "value": control.value,
                    "mode": control.mode, "until": control.until,
                });
                let event = change_event(names::HOLD_SET, what, &by, control.reason.as_deref());
                append(tx, event)
                    .await
                    .map_err(|error| ApiError::internal(NOT_SET, error))?;
                let location = format!("/holds/{}", control.id);
                let held = (control.scope, control.value.clone());
                let answer = CreateHoldResponse::Set(Json(control.into()), location);
                Ok((answer, (held, changed.pokes)))
            })
            .await?;
        if let Some(((scope, value), pokes)) = set {
            state.poke(&pokes);
            settle(&state.pools.work, scope, &value)
                .await
                .map_err(ledger)?;
        }
        Ok(answer)
    }

    /// Lifts a hold.
    #[oai(
        path = "/holds/:hold_id",
        method = "delete",
        operation_id = "delete_hold"
    )]
    async fn delete_hold(
        &self,
        access: AdminAccess,
        state: Shared<'_>,
        hold_id: Path<Uuid>,
        /// Why; at most 500 characters.
        reason: Query<Option<String>>,
    ) -> ApiResult<Json<HoldDetails>> {
        let ledger = |error| ApiError::ledger(error, NOT_LIFTED);
        let reason = reason::check(reason.0)?;
        let by = access.0.name();
        let mut tx = state.transaction(NOT_LIFTED).await?;
        let lifted = lift_hold(&mut tx, hold_id.0, &by).await.map_err(ledger)?;
        let lifted = lifted.ok_or_else(not_found)?;
        let what = json!({
            "hold_id": lifted.id, "scope": lifted.scope, "value": lifted.value, "mode": lifted.mode,
        });
        let event = change_event(names::HOLD_LIFTED, what, &by, reason.as_deref());
        append(&mut tx, event)
            .await
            .map_err(|error| ApiError::internal(NOT_LIFTED, error))?;
        let kind = (lifted.scope == Scope::Kind).then_some(lifted.value.as_str());
        let pokes = queues_to_poke(&mut tx, kind).await.map_err(ledger)?;
        commit_and_poke(&state, tx, &pokes).await?;
        Ok(Json(lifted.into()))
    }
}

fn not_found() -> ApiError {
    ApiError::not_found("hold not found")
}

impl CreateHoldRequest {
    fn into_hold(self, state: &ApiState, by: &str) -> ApiResult<NewHold> {
        Ok(NewHold {
            value: self.scope.check_value(state, self.value)?,
            scope: self.scope.into(),
            mode: match self.mode {
                HoldMode::Pause => Mode::Pause,
                HoldMode::Reject => Mode::Reject,
            },
            reason: reason::check(self.reason)?,
            set_by: by.to_owned(),
            until: self.until,
        })
    }
}

impl HoldScope {
    fn check_value(self, state: &ApiState, value: Option<String>) -> ApiResult<String> {
        let value = value.filter(|value| !value.is_empty());
        let Some(value) = value else {
            return match self {
                Self::All => Ok(String::new()),
                Self::Kind | Self::Engine | Self::Tenant | Self::Workspace => Err(
                    ApiError::bad_request("value is required for every scope but all"),
                ),
            };
        };
        if value.len() > LONGEST_VALUE {
            return Err(ApiError::bad_request(
                "value must be at most 255 characters",
            ));
        }
        match self {
            Self::All => Err(ApiError::bad_request("scope all takes no value")),
            Self::Kind if state.kinds.find(&value).is_none() => {
                Err(ApiError::bad_request("unknown kind").detail(format!(
                    "no kind is named {value}; there are: {}",
                    queue_names(state)
                )))
            }
            Self::Workspace => value
                .parse::<Uuid>()
                .map(|id| id.to_string())
                .map_err(|_| ApiError::bad_request("invalid workspace id")),
            Self::Tenant => Ok(canonical_tenant(value)),
            Self::Kind | Self::Engine => Ok(value),
        }
    }
}

impl From<HoldScope> for Scope {
    fn from(scope: HoldScope) -> Self {
        match scope {
            HoldScope::All => Self::All,
            HoldScope::Kind => Self::Kind,
            HoldScope::Engine => Self::Engine,
            HoldScope::Tenant => Self::Tenant,
            HoldScope::Workspace => Self::Workspace,
        }
    }
}

const fn scope_name(scope: Scope) -> &'static str {
    match scope {
        Scope::Queue => "queue",
        Scope::All => "all",
        Scope::Kind => "kind",
        Scope::Engine => "engine",
        Scope::Tenant => "tenant",
        Scope::Workspace => "workspace",
    }
}

impl From<Control> for HoldDetails {
    fn from(control: Control) -> Self {
        Self {
            id: control.id,
            scope: scope_name(control.scope).to_owned(),
            value: Some(control.value).filter(|value| !value.is_empty()),
            mode: control.mode.as_str().to_owned(),
            reason: control.reason,
            set_by: control.set_by,
            since: control.since,
            until: control.until,
        }
    }
}

impl From<Hold> for HoldDetails {
    fn from(hold: Hold) -> Self {
        Self::from(Control {
            id: hold.id,
            scope: hold.scope,
            value: hold.value,
            mode: hold.mode,
            reason: hold.reason,
            set_by: hold.set_by,
            since: hold.since,
            until: hold.until,
        })
    }
}
