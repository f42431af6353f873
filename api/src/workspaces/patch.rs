//! Changing fields.

use longshore_fleet::workspace::{PatchError, Patched, PatchedBy, Position, WorkspacePatch};
use poem_openapi::Object;
use poem_openapi::types::MaybeUndefined;
use serde::{Deserialize, Deserializer};

use crate::auth::Principal;
use crate::body::JsonRequest;
use crate::problem::{ApiError, ApiResult};

/// The fields to change. Absent ones stay as they are; null clears those that may be empty.
#[derive(Deserialize, Object)]
pub(crate) struct PatchWorkspaceRequest {
    #[serde(default, deserialize_with = "not_null")]
    name: Option<String>,
    #[serde(default)]
    #[oai(nullable)]
    role: MaybeUndefined<String>,
    #[serde(default, deserialize_with = "not_null")]
    tier: Option<i64>,
    #[serde(default)]
    #[oai(nullable)]
    parent_id: MaybeUndefined<String>,
    /// Folded up on the canvas.
    #[serde(default, deserialize_with = "not_null")]
    collapsed: Option<bool>,
    #[serde(default, deserialize_with = "not_null")]
    runtime: Option<String>,
    /// Reaches the agent with its next restart.
    #[serde(default)]
    #[oai(nullable)]
    workspace_dir: MaybeUndefined<String>,
    #[serde(default)]
    #[oai(nullable)]
    hibernation_idle_minutes: MaybeUndefined<i64>,
    /// Place on the canvas; only together with `y`.
    #[serde(default, deserialize_with = "not_null")]
    x: Option<f64>,
    #[serde(default, deserialize_with = "not_null")]
    y: Option<f64>,
}

impl JsonRequest for PatchWorkspaceRequest {
    const MAY_BE_ABSENT: bool = true;
}

/// For a member that is absent or has a value; null is neither.
fn not_null<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// That a workspace was changed.
#[derive(Object)]
pub(crate) struct PatchedWorkspace {
    /// Always `updated`.
    status: String,
    /// Present, and true, when a new value reaches the agent only with a restart.
    #[oai(skip_serializing_if_is_none)]
    needs_restart: Option<bool>,
}

impl PatchedWorkspace {
    pub(crate) fn new(patched: Patched) -> Self {
        Self {
            status: "updated".to_owned(),
            needs_restart: patched.needs_restart.then_some(true),
        }
    }
}

impl PatchWorkspaceRequest {
    pub(crate) fn into_patch(self, caller: &Principal) -> ApiResult<WorkspacePatch> {
        let parent_id = match self.parent_id {
            MaybeUndefined::Undefined => None,
            MaybeUndefined::Null => Some(None),
            MaybeUndefined::Value(text) => Some(Some(
                text.parse()
                    .map_err(|_| ApiError::bad_request("invalid parent_id"))?,
            )),
        };
        Ok(WorkspacePatch {
            by: if caller.is_operator() {
                PatchedBy::Operator
            } else {
                PatchedBy::OwnToken
            },
            name: self.name,
            role: self.role.into(),
            tier: self.tier,
            parent_id,
            collapsed: self.collapsed,
            runtime: self.runtime,
            workspace_dir: self.workspace_dir.into(),
            hibernation_idle_minutes: self.hibernation_idle_minutes.into(),
            position: self.x.zip(self.y).map(|(x, y)| Position { x, y }),
        })
    }
}

pub(crate) fn refuse(error: PatchError, failed: &'static str) -> ApiError {
    let text = error.to_string();
    match error {
        PatchError::InvalidFields { detail } => ApiError::bad_request(text).detail(detail),
        PatchError::InvalidText(_)
        | PatchError::InvalidDirectory
        | PatchError::UnknownRuntime
        | PatchError::UnknownParent
        | PatchError::Cycle => ApiError::bad_request(text),
        PatchError::TierNotAllowed { .. } | PatchError::AdminRequired { .. } => {
            ApiError::forbidden(text)
        }
        PatchError::NotFound => ApiError::workspace_not_found(),
        PatchError::Removed => ApiError::workspace_removed(),
        PatchError::Fleet(error) => ApiError::fleet(error, failed),
    }
}
