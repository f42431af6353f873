//! Reconcilers: what keeps the fleet as it should be, seen and steered by operators (`spec: operations` §4).
//!
//! One reconciler may have several scopes, an engine each. What is asked of a name is asked of all its scopes, unless
//! `?scope=` names one.

use std::collections::BTreeMap;

use longshore_base::Timestamp;
use longshore_events::{append, names};
use longshore_jobs::reconcile::{self, Args};
use longshore_ledger::ownership::{
    ReconcilerRow, approve, list_reconcilers, list_ticks, set_enabled,
};
use poem_openapi::param::{Path, Query};
use poem_openapi::payload::Json;
use poem_openapi::{ApiResponse, Object, OpenApi};
use serde::Deserialize;
use serde_json::json;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::auth::{AdminAccess, Principal};
use crate::body::{JsonBody, JsonRequest};
use crate::document::Tag;
use crate::idempotency::{IdempotencyKey, Idempotent};
use crate::operator::change_event;
use crate::paging;
use crate::problem::{ApiError, ApiResult};
use crate::queues::require_accepted;
use crate::reason::ChangeRequest;
use crate::state::{ApiState, Shared};

const FAILED: &str = "query failed";
const NOT_CHANGED: &str = "failed to change reconciler";
const NOT_RUN: &str = "failed to run reconciler";

/// A reconciler in one scope.
#[derive(Object)]
pub(crate) struct Reconciler {
    name: String,
    /// An engine's id, or `all`.
    scope: String,
    /// The worker that makes its passes; null while nobody does.
    #[oai(nullable)]
    owner: Option<String>,
    interval_seconds: i32,
    /// Null before the first.
    #[oai(nullable)]
    last_pass: Option<ReconcilerPass>,
    enabled: bool,
    /// Who enabled or disabled it last.
    #[oai(nullable)]
    changed_by: Option<String>,
    #[oai(nullable)]
    changed_at: Option<Timestamp>,
    #[oai(nullable)]
    change_reason: Option<String>,
    /// Not null while it holds back, since it would destroy more than it may.
    #[oai(nullable)]
    blocked: Option<BlockedPass>,
    /// What it holds back is approved: the next pass will do it.
    approved: bool,
}

/// What the last pass saw and did.
#[derive(Deserialize, Object)]
pub(crate) struct ReconcilerPass {
    /// When it ended.
    #[serde(skip)]
    #[oai(nullable)]
    at: Option<Timestamp>,
    took_ms: u64,
    /// Things looked at.
    seen: u64,
    /// Things changed.
    acted: u64,
    /// Things left alone on purpose.
    skipped: u64,
    /// Things that could not be looked at or changed.
    failed: u64,
    /// A few of what was acted on.
    sample: Vec<String>,
    /// Why it did less than it is there for.
    #[oai(nullable)]
    note: Option<String>,
}

/// What a pass wanted to destroy beyond its budget. None of it was.
#[derive(Deserialize, Object)]
pub(crate) struct BlockedPass {
    reason: String,
    /// All that it wanted.
    wanted: Vec<String>,
    /// How much it may destroy without being asked: 5, or a twentieth of what it looked at.
    budget: u64,
    since: Timestamp,
}

/// Part of the list of reconcilers, by name and scope.
#[derive(Object)]
pub(crate) struct ReconcilerList {
    items: Vec<Reconciler>,
    /// Give it back as `cursor` for the next part; null at the end.
    #[oai(nullable)]
    next_cursor: Option<String>,
}

/// How a pass is to be made.
#[derive(Default, Deserialize, Object)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RunReconcilerRequest {
    /// Change nothing; the job's result lists in `would` what would have been done.
    #[oai(default)]
    dry_run: bool,
}

impl JsonRequest for RunReconcilerRequest {
    const MAY_BE_ABSENT: bool = true;
}

/// The job that makes a pass; its result is the pass's report.
#[derive(Object)]
pub(crate) struct ReconcilerRun {
    job_id: Uuid,
    scope: String,
}

/// The passes that were asked for.
#[derive(Object)]
pub(crate) struct ReconcilerRuns {
    /// The first one's job.
    job_id: Uuid,
    /// A job for each scope.
    jobs: Vec<ReconcilerRun>,
}

#[derive(ApiResponse)]
pub(crate) enum RunReconcilerResponse {
    /// The passes will be made.
    #[oai(status = 202)]
    Started(
        Json<ReconcilerRuns>,
        /// The first one's job.
        #[oai(header = "Location")]
        String,
    ),
}

/// When the periodic loops last went round.
#[derive(Object)]
pub(crate) struct Liveness {
    /// By name. One older than twice its interval is stale.
    subsystems: BTreeMap<String, Subsystem>,
}

/// A periodic loop.
#[derive(Object)]
pub(crate) struct Subsystem {
    last_tick_at: Timestamp,
    seconds_ago: u64,
}

pub(crate) struct ReconcilersApi;

#[OpenApi(tag = "Tag::Reconcilers")]
impl ReconcilersApi {
    /// Lists the reconcilers, one for each scope.
    #[oai(
        path = "/reconcilers",
        method = "get",
        operation_id = "list_reconcilers"
    )]
    async fn list_reconcilers(
        &self,
        _access: AdminAccess,
        state: Shared<'_>,
        /// At most so many, 1 to 500.
        limit: Query<Option<i64>>,
        cursor: Query<Option<String>>,
    ) -> ApiResult<Json<ReconcilerList>> {
        let limit = paging::limit(limit.0)?;
        let mut conn = state.connection(FAILED).await?;
        let mut all = list_reconcilers(&mut conn, None, None)
            .await
            .map_err(|error| ApiError::ledger(error, FAILED))?;
        let name = |row: &ReconcilerRow| format!("{}/{}", row.name, row.scope);
        all.sort_by_key(name);
        let (items, next_cursor) = paging::part(all, name, limit, cursor.0.as_deref());
        Ok(Json(ReconcilerList {
            items: items.into_iter().map(Reconciler::from).collect(),
            next_cursor,
        }))
    }

    /// Shows a reconciler. Where it has several scopes, one must be named.
    #[oai(
        path = "/reconcilers/:name",
        method = "get",
        operation_id = "get_reconciler"
    )]
    async fn get_reconciler(
        &self,
        _access: AdminAccess,
        state: Shared<'_>,
        name: Path<String>,
        /// An engine's id, or `all`.
        scope: Query<Option<String>>,
    ) -> ApiResult<Json<Reconciler>> {
        let mut conn = state.connection(FAILED).await?;
        let found = find(&mut conn, &name.0, scope.0.as_deref(), FAILED).await?;
        if found.len() > 1 {
            return Err(ApiError::bad_request("scope is required").detail(format!(
                "reconciler {} has several scopes; name one with ?scope=: {}",
                name.0,
                scopes_of(&found).join(", ")
            )));
        }
        let one = found.into_iter().next().ok_or_else(not_found)?;
        Ok(Json(one.into()))
    }

    /// Lets a reconciler make passes again.
    #[oai(
        path = "/reconcilers/:name/enable",
        method = "post",
        operation_id = "enable_reconciler"
    )]
    async fn enable_reconciler(
        &self,
        access: AdminAccess,
        state: Shared<'_>,
        name: Path<String>,
        /// Only this scope of it.
        scope: Query<Option<String>>,
        body: JsonBody<ChangeRequest>,
    ) -> ApiResult<Json<ReconcilerList>> {
        let which = (name.0.as_str(), scope.0.as_deref());
        switch(&state, &access.0, which, true, body.0).await
    }

    /// Keeps a reconciler from making passes, until it is enabled again. Wants a reason. A pass that is being made ends.
    #[oai(
        path = "/reconcilers/:name/disable",
        method = "post",
        operation_id = "disable_reconciler"
    )]
    async fn disable_reconciler(
        &self,
        access: AdminAccess,
        state: Shared<'_>,
        name: Path<String>,
        /// Only this scope of it.
        scope: Query<Option<String>>,
        body: JsonBody<ChangeRequest>,
    ) -> ApiResult<Json<ReconcilerList>> {
        let which = (name.0.as_str(), scope.0.as_deref());
        switch(&state, &access.0, which, false, body.0).await
    }

    /// Lets the next pass of a blocked reconciler destroy what the blocked one listed, beyond its budget.
    #[oai(
        path = "/reconcilers/:name/approve",
        method = "post",
        operation_id = "approve_reconciler"
    )]
    async fn approve_reconciler(
        &self,
        access: AdminAccess,
        state: Shared<'_>,
        name: Path<String>,
        /// Only this scope of it.
        scope: Query<Option<String>>,
        body: JsonBody<ChangeRequest>,
    ) -> ApiResult<Json<ReconcilerList>> {
        let reason = body.0.reason()?;
        let (name, scope) = (name.0.as_str(), scope.0.as_deref());
        let mut tx = state.transaction(NOT_CHANGED).await?;
        find(&mut tx, name, scope, NOT_CHANGED).await?;
        let scopes = approve(&mut tx, name, scope)
            .await
            .map_err(|error| ApiError::ledger(error, NOT_CHANGED))?;
        if scopes.is_empty() {
            return Err(ApiError::conflict(format!(
                "reconciler {name} is not blocked: there is nothing to approve"
            )));
        }
        let what = json!({ "name": name, "scopes": scopes });
        let by = access.0.name();
        let event = change_event(names::RECONCILER_APPROVED, what, &by, reason.as_deref());
        append(&mut tx, event)
            .await
            .map_err(|error| ApiError::internal(NOT_CHANGED, error))?;
        let after = find(&mut tx, name, scope, NOT_CHANGED).await?;
        tx.commit()
            .await
            .map_err(|error| ApiError::database(error, NOT_CHANGED))?;
        state.bus.poke();
        Ok(Json(whole(after)))
    }

    /// Makes a pass now, in every scope or in the one that is named.
    #[oai(
        path = "/reconcilers/:name/run",
        method = "post",
        operation_id = "run_reconciler"
    )]
    async fn run_reconciler(
        &self,
        access: AdminAccess,
        state: Shared<'_>,
        name: Path<String>,
        /// Only in this scope.
        scope: Query<Option<String>>,
        /// Makes the request safe to send again: a repetition with the same key and body gets the first answer.
        #[oai(name = "Idempotency-Key")]
        key: IdempotencyKey,
        body: JsonBody<RunReconcilerRequest>,
    ) -> ApiResult<Idempotent<RunReconcilerResponse>> {
        let by = access.0.name();
        let dry_run = body.0.dry_run;
        let (answer, queues) = key
            .once(&state, NOT_RUN, async |tx| {
                let found = find(tx, &name.0, scope.0.as_deref(), NOT_RUN).await?;
                let disabled = found.iter().filter(|row| !row.enabled && !dry_run);
                let disabled: Vec<_> = disabled.map(|row| row.scope.as_str()).collect();
                if !disabled.is_empty() {
                    return Err(ApiError::conflict(format!(
                        "reconciler {} is disabled ({}): enable it first, or make a dry run",
                        name.0,
                        disabled.join(", ")
                    )));
                }
                let (mut jobs, mut queues) = (Vec::new(), Vec::new());
                for row in found {
                    let args = Args {
                        name: row.name,
                        scope: row.scope,
                        dry_run,
                    };
                    let enqueued = reconcile::request(tx, &args, &by)
                        .await
                        .map_err(|error| ApiError::ledger(error, NOT_RUN))?;
                    let queue = enqueued.queue;
                    require_accepted(tx, &queue, reconcile::TENANT, None, NOT_RUN).await?;
                    jobs.push(ReconcilerRun {
                        job_id: enqueued.job_id.0,
                        scope: args.scope,
                    });
                    queues.push(queue);
                }
                let job_id = jobs.first().ok_or_else(not_found)?.job_id;
                let location = format!("/jobs/{job_id}");
                let started = Json(ReconcilerRuns { job_id, jobs });
                Ok((RunReconcilerResponse::Started(started, location), queues))
            })
            .await?;
        for queue in queues.iter().flatten() {
            state.admitter.poke(queue);
        }
        Ok(answer)
    }

    /// Tells when each periodic loop last went round.
    #[oai(
        path = "/admin/liveness",
        method = "get",
        operation_id = "get_subsystems"
    )]
    async fn get_subsystems(
        &self,
        _access: AdminAccess,
        state: Shared<'_>,
    ) -> ApiResult<Json<Liveness>> {
        let ticks = list_ticks(&state.pools.work)
            .await
            .map_err(|error| ApiError::ledger(error, FAILED))?;
        let subsystems = ticks.into_iter().map(|tick| {
            let subsystem = Subsystem {
                last_tick_at: tick.at,
                seconds_ago: std::time::Duration::try_from_secs_f64(tick.seconds_ago)
                    .unwrap_or_default()
                    .as_secs(),
            };
            (subsystem_name(&tick.name).to_owned(), subsystem)
        });
        Ok(Json(Liveness {
            subsystems: subsystems.collect(),
        }))
    }
}

/// The loops' names of the ecosystem (`spec: lifecycle` §6.8); what it has no name for keeps ours.
fn subsystem_name(reconciler: &str) -> &str {
    match reconciler {
        "liveness" => "liveness-monitor",
        "health" => "health-sweep",
        "orphans" => "orphan-sweeper",
        "provision-timeout" => "provision-timeout-sweep",
        "hibernation" => "hibernation-monitor",
        "image-watch" => "image-auto-refresh",
        other => other,
    }
}

async fn switch(
    state: &ApiState,
    caller: &Principal,
    (name, scope): (&str, Option<&str>),
    enabled: bool,
    request: ChangeRequest,
) -> ApiResult<Json<ReconcilerList>> {
    let reason = request.reason()?;
    if !enabled && reason.is_none() {
        return Err(ApiError::bad_request("reason is required").detail(
            "a disabled reconciler leaves something unwatched; say why, for those who will wonder",
        ));
    }
    let by = caller.name();
    let mut tx = state.transaction(NOT_CHANGED).await?;
    find(&mut tx, name, scope, NOT_CHANGED).await?;
    let scopes = set_enabled(&mut tx, name, scope, enabled, &by, reason.as_deref())
        .await
        .map_err(|error| ApiError::ledger(error, NOT_CHANGED))?;
    if !scopes.is_empty() {
        let event = if enabled {
            names::RECONCILER_ENABLED
        } else {
            names::RECONCILER_DISABLED
        };
        let what = json!({ "name": name, "scopes": scopes });
        append(&mut tx, change_event(event, what, &by, reason.as_deref()))
            .await
            .map_err(|error| ApiError::internal(NOT_CHANGED, error))?;
    }
    let after = find(&mut tx, name, scope, NOT_CHANGED).await?;
    tx.commit()
        .await
        .map_err(|error| ApiError::database(error, NOT_CHANGED))?;
    state.bus.poke();
    Ok(Json(whole(after)))
}

/// The scopes of a reconciler, or the one that is named; never none.
async fn find(
    conn: &mut PgConnection,
    name: &str,
    scope: Option<&str>,
    failed: &'static str,
) -> ApiResult<Vec<ReconcilerRow>> {
    let found = list_reconcilers(conn, Some(name), scope)
        .await
        .map_err(|error| ApiError::ledger(error, failed))?;
    if found.is_empty() {
        return Err(not_found());
    }
    Ok(found)
}

fn not_found() -> ApiError {
    ApiError::not_found("reconciler not found").detail(
        "no worker has ever driven a reconciler of this name and scope; GET /reconcilers lists all",
    )
}

fn scopes_of(rows: &[ReconcilerRow]) -> Vec<&str> {
    rows.iter().map(|row| row.scope.as_str()).collect()
}

fn whole(rows: Vec<ReconcilerRow>) -> ReconcilerList {
    ReconcilerList {
        items: rows.into_iter().map(Reconciler::from).collect(),
        next_cursor: None,
    }
}

impl From<ReconcilerRow> for Reconciler {
    fn from(row: ReconcilerRow) -> Self {
        let last_pass = row.last_pass.and_then(|pass| {
            let pass: ReconcilerPass = serde_json::from_value(pass).ok()?;
            Some(ReconcilerPass {
                at: row.last_pass_at,
                ..pass
            })
        });
        Self {
            name: row.name,
            scope: row.scope,
            owner: row.owner,
            interval_seconds: row.interval_seconds,
            last_pass,
            enabled: row.enabled,
            changed_by: row.changed_by,
            changed_at: row.changed_at,
            change_reason: row.change_reason,
            blocked: row
                .blocked
                .and_then(|blocked| serde_json::from_value(blocked).ok()),
            approved: row.approved,
        }
    }
}
