//! What becomes of an older job of a workspace when a newer one is asked for: for each cell of the table, with a real older
//! job in the place the cell is about.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::time::Duration;

use longshore_base::testing::TestDatabase;
use longshore_base::{JobId, schema};
use longshore_jobs::{JobsConfig, kinds, provision, purge, restart, stop};
use longshore_ledger::testing::Steps;
use longshore_ledger::{JobError, NewJob, Older, Verdict, enqueue, resolve_conflicts};
use sqlx::PgPool;

/// What can be seen of an older job afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Stays,
    IsSuperseded,
    IsAskedToStop,
}
use Fate::{IsAskedToStop, IsSuperseded, Stays};

/// By the newer and the older kind; in the order of [`Older::ALL`].
const FATES: [(&str, &str, [Fate; 4]); 13] = [
    (provision::KIND, provision::KIND, [Stays; 4]),
    (provision::KIND, stop::KIND, [Stays; 4]),
    (provision::KIND, restart::KIND, [Stays; 4]),
    (restart::KIND, provision::KIND, [Stays; 4]),
    (restart::KIND, restart::KIND, [Stays; 4]),
    (restart::KIND, stop::KIND, [Stays; 4]),
    (
        stop::KIND,
        restart::KIND,
        [IsSuperseded, IsSuperseded, IsSuperseded, IsAskedToStop],
    ),
    (
        stop::KIND,
        provision::KIND,
        [IsSuperseded, IsSuperseded, IsSuperseded, IsAskedToStop],
    ),
    (
        stop::KIND,
        stop::KIND,
        [IsSuperseded, IsSuperseded, IsSuperseded, Stays],
    ),
    (
        purge::KIND,
        provision::KIND,
        [IsSuperseded, IsSuperseded, IsSuperseded, IsAskedToStop],
    ),
    (
        purge::KIND,
        restart::KIND,
        [IsSuperseded, IsSuperseded, IsSuperseded, IsAskedToStop],
    ),
    (
        purge::KIND,
        stop::KIND,
        [IsSuperseded, IsSuperseded, IsSuperseded, Stays],
    ),
    (purge::KIND, purge::KIND, [Stays; 4]),
];

#[tokio::test]
async fn each_older_job_meets_the_fate_its_cell_names() {
    let database = TestDatabase::create(&schema::MIGRATOR).await;
    let kinds = kinds(JobsConfig {
        provision_concurrency: 1,
        restart_concurrency: 1,
        provision_limit: std::time::Duration::from_secs(480),
    });
    let pool = database.pool();
    let steps = Steps::new(pool.clone(), kinds.clone());
    for (newer, older, fates) in FATES {
        for (place, fate) in Older::ALL.into_iter().zip(fates) {
            // A place of its own for each, so that an admission finds nobody else.
            let cell = format!("{newer}-{older}-{place:?}");
            let id = job_in(pool, &steps, older, &cell, place).await;
            let mut tx = pool.begin().await.unwrap();
            resolve_conflicts(&mut tx, &kinds, newer, std::slice::from_ref(&cell), "test")
                .await
                .unwrap();
            tx.commit().await.unwrap();
            assert_eq!(fate_of(pool, id).await, fate, "{cell}");
        }
    }
}

async fn job_in(
    pool: &PgPool,
    steps: &Steps,
    kind: &'static str,
    key: &str,
    place: Older,
) -> JobId {
    let queue = format!("{kind}@{key}");
    let job = NewJob {
        kind,
        queue: queue.clone(),
        tenant: "tenant".into(),
        workspace_id: None,
        keys: vec![key.to_owned()],
        dedupe_key: None,
        args: serde_json::json!({}),
        args_version: 1,
        priority: 0,
        delay: Duration::ZERO,
        deadline: Duration::from_secs(3600),
        max_attempts: 5,
        created_by: "test".into(),
    };
    let mut tx = pool.begin().await.unwrap();
    let id = enqueue(&mut tx, job).await.unwrap().job_id;
    tx.commit().await.unwrap();
    if place == Older::Scheduled {
        return id;
    }
    let worker = format!("worker of {key}");
    steps.register(&worker, &[&queue], [1, 1]).await.unwrap();
    let admitted = steps.admit(&queue).await.unwrap();
    if place == Older::Queued {
        return id;
    }
    let claimed = steps.claim(&worker, &admitted).await.unwrap();
    if place == Older::BackingOff {
        let failed = Verdict::RetryAfter(JobError::plain("no luck"), Duration::from_secs(600));
        let ended = claimed.into_iter().map(|job| (job, failed.clone()));
        steps.finish(&worker, ended.collect()).await;
    }
    id
}

async fn fate_of(pool: &PgPool, id: JobId) -> Fate {
    let live: Option<bool> =
        sqlx::query_scalar("SELECT cancel_requested IS NOT NULL FROM jobs WHERE id = $1")
            .bind(id.0)
            .fetch_optional(pool)
            .await
            .unwrap();
    if let Some(is_asked) = live {
        return if is_asked { IsAskedToStop } else { Stays };
    }
    let outcome: String = sqlx::query_scalar("SELECT outcome::text FROM job_history WHERE id = $1")
        .bind(id.0)
        .fetch_one(pool)
        .await
        .unwrap();
    assert_eq!(outcome, "superseded");
    IsSuperseded
}
