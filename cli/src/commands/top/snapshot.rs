//! What `longshore top` shows, as the server told it.

use serde_json::{Value, json};

use crate::client::{Client, ClientError};

/// Newest failures asked for: more than a screen shows.
const FAILURES: &str = "50";

/// One look at everything.
#[derive(Clone, Debug, Default)]
pub(super) struct Snapshot {
    pub(super) queues: Value,
    pub(super) holds: Value,
    pub(super) workers: Value,
    pub(super) failures: Value,
}

impl Snapshot {
    /// Asks for all of it at once.
    pub(super) async fn take(client: &Client) -> Result<Self, ClientError> {
        let dead = [("state", "dead".to_owned()), ("limit", FAILURES.to_owned())];
        let (queues, holds, workers, failures) = tokio::try_join!(
            client.list("/queues"),
            client.list("/holds"),
            client.list("/workers"),
            client.get("/jobs", &dead),
        )?;
        Ok(Self {
            queues,
            holds,
            workers,
            failures,
        })
    }

    /// For scripts.
    pub(super) fn to_json(&self) -> Value {
        let items = |list: &Value| list.get("items").cloned().unwrap_or_default();
        json!({
            "queues": items(&self.queues),
            "holds": items(&self.holds),
            "workers": items(&self.workers),
            "failures": items(&self.failures),
        })
    }
}
