//! The whole on one machine, by one command, with the engine of the machine.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use longshore_tests::{Caller, Engine, PATIENCE, Process, longshore, needs_docker, wait_until};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use sqlx::{ConnectOptions as _, postgres::PgConnectOptions};

/// Starting what is private takes longer than everything else.
const STARTED: Duration = Duration::from_secs(60);
const SOON: Duration = Duration::from_secs(5);
const STOPPED: Duration = Duration::from_secs(10);

/// A machine with nothing but the engine: an empty data directory, and what was started on it.
struct Machine {
    data: tempfile::TempDir,
    logs: tempfile::TempDir,
    up: Option<Process>,
    engine: Option<Engine>,
    /// Where it says that the engine is, though nothing is there.
    no_engine: Option<&'static str>,
}

impl Machine {
    fn new() -> Self {
        let data = tempfile::tempdir().unwrap();
        // Postgres' user must get through.
        std::fs::set_permissions(data.path(), Permissions::from_mode(0o755)).unwrap();
        Self {
            data,
            logs: tempfile::tempdir().unwrap(),
            up: None,
            engine: None,
            no_engine: None,
        }
    }

    fn without_engine(address: &'static str) -> Self {
        let mut machine = Self::new();
        machine.no_engine = Some(address);
        machine
    }

    fn data(&self) -> std::path::PathBuf {
        self.data.path().join("data")
    }

    /// `longshore up`, until it serves. Answers the operator.
    async fn up(&mut self, name: &str) -> Caller {
        let mut command: Command = longshore();
        command
            .args(["up", "--listen", "127.0.0.1:0", "--metrics-listen", "none"])
            .args(["--docker-network", Engine::network(), "--data"])
            .arg(self.data())
            .arg("--agent-binary")
            .arg(longshore_tests::agent_binary())
            .current_dir(self.logs.path());
        if let Some(nowhere) = self.no_engine {
            command.env("DOCKER_HOST", nowhere);
        }
        let address = self.data().join("address");
        std::fs::remove_file(&address).ok();
        self.up = Some(Process::start(name, &mut command, self.logs.path()));
        let read = |path: &Path| std::fs::read_to_string(path).map(|text| text.trim().to_owned());
        let base = wait_until("`longshore up` to serve", STARTED, || async {
            read(&address).map_err(|error| error.to_string())
        })
        .await;
        let token = read(&self.data().join("admin-token")).unwrap();
        if self.engine.is_none() && self.no_engine.is_none() {
            let url = read(&self.data().join("database-url")).unwrap();
            let options: PgConnectOptions = url.parse().unwrap();
            let mut connection = options.connect().await.unwrap();
            let installation = sqlx::query_scalar("SELECT id FROM installation")
                .fetch_one(&mut connection)
                .await
                .unwrap();
            self.engine = Some(Engine::prepare(installation).await);
        }
        Caller::at(&base, Some(&token))
    }

    async fn down(&mut self) {
        let mut up = self.up.take().unwrap();
        let began = Instant::now();
        up.signal(Signal::SIGTERM);
        let status = up.ended(STOPPED).await;
        assert!(status.success(), "{status}");
        println!("`longshore up` stopped after {:?}", began.elapsed());
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // In the orderly way: its Postgres and Redis are children of its, not ours.
        if let Some(up) = &mut self.up {
            up.end(Signal::SIGTERM, STOPPED);
        }
        if let Some(engine) = &self.engine {
            engine.remove_everything_blocking(std::thread::panicking());
        }
    }
}

async fn is_online(admin: &Caller, id: &str, deadline: Duration) -> Value {
    wait_until("the workspace to be online", deadline, || async {
        let workspace = admin.get(&format!("/workspaces/{id}")).await.expect(200);
        // Until the worker has written down where the container is, the address is the agent's own word.
        let known = workspace["url"]
            .as_str()
            .is_some_and(|url| url.starts_with("http://127.0.0.1:"));
        if workspace["status"] == "online" && known {
            Ok(workspace)
        } else {
            Err(workspace.to_string())
        }
    })
    .await
}

#[tokio::test]
async fn one_command_one_post_and_an_agent_answers_also_after_a_restart() {
    needs_docker!();
    let mut machine = Machine::new();
    let admin = machine.up("first").await;
    let body = json!({ "name": "hello" });
    let created = admin.post("/workspaces", &body).await.expect(201);
    let id = created["id"].as_str().unwrap().to_owned();
    let first = is_online(&admin, &id, SOON).await;
    let message = json!({ "method": "message/send", "params": { "message": {
        "role": "user", "parts": [{ "kind": "text", "text": "are you there?" }]
    } } });
    let path = format!("/workspaces/{id}/a2a");
    let echo = admin.post(&path, &message).await.expect(200);
    assert!(echo.to_string().contains("are you there?"), "{echo}");

    machine.down().await;
    let containers = machine.engine.as_ref().unwrap().containers_of(&id).await;
    assert_eq!(containers.len(), 1);
    assert_eq!(containers[0].state, "running", "workspaces keep running");

    let admin = machine.up("second").await;
    let second = is_online(&admin, &id, PATIENCE).await;
    assert_eq!(second["url"], first["url"]);
    let echo = admin.post(&path, &message).await.expect(200);
    assert!(echo.to_string().contains("are you there?"), "{echo}");
    let engine = machine.engine.as_ref().unwrap();
    assert_eq!(
        engine.containers_of(&id).await,
        containers,
        "adopted as it was"
    );
    machine.down().await;
}

#[tokio::test]
async fn without_an_engine_it_says_so_and_what_never_ran_is_deleted() {
    let nowhere = "unix:///no/such/docker.sock";
    let mut machine = Machine::without_engine(nowhere);
    let admin = machine.up("alone").await;
    let report = wait_until("the rest to be well", PATIENCE, || async {
        let report = admin.get("/readyz?verbose").await.expect(200);
        if report["degraded"] == json!(["container_engine"]) {
            Ok(report)
        } else {
            Err(report.to_string())
        }
    })
    .await;
    assert_eq!(report["status"], "degraded");
    let parts = report["parts"].as_array().unwrap();
    let engine = parts.iter().find(|part| part["name"] == "container_engine");
    let engine = engine.unwrap();
    assert_eq!(engine["mode"], "down");
    let detail = engine["detail"].as_str().unwrap();
    assert!(detail.contains(nowhere), "{detail}");

    let created = admin
        .post("/workspaces", &json!({ "name": "hopeless" }))
        .await
        .expect(201);
    let path = format!("/workspaces/{}", created["id"].as_str().unwrap());
    wait_until("the workspace to fail", PATIENCE, || async {
        let workspace = admin.get(&path).await.expect(200);
        if workspace["status"] == "failed" {
            Ok(())
        } else {
            Err(workspace.to_string())
        }
    })
    .await;
    let deleted = admin.delete(&path).await.expect(200);
    assert_eq!(
        deleted,
        json!({ "status": "removed", "cascade_deleted": 0 })
    );
    machine.down().await;
}
