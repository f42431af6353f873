//! One sequence of steps, done by the ledger and by the model.

use std::collections::{BTreeMap, BTreeSet};

use longshore_base::{JobId, Timestamp, clock};
use longshore_ledger::control::{Mode, NewHold, lift_hold, resume, set_hold, set_mode};
use longshore_ledger::testing::Steps;
use longshore_ledger::{
    CancelOutcome, ClaimedJob, DiscardOutcome, Fenced, NewJob, Progress, RetryOutcome, cancel,
    discard, enqueue, resolve_conflicts, retry,
};
use sqlx::PgPool;
use uuid::Uuid;

use crate::compare::{Row, same};
use crate::ledger::{Ledger, NEWER, scope_and_value, verdict, worker_name, workspace};
use crate::reference::{Cancelled, Model, Retried, WINDOW, WORKERS};
use crate::script::{Pick, Step};
use crate::words::{Closed, Ending, JobNo, Kind, Outcome, Place, Request, RunNo, hours};

/// One sequence of steps, done by both.
pub(crate) struct Story<'a> {
    pub(crate) ledger: &'a Ledger,
    pub(crate) steps: Steps,
    pub(crate) began: Timestamp,
    pub(crate) model: Model,
    pub(crate) ids: Vec<JobId>,
    /// Every hint there ever was.
    hints: Vec<(JobNo, i32)>,
    /// What each run was given.
    pub(crate) claims: Vec<ClaimedJob>,
    holds: Vec<(Closed, Uuid)>,
    /// The number of the worker in each place, and of all there were.
    workers: [usize; WORKERS],
    workers_ever: usize,
    pub(crate) before: BTreeMap<JobNo, Row>,
    /// The newest fencing number; whoever writes later has a higher one.
    last_number: i64,
    /// What happened, in words.
    pub(crate) told: Vec<String>,
}

impl<'a> Story<'a> {
    /// About a ledger without jobs.
    pub(crate) async fn begin(ledger: &'a Ledger) -> Self {
        let steps = ledger.begin().await;
        let mut story = Self {
            ledger,
            steps,
            began: clock::now(ledger.pool()).await.unwrap(),
            model: Model::default(),
            ids: Vec::new(),
            hints: Vec::new(),
            claims: Vec::new(),
            holds: Vec::new(),
            workers: [0; WORKERS],
            workers_ever: 0,
            before: BTreeMap::new(),
            last_number: 0,
            told: Vec::new(),
        };
        for place in 0..WORKERS {
            story.worker_comes(place).await;
        }
        story
    }

    pub(crate) fn pool(&self) -> &PgPool {
        self.ledger.pool()
    }

    /// Does a step on both sides; answers where they differ.
    pub(crate) async fn take(&mut self, step: &Step) -> Result<(), String> {
        self.told.push(String::new());
        match step {
            Step::Enqueue(request) => self.enqueue(request).await?,
            Step::Overtake(key) => {
                self.tell(format!("a newer job takes over on key {key}"));
                let mut tx = self.pool().begin().await.unwrap();
                resolve_conflicts(
                    &mut tx,
                    &self.ledger.kinds,
                    NEWER,
                    &[(*key).to_owned()],
                    "ops",
                )
                .await
                .unwrap();
                tx.commit().await.unwrap();
                self.model.overtake(key);
            }
            Step::Advance(by) => {
                self.tell(format!("{by} h pass"));
                self.ledger.database.advance(hours(*by)).await;
                self.model.advance(*by);
            }
            Step::Admit(queue) => {
                self.tell(format!("a pass over {}", queue.name()));
                self.admit(*queue).await?;
            }
            Step::AdmitAll => {
                self.tell("passes over both queues".into());
                self.admit_all().await?;
            }
            Step::Claim(place, picks) => self.claim(*place, picks).await?,
            Step::Take(place, queue, most, lost_answer) => {
                self.take_ready(self.workers[*place], *queue, (*most, *lost_answer))
                    .await?;
            }
            Step::WaitForTurn(pick) => {
                if let Some(run) = self.pick_run(*pick) {
                    self.tell(format!("run {run} waits for its turn"));
                    self.steps.wait_for_turn(&self.claims[run]).await.unwrap();
                    self.model.wait_for_turn(run);
                }
            }
            Step::BeginAfterWait(pick) => {
                if let Some(run) = self.pick_run(*pick) {
                    self.tell(format!("run {run} begins after it waited"));
                    let begins = self
                        .steps
                        .begin_after_wait(&self.claims[run])
                        .await
                        .unwrap();
                    same(
                        "whether it begins",
                        begins,
                        self.model.begin_after_wait(run),
                    )?;
                }
            }
            Step::Write(pick) => self.write(*pick).await?,
            Step::Finish(ended) => self.finish(ended).await,
            Step::Die(place) => self.worker_dies(*place).await?,
            Step::Cancel(pick) => self.cancel(*pick).await?,
            Step::Discard(pick) => self.discard(*pick).await?,
            Step::Retry(pick) => self.retry(*pick).await?,
            Step::Close(scope) => self.close(*scope).await?,
            Step::Open(pick) => self.open_one(*pick).await?,
        }
        self.compare().await
    }

    fn tell(&mut self, what: String) {
        if let Some(last) = self.told.last_mut() {
            *last = what;
        }
    }

    fn pick_job(&self, pick: Pick, fits: impl Fn(Place) -> bool) -> Option<JobNo> {
        let jobs = &self.model.jobs;
        let fit: Vec<JobNo> = (0..jobs.len()).filter(|no| fits(jobs[*no].place)).collect();
        pick.resolve(&fit, jobs.len())
    }

    fn pick_run(&self, pick: Pick) -> Option<RunNo> {
        let count = self.model.runs.len();
        let current: Vec<RunNo> = (0..count)
            .filter(|run| self.model.is_current(*run))
            .collect();
        pick.resolve(&current, count)
    }

    pub(crate) fn number(&self, id: JobId) -> JobNo {
        self.ids.iter().position(|known| *known == id).unwrap()
    }

    async fn enqueue(&mut self, request: &Request) -> Result<(), String> {
        let job = NewJob {
            kind: request.kind.name(),
            queue: request.kind.queue().into(),
            tenant: request.tenant.into(),
            workspace_id: request.workspace.map(workspace),
            keys: request.keys.iter().map(|key| (*key).to_owned()).collect(),
            dedupe_key: request.dedupe.map(str::to_owned),
            args: serde_json::json!({}),
            args_version: 1,
            priority: request.priority,
            delay: hours(request.delay),
            deadline: hours(10_000),
            max_attempts: request.max_attempts,
            created_by: "test".into(),
        };
        let mut tx = self.pool().begin().await.unwrap();
        let enqueued = enqueue(&mut tx, job).await.unwrap();
        tx.commit().await.unwrap();
        let known = self.model.jobs.len();
        let no = self.model.enqueue(request.clone());
        self.tell(format!("job {no} is asked for: {request:?}"));
        same("whether a twin takes it", enqueued.existing, no < known)?;
        if no == known {
            self.ids.push(enqueued.job_id);
        }
        same("which job does it", enqueued.job_id, self.ids[no])
    }

    async fn admit(&mut self, queue: Kind) -> Result<(), String> {
        let admitted = self.steps.admit(queue.queue()).await.unwrap();
        let chosen: Vec<(JobNo, i32)> = admitted
            .iter()
            .map(|(id, dispatch)| (self.number(*id), *dispatch))
            .collect();
        if !chosen.is_empty()
            && let Some(told) = self.told.last_mut()
        {
            told.push_str(&format!("; admitted (job, dispatch): {chosen:?}"));
        }
        self.hints.extend(&chosen);
        self.model.admit(queue, &chosen)
    }

    async fn admit_all(&mut self) -> Result<(), String> {
        loop {
            let before = self.rows().await?;
            for queue in Kind::ALL {
                self.admit(queue).await?;
            }
            // A pass that admits nobody may still find out who must wait for a key.
            if self.rows().await? == before {
                return self.model.judge_who_waits();
            }
        }
    }

    async fn claim(&mut self, place: usize, picks: &[Pick]) -> Result<(), String> {
        let worth_something: Vec<usize> = (0..self.hints.len())
            .filter(|nth| {
                let (no, dispatch) = self.hints[*nth];
                let job = &self.model.jobs[no];
                (job.place, job.dispatch) == (Place::Admitted, dispatch)
            })
            .collect();
        let hints: Vec<(JobNo, i32)> = picks
            .iter()
            .filter_map(|pick| pick.resolve(&worth_something, self.hints.len()))
            .map(|nth| self.hints[nth])
            .collect();
        let worker = self.workers[place];
        self.claim_these(worker, &hints).await
    }

    async fn claim_these(&mut self, worker: usize, hints: &[(JobNo, i32)]) -> Result<(), String> {
        self.tell(format!("{} claims {hints:?}", worker_name(worker)));
        let hinted: Vec<(JobId, i32)> = hints
            .iter()
            .map(|(no, dispatch)| (self.ids[*no], *dispatch))
            .collect();
        let mut claimed = self
            .steps
            .claim(&worker_name(worker), &hinted)
            .await
            .unwrap();
        claimed.sort_by_key(|job| self.number(job.id));
        let got: Vec<JobNo> = claimed.iter().map(|job| self.number(job.id)).collect();
        same("what is claimed", got, self.model.claim(worker, hints))?;
        self.keep(claimed)
    }

    async fn take_ready(
        &mut self,
        worker: usize,
        queue: Kind,
        (most, lost_answer): (usize, bool),
    ) -> Result<(), String> {
        let mut taken = self
            .steps
            .take(&worker_name(worker), queue.queue(), most, lost_answer)
            .await
            .unwrap();
        taken.sort_by_key(|job| self.number(job.id));
        let got: Vec<JobNo> = taken.iter().map(|job| self.number(job.id)).collect();
        self.tell(format!(
            "{} takes up to {most} of {}, lost answer {lost_answer}: {got:?}",
            worker_name(worker),
            queue.name()
        ));
        self.model.take(worker, queue, most, &got)?;
        self.keep(taken)
    }

    /// What runs were given, in the order of the jobs' numbers.
    fn keep(&mut self, claimed: Vec<ClaimedJob>) -> Result<(), String> {
        for job in &claimed {
            let own = &self.model.jobs[self.number(job.id)];
            let checkpoint = own.checkpoint.map(|run| serde_json::json!([run]));
            same(
                "what the run is told",
                (job.attempt, job.crashes, &job.checkpoint),
                (own.attempt, own.crashes, &checkpoint),
            )?;
        }
        self.claims.extend(claimed);
        Ok(())
    }

    async fn write(&mut self, pick: Pick) -> Result<(), String> {
        let Some(run) = self.pick_run(pick) else {
            return Ok(());
        };
        self.tell(format!("run {run} writes"));
        match self.steps.write(&self.claims[run]).await {
            Ok(mut tx) => {
                let progress = Progress {
                    step: run.to_string(),
                    ..Progress::default()
                };
                tx.record_progress(&progress).await.unwrap();
                tx.record_checkpoint(serde_json::json!([run]))
                    .await
                    .unwrap();
                let number = tx.fencing_number().await.unwrap();
                tx.commit().await.unwrap();
                if number <= self.last_number {
                    return Err(format!("{number} fences nobody after {}", self.last_number));
                }
                self.last_number = number;
                same("whether it may write", true, self.model.write(run))
            }
            Err(Fenced::Lost(_)) => same("whether it may write", false, self.model.write(run)),
            Err(error) => Err(error.to_string()),
        }
    }

    async fn finish(&mut self, ended: &[(Pick, Ending)]) {
        let ended: Vec<(RunNo, Ending)> = ended
            .iter()
            .filter_map(|(pick, ending)| Some((self.pick_run(*pick)?, *ending)))
            .collect();
        self.finish_these(ended).await;
    }

    async fn finish_these(&mut self, ended: Vec<(RunNo, Ending)>) {
        let Some(worker) = ended.first().map(|(run, _)| self.model.runs[*run].worker) else {
            return;
        };
        self.tell(format!("runs end: {ended:?}"));
        let runs = ended
            .iter()
            .map(|(run, ending)| (self.claims[*run].clone(), verdict(*ending)))
            .collect();
        let worker = worker_name(worker);
        let written = self.steps.finish(&worker, runs);
        let in_time = tokio::time::timeout(hours(1) / 60, written).await;
        assert!(in_time.is_ok(), "the ends of runs cannot be written");
        self.model.finish(ended);
    }

    async fn worker_comes(&mut self, place: usize) {
        self.workers[place] = self.workers_ever;
        self.workers_ever += 1;
        let queues = Kind::ALL.map(Kind::queue);
        self.steps
            .register(&worker_name(self.workers[place]), &queues, WINDOW)
            .await
            .unwrap();
    }

    async fn worker_dies(&mut self, place: usize) -> Result<(), String> {
        let dead = self.workers[place];
        let other = self.workers[(place + 1) % WORKERS];
        self.tell(format!("{} is found dead", worker_name(dead)));
        let declared = self.steps.reap(&worker_name(other)).await.unwrap();
        same("who is dead", declared, vec![worker_name(dead)])?;
        let rows = self.rows().await?;
        let back: BTreeSet<JobNo> = rows
            .iter()
            .filter(|(_, row)| row.state == "scheduled")
            .map(|(no, _)| *no)
            .collect();
        self.model.worker_dies(dead, &back);
        self.worker_comes(place).await;
        Ok(())
    }

    async fn cancel(&mut self, pick: Pick) -> Result<(), String> {
        let Some(no) = self.pick_job(pick, Place::is_live) else {
            return Ok(());
        };
        self.tell(format!("job {no} is cancelled"));
        let mut tx = self.pool().begin().await.unwrap();
        let outcome = cancel(&mut tx, &self.ledger.kinds, self.ids[no], "ops", None)
            .await
            .unwrap();
        tx.commit().await.unwrap();
        let answer = match outcome {
            CancelOutcome::WasWaiting(_) => Some(Cancelled::WasWaiting),
            CancelOutcome::Requested => Some(Cancelled::Requested),
            CancelOutcome::Finished => Some(Cancelled::Finished),
            CancelOutcome::Unknown => None,
        };
        same("the answer", answer, Some(self.model.cancel(no)))
    }

    async fn discard(&mut self, pick: Pick) -> Result<(), String> {
        let fits = |place| {
            matches!(
                place,
                Place::Waiting | Place::Admitted | Place::Ended(Outcome::Dead)
            )
        };
        let Some(no) = self.pick_job(pick, fits) else {
            return Ok(());
        };
        self.tell(format!("job {no} is discarded"));
        let mut tx = self.pool().begin().await.unwrap();
        let outcome = discard(&mut tx, &self.ledger.kinds, self.ids[no], "ops", None)
            .await
            .unwrap();
        tx.commit().await.unwrap();
        let answer = match outcome {
            DiscardOutcome::Discarded(_) => Some(true),
            DiscardOutcome::NotDiscardable => Some(false),
            DiscardOutcome::Unknown => None,
        };
        same("the answer", answer, Some(self.model.discard(no)))
    }

    async fn retry(&mut self, pick: Pick) -> Result<(), String> {
        let fits = |place| matches!(place, Place::Ended(Outcome::Dead | Outcome::Cancelled));
        let Some(no) = self.pick_job(pick, fits) else {
            return Ok(());
        };
        self.tell(format!("job {no} is retried"));
        let mut tx = self.pool().begin().await.unwrap();
        let outcome = retry(&mut tx, &self.ledger.kinds, self.ids[no], "ops")
            .await
            .unwrap();
        tx.commit().await.unwrap();
        let answer = match outcome {
            RetryOutcome::Retried { .. } => Some(Retried::Waits),
            RetryOutcome::Refused(_) => Some(Retried::Refused),
            RetryOutcome::NotRetryable => Some(Retried::NotRetryable),
            RetryOutcome::Unknown => None,
        };
        let expected = self.model.retry(no);
        if expected == Retried::Waits {
            // It begins anew, so its counts may.
            self.before.remove(&no);
        }
        same("the answer", answer, Some(expected))
    }

    async fn close(&mut self, scope: Closed) -> Result<(), String> {
        self.tell(format!("{scope:?} is closed"));
        let newly = self.model.close(scope);
        let mut tx = self.pool().begin().await.unwrap();
        if let Closed::Queue(kind) = scope {
            let changed = set_mode(&mut tx, kind.name(), Mode::Pause, None, "ops")
                .await
                .unwrap();
            same("whether it was open", changed.changed, newly)?;
        } else if newly {
            let (scope_word, value) = scope_and_value(scope);
            let hold = NewHold {
                scope: scope_word,
                value,
                mode: Mode::Pause,
                reason: None,
                set_by: "ops".into(),
                until: None,
            };
            let changed = set_hold(&mut tx, hold).await.unwrap();
            self.holds.push((scope, changed.control.id));
        }
        tx.commit().await.unwrap();
        Ok(())
    }

    async fn open_one(&mut self, pick: Pick) -> Result<(), String> {
        // Also what is open already.
        let mut scopes = self.model.closed.clone();
        let closed: Vec<usize> = (0..scopes.len()).collect();
        scopes.extend(Kind::ALL.map(Closed::Queue));
        match pick.resolve(&closed, scopes.len()) {
            Some(nth) => self.open(scopes[nth]).await,
            None => Ok(()),
        }
    }

    async fn open(&mut self, scope: Closed) -> Result<(), String> {
        self.tell(format!("{scope:?} is opened"));
        let was_closed = self.model.open(scope);
        let mut tx = self.pool().begin().await.unwrap();
        let lifted = if let Closed::Queue(kind) = scope {
            resume(&mut tx, kind.name(), "ops").await.unwrap()
        } else {
            match self.holds.iter().position(|(held, _)| *held == scope) {
                Some(at) => lift_hold(&mut tx, self.holds.remove(at).1, "ops")
                    .await
                    .unwrap(),
                None => None,
            }
        };
        tx.commit().await.unwrap();
        same("whether it was closed", lifted.is_some(), was_closed)
    }

    /// Opens everything and lets all jobs run. Whoever was forgotten on the way never ends.
    pub(crate) async fn run_dry(&mut self) -> Result<(), String> {
        for scope in self.model.closed.clone() {
            self.told.push(String::new());
            self.open(scope).await?;
        }
        loop {
            let live = |model: &Model| model.jobs.iter().filter(|job| job.place.is_live()).count();
            let before = live(&self.model);
            if before == 0 {
                break;
            }
            // Further than any delay.
            self.take(&Step::Advance(10)).await?;
            self.take(&Step::AdmitAll).await?;
            self.told.push(String::new());
            let hints = self.hints.clone();
            self.claim_these(self.workers[0], &hints).await?;
            self.compare().await?;
            self.told.push(String::new());
            let current = (0..self.model.runs.len()).filter(|run| self.model.is_current(*run));
            self.finish_these(current.map(|run| (run, Ending::Done)).collect())
                .await;
            self.compare().await?;
            if live(&self.model) == before {
                return Err(format!("{before} jobs wait for ever"));
            }
        }
        let slots: i64 = sqlx::query_scalar("SELECT count(*) FROM job_slots")
            .fetch_one(self.pool())
            .await
            .unwrap();
        same("slots that are left", slots, 0)
    }
}
