//! What agents call: to say that they are there, and to find each other (`spec: rest-api` §6.4).

use std::collections::BTreeMap;

use longshore_base::WorkspaceId;
use longshore_fleet::registry::{
    self, GateError, Heartbeat, Presented, RegisterError, Registration, RuntimeMetadata,
};
use longshore_fleet::url_safety::{self, Own};
use longshore_fleet::workspace::{Workspace, find_workspace, list_workspaces};
use poem::Request;
use poem::http::StatusCode;
use poem_openapi::param::{Path, Query};
use poem_openapi::payload::Json;
use poem_openapi::types::Any;
use poem_openapi::{Object, OpenApi};
use serde::Deserialize;
use serde_json::Value;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::auth::{
    CallerAccess, Granted, Principal, RegistryAccess, WorkspaceAccess, bearer_subject,
    find_bearer_owner, may_talk, named_caller,
};
use crate::body::{JsonBody, JsonRequest};
use crate::context::RequestContext;
use crate::document::Tag;
use crate::problem::{ApiError, ApiResult};
use crate::routes::Class;
use crate::state::{ApiState, Shared};

/// An agent that comes up.
#[derive(Deserialize, Object)]
pub(crate) struct RegisterRequest {
    /// The workspace it is.
    id: String,
    /// Where it is reached. Not needed by an agent that fetches its messages.
    #[serde(default)]
    url: Option<String>,
    /// Who it is: normally `{name, description, version, url, skills, capabilities}`.
    agent_card: Value,
    /// `push` or `poll`; absent leaves what is stored.
    #[serde(default)]
    delivery_mode: Option<String>,
}

impl JsonRequest for RegisterRequest {}

/// That an agent is registered.
#[derive(Object)]
pub(crate) struct RegisterAnswer {
    /// Always `registered`.
    status: String,
    /// Its first token, shown this once; absent when it has one.
    #[oai(skip_serializing_if_is_none)]
    auth_token: Option<String>,
    /// By which the platform authenticates towards the agent.
    #[oai(skip_serializing_if_is_none)]
    platform_inbound_secret: Option<String>,
}

/// An agent that lives. All but the id may be left out.
#[derive(Deserialize, Object)]
pub(crate) struct HeartbeatRequest {
    /// The workspace it is.
    workspace_id: String,
    /// Share of failed calls, 0 to 1.
    #[serde(default)]
    error_rate: Option<f64>,
    #[serde(default)]
    sample_error: Option<String>,
    #[serde(default)]
    active_tasks: Option<i64>,
    #[serde(default)]
    uptime_seconds: Option<i64>,
    #[serde(default)]
    current_task: Option<String>,
    /// Cents; 0 says nothing.
    #[serde(default)]
    monthly_spend: Option<i64>,
    /// `wedged`, or empty.
    #[serde(default)]
    runtime_state: Option<String>,
    #[serde(default)]
    runtime_metadata: Option<RuntimeMetadataBlock>,
}

impl JsonRequest for HeartbeatRequest {}

/// What an agent declares of itself.
#[derive(Deserialize, Object)]
pub(crate) struct RuntimeMetadataBlock {
    /// What it does itself: `heartbeat`, `scheduler`, `session`, `status_mgmt`, `retry`, …
    #[serde(default)]
    capabilities: Option<BTreeMap<String, bool>>,
    /// Its own silence window.
    #[serde(default)]
    idle_timeout_seconds: Option<i64>,
}

/// That a heartbeat was taken.
#[derive(Object)]
pub(crate) struct HeartbeatAnswer {
    /// Always `ok`.
    status: String,
    /// By which the platform authenticates towards the agent.
    #[oai(skip_serializing_if_is_none)]
    platform_inbound_secret: Option<String>,
}

/// A new card.
#[derive(Deserialize, Object)]
pub(crate) struct UpdateCardRequest {
    workspace_id: String,
    agent_card: Value,
}

impl JsonRequest for UpdateCardRequest {}

/// That something was changed.
#[derive(Object)]
pub(crate) struct Updated {
    /// Always `updated`.
    status: String,
}

/// Two workspaces.
#[derive(Deserialize, Object)]
pub(crate) struct CheckAccessRequest {
    caller_id: String,
    target_id: String,
}

impl JsonRequest for CheckAccessRequest {}

/// Whether they may talk.
#[derive(Object)]
pub(crate) struct AccessAnswer {
    allowed: bool,
}

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
    role: Option<String>,
    tier: i32,
    status: String,
    url: String,
    parent_id: Option<Uuid>,
    active_tasks: i32,
    agent_card: Option<Any<Value>>,
}

pub(crate) struct RegistryApi;

#[OpenApi(tag = "Tag::Registry")]
impl RegistryApi {
    /// Registers an agent; its workspace is online.
    #[oai(
        path = "/registry/register",
        method = "post",
        operation_id = "register_agent"
    )]
    async fn register_agent(
        &self,
        access: RegistryAccess,
        state: Shared<'_>,
        body: JsonBody<RegisterRequest>,
        request: &Request,
    ) -> ApiResult<Json<RegisterAnswer>> {
        const FAILED: &str = "registration failed";
        let body = body.0;
        let id = parse_workspace_id(&body.id)?;
        require_card(&body.agent_card)?;
        let registration = Registration {
            id,
            url: body.url,
            agent_card: body.agent_card,
            delivery_mode: body.delivery_mode,
            presented: Presented::bearer(access.bearer.as_deref()),
        };
        let checked = registry::check_registration(&state.pools.work, &state.fleet, registration)
            .await
            .map_err(|error| refuse(error, FAILED))?;
        count_credential(&state, request, id, access.bearer.as_deref())?;
        let mut tx = state.transaction(FAILED).await?;
        let registered = registry::register(&mut tx, &state.fleet, checked)
            .await
            .map_err(|error| refuse(error, FAILED))?;
        tx.commit()
            .await
            .map_err(|error| ApiError::database(error, FAILED))?;
        registered.after_commit(&state.fleet).await;
        tracing::info!(
            workspace.id = %id,
            workspace.from = %registered.from,
            "agent registered"
        );
        Ok(Json(RegisterAnswer {
            status: "registered".to_owned(),
            auth_token: registered.auth_token.map(|token| token.expose().clone()),
            platform_inbound_secret: registered
                .inbound_secret
                .map(|secret| secret.expose().clone()),
        }))
    }

    /// Says that an agent lives and how it does.
    #[oai(
        path = "/registry/heartbeat",
        method = "post",
        operation_id = "send_heartbeat"
    )]
    async fn send_heartbeat(
        &self,
        access: RegistryAccess,
        state: Shared<'_>,
        body: JsonBody<HeartbeatRequest>,
        request: &Request,
    ) -> ApiResult<Json<HeartbeatAnswer>> {
        const FAILED: &str = "failed to update";
        let id = parse_workspace_id(&body.0.workspace_id)?;
        let mut tx = state
            .pools
            .work
            .begin()
            .await
            .map_err(ApiError::datastore)?;
        let presented = Presented::bearer(access.bearer.as_deref());
        let beaten = registry::heartbeat(
            &mut tx,
            &state.fleet,
            id,
            &presented,
            body.0.into_heartbeat(),
        )
        .await
        .map_err(|error| refuse_gate(error, FAILED))?;
        count_credential(&state, request, id, access.bearer.as_deref())?;
        tx.commit()
            .await
            .map_err(|error| ApiError::database(error, FAILED))?;
        beaten.after_commit(&state.fleet).await;
        Ok(Json(HeartbeatAnswer {
            status: "ok".to_owned(),
            platform_inbound_secret: beaten.inbound_secret.map(|secret| secret.expose().clone()),
        }))
    }

    /// Replaces the card of an agent: by itself, or by an operator.
    #[oai(
        path = "/registry/update-card",
        method = "post",
        operation_id = "update_agent_card"
    )]
    async fn update_agent_card(
        &self,
        access: RegistryAccess,
        state: Shared<'_>,
        body: JsonBody<UpdateCardRequest>,
        request: &Request,
    ) -> ApiResult<Json<Updated>> {
        const FAILED: &str = "failed to update card";
        let id = parse_workspace_id(&body.0.workspace_id)?;
        require_card(&body.0.agent_card)?;
        let mut tx = state
            .pools
            .work
            .begin()
            .await
            .map_err(ApiError::datastore)?;
        let presented = judge_editor(&state, &mut tx, access.bearer.as_deref()).await?;
        registry::update_card(&mut tx, &state.fleet, id, &presented, body.0.agent_card)
            .await
            .map_err(|error| refuse(error, FAILED))?;
        count_credential(&state, request, id, access.bearer.as_deref())?;
        tx.commit()
            .await
            .map_err(|error| ApiError::database(error, FAILED))?;
        state.bus.poke();
        Ok(Json(Updated {
            status: "updated".to_owned(),
        }))
    }

    /// Tells where another workspace is reached.
    #[oai(
        path = "/registry/discover/:id",
        method = "get",
        operation_id = "discover_workspace"
    )]
    async fn discover_workspace(
        &self,
        _access: CallerAccess,
        state: Shared<'_>,
        id: Path<Uuid>,
        request: &Request,
    ) -> ApiResult<Json<DiscoveredWorkspace>> {
        let caller = named_caller(request)?
            .ok_or_else(|| ApiError::bad_request("X-Workspace-ID header is required"))?;
        let target = WorkspaceId(id.0);
        let mut conn = state.connection("lookup failed").await?;
        if !may_talk(&mut conn, caller, target).await {
            return Err(ApiError::forbidden(
                "not authorized to discover this workspace",
            ));
        }
        discover(&state, &mut conn, caller, target).await.map(Json)
    }

    /// Lists siblings, children and the parent of a workspace.
    #[oai(
        path = "/registry/:id/peers",
        method = "get",
        operation_id = "list_peers"
    )]
    async fn list_peers(
        &self,
        _access: WorkspaceAccess,
        state: Shared<'_>,
        id: Path<Uuid>,
        /// Part of a name or role, in any case.
        q: Query<Option<String>>,
    ) -> ApiResult<Json<Vec<Peer>>> {
        const FAILED: &str = "lookup failed";
        let id = WorkspaceId(id.0);
        let mut conn = state.connection(FAILED).await?;
        let all = list_workspaces(&mut conn)
            .await
            .map_err(|error| ApiError::fleet(error, FAILED))?;
        let own = all
            .iter()
            .find(|workspace| workspace.id == id)
            .ok_or_else(ApiError::workspace_not_found)?;
        let wanted = q.0.unwrap_or_default().trim().to_lowercase();
        Ok(Json(
            peers_of(own, &all)
                .into_iter()
                .filter(|peer| mentions(peer, &wanted))
                .map(Peer::from)
                .collect(),
        ))
    }

    /// Tells whether one workspace may talk to another.
    #[oai(
        path = "/registry/check-access",
        method = "post",
        operation_id = "check_access"
    )]
    async fn check_access(
        &self,
        state: Shared<'_>,
        body: JsonBody<CheckAccessRequest>,
    ) -> ApiResult<Json<AccessAnswer>> {
        let CheckAccessRequest {
            caller_id,
            target_id,
        } = body.0;
        if caller_id.is_empty() || target_id.is_empty() {
            return Err(ApiError::bad_request("invalid request body"));
        }
        let allowed = match (caller_id.parse(), target_id.parse()) {
            (Ok(caller), Ok(target)) => {
                let mut conn = state.connection("lookup failed").await?;
                // Everybody may talk to itself, but not somebody who does not exist.
                let known = find_workspace(&mut conn, caller)
                    .await
                    .map_err(|error| ApiError::fleet(error, "lookup failed"))?
                    .is_some();
                known && may_talk(&mut conn, caller, target).await
            }
            _ => false,
        };
        Ok(Json(AccessAnswer { allowed }))
    }
}

impl HeartbeatRequest {
    fn into_heartbeat(self) -> Heartbeat {
        Heartbeat {
            error_rate: self.error_rate.unwrap_or_default(),
            sample_error: self.sample_error.unwrap_or_default(),
            active_tasks: self.active_tasks.unwrap_or_default(),
            uptime_seconds: self.uptime_seconds.unwrap_or_default(),
            current_task: self.current_task.unwrap_or_default(),
            monthly_spend: self.monthly_spend.unwrap_or_default(),
            runtime_state: self.runtime_state.unwrap_or_default(),
            metadata: self.runtime_metadata.map(|block| RuntimeMetadata {
                capabilities: block.capabilities.unwrap_or_default(),
                idle_timeout_seconds: block.idle_timeout_seconds,
            }),
        }
    }
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

fn parse_workspace_id(text: &str) -> ApiResult<WorkspaceId> {
    text.parse().map_err(|_| {
        ApiError::bad_request("invalid request body").detail("the workspace's id must be a UUID")
    })
}

fn require_card(card: &Value) -> ApiResult<()> {
    if card.is_null() {
        return Err(ApiError::bad_request("invalid request body").detail("agent_card is required"));
    }
    Ok(())
}

/// The agent's own token is judged by the fleet; an operator's is judged here.
async fn judge_editor(
    state: &ApiState,
    conn: &mut PgConnection,
    bearer: Option<&str>,
) -> ApiResult<Presented> {
    let Some(token) = bearer else {
        return Ok(Presented::Nothing);
    };
    let owner = find_bearer_owner(&state.config, conn, token).await?;
    Ok(if owner.is_some_and(|owner| owner.is_operator()) {
        Presented::Operator
    } else {
        Presented::bearer(Some(token))
    })
}

/// Notes that the credential proved good. A registration without one stays counted as it came.
fn count_credential(
    state: &ApiState,
    request: &Request,
    id: WorkspaceId,
    bearer: Option<&str>,
) -> ApiResult<()> {
    let granted = Granted {
        principal: Principal::Workspace(id),
        class: Class::Registry,
        subject: bearer.map(bearer_subject),
    };
    RequestContext::of(request)?.grant(&state.limiter, granted)
}

fn refuse(error: RegisterError, failed: &'static str) -> ApiError {
    match error {
        RegisterError::Gate(error) => refuse_gate(error, failed),
        RegisterError::Stopped { .. } => ApiError::conflict(error.to_string()),
        RegisterError::InvalidDeliveryMode | RegisterError::InvalidCard | RegisterError::Url(_) => {
            ApiError::bad_request(error.to_string())
        }
    }
}

fn refuse_gate(error: GateError, failed: &'static str) -> ApiError {
    match error {
        GateError::NotFound => ApiError::workspace_not_found(),
        GateError::Removed => ApiError::workspace_removed(),
        GateError::MissingToken | GateError::InvalidToken => {
            ApiError::unauthorized(error.to_string())
        }
        GateError::Fleet(error) => ApiError::fleet(error, failed),
    }
}

async fn discover(
    state: &ApiState,
    conn: &mut PgConnection,
    caller: WorkspaceId,
    target: WorkspaceId,
) -> ApiResult<DiscoveredWorkspace> {
    const FAILED: &str = "lookup failed";
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
