//! What operators change leaves an event: what, by whom, why.

use longshore_events::NewEvent;
use serde_json::{Value, json};

/// The event of a change; `what` is an object.
pub(crate) fn change_event(
    event_type: &'static str,
    what: Value,
    by: &str,
    reason: Option<&str>,
) -> NewEvent {
    let mut payload = what;
    payload["by"] = json!(by);
    payload["reason"] = json!(reason);
    NewEvent {
        event_type,
        workspace_id: None,
        payload,
    }
}
