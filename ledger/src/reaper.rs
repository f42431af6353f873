//! Takes jobs from workers that are gone.
//!
//! A worker is dead when this process has itself seen the same beat for `dead_after` of its own monotonic clock, every
//! read in that time having succeeded. So neither a Postgres restart nor a clock step kills anybody. The row is deleted
//! by compare-and-set on the beat; the worker's jobs follow, each on its own.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use longshore_base::JobId;
use sqlx::PgPool;

use crate::admission::Admitter;
use crate::finish::{GoBack, go_back, lock, poke_all};
use crate::{Kinds, LedgerError};

/// What this process has seen of the others.
pub(crate) struct Reaper {
    dead_after: Duration,
    seen: HashMap<String, (i64, Instant)>,
}

impl Reaper {
    pub(crate) fn new(dead_after: Duration) -> Self {
        Self {
            dead_after,
            seen: HashMap::new(),
        }
    }

    /// Looks once; answers the workers it declared dead. After a failed read everything must be seen anew.
    pub(crate) async fn pass(
        &mut self,
        pool: &PgPool,
        kinds: &Kinds,
        admitter: &Admitter,
        own: &str,
    ) -> Result<Vec<String>, LedgerError> {
        let beats = match sqlx::query!("SELECT name, beat FROM workers")
            .fetch_all(pool)
            .await
        {
            Ok(beats) => beats,
            Err(source) => {
                self.seen.clear();
                return Err(LedgerError::Database {
                    doing: "reading beats",
                    source,
                });
            }
        };
        let now = Instant::now();
        let mut still: HashMap<String, (i64, Instant)> = HashMap::with_capacity(beats.len());
        let mut dead = Vec::new();
        for row in beats.into_iter().filter(|row| row.name != own) {
            let since = match self.seen.get(&row.name) {
                Some((beat, since)) if *beat == row.beat => *since,
                _ => now,
            };
            if now.duration_since(since) >= self.dead_after {
                dead.push((row.name.clone(), row.beat));
            }
            still.insert(row.name, (row.beat, since));
        }
        self.seen = still;
        let mut declared = Vec::new();
        for (name, beat) in dead {
            if declare_dead(pool, &name, beat).await? {
                tracing::warn!(
                    worker = name,
                    "worker declared dead: no beat; its jobs are taken over"
                );
                metrics::counter!("longshore_workers_declared_dead_total").increment(1);
                declared.push(name);
            }
        }
        take_orphans(pool, kinds, admitter).await?;
        Ok(declared)
    }
}

async fn declare_dead(pool: &PgPool, name: &str, beat: i64) -> Result<bool, LedgerError> {
    let deleted = sqlx::query!(
        "DELETE FROM workers WHERE name = $1 AND beat = $2",
        name,
        beat
    )
    .execute(pool)
    .await
    .map_err(LedgerError::database("declaring a worker dead"))?;
    Ok(deleted.rows_affected() == 1)
}

/// Running jobs whose worker has no row: of the worker just declared dead, or of one whose reaper died half-way.
async fn take_orphans(
    pool: &PgPool,
    kinds: &Kinds,
    admitter: &Admitter,
) -> Result<(), LedgerError> {
    let orphans = sqlx::query!(
        r#"SELECT id, worker AS "worker!" FROM jobs
           WHERE state = 'running' AND NOT EXISTS (SELECT 1 FROM workers WHERE workers.name = jobs.worker) LIMIT 1000"#
    )
    .fetch_all(pool)
    .await
    .map_err(LedgerError::database("looking for orphaned jobs"))?;
    for orphan in orphans {
        // One job that cannot be taken must not keep the others waiting.
        if let Err(error) = take(pool, kinds, admitter, JobId(orphan.id), &orphan.worker).await {
            tracing::error!(job.id = %orphan.id, error = &error as &dyn std::error::Error, "cannot take over an orphaned job");
        }
    }
    Ok(())
}

async fn take(
    pool: &PgPool,
    kinds: &Kinds,
    admitter: &Admitter,
    id: JobId,
    worker: &str,
) -> Result<(), LedgerError> {
    let mut tx = pool
        .begin()
        .await
        .map_err(LedgerError::database("beginning to take over a job"))?;
    // Skipped while its run still has a transaction open, or another reaper is at it; the next pass comes soon.
    let free = sqlx::query_scalar!(
        "SELECT id FROM jobs WHERE id = $1 AND state = 'running' AND worker = $2 FOR UPDATE SKIP LOCKED",
        id.0,
        worker
    )
    .fetch_optional(&mut *tx)
    .await
    .map_err(LedgerError::database("locking an orphaned job"))?;
    if free.is_none() {
        return Ok(());
    }
    let Some(live) = lock(&mut tx, id, None).await? else {
        return Ok(());
    };
    tracing::info!(job.id = %id, job.kind = live.kind, worker, "taking over the job of a dead worker");
    let pokes = go_back(&mut tx, kinds, live, GoBack::crashed(), worker).await?;
    tx.commit()
        .await
        .map_err(LedgerError::database("committing a take-over"))?;
    poke_all(admitter, pokes);
    Ok(())
}
