//! Messages to agents (`spec: rest-api` §6.5): who may send one, where it goes, and what comes back.
//!
//! The order of the checks is the specification's. Once a message is on its way it is carried on by a task of its own:
//! a sender that goes away does not end it, and what it leads to is recorded all the same.

mod envelope;
mod forward;
mod record;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use longshore_base::WorkspaceId;
use longshore_base::clock::Stopwatch;
use longshore_fleet::activity::count_inbox;
use longshore_fleet::liveness::mark_offline;
use longshore_fleet::status::WorkspaceStatus;
use longshore_fleet::url_safety;
use longshore_fleet::workspace::{DeliveryMode, Workspace, find_workspace};
use longshore_jobs::restart::{self, Source, request_automatic};
use longshore_ledger::inspect::is_live;
use poem::http::StatusCode;
use poem::{IntoResponse, Request, RequestBody, Response};
use poem_openapi::param::{Header, Path};
use poem_openapi::registry::{
    MetaMediaType, MetaRequest, MetaResponse, MetaResponses, MetaSchema, MetaSchemaRef, Registry,
};
use poem_openapi::types::{ToJSON as _, Type as _};
use poem_openapi::{
    ApiExtractor, ApiExtractorType, ApiResponse, ExtractParamOptions, Object, OpenApi,
};
use sqlx::PgConnection;
use tracing::Instrument as _;
use uuid::Uuid;

use self::envelope::Envelope;
use self::forward::{Exchange, Patience, forward};
use self::record::Record;
use crate::auth::{MessageAccess, Principal};
use crate::body::{MESSAGE_LIMIT, read};
use crate::document::Tag;
use crate::problem::{ApiError, ApiResult};
use crate::state::{ApiState, Shared};
use crate::workspaces::wake;

/// A message as it arrived.
pub(crate) struct MessageBody(Bytes);

impl<'a> ApiExtractor<'a> for MessageBody {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::RequestObject];
    const PARAM_IS_REQUIRED: bool = true;
    type ParamType = ();
    type ParamRawType = ();

    fn request_meta() -> Option<MetaRequest> {
        Some(MetaRequest {
            description: Some("A JSON-RPC request, or its `method` and `params` alone."),
            content: vec![MetaMediaType {
                content_type: "application/json",
                schema: MetaSchemaRef::Inline(Box::new(MetaSchema::new("object"))),
            }],
            required: true,
        })
    }

    async fn from_request(
        request: &'a Request,
        body: &mut RequestBody,
        _options: ExtractParamOptions<()>,
    ) -> poem::Result<Self> {
        Ok(Self(read(request, body.take()?, MESSAGE_LIMIT).await?))
    }
}

/// That a message waits for its agent to fetch it.
#[derive(Object)]
pub(crate) struct QueuedMessage {
    /// Always true.
    queued: bool,
    queue_id: Uuid,
    /// Messages that wait, this one included.
    queue_depth: i64,
    message: String,
    /// How the agent gets it: `poll`.
    delivery_mode: String,
}

/// What a sender gets.
pub(crate) enum MessageResponse {
    /// The agent's answer, byte for byte.
    Answer { status: StatusCode, body: Bytes },
    /// The agent fetches its messages.
    Queued(QueuedMessage),
}

impl IntoResponse for MessageResponse {
    fn into_response(self) -> Response {
        let answer = |status, body: poem::Body| {
            Response::builder()
                .status(status)
                .content_type("application/json")
                .body(body)
        };
        match self {
            Self::Answer { status, body } => answer(status, body.into()),
            Self::Queued(queued) => answer(StatusCode::ACCEPTED, queued.to_json_string().into()),
        }
    }
}

impl ApiResponse for MessageResponse {
    fn meta() -> MetaResponses {
        let response = |status, description, schema| MetaResponse {
            description,
            status: Some(status),
            status_range: None,
            content: vec![MetaMediaType {
                content_type: "application/json",
                schema,
            }],
            headers: vec![],
        };
        MetaResponses {
            responses: vec![
                response(
                    200,
                    "The agent's answer as it gave it, under its own status.",
                    MetaSchemaRef::Inline(Box::new(MetaSchema::ANY)),
                ),
                response(
                    202,
                    "The agent fetches its messages; this one waits.",
                    QueuedMessage::schema_ref(),
                ),
            ],
        }
    }

    fn register(registry: &mut Registry) {
        QueuedMessage::register(registry);
    }
}

pub(crate) struct A2aApi;

#[OpenApi(tag = "Tag::Messages")]
impl A2aApi {
    /// Sends a message to an agent and passes its answer back.
    #[oai(
        path = "/workspaces/:id/a2a",
        method = "post",
        operation_id = "send_message"
    )]
    async fn send_message(
        &self,
        access: MessageAccess,
        state: Shared<'_>,
        id: Path<Uuid>,
        /// The workspace that sends; it must be the bearer's.
        #[oai(name = "X-Workspace-ID")]
        _caller: Header<Option<String>>,
        /// Seconds after which the answer is no longer waited for; 0 for no limit.
        #[oai(name = "X-Timeout")]
        timeout: Header<Option<String>>,
        body: MessageBody,
    ) -> ApiResult<MessageResponse> {
        let sender = match access.0 {
            Principal::Workspace(id) => Some(id),
            Principal::Admin | Principal::Org { .. } | Principal::Canvas | Principal::Developer => {
                None
            }
        };
        let target = load_target(&state, WorkspaceId(id.0)).await?;
        if fetches_messages(&target) {
            let envelope = Envelope::normalise(&body.0)?;
            return enqueue(&state, &target, sender, &envelope).await;
        }
        let Some(url) = target.dispatch_url(&state.fleet.config) else {
            return Err(without_url(&state, &target, &access.0).await?);
        };
        let policy = state.fleet.config.url_policy();
        let url = url_safety::check(&policy, &url, target.url_owner())
            .await
            .map_err(|error| {
                ApiError::new(
                    StatusCode::BAD_GATEWAY,
                    "workspace URL is not publicly routable",
                )
                .because(error)
            })?;
        let errand = Errand {
            envelope: Envelope::normalise(&body.0)?,
            patience: patience(&state, &target, sender, timeout.0.as_deref()),
            target,
            sender,
        };
        // The sender may go away; the message and what follows from it may not.
        let carried = state
            .tasks
            .spawn(carry(Arc::clone(&state), errand, url).in_current_span());
        carried
            .await
            .map_err(|error| ApiError::internal("internal error", error))?
    }
}

/// A message under way.
struct Errand {
    target: Workspace,
    sender: Option<WorkspaceId>,
    envelope: Envelope,
    patience: Patience,
}

/// The workspace a message goes to, if it may have one now.
async fn load_target(state: &ApiState, id: WorkspaceId) -> ApiResult<Workspace> {
    const FAILED: &str = "lookup failed";
    let mut conn = state.connection(FAILED).await?;
    let target = find_workspace(&mut conn, id)
        .await
        .map_err(|error| ApiError::fleet(error, FAILED))?
        .ok_or_else(ApiError::workspace_not_found)?;
    if target.status == WorkspaceStatus::Removed {
        return Err(ApiError::workspace_removed());
    }
    let spent = target
        .budget_limit
        .is_some_and(|limit| target.monthly_spend >= limit);
    if spent {
        return Err(ApiError::new(
            StatusCode::PAYMENT_REQUIRED,
            "workspace budget limit exceeded",
        ));
    }
    Ok(target)
}

/// Nothing is ever sent to such an agent: it asks.
fn fetches_messages(target: &Workspace) -> bool {
    match target.delivery_mode {
        Some(DeliveryMode::Poll) => true,
        Some(DeliveryMode::Push) => false,
        None => target.url.is_empty(),
    }
}

/// What the sender hears of a workspace that cannot be called; one that hibernates is woken.
async fn without_url(
    state: &ApiState,
    target: &Workspace,
    sender: &Principal,
) -> ApiResult<ApiError> {
    if target.status == WorkspaceStatus::Hibernated
        && let Some(waking) = wake(state, target, sender).await?
    {
        return Ok(waking);
    }
    Ok(no_url(target))
}

fn no_url(target: &Workspace) -> ApiError {
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "workspace has no URL")
        .member("status", target.status.as_str())
}

/// Longest that an agent waits for another, unless it says otherwise.
const AGENT_CEILING: Duration = Duration::from_secs(30 * 60);

fn patience(
    state: &ApiState,
    target: &Workspace,
    sender: Option<WorkspaceId>,
    asked: Option<&str>,
) -> Patience {
    let asked = asked.and_then(|text| text.trim().parse::<u32>().ok());
    Patience {
        idle: state
            .fleet
            .capabilities
            .idle_timeout(target.id)
            .unwrap_or(state.config.a2a_idle_timeout),
        ceiling: match asked {
            Some(0) => None,
            Some(seconds) => Some(Duration::from_secs(u64::from(seconds))),
            None => sender.map(|_| AGENT_CEILING),
        },
    }
}

async fn enqueue(
    state: &Arc<ApiState>,
    target: &Workspace,
    sender: Option<WorkspaceId>,
    envelope: &Envelope,
) -> ApiResult<MessageResponse> {
    const FAILED: &str = "failed to queue message";
    let record = Record::queued(target, sender, envelope);
    let mut tx = state.transaction(FAILED).await?;
    let written = record
        .write(&mut tx)
        .await
        .map_err(|error| ApiError::fleet(error, FAILED))?;
    let queue_depth = count_inbox(&mut tx, target.id)
        .await
        .map_err(|error| ApiError::fleet(error, FAILED))?;
    tx.commit()
        .await
        .map_err(|error| ApiError::database(error, FAILED))?;
    record.announce(state, written);
    Ok(MessageResponse::Queued(QueuedMessage {
        queued: true,
        queue_id: written.id,
        queue_depth,
        message: "message stored; the agent fetches its messages".to_owned(),
        delivery_mode: DeliveryMode::Poll.as_str().to_owned(),
    }))
}

/// Takes the message to the agent, records what came of it, and says what the sender gets.
async fn carry(
    state: Arc<ApiState>,
    errand: Errand,
    url: url_safety::CheckedUrl,
) -> ApiResult<MessageResponse> {
    let took = Stopwatch::start();
    let exchange = forward(
        &state,
        errand.target.id,
        &url,
        errand.envelope.body.clone(),
        errand.patience,
    )
    .await;
    let body = match &exchange {
        Exchange::Answered { body, .. } => Some(body.clone()),
        _ => None,
    };
    let answer = judge(&state, &errand.target, exchange).await;
    let record = Record::carried(
        &errand.target,
        errand.sender,
        &errand.envelope,
        body.as_deref(),
        &answer,
        took.elapsed(),
    );
    // After the answer: a slow log must not keep the sender waiting.
    let logging = Arc::clone(&state);
    state
        .tasks
        .spawn(async move { record.follow_up(&logging, errand.sender).await });
    answer
}

/// What the sender gets for what happened on the way.
async fn judge(
    state: &ApiState,
    target: &Workspace,
    exchange: Exchange,
) -> ApiResult<MessageResponse> {
    match exchange {
        Exchange::Answered { status, body } if status.as_u16() < 300 => {
            Ok(MessageResponse::Answer { status, body })
        }
        Exchange::Answered { status, body } => Err(ApiError::new(
            status,
            envelope::error_text(&body)
                .unwrap_or_else(|| status.canonical_reason().unwrap_or("error").to_owned()),
        )),
        Exchange::Interrupted { status, error } => Err(ApiError::new(
            StatusCode::BAD_GATEWAY,
            "failed to read agent response",
        )
        .member("delivery_confirmed", status.as_u16() < 400)
        .because(error)),
        Exchange::NotBuilt(error) => {
            Err(ApiError::internal("failed to create proxy request", error))
        }
        Exchange::Broken(error) => Err(give_up(state, target)
            .await
            .unwrap_or_else(|| busy(state, target))
            .because(error)),
        Exchange::Unreachable(error) => Err(give_up(state, target)
            .await
            .unwrap_or_else(|| {
                ApiError::new(StatusCode::BAD_GATEWAY, "failed to reach workspace agent")
            })
            .because(error)),
    }
}

/// How long the backend may take to say whether a container runs.
const LOOK_BUDGET: Duration = Duration::from_secs(5);

/// If the backend is sure that the container is gone, the workspace is offline. On doubt it lives.
async fn give_up(state: &ApiState, target: &Workspace) -> Option<ApiError> {
    if target.is_external() {
        return None;
    }
    let backend = state.backends.choose().ok()?;
    let looked = tokio::time::timeout(
        LOOK_BUDGET,
        backend.is_running(target.id, target.instance_id.as_deref()),
    )
    .await;
    if !matches!(looked, Ok(Ok(false))) {
        return None;
    }
    let restarting = mark_lost(state, target).await.unwrap_or_else(|error| {
        tracing::error!(
            workspace.id = %target.id,
            error = %error,
            causes = error.causes(),
            "a dead workspace could not be marked offline"
        );
        false
    });
    let text = if restarting {
        "workspace agent unreachable — container restart triggered"
    } else {
        "workspace agent unreachable"
    };
    Some(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, text).member("restarting", restarting))
}

/// Marks a workspace offline and has it restarted: both or neither. Whether it is being restarted, also on behalf of
/// another message.
async fn mark_lost(state: &ApiState, target: &Workspace) -> ApiResult<bool> {
    const FAILED: &str = "failed to mark workspace offline";
    let id = target.id;
    let mut tx = state.transaction(FAILED).await?;
    let changed = mark_offline(&mut tx, id, target.provision_generation)
        .await
        .map_err(|error| ApiError::fleet(error, FAILED))?;
    if !changed {
        return is_restarting(&mut tx, id).await;
    }
    let restart = request_automatic(&mut tx, &state.fleet, id, Source::Reactive)
        .await
        .map_err(|error| ApiError::internal(FAILED, error))?;
    tx.commit()
        .await
        .map_err(|error| ApiError::database(error, FAILED))?;
    state.fleet.presence.clear(id).await;
    state.bus.poke();
    if let Some(queue) = restart.queue() {
        state.admitter.poke(queue);
    }
    Ok(restart.queue().is_some())
}

/// Whether a restart of the workspace waits or runs.
async fn is_restarting(tx: &mut PgConnection, id: WorkspaceId) -> ApiResult<bool> {
    is_live(tx, restart::KIND, id)
        .await
        .map_err(|error| ApiError::ledger(error, "lookup failed"))
}

const BUSY_RETRY: u64 = 30;

fn busy(state: &ApiState, target: &Workspace) -> ApiError {
    // The capability by which an agent says that it keeps and retries sessions itself.
    let native = state.fleet.capabilities.has(target.id, "session");
    let error = if native {
        ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "workspace agent busy — adapter handles retry (native_session)",
        )
        .member("native_session", true)
    } else {
        ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "workspace agent busy — retry after a short backoff",
        )
    };
    error.member("busy", true).retry_after(BUSY_RETRY)
}
