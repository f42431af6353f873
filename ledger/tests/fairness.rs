//! Tenants take turns: ten thousand jobs of one do not make another's single job wait.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[expect(dead_code, reason = "most of it is for the other tests")]
mod rig;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use longshore_base::JobId;
use rig::{Behaviour, NewJobExt as _, Rig, new_job, state_of, until};

const SLOTS: usize = 8;

fn keys(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{prefix}{n}")).collect()
}

/// Lets a backlog of `tenants` run until the engine knows how long its jobs take, then counts, for each of `trials` jobs of
/// tenants that come new, how many starts went before its own after it was asked for.
async fn starts_before_a_newcomer(tenants: usize, trials: usize) -> Vec<usize> {
    let rig = Rig::with_slots(Behaviour::Record(Duration::from_millis(200)), SLOTS).await;
    for tenant in 0..tenants {
        let template = new_job("unused").of_tenant(&format!("big-{tenant:03}"));
        let keys = keys(&format!("{tenant}-"), 10_000 / tenants);
        rig.enqueue_all(&template, &keys).await;
    }
    // Whoever was never served has waited longer than a newcomer; with one tenant nobody counts turns.
    let all_served = if tenants == 1 { 0 } else { tenants as i64 };
    until("all to have had a turn, and the window to follow the length of runs", || async {
        rig.count("SELECT count(*) FROM queue_tenants").await == all_served
            && rig.count("SELECT coalesce(sum((windows -> 'test' ->> 0)::bigint), 0)::bigint FROM workers").await
                < SLOTS as i64
            && rig.count("SELECT count(*) FROM jobs WHERE state = 'queued'").await < SLOTS as i64
    })
    .await;
    let mut asked: HashMap<JobId, Instant> = HashMap::new();
    for trial in 0..trials {
        // What ended together is replaced together. A newcomer in the midst of that comes after eight that were chosen
        // before it was there, and would count them as starts that went before its own.
        until("all slots to be taken", || async {
            rig.count("SELECT count(*) FROM jobs WHERE state = 'running'")
                .await
                == SLOTS as i64
        })
        .await;
        let job = new_job(&format!("new-{trial}")).of_tenant(&format!("new-{trial:03}"));
        let id = rig.enqueue(job).await;
        asked.insert(id, Instant::now());
        until("the newcomer's job to run", || async {
            state_of(&rig, id).await == "succeeded"
        })
        .await;
    }
    let spans = rig.spans();
    asked
        .iter()
        .map(|(id, at)| {
            let own = spans.iter().find(|span| span.id == *id).unwrap();
            spans
                .iter()
                .filter(|span| span.start > *at && span.start < own.start)
                .count()
        })
        .collect()
}

#[tokio::test]
async fn the_single_job_of_a_second_tenant_is_among_the_next_starts() {
    for before in starts_before_a_newcomer(1, 20).await {
        assert!(before < SLOTS, "{before} starts went before it");
    }
}

#[tokio::test]
async fn the_single_job_of_a_fiftieth_tenant_is_among_the_next_starts() {
    for before in starts_before_a_newcomer(49, 20).await {
        assert!(before < SLOTS, "{before} starts went before it");
    }
}

#[tokio::test]
async fn two_tenants_with_backlogs_share_the_slots_evenly() {
    let rig = Rig::with_slots(Behaviour::Record(Duration::from_millis(20)), SLOTS).await;
    // One after the other, the larger first, so that order of arrival alone would give it everything.
    for (tenant, count) in [("a", 400), ("b", 100)] {
        let template = new_job("unused").of_tenant(tenant);
        rig.enqueue_all(&template, &keys(tenant, count)).await;
    }
    until("the smaller backlog to be done", || async {
        rig.count("SELECT count(*) FROM job_history WHERE tenant = 'b'")
            .await
            == 100
    })
    .await;
    let of_larger = rig
        .count("SELECT count(*) FROM job_history WHERE tenant = 'a'")
        .await;
    assert!(
        (60..=200).contains(&of_larger),
        "while 100 jobs of the one ran, {of_larger} of the other did"
    );
}

#[tokio::test]
async fn inside_a_tenant_the_smaller_priority_goes_first() {
    let rig = Rig::with_slots(Behaviour::Gate, 1).await;
    let holder = rig.enqueue(new_job("first")).await;
    until("the only slot to be taken", || async {
        state_of(&rig, holder).await == "running"
    })
    .await;
    let mut ids = Vec::new();
    for (key, priority) in [("late", 5), ("normal", 0), ("urgent", -5)] {
        let mut job = new_job(key);
        job.priority = priority;
        // Not eligible before all of them are there.
        job.delay = Duration::from_secs(60);
        ids.push(rig.enqueue(job).await);
    }
    rig.advance(Duration::from_secs(61)).await;
    until("all to be eligible", || async {
        rig.count("SELECT count(*) FROM jobs WHERE state <> 'running' AND wait <> 'time'")
            .await
            == 3
    })
    .await;
    rig.open_gate();
    until("all to run", || async { rig.succeeded().await == 4 }).await;
    let order: Vec<JobId> = rig.spans().iter().map(|span| span.id).collect();
    assert_eq!(order, [holder, ids[2], ids[1], ids[0]]);
}
