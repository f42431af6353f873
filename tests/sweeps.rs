//! What sweeps of an engine take away, and what they never touch.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bollard::models::ContainerCreateBody;
use bollard::query_parameters::CreateContainerOptionsBuilder;
use longshore_base::brand::LABEL_INSTALLATION;
use longshore_base::ids::random_uuid;
use longshore_base::random;
use longshore_base::secret::sha256;
use longshore_tests::{NewWorker, PATIENCE, TestApp, needs_docker, wait_until};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixStream};

/// Makes a pass of a reconciler and answers its report.
pub(crate) async fn run(app: &TestApp, name: &str) -> Value {
    let path = format!("/reconcilers/{name}");
    wait_until(name, PATIENCE, || async {
        let answer = app.admin().get(&path).await;
        if answer.status == 200 {
            Ok(())
        } else {
            Err(answer.text())
        }
    })
    .await;
    let started = app.admin().post(&format!("{path}/run"), &json!({})).await;
    let id = started.expect(202)["job_id"].as_str().unwrap().to_owned();
    let job = app.until_job(&id, "succeeded", PATIENCE).await;
    job["result"].clone()
}

pub(crate) async fn disable(app: &TestApp, name: &str) {
    let path = format!("/reconcilers/{name}/disable");
    wait_until(name, PATIENCE, || async {
        let answer = app.admin().post(&path, &json!({ "reason": "test" })).await;
        if answer.status == 200 {
            Ok(())
        } else {
            Err(answer.text())
        }
    })
    .await;
}

pub(crate) async fn up(app: &TestApp, name: &str) -> String {
    let (id, _) = app.create(name, json!({})).await;
    app.until_up(&id, PATIENCE).await;
    id
}

pub(crate) async fn delete_row_directly(app: &TestApp, id: &str) {
    sqlx::query("DELETE FROM workspaces WHERE id = $1::uuid")
        .bind(id)
        .execute(app.pool())
        .await
        .unwrap();
}

async fn until_gone(app: &TestApp, id: &str) {
    wait_until("the container to go", PATIENCE, || async {
        let containers = app.engine().containers_of(id).await;
        let volumes = app.engine().volume_names().await;
        let config = format!("ws-{}-configs", &id[..12]);
        if containers.is_empty() && !volumes.contains(&config) {
            Ok(())
        } else {
            Err(format!("{containers:?} {volumes:?}"))
        }
    })
    .await;
}

#[tokio::test]
async fn each_installation_takes_away_its_own_orphans_and_nobody_elses() {
    needs_docker!();
    let (mine, theirs) = (TestApp::start().await, TestApp::start().await);
    let (live, removed, unknown) = (
        up(&mine, "live").await,
        up(&mine, "removed").await,
        up(&mine, "unknown").await,
    );
    let (their_live, their_orphan) = (up(&theirs, "live").await, up(&theirs, "orphan").await);
    // It has a workspace's name, but not all the labels: somebody else's.
    let strange = format!("ws-{}", &random_uuid().to_string()[..12]);
    let installation = mine.engine().installation().to_string();
    let body = ContainerCreateBody {
        image: Some(mine.engine().image().to_owned()),
        labels: Some([(LABEL_INSTALLATION.to_owned(), installation)].into()),
        ..ContainerCreateBody::default()
    };
    let named = CreateContainerOptionsBuilder::default()
        .name(&strange)
        .build();
    mine.engine()
        .docker()
        .create_container(Some(named), body)
        .await
        .unwrap();

    mine.write_status_directly(&removed, "removed").await;
    delete_row_directly(&mine, &unknown).await;
    delete_row_directly(&theirs, &their_orphan).await;
    run(&mine, "orphans").await;
    until_gone(&mine, &removed).await;
    until_gone(&mine, &unknown).await;
    let names = |containers: Vec<longshore_tests::Container>| -> Vec<String> {
        let mut names: Vec<_> = containers.into_iter().map(|one| one.name).collect();
        names.sort();
        names
    };
    let mut left = vec![format!("ws-{}", &live[..12]), strange];
    left.sort();
    assert_eq!(names(mine.engine().containers().await), left);
    assert_eq!(names(theirs.engine().containers().await).len(), 2);
    mine.assert_whole(&live).await;

    run(&theirs, "orphans").await;
    until_gone(&theirs, &their_orphan).await;
    theirs.assert_whole(&their_live).await;
    assert_eq!(names(mine.engine().containers().await), left);
}

/// A way to the engine on which listing containers can be made to fail.
struct FlakyEngine {
    host: String,
    fails: Arc<AtomicBool>,
}

impl FlakyEngine {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = format!("tcp://{}", listener.local_addr().unwrap());
        let fails = Arc::new(AtomicBool::new(false));
        let failing = Arc::clone(&fails);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pass_on(client, Arc::clone(&failing)));
            }
        });
        Self { host, fails }
    }
}

async fn pass_on(client: TcpStream, fails: Arc<AtomicBool>) {
    let engine = UnixStream::connect("/var/run/docker.sock").await.unwrap();
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_engine, mut to_engine) = engine.into_split();
    let refused = async {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let read = from_client.read(&mut buffer).await.unwrap_or(0);
            let request = &buffer[..read];
            let lists = String::from_utf8_lossy(request).contains("/containers/json");
            if lists && fails.load(Ordering::Relaxed) {
                return true;
            }
            if read == 0 || to_engine.write_all(request).await.is_err() {
                return false;
            }
        }
    };
    let refused = tokio::select! {
        refused = refused => refused,
        _ = tokio::io::copy(&mut from_engine, &mut to_client) => false,
    };
    if refused {
        let body = r#"{"message":"no"}"#;
        let answer = format!(
            "HTTP/1.1 500 Internal Server Error\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n{body}",
            body.len()
        );
        to_client.write_all(answer.as_bytes()).await.unwrap();
    }
}

#[tokio::test]
async fn an_engine_that_fails_to_list_costs_the_pass_and_nothing_else() {
    needs_docker!();
    let engine = FlakyEngine::start().await;
    let worker = NewWorker::default().setting("DOCKER_HOST", &engine.host);
    let app = TestApp::build().workers([worker]).start().await;
    let orphan = up(&app, "orphan").await;
    engine.fails.store(true, Ordering::Relaxed);
    let silent = write_silent_directly(&app, "offline", "claude-code").await;
    delete_row_directly(&app, &orphan).await;
    for name in ["orphans", "stale-tokens"] {
        let report = run(&app, name).await;
        assert_eq!(
            (&report["acted"], &report["failed"]),
            (&json!(0), &json!(1))
        );
        let note = report["note"].as_str().unwrap();
        assert!(note.starts_with("pass skipped"), "{name}: {note}");
    }
    assert_eq!(app.engine().containers_of(&orphan).await.len(), 1);
    assert!(has_token(&app, &silent).await);
    engine.fails.store(false, Ordering::Relaxed);
    assert_eq!(run(&app, "orphans").await["failed"], 0);
    until_gone(&app, &orphan).await;
    assert_eq!(run(&app, "stale-tokens").await["failed"], 0);
    assert!(!has_token(&app, &silent).await);
}

/// A workspace of the worker's engine without a container, whose token was last used an hour ago.
async fn write_silent_directly(app: &TestApp, status: &str, runtime: &str) -> String {
    let token = random::token();
    sqlx::query_scalar(
        "WITH made AS (
             INSERT INTO workspaces (id, name, status, runtime, engine_id)
             SELECT gen_random_uuid(), 'silent', $1::workspace_status, $2, max(engine_id) FROM workers RETURNING id
         )
         INSERT INTO workspace_auth_tokens (workspace_id, token_hash, prefix, created_at)
         SELECT id, $3, $4, longshore_now() - interval '1 hour' FROM made RETURNING workspace_id::text",
    )
    .bind(status)
    .bind(runtime)
    .bind(&sha256(token.as_bytes())[..])
    .bind(&token[..8])
    .fetch_one(app.pool())
    .await
    .unwrap()
}

async fn has_token(app: &TestApp, id: &str) -> bool {
    sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM workspace_auth_tokens WHERE workspace_id = $1::uuid AND revoked_at IS NULL)",
    )
    .bind(id)
    .fetch_one(app.pool())
    .await
    .unwrap()
}

/// A control plane in which only the sweep under test changes workspaces.
async fn with_tokens_only() -> TestApp {
    let app = TestApp::start().await;
    for name in ["health", "liveness", "provision-timeout"] {
        disable(&app, name).await;
    }
    app
}

#[tokio::test]
async fn only_tokens_of_workspaces_that_lost_their_container_are_revoked() {
    needs_docker!();
    let app = with_tokens_only().await;
    let alive = up(&app, "alive").await;
    let mut expected = Vec::new();
    for (status, runtime, revoked) in [
        ("online", "claude-code", true),
        ("degraded", "claude-code", true),
        ("offline", "hermes", true),
        ("online", "external", false),
        ("offline", "external", false),
        ("provisioning", "claude-code", false),
        ("failed", "claude-code", false),
        ("paused", "claude-code", false),
        ("hibernated", "claude-code", false),
        ("hibernating", "claude-code", false),
        ("awaiting_agent", "claude-code", false),
        ("removed", "claude-code", false),
    ] {
        let id = write_silent_directly(&app, status, runtime).await;
        expected.push((id, format!("{runtime} {status}"), !revoked));
    }
    let used = write_silent_directly(&app, "offline", "claude-code").await;
    sqlx::query("UPDATE workspace_auth_tokens SET last_used_at = longshore_now() WHERE workspace_id = $1::uuid")
        .bind(&used)
        .execute(app.pool())
        .await
        .unwrap();
    expected.push((used, "lately used".to_owned(), true));
    let elsewhere = write_silent_directly(&app, "offline", "claude-code").await;
    sqlx::query("UPDATE workspaces SET engine_id = 'another' WHERE id = $1::uuid")
        .bind(&elsewhere)
        .execute(app.pool())
        .await
        .unwrap();
    expected.push((elsewhere, "of another engine".to_owned(), true));
    // Its container is there, so however long it is silent it keeps its token.
    sqlx::query("UPDATE workspace_auth_tokens SET created_at = longshore_now() - interval '1 hour', last_used_at = NULL WHERE workspace_id = $1::uuid")
        .bind(&alive)
        .execute(app.pool())
        .await
        .unwrap();
    expected.push((alive, "alive".to_owned(), true));

    run(&app, "stale-tokens").await;
    for (id, what, keeps) in expected {
        assert_eq!(has_token(&app, &id).await, keeps, "{what}");
    }
}

#[tokio::test]
async fn a_pass_that_would_destroy_too_much_waits_for_an_approval() {
    needs_docker!();
    let app = with_tokens_only().await;
    // Until the end of the test no other pass comes between.
    wait_until("the first pass", PATIENCE, || async {
        let seen = app.admin().get("/reconcilers/stale-tokens").await;
        if seen.status == 200 && seen.json()["last_pass"].is_object() {
            Ok(())
        } else {
            Err(seen.text())
        }
    })
    .await;
    let mut silent = Vec::new();
    for _ in 0..6 {
        silent.push(write_silent_directly(&app, "offline", "claude-code").await);
    }
    silent.sort();
    let report = run(&app, "stale-tokens").await;
    assert_eq!(
        (&report["acted"], &report["skipped"]),
        (&json!(0), &json!(6))
    );
    run(&app, "stale-tokens").await;
    let shown = app.admin().get("/reconcilers/stale-tokens").await.json();
    let blocked = &shown["blocked"];
    assert_eq!(
        (&blocked["wanted"], &blocked["budget"]),
        (&json!(silent), &json!(5))
    );
    assert!(
        blocked["since"].is_string() && blocked["reason"].is_string(),
        "{shown}"
    );
    let events: Vec<Value> = sqlx::query_scalar(
        "SELECT payload FROM structure_events WHERE event_type = 'RECONCILER_BLOCKED'",
    )
    .fetch_all(app.pool())
    .await
    .unwrap();
    assert_eq!(events.len(), 1, "told once: {events:?}");
    assert_eq!(
        (&events[0]["wanted"], &events[0]["count"]),
        (&json!(silent), &json!(6))
    );
    for id in &silent {
        assert!(has_token(&app, id).await);
    }
    let approve = "/reconcilers/stale-tokens/approve";
    let approved = app.admin().post(approve, &json!({})).await.expect(200);
    assert_eq!(approved["items"][0]["approved"], true);
    run(&app, "stale-tokens").await;
    wait_until(
        "the tokens to be revoked",
        Duration::from_secs(5),
        || async {
            for id in &silent {
                if has_token(&app, id).await {
                    return Err(id.clone());
                }
            }
            Ok(())
        },
    )
    .await;
    let shown = app.admin().get("/reconcilers/stale-tokens").await.json();
    assert_eq!(
        (&shown["blocked"], &shown["approved"]),
        (&Value::Null, &json!(false))
    );
    app.admin().post(approve, &json!({})).await.expect(409);
}
