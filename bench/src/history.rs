//! `bench history`: whether a long history slows down the jobs of today, and what dropping its old part costs.
//!
//! Two databases of one server: one with finished jobs of all outcomes and ages, and one whose history is empty. Both have
//! the same live and held jobs, asked for on the days of the finished ones, so that nothing but the history differs.
//! Backlogs of no-op jobs are enqueued, one transaction each, and run in both in turns. Then the days that nobody keeps are
//! dropped, and everything else is counted before and after.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use async_trait::async_trait;
use longshore_base::schema;
use longshore_ledger::control::{Mode, NewHold, Scope, set_hold};
use longshore_ledger::{
    Executor, NewJob, Retention, RunContext, Verdict, enqueue, enqueue_many, ensure_partitions,
    prune,
};
use sqlx::{AssertSqlSafe, PgPool};

use crate::ledger::{Ledger, job};
use crate::past::{Past, insert, make_days};
use crate::servers::Servers;
use crate::stats::median;

/// Of each hundred finished jobs, how many ended how.
const MIX: [(&str, i64); 4] = [
    ("succeeded", 90),
    ("dead", 5),
    ("cancelled", 3),
    ("superseded", 2),
];
/// Days kept of each, as the product does by default.
const KEEP: Retention = Retention {
    succeeded_days: 7,
    dead_days: 90,
    cancelled_days: 30,
    superseded_days: 7,
};
/// The queue of everything that is only there; nobody reads it.
const OTHERS: &str = "past@none";
/// Jobs that wait for their time, and as many that are held.
const LIVE: usize = 1_000;
/// Who enqueue at the same time.
const CLIENTS: usize = 8;
const PATIENCE: Duration = Duration::from_secs(600);

#[derive(clap::Args)]
pub(crate) struct HistoryArguments {
    /// A server of the benchmark's own: it changes settings and drops databases.
    #[arg(long, env = "BENCH_DATABASE_URL")]
    database_url: String,
    /// A Redis of the benchmark's own: it is emptied.
    #[arg(long, env = "BENCH_REDIS_URL")]
    redis_url: String,
    /// Finished jobs in the history of the full database.
    #[arg(long, default_value_t = 1_000_000)]
    finished: i64,
    /// Days of each outcome that are older than what is kept of it.
    #[arg(long, default_value_t = 3)]
    due_days: i64,
    /// Jobs of one turn.
    #[arg(long, default_value_t = 20_000)]
    backlog: usize,
    /// Pairs of turns that count; one more before them does not.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Jobs at the same time.
    #[arg(long, default_value_t = 64)]
    slots: usize,
}

#[derive(Default)]
struct Noop(AtomicUsize);

#[async_trait]
impl Executor for Noop {
    async fn run(&self, _: &RunContext) -> Verdict {
        self.0.fetch_add(1, Ordering::Relaxed);
        Verdict::Done(None)
    }
}

/// Jobs a second.
struct Rates {
    enqueued: f64,
    /// Claimed, run and written to the history.
    finished: f64,
}

pub(crate) async fn run(arguments: HistoryArguments) -> anyhow::Result<()> {
    let mut servers = Servers::connect(&arguments.database_url, &arguments.redis_url).await?;
    servers.set_durable(true).await?;
    servers.print_settings().await?;
    let empty = prepare(&mut servers, "bench_empty").await?;
    let full = prepare(&mut servers, "bench_full").await?;
    fill(&arguments, &full).await?;
    compare(&arguments, &mut servers, [&empty, &full]).await?;
    drop_old(&full.pools.work).await?;
    drop((empty, full));
    servers.drop_database("bench_empty").await?;
    servers.drop_database("bench_full").await?;
    servers.reset_redis(None).await
}

async fn prepare(servers: &mut Servers, name: &str) -> anyhow::Result<Ledger> {
    let url = servers.create_database(name).await?;
    let ledger = Ledger::connect(url.as_str(), &servers.redis_url).await?;
    schema::MIGRATOR.run(&ledger.pools.work).await?;
    ensure_partitions(&ledger.pools.work).await?;
    enqueue_live(&ledger.pools.work).await?;
    Ok(ledger)
}

/// Jobs that wait for their time and jobs that are held.
async fn enqueue_live(pool: &PgPool) -> anyhow::Result<()> {
    let mut tx = pool.begin().await?;
    let hold = NewHold {
        scope: Scope::Tenant,
        value: "held".into(),
        mode: Mode::Pause,
        reason: None,
        set_by: "bench".into(),
        until: None,
    };
    // Nothing was admitted that it would take back.
    let _held = set_hold(&mut tx, hold).await?;
    for tenant in ["later", "held"] {
        let template = NewJob {
            queue: OTHERS.into(),
            ..job(tenant, String::new(), 200)
        };
        let keys: Vec<String> = (0..LIVE).map(|n| format!("{tenant}-{n}")).collect();
        enqueue_many(&mut tx, &template, &keys).await?;
    }
    sqlx::raw_sql(
        "UPDATE jobs SET wait = 'time', run_at = run_at + interval '1 day', deadline_at = deadline_at + interval '1 day'
         WHERE tenant = 'later';
         UPDATE jobs SET created_at = created_at - (seq % 10) * interval '1 day'",
    )
    .execute(&mut *tx)
    .await?;
    tx.commit().await?;
    sqlx::raw_sql("VACUUM ANALYZE").execute(pool).await?;
    Ok(())
}

/// Days of an outcome that are kept, today included.
fn kept(outcome: &str) -> i64 {
    i64::from(match outcome {
        "succeeded" => KEEP.succeeded_days,
        "dead" => KEEP.dead_days,
        "cancelled" => KEEP.cancelled_days,
        _ => KEEP.superseded_days,
    }) + 1
}

async fn fill(arguments: &HistoryArguments, full: &Ledger) -> anyhow::Result<()> {
    let pool = &full.pools.work;
    let began = Instant::now();
    for (outcome, share) in MIX {
        let days = kept(outcome) + arguments.due_days;
        make_days(pool, outcome, days).await?;
        let past = Past {
            outcome,
            kind: "past",
            count: arguments.finished * share / 100,
            days,
            error: if outcome == "dead" { "as seeded" } else { "" },
        };
        insert(pool, &past).await?;
    }
    sqlx::raw_sql("VACUUM ANALYZE").execute(pool).await?;
    let (rows, partitions, bytes): (i64, i64, i64) = sqlx::query_as(
        "SELECT (SELECT count(*) FROM job_history), count(*), coalesce(sum(pg_total_relation_size(relid)), 0)::bigint
         FROM pg_partition_tree('job_history') WHERE isleaf",
    )
    .fetch_one(pool)
    .await?;
    println!(
        "full: {rows} finished jobs in {partitions} partitions ({} MiB), written in {:.0} s; in both {LIVE} jobs wait for their time and {LIVE} are held",
        bytes >> 20,
        began.elapsed().as_secs_f64()
    );
    Ok(())
}

async fn compare(
    arguments: &HistoryArguments,
    servers: &mut Servers,
    sides: [&Ledger; 2],
) -> anyhow::Result<()> {
    println!(
        "{} jobs a turn, enqueued in a transaction each by {CLIENTS} clients, then run with {} slots; {} rounds after one that does not count",
        arguments.backlog, arguments.slots, arguments.rounds
    );
    let mut all: [[Vec<f64>; 2]; 2] = Default::default();
    for round in 0..=arguments.rounds {
        let mut told = format!("  round {round}:");
        // Who begins changes, so that neither always comes after the other.
        let order = if round % 2 == 0 { [0, 1] } else { [1, 0] };
        for at in order {
            servers.reset_redis(None).await?;
            let rates = turn(arguments, sides[at]).await?;
            let name = ["empty", "full"][at];
            told += &format!(
                " {name} enqueued {:.0}/s, finished {:.0}/s;",
                rates.enqueued, rates.finished
            );
            if round > 0 {
                all[at][0].push(rates.enqueued);
                all[at][1].push(rates.finished);
            }
        }
        println!("{}", told.trim_end_matches(';'));
    }
    let [empty, full] = all;
    for (what, empty, full) in [
        ("enqueue", &empty[0], &full[0]),
        ("claim, run and finish", &empty[1], &full[1]),
    ] {
        let ratio = median(full) / median(empty);
        println!(
            "{what}: empty {:.0}/s, full {:.0}/s, full / empty {ratio:.3} (medians of {}); within 15 %: {}",
            median(empty),
            median(full),
            arguments.rounds,
            yes(ratio >= 0.85)
        );
    }
    Ok(())
}

async fn turn(arguments: &HistoryArguments, ledger: &Ledger) -> anyhow::Result<Rates> {
    let pool = &ledger.pools.work;
    sqlx::raw_sql("CHECKPOINT").execute(pool).await?;
    let begun: chrono::DateTime<chrono::Utc> = sqlx::query_scalar("SELECT longshore_now()")
        .fetch_one(pool)
        .await?;
    let start = Instant::now();
    let share = arguments.backlog / CLIENTS;
    let clients = (0..CLIENTS).map(|client| async move {
        for n in 0..share {
            let mut tx = pool.begin().await?;
            // Nobody is told: none is to run yet.
            let _waiting = enqueue(&mut tx, job("bench", format!("{client}-{n}"), 200)).await?;
            tx.commit().await?;
        }
        anyhow::Ok(())
    });
    futures_util::future::try_join_all(clients).await?;
    let count = share * CLIENTS;
    let enqueued = count as f64 / start.elapsed().as_secs_f64();
    // What the enqueues left behind is written out, so that it does not fall into the other's time.
    sqlx::raw_sql("CHECKPOINT").execute(pool).await?;
    let noop = Arc::new(Noop::default());
    let start = Instant::now();
    let engine = ledger.start(noop.clone(), arguments.slots).await?;
    tokio::time::timeout(PATIENCE, until_gone(pool, &noop, count))
        .await
        .context("a backlog was not done in ten minutes")??;
    let finished = count as f64 / start.elapsed().as_secs_f64();
    engine.stop(Duration::from_secs(5)).await;
    // The history is as before the turn.
    sqlx::query("DELETE FROM job_history WHERE finished_at >= $1 AND kind = 'noop'")
        .bind(begun)
        .execute(pool)
        .await?;
    let today: String =
        sqlx::query_scalar("SELECT to_char(longshore_now() AT TIME ZONE 'UTC', 'YYYYMMDD')")
            .fetch_one(pool)
            .await?;
    let tidy = format!("VACUUM ANALYZE jobs, job_slots, job_history_succeeded_{today}");
    sqlx::raw_sql(AssertSqlSafe(tidy)).execute(pool).await?;
    Ok(Rates { enqueued, finished })
}

async fn until_gone(pool: &PgPool, noop: &Noop, count: usize) -> anyhow::Result<()> {
    loop {
        if noop.0.load(Ordering::Relaxed) >= count {
            let left: bool =
                sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM jobs WHERE queue = 'noop')")
                    .fetch_one(pool)
                    .await?;
            if !left {
                return Ok(());
            }
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// What is in the database: rows that are due and rows that are not, by outcome, and the live ones; each set with a sum
/// over its ids.
#[derive(Debug, PartialEq, Eq, sqlx::FromRow)]
struct Stock {
    what: String,
    due: i64,
    kept: i64,
    kept_ids: String,
}

async fn stock(pool: &PgPool) -> anyhow::Result<Vec<Stock>> {
    Ok(sqlx::query_as(
        "WITH rows AS (
             SELECT outcome::text AS what, id, finished_at < date_trunc('day', longshore_now(), 'UTC') - interval '1 day' *
                 CASE outcome WHEN 'succeeded' THEN $1 WHEN 'dead' THEN $2 WHEN 'cancelled' THEN $3 ELSE $4 END AS due
             FROM job_history
             UNION ALL
             SELECT tenant, id, false FROM jobs
         )
         SELECT what, count(*) FILTER (WHERE due) AS due, count(*) FILTER (WHERE NOT due) AS kept,
             coalesce(sum(hashtextextended(id::text, 0)) FILTER (WHERE NOT due), 0)::text AS kept_ids
         FROM rows GROUP BY what ORDER BY what",
    )
    .bind(f64::from(KEEP.succeeded_days))
    .bind(f64::from(KEEP.dead_days))
    .bind(f64::from(KEEP.cancelled_days))
    .bind(f64::from(KEEP.superseded_days))
    .fetch_all(pool)
    .await?)
}

async fn drop_old(pool: &PgPool) -> anyhow::Result<()> {
    let before = stock(pool).await?;
    let start = Instant::now();
    let pruned = prune(pool, KEEP).await?;
    let took = start.elapsed();
    let after = stock(pool).await?;
    anyhow::ensure!(pruned.busy.is_empty(), "busy: {:?}", pruned.busy);
    let mut dropped = 0;
    for (was, is) in before.iter().zip(&after) {
        println!(
            "  {}: {} due, {} kept; then {} due, {} kept",
            was.what, was.due, was.kept, is.due, is.kept
        );
        anyhow::ensure!(
            was.what == is.what
                && is.due == 0
                && was.kept == is.kept
                && was.kept_ids == is.kept_ids,
            "not exactly the due part went: {before:?} became {after:?}"
        );
        dropped += was.due;
    }
    anyhow::ensure!(before.len() == after.len(), "{before:?} became {after:?}");
    println!(
        "pruned: {dropped} jobs in {} partitions and {} rows by themselves, in {:.3} s; under 1 s: {}; nothing else went",
        pruned.partitions.len(),
        pruned.rows,
        took.as_secs_f64(),
        yes(took < Duration::from_secs(1))
    );
    Ok(())
}

fn yes(is: bool) -> &'static str {
    if is { "yes" } else { "NO" }
}
