//! What the exit code of every command means. Scripts rely on it, so a code never changes its meaning.

use std::process::ExitCode;

use crate::client::ClientError;
use crate::settings::SettingError;

/// The exit codes, as `longshore --help` lists them.
pub(crate) const HELP: &str = "\
Exit codes:
  0  done
  1  the operation failed (a job that ended dead, a server that could not start)
  2  wrong usage: an argument or a setting does not parse, or the server finds it malformed
  3  not found
  4  not allowed: no token, a wrong one, or one without the right
  5  the server cannot be reached
  6  the time given with --timeout or --wait has passed";

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Done = 0,
    Failed = 1,
    Usage = 2,
    NotFound = 3,
    NotAllowed = 4,
    Unreachable = 5,
    Timeout = 6,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// The exit code for an error: that of the first link of its chain that has an opinion.
pub(crate) fn of_error(error: &anyhow::Error) -> Exit {
    error
        .chain()
        .find_map(|link| {
            if let Some(client) = link.downcast_ref::<ClientError>() {
                return Some(client.exit());
            }
            link.downcast_ref::<SettingError>().map(|_| Exit::Usage)
        })
        .unwrap_or(Exit::Failed)
}
