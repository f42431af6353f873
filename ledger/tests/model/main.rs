//! The ledger's state machine against a model: stories of enqueues, admissions, claims, ends, deaths, late writes and
//! operators, told by chance, done by the real ledger on a real Postgres and by a model of a few hundred plain lines.
//! After every step both must say the same of every job, slot, count and hook; at the end every job must have an end.
//!
//! `PROPTEST_CASES` sets the number of stories. A story that fails is shortened, and printed with what its steps meant.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on has failed"
)]

mod compare;
mod ledger;
mod reference;
mod script;
mod story;
mod words;

use std::sync::atomic::{AtomicUsize, Ordering};

use ledger::Ledger;
use proptest::test_runner::{Config, TestCaseError, TestError, TestRunner};
use proptest_state_machine::ReferenceStateMachine as _;
use script::{Script, Step};
use story::Story;

/// Stories, unless `PROPTEST_CASES` says otherwise, and most steps in one.
const CASES: u32 = 24;
const STEPS: usize = 100;

#[test]
fn the_ledger_does_what_the_model_says() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let ledger = runtime.block_on(Ledger::create());
    let mut config = Config {
        failure_persistence: None,
        ..Config::default()
    };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = CASES;
    }
    // The crate's own loop makes its system anew for each story and has it panic; ours is one database, emptied, and
    // answers what differs, so that a failure is printed once, when it is short.
    let ran = TestRunner::new(config).run(
        &Script::sequential_strategy(1..=STEPS),
        |(_, steps, seen)| {
            runtime
                .block_on(play(&ledger, &steps, seen.as_deref()))
                .map_err(TestCaseError::fail)
        },
    );
    match ran {
        Ok(()) => {}
        Err(TestError::Fail(why, (_, steps, _))) => panic!("{why}\n{steps:?}"),
        Err(other) => panic!("{other}"),
    }
}

async fn play(ledger: &Ledger, steps: &[Step], seen: Option<&AtomicUsize>) -> Result<(), String> {
    let mut story = Story::begin(ledger).await;
    let mut differs = Ok(());
    for step in steps {
        if let Some(seen) = seen {
            seen.fetch_add(1, Ordering::SeqCst);
        }
        differs = story.take(step).await;
        if differs.is_err() {
            break;
        }
    }
    if differs.is_ok() {
        differs = story.run_dry().await;
    }
    differs.map_err(|what| format!("{what}\n\n{}\n", story.told.join("\n")))
}
