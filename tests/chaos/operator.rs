//! Whoever calls the API while it is killed, stopped and cut off: an operator, and people who want workspaces. They ask
//! again until they are answered.

use std::time::{Duration, Instant};

use longshore_tests::{Answer, Caller};
use serde_json::{Value, json};
use tokio::sync::mpsc;

/// For one answer.
const ANSWER: Duration = Duration::from_secs(4);
const AGAIN: Duration = Duration::from_millis(150);
/// For what must come in the end.
const PATIENCE: Duration = Duration::from_secs(120);

/// What the operator is told to do, in this order.
#[derive(Clone, Debug)]
pub(crate) enum Told {
    Queue(&'static str, &'static str),
    /// A worker's process.
    Worker(u32, &'static str),
    UndrainAll,
}

/// Does what it is told, one after the other, until nobody tells it anything more.
pub(crate) async fn operate(api: Caller, mut told: mpsc::UnboundedReceiver<Told>) {
    while let Some(told) = told.recv().await {
        match told {
            Told::Queue(queue, change) => {
                insist(&api, &format!("/queues/{queue}/{change}"), None).await;
            }
            Told::Worker(pid, change) => {
                for name in workers(&api).await {
                    if name.contains(&format!("-{pid}-")) {
                        insist(&api, &format!("/workers/{name}/{change}"), None).await;
                    }
                }
            }
            Told::UndrainAll => {
                for name in workers(&api).await {
                    insist(&api, &format!("/workers/{name}/undrain"), None).await;
                }
            }
        }
    }
}

/// Asks for a workspace; answers its id and its job's.
pub(crate) async fn create_workspace(api: &Caller, name: &str) -> (String, String) {
    let answer = insist(api, "/workspaces", Some(name)).await;
    let body = answer.expect("a workspace is made, not looked for");
    let text = |field: &str| body[field].as_str().unwrap().to_owned();
    (text("id"), text("job_id"))
}

/// POSTs until it is done; `None` when there is no such thing. A name is that of a workspace, and the request's key.
async fn insist(api: &Caller, path: &str, name: Option<&str>) -> Option<Value> {
    let began = Instant::now();
    loop {
        let mut request = api.request(reqwest::Method::POST, path).timeout(ANSWER);
        if let Some(name) = name {
            request = request
                .header("Idempotency-Key", format!("\"{name}\""))
                .json(&json!({ "name": name }));
        }
        let seen = match Answer::try_of(request).await {
            Ok(answer) if answer.status < 300 => {
                return Some(serde_json::from_slice(&answer.body).unwrap_or_default());
            }
            Ok(answer) if answer.status == 404 => return None,
            // Another process has the same request in hand, or the database is away.
            Ok(answer) if answer.status == 409 || answer.status >= 500 => {
                format!("{}", answer.status)
            }
            Ok(answer) => panic!("{path}: {answer:?}"),
            Err(error) => error.to_string(),
        };
        assert!(began.elapsed() < PATIENCE, "{path}: {seen}");
        tokio::time::sleep(AGAIN).await;
    }
}

/// Names of workers.
async fn workers(api: &Caller) -> Vec<String> {
    let began = Instant::now();
    loop {
        let request = api
            .request(reqwest::Method::GET, "/workers?limit=100")
            .timeout(ANSWER);
        if let Ok(answer) = Answer::try_of(request).await
            && answer.status == 200
        {
            let list: Value = serde_json::from_slice(&answer.body).unwrap();
            let items = list["items"].as_array().unwrap().iter();
            return items
                .map(|worker| worker["name"].as_str().unwrap().to_owned())
                .collect();
        }
        assert!(began.elapsed() < PATIENCE, "GET /workers");
        tokio::time::sleep(AGAIN).await;
    }
}
