//! What agents send, and what they get.

use std::collections::BTreeMap;

use longshore_fleet::registry::{Heartbeat, RuntimeMetadata};
use poem_openapi::Object;
use serde::Deserialize;
use serde_json::Value;

use crate::body::JsonRequest;

/// An agent that comes up.
#[derive(Deserialize, Object)]
pub(crate) struct RegisterRequest {
    /// The workspace it is.
    pub(super) id: String,
    /// Where it is reached. Not needed by an agent that fetches its messages.
    #[serde(default)]
    pub(super) url: Option<String>,
    /// Who it is: normally `{name, description, version, url, skills, capabilities}`.
    pub(super) agent_card: Value,
    /// `push` or `poll`; absent leaves what is stored.
    #[serde(default)]
    pub(super) delivery_mode: Option<String>,
}

impl JsonRequest for RegisterRequest {}

/// That an agent is registered.
#[derive(Object)]
pub(crate) struct RegisterAnswer {
    /// Always `registered`.
    pub(super) status: String,
    /// Its first token, shown this once; absent when it has one.
    #[oai(skip_serializing_if_is_none)]
    pub(super) auth_token: Option<String>,
    /// By which the platform authenticates towards the agent.
    #[oai(skip_serializing_if_is_none)]
    pub(super) platform_inbound_secret: Option<String>,
}

/// An agent that lives. All but the id may be left out.
#[derive(Deserialize, Object)]
pub(crate) struct HeartbeatRequest {
    /// The workspace it is.
    pub(super) workspace_id: String,
    /// Share of failed calls, 0 to 1.
    #[serde(default)]
    pub(super) error_rate: Option<f64>,
    #[serde(default)]
    pub(super) sample_error: Option<String>,
    #[serde(default)]
    pub(super) active_tasks: Option<i64>,
    #[serde(default)]
    pub(super) uptime_seconds: Option<i64>,
    #[serde(default)]
    pub(super) current_task: Option<String>,
    /// Cents; 0 says nothing.
    #[serde(default)]
    pub(super) monthly_spend: Option<i64>,
    /// `wedged`, or empty.
    #[serde(default)]
    pub(super) runtime_state: Option<String>,
    #[serde(default)]
    pub(super) runtime_metadata: Option<RuntimeMetadataBlock>,
}

impl JsonRequest for HeartbeatRequest {}

/// What an agent declares of itself.
#[derive(Deserialize, Object)]
pub(crate) struct RuntimeMetadataBlock {
    /// What it does itself: `heartbeat`, `scheduler`, `session`, `status_mgmt`, `retry`, …
    #[serde(default)]
    pub(super) capabilities: Option<BTreeMap<String, bool>>,
    /// Its own silence window.
    #[serde(default)]
    pub(super) idle_timeout_seconds: Option<i64>,
}

/// That a heartbeat was taken.
#[derive(Object)]
pub(crate) struct HeartbeatAnswer {
    /// Always `ok`.
    pub(super) status: String,
    /// By which the platform authenticates towards the agent.
    #[oai(skip_serializing_if_is_none)]
    pub(super) platform_inbound_secret: Option<String>,
}

/// A new card.
#[derive(Deserialize, Object)]
pub(crate) struct UpdateCardRequest {
    pub(super) workspace_id: String,
    pub(super) agent_card: Value,
}

impl JsonRequest for UpdateCardRequest {}

/// That something was changed.
#[derive(Object)]
pub(crate) struct Updated {
    /// Always `updated`.
    pub(super) status: String,
}

/// Two workspaces.
#[derive(Deserialize, Object)]
pub(crate) struct CheckAccessRequest {
    pub(super) caller_id: String,
    pub(super) target_id: String,
}

impl JsonRequest for CheckAccessRequest {}

/// Whether they may talk.
#[derive(Object)]
pub(crate) struct AccessAnswer {
    pub(super) allowed: bool,
}

impl HeartbeatRequest {
    pub(super) fn into_heartbeat(self) -> Heartbeat {
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
