//! What remains of a message: a row in the receiver's activity log, and the events for whoever watches.

use std::time::Duration;

use longshore_base::WorkspaceId;
use longshore_events::{BroadcastEvent, names};
use longshore_fleet::FleetError;
use longshore_fleet::activity::{
    A2A_RECEIVE, Activity, ActivityStatus, NewActivity, record_activity,
};
use longshore_fleet::workspace::{Workspace, record_outbound};
use serde_json::{Value, json};
use sqlx::PgConnection;

use super::MessageResponse;
use super::envelope::{Envelope, storable, without_nul};
use crate::problem::ApiResult;
use crate::state::ApiState;

/// Larger bodies are left out of the event; whoever wants them reads the row.
const EVENT_BODY_LIMIT: usize = 256 * 1024;

/// A message and what came of it.
pub(crate) struct Record {
    activity: NewActivity,
    /// The answer was a success.
    succeeded: bool,
}

impl Record {
    /// A message that was put into an inbox. A repetition finds the first one's row.
    pub(crate) fn queued(
        target: &Workspace,
        sender: Option<WorkspaceId>,
        envelope: &Envelope,
    ) -> Self {
        let mut record = Self::new(target, sender, envelope);
        record.activity.status = ActivityStatus::Queued;
        record.activity.idempotency_key = envelope.message_id.clone();
        record
    }

    /// A message that was carried, with the answer's body if there was one.
    pub(crate) fn carried(
        target: &Workspace,
        sender: Option<WorkspaceId>,
        envelope: &Envelope,
        body: Option<&[u8]>,
        answer: &ApiResult<MessageResponse>,
        took: Duration,
    ) -> Self {
        let mut record = Self::new(target, sender, envelope);
        let activity = &mut record.activity;
        activity.duration_ms = Some(i32::try_from(took.as_millis()).unwrap_or(i32::MAX));
        activity.response_body = body.and_then(storable);
        activity.tool_trace = activity
            .response_body
            .as_ref()
            .and_then(|body| body.pointer("/result/metadata/tool_trace"))
            .cloned();
        if let Err(error) = answer {
            activity.status = ActivityStatus::Error;
            activity.error_detail = Some(error.to_string());
            activity.summary = Some(format!("A2A request to {} failed: {error}", target.name));
        }
        record.succeeded = answer.is_ok();
        record
    }

    fn new(target: &Workspace, sender: Option<WorkspaceId>, envelope: &Envelope) -> Self {
        Self {
            succeeded: true,
            activity: NewActivity {
                workspace_id: target.id,
                activity_type: A2A_RECEIVE,
                source_id: sender,
                target_id: Some(target.id),
                method: Some(envelope.method.replace('\0', "\u{fffd}")),
                summary: Some(format!("{} → {}", envelope.method, target.name)),
                request_body: Some(without_nul(envelope.json.clone())),
                response_body: None,
                tool_trace: None,
                duration_ms: None,
                status: ActivityStatus::Ok,
                error_detail: None,
                idempotency_key: None,
            },
        }
    }

    /// Writes the row.
    pub(crate) async fn write(&self, tx: &mut PgConnection) -> Result<Activity, FleetError> {
        record_activity(tx, self.activity.clone()).await
    }

    /// Tells whoever watches, after the commit.
    pub(crate) fn announce(&self, state: &ApiState, written: Activity) {
        let activity = &self.activity;
        let mut payload = json!({
            "id": written.id,
            "activity_type": activity.activity_type,
            "method": activity.method,
            "summary": activity.summary,
            "status": activity.status.as_str(),
            "source_id": activity.source_id,
            "target_id": activity.target_id,
            "duration_ms": activity.duration_ms,
        });
        let parts = [
            ("tool_trace", &activity.tool_trace),
            ("request_body", &activity.request_body),
            ("response_body", &activity.response_body),
        ];
        for (name, part) in parts {
            if let Some(part) = part.as_ref().filter(|part| fits(part)) {
                payload[name] = part.clone();
            }
        }
        state.bus.broadcast(BroadcastEvent {
            event_type: names::ACTIVITY_LOGGED,
            workspace_id: Some(activity.workspace_id),
            payload,
        });
    }

    /// All that follows from a carried message. What fails is logged and nothing else suffers.
    pub(crate) async fn follow_up(&self, state: &ApiState, sender: Option<WorkspaceId>) {
        let activity = &self.activity;
        if self.succeeded && sender.is_none() {
            state.bus.broadcast(BroadcastEvent {
                event_type: names::A2A_RESPONSE,
                workspace_id: Some(activity.workspace_id),
                payload: json!({
                    "response_body": activity.response_body,
                    "method": activity.method,
                    "duration_ms": activity.duration_ms,
                }),
            });
        }
        match self.store(state, sender).await {
            Ok(written) => self.announce(state, written),
            Err(error) => tracing::error!(
                workspace.id = %activity.workspace_id,
                error = &error as &dyn std::error::Error,
                "a message was not recorded"
            ),
        }
    }

    async fn store(
        &self,
        state: &ApiState,
        sender: Option<WorkspaceId>,
    ) -> Result<Activity, FleetError> {
        let mut conn = state.pools.work.acquire().await?;
        if let Some(sender) = sender.filter(|_| self.succeeded) {
            record_outbound(&mut conn, sender).await?;
        }
        self.write(&mut conn).await
    }
}

fn fits(value: &Value) -> bool {
    value.to_string().len() <= EVENT_BODY_LIMIT
}
