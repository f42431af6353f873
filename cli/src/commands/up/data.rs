//! The data directory of `longshore up`: its lock, the credentials it keeps, and where the servers it runs live.
//!
//! ```text
//! <data>/lock            held by the running `up`; its process id, for the message to the second one
//! <data>/admin-token     made once, 0600
//! <data>/secrets.key     made once, 0600; without it the sealed secrets in the database are lost
//! <data>/address         where the API answers, for the operator's commands
//! <data>/services        the homes of Postgres and Redis, or
//! <data>/services.path   where they are instead, when the user they run as cannot reach <data>
//! ```

use std::fs::{DirBuilder, File, Permissions, TryLockError};
use std::io::{ErrorKind, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use longshore_base::{Secret, random};

use super::account::ServiceAccount;

/// Where the servers live when their user cannot reach the data directory.
const SHARED_HOME: &str = "/var/lib/longshore";
/// Longest path of a Unix socket on Linux, with room for the file names of Postgres and Redis.
const LONGEST_SOCKET_DIR: usize = 80;

/// A data directory held by this process.
pub(super) struct DataDir {
    path: PathBuf,
    // Held for as long as the file is open; the kernel lets go of it however the process ends.
    _lock: File,
}

impl DataDir {
    /// Makes the directory if need be and takes its lock.
    pub(super) fn open(path: &Path, account: &ServiceAccount) -> anyhow::Result<Self> {
        let shown = path.display();
        if let Some(parent) = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
        {
            std::fs::create_dir_all(parent)
                .with_context(|| format!("cannot make the data directory {shown}"))?;
        }
        // Another user must get through to its own part below, but must not list what is here.
        let mode = if account.is_other_user() {
            0o711
        } else {
            0o700
        };
        match DirBuilder::new().mode(mode).create(path) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                return Err(error)
                    .with_context(|| format!("cannot make the data directory {shown}"));
            }
            _ => {}
        }
        let path = path
            .canonicalize()
            .with_context(|| format!("cannot use the data directory {shown}"))?;
        let lock = take_lock(&path)?;
        Ok(Self { path, _lock: lock })
    }

    /// The file that holds the admin token.
    pub(super) fn admin_token_file(&self) -> PathBuf {
        self.path.join("admin-token")
    }

    /// The admin token; made the first time.
    pub(super) fn admin_token(&self) -> anyhow::Result<Secret<String>> {
        kept_secret(&self.admin_token_file(), random::token)
    }

    /// The sealing key as base64; made the first time.
    pub(super) fn sealing_key(&self) -> anyhow::Result<Secret<String>> {
        kept_secret(&self.path.join("secrets.key"), || {
            STANDARD.encode(random::bytes::<32>())
        })
    }

    /// Tells the operator's commands of this machine where the API is.
    pub(super) fn write_address(&self, address: &str) -> anyhow::Result<()> {
        let file = self.path.join("address");
        std::fs::write(&file, format!("{address}\n"))
            .with_context(|| format!("cannot write {}", file.display()))
    }

    /// Keeps a URL that may hold a credential, for people who want to look into Postgres or Redis.
    pub(super) fn write_private(&self, name: &str, text: &str) -> anyhow::Result<()> {
        let file = self.path.join(name);
        write_private(&file, text).with_context(|| format!("cannot write {}", file.display()))
    }

    /// The home of the servers, which the account can reach; made the first time and the same from then on.
    pub(super) fn services_home(&self, account: &ServiceAccount) -> anyhow::Result<PathBuf> {
        let record = self.path.join("services.path");
        let own = self.path.join("services");
        let home = match std::fs::read_to_string(&record) {
            Ok(text) => {
                let elsewhere = PathBuf::from(text.trim());
                if !elsewhere.is_dir() {
                    bail!(
                        "the database of {} was kept in {}, which is gone; remove {} to start an empty one",
                        self.path.display(),
                        elsewhere.display(),
                        self.path.display()
                    );
                }
                elsewhere
            }
            Err(_) if own.is_dir() || account.reaches(&self.path) => own,
            Err(_) => {
                // Not derived from the path: a data directory that is removed and made again must not find the old
                // database, whose secrets its new key cannot open.
                let elsewhere = Path::new(SHARED_HOME).join(hex::encode(random::bytes::<6>()));
                std::fs::create_dir_all(SHARED_HOME)
                    .with_context(|| format!("cannot make {SHARED_HOME}"))?;
                make_private_dir(&elsewhere, account)?;
                std::fs::write(&record, format!("{}\n", elsewhere.display()))
                    .with_context(|| format!("cannot write {}", record.display()))?;
                elsewhere
            }
        };
        make_private_dir(&home, account)?;
        Ok(home)
    }
}

/// A directory only the account may enter; made, or given to it.
pub(super) fn make_private_dir(path: &Path, account: &ServiceAccount) -> anyhow::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            return Err(error).with_context(|| format!("cannot make {}", path.display()));
        }
        _ => {}
    }
    // A link would let somebody else choose what is handed over.
    if !path.symlink_metadata()?.is_dir() {
        bail!("{} is not a directory", path.display());
    }
    if let Some((uid, gid)) = account.ids() {
        chown(path, Some(uid), Some(gid))
            .with_context(|| format!("cannot hand {} to its user", path.display()))?;
    }
    std::fs::set_permissions(path, Permissions::from_mode(0o700))
        .with_context(|| format!("cannot close {} to others", path.display()))
}

/// The directory for the sockets of the servers in `home`: below it, or, where that path is too long for a socket, below
/// the directory of temporary files.
pub(super) fn socket_dir(home: &Path, account: &ServiceAccount) -> anyhow::Result<PathBuf> {
    let own = home.join("run");
    if own.as_os_str().len() <= LONGEST_SOCKET_DIR {
        make_private_dir(&own, account)?;
        return Ok(own);
    }
    let digest = longshore_base::secret::sha256(home.as_os_str().as_encoded_bytes());
    let short = std::env::temp_dir().join(format!("longshore-{}", hex::encode(&digest[..8])));
    make_private_dir(&short, account)?;
    Ok(short)
}

fn take_lock(path: &Path) -> anyhow::Result<File> {
    let file = path.join("lock");
    let mut lock = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&file)
        .with_context(|| format!("cannot open {}", file.display()))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            lock.read_to_string(&mut holder).unwrap_or_default();
            bail!(
                "another `longshore up` (process {}) is using {}; stop it, or give this one another --data",
                holder.trim(),
                path.display()
            );
        }
        Err(TryLockError::Error(error)) => {
            return Err(error).with_context(|| format!("cannot lock {}", file.display()));
        }
    }
    lock.set_len(0)?;
    lock.rewind()?;
    writeln!(lock, "{}", std::process::id())?;
    Ok(lock)
}

/// Reads a secret, or makes and keeps it.
fn kept_secret(file: &Path, make: impl FnOnce() -> String) -> anyhow::Result<Secret<String>> {
    match std::fs::read_to_string(file) {
        Ok(text) if !text.trim().is_empty() => {
            // Whoever copied it here may have left it open.
            std::fs::set_permissions(file, Permissions::from_mode(0o600))
                .with_context(|| format!("cannot close {} to others", file.display()))?;
            Ok(Secret::new(text.trim().to_owned()))
        }
        Ok(_) => bail!(
            "{} is empty; restore it, or remove it to have a new one made",
            file.display()
        ),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let secret = make();
            write_private(file, &secret)
                .with_context(|| format!("cannot write {}", file.display()))?;
            Ok(Secret::new(secret))
        }
        Err(error) => Err(error).with_context(|| format!("cannot read {}", file.display())),
    }
}

/// Writes a file only we may read: under another name first, so that a crash leaves none or the whole of it.
fn write_private(file: &Path, text: &str) -> std::io::Result<()> {
    let new = file.with_extension("new");
    match std::fs::remove_file(&new) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut handle = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)?;
    writeln!(handle, "{text}")?;
    handle.sync_all()?;
    std::fs::rename(&new, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &Path) -> anyhow::Result<DataDir> {
        DataDir::open(path, &ServiceAccount::ourselves())
    }

    #[test]
    fn a_data_directory_is_held_by_one_process_and_keeps_its_secrets() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("deep/data");
        let data = open(&path).unwrap();
        let token = data.admin_token().unwrap();
        let error = open(&path).err().unwrap().to_string();
        assert!(error.contains(&std::process::id().to_string()), "{error}");
        drop(data);
        let again = open(&path).unwrap();
        assert!(again.admin_token().unwrap() == token);
        let mode = again
            .admin_token_file()
            .metadata()
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(
            STANDARD
                .decode(again.sealing_key().unwrap().expose())
                .unwrap()
                .len(),
            32
        );
    }

    #[test]
    fn an_emptied_key_file_is_refused_instead_of_replaced() {
        let temporary = tempfile::tempdir().unwrap();
        let data = open(temporary.path()).unwrap();
        std::fs::write(temporary.path().join("secrets.key"), "\n").unwrap();
        assert!(data.sealing_key().is_err());
    }

    #[test]
    fn sockets_of_a_deep_directory_go_where_their_path_is_short_enough() {
        let temporary = tempfile::tempdir().unwrap();
        let deep = temporary.path().join("x".repeat(90));
        std::fs::create_dir(&deep).unwrap();
        let account = ServiceAccount::ourselves();
        let dir = socket_dir(&deep, &account).unwrap();
        assert!(
            dir.as_os_str().len() <= LONGEST_SOCKET_DIR,
            "{}",
            dir.display()
        );
        std::fs::remove_dir(&dir).unwrap();
        assert_eq!(
            socket_dir(temporary.path(), &account).unwrap(),
            temporary.path().join("run")
        );
    }
}
