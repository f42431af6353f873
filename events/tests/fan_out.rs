//! The log, the bus and the hub against a real Postgres and real Redis servers.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use longshore_base::clock::Stopwatch;
use longshore_base::schema::MIGRATOR;
use longshore_base::testing::TestDatabase;
use longshore_base::{Secret, WorkspaceId};
use longshore_events::{
    BroadcastEvent, Delivery, EventBus, EventsConfig, Filter, Hub, NewEvent, Received,
    Subscription, append, list_events, list_events_after, names,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use sqlx::PgConnection;
use tokio::time::timeout;

const DEADLINE: Duration = Duration::from_secs(10);

/// A Redis server of one test, on a port of its own; killed with this value.
struct RedisServer {
    child: Child,
    port: u16,
}

impl RedisServer {
    async fn start() -> Self {
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let child = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--appendonly", "no"])
            .stdout(Stdio::null())
            .spawn()
            .expect("tests need redis-server in the PATH");
        let server = Self { child, port };
        let started = Stopwatch::start();
        while tokio::net::TcpStream::connect(("127.0.0.1", port))
            .await
            .is_err()
        {
            assert!(started.elapsed() < DEADLINE, "redis-server does not listen");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        server
    }

    fn bus(&self) -> EventBus {
        bus_at(self.port)
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        kill(pid, signal).unwrap();
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.child.kill().expect("redis-server is our child");
        self.child.wait().expect("redis-server is our child");
    }
}

fn bus_at(port: u16) -> EventBus {
    EventBus::connect(EventsConfig {
        redis_url: Secret::new(format!("redis://127.0.0.1:{port}")),
        redis_prefix: "test:".to_owned(),
        liveness_ttl: EventsConfig::DEFAULT_LIVENESS_TTL,
    })
    .unwrap()
}

/// A hub that is reading the log, and listening if Redis is there.
async fn ready_hub(database: &TestDatabase, bus: &EventBus, with_redis: bool) -> Hub {
    let hub = Hub::start(database.pool().clone(), bus);
    until("the hub to be ready", || {
        let health = hub.health();
        health.tail_age.is_some() && (health.listener.up && bus.health().up || !with_redis)
    })
    .await;
    hub
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let started = Stopwatch::start();
    while !condition() {
        assert!(started.elapsed() < DEADLINE, "waited too long for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn next(subscription: &mut Subscription) -> Arc<Delivery> {
    match timeout(DEADLINE, subscription.next()).await {
        Ok(Received::Event(delivery)) => delivery,
        other => panic!("expected an event, got {other:?}"),
    }
}

async fn record(conn: &mut PgConnection, workspace_id: WorkspaceId, n: i32) {
    append(
        conn,
        NewEvent {
            event_type: names::WORKSPACE_ONLINE,
            workspace_id: Some(workspace_id),
            payload: json!({ "n": n }),
        },
    )
    .await
    .unwrap();
}

fn heartbeat(id: WorkspaceId, n: i32) -> BroadcastEvent {
    BroadcastEvent {
        event_type: names::WORKSPACE_HEARTBEAT,
        workspace_id: Some(id),
        payload: json!({ "n": n }),
    }
}

#[tokio::test]
async fn a_row_that_commits_late_is_neither_skipped_nor_overtaken() {
    let database = TestDatabase::create(&MIGRATOR).await;
    let redis = RedisServer::start().await;
    let bus = redis.bus();
    let hub = ready_hub(&database, &bus, true).await;
    let mut subscription = hub.subscribe(Filter::All, 16);
    let id = WorkspaceId::random();

    let mut early = database.pool().begin().await.unwrap();
    record(&mut early, id, 1).await;
    let mut late = database.pool().begin().await.unwrap();
    record(&mut late, id, 2).await;
    late.commit().await.unwrap();
    bus.poke();
    // Two full periods of the tailer: it has seen the second row and must hold it back.
    let nothing = timeout(Duration::from_millis(2200), subscription.next()).await;
    assert!(nothing.is_err(), "{nothing:?}");
    early.commit().await.unwrap();
    bus.poke();

    let first = next(&mut subscription).await;
    let second = next(&mut subscription).await;
    assert_eq!(first.message.payload, json!({ "n": 1 }));
    assert_eq!(second.message.payload, json!({ "n": 2 }));
    assert!(first.position.unwrap() < second.position.unwrap());

    let mut conn = database.pool().acquire().await.unwrap();
    let missed = list_events_after(&mut conn, id, first.position.unwrap(), 10)
        .await
        .unwrap();
    assert_eq!(missed.len(), 1);
    assert_eq!(missed[0].0, second.position.unwrap());
    let newest_first = list_events(&mut conn, Some(id), 10).await.unwrap();
    assert_eq!(newest_first[0].payload, json!({ "n": 2 }));
}

#[tokio::test]
async fn every_process_delivers_each_event_once() {
    let database = TestDatabase::create(&MIGRATOR).await;
    let redis = RedisServer::start().await;
    let (writer, other) = (redis.bus(), redis.bus());
    let here = ready_hub(&database, &writer, true).await;
    let there = ready_hub(&database, &other, true).await;
    let mut subscriptions = [
        here.subscribe(Filter::All, 16),
        there.subscribe(Filter::All, 16),
    ];
    let id = WorkspaceId::random();

    let mut tx = database.pool().begin().await.unwrap();
    record(&mut tx, id, 1).await;
    tx.commit().await.unwrap();
    writer.poke();
    for subscription in &mut subscriptions {
        assert_eq!(next(subscription).await.message.payload, json!({ "n": 1 }));
    }
    writer.broadcast(heartbeat(id, 2));
    writer.broadcast(heartbeat(id, 3));
    for subscription in &mut subscriptions {
        let delivery = next(subscription).await;
        assert_eq!(delivery.message.payload, json!({ "n": 2 }));
        assert_eq!(delivery.position, None);
        let wire: serde_json::Value = serde_json::from_str(&delivery.json).unwrap();
        assert_eq!(wire["event"], "WORKSPACE_HEARTBEAT");
        assert_eq!(wire["workspace_id"], json!(id.to_string()));
        assert!(wire["timestamp"].is_string());
        assert_eq!(next(subscription).await.message.payload, json!({ "n": 3 }));
    }
}

#[tokio::test]
async fn a_poke_of_another_process_makes_a_reader_look_at_once() {
    let database = TestDatabase::create(&MIGRATOR).await;
    let redis = RedisServer::start().await;
    let (writer, reader) = (redis.bus(), redis.bus());
    let hub = ready_hub(&database, &reader, true).await;
    until("the writer's link", || writer.health().up).await;
    // How soon a row may be delivered depends on every transaction of the server, so the looks are measured instead.
    let mut oldest = Duration::ZERO;
    for round in 0..30 {
        writer.poke();
        tokio::time::sleep(Duration::from_millis(50)).await;
        if round > 0 {
            oldest = oldest.max(hub.health().tail_age.unwrap());
        }
    }
    assert!(oldest < Duration::from_millis(500), "{oldest:?}");
}

#[tokio::test]
async fn recorded_events_arrive_without_redis() {
    let database = TestDatabase::create(&MIGRATOR).await;
    // Nobody listens on the discard port.
    let (writer, other) = (bus_at(9), bus_at(9));
    let hub = ready_hub(&database, &other, false).await;
    let mut subscription = hub.subscribe(Filter::All, 16);
    let mut tx = database.pool().begin().await.unwrap();
    record(&mut tx, WorkspaceId::random(), 1).await;
    tx.commit().await.unwrap();
    writer.poke();
    let delivery = next(&mut subscription).await;
    assert_eq!(delivery.message.payload, json!({ "n": 1 }));
}

#[tokio::test]
async fn a_stopped_redis_delays_nobody_and_is_used_again_when_it_goes_on() {
    let database = TestDatabase::create(&MIGRATOR).await;
    let redis = RedisServer::start().await;
    let bus = redis.bus();
    let hub = ready_hub(&database, &bus, true).await;
    let presence = bus.presence();
    let id = WorkspaceId::random();
    presence.cache_url(id, "http://127.0.0.1:1").await;
    let started = Stopwatch::start();
    while presence.url(id).await.is_none() {
        assert!(started.elapsed() < DEADLINE);
    }

    redis.signal(Signal::SIGSTOP);
    let stopped = Stopwatch::start();
    for n in 0..10_000 {
        bus.poke();
        bus.broadcast(heartbeat(id, n));
        presence.mark_alive(id).await;
    }
    assert!(
        stopped.elapsed() < Duration::from_secs(1),
        "writes waited: {:?}",
        stopped.elapsed()
    );
    let mut slowest = Duration::ZERO;
    for _ in 0..20 {
        let read = Stopwatch::start();
        assert_eq!(presence.url(id).await, None);
        slowest = slowest.max(read.elapsed());
    }
    assert!(slowest < Duration::from_millis(400), "{slowest:?}");
    assert!(!bus.health().up);

    redis.signal(Signal::SIGCONT);
    until("the link to come back", || bus.health().up).await;
    until("the listener to come back", || hub.health().listener.up).await;
    let mut subscription = hub.subscribe(Filter::Workspace(id), 16);
    bus.broadcast(heartbeat(id, -1));
    assert_eq!(
        next(&mut subscription).await.message.payload,
        json!({ "n": -1 })
    );
}

#[tokio::test]
async fn a_redis_that_became_a_replica_counts_as_away_until_it_is_none() {
    let redis = RedisServer::start().await;
    let bus = redis.bus();
    until("the link", || bus.health().up).await;
    let client = redis::Client::open(format!("redis://127.0.0.1:{}", redis.port)).unwrap();
    let mut conn = client.get_multiplexed_async_connection().await.unwrap();
    let mut tell = async |command: &str, words: &[&str]| -> String {
        let mut command = redis::cmd(command);
        command.arg(words).query_async(&mut conn).await.unwrap()
    };
    tell("REPLICAOF", &["127.0.0.1", "9"]).await;
    let (id, presence) = (WorkspaceId::random(), bus.presence());
    presence.mark_alive(id).await;
    until("the refused write to be noticed", || !bus.health().up).await;
    // It is looked for again, and what is found is not taken for a server.
    tell("CONFIG", &["RESETSTAT"]).await;
    let started = Stopwatch::start();
    while !tell("INFO", &["commandstats"])
        .await
        .contains("cmdstat_role:calls=3")
    {
        assert!(!bus.health().up);
        assert!(started.elapsed() < DEADLINE, "nobody asks for its role");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tell("REPLICAOF", &["NO", "ONE"]).await;
    until("the link to come back", || bus.health().up).await;
    presence.cache_url(id, "http://127.0.0.1:7").await;
    let started = Stopwatch::start();
    while presence.url(id).await.is_none() {
        assert!(started.elapsed() < DEADLINE);
    }
}

#[tokio::test]
async fn a_slow_subscriber_alone_loses_its_place() {
    let database = TestDatabase::create(&MIGRATOR).await;
    let bus = bus_at(9);
    let hub = ready_hub(&database, &bus, false).await;
    let mut slow = hub.subscribe(Filter::All, 2);
    let mut quick = hub.subscribe(Filter::All, 8);
    let mut elsewhere = hub.subscribe(Filter::Workspace(WorkspaceId::random()), 1);
    let id = WorkspaceId::random();
    let mut tx = database.pool().begin().await.unwrap();
    for n in 0..3 {
        record(&mut tx, id, n).await;
    }
    tx.commit().await.unwrap();
    bus.poke();
    for n in 0..3 {
        assert_eq!(next(&mut quick).await.message.payload, json!({ "n": n }));
    }
    assert_eq!(next(&mut slow).await.message.payload, json!({ "n": 0 }));
    assert_eq!(next(&mut slow).await.message.payload, json!({ "n": 1 }));
    assert!(matches!(slow.next().await, Received::Overflowed));
    hub.close();
    assert!(matches!(quick.next().await, Received::Closed));
    assert!(matches!(elsewhere.next().await, Received::Closed));
    assert!(matches!(
        hub.subscribe(Filter::All, 1).next().await,
        Received::Closed
    ));
}

#[tokio::test]
async fn a_payload_that_cannot_be_read_stops_nothing_behind_it() {
    let database = TestDatabase::create(&MIGRATOR).await;
    let bus = bus_at(9);
    let hub = ready_hub(&database, &bus, false).await;
    let mut subscription = hub.subscribe(Filter::All, 8);
    // Postgres stores deeper nesting than a reader takes; written past `append`, which cannot be given such a value.
    let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
    sqlx::query(
        "INSERT INTO structure_events (id, event_type, payload) VALUES ($1, 'WORKSPACE_ONLINE', $2::text::jsonb)",
    )
    .bind(longshore_base::ids::ordered_uuid())
    .bind(deep)
    .execute(database.pool())
    .await
    .unwrap();
    let mut conn = database.pool().acquire().await.unwrap();
    record(&mut conn, WorkspaceId::random(), 1).await;
    bus.poke();
    assert_eq!(next(&mut subscription).await.message.payload, json!({}));
    assert_eq!(
        next(&mut subscription).await.message.payload,
        json!({ "n": 1 })
    );
}

#[tokio::test]
async fn presence_keys_have_the_names_and_lives_others_rely_on() {
    let redis = RedisServer::start().await;
    let bus = redis.bus();
    until("the link", || bus.health().up).await;
    let id = WorkspaceId::random();
    let presence = bus.presence();
    presence.mark_alive(id).await;
    presence.cache_url(id, "http://127.0.0.1:7").await;
    presence.cache_internal_url(id, &id.internal_url()).await;
    let started = Stopwatch::start();
    while presence.internal_url(id).await.is_none() {
        assert!(started.elapsed() < DEADLINE);
    }
    let client = redis::Client::open(format!("redis://127.0.0.1:{}", redis.port)).unwrap();
    let mut conn = client.get_multiplexed_async_connection().await.unwrap();
    let (alive, alive_ttl, url, url_ttl): (String, u64, String, u64) = redis::pipe()
        .get(format!("test:ws:{id}"))
        .ttl(format!("test:ws:{id}"))
        .get(format!("test:ws:{id}:url"))
        .ttl(format!("test:ws:{id}:url"))
        .query_async(&mut conn)
        .await
        .unwrap();
    assert_eq!(
        (alive.as_str(), url.as_str()),
        ("online", "http://127.0.0.1:7")
    );
    assert!((170..=180).contains(&alive_ttl), "{alive_ttl}");
    assert!((290..=300).contains(&url_ttl), "{url_ttl}");
    presence.clear(id).await;
    let started = Stopwatch::start();
    loop {
        let left: Vec<String> = redis::cmd("KEYS")
            .arg("*")
            .query_async(&mut conn)
            .await
            .unwrap();
        if left.is_empty() {
            break;
        }
        assert!(started.elapsed() < DEADLINE, "{left:?}");
    }
}
