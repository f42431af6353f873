//! One run of the suite, from the seed to the verdict.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use longshore_base::Secret;
use longshore_ledger::{Admitter, HintConfig, Hints};
use longshore_tests::Caller;
use sqlx::PgPool;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::arena::{Arena, Ground, REDIS_PREFIX};
use crate::check::violations;
use crate::engine::OwnEngine;
use crate::failover::everybody_follows;
use crate::operator::{create_workspace, operate};
use crate::requests::ask;
use crate::schedule::{Scene, Schedule, WORKERS};
use crate::store::Store;
use crate::workspaces::{unsound_workspaces, wrong_workspaces};

const TICK: Duration = Duration::from_millis(50);
/// Longest time without the end of a job once the faults have ended. How long all take depends on how many there are.
const STANDS_STILL: Duration = Duration::from_secs(45);
/// Those who ask for jobs at the same time.
const HANDS: usize = 3;
const DEFAULT_SEED: u64 = 20_260_101;

/// `CHAOS_SEED`, else what the commit says, so that each is tested in its own way, and again in the same.
pub(crate) fn seed() -> u64 {
    if let Ok(seed) = std::env::var("CHAOS_SEED") {
        return seed.parse().expect("CHAOS_SEED is a number");
    }
    let commit = Command::new("git")
        .args(["rev-parse", "HEAD"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output();
    commit
        .ok()
        .and_then(|output| String::from_utf8(output.stdout).ok())
        .and_then(|hash| u64::from_str_radix(hash.get(..12)?, 16).ok())
        .unwrap_or(DEFAULT_SEED)
}

/// `CHAOS_MINUTES`.
pub(crate) fn length() -> Option<Duration> {
    let minutes = std::env::var("CHAOS_MINUTES").ok()?;
    let minutes: f64 = minutes.parse().expect("CHAOS_MINUTES is a number");
    Some(Duration::from_secs_f64(minutes * 60.0))
}

/// Lets everything fail for a while, then looks that nothing came of it.
pub(crate) async fn chaos(seed: u64, length: Duration, scene: Scene) {
    let directory = directory(&format!("chaos-{scene:?}-{seed}"));
    println!(
        "chaos: {scene:?}, seed {seed}, {length:?}; what it sees is in {}",
        directory.display()
    );
    let schedule = Schedule::draw(seed, length, scene);
    let (told, telling) = mpsc::unbounded_channel();
    let ground = match scene {
        Scene::Plain => Ground::plain().await,
        Scene::Sentinels => Ground {
            redis: Store::watched().await,
            engine: None,
        },
        Scene::Engine => match OwnEngine::start().await {
            Ok(engine) => Ground {
                engine: Some(engine),
                ..Ground::plain().await
            },
            Err(why) => {
                eprintln!("SKIPPED: no engine of its own can be had: {why}");
                return;
            }
        },
    };
    let mut arena = Arena::build_on(ground, &directory, WORKERS, told.clone()).await;
    let api = Caller::at(
        &format!("http://127.0.0.1:{}", arena.api_port),
        Some(&arena.admin_token),
    );
    let (pool, sink) = (arena.pool().clone(), arena.sink());
    let operating = tokio::spawn(operate(api.clone(), telling));
    let stop = CancellationToken::new();
    let admitter = admitter(&arena, &stop);
    let asking = {
        let (pool, admitter) = (pool.clone(), admitter.clone());
        let requests = schedule.requests.clone();
        tokio::spawn(async move { ask(&pool, &admitter, &sink, &requests, HANDS).await })
    };
    let people = tokio::spawn(ask_for_workspaces(api.clone(), schedule.workspaces.clone()));

    let began = Instant::now();
    let mut faults = schedule.faults.iter().peekable();
    // What has not ended by then is ended all at once.
    while began.elapsed() < length {
        arena.tend();
        while let Some((_, fault)) = faults.next_if(|(at, _)| *at <= began.elapsed()) {
            arena.apply(*fault).await;
        }
        tokio::time::sleep(TICK).await;
    }
    arena.heal().await;
    let settling = Instant::now();
    let is_asked = || asking.is_finished() && people.is_finished();
    until_settled(&mut arena, &directory, is_asked).await;
    let settled = settling.elapsed();
    drop(told);
    let (mut asked, workspaces) = (asking.await.unwrap(), people.await.unwrap());
    if scene == Scene::Sentinels {
        let more = everybody_follows(&mut arena, &api, &admitter).await;
        asked.accepted.extend(more.accepted);
        until_settled(&mut arena, &directory, || true).await;
    }
    let mut wrong = Vec::new();
    if let Some(engine) = &arena.engine {
        wrong.extend(unsound_workspaces(&pool, engine, &api, &workspaces).await);
    } else {
        wrong.extend(wrong_workspaces(&pool, &workspaces).await);
    }
    arena.close().await;
    let sink_log = directory.join("sink.jsonl");
    wrong.extend(violations(&pool, &asked, &arena.account, &sink_log).await);
    wrong.extend(forgotten_waiters(&directory));
    println!(
        "chaos: {} jobs asked for, {} commits unanswered, {} workspaces; {:?}; settled in {settled:.1?}",
        asked.accepted.len(),
        asked.unknown.len(),
        workspaces.len(),
        arena.account.counts
    );
    if !wrong.is_empty() {
        keep(&pool, &directory, &arena).await;
        let shown = wrong
            .iter()
            .take(20)
            .cloned()
            .collect::<Vec<_>>()
            .join("\n");
        panic!(
            "seed {seed}: {} violations; see {}\n{shown}",
            wrong.len(),
            directory.display()
        );
    }
    stop.cancel();
    drop(arena);
    operating.await.unwrap();
    std::fs::remove_dir_all(&directory).unwrap();
}

/// Waits until all has been asked for and has ended.
async fn until_settled(arena: &mut Arena, directory: &Path, is_asked: impl Fn() -> bool) {
    let pool = arena.pool().clone();
    let (mut left, mut moved) = (None, Instant::now());
    loop {
        arena.tend();
        let now_left = live(&pool).await;
        if is_asked() && now_left == Some(0) {
            return;
        }
        if now_left != left {
            (left, moved) = (now_left, Instant::now());
        }
        if moved.elapsed() > STANDS_STILL {
            keep(&pool, directory, arena).await;
            panic!(
                "{left:?} jobs are left, none of which ended for {STANDS_STILL:?}; see {}",
                directory.display()
            );
        }
        tokio::time::sleep(TICK).await;
    }
}

/// That of those who ask for jobs.
pub(crate) fn admitter(arena: &Arena, stop: &CancellationToken) -> Admitter {
    let hints = Hints::new(&HintConfig {
        url: Secret::new(arena.redis_url()),
        prefix: REDIS_PREFIX.to_owned(),
    })
    .unwrap();
    Admitter::new(arena.pool().clone(), hints, stop.clone())
}

pub(crate) async fn live(pool: &PgPool) -> Option<i64> {
    sqlx::query_scalar("SELECT count(*) FROM jobs")
        .fetch_one(pool)
        .await
        .ok()
}

/// Answers the names with the ids of the workspaces and their jobs.
async fn ask_for_workspaces(
    api: Caller,
    moments: Vec<Duration>,
) -> Vec<(String, (String, String))> {
    let began = Instant::now();
    let mut made = Vec::with_capacity(moments.len());
    for (number, at) in moments.into_iter().enumerate() {
        tokio::time::sleep(at.saturating_sub(began.elapsed())).await;
        let name = format!("workspace-{number}");
        let ids = create_workspace(&api, &name).await;
        made.push((name, ids));
    }
    made
}

/// The pass that wakes them is for what should not be.
fn forgotten_waiters(directory: &Path) -> Vec<String> {
    let logs = std::fs::read_dir(directory).unwrap().flatten();
    logs.filter_map(|log| {
        let text = std::fs::read_to_string(log.path()).ok()?;
        let line = text
            .lines()
            .find(|line| line.contains("jobs waited for keys nobody held"))?;
        Some(format!("{}: {line}", log.file_name().display()))
    })
    .collect()
}

pub(crate) fn directory(name: &str) -> PathBuf {
    let directory =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    directory
}

/// Writes down what a failing run leaves.
pub(crate) async fn keep(pool: &PgPool, directory: &Path, arena: &Arena) {
    std::fs::write(directory.join("schedule.log"), &arena.account.journal).unwrap();
    for table in [
        "jobs",
        "job_slots",
        "job_keys",
        "job_history",
        "workers",
        "queue_controls",
    ] {
        let rows: Result<Vec<String>, _> = sqlx::query_scalar(sqlx::AssertSqlSafe(format!(
            "SELECT row_to_json(t)::text FROM {table} t"
        )))
        .fetch_all(pool)
        .await;
        let text = match rows {
            Ok(rows) => rows.join("\n"),
            Err(error) => error.to_string(),
        };
        std::fs::write(directory.join(format!("{table}.jsonl")), text).unwrap();
    }
}
