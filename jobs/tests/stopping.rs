//! Stops against an engine that answers 500, in runs of the real job engine: how often, how far apart, and what is left.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on has failed"
)]

use std::collections::HashMap;
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use longshore_backends::{Docker, DockerConfig};
use longshore_base::pools::Pools;
use longshore_base::testing::TestDatabase;
use longshore_base::{Secret, WorkspaceId, ids, schema};
use longshore_jobs::stopping::{Running, Stop, StopPolicy, StopSource, Stopping};
use longshore_ledger::{
    Admitter, Backoff, Engine, EngineConfig, Executor, HintConfig, Hints, Jitter, JobError,
    KindSpec, Kinds, NewJob, Policy, Progress, RunContext, Verdict, cancel, enqueue,
};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

const KIND: &str = "stop-once";
const SOON: Duration = Duration::from_secs(30);

/// As much of an engine's API as a stop needs. Looking for the container fails so many times, then there is none.
struct FailingEngine {
    url: String,
    looks: Arc<Mutex<Vec<Instant>>>,
}

impl FailingEngine {
    async fn start(failures: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let engine = Self {
            url: format!("tcp://{}", listener.local_addr().unwrap()),
            looks: Arc::default(),
        };
        let looks = Arc::clone(&engine.looks);
        let failures = Arc::new(Mutex::new(failures));
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(answer(stream, Arc::clone(&looks), Arc::clone(&failures)));
            }
        });
        engine
    }

    fn looks(&self) -> Vec<Instant> {
        self.looks.lock().unwrap().clone()
    }
}

async fn answer(
    mut stream: TcpStream,
    looks: Arc<Mutex<Vec<Instant>>>,
    failures: Arc<Mutex<usize>>,
) {
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
            return;
        }
    }
    let text = String::from_utf8_lossy(&request).into_owned();
    let (status, body) = if text.contains("/version") {
        ("200 OK", r#"{"Version":"20.10","ApiVersion":"1.41"}"#)
    } else if text.contains("/info") {
        ("200 OK", r#"{"ID":"FAILING","NCPU":2}"#)
    } else {
        looks.lock().unwrap().push(Instant::now());
        let mut left = failures.lock().unwrap();
        if *left > 0 {
            *left -= 1;
            (
                "500 Internal Server Error",
                r#"{"message":"the disk is on fire"}"#,
            )
        } else {
            ("404 Not Found", r#"{"message":"no such container"}"#)
        }
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    // The client may be gone; then nobody waits for this.
    stream.write_all(head.as_bytes()).await.ok();
    stream.shutdown().await.ok();
}

/// Stops one workspace, once.
struct StopOnce {
    docker: Docker,
    running: Running,
    source: StopSource,
    /// That of the backend if there is none.
    policy: Option<StopPolicy>,
    outcome: Arc<Mutex<Vec<Stopping>>>,
}

#[async_trait]
impl Executor for StopOnce {
    async fn run(&self, ctx: &RunContext) -> Verdict {
        let policy = self.policy;
        let stop = Stop {
            ctx,
            backend: &self.docker,
            source: self.source,
            policy: policy.unwrap_or_else(|| StopPolicy::of(&self.docker, self.source)),
            progress: |step| Progress {
                step: step.to_owned(),
                ..Progress::default()
            },
        };
        let outcome = match stop.run(&self.running).await {
            Ok(outcome) => outcome,
            Err(error) => return Verdict::Permanent(JobError::new("the stop broke", &error)),
        };
        let verdict = match outcome {
            Stopping::Cancelled => ctx.stopped_verdict(),
            _ => Verdict::Done(None),
        };
        self.outcome.lock().unwrap().push(outcome);
        verdict
    }
}

/// What all of this writes to its log.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn listen() -> Self {
        let log = Self::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .json()
            .with_writer(move || writer.clone())
            .finish();
        // One for the process: the job engine's tasks are on other threads. Tests have a process each.
        tracing::subscriber::set_global_default(subscriber).expect("a process of its own");
        log
    }

    fn lines_saying(&self, words: &str) -> Vec<Value> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        let lines = text.lines().filter(|line| line.contains(words));
        lines
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

struct Rig {
    database: TestDatabase,
    engine: Engine,
    kinds: Kinds,
    admitter: Admitter,
    running: Running,
    outcome: Arc<Mutex<Vec<Stopping>>>,
}

impl Rig {
    async fn start(docker: &str, source: StopSource, policy: Option<StopPolicy>) -> Self {
        let database = TestDatabase::create(&schema::MIGRATOR).await;
        let pools = Pools {
            control: database.pool().clone(),
            work: database.pool().clone(),
        };
        let redis = std::env::var("TEST_REDIS_URL");
        let hints = Hints::new(&HintConfig {
            url: Secret::new(redis.unwrap_or_else(|_| "redis://127.0.0.1:63790".into())),
            prefix: format!("test:{}:", ids::random_uuid().simple()),
        })
        .unwrap();
        let admitter = Admitter::new(
            pools.control.clone(),
            hints.clone(),
            CancellationToken::new(),
        );
        let kinds = Kinds::default().with(KindSpec {
            name: KIND,
            args_versions: &[1],
            policy: Policy {
                max_attempts: 1,
                backoff: Backoff {
                    base: Duration::from_secs(1),
                    cap: Duration::from_secs(1),
                    jitter: Jitter::None,
                },
                timeout: Duration::from_secs(60),
                deadline: Duration::from_secs(3600),
                concurrency: 1,
            },
            hooks: None,
        });
        let running = Running {
            workspace_id: WorkspaceId::random(),
            generation: 1,
            container_id: Some("c0ffee".into()),
            instance_id: None,
            engine_id: Some("FAILING".into()),
        };
        let outcome = Arc::default();
        let executor = StopOnce {
            docker: Docker::connect(DockerConfig {
                host: Some(docker.to_owned()),
                ..DockerConfig::new(ids::random_uuid())
            })
            .unwrap(),
            running: running.clone(),
            source,
            policy,
            outcome: Arc::clone(&outcome),
        };
        let executors: HashMap<&'static str, Arc<dyn Executor>> =
            HashMap::from([(KIND, Arc::new(executor) as Arc<dyn Executor>)]);
        let engine = Engine::start(
            EngineConfig::default(),
            pools,
            kinds.clone(),
            executors,
            (hints, admitter.clone()),
            &[(KIND.to_owned(), KIND)],
        )
        .await
        .unwrap();
        Self {
            database,
            engine,
            kinds,
            admitter,
            running,
            outcome,
        }
    }

    async fn request(&self) -> longshore_base::JobId {
        let job = NewJob {
            kind: KIND,
            queue: KIND.to_owned(),
            tenant: "tenant".into(),
            workspace_id: Some(self.running.workspace_id),
            keys: Vec::new(),
            dedupe_key: None,
            args: serde_json::json!({}),
            args_version: 1,
            priority: 0,
            delay: Duration::ZERO,
            deadline: Duration::from_secs(3600),
            max_attempts: 1,
            created_by: "test".into(),
        };
        let mut tx = self.database.pool().begin().await.unwrap();
        let enqueued = enqueue(&mut tx, job).await.unwrap();
        tx.commit().await.unwrap();
        self.admitter.poke(&enqueued.queue);
        enqueued.job_id
    }

    /// Runs one stop to its end.
    async fn stop(&self) -> Stopping {
        let before = self.outcome.lock().unwrap().len();
        self.request().await;
        until("the stop to end", || {
            self.outcome.lock().unwrap().get(before).cloned()
        })
        .await
    }

    async fn leaks(&self) -> Vec<(String, String, String, i32, String)> {
        sqlx::query_as(
            "SELECT source, resource, resource_id, attempts, state FROM leaks ORDER BY found_at",
        )
        .fetch_all(self.database.pool())
        .await
        .unwrap()
    }

    async fn events(&self) -> Vec<(String, Value)> {
        sqlx::query_as("SELECT event_type, payload FROM structure_events ORDER BY created_at, id")
            .fetch_all(self.database.pool())
            .await
            .unwrap()
    }
}

async fn until<T>(what: &str, look: impl Fn() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(began.elapsed() < SOON, "waited for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// How far apart they were, in whole seconds.
fn gaps(looks: &[Instant]) -> Vec<u64> {
    looks
        .windows(2)
        .map(|pair| pair[1].duration_since(pair[0]).as_secs())
        .collect()
}

const PATIENT: Option<StopPolicy> = Some(StopPolicy::PATIENT);

#[tokio::test]
async fn what_stops_at_once_is_asked_once() {
    let engine = FailingEngine::start(0).await;
    let rig = Rig::start(&engine.url, StopSource::Restart, PATIENT).await;
    assert_eq!(rig.stop().await, Stopping::Stopped);
    assert_eq!(engine.looks().len(), 1);
    assert!(rig.leaks().await.is_empty() && rig.events().await.is_empty());
}

#[tokio::test]
async fn a_stop_that_succeeds_later_leaves_nothing() {
    let log = Log::listen();
    let engine = FailingEngine::start(2).await;
    let rig = Rig::start(&engine.url, StopSource::Restart, PATIENT).await;
    assert_eq!(rig.stop().await, Stopping::Stopped);
    let gaps = gaps(&engine.looks());
    assert!(gaps.len() == 2 && gaps[0] >= 1 && gaps[1] >= 2, "{gaps:?}");
    assert!(rig.leaks().await.is_empty() && rig.events().await.is_empty());
    assert!(log.lines_saying("LEAK-SUSPECT").is_empty());
}

#[tokio::test]
async fn a_stop_that_fails_three_times_is_told_of_once_and_forgotten_when_it_succeeds() {
    let log = Log::listen();
    let engine = FailingEngine::start(6).await;
    let rig = Rig::start(&engine.url, StopSource::AutoRestart, PATIENT).await;
    let left = Stopping::Left("the container engine failed".into());
    assert_eq!(rig.stop().await, left);
    // No wait and no attempt after the last one.
    assert_eq!(engine.looks().len(), 3);
    let lines = log.lines_saying("LEAK-SUSPECT");
    assert_eq!(lines.len(), 1, "{lines:?}");
    let fields = &lines[0]["fields"];
    assert_eq!(fields["workspace_id"], rig.running.workspace_id.to_string());
    assert_eq!(fields["source"], "auto-restart");
    assert_eq!(fields["attempts"], 3);
    assert_eq!(fields["resource_id"], "c0ffee");
    let told = fields["last_error"].as_str().unwrap();
    assert!(told.contains("the disk is on fire"), "{told}");
    let row = |attempts, state: &str| {
        let texts = ["auto-restart", "container", "c0ffee"].map(str::to_owned);
        let [source, resource, id] = texts;
        vec![(source, resource, id, attempts, state.to_owned())]
    };
    assert_eq!(rig.leaks().await, row(3, "suspected"));
    let events = rig.events().await;
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].0, "LEAK_SUSPECTED");
    assert_eq!(events[0].1["resource_id"], "c0ffee");

    // The same thing again is the same row; what stops in the end closes it.
    assert_eq!(rig.stop().await, left);
    assert_eq!(rig.leaks().await, row(6, "suspected"));
    assert_eq!(rig.events().await.len(), 1);
    assert_eq!(rig.stop().await, Stopping::Stopped);
    assert_eq!(rig.leaks().await, row(6, "gone"));
    assert_eq!(rig.events().await[1].0, "LEAK_RESOLVED");
}

#[tokio::test]
async fn a_stop_that_is_cancelled_between_attempts_leaves_at_once_and_is_no_leak() {
    let log = Log::listen();
    let engine = FailingEngine::start(100).await;
    // More attempts than anybody makes, for a wait that is long enough to be cancelled on a busy machine.
    let policy = StopPolicy {
        attempts: 5,
        records: true,
    };
    let rig = Rig::start(&engine.url, StopSource::Pause, Some(policy)).await;
    let job = rig.request().await;
    until("the third attempt to fail", || {
        (engine.looks().len() == 3).then_some(())
    })
    .await;
    let mut tx = rig.database.pool().begin().await.unwrap();
    cancel(&mut tx, &rig.kinds, job, "test", None)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    rig.admitter.poke_cancels();
    let outcome = until("the stop to end", || {
        rig.outcome.lock().unwrap().first().cloned()
    })
    .await;
    assert_eq!(outcome, Stopping::Cancelled);
    assert_eq!(engine.looks().len(), 3);
    let lines = log.lines_saying("STOP-CANCELLED");
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!(lines[0]["fields"]["source"], "pause");
    assert!(log.lines_saying("LEAK-SUSPECT").is_empty());
    assert!(rig.leaks().await.is_empty());
    rig.engine.stop(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn an_engine_whose_start_replaces_what_is_left_is_asked_once_and_only_a_pause_is_a_leak() {
    let engine = FailingEngine::start(100).await;
    for (source, leaks) in [
        (StopSource::Restart, 0),
        (StopSource::AutoRestart, 0),
        (StopSource::Pause, 1),
        (StopSource::Hibernate, 1),
        (StopSource::Purge, 1),
        (StopSource::Sweep, 1),
    ] {
        let before = engine.looks().len();
        let rig = Rig::start(&engine.url, source, None).await;
        let outcome = rig.stop().await;
        assert!(
            matches!(outcome, Stopping::Left(_)),
            "{source:?}: {outcome:?}"
        );
        assert_eq!(engine.looks().len() - before, 1, "{source:?}");
        assert_eq!(rig.leaks().await.len(), leaks, "{source:?}");
    }
}
