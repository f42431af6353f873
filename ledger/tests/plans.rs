//! What the steps of the engine read does not grow with the backlog, whatever Postgres believed of the tables when it
//! planned the statements.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[expect(dead_code, reason = "all but its jobs is for the other tests")]
mod rig;

use std::time::{Duration, Instant};

use longshore_base::pools::{DatabaseConfig, Pools};
use longshore_base::testing::TestDatabase;
use longshore_base::{Secret, schema};
use longshore_ledger::testing::Steps;
use longshore_ledger::{
    Backoff, ClaimedJob, Jitter, KindSpec, Kinds, Policy, Verdict, enqueue_many,
};
use rig::{DEADLINE, NewJobExt as _, new_job};

const QUEUE: &str = "test";
const WORKER: &str = "w";
/// Jobs waiting, and how many of them one step takes.
const BACKLOG: usize = 2000;
const STEP: usize = 10;

#[tokio::test]
async fn no_step_reads_the_backlog_though_planned_on_tables_just_vacuumed_empty() {
    let database = TestDatabase::create(&schema::MIGRATOR).await;
    sqlx::raw_sql("VACUUM ANALYZE")
        .execute(database.pool())
        .await
        .unwrap();
    let config = DatabaseConfig {
        url: Secret::new(database.url()),
        max_connections: 2,
    };
    let pools = Pools::connect(&config).await.unwrap();
    let steps = Steps::new(pools.control.clone(), kinds());
    steps.register(WORKER, &[QUEUE], [0, STEP]).await.unwrap();
    // Plans are made now, and kept.
    step_through(&database, &steps, "first", 2).await;
    step_through(&database, &steps, "then", BACKLOG).await;
    pools.control.close().await;
    let read = entries_read(&database, 4 + 2 * STEP as i64).await;
    // What these steps need is some ten a job; one statement that reads the backlog reads it as a whole.
    assert!(
        read < BACKLOG as i64,
        "{read} index entries read for {} jobs",
        2 * STEP
    );
}

/// With so many jobs of one tenant waiting, a worker takes some by itself; with those of two more, some are admitted and
/// claimed.
async fn step_through(database: &TestDatabase, steps: &Steps, prefix: &str, jobs: usize) {
    enqueue_for(database, &format!("{prefix}-a"), "a", jobs).await;
    let taken = steps.take(WORKER, QUEUE, STEP, false).await.unwrap();
    assert_eq!(taken.len(), jobs.min(STEP));
    end(steps, taken).await;
    enqueue_for(database, &format!("{prefix}-b"), "b", jobs / 2).await;
    enqueue_for(database, &format!("{prefix}-c"), "c", jobs / 2).await;
    let hints = steps.admit(QUEUE).await.unwrap();
    assert_eq!(hints.len(), jobs.min(STEP));
    end(steps, steps.claim(WORKER, &hints).await.unwrap()).await;
}

async fn end(steps: &Steps, jobs: Vec<ClaimedJob>) {
    let runs = jobs
        .into_iter()
        .map(|job| (job, Verdict::Done(None)))
        .collect();
    steps.finish(WORKER, runs).await;
}

async fn enqueue_for(database: &TestDatabase, prefix: &str, tenant: &str, jobs: usize) {
    let keys: Vec<String> = (0..jobs).map(|nth| format!("{prefix}-{nth}")).collect();
    let template = new_job("unused").of_tenant(tenant);
    let mut tx = database.pool().begin().await.unwrap();
    enqueue_many(&mut tx, &template, &keys).await.unwrap();
    tx.commit().await.unwrap();
}

fn kinds() -> Kinds {
    Kinds::default().with(KindSpec {
        name: QUEUE,
        args_versions: &[1],
        policy: Policy {
            max_attempts: 3,
            backoff: Backoff {
                base: Duration::ZERO,
                cap: Duration::ZERO,
                jitter: Jitter::None,
            },
            timeout: Duration::from_secs(60),
            deadline: Duration::from_secs(24 * 3600),
            concurrency: STEP,
        },
        hooks: None,
    })
}

/// Entries of the engine's indexes read so far, once Postgres has counted the end of so many jobs.
async fn entries_read(database: &TestDatabase, ended: i64) -> i64 {
    let since = Instant::now();
    loop {
        let (counted, read): (i64, i64) = sqlx::query_as(
            "SELECT (SELECT n_tup_del FROM pg_stat_user_tables WHERE relname = 'jobs'),
                    (SELECT sum(idx_tup_read)::bigint FROM pg_stat_user_indexes WHERE relname IN ('jobs', 'job_slots', 'job_keys'))",
        )
        .fetch_one(database.pool())
        .await
        .unwrap();
        if counted >= ended {
            return read;
        }
        assert!(
            since.elapsed() < DEADLINE,
            "Postgres has counted {counted} ends of {ended}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
