//! One run of a rollout.
//!
//! ```text
//! [fetch the digest on one engine] → each second, in one transaction: judge what was taken → hold, take more, wait, soak,
//!                                     next ring → [pin]
//! ```

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use longshore_backends::{Abandoned, BackendError, Backends, StartWatch};
use longshore_base::WorkspaceId;
use longshore_base::clock::Stopwatch;
use longshore_base::failpoint;
use longshore_fleet::images::{
    Member, Next, Part, Rollout, RolloutError, RolloutState, Tally, count_parts, finish_rollback,
    finish_rollout, judge, list_candidates, list_members, list_restorable, lock_rollout, next_ring,
    next_step, pinned_reference, record_aborted, record_checked, record_held, record_part,
    start_soak, tally,
};
use longshore_fleet::workspace::lock_workspace;
use longshore_fleet::{Fleet, FleetError};
use longshore_ledger::inspect::find_job;
use longshore_ledger::{
    Admitter, Executor, Fenced, FencedTx, JobError, LedgerError, Progress, RunContext, Verdict,
};
use serde_json::json;
use uuid::Uuid;

use super::{Args, RequestError, restart_onto};
use crate::verdicts;

/// Between two looks.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Restarts that one transaction asks for.
const AT_ONCE: i64 = 20;
/// A run ends by itself before its timeout does it; the next one goes on where it was.
const LONGEST_RUN: Duration = Duration::from_secs(3000);
const SOON: Duration = Duration::from_secs(1);
const UNKNOWN_DIGEST: &str = "the registry does not know the digest";

/// Runs rollouts.
pub struct RolloutExecutor {
    /// Rows, pins, runtimes.
    pub fleet: Arc<Fleet>,
    /// Where a digest is fetched to see that it is there.
    pub backends: Arc<Backends>,
    /// Told what may be admitted.
    pub admitter: Admitter,
}

/// What one look came to.
enum Looked {
    /// Something changed; look again at once.
    Moved,
    /// Nothing to do for now.
    Waits,
    /// It is over.
    Over(Verdict),
}

#[async_trait]
impl Executor for RolloutExecutor {
    async fn run(&self, ctx: &RunContext) -> Verdict {
        let job = ctx.job();
        let args: Args = match job.read_args() {
            Ok(args) => args,
            Err(unreadable) => return Verdict::Permanent(unreadable),
        };
        tracing::info!(
            job.id = %job.id, job.kind = job.kind, attempt = job.attempt, rollout.id = %args.rollout_id, "rollout entered"
        );
        let since = Stopwatch::start();
        let verdict = loop {
            if ctx.stopped().is_some() {
                break ctx.stopped_verdict();
            }
            match self.look(ctx, args.rollout_id).await {
                Ok(Looked::Moved) => failpoint::hit("rollout.moved").await,
                Ok(Looked::Waits) if since.elapsed() > LONGEST_RUN => {
                    break Verdict::Snooze(SOON, "the rollout goes on".to_owned());
                }
                Ok(Looked::Waits) => {
                    tokio::select! {
                        () = ctx.stopping() => {}
                        () = tokio::time::sleep(LOOK_AGAIN) => {}
                    }
                }
                Ok(Looked::Over(verdict)) => break verdict,
                Err(error) => break error.verdict(),
            }
        };
        match &verdict {
            Verdict::Permanent(error) | Verdict::Retry(error) => tracing::error!(
                job.id = %job.id, rollout.id = %args.rollout_id, reason = error.public,
                detail = self.fleet.redactor.clean(&error.detail), "a rollout stopped"
            ),
            Verdict::Done(result) => {
                tracing::info!(job.id = %job.id, rollout.id = %args.rollout_id, ?result, "a rollout is over");
            }
            _ => {}
        }
        self.fleet.bus.poke();
        verdict
    }
}

impl RolloutExecutor {
    async fn look(&self, ctx: &RunContext, id: Uuid) -> Result<Looked, LookError> {
        let mut tx = ctx.begin().await?;
        let rollout = lock_rollout(tx.connection(), id).await?;
        match rollout.state {
            RolloutState::Running if !rollout.checked => {
                // The row must not stay locked while a registry is asked.
                drop(tx);
                self.check(ctx, &rollout).await
            }
            RolloutState::Running => self.forward(ctx, tx, &rollout).await,
            RolloutState::RollingBack => self.back(ctx, tx, &rollout).await,
            // Killed after it had written that down.
            RolloutState::Held => Ok(Looked::Over(Verdict::Permanent(JobError::plain(
                rollout.reason.unwrap_or_else(|| "held".to_owned()),
            )))),
            state @ (RolloutState::Done | RolloutState::Aborted | RolloutState::RolledBack) => {
                let result = json!({ "state": state.as_str() });
                Ok(Looked::Over(Verdict::Done(Some(result))))
            }
        }
    }

    /// Fetches the digest on this worker's engine, before anything is touched for it.
    async fn check(&self, ctx: &RunContext, rollout: &Rollout) -> Result<Looked, LookError> {
        let runtime = &rollout.template_name;
        let reference = pinned_reference(&self.fleet, runtime, &rollout.sha256_digest);
        let (Some(reference), Ok(backend)) = (reference, self.backends.choose()) else {
            let why = "this worker runs no workspaces of the runtime";
            return Ok(Looked::Over(Verdict::Snooze(
                LOOK_AGAIN * 5,
                why.to_owned(),
            )));
        };
        let fetched = backend.fetch_image(&reference, &Watch { ctx }).await;
        let error = match fetched {
            Ok(()) => {
                let mut tx = ctx.begin().await?;
                record_checked(tx.connection(), rollout.id).await?;
                tx.commit().await?;
                return Ok(Looked::Moved);
            }
            Err(error) => error,
        };
        let told = JobError {
            public: "the digest could not be fetched from its registry".to_owned(),
            detail: error.chain(),
        };
        Ok(Looked::Over(match error {
            BackendError::Abandoned(_) => ctx.stopped_verdict(),
            error if error.is_unknown_image() => {
                // Nothing was touched, so there is nothing to decide either.
                let mut tx = ctx.begin().await?;
                let now = lock_rollout(tx.connection(), rollout.id).await?;
                let by = &ctx.job().created_by;
                record_aborted(tx.connection(), &now, by, Some(UNKNOWN_DIGEST)).await?;
                tx.commit().await?;
                Verdict::Permanent(JobError {
                    public: UNKNOWN_DIGEST.to_owned(),
                    ..told
                })
            }
            _ => Verdict::Retry(told),
        }))
    }

    async fn forward(
        &self,
        ctx: &RunContext,
        mut tx: FencedTx,
        rollout: &Rollout,
    ) -> Result<Looked, LookError> {
        let watched = [Part::Taken, Part::Up];
        self.judge_all(&mut tx, rollout, Some(rollout.ring), &watched)
            .await?;
        let tally = tally(tx.connection(), rollout).await?;
        let max_failures = i64::from(rollout.max_failures);
        let next = next_step(&tally, max_failures, i64::from(rollout.soak_seconds));
        let mut pokes = Vec::new();
        let looked = match next {
            Next::Wait => Looked::Waits,
            Next::Hold => {
                let reason = held_because(rollout, &tally);
                record_held(tx.connection(), rollout, &reason).await?;
                Looked::Over(Verdict::Permanent(JobError::plain(reason)))
            }
            Next::Take(count) => {
                let most = count.min(AT_ONCE);
                for id in list_candidates(tx.connection(), rollout, most).await? {
                    let onto = Some(rollout.sha256_digest.as_str());
                    pokes.extend(ask(ctx, &mut tx, rollout, id, onto, Part::Taken).await?);
                }
                Looked::Moved
            }
            Next::Soak => {
                start_soak(tx.connection(), rollout.id).await?;
                Looked::Moved
            }
            Next::EndRing if is_last(rollout) => {
                finish_rollout(tx.connection(), rollout).await?;
                Looked::Moved
            }
            Next::EndRing => {
                next_ring(tx.connection(), rollout.id).await?;
                Looked::Moved
            }
        };
        tx.record_progress(&told(rollout, &tally, next)).await?;
        tx.commit().await?;
        pokes.iter().for_each(|queue| self.admitter.poke(queue));
        self.fleet.bus.poke();
        Ok(looked)
    }

    async fn back(
        &self,
        ctx: &RunContext,
        mut tx: FencedTx,
        rollout: &Rollout,
    ) -> Result<Looked, LookError> {
        self.judge_all(&mut tx, rollout, None, &[Part::Restoring])
            .await?;
        let mut pokes = Vec::new();
        let restorable = list_restorable(tx.connection(), rollout, AT_ONCE).await?;
        let more = !restorable.is_empty();
        for (id, before) in restorable {
            pokes.extend(
                ask(
                    ctx,
                    &mut tx,
                    rollout,
                    id,
                    before.as_deref(),
                    Part::Restoring,
                )
                .await?,
            );
        }
        let mut under_way = 0;
        let (mut restored, mut lost) = (0, 0);
        for (_, part, count) in count_parts(tx.connection(), rollout.id).await? {
            match part {
                Part::Restored => restored += count,
                Part::Lost => lost += count,
                Part::Left => {}
                Part::Taken | Part::Up | Part::Failed | Part::Restoring => under_way += count,
            }
        }
        tx.record_progress(&Progress {
            step: "rolling back".to_owned(),
            steps_done: 0,
            steps_total: None,
            message: Some(format!(
                "{restored} are back, {under_way} are on the way, {lost} did not come up"
            )),
            percent: None,
        })
        .await?;
        let looked = if under_way == 0 {
            finish_rollback(tx.connection(), rollout, (restored, lost)).await?;
            let state = RolloutState::RolledBack.as_str();
            let result = json!({ "state": state, "restored": restored, "lost": lost });
            Looked::Over(Verdict::Done(Some(result)))
        } else if more {
            Looked::Moved
        } else {
            Looked::Waits
        };
        tx.commit().await?;
        pokes.iter().for_each(|queue| self.admitter.poke(queue));
        self.fleet.bus.poke();
        Ok(looked)
    }

    /// Writes down what became of those in these parts.
    async fn judge_all(
        &self,
        tx: &mut FencedTx,
        rollout: &Rollout,
        ring: Option<i32>,
        parts: &[Part],
    ) -> Result<(), LookError> {
        let members = list_members(tx.connection(), &self.fleet, rollout, ring, parts).await?;
        for member in members {
            let verdict = match judge(&member, &rollout.sha256_digest) {
                Some(verdict) => Some(verdict),
                None => self.without_restart(tx, &member).await?,
            };
            let Some((part, reason)) = verdict else {
                continue;
            };
            let id = member.workspace_id;
            if matches!(part, Part::Failed | Part::Lost) {
                tracing::warn!(workspace.id = %id, rollout.id = %rollout.id, reason, "a rollout lost a workspace");
            }
            record_part(tx.connection(), rollout.id, id, part, reason.as_deref()).await?;
        }
        Ok(())
    }

    /// What becomes of one whose restart ended before it began: its row will never say.
    async fn without_restart(
        &self,
        tx: &mut FencedTx,
        member: &Member,
    ) -> Result<Option<(Part, Option<String>)>, LookError> {
        let gone = match member.part {
            Part::Taken => Part::Failed,
            Part::Restoring => Part::Lost,
            Part::Up | Part::Failed | Part::Left | Part::Restored | Part::Lost => return Ok(None),
        };
        let Some(job_id) = member.job_id else {
            return Ok(None);
        };
        if member.now.generation > member.generation {
            return Ok(None);
        }
        let Some(job) = find_job(tx.connection(), job_id).await? else {
            return Ok(Some((
                gone,
                Some("its restart is not known any more".into()),
            )));
        };
        if !job.is_terminal() {
            return Ok(None);
        }
        Ok(Some(match job.state {
            // It began after the row was read.
            "succeeded" => return Ok(None),
            "superseded" => (Part::Left, job.last_error),
            _ => (
                gone,
                job.last_error.or(Some("its restart was cancelled".into())),
            ),
        }))
    }
}

/// Has one workspace restarted, if it is still there; the queue to poke.
async fn ask(
    ctx: &RunContext,
    tx: &mut FencedTx,
    rollout: &Rollout,
    id: WorkspaceId,
    onto: Option<&str>,
    part: Part,
) -> Result<Option<String>, LookError> {
    let Some(workspace) = lock_workspace(tx.connection(), id).await? else {
        return Ok(None);
    };
    // Whoever went down since it was listed is not taken; what goes back does so whatever it has come to.
    if part == Part::Taken && !workspace.status.is_up() {
        return Ok(None);
    }
    let by = &ctx.job().created_by;
    Ok(restart_onto(tx.connection(), rollout, &workspace, onto, part, by).await?)
}

fn is_last(rollout: &Rollout) -> bool {
    usize::try_from(rollout.ring).is_ok_and(|ring| ring + 1 >= rollout.rings.len())
}

fn held_because(rollout: &Rollout, tally: &Tally) -> String {
    format!(
        "{} of ring {} ({} %) failed, and at most {} may; nothing else is touched",
        tally.failed,
        rollout.ring + 1,
        tally.percent,
        rollout.max_failures
    )
}

fn told(rollout: &Rollout, tally: &Tally, next: Next) -> Progress {
    let what = match next {
        Next::Hold => "held",
        Next::Take(_) | Next::Wait if tally.soaked_seconds.is_none() => "taking",
        Next::Take(_) | Next::Wait | Next::Soak => "soaking",
        Next::EndRing => "soaked",
    };
    let all = tally.members + tally.candidates;
    let percent = (tally.members * 100).checked_div(all);
    Progress {
        step: format!("ring {} of {}", rollout.ring + 1, rollout.rings.len()),
        steps_done: u32::try_from(rollout.ring).unwrap_or(0),
        steps_total: u32::try_from(rollout.rings.len()).ok(),
        message: Some(format!(
            "{what}: {} up, {} under way, {} failed; {} of {all} taken in all",
            tally.up, tally.taken, tally.failed, tally.members
        )),
        percent: percent.and_then(|percent| u8::try_from(percent).ok()),
    }
}

/// Shows how far the fetch is.
struct Watch<'a> {
    ctx: &'a RunContext,
}

#[async_trait]
impl StartWatch for Watch<'_> {
    async fn step(
        &self,
        _step: &'static str,
        message: Option<String>,
        percent: Option<u8>,
    ) -> Result<(), Abandoned> {
        if self.ctx.stopped().is_some() {
            return Err(Abandoned);
        }
        let progress = Progress {
            step: "fetching the digest".to_owned(),
            steps_done: 0,
            steps_total: None,
            message,
            percent,
        };
        let written = async {
            let mut tx = self.ctx.begin().await?;
            tx.make_forgettable().await?;
            tx.record_progress(&progress).await?;
            tx.commit().await
        };
        written.await.map_err(|_: Fenced| Abandoned)
    }
}

enum LookError {
    Fenced(Fenced),
    Request(RequestError),
    Ledger(LedgerError),
}

impl LookError {
    fn verdict(self) -> Verdict {
        match self {
            Self::Fenced(fenced) => verdicts::of_fence(&fenced),
            Self::Request(RequestError::Rollout(
                error @ (RolloutError::Unknown | RolloutError::State(_)),
            )) => Verdict::Superseded(error.to_string()),
            Self::Request(error) => {
                Verdict::Retry(JobError::new("a part of the rollout failed", &error))
            }
            Self::Ledger(error) => Verdict::Retry(JobError::new(verdicts::NO_DATABASE, &error)),
        }
    }
}

impl From<Fenced> for LookError {
    fn from(fenced: Fenced) -> Self {
        Self::Fenced(fenced)
    }
}

impl From<RequestError> for LookError {
    fn from(error: RequestError) -> Self {
        Self::Request(error)
    }
}

impl From<RolloutError> for LookError {
    fn from(error: RolloutError) -> Self {
        Self::Request(error.into())
    }
}

impl From<FleetError> for LookError {
    fn from(error: FleetError) -> Self {
        Self::Request(error.into())
    }
}

impl From<LedgerError> for LookError {
    fn from(error: LedgerError) -> Self {
        Self::Ledger(error)
    }
}
