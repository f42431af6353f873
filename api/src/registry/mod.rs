//! What agents call: to say that they are there, and to find each other (`spec: rest-api` §6.4).

mod bodies;
mod discovery;

use std::time::Duration;

use longshore_base::WorkspaceId;
use longshore_base::clock::Stopwatch;
use longshore_fleet::provisioning::is_start_unrecorded;
use longshore_fleet::registry::{self, GateError, Presented, RegisterError, Registration};
use longshore_fleet::restarting::take_restart_context;
use longshore_fleet::status::{BeatReason, WorkspaceStatus};
use longshore_fleet::workspace::find_workspace;
use longshore_jobs::restart_context;
use poem::Request;
use poem_openapi::OpenApi;
use poem_openapi::param::{Header, Path, Query};
use poem_openapi::payload::Json;
use serde_json::Value;
use sqlx::PgConnection;
use uuid::Uuid;

use self::bodies::{
    AccessAnswer, CheckAccessRequest, HeartbeatAnswer, HeartbeatRequest, RegisterAnswer,
    RegisterRequest, UpdateCardRequest, Updated,
};
use self::discovery::{DiscoveredWorkspace, Peer};
use crate::auth::{
    CallerAccess, Granted, Principal, RegistryAccess, WorkspaceAccess, bearer_subject,
    find_bearer_owner, may_talk, named_caller,
};
use crate::body::JsonBody;
use crate::context::RequestContext;
use crate::document::Tag;
use crate::problem::{ApiError, ApiResult};
use crate::routes::Class;
use crate::state::{ApiState, Shared};

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
        until_recorded(&state, id).await;
        let mut tx = state.transaction(FAILED).await?;
        let registered = registry::register(&mut tx, &state.fleet, checked)
            .await
            .map_err(|error| refuse(error, FAILED))?;
        let told = if registered.from == WorkspaceStatus::Provisioning {
            tell_of_restart(&mut tx, id, FAILED).await?
        } else {
            None
        };
        tx.commit()
            .await
            .map_err(|error| ApiError::database(error, FAILED))?;
        registered.after_commit(&state.fleet).await;
        poke_queue(&state, told.as_deref());
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
        let is_first = beaten
            .transition
            .is_some_and(|change| change.reason == BeatReason::FirstBeat);
        let told = if is_first {
            tell_of_restart(&mut tx, id, FAILED).await?
        } else {
            None
        };
        tx.commit()
            .await
            .map_err(|error| ApiError::database(error, FAILED))?;
        beaten.after_commit(&state.fleet).await;
        poke_queue(&state, told.as_deref());
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
        /// The workspace that asks.
        #[oai(name = "X-Workspace-ID")]
        _caller: Header<Option<String>>,
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
        discovery::discover(&state, &mut conn, caller, target)
            .await
            .map(Json)
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
        let mut conn = state.connection(discovery::FAILED).await?;
        discovery::list_peers(&mut conn, WorkspaceId(id.0), &q.0.unwrap_or_default())
            .await
            .map(Json)
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

/// Has an agent that comes online told of the restart it comes from, if it does; answers the queue to poke.
async fn tell_of_restart(
    tx: &mut PgConnection,
    id: WorkspaceId,
    failed: &'static str,
) -> ApiResult<Option<String>> {
    let context = take_restart_context(tx, id)
        .await
        .map_err(|error| ApiError::fleet(error, failed))?;
    let Some(context) = context else {
        return Ok(None);
    };
    let job = restart_context::request(tx, id, context)
        .await
        .map_err(|error| ApiError::ledger(error, failed))?;
    Ok(Some(job.queue))
}

fn poke_queue(state: &ApiState, queue: Option<&str>) {
    if let Some(queue) = queue {
        state.admitter.poke(queue);
    }
}

/// How long a registration waits for the worker: much longer than it takes to write a row, and much shorter than an agent
/// waits for its answer.
const RECORDED_WITHIN: Duration = Duration::from_secs(2);
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LAST_PAUSE: Duration = Duration::from_millis(250);

/// An agent may be quicker to register than the worker that started it is to write down where it is. Everybody would hear
/// that it is online while messages to it lead nowhere, so its registration waits for that row. It does not wait for
/// ever: the worker may have died in between, and then the agent comes online without.
async fn until_recorded(state: &ApiState, id: WorkspaceId) {
    let waited = Stopwatch::start();
    let mut pause = FIRST_PAUSE;
    while waited.elapsed() < RECORDED_WITHIN {
        let Ok(mut conn) = state.pools.work.acquire().await else {
            return;
        };
        match find_workspace(&mut conn, id).await {
            Ok(Some(workspace)) if is_start_unrecorded(&workspace) => {}
            // Whatever else there is to say, the registration itself finds it.
            Ok(_) | Err(_) => return,
        }
        drop(conn);
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LAST_PAUSE);
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
