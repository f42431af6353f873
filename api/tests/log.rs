//! What may not be in the log. In a process of its own, since it listens to all of it.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

#[path = "it/app.rs"]
#[expect(dead_code, reason = "this test needs little of it")]
mod app;

use std::io;
use std::sync::{Arc, Mutex};

use reqwest::Method;
use serde_json::json;

use crate::app::{ADMIN, TestApp};

/// A place for log lines.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn no_credential_reaches_the_log() {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let app = TestApp::start().await;
    let agent = app.insert_named("a").await;
    let secret = "a-secret-nobody-may-see";
    let requests = [
        app.get(&format!("/ws?access_token={ADMIN}")),
        app.get(&format!("/ws?access_token={secret}")),
        app.get("/workspaces").bearer_auth(secret),
        app.get(&format!("/jobs?tenant={secret}"))
            .bearer_auth(ADMIN),
        app.admin(Method::POST, "/workspaces")
            .json(&json!({ "name": "a", "secrets": { "KEY": secret } })),
        app.admin(Method::POST, "/workspaces")
            .json(&json!({ "name": secret, "tier": secret })),
        app.post("/registry/heartbeat", &json!({ "workspace_id": agent.id }))
            .bearer_auth(&agent.token),
    ];
    for request in requests {
        request.send().await.unwrap();
    }
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    let ours: Vec<_> = text
        .lines()
        .filter(|line| line.contains("longshore"))
        .collect();
    assert!(
        ours.iter().any(|line| line.contains("http.path=\"/ws\"")),
        "{text}"
    );
    for line in ours {
        for hidden in [secret, ADMIN, agent.token.as_str()] {
            assert!(!line.contains(hidden), "{line}");
        }
    }
}
