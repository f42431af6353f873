//! The message that sockets receive (`spec: rest-api` §5.1).

use longshore_base::{Timestamp, WorkspaceId};
use serde::{Serialize, Serializer};
use serde_json::Value;

/// One event as clients see it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Message {
    /// Name, see [`crate::names`].
    pub event: String,
    /// The workspace it is about; an empty string on the wire when it is about none.
    #[serde(serialize_with = "id_or_empty")]
    pub workspace_id: Option<WorkspaceId>,
    /// When it happened, by the database's clock.
    pub timestamp: Timestamp,
    /// Always an object.
    pub payload: Value,
}

#[expect(clippy::ref_option, reason = "serde hands a reference to the field")]
fn id_or_empty<S: Serializer>(id: &Option<WorkspaceId>, serializer: S) -> Result<S::Ok, S::Error> {
    match id {
        Some(id) => id.serialize(serializer),
        None => serializer.serialize_str(""),
    }
}
