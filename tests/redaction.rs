//! Secrets are planted, a fleet lives and dies with them, and then they are looked for everywhere but where they belong.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use bollard::query_parameters::{InspectContainerOptions, InspectContainerOptionsBuilder};
use longshore_base::random;
use longshore_tests::{PATIENCE, TestApp, needs_docker, wait_until};
use serde_json::{Value, json};

/// What is not in any text by accident, and is written otherwise by JSON, in URLs and in base64.
fn planted(name: &str) -> String {
    format!("{name} \"{}\" \\/+&=é", random::token())
}

/// Everything that was seen, by where.
#[derive(Default)]
struct Seen(BTreeMap<String, String>);

impl Seen {
    fn add(&mut self, place: &str, text: &str) {
        let seen = self.0.entry(place.to_owned()).or_default();
        seen.push_str(text);
        seen.push('\n');
    }

    /// Each hit: which secret, how it is written, where.
    fn hits(&self, secrets: &BTreeMap<&str, String>) -> Vec<String> {
        let mut hits = Vec::new();
        for (name, secret) in secrets {
            for (form, text) in forms(secret) {
                for (place, seen) in &self.0 {
                    if let Some(at) = seen.find(&text) {
                        let before = seen[..at].chars().rev().take(80).collect::<Vec<_>>();
                        let before: String = before.into_iter().rev().collect();
                        hits.push(format!("{name} ({form}) in {place}, after: {before}"));
                    }
                }
            }
        }
        hits
    }
}

fn forms(secret: &str) -> Vec<(&'static str, String)> {
    let json = json!(secret).to_string();
    let encoded = |space: &str| {
        let bytes = secret.bytes().map(|byte| match byte {
            b' ' => space.to_owned(),
            b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
            byte if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
            byte => format!("%{byte:02X}"),
        });
        bytes.collect::<String>()
    };
    let twice = json!(json[1..json.len() - 1]).to_string();
    vec![
        ("raw", secret.to_owned()),
        ("JSON", json[1..json.len() - 1].to_owned()),
        ("JSON in JSON", twice[1..twice.len() - 1].to_owned()),
        ("URL", encoded("%20")),
        ("form", encoded("+")),
        ("URL, lower case", encoded("%20").to_lowercase()),
        ("base64", STANDARD.encode(secret)),
        ("base64 without padding", STANDARD_NO_PAD.encode(secret)),
        ("base64 for URLs", URL_SAFE.encode(secret)),
        (
            "base64 for URLs without padding",
            URL_SAFE_NO_PAD.encode(secret),
        ),
        ("hex", hex::encode(secret)),
    ]
}

/// Every row of every table, bytes as hex.
async fn dump_database(app: &TestApp, seen: &mut Seen) {
    let tables: Vec<String> = sqlx::query_scalar(
        "SELECT quote_ident(relname) FROM pg_class
         WHERE relkind IN ('r', 'p') AND NOT relispartition AND relnamespace = 'public'::regnamespace",
    )
    .fetch_all(app.pool())
    .await
    .unwrap();
    assert!(tables.len() > 15, "{tables:?}");
    for table in tables {
        let sql = sqlx::AssertSqlSafe(format!("SELECT to_jsonb(t)::text FROM {table} AS t"));
        let rows: Vec<String> = sqlx::query_scalar(sql).fetch_all(app.pool()).await.unwrap();
        for row in rows {
            seen.add(&format!("table {table}"), &row);
        }
    }
}

async fn dump_redis(app: &mut TestApp, seen: &mut Seen) {
    let client = redis::Client::open(app.redis().url()).unwrap();
    let mut link = client.get_multiplexed_async_connection().await.unwrap();
    let keys: Vec<String> = redis::cmd("KEYS")
        .arg("*")
        .query_async(&mut link)
        .await
        .unwrap();
    assert!(!keys.is_empty());
    for key in keys {
        let kind: String = redis::cmd("TYPE")
            .arg(&key)
            .query_async(&mut link)
            .await
            .unwrap();
        let (command, more): (&str, &[&str]) = match kind.as_str() {
            "string" => ("GET", &[]),
            "stream" => ("XRANGE", &["-", "+"]),
            "hash" => ("HGETALL", &[]),
            "list" => ("LRANGE", &["0", "-1"]),
            "set" => ("SMEMBERS", &[]),
            "zset" => ("ZRANGE", &["0", "-1"]),
            // It has expired in between.
            "none" => continue,
            other => panic!("{key} is a {other}"),
        };
        let value: redis::Value = redis::cmd(command)
            .arg(&key)
            .arg(more)
            .query_async(&mut link)
            .await
            .unwrap();
        let mut text = key.clone();
        write_value(&value, &mut text);
        seen.add("Redis", &text);
    }
}

fn write_value(value: &redis::Value, text: &mut String) {
    match value {
        redis::Value::BulkString(bytes) => {
            text.push(' ');
            text.push_str(&String::from_utf8_lossy(bytes));
        }
        redis::Value::SimpleString(simple) => text.push_str(simple),
        redis::Value::Array(values) | redis::Value::Set(values) => {
            values.iter().for_each(|value| write_value(value, text));
        }
        redis::Value::Map(pairs) => pairs.iter().for_each(|(key, value)| {
            write_value(key, text);
            write_value(value, text);
        }),
        _ => {}
    }
}

/// What every route that shows something answers.
async fn read_everything(app: &TestApp, workspaces: &[&str], seen: &mut Seen) {
    let mut paths: Vec<String> = [
        "/workspaces",
        "/jobs?limit=500",
        "/events",
        "/queues",
        "/workers",
        "/holds",
        "/settings/secrets",
        "/org/tokens",
        "/metrics",
        "/readyz?verbose",
    ]
    .map(str::to_owned)
    .to_vec();
    for id in workspaces {
        paths.push(format!("/workspaces/{id}?include_removed=true"));
        paths.push(format!("/events/{id}"));
        for part in [
            "secrets",
            "tokens",
            "jobs",
            "model",
            "provider",
            "logs?tail=10000",
        ] {
            paths.push(format!("/workspaces/{id}/{part}"));
        }
    }
    let jobs = app.admin().get("/jobs?limit=500").await.expect(200);
    for job in jobs["items"].as_array().unwrap() {
        paths.push(format!("/jobs/{}", job["id"].as_str().unwrap()));
    }
    for path in paths {
        let answer = app.admin().get(&path).await;
        assert!(
            answer.status < 500 || answer.status == 503,
            "{path}: {}",
            answer.text()
        );
        seen.add(&format!("GET {path}"), &answer.text());
    }
}

/// What the engine says of the containers, but for the environment, which is how an agent gets its secrets.
async fn inspect_containers(app: &TestApp, seen: &mut Seen) -> usize {
    let containers = app.engine().containers().await;
    for container in &containers {
        let options: InspectContainerOptions =
            InspectContainerOptionsBuilder::new().size(false).build();
        let inspected = app
            .engine()
            .docker()
            .inspect_container(&container.id, Some(options))
            .await
            .unwrap();
        let mut inspected = serde_json::to_value(&inspected).unwrap();
        let environment = inspected["Config"]["Env"].take();
        assert!(environment.is_array(), "{inspected}");
        seen.add("docker inspect", &inspected.to_string());
    }
    containers.len()
}

#[tokio::test]
async fn planted_secrets_are_nowhere_but_in_the_environment_of_their_agents() {
    needs_docker!();
    let mut app = TestApp::build()
        .own_redis()
        .setting("LONGSHORE_LOG", "debug")
        .start()
        .await;
    let mut secrets = BTreeMap::from([
        ("at create", planted("at create")),
        ("set later", planted("set later")),
        ("global", planted("global")),
        ("of the failing", planted("of the failing")),
    ]);
    let mut seen = Seen::default();
    let body = json!({ "secrets": { "PLANTED": secrets["at create"] } });
    let shared = json!({ "key": "SHARED", "value": secrets["global"] });
    let answer = app.admin().put("/settings/secrets", &shared).await;
    seen.add("answers", &answer.text());
    let (up, _) = app.create("keeper", body).await;
    app.until_up(&up, PATIENCE).await;
    // An agent writes down what it does not understand, so this one stands in its log; it goes no further.
    let body = json!({ "secrets": { "AGENT_ERROR_RATE": secrets["at create"] } });
    let (talker, _) = app.create("talker", body).await;
    let later = json!({ "key": "LATER", "value": secrets["set later"] });
    let path = format!("/workspaces/{up}/secrets");
    let answer = app.admin().post(&path, &later).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    seen.add("answers", &answer.text());
    let restart = answer.json()["job_id"].as_str().unwrap().to_owned();
    app.until_job(&restart, "succeeded", PATIENCE).await;
    app.until_up(&up, PATIENCE).await;
    // What is wrong with a request is told without it.
    for bad in [
        json!({ "key": secrets["set later"], "value": 5 }),
        json!({ "key": "TIER", "value": secrets["set later"] }),
        json!([secrets["set later"]]),
    ] {
        let answer = app.admin().post(&path, &bad).await;
        assert_eq!(answer.status, 400, "{}", answer.text());
        seen.add("answers", &answer.text());
    }
    wait_until("the agent to complain", PATIENCE, || async {
        let answer = app.admin().get(&format!("/workspaces/{talker}/logs")).await;
        let text = answer.text();
        text.contains("AGENT_ERROR_RATE").then_some(()).ok_or(text)
    })
    .await;
    read_everything(&app, &[&up, &talker], &mut seen).await;
    dump_redis(&mut app, &mut seen).await;
    assert!(inspect_containers(&app, &mut seen).await > 0);

    // One that cannot start: its secrets reach the engine's refusal.
    let body = json!({ "secrets": { "ITS": secrets["of the failing"] }, "runtime": "hermes" });
    let (failing, _) = create_failing(&mut app, body).await;
    app.until_status(&failing, "failed", PATIENCE).await;
    inspect_containers(&app, &mut seen).await;
    for id in [&up, &talker, &failing] {
        let answer = app.admin().delete(&format!("/workspaces/{id}")).await;
        assert!(matches!(answer.status, 200 | 202), "{}", answer.text());
        seen.add("answers", &answer.text());
    }
    wait_until("the containers to be gone", PATIENCE, || async {
        let left = app.engine().containers().await;
        if left.is_empty() {
            Ok(())
        } else {
            Err(format!("{left:?}"))
        }
    })
    .await;
    read_everything(&app, &[&up, &talker, &failing], &mut seen).await;
    dump_redis(&mut app, &mut seen).await;
    dump_database(&app, &mut seen).await;
    for process in app.workers.iter().chain([&app.api]) {
        seen.add("logs", &process.log());
    }
    secrets.insert("the admin's token", app.admin().token().unwrap().to_owned());
    let hits = seen.hits(&secrets);
    assert!(hits.is_empty(), "{}", hits.join("\n"));
}

/// A worker whose image for this runtime is none takes over, and a workspace is created for it.
async fn create_failing(app: &mut TestApp, body: Value) -> (String, String) {
    use longshore_tests::NewWorker;
    let broken = NewWorker::default().setting(
        "LONGSHORE_RUNTIME_IMAGES",
        "hermes=longshore.invalid/none:v1",
    );
    app.workers[0].signal(nix::sys::signal::Signal::SIGTERM);
    app.workers[0].ended(PATIENCE).await;
    let worker = app.start_worker(broken).await;
    app.workers.push(worker);
    app.create("doomed", body).await
}
