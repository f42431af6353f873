//! Creating: the rows and the job that brings them up, in one transaction.

use std::collections::BTreeMap;

use longshore_base::Secret;
use longshore_fleet::connection::{Connection, issue_connection};
use longshore_fleet::memories::MemorySeed;
use longshore_fleet::status::WorkspaceStatus;
use longshore_fleet::workspace::{
    CreateError, NewWorkspace, Origin, Position, Workspace, create_workspace, organisation_root,
};
use longshore_jobs::provision;
use longshore_ledger::Enqueued;
use poem::Request;
use poem_openapi::payload::Json;
use poem_openapi::{ApiResponse, Object};
use serde::Deserialize;
use uuid::Uuid;

use crate::auth::Principal;
use crate::body::JsonRequest;
use crate::client::public_base_url;
use crate::idempotency::{IdempotencyKey, Idempotent};
use crate::problem::{ApiError, ApiResult};
use crate::queues::require_accepted;
use crate::state::ApiState;

const FAILED: &str = "failed to create workspace";

/// A workspace to be.
#[derive(Deserialize, Object)]
pub(crate) struct CreateWorkspaceRequest {
    /// At most 255 characters.
    name: String,
    /// What the agent is there for; at most 1000 characters.
    #[serde(default)]
    #[oai(nullable)]
    role: Option<String>,
    /// A directory below the template root.
    #[serde(default)]
    template: Option<String>,
    /// 1 to 4; 2 unless it says otherwise. 3 and 4 give the agent the host.
    #[serde(default)]
    tier: Option<i64>,
    /// Model slug; the template's unless it says otherwise.
    #[serde(default)]
    model: Option<String>,
    /// The template's, else `claude-code`.
    #[serde(default)]
    runtime: Option<String>,
    /// The same as the runtime `external`.
    #[serde(default)]
    external: Option<bool>,
    /// Where an external agent is reached.
    #[serde(default)]
    url: Option<String>,
    /// `push` or `poll`; for external agents.
    #[serde(default)]
    delivery_mode: Option<String>,
    /// A directory of the host for the agent's work.
    #[serde(default)]
    workspace_dir: Option<String>,
    /// `none`, `read_only` or `read_write`.
    #[serde(default)]
    workspace_access: Option<String>,
    #[serde(default)]
    #[oai(nullable)]
    parent_id: Option<String>,
    /// Cents a month.
    #[serde(default)]
    #[oai(nullable)]
    budget_limit: Option<f64>,
    /// Environment variables, stored sealed.
    #[serde(default)]
    secrets: Option<BTreeMap<String, String>>,
    #[serde(default)]
    max_concurrent_tasks: Option<i64>,
    #[serde(default)]
    canvas: Option<CanvasPosition>,
    #[serde(default)]
    initial_memories: Option<Vec<InitialMemory>>,
}

impl JsonRequest for CreateWorkspaceRequest {
    const INVALID: &'static str = "invalid workspace payload";
}

/// A place on the canvas.
#[derive(Deserialize, Object)]
pub(crate) struct CanvasPosition {
    #[serde(default)]
    #[oai(default)]
    x: f64,
    #[serde(default)]
    #[oai(default)]
    y: f64,
}

/// A memory to start with.
#[derive(Deserialize, Object)]
pub(crate) struct InitialMemory {
    #[serde(default)]
    content: Option<String>,
    /// `LOCAL`, `TEAM` or `GLOBAL`.
    #[serde(default)]
    scope: Option<String>,
}

/// A workspace that was created.
#[derive(Object)]
#[oai(skip_serializing_if_is_none)]
pub(crate) struct CreatedWorkspace {
    id: Uuid,
    /// `provisioning`; for an external one `online` or `awaiting_agent`.
    status: String,
    /// Of a managed workspace.
    awareness_namespace: Option<String>,
    /// Of a managed workspace.
    workspace_access: Option<String>,
    /// The job that brings up a managed workspace.
    job_id: Option<Uuid>,
    /// Only of an external workspace.
    external: Option<bool>,
    /// How to connect the agent of an external workspace without URL. Holds its token, shown this once.
    connection: Option<ConnectionDetails>,
}

/// How to connect an external agent.
#[derive(Object)]
pub(crate) struct ConnectionDetails {
    workspace_id: Uuid,
    platform_url: String,
    /// The agent's token; empty if none could be issued.
    auth_token: String,
    registry_endpoint: String,
    heartbeat_endpoint: String,
    universal_mcp_snippet: String,
    python_snippet: String,
    claude_code_channel_snippet: String,
    hermes_channel_snippet: String,
    codex_snippet: String,
    openclaw_snippet: String,
    curl_register_template: String,
}

impl From<Connection> for ConnectionDetails {
    fn from(connection: Connection) -> Self {
        Self {
            workspace_id: connection.workspace_id.0,
            platform_url: connection.platform_url,
            auth_token: connection.auth_token.expose().clone(),
            registry_endpoint: connection.registry_endpoint,
            heartbeat_endpoint: connection.heartbeat_endpoint,
            universal_mcp_snippet: connection.universal_mcp_snippet,
            python_snippet: connection.python_snippet,
            claude_code_channel_snippet: connection.claude_code_channel_snippet,
            hermes_channel_snippet: connection.hermes_channel_snippet,
            codex_snippet: connection.codex_snippet,
            openclaw_snippet: connection.openclaw_snippet,
            curl_register_template: connection.curl_register_template,
        }
    }
}

#[derive(ApiResponse)]
pub(crate) enum CreateWorkspaceResponse {
    /// It exists; a managed one is being brought up.
    #[oai(status = 201)]
    Created(
        Json<CreatedWorkspace>,
        /// The job that brings it up.
        #[oai(header = "Location")]
        Option<String>,
    ),
}

/// One transaction: rows, event, and the job or the token.
pub(crate) async fn create(
    state: &ApiState,
    caller: &Principal,
    key: IdempotencyKey,
    body: CreateWorkspaceRequest,
    request: &Request,
) -> ApiResult<Idempotent<CreateWorkspaceResponse>> {
    let new = body.into_new()?;
    let base = public_base_url(request, &state.config.trusted_proxies);
    let (answer, created) = key
        .once(state, FAILED, async |tx| {
            let workspace = create_workspace(tx, &state.fleet, new)
                .await
                .map_err(refuse)?;
            if workspace.is_external() {
                let connection = if workspace.status == WorkspaceStatus::AwaitingAgent {
                    Some(issue_connection(tx, &state.fleet, workspace.id, &base).await)
                } else {
                    None
                };
                let answer = external(&workspace, connection);
                return Ok((answer, (workspace, None)));
            }
            let cause = provision::Cause::Create;
            let enqueued = provision::request(tx, &workspace, cause, &caller.name())
                .await
                .map_err(|error| ApiError::internal(FAILED, error))?;
            let tenant = organisation_root(tx, workspace.id)
                .await
                .map_err(|error| ApiError::fleet(error, FAILED))?
                .to_string();
            require_accepted(tx, &enqueued.queue, &tenant, Some(workspace.id), FAILED).await?;
            let answer = managed(&workspace, &enqueued);
            Ok((answer, (workspace, Some(enqueued.queue))))
        })
        .await?;
    if let Some((workspace, queue)) = created {
        if let Some(queue) = queue {
            state.admitter.poke(&queue);
        }
        state.bus.poke();
        if workspace.is_external() && !workspace.url.is_empty() {
            let presence = &state.fleet.presence;
            presence.cache_url(workspace.id, &workspace.url).await;
        }
    }
    Ok(answer)
}

fn managed(workspace: &Workspace, enqueued: &Enqueued) -> CreateWorkspaceResponse {
    CreateWorkspaceResponse::Created(
        Json(CreatedWorkspace {
            id: workspace.id.0,
            status: workspace.status.to_string(),
            awareness_namespace: Some(workspace.awareness_namespace()),
            workspace_access: Some(workspace.workspace_access.as_str().to_owned()),
            job_id: Some(enqueued.job_id.0),
            external: None,
            connection: None,
        }),
        Some(format!("/jobs/{}", enqueued.job_id)),
    )
}

fn external(workspace: &Workspace, connection: Option<Connection>) -> CreateWorkspaceResponse {
    CreateWorkspaceResponse::Created(
        Json(CreatedWorkspace {
            id: workspace.id.0,
            status: workspace.status.to_string(),
            awareness_namespace: None,
            workspace_access: None,
            job_id: None,
            external: Some(true),
            connection: connection.map(ConnectionDetails::from),
        }),
        None,
    )
}

impl CreateWorkspaceRequest {
    fn into_new(self) -> ApiResult<NewWorkspace> {
        Ok(NewWorkspace {
            name: self.name,
            role: self.role,
            template: self.template,
            tier: self.tier,
            model: self.model,
            runtime: self.runtime,
            external: self.external.unwrap_or_default(),
            url: self.url,
            delivery_mode: self.delivery_mode,
            workspace_dir: self.workspace_dir,
            workspace_access: self.workspace_access,
            parent_id: self.parent_id,
            budget_limit: self.budget_limit.map(whole_cents).transpose()?,
            secrets: self
                .secrets
                .unwrap_or_default()
                .into_iter()
                .map(|(name, value)| (name, Secret::new(value)))
                .collect(),
            max_concurrent_tasks: self.max_concurrent_tasks.unwrap_or_default(),
            canvas: self.canvas.map(|place| Position {
                x: place.x,
                y: place.y,
            }),
            initial_memories: self
                .initial_memories
                .unwrap_or_default()
                .into_iter()
                .map(|seed| MemorySeed {
                    content: seed.content.unwrap_or_default(),
                    scope: seed.scope.unwrap_or_default(),
                })
                .collect(),
            origin: Origin::Request,
        })
    }
}

/// The canvas may send fractions. Above this a double no longer holds every whole number.
fn whole_cents(limit: f64) -> ApiResult<i64> {
    const MOST: f64 = 9_007_199_254_740_991.0;
    let rounded = limit.round();
    if !(0.0..=MOST).contains(&rounded) {
        return Err(ApiError::bad_request("invalid workspace fields")
            .detail("budget_limit must be from 0 to 9007199254740991"));
    }
    #[expect(
        clippy::cast_possible_truncation,
        reason = "whole and within the range of both types"
    )]
    Ok(rounded as i64)
}

fn refuse(error: CreateError) -> ApiError {
    let text = error.to_string();
    match error {
        CreateError::InvalidFields { detail } => ApiError::bad_request(text).detail(detail),
        CreateError::MissingName => ApiError::bad_request(text).detail("name is required"),
        CreateError::InvalidTemplate
        | CreateError::InvalidDirectory
        | CreateError::InvalidAccess
        | CreateError::UnknownParent
        | CreateError::InvalidDeliveryMode
        | CreateError::Url(_) => ApiError::bad_request(text),
        CreateError::TierNotAllowed { .. } => ApiError::forbidden(text),
        CreateError::SaveSecret { source, .. } => ApiError::internal(text, source),
        CreateError::Fleet(error) => ApiError::fleet(error, FAILED),
    }
}
