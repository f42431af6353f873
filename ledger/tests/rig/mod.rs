//! An engine of its own for every test: database, Redis prefix, test kinds.

mod lossy;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use longshore_base::testing::TestDatabase;
use longshore_base::{JobId, Secret, ids, pools::Pools, schema};
use longshore_ledger::{
    Admitter, Backoff, Engine, EngineConfig, Executor, HintConfig, Hints, HookError, Hooks, Jitter,
    JobError, KindSpec, Kinds, NewJob, Policy, Revival, RunContext, TerminalJob, Verdict, enqueue,
    enqueue_many, inspect,
};
use sqlx::postgres::PgPoolOptions;
use sqlx::{PgConnection, PgPool};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// What the test kind does when it runs.
#[derive(Clone, Copy)]
pub(crate) enum Behaviour {
    Done,
    Record(Duration),
    Gate,
    GateThenFail,
    Fail(fn() -> Verdict),
    SnoozeOnce(Duration),
    Panic,
}

pub(crate) struct Span {
    pub(crate) id: JobId,
    pub(crate) start: Instant,
    pub(crate) end: Instant,
}

struct TestExecutor {
    behaviour: Behaviour,
    gate: Arc<(AtomicBool, Notify)>,
    spans: Arc<Mutex<Vec<Span>>>,
    runs: Arc<AtomicUsize>,
}

#[async_trait]
impl Executor for TestExecutor {
    async fn run(&self, ctx: &RunContext) -> Verdict {
        self.runs.fetch_add(1, Ordering::SeqCst);
        let start = Instant::now();
        match self.behaviour {
            Behaviour::Done => {}
            Behaviour::Record(time) => tokio::time::sleep(time).await,
            Behaviour::Gate | Behaviour::GateThenFail => {
                while !self.gate.0.load(Ordering::SeqCst) {
                    tokio::select! {
                        () = self.gate.1.notified() => {}
                        () = ctx.stopping() => return ctx.stopped_verdict(),
                    }
                }
                if matches!(self.behaviour, Behaviour::GateThenFail) {
                    return Verdict::Retry(JobError::plain("no luck"));
                }
            }
            Behaviour::Fail(verdict) => return verdict(),
            Behaviour::SnoozeOnce(wait) => {
                if self.runs.load(Ordering::SeqCst) == 1 {
                    return Verdict::Snooze(wait, "not yet".into());
                }
            }
            Behaviour::Panic => panic!("as asked"),
        }
        self.spans.lock().unwrap().push(Span {
            id: ctx.job().id,
            start,
            end: Instant::now(),
        });
        Verdict::Done(Some(serde_json::json!({ "ran": true })))
    }
}

#[derive(Default)]
struct TestHooks(Mutex<Vec<(JobId, &'static str)>>);

#[async_trait]
impl Hooks for TestHooks {
    async fn on_terminal(&self, _: &mut PgConnection, job: &TerminalJob) -> Result<(), HookError> {
        self.0.lock().unwrap().push((job.id, job.outcome.as_str()));
        Ok(())
    }

    async fn on_retry(
        &self,
        _: &mut PgConnection,
        job: &TerminalJob,
    ) -> Result<Revival, HookError> {
        Ok(if job.args["final"] == true {
            Revival::Refused("it was final".into())
        } else {
            Revival::Allowed
        })
    }
}

pub(crate) struct Rig {
    database: TestDatabase,
    pub(crate) kinds: Kinds,
    engine: Option<Engine>,
    admitter: Admitter,
    hints: Hints,
    pools: Pools,
    prefix: String,
    gate: Arc<(AtomicBool, Notify)>,
    spans: Arc<Mutex<Vec<Span>>>,
    runs: Arc<AtomicUsize>,
    hooks: Arc<TestHooks>,
    behaviour: Behaviour,
    /// Of the engines that are started from here on.
    pub(crate) config: EngineConfig,
}

fn redis_url() -> String {
    std::env::var("TEST_REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1:63790".into())
}

impl Rig {
    pub(crate) async fn start(behaviour: Behaviour) -> Self {
        Self::build(behaviour, redis_url(), 10).await
    }

    /// With so many runs at once.
    pub(crate) async fn with_slots(behaviour: Behaviour, slots: usize) -> Self {
        Self::build(behaviour, redis_url(), slots).await
    }

    pub(crate) async fn start_hooked(behaviour: Behaviour) -> Self {
        Self::start(behaviour).await
    }

    pub(crate) async fn without_redis(behaviour: Behaviour) -> Self {
        Self::with_redis(behaviour, "redis://127.0.0.1:1").await
    }

    pub(crate) async fn with_redis(behaviour: Behaviour, url: &str) -> Self {
        Self::build(behaviour, url.to_owned(), 10).await
    }

    /// The first answer of Postgres to the engine that contains these words does not arrive.
    pub(crate) async fn losing_an_answer(behaviour: Behaviour, words: &'static str) -> Self {
        let database = TestDatabase::create(&schema::MIGRATOR).await;
        let server = database.pool().connect_options();
        let port = lossy::forward(server.get_host(), server.get_port(), words).await;
        let through = (*server).clone().host("127.0.0.1").port(port);
        let control = PgPoolOptions::new().connect_lazy_with(through);
        Self::build_on(database, control, (behaviour, redis_url(), 10)).await
    }

    async fn build(behaviour: Behaviour, redis: String, slots: usize) -> Self {
        let database = TestDatabase::create(&schema::MIGRATOR).await;
        let control = database.pool().clone();
        Self::build_on(database, control, (behaviour, redis, slots)).await
    }

    async fn build_on(
        database: TestDatabase,
        control: PgPool,
        (behaviour, redis, slots): (Behaviour, String, usize),
    ) -> Self {
        let pools = Pools {
            control,
            work: database.pool().clone(),
        };
        let prefix = format!("test:{}:", ids::random_uuid().simple());
        let hints = Hints::new(&HintConfig {
            url: Secret::new(redis),
            prefix: prefix.clone(),
        })
        .unwrap();
        let admitter = Admitter::new(
            pools.control.clone(),
            hints.clone(),
            CancellationToken::new(),
        );
        let hooks = Arc::new(TestHooks::default());
        let policy = Policy {
            max_attempts: 3,
            backoff: Backoff {
                base: Duration::from_millis(20),
                cap: Duration::from_millis(100),
                jitter: Jitter::Full,
            },
            timeout: Duration::from_secs(20),
            deadline: Duration::from_secs(24 * 3600),
            concurrency: slots,
        };
        let kinds = Kinds::default()
            .with(KindSpec {
                name: "test",
                args_versions: &[1],
                policy,
                hooks: None,
            })
            .with(KindSpec {
                name: "hooked",
                args_versions: &[1],
                policy,
                hooks: Some(hooks.clone()),
            });
        let mut rig = Self {
            database,
            kinds,
            engine: None,
            admitter,
            hints,
            pools,
            prefix,
            gate: Arc::default(),
            spans: Arc::default(),
            runs: Arc::default(),
            hooks,
            behaviour,
            config: EngineConfig::default(),
        };
        rig.start_again().await;
        rig
    }

    pub(crate) async fn start_again(&mut self) {
        let executor: Arc<dyn Executor> = Arc::new(TestExecutor {
            behaviour: self.behaviour,
            gate: self.gate.clone(),
            spans: self.spans.clone(),
            runs: self.runs.clone(),
        });
        let executors = HashMap::from([("test", executor.clone()), ("hooked", executor)]);
        let engine = Engine::start(
            self.config.clone(),
            self.pools.clone(),
            self.kinds.clone(),
            executors,
            (self.hints.clone(), self.admitter.clone()),
            &[("test".into(), "test"), ("hooked".into(), "hooked")],
        )
        .await
        .unwrap();
        self.engine = Some(engine);
    }

    pub(crate) async fn stop(&mut self, grace: Duration) {
        self.engine.take().unwrap().stop(grace).await;
    }

    pub(crate) fn pool(&self) -> &PgPool {
        self.database.pool()
    }

    pub(crate) async fn advance(&self, by: Duration) {
        self.database.advance(by).await;
    }

    pub(crate) async fn enqueue(&self, job: NewJob) -> JobId {
        let mut tx = self.pool().begin().await.unwrap();
        let enqueued = enqueue(&mut tx, job).await.unwrap();
        tx.commit().await.unwrap();
        self.admitter.poke(&enqueued.queue);
        enqueued.job_id
    }

    /// Several at once, in one transaction.
    pub(crate) async fn enqueue_all(&self, template: &NewJob, keys: &[String]) -> Vec<JobId> {
        let mut tx = self.pool().begin().await.unwrap();
        let ids = enqueue_many(&mut tx, template, keys).await.unwrap();
        tx.commit().await.unwrap();
        self.admitter.poke(&template.queue);
        ids
    }

    pub(crate) fn poke(&self, queue: &str) {
        self.admitter.poke(queue);
    }

    pub(crate) fn poke_cancels(&self) {
        self.admitter.poke_cancels();
    }

    /// A number from the database.
    pub(crate) async fn count(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql)
            .fetch_one(self.pool())
            .await
            .unwrap()
    }

    pub(crate) async fn enqueue_many(&self, keys: &[String]) -> Vec<JobId> {
        let mut tx = self.pool().begin().await.unwrap();
        let ids = enqueue_many(&mut tx, &new_job("unused"), keys)
            .await
            .unwrap();
        tx.commit().await.unwrap();
        self.admitter.poke("test");
        ids
    }

    pub(crate) async fn job(&self, id: JobId) -> inspect::JobView {
        let mut conn = self.pool().acquire().await.unwrap();
        inspect::find_job(&mut conn, id).await.unwrap().unwrap()
    }

    pub(crate) async fn slots(&self) -> Vec<String> {
        sqlx::query_scalar("SELECT key FROM job_slots")
            .fetch_all(self.pool())
            .await
            .unwrap()
    }

    pub(crate) async fn workers(&self) -> Vec<String> {
        sqlx::query_scalar("SELECT name FROM workers")
            .fetch_all(self.pool())
            .await
            .unwrap()
    }

    pub(crate) async fn succeeded(&self) -> i64 {
        sqlx::query_scalar("SELECT count(*) FROM job_history WHERE outcome = 'succeeded'")
            .fetch_one(self.pool())
            .await
            .unwrap()
    }

    /// What FLUSHALL does, for this test's keys only.
    pub(crate) async fn drop_streams(&self) {
        let client = redis::Client::open(redis_url()).unwrap();
        let mut link = client.get_multiplexed_async_connection().await.unwrap();
        let _: () = redis::cmd("DEL")
            .arg(format!("{}jobs:test", self.prefix))
            .query_async(&mut link)
            .await
            .unwrap();
    }

    pub(crate) fn open_gate(&self) {
        self.gate.0.store(true, Ordering::SeqCst);
        self.gate.1.notify_waiters();
    }

    pub(crate) fn spans(&self) -> Vec<Span> {
        std::mem::take(&mut self.spans.lock().unwrap())
    }

    pub(crate) fn runs(&self) -> usize {
        self.runs.load(Ordering::SeqCst)
    }

    pub(crate) fn hooked(&self) -> Vec<(JobId, &'static str)> {
        self.hooks.0.lock().unwrap().clone()
    }
}

pub(crate) fn new_job(key: &str) -> NewJob {
    NewJob {
        kind: "test",
        queue: "test".into(),
        tenant: "t".into(),
        workspace_id: None,
        keys: vec![key.into()],
        dedupe_key: None,
        args: serde_json::json!({}),
        args_version: 1,
        priority: 0,
        delay: Duration::ZERO,
        deadline: Duration::from_secs(24 * 3600),
        max_attempts: 3,
        created_by: "test".into(),
    }
}

pub(crate) trait NewJobExt {
    fn of_tenant(self, tenant: &str) -> Self;
    fn with_dedupe(self, key: &str) -> Self;
    fn delayed(self, by: Duration) -> Self;
    fn hooked(self) -> Self;
}

impl NewJobExt for NewJob {
    fn of_tenant(mut self, tenant: &str) -> Self {
        self.tenant = tenant.into();
        self
    }

    fn with_dedupe(mut self, key: &str) -> Self {
        self.dedupe_key = Some(key.into());
        self
    }

    fn delayed(mut self, by: Duration) -> Self {
        self.delay = by;
        self
    }

    fn hooked(mut self) -> Self {
        self.kind = "hooked";
        self.queue = "hooked".into();
        self
    }
}

pub(crate) async fn state_of(rig: &Rig, id: JobId) -> &'static str {
    rig.job(id).await.state
}

/// Waits for a condition; fails with what was awaited after [`DEADLINE`].
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, check: impl Fn() -> F) {
    let start = Instant::now();
    while !check().await {
        assert!(start.elapsed() < DEADLINE, "waited {DEADLINE:?} for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
