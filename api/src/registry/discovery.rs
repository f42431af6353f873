//! How workspaces find each other.

use longshore_base::WorkspaceId;
use longshore_fleet::url_safety::{self, Own};
use longshore_fleet::workspace::{Workspace, find_workspace, list_workspaces};
use poem::http::StatusCode;
use poem_openapi::Object;
use poem_openapi::types::Any;
use serde_json::Value;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::problem::{ApiError, ApiResult};
use crate::state::ApiState;

pub(super) const FAILED: &str = "lookup failed";

/// Where a workspace is reached.
#[derive(Object)]
pub(crate) struct DiscoveredWorkspace {
    id: Uuid,
    url: String,
    name: String,
}

/// A workspace one can talk to without asking further.
#[derive(Object)]
pub(crate) struct Peer {
    id: Uuid,
    name: String,
    #[oai(nullable)]
    role: Option<String>,
    tier: i32,
    status: String,
    url: String,
    #[oai(nullable)]
    parent_id: Option<Uuid>,
    active_tasks: i32,
    agent_card: Option<Any<Value>>,
}

impl From<&Workspace> for Peer {
    fn from(workspace: &Workspace) -> Self {
        Self {
            id: workspace.id.0,
            name: workspace.name.clone(),
            role: workspace.role.clone(),
            tier: workspace.tier,
            status: workspace.status.to_string(),
            url: workspace.url.clone(),
            parent_id: workspace.parent_id.map(|id| id.0),
            active_tasks: workspace.active_tasks,
            agent_card: workspace.agent_card.clone().map(Any),
        }
    }
}

/// Siblings, children and parent whose name or role holds a text.
pub(super) async fn list_peers(
    conn: &mut PgConnection,
    id: WorkspaceId,
    query: &str,
) -> ApiResult<Vec<Peer>> {
    let all = list_workspaces(conn)
        .await
        .map_err(|error| ApiError::fleet(error, FAILED))?;
    let own = all
        .iter()
        .find(|workspace| workspace.id == id)
        .ok_or_else(ApiError::workspace_not_found)?;
    let wanted = query.trim().to_lowercase();
    Ok(peers_of(own, &all)
        .into_iter()
        .filter(|peer| mentions(peer, &wanted))
        .map(Peer::from)
        .collect())
}

/// Where a target is reached, for somebody who may talk to it.
pub(super) async fn discover(
    state: &ApiState,
    conn: &mut PgConnection,
    caller: WorkspaceId,
    target: WorkspaceId,
) -> ApiResult<DiscoveredWorkspace> {
    let find = async |conn: &mut PgConnection, id| {
        find_workspace(conn, id)
            .await
            .map_err(|error| ApiError::fleet(error, FAILED))
    };
    let workspace = find(conn, target)
        .await?
        .ok_or_else(ApiError::workspace_not_found)?;
    let found = |url: String| DiscoveredWorkspace {
        id: target.0,
        url,
        name: workspace.name.clone(),
    };
    if workspace.is_external() && !workspace.url.is_empty() {
        let caller_is_outside = find(conn, caller)
            .await?
            .is_some_and(|caller| caller.is_external());
        let url = if caller_is_outside {
            workspace.url.clone()
        } else {
            seen_from_containers(&workspace.url)
        };
        let policy = state.fleet.config.url_policy();
        return match url_safety::check(&policy, &url, Own::Nothing).await {
            Ok(_) => Ok(found(url)),
            Err(_) => Err(ApiError::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "workspace URL failed safety check",
            )),
        };
    }
    if !workspace.status.is_up() {
        return Err(
            ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "workspace not available")
                .member("status", workspace.status.as_str()),
        );
    }
    if let Some(url) = state.fleet.presence.internal_url(target).await {
        return Ok(found(url));
    }
    let url = target.internal_url();
    state.fleet.presence.cache_internal_url(target, &url).await;
    Ok(found(url))
}

/// Inside a container, the host's own name is another one.
fn seen_from_containers(url: &str) -> String {
    let Ok(mut parsed) = url::Url::parse(url) else {
        return url.to_owned();
    };
    let local = matches!(parsed.host_str(), Some("127.0.0.1" | "localhost"));
    if local && parsed.set_host(Some("host.docker.internal")).is_ok() {
        return parsed.to_string();
    }
    url.to_owned()
}

/// Siblings, children, parent, in this order. Roots are siblings of each other.
fn peers_of<'a>(own: &Workspace, all: &'a [Workspace]) -> Vec<&'a Workspace> {
    let siblings = all
        .iter()
        .filter(|other| other.id != own.id && other.parent_id == own.parent_id);
    let children = all.iter().filter(|other| other.parent_id == Some(own.id));
    let parent = all.iter().filter(|other| own.parent_id == Some(other.id));
    siblings.chain(children).chain(parent).collect()
}

fn mentions(workspace: &Workspace, wanted: &str) -> bool {
    workspace.name.to_lowercase().contains(wanted)
        || workspace
            .role
            .as_ref()
            .is_some_and(|role| role.to_lowercase().contains(wanted))
}
