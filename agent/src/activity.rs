//! What the agent is doing and what was said: the tasks it reports in its beats, and the transcript.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tokio::sync::Notify;

/// Messages kept, and characters kept of each: even when every character is escaped, the whole transcript
/// stays below the 1 MiB the platform passes on.
const KEPT_MESSAGES: usize = 150;
const KEPT_CHARACTERS: usize = 1000;
const KEPT_ID_CHARACTERS: usize = 100;
/// As the platform shows it on a workspace's card.
const TASK_CHARACTERS: usize = 200;
/// Tasks shorter than this are never announced between two beats.
const SETTLE: Duration = Duration::from_millis(250);

/// The running tasks and the latest messages, shared by all connections.
#[derive(Default)]
pub(crate) struct Activity {
    tasks: Mutex<BTreeMap<u64, String>>,
    task_changed: Notify,
    transcript: Mutex<Transcript>,
}

#[derive(Default)]
struct Transcript {
    messages: VecDeque<(u64, Value)>,
    last: u64,
}

/// What a beat says of the tasks.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Tasks {
    pub(crate) active: usize,
    /// The newest one.
    pub(crate) current: String,
}

/// A task that runs until this is dropped, also when its caller hangs up.
pub(crate) struct RunningTask<'a> {
    activity: &'a Activity,
    number: u64,
}

impl Activity {
    /// Begins a task.
    pub(crate) fn begin(&self, text: &str) -> RunningTask<'_> {
        let mut tasks = lock(&self.tasks);
        let number = tasks.last_key_value().map_or(0, |(last, _)| last + 1);
        tasks.insert(number, text.chars().take(TASK_CHARACTERS).collect());
        self.task_changed.notify_one();
        RunningTask {
            activity: self,
            number,
        }
    }

    /// The tasks of this moment.
    pub(crate) fn tasks(&self) -> Tasks {
        let tasks = lock(&self.tasks);
        let current = tasks
            .last_key_value()
            .map(|(_, text)| text.clone())
            .unwrap_or_default();
        Tasks {
            active: tasks.len(),
            current,
        }
    }

    /// Waits until the tasks are others than `reported`, and have been for a moment.
    pub(crate) async fn differs_from(&self, reported: &Tasks) {
        loop {
            self.task_changed.notified().await;
            tokio::time::sleep(SETTLE).await;
            if self.tasks() != *reported {
                return;
            }
        }
    }

    /// Adds a message to the transcript.
    pub(crate) fn record(&self, role: &str, message_id: Option<&str>, text: &str) {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let text: String = text.chars().take(KEPT_CHARACTERS).collect();
        let message_id =
            message_id.map(|id| id.chars().take(KEPT_ID_CHARACTERS).collect::<String>());
        let mut transcript = lock(&self.transcript);
        transcript.last += 1;
        let seq = transcript.last;
        let message = json!({
            "seq": seq,
            "at_unix_ms": now.as_millis() as u64,
            "role": role,
            "message_id": message_id,
            "text": text,
        });
        transcript.messages.push_back((seq, message));
        if transcript.messages.len() > KEPT_MESSAGES {
            transcript.messages.pop_front();
        }
    }

    /// The messages after number `since`, at most `limit`; the next page begins after `last`.
    pub(crate) fn transcript(&self, since: u64, limit: Option<u64>) -> Value {
        let Transcript { messages, last } = &*lock(&self.transcript);
        let limit = limit.and_then(|limit| usize::try_from(limit).ok());
        let later = messages.iter().filter(|(seq, _)| *seq > since);
        let page: Vec<_> = later.take(limit.unwrap_or(KEPT_MESSAGES)).collect();
        let last = page.last().map_or(since.min(*last), |(seq, _)| *seq);
        let messages: Vec<_> = page.into_iter().map(|(_, message)| message).collect();
        json!({"messages": messages, "last": last})
    }
}

impl Drop for RunningTask<'_> {
    fn drop(&mut self) {
        lock(&self.activity.tasks).remove(&self.number);
        self.activity.task_changed.notify_one();
    }
}

/// No holder of these locks can leave its data half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_counts_until_it_is_dropped() {
        let activity = Activity::default();
        let first = activity.begin("first");
        let second = activity.begin(&"x".repeat(500));
        assert_eq!(
            activity.tasks(),
            Tasks {
                active: 2,
                current: "x".repeat(TASK_CHARACTERS)
            }
        );
        drop(second);
        assert_eq!(
            activity.tasks(),
            Tasks {
                active: 1,
                current: "first".into()
            }
        );
        drop(first);
        assert_eq!(activity.tasks(), Tasks::default());
    }

    #[test]
    fn the_transcript_forgets_the_oldest_and_pages_forward() {
        let activity = Activity::default();
        for number in 1..=KEPT_MESSAGES + 1 {
            activity.record("user", None, &format!("message {number}"));
        }
        let page = activity.transcript(0, Some(2));
        assert_eq!(
            (&page["messages"][0]["text"], &page["last"]),
            (&json!("message 2"), &json!(3))
        );
        let page = activity.transcript(3, None);
        assert_eq!(
            page["messages"].as_array().unwrap().len(),
            KEPT_MESSAGES - 2
        );
        assert_eq!(
            activity.transcript(151, Some(10)),
            json!({"messages": [], "last": 151})
        );
    }
}
