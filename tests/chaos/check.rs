//! What must hold once the dust has settled, read from the ledger and the sink's log.
//!
//! A *run* is one fencing number of one job. It is closed when it said how it ended, and refused when the sink told it
//! that a later run had begun. A crash that the ledger counted explains one run that was not closed, or was refused, or
//! ended without its end being written; nothing else does.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::time::Duration;

use longshore_base::JobId;
use serde::Deserialize;
use serde_json::Value;
use sqlx::PgPool;
use uuid::Uuid;

use crate::arena::Account;
use crate::requests::Asked;
use crate::schedule::Plan;

const MAX_ATTEMPTS: i32 = 4;
const QUARANTINE_CRASHES: i32 = 2;

/// A line of the sink's log.
#[derive(Debug, Deserialize)]
struct Effect {
    at_us: u64,
    accepted: bool,
    job: Uuid,
    keys: Vec<String>,
    fence: i64,
    crashes: i32,
    pid: u32,
    what: String,
}

/// A job that has ended.
#[derive(Debug, sqlx::FromRow)]
struct Ended {
    id: Uuid,
    seq: i64,
    outcome: String,
    attempt: i32,
    crashes: i32,
    dispatch: i32,
    dedupe_key: Option<String>,
    errors: Value,
}

#[derive(Debug, Default)]
struct Run {
    pid: u32,
    /// Of the job before it.
    crashes: i32,
    keys: Vec<String>,
    /// From the first accepted effect to the last.
    span: Option<(u64, u64)>,
    ended: bool,
    failed: bool,
    stopped: bool,
    refused: bool,
}

/// Everything that is wrong.
pub(crate) async fn violations(
    pool: &PgPool,
    asked: &Asked,
    account: &Account,
    sink_log: &Path,
) -> Vec<String> {
    let mut wrong = account.unexplained.clone();
    for table in ["jobs", "job_slots", "job_keys"] {
        let left: i64 =
            sqlx::query_scalar(sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {table}")))
                .fetch_one(pool)
                .await
                .unwrap();
        if left > 0 {
            wrong.push(format!("{left} rows are left in {table}"));
        }
    }
    let jobs: Vec<Ended> = sqlx::query_as(
        "SELECT id, seq, outcome::text, attempt, crashes, dispatch, dedupe_key, errors FROM job_history
         WHERE kind LIKE 'effect%' ORDER BY seq",
    )
    .fetch_all(pool)
    .await
    .unwrap();
    let runs = read_runs(sink_log, &mut wrong);
    check_overlaps(&runs, &mut wrong);
    check_quarantine(&runs, &mut wrong);
    let mut plans: HashMap<JobId, Plan> = asked.unknown.iter().copied().collect();
    plans.extend(asked.accepted.iter().copied());
    let known: HashSet<Uuid> = jobs.iter().map(|job| job.id).collect();
    if known.len() != jobs.len() {
        wrong.push("a job ended twice".to_owned());
    }
    for (id, plan) in &asked.accepted {
        if !known.contains(&id.0) {
            wrong.push(format!("job {id} ({plan:?}) was accepted and is lost"));
        }
    }
    for job in &jobs {
        let Some(plan) = plans.get(&JobId(job.id)) else {
            wrong.push(format!("nobody asked for job {}", job.id));
            continue;
        };
        let own = runs.get(&job.id);
        for fault in faults_of(job, *plan, own, &jobs, account) {
            wrong.push(format!(
                "job {} ({plan:?}): {fault}; {}, attempt {}, crashes {}, dispatch {}, runs {:#?}",
                job.id, job.outcome, job.attempt, job.crashes, job.dispatch, own
            ));
        }
    }
    wrong
}

type Runs = HashMap<Uuid, BTreeMap<i64, Run>>;

fn read_runs(path: &Path, wrong: &mut Vec<String>) -> Runs {
    let mut runs = Runs::new();
    let log = std::fs::read_to_string(path).unwrap();
    for line in log.lines() {
        let effect: Effect = serde_json::from_str(line).unwrap();
        let run = runs
            .entry(effect.job)
            .or_default()
            .entry(effect.fence)
            .or_insert_with(|| Run {
                pid: effect.pid,
                crashes: effect.crashes,
                keys: effect.keys,
                ..Run::default()
            });
        if run.pid != effect.pid {
            wrong.push(format!(
                "two runs of job {} have the fence {}",
                effect.job, effect.fence
            ));
        }
        if !effect.accepted {
            run.refused = true;
            continue;
        }
        let began = run.span.map_or(effect.at_us, |(began, _)| began);
        run.span = Some((began, effect.at_us));
        match effect.what.as_str() {
            "end" => run.ended = true,
            "failed" => run.failed = true,
            "stopped" => run.stopped = true,
            _ => {}
        }
    }
    runs
}

/// No two runs of one key, or of one job, at the same time, as far as their effects counted.
fn check_overlaps(runs: &Runs, wrong: &mut Vec<String>) {
    let mut spans: BTreeMap<String, Vec<(u64, u64, i64)>> = BTreeMap::new();
    for (job, runs) in runs {
        for (fence, run) in runs {
            let Some((began, ended)) = run.span else {
                continue;
            };
            let keys = run.keys.iter().map(|key| format!("key {key}"));
            for name in keys.chain([format!("job {job}")]) {
                spans.entry(name).or_default().push((began, ended, *fence));
            }
        }
    }
    for (name, mut spans) in spans {
        spans.sort_unstable();
        for pair in spans.windows(2) {
            let ((_, ended, fence), (began, _, next)) = (pair[0], pair[1]);
            if began < ended || next <= fence {
                wrong.push(format!(
                    "{name}: run {next} began while run {fence} went on"
                ));
            }
        }
    }
}

/// What has cost two workers runs alone in its worker.
fn check_quarantine(runs: &Runs, wrong: &mut Vec<String>) {
    let mut by_process: HashMap<u32, Vec<(&Run, u64, u64)>> = HashMap::new();
    for run in runs.values().flat_map(BTreeMap::values) {
        if let Some((began, ended)) = run.span {
            by_process
                .entry(run.pid)
                .or_default()
                .push((run, began, ended));
        }
    }
    for (pid, runs) in by_process {
        for (run, began, ended) in &runs {
            let beside = runs.iter().filter(|(other, from, to)| {
                !std::ptr::eq(*run, *other) && from < ended && began < to
            });
            let beside = beside.count();
            if run.crashes >= QUARANTINE_CRASHES && beside > 0 {
                wrong.push(format!(
                    "in process {pid} a run in quarantine had {beside} beside it"
                ));
            }
        }
    }
}

fn faults_of(
    job: &Ended,
    plan: Plan,
    runs: Option<&BTreeMap<i64, Run>>,
    all: &[Ended],
    account: &Account,
) -> Vec<String> {
    let mut faults = Vec::new();
    let count = |is: fn(&Run) -> bool| {
        let runs = runs.into_iter().flat_map(BTreeMap::values);
        i32::try_from(runs.filter(|run| is(run)).count()).unwrap()
    };
    let crashes = crash_workers(job);
    if i32::try_from(crashes.len()).unwrap() != job.crashes && !is_poison(job) {
        faults.push(format!("its errors tell of {} crashes", crashes.len()));
    }
    for worker in &crashes {
        let pid = worker.rsplit('-').nth(1).and_then(|pid| pid.parse().ok());
        if !pid.is_some_and(|pid| account.excused.contains(&pid)) {
            faults.push(format!(
                "taken from {worker}, to which nothing had happened"
            ));
        }
    }
    let unclosed = count(|run| !run.ended && !run.failed && !run.stopped);
    let (ended, failed, refused) = (
        count(|run| run.ended),
        count(|run| run.failed),
        count(|run| run.refused),
    );
    if refused > job.crashes {
        faults.push(format!("{refused} runs were refused"));
    }
    let succeeded = i32::from(job.outcome == "succeeded");
    if ended + failed + unclosed > succeeded + job.attempt + job.crashes {
        faults.push(format!(
            "{ended} runs ended, {failed} failed, {unclosed} broke off: more than the ledger knows of"
        ));
    }
    if ended + failed + unclosed + count(|run| run.stopped) > job.dispatch {
        faults.push("more runs than admissions".to_owned());
    }
    if failed < job.attempt || ended < succeeded {
        faults.push(format!("only {failed} runs failed and {ended} ended"));
    }
    let (outcome, attempt) = match plan {
        Plan::Succeed | Plan::Die(..=2) => ("succeeded", 0),
        Plan::Fail(failures) if failures < MAX_ATTEMPTS => ("succeeded", failures),
        Plan::Fail(_) => ("dead", MAX_ATTEMPTS),
        Plan::Permanent | Plan::Panic => ("dead", 1),
        Plan::Die(_) => ("dead", 0),
    };
    if is_poison(job) {
        // Three workers died with it, each of them of a fault, as was checked above.
        if job.crashes != 3 {
            faults.push("poison".to_owned());
        }
    } else if job.outcome == "superseded" {
        let has_twin = |twin: &Ended| twin.dedupe_key == job.dedupe_key && twin.seq > job.seq;
        if job.dedupe_key.is_none() || !all.iter().any(has_twin) {
            faults.push("superseded by nothing".to_owned());
        }
    } else if (job.outcome.as_str(), job.attempt) != (outcome, attempt) {
        faults.push(format!("expected {outcome} with {attempt} attempts"));
    }
    if let Plan::Die(deaths) = plan
        && job.crashes < deaths
    {
        faults.push(format!("expected {deaths} crashes"));
    }
    faults
}

fn is_poison(job: &Ended) -> bool {
    let last = job.errors.as_array().and_then(|errors| errors.last());
    last.is_some_and(|error| {
        error["error"]
            .as_str()
            .is_some_and(|text| text.starts_with("poison job"))
    })
}

/// The workers that died while running it.
fn crash_workers(job: &Ended) -> Vec<String> {
    let errors = job.errors.as_array().into_iter().flatten();
    errors
        .filter(|error| {
            let text = error["error"].as_str().unwrap_or_default();
            text.contains("died while running it")
        })
        .filter_map(|error| Some(error["worker"].as_str()?.to_owned()))
        .collect()
}

/// When runs ended, in the sink's time.
pub(crate) fn ends(sink_log: &Path) -> Vec<Duration> {
    let log = std::fs::read_to_string(sink_log).unwrap();
    let effects = log
        .lines()
        .map(|line| serde_json::from_str::<Effect>(line).unwrap());
    effects
        .filter(|effect| effect.accepted && effect.what == "end")
        .map(|effect| Duration::from_micros(effect.at_us))
        .collect()
}
