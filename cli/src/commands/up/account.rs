//! The user Postgres and Redis run as. Postgres refuses to run as root, so root lends them a user without rights.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::bail;
use nix::unistd::{User, geteuid};

/// Users tried in this order when we are root.
const CANDIDATES: [&str; 2] = ["postgres", "nobody"];

/// Who the servers run as.
#[derive(Clone, Debug)]
pub(super) struct ServiceAccount {
    other: Option<(u32, u32)>,
}

impl ServiceAccount {
    /// Ourselves, unless we are root.
    pub(super) fn choose() -> anyhow::Result<Self> {
        if !geteuid().is_root() {
            return Ok(Self::ourselves());
        }
        for name in CANDIDATES {
            if let Some(user) = User::from_name(name)? {
                return Ok(Self {
                    other: Some((user.uid.as_raw(), user.gid.as_raw())),
                });
            }
        }
        bail!(
            "Postgres does not run as root, and neither the user `postgres` nor `nobody` exists to run it; \
             create one, or start as an ordinary user"
        )
    }

    /// The user this process runs as.
    pub(super) fn ourselves() -> Self {
        Self { other: None }
    }

    /// Whether it is not ourselves.
    pub(super) fn is_other_user(&self) -> bool {
        self.other.is_some()
    }

    /// User and group id to change to, when it is not ourselves.
    pub(super) fn ids(&self) -> Option<(u32, u32)> {
        self.other
    }

    /// Whether it may pass through every directory down to and including `path`.
    pub(super) fn reaches(&self, path: &Path) -> bool {
        let Some((uid, gid)) = self.other else {
            return true;
        };
        path.ancestors().all(|directory| {
            directory.metadata().is_ok_and(|metadata| {
                let bit = if metadata.uid() == uid {
                    0o100
                } else if metadata.gid() == gid {
                    0o010
                } else {
                    0o001
                };
                metadata.mode() & bit != 0
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_closed_directory_above_is_noticed() {
        let temporary = tempfile::tempdir().unwrap();
        let inner = temporary.path().join("inner");
        std::fs::create_dir(&inner).unwrap();
        let stranger = ServiceAccount {
            other: Some((54_321, 54_321)),
        };
        let open = |mode| {
            std::fs::set_permissions(temporary.path(), Permissions::from_mode(mode)).unwrap();
        };
        open(0o700);
        assert!(!stranger.reaches(&inner));
        open(0o711);
        assert!(stranger.reaches(&inner));
        assert!(ServiceAccount::ourselves().reaches(&inner));
    }
}
