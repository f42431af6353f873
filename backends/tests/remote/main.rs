//! The client of the control plane against a server with scripted faults: every row of the tables of calls and results
//! (spec: lifecycle §3.2, §3.3).

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod looks;
mod rig;
mod settings;
mod starts;
mod stops;
