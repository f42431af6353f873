//! How long organisations wait for their turn, in Prometheus' text form.
//!
//! Read from the ledger when somebody scrapes, so that whoever waits no more is not shown any more; kept for a moment,
//! since the page may be open to anybody who reaches it.

use std::fmt::Write as _;
use std::time::Duration;

use longshore_base::clock::Stopwatch;
use longshore_ledger::inspect::{LongestWait, longest_waits};
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::state::ApiState;

const NAME: &str = "longshore_tenant_oldest_wait_seconds";
/// The rest of the page does not wait longer for this.
const BUDGET: Duration = Duration::from_secs(2);
/// For how long a look is good, at least.
const TTL: Duration = Duration::from_secs(1);
/// And so many times what it took: the page costs the database a twentieth of a connection at most.
const SPARING: u32 = 20;

/// The last look, one at a time.
#[derive(Default)]
pub(crate) struct WaitMetrics(Mutex<Option<Look>>);

struct Look {
    ended: Stopwatch,
    took: Duration,
    text: String,
}

impl WaitMetrics {
    /// The family; empty while the database does not answer.
    pub(crate) async fn render(&self, state: &ApiState) -> String {
        let mut last = self.0.lock().await;
        if let Some(look) = &*last
            && look.ended.elapsed() < TTL.max(look.took * SPARING)
        {
            return look.text.clone();
        }
        let watch = Stopwatch::start();
        let text = match timeout(BUDGET, read(state)).await {
            Ok(Some(waits)) => family(&waits),
            Ok(None) | Err(_) => String::new(),
        };
        *last = Some(Look {
            took: watch.elapsed(),
            ended: Stopwatch::start(),
            text: text.clone(),
        });
        text
    }
}

async fn read(state: &ApiState) -> Option<Vec<LongestWait>> {
    let mut conn = state.pools.work.acquire().await.ok()?;
    match longest_waits(&mut conn).await {
        Ok(waits) => Some(waits),
        Err(error) => {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "cannot read how long organisations wait"
            );
            None
        }
    }
}

fn family(waits: &[LongestWait]) -> String {
    let mut text = format!("# TYPE {NAME} gauge\n");
    for wait in waits {
        let (queue, tenant) = (escaped(&wait.queue), escaped(&wait.tenant));
        // Writing to a string cannot fail.
        writeln!(
            text,
            "{NAME}{{queue=\"{queue}\",tenant=\"{tenant}\"}} {}",
            wait.seconds
        )
        .unwrap_or_default();
    }
    text
}

/// As a label's value: whatever a tenant is called, it stays one value of its own. The exporter's function takes some
/// backslashes for escapes and drops one at the end.
fn escaped(value: &str) -> String {
    value
        .replace('\\', r"\\")
        .replace('"', "\\\"")
        .replace('\n', r"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_break_out_of_its_label() {
        let wait = LongestWait {
            queue: "stop".to_owned(),
            tenant: "a\"} 1\n\\".to_owned(),
            seconds: 2.5,
        };
        assert_eq!(
            family(&[wait]),
            "# TYPE longshore_tenant_oldest_wait_seconds gauge\n\
             longshore_tenant_oldest_wait_seconds{queue=\"stop\",tenant=\"a\\\"} 1\\n\\\\\"} 2.5\n"
        );
    }
}
