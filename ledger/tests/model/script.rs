//! What may happen to a ledger, one thing after another.
//!
//! Which jobs an admission takes is known only when it has been done, so a step says which job, run or hint it means by
//! a [`Pick`] that is resolved when its turn comes. Thus every step makes sense in every story, also in one that was
//! shortened; those that come too late are the point.

use proptest::prelude::*;
use proptest::sample::select;
use proptest_state_machine::ReferenceStateMachine;

use crate::words::{Closed, Ending, Hour, Key, Kind, Request};

const KEYS: [Key; 3] = ["a", "b", "c"];
const TENANTS: [&str; 2] = ["one", "two"];
const WORKSPACES: [u128; 2] = [1, 2];

/// One of several.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pick {
    /// Which one, counted round.
    pub(crate) nth: usize,
    /// Of all there ever were, instead of those for which the step was made.
    pub(crate) of_all: bool,
}

impl Pick {
    /// `fit`, or anything below `count` if nothing fits or any will do.
    pub(crate) fn resolve(self, fit: &[usize], count: usize) -> Option<usize> {
        if fit.is_empty() || self.of_all {
            (count > 0).then(|| self.nth % count)
        } else {
            fit.get(self.nth % fit.len()).copied()
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) enum Step {
    Enqueue(Request),
    /// A newer job of another kind is asked for on this key.
    Overtake(Key),
    Advance(Hour),
    /// One pass over a queue.
    Admit(Kind),
    /// Passes over both queues until nothing changes any more.
    AdmitAll,
    /// One of the two workers takes hints.
    Claim(usize, Vec<Pick>),
    /// One of the two workers, with free slots for so many, takes what is ready; it may not hear the answer at once.
    Take(usize, Kind, usize, bool),
    WaitForTurn(Pick),
    BeginAfterWait(Pick),
    /// A run writes.
    Write(Pick),
    /// Runs end, in one batch.
    Finish(Vec<(Pick, Ending)>),
    /// One of the two workers is found dead, and another comes in its place.
    Die(usize),
    Cancel(Pick),
    Discard(Pick),
    Retry(Pick),
    Close(Closed),
    /// What is closed is opened again.
    Open(Pick),
}

/// Nothing is known ahead but whether there are jobs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked(bool);

pub(crate) struct Script;

impl ReferenceStateMachine for Script {
    type State = Asked;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Asked> {
        Just(Asked(false)).boxed()
    }

    fn transitions(_: &Asked) -> BoxedStrategy<Step> {
        prop_oneof![
            8 => request().prop_map(Step::Enqueue),
            3 => select(&KEYS[..]).prop_map(Step::Overtake),
            3 => (1_i64..=5).prop_map(Step::Advance),
            2 => select(&Kind::ALL[..]).prop_map(Step::Admit),
            8 => Just(Step::AdmitAll),
            10 => (0_usize..2, prop::collection::vec(pick(), 1..5)).prop_map(|(worker, hints)| Step::Claim(worker, hints)),
            4 => (0_usize..2, select(&Kind::ALL[..]), 1_usize..5, prop::bool::weighted(0.3))
                .prop_map(|(worker, queue, most, lost_answer)| Step::Take(worker, queue, most, lost_answer)),
            1 => pick().prop_map(Step::WaitForTurn),
            2 => pick().prop_map(Step::BeginAfterWait),
            2 => pick().prop_map(Step::Write),
            10 => prop::collection::vec((pick(), ending()), 1..3).prop_map(Step::Finish),
            2 => (0_usize..2).prop_map(Step::Die),
            2 => pick().prop_map(Step::Cancel),
            1 => pick().prop_map(Step::Discard),
            2 => pick().prop_map(Step::Retry),
            2 => scope().prop_map(Step::Close),
            3 => pick().prop_map(Step::Open),
        ]
        .boxed()
    }

    fn preconditions(Asked(asked): &Asked, step: &Step) -> bool {
        *asked || matches!(step, Step::Enqueue(_) | Step::Advance(_) | Step::Close(_))
    }

    fn apply(Asked(asked): Asked, step: &Step) -> Asked {
        Asked(asked || matches!(step, Step::Enqueue(_)))
    }
}

fn pick() -> impl Strategy<Value = Pick> {
    (0_usize..64, prop::bool::weighted(0.2)).prop_map(|(nth, of_all)| Pick { nth, of_all })
}

fn request() -> impl Strategy<Value = Request> {
    (
        select(&Kind::ALL[..]),
        select(&TENANTS[..]),
        prop::option::weighted(0.3, select(&WORKSPACES[..])),
        prop::collection::vec(select(&KEYS[..]), 0..4),
        prop::option::weighted(0.4, Just("same")),
        0_i16..2,
        prop_oneof![4 => Just(0), 1 => 1_i64..5],
        1..4,
    )
        .prop_map(
            |(kind, tenant, workspace, keys, dedupe, priority, delay, max_attempts)| Request {
                kind,
                tenant,
                workspace,
                keys,
                dedupe,
                priority,
                delay,
                max_attempts,
            },
        )
}

fn ending() -> impl Strategy<Value = Ending> {
    prop_oneof![
        3 => Just(Ending::Done),
        3 => Just(Ending::Retry),
        1 => (0_i64..6).prop_map(Ending::RetryAfter),
        2 => Just(Ending::Permanent),
        1 => (0_i64..6).prop_map(Ending::Snooze),
        1 => Just(Ending::Cancelled),
        1 => Just(Ending::Superseded),
        1 => Just(Ending::GiveBack),
    ]
}

fn scope() -> impl Strategy<Value = Closed> {
    prop_oneof![
        3 => select(&Kind::ALL[..]).prop_map(Closed::Queue),
        1 => Just(Closed::All),
        1 => select(&Kind::ALL[..]).prop_map(Closed::Kind),
        1 => Just(Closed::Engine),
        2 => select(&TENANTS[..]).prop_map(Closed::Tenant),
        2 => select(&WORKSPACES[..]).prop_map(Closed::Workspace),
    ]
}
