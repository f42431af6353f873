//! `longshore up` on this machine: starting, refusing, stopping, and what a killed one leaves behind.

use std::fs::Permissions;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, geteuid};

use crate::process::{Up, longshore, run, servers_below, until};

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A data directory that is not below a closed one, whoever runs the tests.
fn open_dir() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
    directory
}

#[test]
fn it_serves_keeps_its_secrets_private_and_stops_everything_in_time() {
    let place = open_dir();
    let data = place.path().join("data");
    let mut up = Up::serving(&data);
    let token = read(&data.join("admin-token"));
    for name in ["admin-token", "secrets.key", "database-url", "redis-url"] {
        let mode = data.join(name).metadata().unwrap().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    let out = up.stdout();
    assert!(out.contains("curl -sS http://127.0.0.1:"), "{out}");
    assert!(!out.contains(token.trim()), "the token is in the output");
    assert!(out.contains("Docker does not answer"), "{out}");
    assert!(up.servers().len() > 2, "{:?}", up.servers());

    // The local commands find server and token by the data directory.
    let (code, list, err) = run(longshore()
        .args(["workspaces", "list", "--json", "--data"])
        .arg(&data));
    assert_eq!((code, list.trim()), (Some(0), "[]"), "{err}");

    let (status, took) = up.stop();
    assert!(status.success(), "{status}: {}", up.stderr());
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert_eq!(up.servers(), Vec::<i32>::new());
    assert!(
        !up.stderr().contains(token.trim()),
        "the token is in the log"
    );

    // The second start finds what the first one made.
    let mut again = Up::serving(&data);
    assert_eq!(read(&data.join("admin-token")), token);
    assert!(again.stop().0.success());
}

#[test]
fn control_c_on_the_terminal_does_not_reach_postgres_first() {
    let place = open_dir();
    let data = place.path().join("data");
    let mut up = Up::start(&data, |command| {
        command.process_group(0);
    });
    up.until_it_serves();
    // What a terminal does: the signal goes to the whole foreground group.
    killpg(
        Pid::from_raw(i32::try_from(up.child.id()).unwrap()),
        Signal::SIGINT,
    )
    .unwrap();
    assert!(up.ended().success(), "{}", up.stderr());
    let err = up.stderr();
    assert!(!err.contains("ended by itself"), "{err}");
    assert_eq!(up.servers(), Vec::<i32>::new());
}

#[test]
fn a_second_one_on_the_same_data_is_refused() {
    let place = open_dir();
    let data = place.path().join("data");
    let up = Up::serving(&data);
    let mut second = Up::start(&data, |_| ());
    assert_eq!(second.ended().code(), Some(1));
    let err = second.stderr();
    assert!(
        err.contains(&format!(
            "another `longshore up` (process {}) is using",
            up.child.id()
        )),
        "{err}"
    );
    assert_eq!(err.lines().count(), 1, "{err}");
}

#[test]
fn a_taken_port_is_refused_before_anything_is_started() {
    let place = open_dir();
    let data = place.path().join("data");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (code, _, err) = run(longshore()
        .args([
            "up",
            "--metrics-listen",
            "none",
            "--listen",
            &address,
            "--data",
        ])
        .arg(&data));
    assert_eq!(code, Some(1), "{err}");
    assert!(
        err.contains(&format!(
            "port {} on 127.0.0.1 is taken",
            taken.local_addr().unwrap().port()
        )),
        "{err}"
    );
    assert_eq!(err.lines().count(), 1, "{err}");
    assert!(!data.join("services").exists());
}

#[test]
fn after_a_kill_the_next_start_ends_what_is_left_and_serves() {
    let place = open_dir();
    let data = place.path().join("data");
    let mut killed = Up::serving(&data);
    let before = killed.servers();
    killed.signal(Signal::SIGKILL);
    killed.ended();
    assert!(!killed.servers().is_empty(), "they outlive a killed `up`");

    let mut up = Up::serving(&data);
    let after = up.servers();
    assert!(
        before.iter().all(|pid| !after.contains(pid)),
        "{before:?} {after:?}"
    );
    assert!(up.stop().0.success());
    assert_eq!(servers_below(&data), Vec::<i32>::new());
}

#[test]
fn a_stale_lock_file_with_somebody_elses_process_id_is_no_obstacle() {
    let place = open_dir();
    let data = place.path().join("data");
    let mut up = Up::serving(&data);
    let lock = data.join("services/postgres/data/postmaster.pid");
    let text = read(&lock);
    assert!(up.stop().0.success());
    // As after a power cut and a reboot: the id of the old server is now that of a process that has nothing to do with it.
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines[0] = std::process::id().to_string();
    std::fs::write(&lock, lines.join("\n") + "\n").unwrap();
    let mut again = Up::serving(&data);
    assert!(again.stop().0.success());
}

#[test]
fn a_data_directory_of_another_version_is_refused_in_one_sentence() {
    let place = open_dir();
    let data = place.path().join("data");
    let mut up = Up::serving(&data);
    assert!(up.stop().0.success());
    std::fs::write(data.join("services/postgres/data/PG_VERSION"), "9\n").unwrap();
    let mut refused = Up::start(&data, |_| ());
    assert_eq!(refused.ended().code(), Some(1));
    let err = refused.stderr();
    assert!(err.contains("was made by Postgres 9, but only"), "{err}");
    assert_eq!(refused.servers(), Vec::<i32>::new());
}

#[test]
fn a_postgres_that_does_not_start_is_explained_by_its_own_words() {
    let place = open_dir();
    let data = place.path().join("data");
    let mut up = Up::serving(&data);
    assert!(up.stop().0.success());
    let settings = data.join("services/postgres/data/postgresql.conf");
    std::fs::write(&settings, "no_such_setting = 1\n").unwrap();
    let mut refused = Up::start(&data, |_| ());
    assert_eq!(refused.ended().code(), Some(1));
    let err = refused.stderr();
    assert!(err.contains("longshore: Postgres did not start"), "{err}");
    assert!(
        err.contains("no_such_setting") || err.contains("configuration file"),
        "{err}"
    );
    assert_eq!(
        refused.servers(),
        Vec::<i32>::new(),
        "Redis was left running"
    );
}

#[test]
fn a_server_that_dies_is_started_again() {
    let place = open_dir();
    let data = place.path().join("data");
    let mut up = Up::serving(&data);
    let redis = until("Redis is found", || {
        up.servers()
            .into_iter()
            .find(|pid| {
                std::fs::read_to_string(format!("/proc/{pid}/comm"))
                    .is_ok_and(|name| name.trim() == "redis-server")
            })
            .ok_or_else(String::new)
    });
    nix::sys::signal::kill(Pid::from_raw(redis), Signal::SIGKILL).unwrap();
    until("Redis serves again", || {
        let err = up.stderr();
        if err.contains("it serves again") {
            Ok(())
        } else {
            Err(err)
        }
    });
    assert!(up.stop().0.success());
}

#[test]
fn below_a_closed_home_the_servers_live_where_their_user_can_reach() {
    if !geteuid().is_root() {
        eprintln!("skipped: only root runs Postgres as another user");
        return;
    }
    let home = tempfile::tempdir().unwrap();
    std::fs::set_permissions(home.path(), Permissions::from_mode(0o700)).unwrap();
    let data = home.path().join("data");
    let mut up = Up::serving(&data);
    let elsewhere = read(&data.join("services.path"));
    let elsewhere = Path::new(elsewhere.trim());
    let metadata = elsewhere.metadata().unwrap();
    assert_eq!(metadata.mode() & 0o777, 0o700);
    assert_ne!(metadata.uid(), 0);
    assert!(!data.join("services").exists());
    assert!(up.stop().0.success());
    let mut again = Up::serving(&data);
    assert_eq!(
        read(&data.join("services.path")).trim(),
        elsewhere.to_str().unwrap()
    );
    assert!(again.stop().0.success());
    std::fs::remove_dir_all(elsewhere).unwrap();
}
