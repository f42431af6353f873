//! Weights: of two tenants with backlogs one of weight three gets three starts for each one of the other's, and one with
//! little waiting does not wait for either.
//!
//! `PROPTEST_CASES` sets the number of races. Jobs run equally long in them, or end in any order: what is shared are
//! slots, so only where runs are equally long are starts shared alike.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on has failed"
)]

use std::collections::HashMap;
use std::time::Duration;

use longshore_base::testing::TestDatabase;
use longshore_base::{JobId, schema};
use longshore_ledger::control::{clear_weight, set_weight};
use longshore_ledger::testing::Steps;
use longshore_ledger::{
    Backoff, ClaimedJob, Jitter, KindSpec, Kinds, NewJob, Policy, Verdict, enqueue_many,
};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestError, TestRunner};

/// Races, unless `PROPTEST_CASES` says otherwise.
const CASES: u32 = 12;
const QUEUE: &str = "test";
const WORKER: &str = "w";

/// A queue of its own with one worker, whose steps the test takes.
struct Queue<'a> {
    database: &'a TestDatabase,
    steps: Steps,
    running: Vec<ClaimedJob>,
    keys: usize,
}

impl<'a> Queue<'a> {
    async fn open(database: &'a TestDatabase, slots: usize) -> Self {
        // Nothing here outlives the server, so nothing has to wait for a disk.
        sqlx::raw_sql(
            "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET synchronous_commit = off', current_database()); END $$;
             DELETE FROM jobs; DELETE FROM job_slots; DELETE FROM job_history; DELETE FROM workers;
             DELETE FROM queue_tenants; DELETE FROM queue_clocks; DELETE FROM tenant_weights;",
        )
        .execute(database.pool())
        .await
        .unwrap();
        let policy = Policy {
            max_attempts: 1,
            backoff: Backoff {
                base: Duration::ZERO,
                cap: Duration::ZERO,
                jitter: Jitter::None,
            },
            timeout: Duration::from_secs(3600),
            deadline: Duration::from_secs(24 * 3600),
            concurrency: slots,
        };
        let kinds = Kinds::default().with(KindSpec {
            name: QUEUE,
            args_versions: &[1],
            policy,
            hooks: None,
        });
        let steps = Steps::new(database.pool().clone(), kinds);
        steps.register(WORKER, &[QUEUE], [0, slots]).await.unwrap();
        Self {
            database,
            steps,
            running: Vec::new(),
            keys: 0,
        }
    }

    async fn weigh(&self, tenant: &str, weight: i16) {
        let mut tx = self.database.pool().begin().await.unwrap();
        let (set, _) = set_weight(&mut tx, tenant, weight, None, "test")
            .await
            .unwrap();
        assert_eq!(set.weight, weight);
        tx.commit().await.unwrap();
    }

    async fn clear(&self, tenant: &str) {
        let mut tx = self.database.pool().begin().await.unwrap();
        clear_weight(&mut tx, tenant).await.unwrap();
        tx.commit().await.unwrap();
    }

    async fn enqueue(&mut self, tenant: &str, count: usize) {
        let template = NewJob {
            kind: QUEUE,
            queue: QUEUE.into(),
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
        let keys: Vec<String> = (self.keys..self.keys + count)
            .map(|key| key.to_string())
            .collect();
        self.keys += count;
        let mut tx = self.database.pool().begin().await.unwrap();
        enqueue_many(&mut tx, &template, &keys).await.unwrap();
        tx.commit().await.unwrap();
    }

    /// One pass; answers whose jobs started, in their order.
    async fn start(&mut self) -> Vec<String> {
        let hints = self.steps.admit(QUEUE).await.unwrap();
        if hints.is_empty() {
            return Vec::new();
        }
        let claimed = self.steps.claim(WORKER, &hints).await.unwrap();
        let mut claimed: HashMap<JobId, ClaimedJob> =
            claimed.into_iter().map(|job| (job.id, job)).collect();
        let jobs = hints.iter().map(|(id, _)| claimed.remove(id).unwrap());
        let first = self.running.len();
        self.running.extend(jobs);
        let started = self.running.iter().skip(first);
        started.map(|job| job.tenant.clone()).collect()
    }

    /// These runs end, by their place among those that run; answers whose they were.
    async fn end(&mut self, places: impl Iterator<Item = usize>) -> Vec<String> {
        let runs: Vec<_> = places
            .map(|place| (self.running.remove(place), Verdict::Done(None)))
            .collect();
        let ended = runs.iter().map(|(job, _)| job.tenant.clone()).collect();
        self.steps.finish(WORKER, runs).await;
        ended
    }

    /// So many starts, of runs that are equally long; answers how many each tenant had.
    async fn starts(&mut self, count: usize) -> HashMap<String, usize> {
        let mut seen = HashMap::new();
        for _ in 0..count {
            self.end(std::iter::once(0)).await;
            let started = self.start().await;
            assert_eq!(started.len(), 1);
            for tenant in started {
                *seen.entry(tenant).or_default() += 1;
            }
        }
        seen
    }
}

#[tokio::test]
async fn a_weight_holds_from_the_next_pass_on_until_it_is_cleared() {
    const SLOTS: usize = 8;
    let database = TestDatabase::create(&schema::MIGRATOR).await;
    let mut queue = Queue::open(&database, SLOTS).await;
    for tenant in ["a", "b"] {
        queue.enqueue(tenant, 150).await;
    }
    queue.start().await;
    for (weight, of_a) in [(None, 20), (Some(3), 30), (Some(4), 32), (None, 20)] {
        match weight {
            Some(weight) => queue.weigh("a", weight).await,
            None => queue.clear("a").await,
        }
        // What runs was started under the weight before.
        queue.starts(2 * SLOTS).await;
        let starts = queue.starts(40).await;
        assert!(
            starts["a"].abs_diff(of_a) <= 1,
            "{weight:?}: {starts:?} instead of {of_a}"
        );
    }
}

/// A race of tenants for slots.
#[derive(Clone, Debug)]
struct Race {
    slots: usize,
    /// Weight, jobs at the start, jobs it comes back with once it has none left.
    tenants: Vec<(i16, usize, usize)>,
    /// Runs are equally long.
    equal: bool,
    /// How many runs end between two passes, which ones, and whether somebody new comes.
    chances: Vec<(usize, usize, bool)>,
}

fn race() -> impl Strategy<Value = Race> {
    let weight = prop_oneof![Just(1_i16), 1_i16..=4, 1_i16..=12];
    let tenant = (weight, 1_usize..=5, 0_usize..=4, 0_usize..=2);
    (
        1_usize..=16,
        prop::collection::vec(tenant, 2..=5),
        any::<bool>(),
        any::<bool>(),
        prop::collection::vec((0_usize..64, 0_usize..64, prop::bool::weighted(0.1)), 16),
    )
        .prop_map(|(slots, tenants, equal, alone, mut chances)| {
            let mut tenants: Vec<_> = tenants
                .into_iter()
                .map(|(weight, rounds, more, back)| {
                    let round = usize::try_from(weight).unwrap();
                    (weight, rounds * round + more, back * round)
                })
                .collect();
            if alone {
                // Nobody comes and nobody comes back.
                tenants.iter_mut().for_each(|tenant| tenant.2 = 0);
                chances.iter_mut().for_each(|chance| chance.2 = false);
            }
            Race {
                slots,
                tenants,
                equal,
                chances,
            }
        })
}

/// What a tenant has, and had.
struct Runner {
    name: String,
    weight: f64,
    waiting: usize,
    running: usize,
    starts: usize,
    comes_back_with: usize,
    /// Starts of others while it had jobs waiting and none running.
    passed_by: usize,
    /// Its number of starts, and everybody's, when it began to have jobs waiting.
    since: Vec<usize>,
}

async fn run(race: &Race, queue: &mut Queue<'_>) -> Result<(), String> {
    let mut runners = Vec::new();
    for (index, (weight, jobs, back)) in race.tenants.iter().enumerate() {
        let name = format!("t{index}");
        // Some say that they weigh one.
        if *weight > 1 || index % 2 == 0 {
            queue.weigh(&name, *weight).await;
        }
        queue.enqueue(&name, *jobs).await;
        runners.push(Runner {
            name,
            weight: f64::from(*weight),
            waiting: *jobs,
            running: 0,
            starts: 0,
            comes_back_with: *back,
            passed_by: 0,
            since: vec![0; race.tenants.len()],
        });
    }
    let is_disturbed = race.tenants.iter().any(|(_, _, back)| *back > 0)
        || race.chances.iter().any(|(_, _, new)| *new);
    for turn in 0.. {
        let (ends, place, new) = race.chances[turn % race.chances.len()];
        let newcomer = format!("new-{turn}");
        // Among those who never had a turn it would wait by age.
        let all_served = runners
            .iter()
            .all(|runner| runner.waiting == 0 || runner.starts > 0);
        let new = new && all_served;
        if new {
            queue.enqueue(&newcomer, 1).await;
        }
        let mut started = queue.start().await;
        if new {
            if started.first() != Some(&newcomer) {
                return Err(format!("{newcomer} is not the next: {started:?}"));
            }
            started.remove(0);
        }
        for tenant in &started {
            note_start(&mut runners, tenant)?;
            if race.equal {
                compare(&runners, race.slots, is_disturbed)?;
            }
        }
        let left: usize = runners.iter().map(|runner| runner.waiting).sum();
        if queue.running.is_empty() {
            return match left {
                0 => Ok(()),
                _ => Err(format!("{left} jobs wait beside free slots")),
            };
        }
        let count = queue.running.len();
        let ends = 1 + ends % count;
        let places = (0..ends).map(|ended| match race.equal {
            true => 0,
            false => place % (count - ended),
        });
        for tenant in queue.end(places).await {
            if let Some(runner) = runners.iter_mut().find(|runner| runner.name == tenant) {
                runner.running -= 1;
            }
        }
        come_back(&mut runners, queue).await;
    }
    Ok(())
}

fn note_start(runners: &mut [Runner], tenant: &str) -> Result<(), String> {
    // A newcomer's start is no turn of anybody here.
    let Some(own) = runners.iter().position(|runner| runner.name == tenant) else {
        return Ok(());
    };
    let all: f64 = runners.iter().map(|runner| runner.weight).sum();
    let others = runners.len() - 1;
    for (index, runner) in runners.iter_mut().enumerate() {
        if index == own {
            runner.waiting -= 1;
            runner.running += 1;
            runner.starts += 1;
            runner.passed_by = 0;
        } else if runner.waiting > 0 && runner.running == 0 {
            runner.passed_by += 1;
            let most = (all - runner.weight) / runner.weight + others as f64;
            if runner.passed_by as f64 > most + 1e-6 {
                return Err(format!(
                    "{} starts of others went before {}, of weight {}",
                    runner.passed_by, runner.name, runner.weight
                ));
            }
        }
    }
    Ok(())
}

/// Two that have had jobs waiting all the time have had the same number of rounds, give or take one. Whoever comes later
/// finds the slots taken, and gets its share of them first.
fn compare(runners: &[Runner], slots: usize, is_disturbed: bool) -> Result<(), String> {
    for (first, a) in runners.iter().enumerate() {
        for (second, b) in runners.iter().enumerate().skip(first + 1) {
            if a.waiting == 0 || b.waiting == 0 {
                continue;
            }
            let rounds = |runner: &Runner, index: usize| {
                let before = a.since[index].max(b.since[index]);
                (runner.starts - before) as f64 / runner.weight
            };
            let apart = (rounds(a, first) - rounds(b, second)).abs();
            let most = match is_disturbed {
                true => 2.0 + slots as f64 / (a.weight + b.weight),
                false => 1.0,
            };
            if apart > most + 1e-6 {
                return Err(format!(
                    "{} of weight {} and {} of weight {} are {apart} rounds apart",
                    a.name, a.weight, b.name, b.weight
                ));
            }
        }
    }
    Ok(())
}

async fn come_back(runners: &mut [Runner], queue: &mut Queue<'_>) {
    let starts: Vec<usize> = runners.iter().map(|runner| runner.starts).collect();
    for runner in runners {
        if runner.waiting + runner.running == 0 && runner.comes_back_with > 0 {
            runner.waiting = std::mem::take(&mut runner.comes_back_with);
            runner.passed_by = 0;
            runner.since.clone_from(&starts);
            queue.enqueue(&runner.name, runner.waiting).await;
        }
    }
}

#[test]
fn starts_are_shared_by_weight_and_nobody_starves() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let mut config = Config {
        failure_persistence: None,
        ..Config::default()
    };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = CASES;
    }
    let database = runtime.block_on(TestDatabase::create(&schema::MIGRATOR));
    let ran = TestRunner::new(config).run(&race(), |race| {
        let ran = runtime.block_on(async {
            let mut queue = Queue::open(&database, race.slots).await;
            run(&race, &mut queue).await
        });
        ran.map_err(TestCaseError::fail)
    });
    match ran {
        Ok(()) => {}
        Err(TestError::Fail(why, race)) => panic!("{why}\n{race:?}"),
        Err(other) => panic!("{other}"),
    }
}
