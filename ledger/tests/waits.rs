//! Who waits, as the metric and the list of workers tell it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::time::Duration;

use longshore_base::schema;
use longshore_base::testing::TestDatabase;
use longshore_ledger::control::workers;
use longshore_ledger::inspect::longest_waits;
use longshore_ledger::testing::Steps;
use longshore_ledger::{Backoff, Jitter, KindSpec, Kinds, NewJob, Policy, enqueue};

const QUEUE: &str = "test";

async fn add(database: &TestDatabase, queue: &str, tenant: &str, change: impl Fn(&mut NewJob)) {
    let mut job = NewJob {
        kind: QUEUE,
        queue: queue.into(),
        tenant: tenant.into(),
        workspace_id: None,
        keys: Vec::new(),
        dedupe_key: None,
        args: serde_json::json!({}),
        args_version: 1,
        priority: 0,
        delay: Duration::ZERO,
        deadline: Duration::from_secs(24 * 3600),
        max_attempts: 1,
        created_by: "test".into(),
    };
    change(&mut job);
    let mut tx = database.pool().begin().await.unwrap();
    let enqueued = enqueue(&mut tx, job).await.unwrap();
    assert!(!enqueued.queue.is_empty());
    tx.commit().await.unwrap();
}

fn steps(database: &TestDatabase) -> Steps {
    let second = Duration::from_secs(1);
    let kinds = Kinds::default().with(KindSpec {
        name: QUEUE,
        args_versions: &[1],
        policy: Policy {
            max_attempts: 1,
            backoff: Backoff {
                base: second,
                cap: second,
                jitter: Jitter::None,
            },
            timeout: second * 3600,
            deadline: second * 24 * 3600,
            concurrency: 1,
        },
        hooks: None,
    });
    Steps::new(database.pool().clone(), kinds)
}

/// By so much the clock is moved, so that the time the test takes is none.
const STEP: Duration = Duration::from_secs(100);

/// Queue, tenant and whole steps of those that wait.
async fn waits(database: &TestDatabase) -> Vec<(String, String, u64)> {
    let mut conn = database.pool().acquire().await.unwrap();
    let waits = longest_waits(&mut conn).await.unwrap();
    waits
        .into_iter()
        .map(|wait| {
            (
                wait.queue,
                wait.tenant,
                (wait.seconds / STEP.as_secs_f64()) as u64,
            )
        })
        .collect()
}

#[tokio::test]
async fn of_each_queue_the_twenty_that_wait_longest_are_named() {
    let database = TestDatabase::create(&schema::MIGRATOR).await;
    // More than are looked at of one tenant: the others are seen all the same.
    for _ in 0..50 {
        add(&database, QUEUE, "t00", |_| {}).await;
    }
    for tenant in 0..25 {
        add(&database, QUEUE, &format!("t{tenant:02}"), |_| {}).await;
        database.advance(STEP).await;
    }
    add(&database, "another", "t99", |_| {}).await;
    let mut expected = vec![("another".to_owned(), "t99".to_owned(), 0)];
    expected.extend((0..20).map(|n| (QUEUE.to_owned(), format!("t{n:02}"), 25 - n)));
    assert_eq!(waits(&database).await, expected);
}

#[tokio::test]
async fn a_tenant_waits_since_its_oldest_job_that_could_run_and_until_that_is_claimed() {
    let database = TestDatabase::create(&schema::MIGRATOR).await;
    let steps = steps(&database);
    let of_a = |steps| vec![(QUEUE.to_owned(), "a".to_owned(), steps)];
    // Not due yet.
    add(&database, QUEUE, "a", |job| job.delay = STEP + STEP / 2).await;
    assert_eq!(waits(&database).await, []);
    add(&database, QUEUE, "a", |job| job.keys = vec!["k".into()]).await;
    database.advance(STEP).await;
    assert_eq!(waits(&database).await, of_a(1));
    // Of a less urgent priority, so it comes after both of them.
    add(&database, QUEUE, "a", |job| job.priority = 7).await;
    // The first one comes due, and is before the second, though it has waited less.
    database.advance(STEP).await;
    steps.admit(QUEUE).await.unwrap();
    assert_eq!(waits(&database).await, of_a(2));

    steps.register("w", &[QUEUE], [0, 2]).await.unwrap();
    let hints = steps.admit(QUEUE).await.unwrap();
    assert_eq!(hints.len(), 2);
    assert_eq!(waits(&database).await, of_a(2), "admitted is not claimed");
    steps.claim("w", &hints).await.unwrap();
    // What waits for a job before it waits for more than its turn.
    add(&database, QUEUE, "b", |job| job.keys = vec!["k".into()]).await;
    assert_eq!(waits(&database).await, of_a(1), "the last one still waits");
    steps.register("v", &[QUEUE], [0, 2]).await.unwrap();
    let hints = steps.admit(QUEUE).await.unwrap();
    assert_eq!(hints.len(), 1);
    steps.claim("v", &hints).await.unwrap();
    assert_eq!(waits(&database).await, []);
}

#[tokio::test]
async fn a_claimed_job_that_waits_for_one_in_quarantine_is_listed_with_its_worker() {
    let database = TestDatabase::create(&schema::MIGRATOR).await;
    let steps = steps(&database);
    add(&database, QUEUE, "a", |_| {}).await;
    steps.register("w", &[QUEUE], [0, 1]).await.unwrap();
    let hints = steps.admit(QUEUE).await.unwrap();
    let claimed = steps.claim("w", &hints).await.unwrap();
    steps.wait_for_turn(&claimed[0]).await.unwrap();
    let mut conn = database.pool().acquire().await.unwrap();
    let workers = workers(&mut conn).await.unwrap();
    let runs: Vec<_> = workers[0].running.iter().map(|run| run.job_id).collect();
    assert_eq!(runs, [claimed[0].id]);
}
