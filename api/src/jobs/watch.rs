//! A job's stream: what changed since the watcher looked last, until it ends.

use std::time::Duration;

use longshore_base::{JobId, Timestamp};
use longshore_ledger::inspect::{self, JobView};
use serde_json::{Value, json};

use super::FAILED;
use crate::sse::{Feed, Gone};
use crate::state::ApiState;

/// How often a watched job is looked at.
const WATCH_PERIOD: Duration = Duration::from_millis(250);

/// Tells a watcher what is new to it, until the job ends.
pub(super) async fn watch(
    state: &ApiState,
    first: JobView,
    seen: Option<i64>,
    feed: &Feed,
) -> Result<(), Gone> {
    let id = first.id;
    let mut shown = Shown::new(seen);
    let mut job = Some(first);
    let mut period = tokio::time::interval(WATCH_PERIOD);
    period.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        if let Some(job) = job {
            let ended = job.is_terminal();
            for (event, data) in shown.news(&job) {
                feed.send(
                    Some(&job.revision.to_string()),
                    Some(event),
                    &data.to_string(),
                )
                .await?;
            }
            if ended {
                return Ok(());
            }
        }
        period.tick().await;
        // Nothing is found while Postgres is away for a moment: look again.
        job = look(state, id).await;
    }
}

async fn look(state: &ApiState, id: JobId) -> Option<JobView> {
    let mut conn = state.connection(FAILED).await.ok()?;
    inspect::find_job(&mut conn, id).await.ok().flatten()
}

/// What a watcher has been told already.
struct Shown {
    revision: Option<i64>,
    state: Option<(String, bool)>,
    progress: Option<Value>,
    failures: Vec<(i32, Timestamp)>,
}

impl Shown {
    fn new(revision: Option<i64>) -> Self {
        Self {
            revision,
            state: None,
            progress: None,
            failures: Vec::new(),
        }
    }

    /// The events that bring a watcher up to date. Who comes back with the revision it saw last, and finds it
    /// unchanged, gets nothing; the end is always told.
    fn news(&mut self, job: &JobView) -> Vec<(&'static str, Value)> {
        let ended = job.is_terminal();
        if self.revision.is_some_and(|seen| seen >= job.revision) && !ended {
            return Vec::new();
        }
        self.revision = Some(job.revision);
        let mut news = Vec::new();
        for failure in &job.errors {
            let mark = (failure.attempt, failure.at);
            if !self.failures.contains(&mark) {
                self.failures.push(mark);
                news.push(("log", json!(failure)));
            }
        }
        let progress = job.progress.as_ref().map(|progress| json!(progress));
        if progress.is_some() && progress != self.progress {
            news.push(("progress", json!(job.progress)));
        }
        self.progress = progress;
        let state = (job.state.to_owned(), job.waiting.is_some());
        if self.state.as_ref() != Some(&state) || ended {
            self.state = Some(state);
            news.push(("state", json!(job)));
        }
        news
    }
}
