//! Turns of passes that are dropped, refused or lost.

use async_trait::async_trait;
use longshore_base::Secret;
use longshore_base::schema::MIGRATOR;
use longshore_base::testing::TestDatabase;
use longshore_events::{EventBus, EventsConfig};
use tokio::sync::{Notify, mpsc};

use super::*;
use crate::pass::Blocked;

const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn the_backoff_grows_to_its_cap_and_begins_anew_after_ten_healthy_minutes() {
    let mut backoff = Backoff::new();
    let pauses: Vec<u64> = (0..7).map(|_| backoff.grow().as_secs()).collect();
    assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
    let (short, long) = (HEALTHY_AFTER - Duration::from_secs(1), HEALTHY_AFTER);
    assert_eq!(pause_after(LONGEST_BACKOFF, short), LONGEST_BACKOFF);
    assert_eq!(pause_after(LONGEST_BACKOFF, long), FIRST_BACKOFF);
}

/// How a pass of [`Told`] ends.
type Ending = Option<PassReport>;

/// Says that it has begun, and ends as it is told; without a report it panics.
struct Told {
    begun: Arc<Notify>,
    endings: Mutex<mpsc::UnboundedReceiver<Ending>>,
}

#[async_trait]
impl Reconciler for Told {
    fn name(&self) -> &'static str {
        "told"
    }

    fn scope(&self) -> String {
        "all".into()
    }

    fn interval(&self) -> Duration {
        PATIENCE
    }

    async fn pass(&self, _pass: &Pass) -> Result<PassReport, PassError> {
        self.begun.notify_one();
        let ending = self.endings.lock().await.recv().await;
        Ok(ending.flatten().expect("told to panic"))
    }
}

struct Setup {
    database: TestDatabase,
    driven: Arc<Driven>,
    begun: Arc<Notify>,
    end: mpsc::UnboundedSender<Ending>,
    stop: CancellationToken,
}

const TOLD: Owned<'_> = Owned {
    name: "told",
    scope: "all",
};

impl Setup {
    async fn new() -> Self {
        let database = TestDatabase::create(&MIGRATOR).await;
        for worker in ["one", "two"] {
            sqlx::query("INSERT INTO workers (name, host, version, kinds, queues, slots) VALUES ($1, 'h', 'v', '{}', '{}', 1)")
                .bind(worker)
                .execute(database.pool())
                .await
                .unwrap();
        }
        // The row is there, and nobody passes.
        take(database.pool(), TOLD, "one", 60).await.unwrap();
        release(database.pool(), TOLD, "one").await.unwrap();
        // Redis need not be there.
        let bus = EventBus::connect(EventsConfig {
            redis_url: Secret::new("redis://127.0.0.1:1".to_owned()),
            redis_prefix: "test:".to_owned(),
            liveness_ttl: EventsConfig::DEFAULT_LIVENESS_TTL,
        })
        .unwrap();
        let begun = Arc::new(Notify::new());
        let (end, endings) = mpsc::unbounded_channel();
        let told = Told {
            begun: Arc::clone(&begun),
            endings: Mutex::new(endings),
        };
        let owner = Owner {
            pool: database.pool().clone(),
            bus,
            worker: Arc::new(|| "one".to_owned()),
        };
        Self {
            driven: Arc::new(Driven::new(Arc::new(told), owner)),
            database,
            begun,
            end,
            stop: CancellationToken::new(),
        }
    }

    /// A pass that was asked for and has begun.
    async fn begin(&self) -> tokio::task::JoinHandle<Result<Asked, PassError>> {
        let (driven, stop) = (Arc::clone(&self.driven), self.stop.clone());
        let asked = tokio::spawn(async move { driven.pass_now(false, stop.cancelled()).await });
        self.begins().await;
        asked
    }

    async fn begins(&self) {
        let begun = self.begun.notified();
        tokio::time::timeout(PATIENCE, begun).await.unwrap();
    }

    async fn passing(&self) -> Option<String> {
        sqlx::query_scalar("SELECT passing FROM reconcilers WHERE name = 'told'")
            .fetch_one(self.database.pool())
            .await
            .unwrap()
    }
}

#[tokio::test]
async fn a_pass_that_is_not_made_leaves_the_turn_to_the_one_that_is() {
    let setup = Setup::new().await;
    let first = setup.begin().await;
    let stopped = setup.driven.pass_now(false, std::future::ready(())).await;
    assert!(matches!(stopped.unwrap(), Asked::Busy));
    assert_eq!(setup.passing().await.as_deref(), Some("one"));
    setup.end.send(Some(PassReport::default())).unwrap();
    assert!(matches!(first.await.unwrap().unwrap(), Asked::Passed(_)));
    assert_eq!(setup.passing().await, None);
}

#[tokio::test]
async fn a_pass_that_is_stopped_or_panics_gives_its_turn_back() {
    let setup = Setup::new().await;
    let panics = setup.begin().await;
    setup.end.send(None).unwrap();
    let error = panics.await.unwrap().err().unwrap();
    assert_eq!(error.to_string(), "it panicked");
    assert_eq!(setup.passing().await, None);
    let stopped = setup.begin().await;
    assert_eq!(setup.passing().await.as_deref(), Some("one"));
    setup.stop.cancel();
    assert!(matches!(stopped.await.unwrap().unwrap(), Asked::Stopped));
    assert_eq!(setup.passing().await, None);
}

#[tokio::test]
async fn a_loop_that_is_told_to_stop_does_not_wait_for_its_pass() {
    let setup = Setup::new().await;
    let (driven, stop) = (Arc::clone(&setup.driven), setup.stop.clone());
    let driving = tokio::spawn(async move { driven.drive(stop).await });
    setup.begins().await;
    assert_eq!(setup.passing().await.as_deref(), Some("one"));
    setup.stop.cancel();
    tokio::time::timeout(PATIENCE, driving)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(setup.passing().await, None);
}

#[tokio::test]
async fn a_pass_that_lost_its_turn_tells_nothing_and_leaves_the_new_one_alone() {
    let setup = Setup::new().await;
    let slow = setup.begin().await;
    setup.database.advance(Duration::from_secs(901)).await;
    let taken = take_extra(setup.database.pool(), TOLD, "two", false).await;
    assert_eq!(taken.unwrap(), Extra::Granted(Turn::default()));
    let blocked = PassReport {
        blocked: Some(Blocked {
            reason: "much".to_owned(),
            wanted: vec!["a".to_owned()],
            budget: 0,
        }),
        ..PassReport::default()
    };
    setup.end.send(Some(blocked)).unwrap();
    let error = slow.await.unwrap().err().unwrap().to_string();
    assert!(error.contains("worker one lost its turn"), "{error}");
    assert_eq!(setup.passing().await.as_deref(), Some("two"));
    let told: i64 = sqlx::query_scalar("SELECT count(*) FROM structure_events")
        .fetch_one(setup.database.pool())
        .await
        .unwrap();
    assert_eq!(told, 0);
}

#[tokio::test]
async fn a_blocked_pass_keeps_all_that_it_wanted_and_tells_how_much_and_the_first_of_it() {
    let setup = Setup::new().await;
    let wanted: Vec<_> = (0..25).map(|n| format!("ws-{n}")).collect();
    let blocked = Blocked {
        reason: "much".to_owned(),
        wanted: wanted.clone(),
        budget: 5,
    };
    let passing = setup.begin().await;
    setup
        .end
        .send(Some(PassReport {
            blocked: Some(blocked),
            ..PassReport::default()
        }))
        .unwrap();
    assert!(matches!(passing.await.unwrap().unwrap(), Asked::Passed(_)));
    let (told, kept): (Value, Value) =
        sqlx::query_as("SELECT payload, blocked->'wanted' FROM structure_events, reconcilers")
            .fetch_one(setup.database.pool())
            .await
            .unwrap();
    assert_eq!(
        (&told["count"], &told["wanted"]),
        (&json!(25), &json!(wanted[..20]))
    );
    assert_eq!(kept, json!(wanted));
}
