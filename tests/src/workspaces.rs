//! Workspaces and jobs, as tests make and look at them.

use std::collections::BTreeMap;
use std::time::Duration;

use longshore_base::random;
use serde_json::{Value, json};

use crate::app::TestApp;
use crate::caller::Caller;
use crate::wait::wait_until;

impl TestApp {
    /// Creates a managed workspace; answers its id and the job that brings it up.
    pub async fn create(&self, name: &str, more: Value) -> (String, String) {
        let mut body = json!({ "name": name });
        let fields = body.as_object_mut().unwrap();
        fields.extend(more.as_object().cloned().unwrap_or_default());
        let created = self.admin().post("/workspaces", &body).await.expect(201);
        let text = |member: &str| created[member].as_str().unwrap().to_owned();
        (text("id"), text("job_id"))
    }

    /// Creates an external workspace whose agent has not come yet; answers its id and its agent.
    pub async fn create_external(&self, name: &str) -> (String, Caller) {
        let body = json!({ "name": name, "external": true });
        let created = self.admin().post("/workspaces", &body).await.expect(201);
        let token = created["connection"]["auth_token"].as_str().unwrap();
        let id = created["id"].as_str().unwrap().to_owned();
        (id, self.with_token(Some(token)))
    }

    /// The workspace as the list shows it, which is more than its own page does.
    pub async fn entry(&self, workspace: &str) -> Value {
        let list = self.admin().get("/workspaces").await.expect(200);
        let found = list.as_array().unwrap().iter();
        found
            .clone()
            .find(|entry| entry["id"] == workspace)
            .unwrap_or_else(|| panic!("{workspace} is not listed: {list}"))
            .clone()
    }

    /// Waits until a workspace has a status; answers its entry of the list.
    pub async fn until_status(&self, workspace: &str, status: &str, deadline: Duration) -> Value {
        wait_until(&format!("{workspace} to be {status}"), deadline, || async {
            let entry = self.entry(workspace).await;
            if entry["status"] == status {
                Ok(entry)
            } else {
                Err(entry.to_string())
            }
        })
        .await
    }

    /// Waits until a workspace is online and the platform has written down where: an agent may be quicker to register
    /// than the worker to note what it has started.
    pub async fn until_up(&self, workspace: &str, deadline: Duration) -> Value {
        let what = format!("{workspace} to be online, its home known");
        wait_until(&what, deadline, || async {
            let entry = self.entry(workspace).await;
            let home = self.home_in_row(workspace).await;
            if entry["status"] == "online" && home.is_some() {
                Ok(entry)
            } else {
                Err(format!("home {home:?} of {entry}"))
            }
        })
        .await
    }

    /// The job as the API shows it.
    pub async fn job(&self, job: &str) -> Value {
        self.admin().get(&format!("/jobs/{job}")).await.expect(200)
    }

    /// Waits until a job has a state.
    pub async fn until_job(&self, job: &str, state: &str, deadline: Duration) -> Value {
        wait_until(&format!("job {job} to be {state}"), deadline, || async {
            let found = self.job(job).await;
            if found["state"] == state {
                Ok(found)
            } else {
                Err(found.to_string())
            }
        })
        .await
    }

    /// Waits until a job has gone back to wait, once and without using an attempt.
    pub async fn until_snoozed(&self, job: &str, deadline: Duration) -> Value {
        wait_until(&format!("job {job} to wait"), deadline, || async {
            let found = self.job(job).await;
            if found["state"] == "scheduled" && found["snoozes"] == 1 {
                Ok(found)
            } else {
                Err(found.to_string())
            }
        })
        .await
    }

    /// Names of the recorded events of a workspace, oldest first.
    pub async fn event_names(&self, workspace: &str) -> Vec<String> {
        let events = self.admin().get(&format!("/events/{workspace}")).await;
        let events = events.expect(200);
        let events = events.as_array().unwrap().iter().rev();
        events
            .map(|event| event["event_type"].as_str().unwrap().to_owned())
            .collect()
    }

    /// Sends a text to a workspace's agent and answers the text of its answer.
    pub async fn say(&self, workspace: &str, text: &str) -> String {
        let path = format!("/workspaces/{workspace}/a2a");
        let answer = self.admin().post(&path, &message(text)).await.expect(200);
        let found = find_text(&answer["result"]);
        found.unwrap_or_else(|| panic!("no text in {answer}"))
    }

    /// What must hold of a workspace whose bringing-up is over, whatever happened on the way: one container, the row's or
    /// that of the row's instance; nothing without our labels; its token works and its agent answers.
    pub async fn assert_whole(&self, workspace: &str) {
        let containers = self.engine().containers_of(workspace).await;
        assert_eq!(containers.len(), 1, "one container: {containers:#?}");
        let container = &containers[0];
        assert_eq!(container.state, "running");
        let row = self.home_in_row(workspace).await;
        if let Some(control_plane) = &self.control_plane {
            let instances = control_plane.instances(workspace).await;
            assert_eq!(instances, Vec::from_iter(row), "its instance is the row's");
        } else {
            assert_eq!(
                row.as_deref(),
                Some(container.id.as_str()),
                "its id is the row's"
            );
            let generation = self.generation_in_row(workspace).await;
            assert_eq!(container.generation(), generation, "the row's generation");
        }
        let unlabelled = self.engine().unlabelled_of(workspace).await;
        assert!(unlabelled.is_empty(), "{unlabelled:?}");
        let agent = self.agent(workspace).await;
        let beat = json!({ "workspace_id": workspace });
        agent.post("/registry/heartbeat", &beat).await.expect(200);
        let echo = self.say(workspace, "still there?").await;
        assert!(echo.contains("still there?"), "{echo}");
    }

    /// The generation of the workspace's newest provision.
    pub async fn generation_in_row(&self, workspace: &str) -> i64 {
        sqlx::query_scalar("SELECT provision_generation FROM workspaces WHERE id = $1::uuid")
            .bind(workspace)
            .fetch_one(self.pool())
            .await
            .unwrap()
    }

    /// How many rows every table has that a request could write to.
    pub async fn row_counts(&self) -> BTreeMap<String, i64> {
        let tables: Vec<String> = sqlx::query_scalar(
            "SELECT relname::text FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace
             WHERE nspname = 'public' AND relkind = 'r' AND relname NOT IN ('workers', 'reconcilers', 'heartbeat_intake')",
        )
        .fetch_all(self.pool())
        .await
        .unwrap();
        let mut counts = BTreeMap::new();
        for table in tables {
            let sql = format!("SELECT count(*) FROM {table}");
            let count = sqlx::query_scalar(sqlx::AssertSqlSafe(sql))
                .fetch_one(self.pool())
                .await
                .unwrap();
            counts.insert(table, count);
        }
        counts
    }
}
/// A message of a text, as A2A writes it.
fn message(text: &str) -> Value {
    json!({
        "jsonrpc": "2.0",
        "id": "1",
        "method": "message/send",
        "params": { "message": { "role": "user", "messageId": random::token(), "parts": [{ "kind": "text", "text": text }] } },
    })
}

/// The first text part anywhere in an answer, which is a message or a task around one.
fn find_text(value: &Value) -> Option<String> {
    match value {
        Value::Object(members) => {
            let own = members.get("text").and_then(Value::as_str);
            own.map(str::to_owned)
                .or_else(|| members.values().find_map(find_text))
        }
        Value::Array(items) => items.iter().find_map(find_text),
        _ => None,
    }
}
