//! What a rollout does next, and what became of what it took: decided over plain values.

use longshore_base::{JobId, WorkspaceId};

use crate::status::WorkspaceStatus;

/// Where a workspace stands in a rollout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, sqlx::Type)]
#[sqlx(type_name = "image_rollout_part", rename_all = "snake_case")]
pub enum Part {
    /// Its restart was asked for.
    Taken,
    /// It came online on the digest.
    Up,
    /// It did not, or did not stay so.
    Failed,
    /// Somebody stopped it meanwhile; it counts for nothing.
    Left,
    /// Its restart onto what it ran before was asked for.
    Restoring,
    /// It runs that again.
    Restored,
    /// It did not come up on that.
    Lost,
}

impl Part {
    /// Every one, in the order of the database's enum.
    pub const ALL: [Self; 7] = [
        Self::Taken,
        Self::Up,
        Self::Failed,
        Self::Left,
        Self::Restoring,
        Self::Restored,
        Self::Lost,
    ];
}

/// A workspace that a rollout took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Which.
    pub workspace_id: WorkspaceId,
    /// Where it stands.
    pub part: Part,
    /// Its generation when its restart was asked for.
    pub generation: i64,
    /// The restart.
    pub job_id: Option<JobId>,
    /// What it is now.
    pub now: Seen,
}

/// A workspace as a rollout sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its status.
    pub status: WorkspaceStatus,
    /// Its present generation.
    pub generation: i64,
    /// It still has the rollout's runtime.
    pub same_runtime: bool,
    /// What runs is written down, so that the digest is that of what runs.
    pub recorded: bool,
    /// What it was last started on.
    pub digest: Option<String>,
    /// It has waited to come up for longer than it may.
    pub overdue: bool,
    /// It was lost and restarted by itself since its restart was asked for.
    pub lost_since: bool,
    /// What it says is wrong.
    pub error: String,
}

/// What became of a member since it was looked at last, with a reason fit for the public; `None` while nothing new is
/// certain.
#[must_use]
pub fn judge(member: &Member, wanted: &str) -> Option<(Part, Option<String>)> {
    use WorkspaceStatus::{
        AwaitingAgent, Degraded, Failed, Hibernated, Hibernating, Offline, Online, Paused,
        Provisioning, Removed,
    };
    let now = &member.now;
    let begun = now.generation > member.generation;
    let said = |otherwise: &str| {
        Some(if now.error.is_empty() {
            otherwise.to_owned()
        } else {
            now.error.clone()
        })
    };
    match member.part {
        Part::Taken | Part::Restoring if matches!(now.status, Removed | Paused | Hibernated) => {
            Some((Part::Left, Some(format!("the workspace is {}", now.status))))
        }
        Part::Taken | Part::Restoring if !now.same_runtime => {
            Some((Part::Left, Some("its runtime is another".to_owned())))
        }
        Part::Taken if begun => match now.status {
            Failed => Some((Part::Failed, said("it could not be brought up"))),
            Offline => Some((Part::Failed, said("it was lost"))),
            Degraded => Some((Part::Failed, said("it is degraded"))),
            Provisioning if now.overdue => {
                let reason = "its agent was not heard of in time".to_owned();
                Some((Part::Failed, Some(reason)))
            }
            Online if !now.recorded => None,
            Online if now.digest.as_deref() == Some(wanted) => Some((Part::Up, None)),
            Online => {
                let reason = "it came up on another image".to_owned();
                Some((Part::Failed, Some(reason)))
            }
            Provisioning | Removed | Paused | Hibernated | Hibernating | AwaitingAgent => None,
        },
        Part::Up => match now.status {
            Failed => Some((Part::Failed, said("it failed again"))),
            Offline => Some((Part::Failed, said("it was lost"))),
            Degraded => Some((Part::Failed, said("it is degraded"))),
            _ if now.lost_since => {
                let reason = "it was lost and restarted by itself".to_owned();
                Some((Part::Failed, Some(reason)))
            }
            _ => None,
        },
        Part::Restoring if begun => match now.status {
            Failed => Some((Part::Lost, said("it could not be brought up"))),
            Offline => Some((Part::Lost, said("it was lost"))),
            Provisioning if now.overdue => {
                let reason = "its agent was not heard of in time".to_owned();
                Some((Part::Lost, Some(reason)))
            }
            Online | Degraded if now.recorded => Some((Part::Restored, None)),
            _ => None,
        },
        Part::Taken | Part::Restoring | Part::Failed | Part::Left | Part::Restored | Part::Lost => {
            None
        }
    }
}

/// How far a ring is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// The share that this ring completes, in percent of all.
    pub percent: i64,
    /// What this ring and those before it have taken, without what was left.
    pub members: i64,
    /// What could still be taken.
    pub candidates: i64,
    /// Of this ring: not up yet.
    pub taken: i64,
    /// Of this ring: up.
    pub up: i64,
    /// Of this ring: failed.
    pub failed: i64,
    /// How long it has soaked, in seconds, once it does.
    pub soaked_seconds: Option<i64>,
}

/// What a rollout does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Too much failed: nothing else is touched.
    Hold,
    /// So many more.
    Take(i64),
    /// Nothing but look again.
    Wait,
    /// All of the ring is up; from now on it must stay so.
    Soak,
    /// It did.
    EndRing,
}

/// Decides. Never more are under way than could fail before the rollout holds, so that an image that does not start costs
/// `max_failures + 1` workspaces and not a ring.
#[must_use]
pub fn next_step(tally: &Tally, max_failures: i64, soak_seconds: i64) -> Next {
    if tally.failed > max_failures {
        return Next::Hold;
    }
    let all = tally.members + tally.candidates;
    let target = (tally.percent * all + 99) / 100;
    let missing = (target - tally.members).min(tally.candidates);
    if missing > 0 && tally.soaked_seconds.is_none() {
        let room = max_failures + 1 - tally.failed - tally.taken;
        return if room > 0 {
            Next::Take(missing.min(room))
        } else {
            Next::Wait
        };
    }
    if tally.taken > 0 {
        return Next::Wait;
    }
    match tally.soaked_seconds {
        // Nothing was there for it.
        None if tally.up + tally.failed == 0 => Next::EndRing,
        None => Next::Soak,
        Some(soaked) if soaked < soak_seconds => Next::Wait,
        Some(_) => Next::EndRing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANTED: &str = "new";

    fn member(part: Part, status: WorkspaceStatus) -> Member {
        Member {
            workspace_id: WorkspaceId::random(),
            part,
            generation: 1,
            job_id: None,
            now: Seen {
                status,
                generation: 2,
                same_runtime: true,
                recorded: true,
                digest: Some(WANTED.to_owned()),
                overdue: false,
                lost_since: false,
                error: String::new(),
            },
        }
    }

    fn becomes(member: &Member) -> Option<Part> {
        judge(member, WANTED).map(|(part, _)| part)
    }

    #[test]
    fn a_member_is_judged_by_its_status_once_its_restart_has_begun() {
        use WorkspaceStatus::*;
        for status in WorkspaceStatus::ALL {
            let expected = match status {
                Online => Some(Part::Up),
                Failed | Offline | Degraded => Some(Part::Failed),
                Removed | Paused | Hibernated => Some(Part::Left),
                Provisioning | Hibernating | AwaitingAgent => None,
            };
            let begun = member(Part::Taken, status);
            assert_eq!(becomes(&begun), expected, "taken, {status}");
            let mut waiting = begun.clone();
            waiting.now.generation = 1;
            let expected = expected.filter(|part| *part == Part::Left);
            assert_eq!(becomes(&waiting), expected, "not begun, {status}");

            let expected = match status {
                Failed | Offline | Degraded => Some(Part::Failed),
                _ => None,
            };
            assert_eq!(becomes(&member(Part::Up, status)), expected, "up, {status}");

            let expected = match status {
                Online | Degraded => Some(Part::Restored),
                Failed | Offline => Some(Part::Lost),
                Removed | Paused | Hibernated => Some(Part::Left),
                Provisioning | Hibernating | AwaitingAgent => None,
            };
            let restoring = member(Part::Restoring, status);
            assert_eq!(becomes(&restoring), expected, "restoring, {status}");
            for settled in [Part::Failed, Part::Left, Part::Restored, Part::Lost] {
                assert_eq!(becomes(&member(settled, status)), None, "{settled:?}");
            }
        }
    }

    #[test]
    fn online_counts_on_the_digest_that_was_wanted_and_written_down() {
        let mut seen = member(Part::Taken, WorkspaceStatus::Online);
        seen.now.digest = Some("old".to_owned());
        assert_eq!(becomes(&seen), Some(Part::Failed));
        seen.now.recorded = false;
        assert_eq!(becomes(&seen), None);
    }

    #[test]
    fn what_is_lost_silent_or_turned_into_something_else_does_not_count_as_up() {
        let mut lost = member(Part::Up, WorkspaceStatus::Online);
        lost.now.lost_since = true;
        assert_eq!(becomes(&lost), Some(Part::Failed));
        let mut silent = member(Part::Taken, WorkspaceStatus::Provisioning);
        silent.now.overdue = true;
        assert_eq!(becomes(&silent), Some(Part::Failed));
        let mut other = member(Part::Taken, WorkspaceStatus::Online);
        other.now.same_runtime = false;
        assert_eq!(becomes(&other), Some(Part::Left));
        let mut failed = member(Part::Taken, WorkspaceStatus::Failed);
        failed.now.error = "missing env".to_owned();
        let told = judge(&failed, WANTED);
        assert_eq!(told, Some((Part::Failed, Some("missing env".to_owned()))));
    }

    #[test]
    fn a_ring_is_taken_by_so_many_as_may_fail_and_then_soaks() {
        let ring = Tally {
            percent: 50,
            candidates: 20,
            ..Tally::default()
        };
        let next = |tally: &Tally| next_step(tally, 2, 60);
        assert_eq!(next(&ring), Next::Take(3));
        let tally = |members, taken, up, failed| Tally {
            members,
            candidates: 20 - members,
            taken,
            up,
            failed,
            ..ring
        };
        assert_eq!(next(&tally(3, 3, 0, 0)), Next::Wait);
        assert_eq!(next(&tally(3, 2, 1, 0)), Next::Take(1));
        assert_eq!(next(&tally(3, 0, 2, 1)), Next::Take(2));
        assert_eq!(next(&tally(3, 0, 1, 2)), Next::Take(1));
        assert_eq!(next(&tally(3, 0, 0, 3)), Next::Hold);
        assert_eq!(next(&tally(9, 0, 9, 0)), Next::Take(1));
        assert_eq!(next(&tally(10, 1, 9, 0)), Next::Wait);
        assert_eq!(next(&tally(10, 0, 10, 0)), Next::Soak);
        let soaking = |soaked, failed| Tally {
            soaked_seconds: Some(soaked),
            ..tally(10, 0, 10 - failed, failed)
        };
        assert_eq!(next(&soaking(59, 0)), Next::Wait);
        assert_eq!(next(&soaking(60, 2)), Next::EndRing);
        assert_eq!(next(&soaking(60, 3)), Next::Hold);
    }

    #[test]
    fn shares_are_of_all_and_rounded_up_and_a_ring_without_anybody_ends_at_once() {
        let first = |percent, candidates| {
            let tally = Tally {
                percent,
                candidates,
                ..Tally::default()
            };
            next_step(&tally, 1000, 60)
        };
        assert_eq!(first(10, 20), Next::Take(2));
        assert_eq!(first(1, 20), Next::Take(1));
        assert_eq!(first(100, 7), Next::Take(7));
        assert_eq!(first(5, 0), Next::EndRing);
    }
}
