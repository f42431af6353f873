//! Ended jobs that come back or are put away, one by one and by the thousand; and a history that forgets.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[expect(dead_code, reason = "most of it is for the other tests")]
mod rig;

use std::time::Duration;

use longshore_base::JobId;
use longshore_ledger::bulk::{
    BulkAction, BulkError, BulkFilter, BulkPlan, BulkProgress, plan, step, take_plan,
};
use longshore_ledger::{
    DiscardOutcome, JobError, Outcome, Pruned, Retention, RetryOutcome, Verdict, discard,
    ensure_partitions, inspect, list_pruned_outcomes, prune, retry,
};
use rig::{Behaviour, NewJobExt as _, Rig, new_job, state_of, until};

fn broken() -> Verdict {
    Verdict::Permanent(JobError::plain("broken"))
}

async fn retried(rig: &Rig, id: JobId) -> RetryOutcome {
    let mut tx = rig.pool().begin().await.unwrap();
    let outcome = retry(&mut tx, &rig.kinds, id, "ops").await.unwrap();
    tx.commit().await.unwrap();
    outcome
}

async fn discarded(rig: &Rig, id: JobId) -> DiscardOutcome {
    let mut tx = rig.pool().begin().await.unwrap();
    let outcome = discard(&mut tx, &rig.kinds, id, "ops", None).await.unwrap();
    tx.commit().await.unwrap();
    outcome
}

async fn dead(rig: &Rig, job: longshore_ledger::NewJob) -> JobId {
    let id = rig.enqueue(job).await;
    until("the job to be dead", || async {
        state_of(rig, id).await == "dead"
    })
    .await;
    id
}

#[tokio::test]
async fn a_dead_job_that_is_retried_has_all_attempts_again_and_keeps_its_history() {
    let rig = Rig::start(Behaviour::Fail(broken)).await;
    let id = dead(&rig, new_job("a").hooked()).await;
    let before = rig.job(id).await;
    let RetryOutcome::Retried { queue } = retried(&rig, id).await else {
        unreachable!("it is dead")
    };
    assert_eq!(queue, "hooked");
    let waiting = rig.job(id).await;
    assert_eq!((waiting.state, waiting.attempt), ("scheduled", 0));
    assert_eq!(waiting.errors.len(), 1);
    assert!(waiting.deadline_at > before.deadline_at);
    assert_eq!(retried(&rig, id).await, RetryOutcome::NotRetryable);
    rig.poke("hooked");
    until("it to die once more", || async {
        rig.job(id).await.errors.len() == 2
    })
    .await;
}

#[tokio::test]
async fn a_retry_is_refused_by_its_kind_by_a_twin_and_for_what_did_not_fail() {
    let rig = Rig::start(Behaviour::Fail(broken)).await;
    let mut final_job = new_job("a").hooked();
    final_job.args = serde_json::json!({ "final": true });
    let final_job = dead(&rig, final_job).await;
    assert_eq!(
        retried(&rig, final_job).await,
        RetryOutcome::Refused("it was final".into())
    );
    assert_eq!(state_of(&rig, final_job).await, "dead");
    let first = dead(&rig, new_job("b").with_dedupe("b")).await;
    let twin = rig
        .enqueue(
            new_job("b")
                .with_dedupe("b")
                .delayed(Duration::from_secs(600)),
        )
        .await;
    assert_eq!(
        retried(&rig, first).await,
        RetryOutcome::Refused(format!("job {twin} already waits to do the same"))
    );
    assert_eq!(retried(&rig, twin).await, RetryOutcome::NotRetryable);
    assert_eq!(retried(&rig, JobId::new()).await, RetryOutcome::Unknown);
}

#[tokio::test]
async fn what_is_discarded_is_no_longer_dead_nor_waits_and_can_still_be_retried() {
    let rig = Rig::start(Behaviour::Fail(broken)).await;
    let id = dead(&rig, new_job("a")).await;
    assert_eq!(discarded(&rig, id).await, DiscardOutcome::Discarded(vec![]));
    assert_eq!(state_of(&rig, id).await, "cancelled");
    assert_eq!(discarded(&rig, id).await, DiscardOutcome::NotDiscardable);
    let later = rig
        .enqueue(new_job("b").delayed(Duration::from_secs(600)))
        .await;
    assert!(matches!(
        discarded(&rig, later).await,
        DiscardOutcome::Discarded(_)
    ));
    assert_eq!(rig.job(later).await.last_error.unwrap(), "discarded by ops");
    assert_eq!(discarded(&rig, JobId::new()).await, DiscardOutcome::Unknown);
    assert!(matches!(
        retried(&rig, id).await,
        RetryOutcome::Retried { .. }
    ));
}

async fn counted(rig: &Rig, action: BulkAction, filter: BulkFilter) -> BulkPlan {
    let mut tx = rig.pool().begin().await.unwrap();
    let made = plan(&mut tx, action, filter, "ops").await.unwrap();
    tx.commit().await.unwrap();
    made
}

/// Applies a plan; every part is done, undone by a rollback as a crash would, and done again.
async fn apply(rig: &Rig, plan: &BulkPlan) -> BulkProgress {
    let mut progress = BulkProgress::default();
    while !progress.finished {
        let mut lost = rig.pool().begin().await.unwrap();
        let _undone = step(&mut lost, &rig.kinds, plan, "ops", JobId::new(), &progress)
            .await
            .unwrap();
        lost.rollback().await.unwrap();
        let mut tx = rig.pool().begin().await.unwrap();
        let (next, _) = step(&mut tx, &rig.kinds, plan, "ops", JobId::new(), &progress)
            .await
            .unwrap();
        tx.commit().await.unwrap();
        progress = next;
    }
    progress
}

fn of_kind(kind: &str) -> BulkFilter {
    BulkFilter {
        kind: Some(kind.into()),
        ..BulkFilter::default()
    }
}

#[tokio::test]
async fn a_bulk_retry_takes_exactly_the_counted_set() {
    let mut rig = Rig::start(Behaviour::Fail(broken)).await;
    let keys: Vec<String> = (0..600).map(|n| format!("k{n}")).collect();
    rig.enqueue_many(&keys).await;
    let other = dead(&rig, new_job("other").hooked()).await;
    until("all to be dead", || async {
        rig.count("SELECT count(*) FROM job_history WHERE outcome = 'dead'")
            .await
            == 601
    })
    .await;
    let made = counted(&rig, BulkAction::Retry, of_kind("test")).await;
    assert_eq!((made.matched, made.sample.len()), (600, 10));
    // Dies after the count, so it is not of the set; nor do those that are retried now and die again.
    let late = dead(&rig, new_job("late")).await;
    rig.stop(Duration::from_secs(5)).await;
    let mut tx = rig.pool().begin().await.unwrap();
    let taken = take_plan(&mut tx, made.id).await.unwrap().unwrap();
    assert!(
        take_plan(&mut tx, made.id).await.unwrap().is_none(),
        "a plan is applied once"
    );
    tx.commit().await.unwrap();
    let progress = apply(&rig, &taken).await;
    assert_eq!((progress.done, progress.failed), (600, 0));
    assert_eq!(rig.count("SELECT count(*) FROM jobs").await, 600);
    for id in [other, late] {
        assert_eq!(state_of(&rig, id).await, "dead");
    }
}

#[tokio::test]
async fn a_bulk_retry_counts_what_its_kind_refuses_and_goes_on() {
    let rig = Rig::start(Behaviour::Fail(broken)).await;
    let mut template = new_job("unused").hooked();
    let fine: Vec<String> = (0..30).map(|n| format!("f{n}")).collect();
    rig.enqueue_all(&template, &fine).await;
    template.args = serde_json::json!({ "final": true });
    let refused: Vec<String> = (0..20).map(|n| format!("r{n}")).collect();
    rig.enqueue_all(&template, &refused).await;
    until("all to be dead", || async {
        rig.count("SELECT count(*) FROM job_history WHERE outcome = 'dead'")
            .await
            == 50
    })
    .await;
    let made = counted(&rig, BulkAction::Retry, of_kind("hooked")).await;
    let progress = apply(&rig, &made).await;
    assert_eq!((progress.done, progress.failed), (30, 20));
}

#[tokio::test]
async fn bulk_cancel_and_discard_take_what_waits() {
    let rig = Rig::start(Behaviour::Done).await;
    let template = new_job("unused").delayed(Duration::from_secs(600));
    for n in 0..20 {
        let mut job = template.clone();
        job.keys = vec![format!("k{n}")];
        job.tenant = if n < 8 { "a".into() } else { "b".into() };
        rig.enqueue(job).await;
    }
    let of_a = BulkFilter {
        tenant: Some("a".into()),
        ..BulkFilter::default()
    };
    let mut made = counted(&rig, BulkAction::Cancel, of_a).await;
    made.reason = Some("not needed".into());
    assert_eq!(apply(&rig, &made).await.done, 8);
    let cancelled = rig.job(made.sample[0]).await;
    assert_eq!(
        cancelled.last_error.unwrap(),
        "cancelled by ops: not needed"
    );
    let waiting = BulkFilter {
        state: Some("scheduled".into()),
        ..BulkFilter::default()
    };
    let made = counted(&rig, BulkAction::Discard, waiting).await;
    assert_eq!(made.matched, 12);
    assert_eq!(apply(&rig, &made).await.done, 12);
    assert_eq!(
        rig.count("SELECT count(*) FROM job_history WHERE outcome = 'cancelled'")
            .await,
        20
    );
    let mut tx = rig.pool().begin().await.unwrap();
    let running = BulkFilter {
        state: Some("running".into()),
        ..BulkFilter::default()
    };
    let refused = plan(&mut tx, BulkAction::Discard, running, "ops").await;
    assert!(
        matches!(refused, Err(BulkError::State { .. })),
        "{refused:?}"
    );
}

#[tokio::test]
async fn days_that_nobody_keeps_are_dropped_and_no_others() {
    let rig = Rig::start(Behaviour::Fail(broken)).await;
    let old_dead = dead(&rig, new_job("a")).await;
    let cancelled = rig
        .enqueue(new_job("b").delayed(Duration::from_secs(600)))
        .await;
    discarded(&rig, cancelled).await;
    let keep = Retention {
        succeeded_days: 1,
        dead_days: 30,
        cancelled_days: 3,
        superseded_days: 0,
    };
    assert_eq!(prune(rig.pool(), keep).await.unwrap(), Pruned::default());
    rig.advance(Duration::from_secs(10 * 24 * 3600)).await;
    ensure_partitions(rig.pool()).await.unwrap();
    let young_dead = dead(&rig, new_job("c")).await;
    // Not due before the end of this test, whatever the clock does: once due it would run, fail and be one more dead.
    let held = rig
        .enqueue(new_job("d").delayed(Duration::from_secs(60 * 24 * 3600)))
        .await;
    let pruned = prune(rig.pool(), keep).await.unwrap();
    assert!(
        pruned
            .partitions
            .iter()
            .all(|name| name.contains("succeeded") || name.contains("cancelled")),
        "{pruned:?}"
    );
    assert!(!pruned.partitions.is_empty());
    assert_eq!(
        rig.count("SELECT count(*) FROM job_history WHERE outcome = 'cancelled'")
            .await,
        0
    );
    for (id, state) in [
        (old_dead, "dead"),
        (young_dead, "dead"),
        (held, "scheduled"),
    ] {
        assert_eq!(state_of(&rig, id).await, state);
    }
    rig.advance(Duration::from_secs(25 * 24 * 3600)).await;
    prune(rig.pool(), keep).await.unwrap();
    assert_eq!(
        rig.count("SELECT count(*) FROM job_history WHERE outcome = 'dead'")
            .await,
        1,
        "only the younger of the dead is left"
    );
    assert_eq!(state_of(&rig, held).await, "scheduled");
}

#[tokio::test]
async fn of_every_dropped_job_and_of_no_later_one_it_is_known_that_it_may_be_gone() {
    let rig = Rig::start(Behaviour::Fail(broken)).await;
    let before = JobId::new();
    let later = Duration::from_secs(60 * 24 * 3600);
    let mut gone = Vec::new();
    // Two days with a partition, and one that has none.
    for _ in 0..3 {
        let id = rig.enqueue(new_job("a").delayed(later)).await;
        discarded(&rig, id).await;
        gone.push(id);
        rig.advance(Duration::from_secs(2 * 24 * 3600)).await;
    }
    let live = rig.enqueue(new_job("b").delayed(later)).await;
    let kept = dead(&rig, new_job("c")).await;
    let outcomes = async |id: JobId| {
        let mut conn = rig.pool().acquire().await.unwrap();
        list_pruned_outcomes(&mut conn, id).await.unwrap()
    };
    assert_eq!(outcomes(gone[0]).await, []);
    let keep = Retention {
        cancelled_days: 1,
        ..Retention::default()
    };
    for _ in 0..2 {
        rig.advance(Duration::from_secs(2 * 24 * 3600)).await;
        prune(rig.pool(), keep).await.unwrap();
    }
    let mut conn = rig.pool().acquire().await.unwrap();
    for id in gone {
        assert!(inspect::find_job(&mut conn, id).await.unwrap().is_none());
        assert_eq!(outcomes(id).await, [Outcome::Cancelled]);
    }
    for id in [before, live, kept, JobId::new()] {
        assert_eq!(outcomes(id).await, []);
    }
}

/// A history with days that are due: one per outcome that is pruned, ten days old.
async fn with_old_days(rig: &Rig) -> Retention {
    ensure_partitions(rig.pool()).await.unwrap();
    rig.advance(Duration::from_secs(10 * 24 * 3600)).await;
    ensure_partitions(rig.pool()).await.unwrap();
    Retention {
        succeeded_days: 1,
        dead_days: 1,
        cancelled_days: 1,
        superseded_days: 0,
    }
}

/// A transaction that uses a table until it is dropped, as a slow reader or a dump does.
async fn reader_of(rig: &Rig, table: &str) -> sqlx::Transaction<'static, sqlx::Postgres> {
    let mut tx = rig.pool().begin().await.unwrap();
    sqlx::query(sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {table}")))
        .execute(&mut *tx)
        .await
        .unwrap();
    tx
}

#[tokio::test]
async fn a_day_that_somebody_reads_is_left_for_later_and_the_others_go() {
    let rig = Rig::start(Behaviour::Done).await;
    let keep = with_old_days(&rig).await;
    let read: String = sqlx::query_scalar(
        "SELECT min(relname::text) FROM pg_class WHERE relname LIKE 'job_history_dead_2%'",
    )
    .fetch_one(rig.pool())
    .await
    .unwrap();
    let reader = reader_of(&rig, &read).await;
    let pruned = prune(rig.pool(), keep).await.unwrap();
    assert_eq!(pruned.busy, std::slice::from_ref(&read));
    for outcome in ["succeeded", "dead", "cancelled"] {
        let of_outcome = format!("job_history_{outcome}_");
        assert!(
            pruned
                .partitions
                .iter()
                .any(|name| name.starts_with(&of_outcome)),
            "{pruned:?}"
        );
    }
    reader.commit().await.unwrap();
    let pruned = prune(rig.pool(), keep).await.unwrap();
    assert_eq!((pruned.partitions, pruned.busy), (vec![read], vec![]));
}

#[tokio::test]
async fn jobs_go_on_ending_while_a_reader_of_the_whole_history_keeps_days_from_being_made_and_dropped()
 {
    let rig = Rig::start(Behaviour::Done).await;
    let keep = with_old_days(&rig).await;
    let reader = reader_of(&rig, "job_history").await;
    // Days are missing too, as at midnight.
    rig.advance(Duration::from_secs(2 * 24 * 3600)).await;
    let mut due = 0;
    for round in 0..3 {
        let keys: Vec<String> = (0..50).map(|n| format!("{round}-{n}")).collect();
        rig.enqueue_many(&keys).await;
        let pass = async {
            ensure_partitions(rig.pool()).await.unwrap();
            prune(rig.pool(), keep).await.unwrap()
        };
        let ended = until("the jobs to end beside the reader", || async {
            rig.succeeded().await == 50 * (round + 1)
        });
        let both = async { tokio::join!(pass, ended) };
        // Looking whether they ended would be held up like everything else.
        let both = tokio::time::timeout(2 * rig::DEADLINE, both).await;
        let (pruned, ()) = both.expect("nobody is held up for long");
        assert!(pruned.partitions.is_empty(), "{pruned:?}");
        due = pruned.busy.len();
    }
    reader.commit().await.unwrap();
    ensure_partitions(rig.pool()).await.unwrap();
    let pruned = prune(rig.pool(), keep).await.unwrap();
    assert_eq!((pruned.partitions.len(), pruned.busy.len()), (due, 0));
}
