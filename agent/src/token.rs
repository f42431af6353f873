//! The workspace's token: `<configs>/.auth_token`, kept in memory and read again when the platform refuses it.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use subtle::ConstantTimeEq;

/// The token and the file it lives in. Never printed: it has no `Debug`.
pub(crate) struct TokenFile {
    path: PathBuf,
    current: Mutex<Option<String>>,
}

impl TokenFile {
    /// Reads the file; that there is none yet is no error.
    pub(crate) fn open(configs: &Path) -> Self {
        let file = Self {
            path: configs.join(".auth_token"),
            current: Mutex::new(None),
        };
        file.reread();
        file
    }

    /// What to send as bearer.
    pub(crate) fn current(&self) -> Option<String> {
        self.current
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Reads the file again. True if it holds another token than before; an unreadable or empty one changes nothing.
    pub(crate) fn reread(&self) -> bool {
        let read = match fs::read_to_string(&self.path) {
            Ok(text) => text.trim().to_owned(),
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(%error, path = %self.path.display(), "the token file cannot be read");
                }
                return false;
            }
        };
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if read.is_empty() || current.as_ref() == Some(&read) {
            return false;
        }
        *current = Some(read);
        true
    }

    /// Takes the token the platform issued and writes it (0600, whole or not at all). It counts even if the write
    /// fails, but then not beyond this process.
    pub(crate) fn store(&self, token: &str) -> io::Result<()> {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(token.to_owned());
        let partial = self.path.with_extension("partial");
        match fs::remove_file(&partial) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&partial)?;
        file.write_all(token.as_bytes())?;
        file.sync_all()?;
        fs::rename(&partial, &self.path)
    }

    /// Whether a caller presents exactly this token. Without one, nobody does.
    pub(crate) fn accepts(&self, presented: &str) -> bool {
        let same = || {
            self.current()
                .is_some_and(|token| token.as_bytes().ct_eq(presented.as_bytes()).into())
        };
        // The platform may have written a new one that this process has had no cause to read yet.
        same() || (self.reread() && same())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_stored_token_is_private_and_survives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let file = TokenFile::open(dir.path());
        assert!(file.current().is_none() && !file.accepts(""));
        file.store("first").unwrap();
        file.store("second").unwrap();
        let mode = fs::metadata(dir.path().join(".auth_token"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(
            TokenFile::open(dir.path()).current().as_deref(),
            Some("second")
        );
    }

    #[test]
    fn only_another_token_counts_as_a_change() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".auth_token");
        fs::write(&path, "one\n").unwrap();
        let file = TokenFile::open(dir.path());
        assert_eq!(file.current().as_deref(), Some("one"));
        assert!(!file.reread());
        fs::write(&path, "").unwrap();
        assert!(!file.reread());
        fs::write(&path, "two").unwrap();
        assert!(file.accepts("two") && !file.accepts("one") && !file.accepts("tw"));
    }
}
