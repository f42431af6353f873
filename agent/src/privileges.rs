//! Leaving root at start.
//!
//! The platform puts files into the config volume as root. Started as root, the agent therefore gives that tree to
//! uid 1000 and becomes uid 1000 itself. Where it may not (another user, a dropped capability, a read-only mount)
//! it goes on as it is and says so: an agent that keeps its user is better than one that cannot read its token.

use std::fs;
use std::io;
use std::os::unix::fs::lchown;
use std::path::Path;

use nix::unistd::{Gid, Uid, geteuid, setgid, setgroups, setuid};

/// User and group of an agent, as in every runtime image.
const AGENT_ID: u32 = 1000;

/// Gives `configs` to the agent's user and becomes it. Call before any thread is started.
pub(crate) fn leave_root(configs: &Path) {
    if !geteuid().is_root() {
        tracing::info!(
            uid = geteuid().as_raw(),
            "not started as root; keeping this user"
        );
        return;
    }
    match chown_tree(configs, AGENT_ID).and_then(|()| become_user(AGENT_ID)) {
        Ok(()) => tracing::info!(uid = AGENT_ID, path = %configs.display(), "left root"),
        Err(error) => {
            tracing::warn!(%error, path = %configs.display(), "could not leave root; staying root")
        }
    }
}

fn become_user(id: u32) -> io::Result<()> {
    // The user goes last: without root neither of the others may change.
    setgroups(&[])?;
    setgid(Gid::from_raw(id))?;
    setuid(Uid::from_raw(id))?;
    Ok(())
}

/// Never follows a symbolic link: the agent owned this tree before and could have pointed one anywhere.
fn chown_tree(path: &Path, id: u32) -> io::Result<()> {
    let kind = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if kind.is_dir() {
        for entry in fs::read_dir(path)? {
            chown_tree(&entry?.path(), id)?;
        }
    }
    lchown(path, Some(id), Some(id))
}
