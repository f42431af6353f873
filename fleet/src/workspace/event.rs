//! Telling what happened to a workspace, in the transaction in which it did.

use longshore_base::WorkspaceId;
use longshore_events::{NewEvent, append};
use serde_json::Value;
use sqlx::PgConnection;

use crate::FleetError;

pub(crate) async fn tell(
    tx: &mut PgConnection,
    id: WorkspaceId,
    event_type: &'static str,
    payload: Value,
) -> Result<(), FleetError> {
    let event = NewEvent {
        event_type,
        workspace_id: Some(id),
        payload,
    };
    Ok(append(tx, event).await?)
}
