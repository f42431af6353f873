//! The sealing key is changed under a fleet with secrets, whatever dies meanwhile.

use std::collections::BTreeMap;

use longshore_base::random;
use longshore_tests::{Caller, NewWorker, PATIENCE, TestApp, wait_until};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const RING: &str = "SECRETS_ENCRYPTION_KEYS";
/// More than two parts of a rotation.
const SECRETS: usize = 240;

fn key() -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(random::bytes::<32>())
}

/// Starts the API anew with this ring, and lets workers that come have it too.
async fn give(app: &mut TestApp, ring: &str) {
    app.set(RING, ring);
    app.api.signal(Signal::SIGTERM);
    app.api.ended(PATIENCE).await;
    app.start_api_again().await;
}

/// An external workspace with secrets, which no engine is needed for; and its agent.
async fn plant(app: &TestApp) -> (String, Caller, BTreeMap<String, String>) {
    let secrets: BTreeMap<_, _> = (0..SECRETS)
        .map(|n| (format!("SECRET_{n}"), random::token()))
        .collect();
    let body = json!({ "name": "keeper", "external": true, "secrets": secrets });
    let created = app.admin().post("/workspaces", &body).await.expect(201);
    let token = created["connection"]["auth_token"].as_str().unwrap();
    let mut all = secrets;
    let shared = random::token();
    let body = json!({ "key": "SHARED", "value": shared });
    app.admin()
        .put("/settings/secrets", &body)
        .await
        .expect(200);
    all.insert("SHARED".to_owned(), shared);
    let id = created["id"].as_str().unwrap().to_owned();
    (id, app.with_token(Some(token)), all)
}

async fn are_readable(agent: &Caller, id: &str, secrets: &BTreeMap<String, String>) {
    let path = format!("/workspaces/{id}/secrets/values");
    let values = agent.get(&path).await.expect(200);
    assert_eq!(values, json!(secrets));
}

async fn sealed_with(app: &TestApp, key_id: &str) -> i64 {
    sqlx::query_scalar(
        "SELECT (SELECT count(*) FROM workspace_secrets WHERE key_id = $1)
              + (SELECT count(*) FROM global_secrets WHERE key_id = $1)",
    )
    .bind(key_id)
    .fetch_one(app.pool())
    .await
    .unwrap()
}

async fn ended(app: &TestApp, job: &str) -> Value {
    wait_until("the rotation to end", PATIENCE, || async {
        let job = app.job(job).await;
        match job["state"].as_str() {
            Some("succeeded" | "dead") => Ok(job),
            _ => Err(job.to_string()),
        }
    })
    .await
}

#[tokio::test]
async fn a_rotation_whose_worker_is_killed_midway_loses_nothing() {
    let (old, new) = (key(), key());
    let mut app = TestApp::build()
        .without_docker()
        .setting("SECRETS_ENCRYPTION_KEY", "")
        .setting(RING, &format!("old:{old}"))
        .start()
        .await;
    let (id, agent, secrets) = plant(&app).await;
    let all = i64::try_from(secrets.len()).unwrap();
    assert_eq!(sealed_with(&app, "old").await, all);

    give(&mut app, &format!("new:{new},old:{old}")).await;
    are_readable(&agent, &id, &secrets).await;
    // The global ones and the first hundred, then it dies.
    let dying = NewWorker::default().failpoint("reseal.part*3", "die");
    let mut dying = app.start_worker(dying).await;
    let started = app
        .admin()
        .post("/secrets/rotate-key", &json!({}))
        .await
        .expect(202);
    assert_eq!(
        (&started["key_id"], &started["waiting"]),
        (&json!("new"), &json!(all))
    );
    dying.died(PATIENCE).await;
    let some = sealed_with(&app, "new").await;
    assert!(some > 0 && some < all, "{some} of {all}");
    are_readable(&agent, &id, &secrets).await;

    let _successor = app.start_worker(NewWorker::default()).await;
    let job = ended(&app, started["job_id"].as_str().unwrap()).await;
    assert_eq!(job["state"], "succeeded", "{job}");
    assert_eq!(job["crashes"], 1, "{job}");
    assert_eq!(job["result"]["resealed"], all, "{job}");
    assert_eq!(sealed_with(&app, "new").await, all);
    are_readable(&agent, &id, &secrets).await;

    // The old key is not needed any more.
    give(&mut app, &format!("new:{new}")).await;
    are_readable(&agent, &id, &secrets).await;
}

#[tokio::test]
async fn a_rotation_without_the_old_key_is_refused_and_says_what_to_do() {
    let (old, new) = (key(), key());
    let mut app = TestApp::build()
        .without_docker()
        .setting("SECRETS_ENCRYPTION_KEY", "")
        .setting(RING, &format!("old:{old}"))
        .start()
        .await;
    let (id, agent, secrets) = plant(&app).await;
    // Also where the new one took the old one's id.
    for (ring, named) in [
        (format!("new:{new}"), "another key called old"),
        (format!("old:{new}"), "another key called old"),
    ] {
        give(&mut app, &ring).await;
        let output = app.command(&["secrets", "rotate-key"]);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{told}");
        assert!(
            told.contains(named) && told.contains("add that key to SECRETS_ENCRYPTION_KEYS"),
            "{told}"
        );
    }
    assert_eq!(sealed_with(&app, "new").await, 0);
    give(&mut app, &format!("new:{new},old:{old}")).await;
    let _worker = app.start_worker(NewWorker::default()).await;
    let output = app.command(&["secrets", "rotate-key"]);
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{output:?}");
    assert!(
        told.contains(&format!("{} secrets were sealed anew", secrets.len())),
        "{told}"
    );
    are_readable(&agent, &id, &secrets).await;
}
