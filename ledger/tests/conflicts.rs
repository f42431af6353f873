//! What a newer job does to an older one of the same key, wherever that is: each resolution in each place.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[expect(dead_code, reason = "most of it is for the other tests")]
mod rig;

use std::time::Duration;

use longshore_base::JobId;
use longshore_ledger::{Conflict, JobError, Older, Resolution, Verdict, resolve_conflicts};
use rig::{Behaviour, NewJobExt as _, Rig, new_job, state_of, until};

/// `new` is no kind of the rig; it only asks. What it does to `test` is the first half, to `hooked` the second.
static TABLE: [Conflict; 8] = {
    const fn cell(older: &'static str, when: Older, then: Resolution) -> Conflict {
        Conflict {
            newer: "new",
            older,
            when,
            then,
        }
    }
    [
        cell("test", Older::Scheduled, Resolution::Supersede),
        cell("test", Older::BackingOff, Resolution::Coalesce),
        cell("test", Older::Queued, Resolution::Supersede),
        cell("test", Older::Running, Resolution::Cancel),
        cell("hooked", Older::Scheduled, Resolution::Wait),
        cell("hooked", Older::BackingOff, Resolution::Supersede),
        cell("hooked", Older::Queued, Resolution::Wait),
        cell("hooked", Older::Running, Resolution::Wait),
    ]
};

async fn ask(rig: &Rig, key: &str) {
    let kinds = rig.kinds.clone().with_conflicts(&TABLE);
    let mut tx = rig.pool().begin().await.unwrap();
    let pokes = resolve_conflicts(&mut tx, &kinds, "new", &[key.to_owned()], "ops")
        .await
        .unwrap();
    tx.commit().await.unwrap();
    pokes.iter().for_each(|queue| rig.poke(queue));
}

async fn is_in(rig: &Rig, id: JobId, state: &str) {
    until("the job to be where it should", || async {
        state_of(rig, id).await == state
    })
    .await;
}

#[tokio::test]
async fn a_waiting_job_is_superseded_and_its_hook_runs_unless_the_table_lets_it_wait() {
    let rig = Rig::start(Behaviour::Done).await;
    let later = Duration::from_secs(600);
    let superseded = rig.enqueue(new_job("a").delayed(later)).await;
    let waits = rig.enqueue(new_job("b").hooked().delayed(later)).await;
    let other_key = rig.enqueue(new_job("c").delayed(later)).await;
    ask(&rig, "a").await;
    ask(&rig, "b").await;
    assert_eq!(state_of(&rig, superseded).await, "superseded");
    assert_eq!(
        rig.job(superseded).await.last_error.unwrap(),
        "a new was asked for by ops"
    );
    for id in [waits, other_key] {
        assert_eq!(state_of(&rig, id).await, "scheduled");
    }
}

#[tokio::test]
async fn a_running_job_is_asked_to_stop_unless_the_table_lets_it_run() {
    let rig = Rig::start(Behaviour::Gate).await;
    let cancelled = rig.enqueue(new_job("a")).await;
    let runs_on = rig.enqueue(new_job("b").hooked()).await;
    for id in [cancelled, runs_on] {
        is_in(&rig, id, "running").await;
    }
    ask(&rig, "a").await;
    ask(&rig, "b").await;
    is_in(&rig, cancelled, "cancelled").await;
    assert_eq!(state_of(&rig, runs_on).await, "running");
    rig.open_gate();
    is_in(&rig, runs_on, "succeeded").await;
}

#[tokio::test]
async fn an_admitted_job_is_superseded_and_its_slot_is_free() {
    let mut rig = Rig::start(Behaviour::Done).await;
    rig.stop(Duration::from_secs(5)).await;
    let id = rig.enqueue(new_job("a")).await;
    // As an admission leaves it whose worker has died since.
    sqlx::query("UPDATE jobs SET state = 'queued', dispatch = 1, queued_at = longshore_now()")
        .execute(rig.pool())
        .await
        .unwrap();
    sqlx::query("INSERT INTO job_slots (key, job_id) VALUES ('a', $1)")
        .bind(id.0)
        .execute(rig.pool())
        .await
        .unwrap();
    ask(&rig, "a").await;
    assert_eq!(state_of(&rig, id).await, "superseded");
    assert!(rig.slots().await.is_empty());
}

#[tokio::test]
async fn a_job_that_backs_off_may_be_overtaken() {
    let rig = Rig::start(Behaviour::Fail(|| {
        Verdict::RetryAfter(JobError::plain("broken"), Duration::from_secs(600))
    }))
    .await;
    let coalesces = rig.enqueue(new_job("a")).await;
    let superseded = rig.enqueue(new_job("b").hooked()).await;
    for id in [superseded, coalesces] {
        until("it to back off", || async {
            rig.job(id)
                .await
                .waiting
                .is_some_and(|waiting| waiting.reason == "backing_off")
        })
        .await;
    }
    ask(&rig, "a").await;
    ask(&rig, "b").await;
    assert_eq!(state_of(&rig, superseded).await, "superseded");
    assert_eq!(state_of(&rig, coalesces).await, "scheduled");
}
