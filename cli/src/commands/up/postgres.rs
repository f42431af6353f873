//! The private Postgres of `longshore up`: found, set up once, started, watched.
//!
//! It listens on a Unix socket only, in a directory that only its own user (and root) may enter; that is its access
//! control, so there is no password to keep or to leak. `fsync` and `synchronous_commit` stay on: this is the truth.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};
use longshore_base::Secret;
use nix::sys::signal::Signal;
use tokio::process::{Child, Command};

use super::account::ServiceAccount;
use super::data::{make_private_dir, socket_dir};
use super::leftovers;
use super::service::{self, Service};

/// User and database of ours in it.
const NAME: &str = "longshore";
/// The oldest major version with everything the schema uses.
const OLDEST_MAJOR: u32 = 14;

/// A private Postgres.
pub(super) struct Postgres {
    account: ServiceAccount,
    programs: Programs,
    data: PathBuf,
    sockets: PathBuf,
    log: PathBuf,
}

/// Where the programs of one major version are.
#[derive(Clone, Debug)]
struct Programs {
    directory: PathBuf,
    major: u32,
}

impl Postgres {
    /// Prepares one in `home`: sets its data directory up the first time, refuses one of another version.
    pub(super) async fn prepare(home: &Path, account: &ServiceAccount) -> anyhow::Result<Self> {
        let home = home.join("postgres");
        make_private_dir(&home, account)?;
        let data = home.join("data");
        let made_by = data_version(&data)?;
        let programs = choose(installed().await, made_by, &data)?;
        let postgres = Self {
            account: account.clone(),
            programs,
            sockets: socket_dir(&home, account)?,
            log: home.join("postgres.log"),
            data,
        };
        if made_by.is_none() {
            postgres.set_up(&home).await?;
        }
        Ok(postgres)
    }

    /// How to connect.
    pub(super) fn url(&self) -> anyhow::Result<Secret<String>> {
        let mut url: url::Url = format!("postgres://{NAME}@localhost/{NAME}").parse()?;
        url.query_pairs_mut()
            .append_pair("host", &self.sockets.to_string_lossy());
        Ok(Secret::new(url.into()))
    }

    async fn set_up(&self, home: &Path) -> anyhow::Result<()> {
        tracing::info!(directory = %self.data.display(), version = self.programs.major, "setting up Postgres");
        // Under another name until it is whole, so that an interrupted set-up is not taken for a database.
        let new = home.join("data.new");
        if new.exists() {
            std::fs::remove_dir_all(&new)
                .with_context(|| format!("cannot clear {}", new.display()))?;
        }
        let output = self
            .program("initdb", home)
            .arg("--pgdata")
            .arg(&new)
            .args(["--username", NAME, "--encoding=UTF8", "--no-locale"])
            .args([
                "--auth-local=trust",
                "--auth-host=reject",
                "--no-instructions",
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .output()
            .await
            .context("cannot run initdb")?;
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr);
            bail!(
                "initdb failed: {}",
                words
                    .lines()
                    .map(str::trim)
                    .filter(|line| !line.is_empty())
                    .collect::<Vec<_>>()
                    .join("; ")
            );
        }
        std::fs::rename(&new, &self.data)
            .with_context(|| format!("cannot name {}", self.data.display()))
    }

    fn program(&self, name: &str, directory: &Path) -> Command {
        service::command(
            &self.programs.directory.join(name),
            directory,
            &self.account,
        )
    }

    /// Removes the lock file of a server that is gone, when its process id now belongs to somebody else. Postgres
    /// itself, which looks at the id only, would refuse to start.
    fn clear_stale_lock(&self) -> anyhow::Result<()> {
        let lock = self.data.join("postmaster.pid");
        let Ok(text) = std::fs::read_to_string(&lock) else {
            return Ok(());
        };
        if leftovers::any(&self.data, "postgres") {
            return Ok(());
        }
        tracing::debug!(
            pid = text.lines().next(),
            "removing the lock file of a Postgres that is gone"
        );
        std::fs::remove_file(&lock).with_context(|| format!("cannot remove {}", lock.display()))
    }
}

impl Service for Postgres {
    const NAME: &'static str = "Postgres";
    // Fast shutdown; immediate shutdown, which the next start recovers from.
    const STOP: &'static [Signal] = &[Signal::SIGINT, Signal::SIGQUIT];
    const START_LIMIT: Duration = Duration::from_secs(120);

    fn log(&self) -> &Path {
        &self.log
    }

    async fn is_ready(&self, pid: u32) -> bool {
        is_ready(&self.data, pid)
    }

    async fn launch(&self) -> anyhow::Result<Child> {
        leftovers::end(&self.data, "postgres", Signal::SIGINT).await?;
        self.clear_stale_lock()?;
        let log = service::open_log(&self.log)?;
        let mut child = self
            .program("postgres", &self.data)
            .arg("-D")
            .arg(&self.data)
            .arg("-c")
            .arg(format!(
                "unix_socket_directories={}",
                self.sockets.display()
            ))
            .args(["-c", "listen_addresses="])
            .args(["-c", "unix_socket_permissions=0700"])
            .args(["-c", "cluster_name=longshore"])
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| {
                format!("cannot run {}/postgres", self.programs.directory.display())
            })?;
        service::until_ready(self, &mut child).await?;
        Ok(child)
    }
}

/// Whether the lock file of the data directory says that this very process accepts connections; `pg_ctl` asks the same.
fn is_ready(data: &Path, pid: u32) -> bool {
    let Ok(text) = std::fs::read_to_string(data.join("postmaster.pid")) else {
        return false;
    };
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    lines.first().and_then(|line| line.parse().ok()) == Some(pid) && lines.get(7) == Some(&"ready")
}

/// The major version that made a data directory; none when there is no data directory.
fn data_version(data: &Path) -> anyhow::Result<Option<u32>> {
    if !data.exists() {
        return Ok(None);
    }
    let file = data.join("PG_VERSION");
    let text = std::fs::read_to_string(&file).with_context(|| {
        format!(
            "{} is not a Postgres data directory (no readable PG_VERSION)",
            data.display()
        )
    })?;
    match text.trim().parse() {
        Ok(major) => Ok(Some(major)),
        Err(_) => bail!("{} names no version of Postgres", file.display()),
    }
}

/// The version to run: the one that made the data directory, else the newest.
fn choose(mut found: Vec<Programs>, made_by: Option<u32>, data: &Path) -> anyhow::Result<Programs> {
    found.sort_by_key(|programs| programs.major);
    let Some(newest) = found.last() else {
        bail!(
            "Postgres is not installed (looked in /usr/lib/postgresql/*/bin and PATH): \
             `apt-get install postgresql`, or give DATABASE_URL"
        );
    };
    match made_by {
        None if newest.major < OLDEST_MAJOR => bail!(
            "Postgres {} is too old; {OLDEST_MAJOR} or newer is needed",
            newest.major
        ),
        None => Ok(newest.clone()),
        Some(major) => found
            .iter()
            .find(|programs| programs.major == major)
            .cloned()
            .with_context(|| {
                format!(
                    "the data directory {} was made by Postgres {major}, but only {} is installed: \
                     install postgresql-{major}, or move the data over with pg_upgrade",
                    data.display(),
                    found
                        .iter()
                        .map(|programs| programs.major.to_string())
                        .collect::<Vec<_>>()
                        .join(" and ")
                )
            }),
    }
}

/// Every version on this machine: Debian's directories, then PATH.
async fn installed() -> Vec<Programs> {
    let mut found = Vec::new();
    for version in std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
    {
        let directory = version.path().join("bin");
        if let Some(major) = version
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
            && has_programs(&directory)
        {
            found.push(Programs { directory, major });
        }
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    for directory in std::env::split_paths(&path).filter(|directory| has_programs(directory)) {
        if let Some(major) = asked_version(&directory).await
            && !found.iter().any(|programs| programs.major == major)
        {
            found.push(Programs { directory, major });
        }
    }
    found
}

fn has_programs(directory: &Path) -> bool {
    ["postgres", "initdb"]
        .iter()
        .all(|program| directory.join(program).is_file())
}

async fn asked_version(directory: &Path) -> Option<u32> {
    let output = Command::new(directory.join("postgres"))
        .arg("--version")
        .output()
        .await
        .ok()?;
    major_version(&String::from_utf8_lossy(&output.stdout))
}

/// 15 of `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`.
fn major_version(text: &str) -> Option<u32> {
    let version = text.split_once("(PostgreSQL) ")?.1;
    version
        .split(|character: char| !character.is_ascii_digit())
        .next()?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn programs(majors: &[u32]) -> Vec<Programs> {
        majors
            .iter()
            .map(|major| Programs {
                directory: PathBuf::from("/x"),
                major: *major,
            })
            .collect()
    }

    #[test]
    fn the_version_that_made_the_data_is_run_else_the_newest() {
        let data = Path::new("/data");
        let chosen =
            |found, made_by| choose(programs(found), made_by, data).map(|programs| programs.major);
        assert_eq!(chosen(&[15, 17, 16], None).unwrap(), 17);
        assert_eq!(chosen(&[15, 17], Some(15)).unwrap(), 15);
        let error = chosen(&[15], Some(14)).unwrap_err().to_string();
        assert!(
            error.contains("made by Postgres 14, but only 15"),
            "{error}"
        );
        assert!(chosen(&[12], None).is_err());
        assert!(
            chosen(&[], None)
                .unwrap_err()
                .to_string()
                .contains("not installed")
        );
    }

    #[test]
    fn the_major_version_is_read_off_what_the_program_prints() {
        assert_eq!(
            major_version("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n"),
            Some(15)
        );
        assert_eq!(major_version("postgres (PostgreSQL) 18beta1"), Some(18));
        assert_eq!(major_version("redis"), None);
    }
}
