//! Those who ask for jobs, each in a transaction of its own, with Postgres coming and going.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use longshore_base::JobId;
use longshore_ledger::{Admitter, LedgerError, NewJob, enqueue};
use serde_json::json;
use sqlx::PgPool;

use crate::schedule::{Plan, Request};

const AGAIN: Duration = Duration::from_millis(100);

/// What was asked for.
#[derive(Default)]
pub(crate) struct Asked {
    /// Commits that were answered. With a dedupe key several may have the same job.
    pub(crate) accepted: Vec<(JobId, Plan)>,
    /// Commits without answer: done, or not.
    pub(crate) unknown: Vec<(JobId, Plan)>,
}

/// Asks for jobs when their time comes, with so many hands.
pub(crate) async fn ask(
    pool: &PgPool,
    admitter: &Admitter,
    sink: &str,
    requests: &[Request],
    hands: usize,
) -> Asked {
    let began = Instant::now();
    let asked = Arc::new(Mutex::new(Asked::default()));
    let mut asking = tokio::task::JoinSet::new();
    for hand in 0..hands {
        let requests: Vec<Request> = requests.iter().skip(hand).step_by(hands).cloned().collect();
        let (pool, admitter, sink) = (pool.clone(), admitter.clone(), sink.to_owned());
        let asked = Arc::clone(&asked);
        asking.spawn(async move {
            for request in requests {
                tokio::time::sleep(request.at.saturating_sub(began.elapsed())).await;
                let (job, is_known) = commit(&pool, &admitter, &sink, &request).await;
                let mut asked = asked.lock().unwrap();
                if is_known {
                    asked.accepted.push((job, request.plan));
                } else {
                    asked.unknown.push((job, request.plan));
                }
            }
        });
    }
    while let Some(ended) = asking.join_next().await {
        ended.unwrap();
    }
    std::mem::take(&mut *asked.lock().unwrap())
}

/// Tries until a commit was sent; whether it was answered.
async fn commit(
    pool: &PgPool,
    admitter: &Admitter,
    sink: &str,
    request: &Request,
) -> (JobId, bool) {
    loop {
        let attempt = async {
            let mut tx = pool.begin().await.map_err(away)?;
            let enqueued = enqueue(&mut tx, new_job(request, sink)).await?;
            Ok::<_, LedgerError>((tx, enqueued))
        };
        let Ok((tx, enqueued)) = attempt.await else {
            tokio::time::sleep(AGAIN).await;
            continue;
        };
        let is_known = tx.commit().await.is_ok();
        if request.poke {
            admitter.poke(&enqueued.queue);
        }
        return (enqueued.job_id, is_known);
    }
}

fn away(source: sqlx::Error) -> LedgerError {
    LedgerError::Database {
        doing: "asking for a job",
        source,
    }
}

fn new_job(request: &Request, sink: &str) -> NewJob {
    NewJob {
        kind: request.kind,
        queue: format!("{}@{}", request.kind, request.place),
        tenant: request.tenant.clone(),
        workspace_id: None,
        keys: request.keys.clone(),
        dedupe_key: request.dedupe_key.clone(),
        args: json!({
            "sink": sink, "steps": request.steps, "step_ms": request.step_ms, "plan": request.plan,
        }),
        args_version: request.args_version,
        priority: 0,
        delay: request.delay,
        deadline: Duration::from_secs(24 * 3600),
        max_attempts: 4,
        created_by: "chaos".to_owned(),
    }
}
