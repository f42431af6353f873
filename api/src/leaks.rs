//! What was to be stopped and may still run (`spec: operations` §5).

use longshore_base::Timestamp;
use longshore_fleet::leaks::{Leak, list_leaks};
use poem_openapi::param::Query;
use poem_openapi::payload::Json;
use poem_openapi::{Enum, Object, OpenApi};
use uuid::Uuid;

use crate::auth::AdminAccess;
use crate::document::Tag;
use crate::paging;
use crate::problem::{ApiError, ApiResult};
use crate::state::Shared;

const FAILED: &str = "query failed";

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
    /// Who wanted it stopped: `restart`, `auto-restart`, `pause`, `hibernate` or `purge`.
    source: String,
    #[oai(nullable)]
    workspace_id: Option<Uuid>,
    backend: String,
    #[oai(nullable)]
    engine_id: Option<String>,
    /// `container`, `volume` or `instance`.
    resource: String,
    resource_id: String,
    /// Why the last attempt failed.
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
}
