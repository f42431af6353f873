//! What the ledger promises, over plain values: no database, no time but a counter of hours, nothing at once.
//!
//! All but one thing is foretold. Whom an admission takes is the ledger's choice (turns of tenants, its window), so the
//! model is told the choice and judges it: nobody may be taken who may not run, nor left out while nothing is in the way.

use std::collections::{BTreeMap, BTreeSet};

use crate::words::{
    Closed, Ending, Hour, JobNo, Key, Kind, Outcome, Overtaken, Place, Request, RunNo,
};

/// Deaths of workers that make a job poison, and those from which it waits for a turn alone.
const POISON: i32 = 3;
const QUARANTINE: i32 = 2;
/// Errors a job keeps: the first three and the last ten.
const ERRORS_KEPT: usize = 13;

#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) request: Request,
    pub(crate) place: Place,
    /// Its turn among those of the same tenant and priority.
    seq: usize,
    pub(crate) due: Hour,
    pub(crate) backing_off: bool,
    pub(crate) dispatch: i32,
    pub(crate) attempt: i32,
    pub(crate) crashes: i32,
    pub(crate) snoozes: i32,
    pub(crate) errors: usize,
    pub(crate) cancel_requested: bool,
    /// Which runs wrote these.
    pub(crate) progress: Option<RunNo>,
    pub(crate) checkpoint: Option<RunNo>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    pub(crate) job: JobNo,
    pub(crate) worker: usize,
    pub(crate) started: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cancelled {
    WasWaiting,
    Requested,
    Finished,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Retried {
    Waits,
    Refused,
    NotRetryable,
}

/// Jobs wanted ahead and slots, of each worker in each queue; and how many workers there are at any time.
pub(crate) const WINDOW: [usize; 2] = [1, 2];
pub(crate) const WORKERS: usize = 2;

/// Waits between attempts of both kinds.
pub(crate) const BACKOFF: [Hour; 2] = [1, 4];

#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    now: Hour,
    pub(crate) jobs: Vec<Job>,
    pub(crate) slots: BTreeMap<Key, JobNo>,
    pub(crate) runs: Vec<Run>,
    pub(crate) closed: Vec<Closed>,
    /// Ends the hooks were told of.
    pub(crate) told: Vec<(JobNo, Outcome)>,
    asked: usize,
}

impl Model {
    /// Answers the job that will do it.
    pub(crate) fn enqueue(&mut self, request: Request) -> JobNo {
        if request.dedupe.is_some()
            && let Some(twin) = self.waiting_twin(&request, None)
        {
            return twin;
        }
        self.asked += 1;
        self.jobs.push(Job {
            place: Place::Waiting,
            seq: self.asked,
            due: self.now + request.delay,
            backing_off: false,
            dispatch: 0,
            attempt: 0,
            crashes: 0,
            snoozes: 0,
            errors: 0,
            cancel_requested: false,
            progress: None,
            checkpoint: None,
            request,
        });
        self.jobs.len() - 1
    }

    pub(crate) const fn advance(&mut self, hours: Hour) {
        self.now += hours;
    }

    /// Judges an admission: these jobs of a queue, with these dispatch numbers.
    pub(crate) fn admit(&mut self, queue: Kind, chosen: &[(JobNo, i32)]) -> Result<(), String> {
        self.admit_within(self.room(queue), queue, chosen)
    }

    fn admit_within(
        &mut self,
        room: usize,
        queue: Kind,
        chosen: &[(JobNo, i32)],
    ) -> Result<(), String> {
        if chosen.len() > room {
            return Err(format!("{} admitted where {room} had room", chosen.len()));
        }
        let passed_over = self.first_passed_over(queue, chosen);
        for (no, dispatch) in chosen {
            if !self.may_be_admitted(*no) {
                return Err(format!("job {no} was admitted although it may not run"));
            }
            let job = &mut self.jobs[*no];
            if job.request.kind != queue {
                return Err(format!("job {no} was admitted to a queue it is not in"));
            }
            job.place = Place::Admitted;
            job.backing_off = false;
            job.dispatch += 1;
            if job.dispatch != *dispatch {
                return Err(format!(
                    "job {no} is hinted at with dispatch {dispatch}, not {}",
                    job.dispatch
                ));
            }
            for key in &job.request.keys {
                self.slots.insert(key, *no);
            }
        }
        passed_over.map_or(Ok(()), |(later, earlier)| {
            Err(format!("job {later} was admitted before job {earlier}"))
        })
    }

    /// After admissions that had nothing more to admit: nobody may wait with nothing in the way.
    pub(crate) fn judge_who_waits(&self) -> Result<(), String> {
        let due = (0..self.jobs.len()).filter(|no| {
            let job = &self.jobs[*no];
            job.place == Place::Waiting && job.due <= self.now
        });
        let (mut free, mut stuck): (Vec<JobNo>, Vec<JobNo>) = due.partition(|no| {
            self.may_be_admitted(*no) && self.room(self.jobs[*no].request.kind) > 0
        });
        // Who was asked for before, and is held up itself, holds up those behind it on each of its keys.
        while let Some(at) = free
            .iter()
            .position(|no| stuck.iter().any(|other| self.stands_before(*other, *no)))
        {
            stuck.push(free.swap_remove(at));
        }
        free.first().map_or(Ok(()), |no| {
            Err(format!("job {no} waits, and nothing is in its way"))
        })
    }

    /// Answers which jobs a worker gets for these hints, in the order of their numbers.
    pub(crate) fn claim(&mut self, worker: usize, hints: &[(JobNo, i32)]) -> Vec<JobNo> {
        let hinted: BTreeSet<JobNo> = hints
            .iter()
            .filter(|(no, dispatch)| {
                let job = &self.jobs[*no];
                job.place == Place::Admitted && job.dispatch == *dispatch
            })
            .map(|(no, _)| *no)
            .collect();
        for no in &hinted {
            let job = &mut self.jobs[*no];
            job.place = Place::Running(self.runs.len());
            self.runs.push(Run {
                job: *no,
                worker,
                started: job.crashes < QUARANTINE,
            });
        }
        hinted.into_iter().collect()
    }

    /// Judges what a worker with free slots for `most` took, in the order of their numbers.
    pub(crate) fn take(
        &mut self,
        worker: usize,
        queue: Kind,
        most: usize,
        taken: &[JobNo],
    ) -> Result<(), String> {
        let is_admitted = |no: &JobNo| self.jobs[*no].place == Place::Admitted;
        let (admitted, fresh): (Vec<JobNo>, Vec<JobNo>) =
            taken.iter().partition(|no| is_admitted(no));
        if taken.len() > most {
            return Err(format!(
                "{} taken by a worker with {most} slots",
                taken.len()
            ));
        }
        let left = (0..self.jobs.len()).find(|no| {
            self.jobs[*no].request.kind == queue && is_admitted(no) && !admitted.contains(no)
        });
        if let Some(left) = left
            && (taken.len() < most || !fresh.is_empty())
        {
            return Err(format!(
                "job {left} was admitted before, and is passed over"
            ));
        }
        let chosen: Vec<(JobNo, i32)> = fresh
            .iter()
            .map(|no| (*no, self.jobs[*no].dispatch + 1))
            .collect();
        self.admit_within(most - admitted.len(), queue, &chosen)?;
        let hints: Vec<(JobNo, i32)> = taken
            .iter()
            .map(|no| (*no, self.jobs[*no].dispatch))
            .collect();
        if self.claim(worker, &hints) == taken {
            Ok(())
        } else {
            Err(format!(
                "{taken:?} were taken, and not all of them were to be had"
            ))
        }
    }

    /// Whether a run still owns its job.
    pub(crate) fn is_current(&self, run: RunNo) -> bool {
        self.jobs[self.runs[run].job].place == Place::Running(run)
    }

    /// A run writes its progress and a checkpoint. Answers whether it may.
    pub(crate) fn write(&mut self, run: RunNo) -> bool {
        let is_current = self.is_current(run);
        if is_current {
            let job = &mut self.jobs[self.runs[run].job];
            (job.progress, job.checkpoint) = (Some(run), Some(run));
        }
        is_current
    }

    pub(crate) fn wait_for_turn(&mut self, run: RunNo) {
        if self.is_current(run) {
            self.runs[run].started = false;
        }
    }

    pub(crate) fn begin_after_wait(&mut self, run: RunNo) -> bool {
        let begins = self.is_current(run) && !self.is_closed(self.runs[run].job);
        self.runs[run].started |= begins;
        begins
    }

    /// These runs end, in this order, save that plain successes are written first.
    pub(crate) fn finish(&mut self, mut ended: Vec<(RunNo, Ending)>) {
        ended.sort_by_key(|(run, ending)| {
            *ending != Ending::Done || self.jobs[self.runs[*run].job].request.kind != Kind::Plain
        });
        for (run, ending) in ended {
            if self.is_current(run) {
                self.finish_one(self.runs[run].job, ending);
            }
        }
    }

    fn finish_one(&mut self, no: JobNo, ending: Ending) {
        let job = &self.jobs[no];
        let failures = job.attempt + 1;
        let retry_in = match ending {
            Ending::Retry => Some(backoff(failures)),
            Ending::RetryAfter(hours) => Some(hours),
            _ => None,
        };
        match ending {
            Ending::Done => self.end(no, Outcome::Succeeded),
            Ending::Superseded => self.end(no, Outcome::Superseded),
            Ending::Cancelled => {
                // Without a request there is no reason to keep.
                let errors = job.errors;
                let requested = job.cancel_requested;
                self.end(no, Outcome::Cancelled);
                if !requested {
                    self.jobs[no].errors = errors;
                }
            }
            Ending::Permanent => self.die(no),
            Ending::Retry | Ending::RetryAfter(_) if failures >= job.request.max_attempts => {
                self.die(no);
            }
            Ending::Retry | Ending::RetryAfter(_) => {
                self.jobs[no].attempt = failures;
                self.note_error(no);
                if self.goes_back(no, retry_in.unwrap_or(0)) {
                    self.jobs[no].backing_off = true;
                }
            }
            Ending::Snooze(hours) => {
                if self.goes_back(no, hours) {
                    self.jobs[no].snoozes += 1;
                }
            }
            Ending::GiveBack => {
                self.goes_back(no, 0);
            }
        }
    }

    fn die(&mut self, no: JobNo) {
        self.jobs[no].attempt += 1;
        self.end(no, Outcome::Dead);
    }

    /// A worker is found dead. Of two runs that stand for the same request one goes back and takes the other over; which,
    /// is the ledger's choice: one of `back`.
    pub(crate) fn worker_dies(&mut self, worker: usize, back: &BTreeSet<JobNo>) {
        let mut lost: Vec<RunNo> = (0..self.runs.len())
            .filter(|run| self.runs[*run].worker == worker && self.is_current(*run))
            .collect();
        lost.sort_by_key(|run| !back.contains(&self.runs[*run].job));
        for run in lost {
            let no = self.runs[run].job;
            if self.runs[run].started {
                self.jobs[no].crashes += 1;
                if self.jobs[no].crashes >= POISON {
                    self.end(no, Outcome::Dead);
                    continue;
                }
                self.note_error(no);
            }
            self.goes_back(no, 0);
        }
    }

    pub(crate) fn cancel(&mut self, no: JobNo) -> Cancelled {
        match self.jobs[no].place {
            Place::Ended(_) => Cancelled::Finished,
            Place::Running(_) => {
                self.jobs[no].cancel_requested = true;
                Cancelled::Requested
            }
            Place::Waiting | Place::Admitted => {
                self.jobs[no].cancel_requested = true;
                self.end(no, Outcome::Cancelled);
                Cancelled::WasWaiting
            }
        }
    }

    /// Whether there was something to put away.
    pub(crate) fn discard(&mut self, no: JobNo) -> bool {
        match self.jobs[no].place {
            Place::Waiting | Place::Admitted => self.end(no, Outcome::Cancelled),
            // Nobody is told: its end has been.
            Place::Ended(Outcome::Dead) => {
                self.jobs[no].place = Place::Ended(Outcome::Cancelled);
            }
            Place::Running(_) | Place::Ended(_) => return false,
        }
        true
    }

    pub(crate) fn retry(&mut self, no: JobNo) -> Retried {
        if !matches!(
            self.jobs[no].place,
            Place::Ended(Outcome::Dead | Outcome::Cancelled)
        ) {
            return Retried::NotRetryable;
        }
        if self.jobs[no].request.dedupe.is_some()
            && self.waiting_twin(&self.jobs[no].request, None).is_some()
        {
            return Retried::Refused;
        }
        self.asked += 1;
        let job = &mut self.jobs[no];
        job.place = Place::Waiting;
        job.seq = self.asked;
        job.due = self.now;
        (job.attempt, job.crashes, job.snoozes) = (0, 0, 0);
        (job.progress, job.checkpoint) = (None, None);
        job.cancel_requested = false;
        job.backing_off = false;
        Retried::Waits
    }

    /// A newer job is asked for on a key, of the kind that is not in the model.
    pub(crate) fn overtake(&mut self, key: Key) {
        for no in 0..self.jobs.len() {
            let job = &self.jobs[no];
            if !job.place.is_live() || !job.request.keys.contains(&key) {
                continue;
            }
            match job.request.kind.when_overtaken(job.place, job.backing_off) {
                Overtaken::Stays => {}
                Overtaken::Ends => self.end(no, Outcome::Superseded),
                Overtaken::IsAskedToStop => self.jobs[no].cancel_requested = true,
            }
        }
    }

    /// Answers whether it was open before.
    pub(crate) fn close(&mut self, scope: Closed) -> bool {
        if self.closed.contains(&scope) {
            return false;
        }
        self.closed.push(scope);
        for no in 0..self.jobs.len() {
            if self.jobs[no].place == Place::Admitted && scope.covers(&self.jobs[no].request) {
                self.jobs[no].place = Place::Waiting;
                self.free_slots(no);
            }
        }
        true
    }

    /// Answers whether it was closed before.
    pub(crate) fn open(&mut self, scope: Closed) -> bool {
        let before = self.closed.len();
        self.closed.retain(|closed| *closed != scope);
        self.closed.len() < before
    }

    fn is_closed(&self, no: JobNo) -> bool {
        self.closed
            .iter()
            .any(|scope| scope.covers(&self.jobs[no].request))
    }

    /// Whether nothing but room stands between a job and its admission.
    fn may_be_admitted(&self, no: JobNo) -> bool {
        let job = &self.jobs[no];
        job.place == Place::Waiting
            && job.due <= self.now
            && !self.is_closed(no)
            && !job
                .request
                .keys
                .iter()
                .any(|key| self.slots.contains_key(key))
    }

    fn stands_before(&self, first: JobNo, second: JobNo) -> bool {
        let (first, second) = (&self.jobs[first], &self.jobs[second]);
        let shares = |key| second.request.keys.contains(key);
        first.seq < second.seq && first.request.keys.iter().any(shares)
    }

    /// How many more jobs of a queue may be admitted: what workers want ahead of their slots, and their free slots.
    fn room(&self, queue: Kind) -> usize {
        let count = |is: fn(Place) -> bool| {
            let of_queue = |job: &&Job| job.request.kind == queue && is(job.place);
            self.jobs.iter().filter(of_queue).count()
        };
        let [ahead, slots] = WINDOW.map(|each| each * WORKERS);
        let running = count(|place| matches!(place, Place::Running(_)));
        let queued = count(|place| place == Place::Admitted);
        (ahead + slots.saturating_sub(running)).saturating_sub(queued)
    }

    /// An admitted job, and one of its tenant without keys that should have gone before it.
    fn first_passed_over(&self, queue: Kind, chosen: &[(JobNo, i32)]) -> Option<(JobNo, JobNo)> {
        let place = |no: JobNo| (self.jobs[no].request.priority, self.jobs[no].seq);
        let left_out = |no: &JobNo| {
            let job = &self.jobs[*no];
            job.request.kind == queue
                && job.request.keys.is_empty()
                && self.may_be_admitted(*no)
                && !chosen.iter().any(|(admitted, _)| admitted == no)
        };
        let left_out: Vec<JobNo> = (0..self.jobs.len()).filter(left_out).collect();
        chosen.iter().find_map(|(admitted, _)| {
            let earlier = left_out.iter().find(|no| {
                self.jobs[**no].request.tenant == self.jobs[*admitted].request.tenant
                    && place(**no) < place(*admitted)
            })?;
            Some((*admitted, *earlier))
        })
    }

    /// The job that waits to do the same, if not this one.
    fn waiting_twin(&self, request: &Request, own: Option<JobNo>) -> Option<JobNo> {
        (0..self.jobs.len()).find(|no| {
            let twin = &self.jobs[*no];
            Some(*no) != own
                && matches!(twin.place, Place::Waiting | Place::Admitted)
                && (twin.request.kind, twin.request.dedupe) == (request.kind, request.dedupe)
        })
    }

    /// A running job goes back to wait, unless a twin waits already. Answers whether it does.
    fn goes_back(&mut self, no: JobNo, delay: Hour) -> bool {
        let request = &self.jobs[no].request;
        if request.dedupe.is_some() && self.waiting_twin(request, Some(no)).is_some() {
            self.end(no, Outcome::Superseded);
            return false;
        }
        let job = &mut self.jobs[no];
        job.place = Place::Waiting;
        job.due = self.now + delay;
        job.backing_off = false;
        job.progress = None;
        self.free_slots(no);
        true
    }

    fn end(&mut self, no: JobNo, outcome: Outcome) {
        self.jobs[no].place = Place::Ended(outcome);
        // The history keeps none.
        self.jobs[no].checkpoint = None;
        if outcome != Outcome::Succeeded {
            self.note_error(no);
        }
        self.free_slots(no);
        if self.jobs[no].request.kind == Kind::Hooked {
            self.told.push((no, outcome));
        }
    }

    fn note_error(&mut self, no: JobNo) {
        let errors = &mut self.jobs[no].errors;
        *errors = (*errors + 1).min(ERRORS_KEPT);
    }

    fn free_slots(&mut self, no: JobNo) {
        self.slots.retain(|_, holder| *holder != no);
    }
}

/// Doubling from the base up to the cap.
fn backoff(failures: i32) -> Hour {
    let [base, cap] = BACKOFF;
    (1..failures).fold(base, |wait, _| wait * 2).min(cap)
}
