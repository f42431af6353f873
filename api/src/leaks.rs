//! What was to be stopped and may still run (`spec: operations` §5).

use longshore_base::Timestamp;
use longshore_fleet::leaks::{Leak, Settled, confirm_leak, find_leak, list_leaks, settle_leak};
use longshore_jobs::reclaim;
use poem_openapi::param::{Path, Query};
use poem_openapi::payload::Json;
use poem_openapi::{ApiResponse, Enum, Object, OpenApi};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::auth::AdminAccess;
use crate::body::JsonBody;
use crate::document::Tag;
use crate::idempotency::{IdempotencyKey, Idempotent};
use crate::paging;
use crate::problem::{ApiError, ApiResult};
use crate::queues::require_accepted;
use crate::reason::ChangeRequest;
use crate::state::Shared;

const FAILED: &str = "query failed";
const NOT_CHANGED: &str = "failed to change leak";

/// What is known of something that was left behind.
#[derive(Clone, Copy, Debug, Enum)]
#[oai(rename_all = "snake_case")]
pub(crate) enum LeakState {
    /// Its stop failed.
    Suspected,
    /// It was seen to run.
    Confirmed,
    /// It is a workspace's again.
    Adopted,
    /// It was removed on purpose.
    Removed,
    /// A later stop removed it or did not find it.
    Gone,
    /// Somebody wants it to stay.
    Kept,
}

impl LeakState {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Suspected => "suspected",
            Self::Confirmed => "confirmed",
            Self::Adopted => "adopted",
            Self::Removed => "removed",
            Self::Gone => "gone",
            Self::Kept => "kept",
        }
    }
}

/// Something that was to be stopped and may still run.
#[derive(Object)]
#[oai(rename = "Leak")]
pub(crate) struct LeakDetails {
    id: Uuid,
    found_at: Timestamp,
    /// Who wanted it stopped: `restart`, `auto-restart`, `pause`, `hibernate`, `purge` or `provision`; `sweep` if it was
    /// found without that.
    source: String,
    #[oai(nullable)]
    workspace_id: Option<Uuid>,
    backend: String,
    #[oai(nullable)]
    engine_id: Option<String>,
    /// `container`, `volume` or `instance`.
    resource: String,
    resource_id: String,
    /// Why the last attempt failed, or why nobody wants it.
    error: String,
    attempts: i32,
    /// `suspected`, `confirmed`, `adopted`, `removed`, `gone` or `kept`.
    state: String,
    #[oai(nullable)]
    resolved_at: Option<Timestamp>,
}

impl From<Leak> for LeakDetails {
    fn from(leak: Leak) -> Self {
        Self {
            id: leak.id,
            found_at: leak.found_at,
            source: leak.source,
            workspace_id: leak.workspace_id.map(|id| id.0),
            backend: leak.backend,
            engine_id: leak.engine_id,
            resource: leak.resource,
            resource_id: leak.resource_id,
            error: leak.error,
            attempts: leak.attempts,
            state: leak.state,
            resolved_at: leak.resolved_at,
        }
    }
}

/// Part of the list of leaks, newest first.
#[derive(Object)]
pub(crate) struct LeakList {
    items: Vec<LeakDetails>,
    /// Give it back as `cursor` for the next part; null at the end.
    #[oai(nullable)]
    next_cursor: Option<Uuid>,
}

/// The job that removes it.
#[derive(Object)]
pub(crate) struct LeakRemoval {
    job_id: Uuid,
}

#[derive(ApiResponse)]
pub(crate) enum RemoveLeakResponse {
    /// It will be removed.
    #[oai(status = 202)]
    Started(
        Json<LeakRemoval>,
        /// The job that does it.
        #[oai(header = "Location")]
        String,
    ),
}

pub(crate) struct LeaksApi;

#[OpenApi(tag = "Tag::Workers")]
impl LeaksApi {
    /// Lists what was to be stopped and may still run, newest first.
    #[oai(path = "/leaks", method = "get", operation_id = "list_leaks")]
    async fn list_leaks(
        &self,
        _access: AdminAccess,
        app: Shared<'_>,
        /// Only those in this state.
        state: Query<Option<LeakState>>,
        /// At most so many, 1 to 500.
        limit: Query<Option<i64>>,
        cursor: Query<Option<Uuid>>,
    ) -> ApiResult<Json<LeakList>> {
        let limit = paging::limit(limit.0)?;
        let state = state.0.map(LeakState::as_str);
        let mut conn = app.connection(FAILED).await?;
        let mut found = list_leaks(&mut conn, state, cursor.0, limit + 1)
            .await
            .map_err(|error| ApiError::fleet(error, FAILED))?;
        let wanted = usize::try_from(limit).unwrap_or(0);
        let has_more = found.len() > wanted;
        found.truncate(wanted);
        let next_cursor = found.last().filter(|_| has_more).map(|leak| leak.id);
        Ok(Json(LeakList {
            items: found.into_iter().map(LeakDetails::from).collect(),
            next_cursor,
        }))
    }

    /// Removes something without waiting for the sweep, also what was kept, and the volume of a purged workspace's work.
    #[oai(
        path = "/leaks/:leak_id/remove",
        method = "post",
        operation_id = "remove_leak"
    )]
    async fn remove_leak(
        &self,
        access: AdminAccess,
        app: Shared<'_>,
        leak_id: Path<Uuid>,
        /// Makes the request safe to send again: a repetition with the same key and body gets the first answer.
        #[oai(name = "Idempotency-Key")]
        key: IdempotencyKey,
        body: JsonBody<ChangeRequest>,
    ) -> ApiResult<Idempotent<RemoveLeakResponse>> {
        let by = access.0.name();
        let reason = body.0.reason()?;
        let (answer, queue) = key
            .once(&app, NOT_CHANGED, async |tx| {
                let leak = load(tx, leak_id.0, NOT_CHANGED).await?;
                require_removable(&leak)?;
                let is_open = confirm_leak(tx, leak.id)
                    .await
                    .map_err(|error| ApiError::fleet(error, NOT_CHANGED))?;
                if !is_open {
                    return Err(settled(&leak));
                }
                let asked = reclaim::request(tx, &leak, &by)
                    .await
                    .map_err(|error| ApiError::ledger(error, NOT_CHANGED))?;
                let tenant = leak.workspace_id.map(|id| id.to_string());
                let tenant = tenant.as_deref().unwrap_or(reclaim::TENANT);
                require_accepted(tx, &asked.queue, tenant, leak.workspace_id, NOT_CHANGED).await?;
                tracing::info!(leak.id = %leak.id, by, reason, "the removal of a leak was asked for");
                let job_id = asked.job_id.0;
                let location = format!("/jobs/{job_id}");
                let started = Json(LeakRemoval { job_id });
                Ok((RemoveLeakResponse::Started(started, location), asked.queue))
            })
            .await?;
        if let Some(queue) = queue {
            app.admitter.poke(&queue);
        }
        Ok(answer)
    }

    /// Lets something stay: no sweep touches it any more, until its removal is asked for.
    #[oai(
        path = "/leaks/:leak_id/keep",
        method = "post",
        operation_id = "keep_leak"
    )]
    async fn keep_leak(
        &self,
        access: AdminAccess,
        app: Shared<'_>,
        leak_id: Path<Uuid>,
        body: JsonBody<ChangeRequest>,
    ) -> ApiResult<Json<LeakDetails>> {
        let by = access.0.name();
        let reason = body.0.reason()?;
        let mut tx = app.transaction(NOT_CHANGED).await?;
        let decided = Some((by.as_str(), reason.as_deref()));
        let is_kept = settle_leak(&mut tx, leak_id.0, Settled::Kept, decided)
            .await
            .map_err(|error| ApiError::fleet(error, NOT_CHANGED))?;
        let leak = load(&mut tx, leak_id.0, NOT_CHANGED).await?;
        if !is_kept && leak.state != Settled::Kept.as_str() {
            return Err(settled(&leak));
        }
        tx.commit()
            .await
            .map_err(|error| ApiError::database(error, NOT_CHANGED))?;
        app.bus.poke();
        Ok(Json(leak.into()))
    }
}

async fn load(conn: &mut PgConnection, id: Uuid, failed: &'static str) -> ApiResult<Leak> {
    let found = find_leak(conn, id)
        .await
        .map_err(|error| ApiError::fleet(error, failed))?;
    found.ok_or_else(|| {
        ApiError::not_found("leak not found").detail("no leak has this id; GET /leaks lists all")
    })
}

fn settled(leak: &Leak) -> ApiError {
    ApiError::conflict(format!(
        "the leak is settled: it is {}, and nothing is to be done about it",
        leak.state
    ))
}

fn require_removable(leak: &Leak) -> ApiResult<()> {
    if reclaim::is_nameless(&leak.resource, &leak.resource_id) {
        return Err(ApiError::conflict(
            "what that start made has no name to remove it by: look for it at the control plane, then keep this leak",
        ));
    }
    Ok(())
}
