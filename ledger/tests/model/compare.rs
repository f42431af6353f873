//! What the tables say after a step, beside what the model says.

use std::collections::BTreeMap;

use longshore_base::{JobId, Timestamp};
use uuid::Uuid;

use crate::ledger::{word, worker_name};
use crate::reference::Job;
use crate::story::Story;
use crate::words::{Hour, JobNo, Place};

/// A job as a row of `jobs` or `job_history`.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub(crate) struct Row {
    id: Uuid,
    pub(crate) state: String,
    wait: Option<String>,
    keys: Vec<String>,
    backing_off: bool,
    dispatch: i32,
    attempt: i32,
    crashes: i32,
    snoozes: i32,
    errors: i32,
    run_at: Timestamp,
    cancel_requested: bool,
    worker: Option<String>,
    token: Option<Uuid>,
    started: bool,
    progress: Option<String>,
    checkpoint: Option<String>,
}

/// What both can say of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Said {
    state: String,
    backing_off: bool,
    dispatch: i32,
    attempt: i32,
    crashes: i32,
    snoozes: i32,
    errors: usize,
    due: Hour,
    cancel_requested: bool,
    /// By whom it is run, under which token, and whether that counts.
    run: Option<(String, Uuid, bool)>,
    /// The runs that wrote its progress and its checkpoint.
    wrote: (Option<String>, Option<String>),
}

const RECORDS: &str = "SELECT id, state::text, wait::text, keys, backing_off, dispatch, attempt, crashes, snoozes,
        jsonb_array_length(errors) AS errors, run_at, cancel_requested IS NOT NULL AS cancel_requested, worker, token,
        started_at IS NOT NULL AS started,
        progress ->> 'step' AS progress, checkpoint ->> 0 AS checkpoint FROM jobs
    UNION ALL SELECT id, outcome::text, NULL, keys, false, dispatch, attempt, crashes, snoozes,
        jsonb_array_length(errors), run_at, cancel_requested IS NOT NULL, worker, NULL, started_at IS NOT NULL,
        progress ->> 'step', NULL FROM job_history";

impl Story<'_> {
    pub(crate) async fn rows(&self) -> Result<BTreeMap<JobNo, Row>, String> {
        let rows: Vec<Row> = sqlx::query_as(RECORDS)
            .fetch_all(self.pool())
            .await
            .unwrap();
        let count = rows.len();
        let by_number: BTreeMap<JobNo, Row> = rows
            .into_iter()
            .map(|row| (self.number(JobId(row.id)), row))
            .collect();
        same("rows, one for each job", count, by_number.len())?;
        Ok(by_number)
    }

    /// What the model says of every job, slot and hook, against what the tables say; then what holds whatever happened.
    pub(crate) async fn compare(&mut self) -> Result<(), String> {
        let rows = self.rows().await?;
        same("how many jobs there are", rows.len(), self.model.jobs.len())?;
        for (no, row) in &rows {
            let (real, expected) = (self.said_by(row), self.expected(*no));
            if real != expected {
                return Err(format!(
                    "job {no}\n  is      {real:?}\n  not     {expected:?}"
                ));
            }
        }
        let slots: Vec<(String, Uuid)> = sqlx::query_as("SELECT key, job_id FROM job_slots")
            .fetch_all(self.pool())
            .await
            .unwrap();
        let held: BTreeMap<&str, JobNo> = slots
            .iter()
            .map(|(key, id)| (key.as_str(), self.number(JobId(*id))))
            .collect();
        same("who holds which slot", &held, &self.model.slots)?;
        let told: Vec<(JobNo, String)> = {
            let told = self.ledger.told();
            told.iter()
                .map(|(id, outcome)| (self.number(*id), outcome.as_str().to_owned()))
                .collect()
        };
        let expected = self
            .model
            .told
            .iter()
            .map(|(no, outcome)| (*no, word(*outcome).to_owned()));
        same("what hooks were told", told, expected.collect())?;
        self.hold_invariants(&rows, &held).await?;
        self.before = rows;
        Ok(())
    }

    async fn hold_invariants(
        &self,
        rows: &BTreeMap<JobNo, Row>,
        held: &BTreeMap<&str, JobNo>,
    ) -> Result<(), String> {
        for (no, row) in rows {
            let in_hand = matches!(row.state.as_str(), "queued" | "running");
            for key in &row.keys {
                let holds = held.get(key.as_str()) == Some(no);
                same(
                    &format!("whether job {no} ({}) holds {key}", row.state),
                    holds,
                    in_hand,
                )?;
            }
            same(
                &format!("whether job {no} has a token"),
                row.token.is_some(),
                row.state == "running",
            )?;
            if let Some(before) = self.before.get(no)
                && (row.dispatch < before.dispatch
                    || row.attempt < before.attempt
                    || row.crashes < before.crashes)
            {
                return Err(format!(
                    "job {no} counts backwards: {before:?}, then {row:?}"
                ));
            }
        }
        let astray: i64 = sqlx::query_scalar(
            "SELECT (SELECT count(*) FROM job_slots WHERE NOT EXISTS (SELECT 1 FROM jobs WHERE id = job_id AND key = ANY (keys)))
                  + (SELECT count(*) FROM job_keys FULL JOIN
                        (SELECT id, unnest(keys) AS key FROM jobs WHERE cardinality(keys) > 1) AS wanted
                        ON id = job_id AND wanted.key = job_keys.key
                     WHERE id IS NULL OR job_id IS NULL)",
        )
        .fetch_one(self.pool())
        .await
        .unwrap();
        same("slots without a job, and keys without theirs", astray, 0)?;
        self.steps.wake_forgotten().await.unwrap();
        let behind_keys: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM jobs WHERE state = 'scheduled' AND wait = 'key'",
        )
        .fetch_one(self.pool())
        .await
        .unwrap();
        let before = rows
            .values()
            .filter(|row| row.state == "scheduled" && row.wait.as_deref() == Some("key"));
        if usize::try_from(behind_keys).unwrap() != before.count() {
            return Err("somebody was forgotten behind a key".into());
        }
        Ok(())
    }

    fn said_by(&self, row: &Row) -> Said {
        Said {
            state: row.state.clone(),
            backing_off: row.backing_off,
            dispatch: row.dispatch,
            attempt: row.attempt,
            crashes: row.crashes,
            snoozes: row.snoozes,
            errors: usize::try_from(row.errors).unwrap(),
            due: (row.run_at - self.began).num_hours(),
            cancel_requested: row.cancel_requested,
            wrote: (row.progress.clone(), row.checkpoint.clone()),
            run: row
                .token
                .map(|token| (row.worker.clone().unwrap_or_default(), token, row.started)),
        }
    }

    fn expected(&self, no: JobNo) -> Said {
        let job: &Job = &self.model.jobs[no];
        let run = match job.place {
            Place::Running(run) => {
                let of_run = self.model.runs[run];
                Some((
                    worker_name(of_run.worker),
                    self.claims[run].token,
                    of_run.started,
                ))
            }
            _ => None,
        };
        Said {
            state: match job.place {
                Place::Waiting => "scheduled",
                Place::Admitted => "queued",
                Place::Running(_) => "running",
                Place::Ended(outcome) => word(outcome),
            }
            .to_owned(),
            // The history does not keep it.
            backing_off: job.backing_off && job.place.is_live(),
            dispatch: job.dispatch,
            attempt: job.attempt,
            crashes: job.crashes,
            snoozes: job.snoozes,
            errors: job.errors,
            due: job.due,
            cancel_requested: job.cancel_requested,
            run,
            wrote: (
                job.progress.map(|run| run.to_string()),
                job.checkpoint.map(|run| run.to_string()),
            ),
        }
    }
}

pub(crate) fn same<T: PartialEq + std::fmt::Debug>(
    what: &str,
    real: T,
    expected: T,
) -> Result<(), String> {
    if real == expected {
        return Ok(());
    }
    Err(format!(
        "{what}: {real:?} in the ledger, {expected:?} in the model"
    ))
}
