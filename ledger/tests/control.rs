//! The operator's hands on a queue: what is closed stays closed, what is opened runs, and nothing is lost on the way.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[expect(dead_code, reason = "most of it is for the other tests")]
mod rig;

use std::collections::HashSet;
use std::time::{Duration, Instant};

use chrono::TimeDelta;
use longshore_base::JobId;
use longshore_ledger::control::{
    self, AcceptError, LimitsPatch, Mode, NewHold, Scope, Subject, in_flight, lift_hold, resume,
    set_hold, set_limits, set_mode, settle,
};
use rig::{Behaviour, NewJobExt as _, Rig, new_job, state_of, until};

async fn close(rig: &Rig, mode: Mode) {
    let mut tx = rig.pool().begin().await.unwrap();
    let changed = set_mode(&mut tx, "test", mode, Some("engine upgrade"), "ops")
        .await
        .unwrap();
    tx.commit().await.unwrap();
    changed.pokes.iter().for_each(|queue| rig.poke(queue));
    settle(rig.pool(), Scope::Queue, "test").await.unwrap();
}

async fn open(rig: &Rig) {
    let mut tx = rig.pool().begin().await.unwrap();
    resume(&mut tx, "test", "ops").await.unwrap();
    tx.commit().await.unwrap();
    rig.poke("test");
}

async fn hold(rig: &Rig, scope: Scope, value: &str) -> uuid::Uuid {
    let mut tx = rig.pool().begin().await.unwrap();
    let hold = NewHold {
        scope,
        value: value.to_owned(),
        mode: Mode::Pause,
        reason: None,
        set_by: "ops".into(),
        until: None,
    };
    let changed = set_hold(&mut tx, hold).await.unwrap();
    tx.commit().await.unwrap();
    settle(rig.pool(), scope, value).await.unwrap();
    changed.control.id
}

async fn limit(rig: &Rig, patch: LimitsPatch) {
    let mut tx = rig.pool().begin().await.unwrap();
    set_limits(&mut tx, "test", patch, "ops").await.unwrap();
    tx.commit().await.unwrap();
}

fn keys(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{prefix}{n}")).collect()
}

async fn all_succeeded(rig: &Rig, count: i64) {
    until("all jobs to succeed", || async {
        rig.succeeded().await == count
    })
    .await;
}

#[tokio::test]
async fn a_paused_queue_tells_why_its_jobs_wait_and_runs_them_all_when_it_is_resumed() {
    let rig = Rig::start(Behaviour::Done).await;
    close(&rig, Mode::Pause).await;
    let ids = rig.enqueue_many(&keys("k", 20)).await;
    let job = rig.job(ids[0]).await;
    let waiting = job.waiting.unwrap();
    assert_eq!(waiting.reason, "paused");
    assert!(
        waiting
            .text
            .starts_with("waiting: queue test is paused since ")
            && waiting.text.ends_with(" by ops: engine upgrade"),
        "{}",
        waiting.text
    );
    assert_eq!(rig.runs(), 0);
    open(&rig).await;
    all_succeeded(&rig, 20).await;
}

#[tokio::test]
async fn a_pause_takes_admitted_jobs_back_and_frees_their_slots() {
    let mut rig = Rig::with_slots(Behaviour::Gate, 2).await;
    let ids = rig.enqueue_many(&keys("k", 10)).await;
    until("two to run and others to be admitted", || async {
        rig.runs() == 2
            && rig
                .count("SELECT count(*) FROM jobs WHERE state = 'queued'")
                .await
                > 0
    })
    .await;
    close(&rig, Mode::Drain).await;
    assert_eq!(
        rig.count("SELECT count(*) FROM jobs WHERE state = 'queued'")
            .await,
        0
    );
    assert_eq!(rig.slots().await.len(), 2, "only what runs holds a slot");
    assert_eq!(
        in_flight(rig.pool(), "test", Duration::ZERO).await.unwrap(),
        2
    );
    rig.open_gate();
    assert_eq!(
        in_flight(rig.pool(), "test", rig::DEADLINE).await.unwrap(),
        0
    );
    assert_eq!(rig.runs(), 2, "draining starts nothing new");
    // Whoever comes next finds it as it was left.
    rig.stop(Duration::from_secs(5)).await;
    rig.start_again().await;
    assert_eq!(state_of(&rig, ids[9]).await, "scheduled");
    open(&rig).await;
    all_succeeded(&rig, 10).await;
    for id in ids {
        assert_eq!(rig.job(id).await.attempt, 0, "nobody lost an attempt");
    }
}

/// 10 engines, 100 rounds each, every pause racing with enqueues, admissions and claims.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_starts_after_a_pause_has_answered() {
    futures_util::future::join_all((0..10).map(|_| race_pauses_with_admission(100))).await;
}

async fn race_pauses_with_admission(rounds: usize) {
    let rig = Rig::start(Behaviour::Done).await;
    for round in 0..rounds {
        let before = rig.enqueue_many(&keys(&format!("{round}a"), 15)).await;
        close(&rig, Mode::Pause).await;
        let answered = Instant::now();
        let after = rig.enqueue_many(&keys(&format!("{round}b"), 15)).await;
        rig.poke("test");
        tokio::time::sleep(Duration::from_millis(20)).await;
        let resumed = Instant::now();
        open(&rig).await;
        let total = i64::try_from((round + 1) * 30).unwrap();
        all_succeeded(&rig, total).await;
        let spans = rig.spans();
        assert!(
            !spans
                .iter()
                .any(|span| span.start > answered && span.start < resumed),
            "round {round}: a run started while the queue was paused"
        );
        let ran: Vec<JobId> = spans.iter().map(|span| span.id).collect();
        assert_eq!(ran.len(), 30, "each once");
        let expected: HashSet<JobId> = before.into_iter().chain(after).collect();
        assert_eq!(ran.into_iter().collect::<HashSet<_>>(), expected);
    }
}

#[tokio::test]
async fn holds_keep_back_what_they_name_and_nothing_else() {
    let rig = Rig::start(Behaviour::Done).await;
    let workspace = longshore_base::WorkspaceId(longshore_base::ids::random_uuid());
    let of_workspace = hold(&rig, Scope::Workspace, &workspace.to_string()).await;
    let of_tenant = hold(&rig, Scope::Tenant, "held").await;
    let mut held_workspace = new_job("a");
    held_workspace.workspace_id = Some(workspace);
    let first = rig.enqueue(held_workspace).await;
    let second = rig.enqueue(new_job("b").of_tenant("held")).await;
    let free = rig.enqueue(new_job("c")).await;
    until("the free one to run", || async {
        state_of(&rig, free).await == "succeeded"
    })
    .await;
    for id in [first, second] {
        assert_eq!(rig.job(id).await.waiting.unwrap().reason, "held");
    }
    for (hold, id) in [(of_workspace, first), (of_tenant, second)] {
        let mut tx = rig.pool().begin().await.unwrap();
        assert!(lift_hold(&mut tx, hold, "ops").await.unwrap().is_some());
        tx.commit().await.unwrap();
        rig.poke("test");
        until("the held one to run", || async {
            state_of(&rig, id).await == "succeeded"
        })
        .await;
    }
    let of_all = hold(&rig, Scope::All, "").await;
    let third = rig.enqueue(new_job("d")).await;
    assert_eq!(rig.job(third).await.waiting.unwrap().reason, "held");
    let mut tx = rig.pool().begin().await.unwrap();
    assert!(lift_hold(&mut tx, of_all, "ops").await.unwrap().is_some());
    assert!(lift_hold(&mut tx, of_all, "ops").await.unwrap().is_none());
    tx.commit().await.unwrap();
    rig.poke("test");
    all_succeeded(&rig, 4).await;
}

#[tokio::test]
async fn a_hold_lifts_itself_when_it_was_given_an_end() {
    let rig = Rig::start(Behaviour::Done).await;
    let mut tx = rig.pool().begin().await.unwrap();
    let now = longshore_base::clock::now(&mut *tx).await.unwrap();
    let until_when = now + TimeDelta::seconds(60);
    let held = NewHold {
        scope: Scope::Kind,
        value: "test".into(),
        mode: Mode::Pause,
        reason: None,
        set_by: "ops".into(),
        until: Some(until_when),
    };
    let _changed = set_hold(&mut tx, held).await.unwrap();
    tx.commit().await.unwrap();
    let id = rig.enqueue(new_job("a")).await;
    assert_eq!(rig.job(id).await.waiting.unwrap().until, Some(until_when));
    rig.advance(Duration::from_secs(61)).await;
    // No poke: a worker looks each second.
    all_succeeded(&rig, 1).await;
    let mut tx = rig.pool().begin().await.unwrap();
    assert_eq!(control::lift_expired(&mut tx).await.unwrap().len(), 1);
    assert!(control::lift_expired(&mut tx).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_rejecting_queue_refuses_requests_from_outside_only() {
    let rig = Rig::start(Behaviour::Done).await;
    let subject = Subject {
        kind: "test",
        place: None,
        tenant: "t",
        workspace_id: None,
    };
    let mut conn = rig.pool().acquire().await.unwrap();
    control::check_accepts(&mut conn, subject).await.unwrap();
    close(&rig, Mode::Reject).await;
    let refused = control::check_accepts(&mut conn, subject).await;
    let Err(AcceptError::Rejected(rejected)) = refused else {
        unreachable!("{refused:?}")
    };
    assert!(rejected.text.contains("queue test is closed"), "{rejected}");
    let id = rig.enqueue(new_job("internal")).await;
    assert_eq!(state_of(&rig, id).await, "scheduled");
    open(&rig).await;
    control::check_accepts(&mut conn, subject).await.unwrap();
    all_succeeded(&rig, 1).await;
}

#[tokio::test]
async fn never_more_run_than_a_limit_allows_and_all_run_in_the_end() {
    let rig = Rig::start(Behaviour::Record(Duration::from_millis(20))).await;
    limit(
        &rig,
        LimitsPatch {
            max_running: Some(Some(3)),
            ..LimitsPatch::default()
        },
    )
    .await;
    rig.enqueue_many(&keys("k", 40)).await;
    all_succeeded(&rig, 40).await;
    let spans = rig.spans();
    for span in &spans {
        let at_once = spans
            .iter()
            .filter(|other| other.start <= span.start && span.start < other.end)
            .count();
        assert!(at_once <= 3, "{at_once} ran at once");
    }
}

#[tokio::test]
async fn a_rate_spaces_admissions_and_its_removal_opens_the_queue() {
    let rig = Rig::start(Behaviour::Done).await;
    limit(
        &rig,
        LimitsPatch {
            rate_per_minute: Some(Some(1)),
            ..LimitsPatch::default()
        },
    )
    .await;
    let ids = rig.enqueue_many(&keys("k", 10)).await;
    all_succeeded(&rig, 1).await;
    rig.poke("test");
    until("the next to say why it waits", || async {
        rig.job(ids[1])
            .await
            .waiting
            .is_some_and(|why| why.reason == "limit")
    })
    .await;
    assert_eq!(rig.succeeded().await, 1);
    rig.advance(Duration::from_secs(61)).await;
    all_succeeded(&rig, 2).await;
    limit(
        &rig,
        LimitsPatch {
            rate_per_minute: Some(None),
            ..LimitsPatch::default()
        },
    )
    .await;
    all_succeeded(&rig, 10).await;
}

#[tokio::test]
async fn time_under_a_pause_does_not_count_against_a_deadline() {
    let rig = Rig::start(Behaviour::Done).await;
    close(&rig, Mode::Pause).await;
    let mut paused = new_job("a");
    paused.deadline = Duration::from_secs(3600);
    let paused = rig.enqueue(paused).await;
    let mut other = new_job("b")
        .hooked()
        .delayed(Duration::from_secs(20 * 3600));
    other.deadline = Duration::from_secs(3600);
    let other = rig.enqueue(other).await;
    rig.advance(Duration::from_secs(10 * 3600)).await;
    until(
        "the one that is not paused to die of its deadline",
        || async { state_of(&rig, other).await == "dead" },
    )
    .await;
    assert_eq!(state_of(&rig, paused).await, "scheduled");
    open(&rig).await;
    until("the paused one to run", || async {
        state_of(&rig, paused).await == "succeeded"
    })
    .await;
}
