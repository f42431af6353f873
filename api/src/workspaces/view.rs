//! A workspace as clients see it: whole in the operators' list, without what is sensitive on its own page.

use longshore_base::Timestamp;
use longshore_fleet::Fleet;
use longshore_fleet::workspace::Workspace;
use longshore_ledger::inspect::Waiting;
use poem_openapi::Object;
use poem_openapi::types::Any;
use serde_json::Value;
use uuid::Uuid;

/// A workspace in the operators' list.
#[derive(Object)]
pub(crate) struct WorkspaceEntry {
    id: Uuid,
    name: String,
    #[oai(nullable)]
    role: Option<String>,
    tier: i32,
    /// `provisioning`, `awaiting_agent`, `online`, `degraded`, `offline`, `failed`, `paused`, `hibernating`, `hibernated`.
    status: String,
    agent_card: Option<Any<Value>>,
    url: String,
    #[oai(nullable)]
    parent_id: Option<Uuid>,
    active_tasks: i32,
    max_concurrent_tasks: i32,
    last_error_rate: f64,
    /// The last failure the agent told of, or why it could not be brought up.
    last_sample_error: String,
    uptime_seconds: i32,
    current_task: String,
    runtime: String,
    #[oai(nullable)]
    workspace_dir: Option<String>,
    /// Cents.
    monthly_spend: i64,
    /// Cents a month.
    #[oai(nullable)]
    budget_limit: Option<i64>,
    /// Place on the canvas; absolute, also below a parent.
    x: f64,
    y: f64,
    collapsed: bool,
    /// `push`, `poll`, or null for an external agent that never said.
    #[oai(nullable)]
    delivery_mode: Option<String>,
    /// How long bringing it up may take, where its template says so.
    #[oai(skip_serializing_if_is_none)]
    provision_timeout_ms: Option<i64>,
    /// Why its job waits, if it has one that does.
    #[oai(nullable)]
    waiting: Option<String>,
}

/// A workspace on its own.
#[derive(Object)]
pub(crate) struct WorkspaceDetail {
    id: Uuid,
    name: String,
    #[oai(nullable)]
    role: Option<String>,
    tier: i32,
    /// As in the list, or `removed`.
    status: String,
    agent_card: Option<Any<Value>>,
    url: String,
    #[oai(nullable)]
    parent_id: Option<Uuid>,
    active_tasks: i32,
    max_concurrent_tasks: i32,
    last_error_rate: f64,
    uptime_seconds: i32,
    runtime: String,
    /// Place on the canvas; absolute, also below a parent.
    x: f64,
    y: f64,
    collapsed: bool,
    /// `push`, `poll`, or null for an external agent that never said.
    #[oai(nullable)]
    delivery_mode: Option<String>,
    /// When it last sent a message to another workspace.
    #[oai(nullable)]
    last_outbound_at: Option<Timestamp>,
    /// How long bringing it up may take, where its template says so.
    #[oai(skip_serializing_if_is_none)]
    provision_timeout_ms: Option<i64>,
    /// Why its job waits, if it has one that does.
    #[oai(nullable)]
    waiting: Option<String>,
}

impl WorkspaceEntry {
    pub(crate) fn new(fleet: &Fleet, row: Workspace, waiting: Option<Waiting>) -> Self {
        Self {
            provision_timeout_ms: row.provision_timeout_ms(fleet),
            waiting: waiting.map(|waiting| waiting.text),
            id: row.id.0,
            name: row.name,
            role: row.role,
            tier: row.tier,
            status: row.status.to_string(),
            agent_card: row.agent_card.map(Any),
            url: row.url,
            parent_id: row.parent_id.map(|id| id.0),
            active_tasks: row.active_tasks,
            max_concurrent_tasks: row.max_concurrent_tasks,
            last_error_rate: row.last_error_rate,
            last_sample_error: row.last_sample_error,
            uptime_seconds: row.uptime_seconds,
            current_task: row.current_task,
            runtime: row.runtime,
            workspace_dir: row.workspace_dir,
            monthly_spend: row.monthly_spend,
            budget_limit: row.budget_limit,
            x: row.x,
            y: row.y,
            collapsed: row.collapsed,
            delivery_mode: row.delivery_mode.map(|mode| mode.as_str().to_owned()),
        }
    }
}

impl WorkspaceDetail {
    pub(crate) fn new(fleet: &Fleet, row: Workspace, waiting: Option<Waiting>) -> Self {
        Self {
            provision_timeout_ms: row.provision_timeout_ms(fleet),
            waiting: waiting.map(|waiting| waiting.text),
            id: row.id.0,
            name: row.name,
            role: row.role,
            tier: row.tier,
            status: row.status.to_string(),
            agent_card: row.agent_card.map(Any),
            url: row.url,
            parent_id: row.parent_id.map(|id| id.0),
            active_tasks: row.active_tasks,
            max_concurrent_tasks: row.max_concurrent_tasks,
            last_error_rate: row.last_error_rate,
            uptime_seconds: row.uptime_seconds,
            runtime: row.runtime,
            x: row.x,
            y: row.y,
            collapsed: row.collapsed,
            delivery_mode: row.delivery_mode.map(|mode| mode.as_str().to_owned()),
            last_outbound_at: row.last_outbound_at,
        }
    }
}
