//! What tests that were killed left behind in the engine.
//!
//! Each test that uses the engine keeps a file named after its installation locked for as long as it lives. The kernel
//! lets go of the lock when the process ends, however it ends; so a file that can be locked belongs to nobody, and what
//! carries its installation's label may go.

use std::fs::{File, OpenOptions};
use std::path::PathBuf;

use nix::fcntl::{Flock, FlockArg};
use uuid::Uuid;

use crate::engine::Engine;

/// Says that the installation's test lives, until it is dropped.
pub struct Alive {
    path: PathBuf,
    _lock: Flock<File>,
}

impl Alive {
    /// Begins to live.
    #[must_use]
    pub fn mark(installation: Uuid) -> Self {
        let path = place().join(installation.to_string());
        let file = open(&path);
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .map_err(|(_, error)| error)
            .expect("the installation is ours alone");
        Self { path, _lock: lock }
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        // A file that stays is found by the next sweep, which finds nothing behind it.
        std::fs::remove_file(&self.path).ok();
    }
}

/// Held while something that all tests share is looked at and made.
pub(crate) async fn one_at_a_time() -> Flock<File> {
    tokio::task::spawn_blocking(|| {
        Flock::lock(
            open(&place().with_extension("lock")),
            FlockArg::LockExclusive,
        )
        .map_err(|(_, error)| error)
        .unwrap()
    })
    .await
    .unwrap()
}

/// Removes what dead tests left.
pub(crate) async fn sweep(engine: &Engine) {
    for entry in std::fs::read_dir(place()).unwrap().flatten() {
        let Some(installation) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<Uuid>().ok())
        else {
            continue;
        };
        let Ok(file) = OpenOptions::new().write(true).open(entry.path()) else {
            continue;
        };
        let Ok(_ours) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else {
            continue;
        };
        engine.remove_everything_of(installation).await;
        std::fs::remove_file(entry.path()).ok();
    }
}

fn place() -> PathBuf {
    let place = std::env::temp_dir().join("longshore-tests");
    std::fs::create_dir_all(&place).unwrap();
    place
}

fn open(path: &PathBuf) -> File {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
