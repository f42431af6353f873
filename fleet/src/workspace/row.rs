//! The row of a workspace, with its place on the canvas.

use longshore_base::{Timestamp, WorkspaceId};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::PgConnection;

use crate::status::WorkspaceStatus;
use crate::url_safety::Own;
use crate::{Fleet, FleetConfig, FleetError};

/// The runtime of workspaces that run on machines the platform does not control.
pub const EXTERNAL: &str = "external";

/// A stored URL that starts so was written by the local provisioner: a port of the engine's host.
pub(crate) const LOCAL_HOST: &str = "http://127.0.0.1";

/// How messages reach an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, sqlx::Type)]
#[serde(rename_all = "lowercase")]
#[sqlx(type_name = "text", rename_all = "lowercase")]
pub enum DeliveryMode {
    /// The platform calls the agent's URL.
    Push,
    /// The agent reads its inbox.
    Poll,
}

impl DeliveryMode {
    /// Reads what clients send; only the two exact words are known.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "push" => Some(Self::Push),
            "poll" => Some(Self::Poll),
            _ => None,
        }
    }

    /// As clients know it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Push => "push",
            Self::Poll => "poll",
        }
    }
}

/// What of the host directory an agent gets at `/workspace`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, sqlx::Type)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum WorkspaceAccess {
    /// Nothing: a volume of its own.
    None,
    /// To read.
    ReadOnly,
    /// To read and write.
    ReadWrite,
}

impl WorkspaceAccess {
    /// Reads what clients send.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "none" => Some(Self::None),
            "read_only" => Some(Self::ReadOnly),
            "read_write" => Some(Self::ReadWrite),
            _ => None,
        }
    }

    /// As clients and the database know it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::ReadOnly => "read_only",
            Self::ReadWrite => "read_write",
        }
    }
}

/// All the control plane knows of a workspace, save its secrets.
#[derive(Clone, Debug, PartialEq)]
#[expect(
    missing_docs,
    reason = "the columns; migrations/0001 says what they mean"
)]
pub struct Workspace {
    pub id: WorkspaceId,
    pub name: String,
    pub role: Option<String>,
    pub tier: i32,
    pub status: WorkspaceStatus,
    pub runtime: String,
    pub template: Option<String>,
    pub parent_id: Option<WorkspaceId>,
    pub awareness_namespace: Option<String>,
    pub workspace_dir: Option<String>,
    pub workspace_access: WorkspaceAccess,
    pub url: String,
    pub delivery_mode: Option<DeliveryMode>,
    pub agent_card: Option<Value>,
    pub instance_id: Option<String>,
    pub container_id: Option<String>,
    pub engine_id: Option<String>,
    pub runtime_image_digest: Option<String>,
    pub last_heartbeat_at: Option<Timestamp>,
    pub last_outbound_at: Option<Timestamp>,
    pub last_error_rate: f64,
    pub last_sample_error: String,
    pub active_tasks: i32,
    pub max_concurrent_tasks: i32,
    pub uptime_seconds: i32,
    pub current_task: String,
    pub budget_limit: Option<i64>,
    pub monthly_spend: i64,
    pub hibernation_idle_minutes: Option<i32>,
    pub source_bundle_id: Option<String>,
    pub forwarded_to: Option<WorkspaceId>,
    pub provision_generation: i64,
    pub provision_started_at: Option<Timestamp>,
    pub idle_since: Option<Timestamp>,
    pub removed_at: Option<Timestamp>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    pub x: f64,
    pub y: f64,
    pub collapsed: bool,
}

impl Workspace {
    /// It runs on a machine the platform does not control: never provisioned, stopped or swept.
    #[must_use]
    pub fn is_external(&self) -> bool {
        self.runtime == EXTERNAL
    }

    /// Whether something of it can be where workspaces run. Every attempt writes down its engine before it makes anything
    /// there, and an external workspace runs where the platform has no say.
    #[must_use]
    pub fn may_have_run(&self) -> bool {
        !self.is_external()
            && (self.engine_id.is_some()
                || self.container_id.is_some()
                || self.instance_id.is_some())
    }

    /// The exceptions of the URL check that its URL may claim.
    #[must_use]
    pub fn url_owner(&self) -> Own<'_> {
        if self.is_external() || self.instance_id.is_some() {
            return Own::Nothing;
        }
        Own::Managed {
            id: self.id,
            stored_url: &self.url,
        }
    }

    /// The URL to call its agent at; `None` when there is none. A port of the engine's host cannot be reached from inside
    /// a container, so there it is the agent's address in the containers' network.
    #[must_use]
    pub fn dispatch_url(&self, config: &FleetConfig) -> Option<String> {
        if self.url.is_empty() {
            return None;
        }
        let local = !self.is_external() && self.url.starts_with(LOCAL_HOST);
        Some(if local && config.in_docker {
            self.id.internal_url()
        } else {
            self.url.clone()
        })
    }

    /// The namespace of its memories, derived where the column has none.
    #[must_use]
    pub fn awareness_namespace(&self) -> String {
        match self.awareness_namespace.as_deref() {
            None | Some("") => awareness_namespace(self.id),
            Some(namespace) => namespace.to_owned(),
        }
    }

    /// What its template declares as the deadline of its bringing-up, in milliseconds. From the accessor that the
    /// deadline sweep uses ([`Fleet::provision_timeout`]), so the two cannot disagree.
    #[must_use]
    pub fn provision_timeout_ms(&self, fleet: &Fleet) -> Option<i64> {
        let declared = fleet.templates.declared_timeout(&self.runtime)?;
        i64::try_from(declared.as_millis()).ok()
    }
}

/// The namespace of a workspace's memories.
#[must_use]
pub fn awareness_namespace(id: WorkspaceId) -> String {
    format!("workspace:{id}")
}

/// One column list for every query that loads whole rows.
macro_rules! select_workspaces {
    ($tail:literal $(, $bound:expr)*) => {
        sqlx::query_as!(
            Workspace,
            r#"SELECT w.id AS "id: WorkspaceId", w.name, w.role, w.tier, w.status AS "status: WorkspaceStatus",
                      w.runtime, w.template, w.parent_id AS "parent_id: WorkspaceId", w.awareness_namespace,
                      w.workspace_dir, w.workspace_access::text AS "workspace_access!: WorkspaceAccess", w.url,
                      w.delivery_mode AS "delivery_mode: DeliveryMode", w.agent_card, w.instance_id, w.container_id,
                      w.engine_id, w.runtime_image_digest, w.last_heartbeat_at, w.last_outbound_at, w.last_error_rate,
                      w.last_sample_error, w.active_tasks, w.max_concurrent_tasks, w.uptime_seconds, w.current_task,
                      w.budget_limit, w.monthly_spend, w.hibernation_idle_minutes, w.source_bundle_id,
                      w.forwarded_to AS "forwarded_to: WorkspaceId", w.provision_generation, w.provision_started_at,
                      w.idle_since, w.removed_at, w.created_at, w.updated_at,
                      coalesce(l.x, 0) AS "x!", coalesce(l.y, 0) AS "y!", coalesce(l.collapsed, false) AS "collapsed!"
               FROM workspaces w LEFT JOIN canvas_layouts l ON l.workspace_id = w.id "# + $tail
            $(, $bound)*
        )
    };
}

/// Finds a workspace, removed ones included.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn find_workspace(
    conn: &mut PgConnection,
    id: WorkspaceId,
) -> Result<Option<Workspace>, FleetError> {
    Ok(select_workspaces!("WHERE w.id = $1", id as WorkspaceId)
        .fetch_optional(conn)
        .await?)
}

/// Loads a workspace that must be there, removed ones included.
///
/// # Errors
/// [`FleetError::NoWorkspace`], [`FleetError::Database`].
pub async fn load_workspace(
    conn: &mut PgConnection,
    id: WorkspaceId,
) -> Result<Workspace, FleetError> {
    find_workspace(conn, id)
        .await?
        .ok_or(FleetError::NoWorkspace(id))
}

/// Finds a workspace and holds its row until the transaction ends. Nobody else can change it meanwhile; rows that
/// refer to it can still be inserted.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn lock_workspace(
    tx: &mut PgConnection,
    id: WorkspaceId,
) -> Result<Option<Workspace>, FleetError> {
    // NO KEY: the id never changes, and activity rows with their foreign key must not wait for us.
    Ok(
        select_workspaces!("WHERE w.id = $1 FOR NO KEY UPDATE OF w", id as WorkspaceId)
            .fetch_optional(tx)
            .await?,
    )
}

/// Those of these workspaces whose rows there are, in the order of their ids.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn find_workspaces(
    conn: &mut PgConnection,
    ids: &[WorkspaceId],
) -> Result<Vec<Workspace>, FleetError> {
    let ids: Vec<_> = ids.iter().map(|id| id.0).collect();
    Ok(
        select_workspaces!("WHERE w.id = ANY($1) ORDER BY w.id", &ids)
            .fetch_all(conn)
            .await?,
    )
}

/// Finds several workspaces and holds their rows until the transaction ends, in the order of their ids.
pub(crate) async fn lock_workspaces(
    tx: &mut PgConnection,
    ids: &[WorkspaceId],
) -> Result<Vec<Workspace>, FleetError> {
    let ids: Vec<_> = ids.iter().map(|id| id.0).collect();
    Ok(select_workspaces!(
        "WHERE w.id = ANY($1) ORDER BY w.id FOR NO KEY UPDATE OF w",
        &ids
    )
    .fetch_all(tx)
    .await?)
}

/// All workspaces that are not removed, oldest first.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn list_workspaces(conn: &mut PgConnection) -> Result<Vec<Workspace>, FleetError> {
    Ok(select_workspaces!(
        "WHERE w.status <> $1 ORDER BY w.created_at, w.id",
        WorkspaceStatus::Removed as WorkspaceStatus
    )
    .fetch_all(conn)
    .await?)
}

/// Notes that a workspace spoke to another one.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn record_outbound(conn: &mut PgConnection, id: WorkspaceId) -> Result<(), FleetError> {
    sqlx::query!(
        "UPDATE workspaces SET last_outbound_at = longshore_now() WHERE id = $1",
        id as WorkspaceId
    )
    .execute(conn)
    .await?;
    Ok(())
}
