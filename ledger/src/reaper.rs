//! Takes jobs from workers that are gone.
//!
//! A worker is dead when this process has itself seen the same beat for `dead_after` of its own monotonic clock, every
//! read in that time having succeeded and none having been long in coming. So neither a Postgres restart nor a clock step
//! kills anybody, nor a Postgres that hangs, nor a pause of this process. The row is deleted by compare-and-set on the
//! beat; the worker's jobs follow, each on its own.

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
    read_at: Option<Instant>,
}

impl Reaper {
    pub(crate) fn new(dead_after: Duration) -> Self {
        Self {
            dead_after,
            seen: HashMap::new(),
            read_at: None,
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
        let others = beats
            .into_iter()
            .filter(|row| row.name != own)
            .map(|row| (row.name, row.beat));
        let dead = self.judge(others, Instant::now());
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

impl Reaper {
    /// Compares beats just read with those seen before; answers the workers that are dead, with their last beat.
    fn judge(
        &mut self,
        beats: impl Iterator<Item = (String, i64)>,
        now: Instant,
    ) -> Vec<(String, i64)> {
        // Whatever kept this process from reading may have kept the others from beating.
        let is_late = |read_at| now.duration_since(read_at) > self.dead_after / 2;
        if self.read_at.is_some_and(is_late) {
            self.seen.clear();
        }
        self.read_at = Some(now);
        let mut still = HashMap::with_capacity(self.seen.len());
        let mut dead = Vec::new();
        for (name, beat) in beats {
            let since = match self.seen.get(&name) {
                Some((seen, since)) if *seen == beat => *since,
                _ => now,
            };
            if now.duration_since(since) >= self.dead_after {
                dead.push((name.clone(), beat));
            }
            still.insert(name, (beat, since));
        }
        self.seen = still;
        dead
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
    let had_started = sqlx::query_scalar!(
        r#"SELECT started_at IS NOT NULL AS "started!" FROM jobs WHERE id = $1 AND state = 'running' AND worker = $2 FOR UPDATE SKIP LOCKED"#,
        id.0,
        worker
    )
    .fetch_optional(&mut *tx)
    .await
    .map_err(LedgerError::database("locking an orphaned job"))?;
    let Some(had_started) = had_started else {
        return Ok(());
    };
    let Some(live) = lock(&mut tx, id, None).await? else {
        return Ok(());
    };
    tracing::info!(job.id = %id, job.kind = live.kind, worker, "taking over the job of a dead worker");
    let how = if had_started {
        GoBack::crashed()
    } else {
        GoBack::default()
    };
    let pokes = go_back(&mut tx, kinds, live, how, worker).await?;
    tx.commit()
        .await
        .map_err(LedgerError::database("committing a take-over"))?;
    poke_all(admitter, pokes);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads the beat of one worker at these seconds; answers at which it was declared dead.
    fn declared(reads: &[(u64, i64)]) -> Vec<u64> {
        let began = Instant::now();
        let mut reaper = Reaper::new(Duration::from_secs(10));
        let judged = reads.iter().filter(|(at, beat)| {
            let beats = std::iter::once(("w".to_owned(), *beat));
            !reaper
                .judge(beats, began + Duration::from_secs(*at))
                .is_empty()
        });
        judged.map(|(at, _)| *at).collect()
    }

    #[test]
    fn a_beat_that_stands_still_for_ten_seconds_of_reads_is_a_dead_worker() {
        assert_eq!(declared(&[(0, 5), (3, 5), (6, 5), (9, 5), (12, 5)]), [12]);
        assert!(declared(&[(0, 5), (3, 5), (6, 6), (9, 6), (12, 6), (15, 6)]).is_empty());
    }

    #[test]
    fn a_reader_that_was_held_up_begins_to_count_again() {
        // Stopped, or a Postgres that hung for everybody: the first read after it shows the beat of before.
        assert!(declared(&[(0, 5), (3, 5), (20, 5), (23, 6)]).is_empty());
        assert_eq!(
            declared(&[(0, 5), (3, 5), (20, 5), (23, 5), (26, 5), (29, 5), (32, 5)]),
            [32]
        );
    }
}
