//! The engine as its users see it: real Postgres, real Redis, jobs of test kinds.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on has failed"
)]

#[expect(dead_code, reason = "some of it is for the other tests")]
mod rig;

use std::time::{Duration, Instant};

use longshore_base::JobId;
use longshore_ledger::control::{Mode, resume, set_mode};
use longshore_ledger::{
    CancelOutcome, JobError, RetryOutcome, TraceContext, Verdict, cancel, enqueue, inspect, retry,
};
use rig::{Behaviour, NewJobExt as _, Rig, new_job, state_of, until};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn a_committed_job_runs_and_goes_to_the_history() {
    let rig = Rig::start(Behaviour::Done).await;
    let id = rig.enqueue(new_job("a")).await;
    until("the job to succeed", || async {
        state_of(&rig, id).await == "succeeded"
    })
    .await;
    let job = rig.job(id).await;
    assert!(job.is_terminal());
    assert_eq!(job.result, Some(serde_json::json!({ "ran": true })));
    assert!(rig.slots().await.is_empty(), "a finished job holds no slot");
}

#[tokio::test]
async fn jobs_whose_claim_was_committed_run_although_its_answer_was_lost() {
    let words = "the answer to lose";
    let rig = Rig::losing_an_answer(Behaviour::Done, words).await;
    let mut job = new_job("a");
    job.args = serde_json::json!({ "words": words });
    let id = rig.enqueue(job).await;
    until("the job to succeed", || async {
        state_of(&rig, id).await == "succeeded"
    })
    .await;
    let job = rig.job(id).await;
    assert_eq!((job.crashes, rig.runs()), (0, 1), "it was run once");
}

#[tokio::test]
async fn a_worker_with_many_free_slots_takes_a_backlog_by_itself() {
    let mut rig = Rig::with_slots(Behaviour::Gate, 300).await;
    rig.stop(Duration::from_secs(5)).await;
    let keys: Vec<String> = (0..200).map(|number| number.to_string()).collect();
    rig.enqueue_many(&keys).await;
    rig.start_again().await;
    until("all to run", || async { rig.runs() == 200 }).await;
    // What is admitted, hinted at and claimed later has two times.
    let in_one_step =
        "SELECT count(*) FROM jobs WHERE state = 'running' AND queued_at = started_at";
    assert_eq!(rig.count(in_one_step).await, 200);
    rig.open_gate();
    until("all to succeed", || async { rig.succeeded().await == 200 }).await;
    assert!(rig.slots().await.is_empty());
}

#[tokio::test]
async fn a_row_that_somebody_keeps_locked_keeps_no_other_job_waiting() {
    let rig = Rig::with_slots(Behaviour::Gate, 2).await;
    let ids = rig
        .enqueue_many(&["a", "b", "c", "d", "e"].map(String::from))
        .await;
    for id in &ids[..2] {
        until("both slots to be taken", || async {
            state_of(&rig, *id).await == "running"
        })
        .await;
    }
    until("the others to be admitted", || async {
        state_of(&rig, ids[4]).await == "queued"
    })
    .await;
    let mut tx = rig.pool().begin().await.unwrap();
    sqlx::query("SELECT id FROM jobs WHERE id = $1 FOR UPDATE")
        .bind(ids[2].0)
        .execute(&mut *tx)
        .await
        .unwrap();
    rig.open_gate();
    for id in [0, 1, 3, 4].map(|place: usize| ids[place]) {
        until("the others to succeed", || async {
            state_of(&rig, id).await == "succeeded"
        })
        .await;
    }
    assert_eq!(state_of(&rig, ids[2]).await, "queued");
    tx.rollback().await.unwrap();
    until("the last one to succeed", || async {
        state_of(&rig, ids[2]).await == "succeeded"
    })
    .await;
}

#[tokio::test]
async fn a_rolled_back_request_leaves_no_job() {
    let rig = Rig::start(Behaviour::Done).await;
    let mut tx = rig.pool().begin().await.unwrap();
    let enqueued = longshore_ledger::enqueue(&mut tx, new_job("a"))
        .await
        .unwrap();
    tx.rollback().await.unwrap();
    let mut conn = rig.pool().acquire().await.unwrap();
    assert!(
        inspect::find_job(&mut conn, enqueued.job_id)
            .await
            .unwrap()
            .is_none()
    );
}

#[tokio::test]
async fn two_jobs_of_one_key_never_overlap_and_run_in_order() {
    let rig = Rig::start(Behaviour::Record(Duration::from_millis(30))).await;
    let mut ids = Vec::new();
    for _ in 0..8 {
        ids.push(rig.enqueue(new_job("same")).await);
    }
    for id in &ids {
        until("every job to succeed", || async {
            state_of(&rig, *id).await == "succeeded"
        })
        .await;
    }
    let spans = rig.spans();
    assert_eq!(
        spans.iter().map(|span| span.id).collect::<Vec<_>>(),
        ids,
        "first come, first run"
    );
    assert!(
        spans.windows(2).all(|pair| pair[0].end <= pair[1].start),
        "no two at the same time"
    );
}

#[tokio::test]
async fn a_job_asked_for_while_the_one_before_it_starts_and_ends_is_woken() {
    let rig = Rig::start(Behaviour::Done).await;
    let mut tx = rig.pool().begin().await.unwrap();
    let _poked_below = set_mode(&mut tx, "test", Mode::Pause, None, "ops")
        .await
        .unwrap();
    tx.commit().await.unwrap();
    let first = rig.enqueue(new_job("k")).await;
    let mut asking = rig.pool().begin().await.unwrap();
    let second = enqueue(&mut asking, new_job("k")).await.unwrap();
    let mut tx = rig.pool().begin().await.unwrap();
    resume(&mut tx, "test", "ops").await.unwrap();
    tx.commit().await.unwrap();
    rig.poke("test");
    // Its end may have to wait for us; if not, it does not see who comes after it.
    until("the first to end, or to wait for the second", || async {
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
        state_of(&rig, first).await == "succeeded"
            || (rig.runs() == 1 && rig.count(waiting).await > 0)
    })
    .await;
    asking.commit().await.unwrap();
    rig.poke("test");
    let committed = Instant::now();
    until("both to succeed", || async {
        state_of(&rig, second.job_id).await == "succeeded"
            && state_of(&rig, first).await == "succeeded"
    })
    .await;
    // Sooner than the pass for waiters that were forgotten.
    assert!(
        committed.elapsed() < 5 * SECOND,
        "{:?}",
        committed.elapsed()
    );
}

#[tokio::test]
async fn a_waiting_twin_takes_a_second_request_over() {
    let rig = Rig::start(Behaviour::Gate).await;
    let running = rig.enqueue(new_job("k").with_dedupe("d")).await;
    until("the first to run", || async {
        state_of(&rig, running).await == "running"
    })
    .await;
    let waiting = rig.enqueue(new_job("k").with_dedupe("d")).await;
    assert_ne!(
        waiting, running,
        "a running job does not take over what was asked after it began"
    );
    assert_eq!(rig.enqueue(new_job("k").with_dedupe("d")).await, waiting);
    let view = rig.job(waiting).await;
    let reason = view.waiting.unwrap();
    assert_eq!((reason.reason, reason.behind), ("key", Some(running)));
    rig.open_gate();
    until("the second to succeed", || async {
        state_of(&rig, waiting).await == "succeeded"
    })
    .await;
}

#[tokio::test]
async fn a_failed_run_whose_twin_waits_is_superseded_and_its_failure_still_counts() {
    let rig = Rig::start(Behaviour::GateThenFail).await;
    let first = rig.enqueue(new_job("k").with_dedupe("d")).await;
    until("the first to run", || async {
        state_of(&rig, first).await == "running"
    })
    .await;
    let twin = rig.enqueue(new_job("k").with_dedupe("d")).await;
    rig.open_gate();
    until("the twin to take over", || async {
        state_of(&rig, first).await == "superseded"
    })
    .await;
    let job = rig.job(first).await;
    let errors: Vec<&str> = job
        .errors
        .iter()
        .map(|error| error.error.as_str())
        .collect();
    assert_eq!(
        (job.attempt, errors),
        (
            1,
            vec!["no luck", "a newer request of the same kind took over"]
        )
    );
    assert!(job.errors[0].retried_at.is_none(), "nobody tries it again");
    until("the twin to be dead", || async {
        state_of(&rig, twin).await == "dead"
    })
    .await;
}

#[tokio::test]
async fn a_failing_job_is_tried_again_and_dies_with_its_history() {
    let rig = Rig::start(Behaviour::Fail(|| {
        Verdict::Retry(JobError::plain("no luck"))
    }))
    .await;
    let id = rig.enqueue(new_job("a")).await;
    until("the job to be dead", || async {
        state_of(&rig, id).await == "dead"
    })
    .await;
    let job = rig.job(id).await;
    assert_eq!(job.attempt, 3);
    assert_eq!(job.errors.len(), 3);
    assert!(
        job.errors
            .iter()
            .all(|failure| failure.error == "no luck" && failure.worker.is_some())
    );
    assert!(job.errors[0].retried_at.is_some() && job.errors[2].retried_at.is_none());
}

#[tokio::test]
async fn a_snooze_uses_no_attempt() {
    let rig = Rig::start(Behaviour::SnoozeOnce(Duration::from_millis(50))).await;
    let id = rig.enqueue(new_job("a")).await;
    until("the job to succeed", || async {
        state_of(&rig, id).await == "succeeded"
    })
    .await;
    let job = rig.job(id).await;
    assert_eq!((job.attempt, job.snoozes), (0, 1));
}

#[tokio::test]
async fn a_permanent_error_or_a_panic_is_not_tried_again() {
    let rig = Rig::start(Behaviour::Fail(|| {
        Verdict::Permanent(JobError::plain("never"))
    }))
    .await;
    let id = rig.enqueue(new_job("a")).await;
    until("the job to be dead", || async {
        state_of(&rig, id).await == "dead"
    })
    .await;
    assert_eq!(rig.job(id).await.last_error.as_deref(), Some("never"));

    let rig = Rig::start(Behaviour::Panic).await;
    let id = rig.enqueue(new_job("a")).await;
    until("the job to be dead", || async {
        state_of(&rig, id).await == "dead"
    })
    .await;
    assert_eq!(
        rig.job(id).await.last_error.as_deref(),
        Some("internal error")
    );
    let after = rig.enqueue(new_job("b")).await;
    until("the worker to go on", || async {
        state_of(&rig, after).await == "dead"
    })
    .await;
}

#[tokio::test]
async fn a_waiting_job_is_cancelled_at_once_and_a_running_one_when_it_stops() {
    let rig = Rig::start(Behaviour::Gate).await;
    let running = rig.enqueue(new_job("k")).await;
    until("the first to run", || async {
        state_of(&rig, running).await == "running"
    })
    .await;
    let waiting = rig.enqueue(new_job("k")).await;
    for (id, expected) in [(waiting, "waiting"), (running, "requested")] {
        let mut tx = rig.pool().begin().await.unwrap();
        let outcome = cancel(&mut tx, &rig.kinds, id, "ops", Some("wrong one"))
            .await
            .unwrap();
        tx.commit().await.unwrap();
        let got = match outcome {
            CancelOutcome::WasWaiting(_) => "waiting",
            CancelOutcome::Requested => "requested",
            other => panic!("{other:?}"),
        };
        assert_eq!(got, expected);
    }
    assert_eq!(state_of(&rig, waiting).await, "cancelled");
    until("the running job to be cancelled", || async {
        state_of(&rig, running).await == "cancelled"
    })
    .await;
    assert_eq!(
        rig.job(running).await.last_error.as_deref(),
        Some("cancelled by ops: wrong one")
    );
    let mut tx = rig.pool().begin().await.unwrap();
    assert_eq!(
        cancel(&mut tx, &rig.kinds, running, "ops", None)
            .await
            .unwrap(),
        CancelOutcome::Finished
    );
}

/// Asks a job to stop that is being run, not only claimed.
async fn cancel_while_it_runs(rig: &Rig) -> JobId {
    let id = rig.enqueue(new_job("k")).await;
    until("the job to run", || async { rig.runs() == 1 }).await;
    let mut tx = rig.pool().begin().await.unwrap();
    let outcome = cancel(&mut tx, &rig.kinds, id, "ops", None).await.unwrap();
    assert_eq!(outcome, CancelOutcome::Requested);
    tx.commit().await.unwrap();
    id
}

#[tokio::test]
async fn a_poke_stops_a_cancelled_run_whose_worker_would_not_look_for_an_hour() {
    let mut rig = Rig::start(Behaviour::Gate).await;
    rig.stop(SECOND).await;
    rig.config.cancels_every = Duration::from_secs(3600);
    rig.start_again().await;
    let id = cancel_while_it_runs(&rig).await;
    rig.poke_cancels();
    until("the running job to be cancelled", || async {
        state_of(&rig, id).await == "cancelled"
    })
    .await;
}

#[tokio::test]
async fn a_worker_finds_cancel_requests_without_redis() {
    let rig = Rig::without_redis(Behaviour::Gate).await;
    let id = cancel_while_it_runs(&rig).await;
    rig.poke_cancels();
    until("the running job to be cancelled", || async {
        state_of(&rig, id).await == "cancelled"
    })
    .await;
}

#[tokio::test]
async fn a_job_keeps_the_trace_of_the_first_who_asked_for_it_also_when_it_is_retried() {
    let rig = Rig::start(Behaviour::Fail(|| {
        Verdict::Permanent(JobError::plain("broken"))
    }))
    .await;
    let [first, second] = [TraceContext::begin(), TraceContext::begin()];
    let job = || {
        new_job("k")
            .with_dedupe("d")
            .delayed(Duration::from_secs(60))
    };
    let id = first.clone().scope(rig.enqueue(job())).await;
    assert_eq!(second.clone().scope(rig.enqueue(job())).await, id);
    let trace = async || rig.job(id).await.trace_id;
    assert_eq!(trace().await.as_deref(), Some(first.trace_id()));
    rig.advance(Duration::from_secs(61)).await;
    until("the job to be dead", || async {
        state_of(&rig, id).await == "dead"
    })
    .await;
    assert_eq!(trace().await.as_deref(), Some(first.trace_id()));
    let again = async {
        let mut tx = rig.pool().begin().await.unwrap();
        let outcome = retry(&mut tx, &rig.kinds, id, "ops").await.unwrap();
        assert!(
            matches!(outcome, RetryOutcome::Retried { .. }),
            "{outcome:?}"
        );
        tx.commit().await.unwrap();
    };
    second.scope(again).await;
    assert_eq!(trace().await.as_deref(), Some(first.trace_id()));
    // What nobody's request asked for begins a trace.
    let own = rig.enqueue(new_job("other")).await;
    let own = rig.job(own).await.trace_id.unwrap();
    assert!(own.len() == 32 && own != first.trace_id(), "{own}");
}

#[tokio::test]
async fn every_end_runs_the_hook_of_its_kind_in_its_transaction() {
    let rig = Rig::start_hooked(Behaviour::Done).await;
    let id = rig.enqueue(new_job("a").hooked()).await;
    until("the job to succeed", || async {
        state_of(&rig, id).await == "succeeded"
    })
    .await;
    assert_eq!(rig.hooked(), vec![(id, "succeeded")]);
}

#[tokio::test]
async fn jobs_run_without_redis() {
    let rig = Rig::without_redis(Behaviour::Done).await;
    let id = rig.enqueue(new_job("a")).await;
    until("the job to succeed", || async {
        state_of(&rig, id).await == "succeeded"
    })
    .await;
}

#[tokio::test]
async fn a_delayed_job_waits_for_its_time_and_says_so() {
    let rig = Rig::start(Behaviour::Done).await;
    let id = rig.enqueue(new_job("a").delayed(3600 * SECOND)).await;
    assert_eq!(rig.job(id).await.waiting.unwrap().reason, "time");
    rig.advance(2 * 3600 * SECOND).await;
    until("the job to succeed", || async {
        state_of(&rig, id).await == "succeeded"
    })
    .await;
}

#[tokio::test]
async fn a_job_past_its_deadline_dies_waiting() {
    let rig = Rig::start(Behaviour::Done).await;
    let id = rig.enqueue(new_job("a").delayed(48 * 3600 * SECOND)).await;
    rig.advance(30 * 3600 * SECOND).await;
    until("the job to be dead", || async {
        state_of(&rig, id).await == "dead"
    })
    .await;
    assert_eq!(
        rig.job(id).await.last_error.as_deref(),
        Some("its deadline passed before it could finish")
    );
}

#[tokio::test]
async fn a_thousand_jobs_survive_hints_lost_on_the_way() {
    let rig = Rig::start(Behaviour::Done).await;
    let keys: Vec<String> = (0..1000).map(|n| format!("k{n}")).collect();
    let ids = rig.enqueue_many(&keys).await;
    for _ in 0..5 {
        rig.drop_streams().await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    until("all jobs to succeed", || async {
        rig.succeeded().await == ids.len() as i64
    })
    .await;
    assert_eq!(rig.runs(), ids.len(), "each ran once");
}

#[tokio::test]
async fn stopping_gives_running_jobs_back_without_using_an_attempt() {
    let mut rig = Rig::start(Behaviour::Gate).await;
    let id = rig.enqueue(new_job("a")).await;
    until("the job to run", || async {
        state_of(&rig, id).await == "running"
    })
    .await;
    rig.stop(Duration::from_secs(1)).await;
    let job = rig.job(id).await;
    assert_eq!(
        (job.attempt, job.crashes, job.worker.as_deref()),
        (0, 0, None),
        "given back: {}",
        job.state
    );
    assert!(
        rig.workers().await.is_empty(),
        "a worker that left has no row"
    );
    rig.open_gate();
    rig.start_again().await;
    until("the job to succeed", || async {
        state_of(&rig, id).await == "succeeded"
    })
    .await;
}

#[tokio::test]
async fn runs_end_while_passes_wait_for_a_change_of_controls_that_stands_still() {
    let rig = Rig::start(Behaviour::Gate).await;
    let id = rig.enqueue(new_job("a")).await;
    until("the job to run", || async {
        state_of(&rig, id).await == "running"
    })
    .await;
    let mut change = rig.pool().begin().await.unwrap();
    sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended('longshore.control', 0))")
        .execute(&mut *change)
        .await
        .unwrap();
    for number in 0..50 {
        rig.poke(&format!("queue-{number}"));
    }
    let waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
                     AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    until("passes to wait for it", || async {
        rig.count(waiting).await > 1
    })
    .await;
    rig.open_gate();
    until("the job to succeed", || async {
        state_of(&rig, id).await == "succeeded"
    })
    .await;
    change.rollback().await.unwrap();
}

#[tokio::test]
async fn an_urgent_job_goes_before_the_rest_of_a_backlog_that_a_worker_takes_by_itself() {
    const BACKLOG: usize = 3000;
    let rig = Rig::with_slots(Behaviour::Record(Duration::from_millis(20)), 64).await;
    let keys: Vec<String> = (0..BACKLOG).map(|number| number.to_string()).collect();
    rig.enqueue_many(&keys).await;
    until("some to have run", || async { rig.runs() >= BACKLOG / 6 }).await;
    let mut urgent = new_job("urgent");
    urgent.priority = -1;
    let id = rig.enqueue(urgent).await;
    until("all to succeed", || async {
        rig.succeeded().await == 1 + i64::try_from(BACKLOG).unwrap()
    })
    .await;
    let ended_before = rig.spans().iter().position(|span| span.id == id).unwrap();
    assert!(
        ended_before < BACKLOG - 64,
        "{ended_before} ended before it"
    );
}
