//! `bench bulk`: many dead jobs are retried with one request while people go on looking at their workspaces.
//!
//! Everything is real: the binary as an API process and a worker process, a Postgres and a Redis, calls as an operator makes
//! them. The dead jobs are of the kind `stop`, which needs nothing but its row to come back. Its queue is paused first, as
//! an operator would who does not want all of them to start at once, so what is measured is the bulk action and not what
//! the jobs do. In the middle of it the worker is killed and another one started.
//!
//! Workspaces are asked for at a fixed pace whatever the answers take, and each answer's time counts from the moment
//! its request was due.

mod deployment;
mod looking;
mod memory;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::time::sleep;

use self::deployment::Deployment;
use self::looking::Looking;
use self::memory::Memory;
use crate::client::Api;
use crate::past::{Past, insert, make_days};
use crate::servers::Servers;

const DATABASE: &str = "bench_bulk";
const PATIENCE: Duration = Duration::from_secs(900);
/// What the dead jobs of the set died of; the filter names a part of it.
const ERROR: &str = "the workspace could not be stopped: the engine was away";
/// Days on which the jobs died.
const DAYS: i64 = 3;

#[derive(clap::Args)]
pub(crate) struct BulkArguments {
    /// A server of the benchmark's own: databases are made and dropped in it.
    #[arg(long, env = "BENCH_DATABASE_URL")]
    database_url: String,
    /// A Redis of the benchmark's own.
    #[arg(long, env = "BENCH_REDIS_URL")]
    redis_url: String,
    /// The binary to measure.
    #[arg(
        long,
        env = "LONGSHORE_BIN",
        default_value = "target/release/longshore"
    )]
    longshore: PathBuf,
    /// Dead jobs that the filter matches.
    #[arg(long, default_value_t = 100_000)]
    jobs: i64,
    /// Ended jobs that it does not match, by their error, their kind or how they ended.
    #[arg(long, default_value_t = 1_000)]
    others: i64,
    /// Looks at a workspace, a second.
    #[arg(long, default_value_t = 50)]
    looks: u32,
    /// How long it is looked at before the bulk action begins, in seconds.
    #[arg(long, default_value_t = 10)]
    before: u64,
}

pub(crate) async fn run(arguments: BulkArguments) -> anyhow::Result<()> {
    let mut servers = Servers::connect(&arguments.database_url, &arguments.redis_url).await?;
    servers.set_durable(true).await?;
    servers.print_settings().await?;
    let url = servers.create_database(DATABASE).await?;
    let pool = PgPool::connect_lazy(url.as_str())?;
    let mut deployment =
        Deployment::start(&arguments.longshore, url.as_str(), &servers.redis_url).await?;
    measure(&arguments, &mut deployment, &pool).await?;
    deployment.stop().await?;
    pool.close().await;
    servers.drop_database(DATABASE).await?;
    servers.reset_redis(None).await
}

async fn measure(
    arguments: &BulkArguments,
    deployment: &mut Deployment,
    pool: &PgPool,
) -> anyhow::Result<()> {
    seed(arguments, pool).await?;
    let api = deployment.api();
    let workspace = json!({ "name": "looked at", "external": true });
    let workspace = api.post("/workspaces", workspace).await?;
    let workspace = text(&workspace, "id")?;
    let mut memory = Memory::watch([
        ("api", deployment.api_pid()?),
        ("worker 1", deployment.worker_pid()?),
    ]);
    let pause = json!({ "reason": "the jobs are only to come back" });
    api.post("/queues/stop/pause", pause).await?;
    let path = format!("/workspaces/{workspace}");

    let looking = Looking::start(&api, &path, arguments.looks);
    sleep(Duration::from_secs(arguments.before)).await;
    looking.stop().await?.print("before it");

    let filter = json!({ "kind": "stop", "error": "engine was away" });
    let start = Instant::now();
    let dry_run = json!({ "action": "retry", "filter": filter, "dry_run": true });
    let counted = api.post("/jobs/bulk", dry_run).await?;
    println!(
        "dry run: {} matched, counted in {:.0} ms",
        counted["matched"],
        start.elapsed().as_secs_f64() * 1e3
    );
    anyhow::ensure!(counted["matched"] == arguments.jobs, "{counted}");
    let token = text(&counted, "filter_token")?;

    let looking = Looking::start(&api, &path, arguments.looks);
    let start = Instant::now();
    let apply = json!({ "action": "retry", "filter_token": token });
    let started = api.post("/jobs/bulk", apply).await?;
    let job = text(&started, "job_id")?;
    let done = until_done(&api, &job, arguments.jobs / 3).await?;
    deployment.kill_worker().await?;
    let killed = start.elapsed();
    // While nobody goes on, answers are quicker; those are not to flatter the others.
    let mut looks = looking.stop().await?;
    let looking = Looking::start(&api, &path, arguments.looks);
    deployment.start_worker().await?;
    memory.also("worker 2", deployment.worker_pid()?);
    let at_kill = recorded(pool, &job).await?;
    until_done(&api, &job, at_kill + 1).await?;
    let resumed = start.elapsed();
    let looks_between = looking.stop().await?;
    let looking = Looking::start(&api, &path, arguments.looks);
    let ended = until_ended(&api, &job).await?;
    let took = start.elapsed();
    looks.add(looking.stop().await?);
    println!(
        "apply: the worker was killed after {:.1} s ({done} done by then), another went on after {:.1} s, the end after {:.1} s",
        killed.as_secs_f64(),
        resumed.as_secs_f64(),
        took.as_secs_f64()
    );
    println!("result: {}, crashes {}", ended["result"], ended["crashes"]);
    looks.print("while jobs came back");
    looks_between.print("while there was no worker");
    memory.stop().await.print();

    let expected = json!({ "done": arguments.jobs, "matched": arguments.jobs, "failed": 0 });
    anyhow::ensure!(
        ended["state"] == "succeeded" && ended["result"] == expected,
        "{ended}"
    );
    anyhow::ensure!(ended["crashes"] == 1, "the kill did not hit it: {ended}");
    verify(arguments, pool).await
}

/// Jobs of the set and others, with what is needed to compare them afterwards.
async fn seed(arguments: &BulkArguments, pool: &PgPool) -> anyhow::Result<()> {
    make_days(pool, "dead", DAYS).await?;
    make_days(pool, "cancelled", DAYS).await?;
    let sort = |outcome, kind, count, error| Past {
        outcome,
        kind,
        count,
        days: DAYS,
        error,
    };
    let third = arguments.others / 3;
    for past in [
        sort("dead", "stop", arguments.jobs, ERROR),
        sort("dead", "stop", third, "another error"),
        sort("cancelled", "stop", third, ERROR),
        sort("dead", "provision", arguments.others - 2 * third, ERROR),
    ] {
        insert(pool, &past).await?;
    }
    sqlx::query(
        "CREATE TABLE bench_before AS
             SELECT id, revision, outcome, kind = 'stop' AND outcome = 'dead' AND errors::text LIKE '%engine was away%' AS wanted
             FROM job_history",
    )
    .execute(pool)
    .await?;
    sqlx::raw_sql("VACUUM ANALYZE").execute(pool).await?;
    println!(
        "{} dead jobs of the set, {} others",
        arguments.jobs, arguments.others
    );
    Ok(())
}

/// Exactly the counted ones came back, each once, and nothing happened to any other.
async fn verify(arguments: &BulkArguments, pool: &PgPool) -> anyhow::Result<()> {
    // A retry raises the revision by one, and nothing else touches what waits in a paused queue.
    let (once, live, left, untouched): (i64, i64, i64, i64) = sqlx::query_as(
        "SELECT
             (SELECT count(*) FROM bench_before AS b JOIN jobs USING (id)
              WHERE wanted AND jobs.revision = b.revision + 1 AND state = 'scheduled' AND attempt = 0),
             (SELECT count(*) FROM jobs),
             (SELECT count(*) FROM bench_before JOIN job_history USING (id) WHERE wanted),
             (SELECT count(*) FROM bench_before AS b JOIN job_history AS h USING (id)
              WHERE NOT wanted AND h.revision = b.revision AND h.outcome = b.outcome)",
    )
    .fetch_one(pool)
    .await?;
    println!(
        "afterwards: {once} of {} wait again, each retried once; {live} live jobs in all; {left} of the set left behind; {untouched} of {} others untouched",
        arguments.jobs, arguments.others
    );
    anyhow::ensure!(
        (once, live, left, untouched) == (arguments.jobs, arguments.jobs, 0, arguments.others),
        "not exactly the counted set was retried"
    );
    Ok(())
}

fn text(value: &Value, key: &str) -> anyhow::Result<String> {
    value[key]
        .as_str()
        .map(str::to_owned)
        .with_context(|| format!("no {key} in {value}"))
}

/// Waits until the job says that so many are done; how many it says.
async fn until_done(api: &Api, job: &str, done: i64) -> anyhow::Result<i64> {
    let start = Instant::now();
    loop {
        let job = api.get(&format!("/jobs/{job}")).await?;
        anyhow::ensure!(
            job["finished_at"].is_null(),
            "it ended before it could be killed; take more jobs: {job}"
        );
        let told = job["progress"]["message"].as_str().unwrap_or("{}");
        let told: Value = serde_json::from_str(told)?;
        if let Some(now) = told["done"].as_i64().filter(|now| *now >= done) {
            return Ok(now);
        }
        anyhow::ensure!(start.elapsed() < PATIENCE, "no progress: {job}");
        sleep(Duration::from_millis(50)).await;
    }
}

/// How many are done by what the job has written down, which outlives its worker.
async fn recorded(pool: &PgPool, job: &str) -> anyhow::Result<i64> {
    let done: Option<i64> =
        sqlx::query_scalar("SELECT (checkpoint ->> 'done')::bigint FROM jobs WHERE id = $1::uuid")
            .bind(job)
            .fetch_one(pool)
            .await?;
    done.context("the job has written nothing down")
}

async fn until_ended(api: &Api, job: &str) -> anyhow::Result<Value> {
    let start = Instant::now();
    loop {
        let job = api.get(&format!("/jobs/{job}")).await?;
        if !job["finished_at"].is_null() {
            return Ok(job);
        }
        anyhow::ensure!(start.elapsed() < PATIENCE, "it does not end: {job}");
        sleep(Duration::from_millis(100)).await;
    }
}
