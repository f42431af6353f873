//! An agent, or whoever edits it on the canvas, changes its card.

use longshore_base::WorkspaceId;
use longshore_events::{NewEvent, append, names};
use serde_json::{Value, json};
use sqlx::PgConnection;

use super::gate::{Call, GateError, Presented, pass};
use super::register::{RegisterError, holds_nul};
use crate::status::WorkspaceStatus;
use crate::{Fleet, FleetError};

/// Replaces the card and records it. Poke the bus after the commit.
///
/// # Errors
/// [`RegisterError::Gate`], [`RegisterError::InvalidCard`].
pub async fn update_card(
    tx: &mut PgConnection,
    fleet: &Fleet,
    id: WorkspaceId,
    presented: &Presented,
    agent_card: Value,
) -> Result<(), RegisterError> {
    pass(tx, fleet, id, presented, Call::Other).await?;
    if holds_nul(&agent_card) {
        return Err(RegisterError::InvalidCard);
    }
    let done = sqlx::query!(
        "UPDATE workspaces SET agent_card = $2, updated_at = longshore_now() WHERE id = $1 AND status <> $3",
        id as WorkspaceId,
        agent_card,
        WorkspaceStatus::Removed as WorkspaceStatus,
    )
    .execute(&mut *tx)
    .await?;
    if done.rows_affected() == 0 {
        return Err(GateError::Removed.into());
    }
    let event = NewEvent {
        event_type: names::AGENT_CARD_UPDATED,
        workspace_id: Some(id),
        payload: json!({ "agent_card": agent_card }),
    };
    append(tx, event).await.map_err(FleetError::from)?;
    Ok(())
}
