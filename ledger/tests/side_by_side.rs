//! Passes of admission over one queue at the same time, each for a worker that takes a backlog by itself.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[expect(dead_code, reason = "all but its jobs is for the other tests")]
mod rig;

use std::sync::Arc;

use longshore_base::testing::TestDatabase;
use longshore_base::{JobId, schema};
use longshore_ledger::testing::Steps;
use longshore_ledger::{ClaimedJob, Kinds, NewJob, enqueue, enqueue_many};
use rig::{DEADLINE, NewJobExt as _, new_job, until};
use tokio::time::timeout;

const QUEUE: &str = "test";
const WORKER: &str = "w";

struct Bench {
    database: TestDatabase,
    steps: Arc<Steps>,
}

impl Bench {
    async fn new() -> Self {
        let database = TestDatabase::create(&schema::MIGRATOR).await;
        let steps = Arc::new(Steps::new(database.pool().clone(), Kinds::default()));
        steps.register(WORKER, &[QUEUE], [0, 100]).await.unwrap();
        Self { database, steps }
    }

    async fn enqueue(&self, job: NewJob) -> JobId {
        let mut tx = self.database.pool().begin().await.unwrap();
        let enqueued = enqueue(&mut tx, job).await.unwrap();
        tx.commit().await.unwrap();
        enqueued.job_id
    }

    async fn count(&self, what: &'static str) -> i64 {
        sqlx::query_scalar(what)
            .fetch_one(self.database.pool())
            .await
            .unwrap()
    }

    async fn until_one_waits_for_a_lock(&self) {
        until("a pass to wait for the other", || async {
            self.count(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'",
            )
            .await
                > 0
        })
        .await;
    }
}

fn ids(jobs: &[ClaimedJob]) -> Vec<JobId> {
    let mut ids: Vec<JobId> = jobs.iter().map(|job| job.id).collect();
    ids.sort_unstable();
    ids
}

#[tokio::test]
async fn of_one_tenant_they_take_different_jobs_and_wait_for_nobody() {
    let bench = Bench::new().await;
    let keys: Vec<String> = (0..30).map(|nth| format!("key-{nth}")).collect();
    let mut tx = bench.database.pool().begin().await.unwrap();
    let mut all = enqueue_many(&mut tx, &new_job("unused"), &keys)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    all.sort_unstable();
    let passes = async {
        let first = bench.steps.offer(QUEUE, 10).await.unwrap();
        let second = bench.steps.offer(QUEUE, 10).await.unwrap();
        let second = second.give(WORKER).await.unwrap();
        let third = bench.steps.offer(QUEUE, 100).await.unwrap();
        let first = first.give(WORKER).await.unwrap();
        let third = third.give(WORKER).await.unwrap();
        [first, second, third]
    };
    let [first, second, third] = timeout(DEADLINE, passes).await.unwrap();
    assert_eq!(first.len(), 10);
    assert_eq!(second.len(), 10);
    assert_eq!(ids(&[first, second, third].concat()), all);
    assert_eq!(bench.count("SELECT count(*) FROM job_slots").await, 30);
}

#[tokio::test]
async fn one_that_is_given_up_leaves_its_jobs_to_others() {
    let bench = Bench::new().await;
    let job = bench.enqueue(new_job("a")).await;
    let given_up = bench.steps.offer(QUEUE, 10).await.unwrap();
    let beside = bench.steps.offer(QUEUE, 10).await.unwrap();
    assert!(beside.give(WORKER).await.unwrap().is_empty());
    drop(given_up);
    until("the jobs to be free again", || async {
        let taken = bench.steps.take(WORKER, QUEUE, 10, false).await.unwrap();
        ids(&taken) == [job]
    })
    .await;
}

#[tokio::test]
async fn where_tenants_take_turns_one_waits_for_the_other() {
    let bench = Bench::new().await;
    for tenant in ["a", "b"] {
        bench.enqueue(new_job(tenant).of_tenant(tenant)).await;
    }
    let first = bench.steps.offer(QUEUE, 1).await.unwrap();
    let steps = Arc::clone(&bench.steps);
    let second = tokio::spawn(async move { steps.take(WORKER, QUEUE, 1, false).await });
    bench.until_one_waits_for_a_lock().await;
    let first = first.give(WORKER).await.unwrap();
    let second = second.await.unwrap().unwrap();
    assert_eq!((first.len(), second.len()), (1, 1));
    assert_ne!(first[0].tenant, second[0].tenant);
}

/// Both are ready, as after one came due for which the other had not waited.
#[tokio::test]
async fn a_key_goes_to_one_of_them_and_the_other_job_waits_for_it() {
    let bench = Bench::new().await;
    let held = bench.enqueue(new_job("k")).await;
    let waiting = bench.enqueue(new_job("k")).await;
    sqlx::query("UPDATE jobs SET wait = 'ready'")
        .execute(bench.database.pool())
        .await
        .unwrap();
    let first = bench.steps.offer(QUEUE, 1).await.unwrap();
    let steps = Arc::clone(&bench.steps);
    let second = tokio::spawn(async move { steps.take(WORKER, QUEUE, 1, false).await });
    bench.until_one_waits_for_a_lock().await;
    assert_eq!(ids(&first.give(WORKER).await.unwrap()), [held]);
    assert!(second.await.unwrap().unwrap().is_empty());
    let waits: String = sqlx::query_scalar("SELECT wait::text FROM jobs WHERE id = $1")
        .bind(waiting.0)
        .fetch_one(bench.database.pool())
        .await
        .unwrap();
    assert_eq!(waits, "key");
}
