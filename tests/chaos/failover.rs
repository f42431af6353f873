//! The end of a run with sentinels: the master hangs, so that nobody's connection is closed, and every process that
//! lives finds the way to its successor.

use std::time::Instant;

use longshore_ledger::Admitter;
use longshore_tests::{Caller, PATIENCE, wait_until};
use redis::streams::StreamInfoConsumersReply;
use serde_json::Value;

use crate::arena::{Arena, REDIS_PREFIX};
use crate::quarantine::request;
use crate::requests::{Asked, ask};
use crate::schedule::{Fault, Plan, WORKERS, Who};
use crate::sentinels::Sentinels;
use crate::store::Servers;

/// Looks that all follow; answers the jobs that it asked for.
pub(crate) async fn everybody_follows(
    arena: &mut Arena,
    api: &Caller,
    admitter: &Admitter,
) -> Asked {
    until_all_started(arena).await;
    let workers: Vec<u32> = (0..WORKERS)
        .map(|number| arena.seen(Who::Worker(number)).unwrap().0)
        .collect();
    let (pool, sink) = (arena.pool().clone(), arena.sink());
    let before = {
        let sentinels = sentinels(arena);
        sentinels.until_ready().await;
        sentinels.master().await.unwrap()
    };
    // So that all have connections to it.
    let mut asked = ask(&pool, admitter, &sink, &[request(Plan::Succeed)], 1).await;
    until_all_read(sentinels(arena), before, &workers, None).await;
    until_well(api).await;

    arena.apply(Fault::FreezeRedis).await;
    let frozen = Instant::now();
    let after = 1 - before;
    let sentinels = sentinels(arena);
    wait_until("a failover", PATIENCE, || async {
        match sentinels.master().await {
            Some(master) if master == after => Ok(()),
            master => Err(format!("{master:?} is the master")),
        }
    })
    .await;
    until_all_read(sentinels, after, &workers, Some(frozen)).await;
    until_well(api).await;
    // Hints that came from its master it has counted too.
    let reset = ["CONFIG", "RESETSTAT"];
    sentinels.ask::<()>(after, &reset).await.unwrap();
    let began = Instant::now();
    loop {
        let more = ask(&pool, admitter, &sink, &[request(Plan::Succeed)], 1).await;
        asked.accepted.extend(more.accepted);
        let info = sentinels.ask::<String>(after, &["INFO", "commandstats"]);
        if info.await.unwrap().contains("cmdstat_xadd:") {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "nobody publishes");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    for (number, pid) in workers.iter().enumerate() {
        let (now, _) = arena.seen(Who::Worker(number)).unwrap();
        assert_eq!(now, *pid, "a worker ended");
    }
    asked
}

fn sentinels(arena: &Arena) -> &Sentinels {
    match &arena.redis.servers {
        Servers::Watched(sentinels) => sentinels,
        Servers::One(_) => panic!("this run has no sentinels"),
    }
}

async fn until_all_started(arena: &mut Arena) {
    let began = Instant::now();
    loop {
        arena.tend();
        let everybody = (0..WORKERS).map(Who::Worker).chain([Who::Api]);
        let waits = everybody
            .filter(|who| arena.seen(*who).is_none_or(|(_, has_started)| !has_started))
            .count();
        if waits == 0 {
            return;
        }
        assert!(
            began.elapsed() < PATIENCE,
            "{waits} processes did not start"
        );
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

/// Waits until all workers have read hints from a server, since then.
async fn until_all_read(
    sentinels: &Sentinels,
    server: usize,
    workers: &[u32],
    since: Option<Instant>,
) {
    wait_until("all workers to read hints", PATIENCE, || async move {
        for place in ["left", "right"] {
            let stream = format!("{REDIS_PREFIX}jobs:effect@{place}");
            let question = ["XINFO", "CONSUMERS", &stream, "workers"];
            let asked_at = Instant::now();
            let reply: StreamInfoConsumersReply = sentinels
                .ask(server, &question)
                .await
                .ok_or("no group is there")?;
            for pid in workers {
                let reads = reply.consumers.iter().any(|consumer| {
                    let idle = u128::try_from(consumer.idle).unwrap();
                    let is_new = since.is_none_or(|since| {
                        idle + 500 < asked_at.duration_since(since).as_millis()
                    });
                    consumer.name.contains(&format!("-{pid}-")) && is_new
                });
                if !reads {
                    return Err(format!("worker {pid} does not read {place}"));
                }
            }
        }
        Ok(())
    })
    .await;
}

/// Waits until the API is content with what Redis does for it.
async fn until_well(api: &Caller) {
    wait_until("the API to have Redis", PATIENCE, || async {
        let ready = api.get("/readyz?verbose").await;
        let text = ready.text();
        let body: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        let degraded = body["degraded"].as_array().ok_or(text.clone())?;
        let is_away = |part: &Value| part == "redis" || part == "event_listener";
        if degraded.iter().any(is_away) {
            return Err(text);
        }
        Ok(())
    })
    .await;
}
