//! What every backend promises, asked of the real Docker engine.
//!
//! Each test is a [`room::Room`]: an installation and a network of its own, swept by label at the end whatever
//! happened. Without an engine every test says on standard error that it was skipped.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on has failed"
)]

mod images;
mod races;
mod reads;
mod registry;
mod room;
mod starts;
mod stops;
mod watches;
