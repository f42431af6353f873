//! What a workspace was made from, as far as its row and its first event tell of it (`spec: lifecycle` §0.2).

use longshore_base::WorkspaceId;
use serde_json::{Value, json};

use super::Position;

/// What a workspace was made from.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Origin {
    /// What a client asked for.
    #[default]
    Request,
    /// The team that its parent's template names.
    Team,
    /// A bundle.
    Bundle {
        /// The bundle's own id.
        id: String,
        /// The card its agent had; it stands until the new agent registers.
        agent_card: Option<Value>,
    },
    /// An organisation's template.
    Organisation,
}

impl Origin {
    pub(super) fn bundle_id(&self) -> Option<&str> {
        match self {
            Self::Bundle { id, .. } => Some(id.as_str()).filter(|id| !id.is_empty()),
            Self::Request | Self::Team | Self::Organisation => None,
        }
    }

    pub(super) fn agent_card(&self) -> Option<&Value> {
        match self {
            Self::Bundle { agent_card, .. } => agent_card.as_ref(),
            Self::Request | Self::Team | Self::Organisation => None,
        }
    }

    /// Adds to the payload of the event that tells of the new workspace.
    pub(super) fn tell(&self, payload: &mut Value, parent: Option<WorkspaceId>, at: Position) {
        match self {
            Self::Request => {}
            Self::Team => payload["parent_id"] = json!(parent),
            Self::Bundle { id, .. } => payload["source_bundle_id"] = json!(id),
            Self::Organisation => {
                payload["x"] = json!(at.x);
                payload["y"] = json!(at.y);
                if let Some(parent) = parent {
                    payload["parent_id"] = json!(parent);
                }
            }
        }
    }
}
