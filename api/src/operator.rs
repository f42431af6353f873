//! What operators name, and that what they change leaves an event: what, by whom, why.

use longshore_events::NewEvent;
use serde_json::{Value, json};
use uuid::Uuid;

/// An organisation as all of ours write it, since ids may be written in more than one way. It need not be known: it may be
/// about to be.
pub(crate) fn canonical_tenant(tenant: String) -> String {
    match tenant.parse::<Uuid>() {
        Ok(id) => id.to_string(),
        Err(_) => tenant,
    }
}

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
