//! Jobs that want several keys at once, some of them the same.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[expect(dead_code, reason = "most of it is for the other tests")]
mod rig;

use longshore_ledger::control::{Mode, resume, set_mode};
use longshore_ledger::{NewJob, enqueue};
use rig::{Behaviour, Rig, new_job, until};

/// Far more pairs than keys: in each pass several jobs want the same two.
const JOBS: usize = 60;

#[tokio::test]
async fn jobs_admitted_together_do_not_keep_each_other_from_their_keys() {
    let rig = Rig::start(Behaviour::Done).await;
    // Closed until all are there, so that they are chosen together.
    let mut tx = rig.pool().begin().await.unwrap();
    let _poked_below = set_mode(&mut tx, "test", Mode::Pause, None, "ops")
        .await
        .unwrap();
    for number in 0..JOBS {
        let keys = match number % 3 {
            0 => vec!["a".to_owned(), "b".to_owned()],
            1 => vec!["b".to_owned(), "c".to_owned()],
            _ => vec!["a".to_owned()],
        };
        let job = NewJob {
            keys,
            ..new_job("unused")
        };
        let _poked_below = enqueue(&mut tx, job).await.unwrap();
    }
    resume(&mut tx, "test", "ops").await.unwrap();
    tx.commit().await.unwrap();
    rig.poke("test");
    until("all to succeed", || async {
        rig.succeeded().await == i64::try_from(JOBS).unwrap()
    })
    .await;
    assert_eq!(rig.runs(), JOBS);
    assert!(rig.slots().await.is_empty());
}

#[tokio::test]
async fn who_waits_behind_a_job_of_several_keys_is_not_taken_for_forgotten() {
    let rig = Rig::start(Behaviour::Done).await;
    let mut tx = rig.pool().begin().await.unwrap();
    let _never_opened = set_mode(&mut tx, "test", Mode::Pause, None, "ops")
        .await
        .unwrap();
    tx.commit().await.unwrap();
    let first = NewJob {
        keys: vec!["a".to_owned(), "b".to_owned()],
        ..new_job("unused")
    };
    rig.enqueue(first).await;
    // The last one behind one that itself waits.
    for keys in [vec!["b"], vec!["b", "c"], vec!["c"]] {
        let waiter = NewJob {
            keys: keys.into_iter().map(str::to_owned).collect(),
            ..new_job("unused")
        };
        rig.enqueue(waiter).await;
    }
    // One that really is forgotten shows that the pass has been here; it comes every 15 s or so.
    let forgotten = NewJob {
        keys: vec!["d".to_owned()],
        ..new_job("unused")
    };
    let forgotten = rig.enqueue(forgotten).await;
    sqlx::query("UPDATE jobs SET wait = 'key' WHERE id = $1")
        .bind(forgotten.0)
        .execute(rig.pool())
        .await
        .unwrap();
    until("the forgotten one to be woken", || async {
        rig.count("SELECT count(*) FROM jobs WHERE keys = '{d}' AND wait = 'ready'")
            .await
            == 1
    })
    .await;
    let waiting = "SELECT count(*) FROM jobs WHERE wait = 'key'";
    assert_eq!(rig.count(waiting).await, 3);
}
