//! `longshore top` in a real terminal: what it shows, and that it gives the terminal back.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::num::NonZero;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use nix::pty::{OpenptyResult, Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, tcgetattr};
use nix::unistd::Pid;
use serde_json::json;

use crate::process::{longshore, run, until};
use crate::server::Routes;

const ROWS: NonZero<u16> = NonZero::new(30).unwrap();
const COLUMNS: NonZero<u16> = NonZero::new(140).unwrap();

/// `longshore top` with a terminal of its own.
struct Top {
    child: Child,
    keyboard: File,
    terminal: OwnedFd,
    screen: Arc<Mutex<vt100::Parser>>,
}

impl Top {
    fn start(url: &str) -> Self {
        let size = Winsize {
            ws_row: ROWS.get(),
            ws_col: COLUMNS.get(),
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let OpenptyResult { master, slave } = openpty(&size, None).unwrap();
        let screen = Arc::new(Mutex::new(vt100::Parser::new(ROWS, COLUMNS, 0)));
        let mut output = File::from(master.try_clone().unwrap());
        let parser = Arc::clone(&screen);
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = output.read(&mut bytes) {
                parser.lock().unwrap().process(&bytes[..count]);
            }
        });
        let end = || Stdio::from(slave.try_clone().unwrap());
        // It makes the terminal the controlling one, as a shell does.
        let child = Command::new("setsid")
            .args([
                "--ctty",
                env!("CARGO_BIN_EXE_longshore"),
                "top",
                "--url",
                url,
            ])
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .unwrap();
        Self {
            child,
            keyboard: File::from(master),
            terminal: slave,
            screen,
        }
    }

    fn shows(&self, text: &str) {
        until(&format!("the screen shows {text}"), || {
            let contents = self.screen.lock().unwrap().screen().contents();
            if contents.contains(text) {
                Ok(())
            } else {
                Err(contents)
            }
        });
    }

    fn ends_and_gives_the_terminal_back(&mut self) {
        let status = until("it ends", || {
            self.child
                .try_wait()
                .unwrap()
                .ok_or_else(|| "it runs".to_owned())
        });
        assert_eq!(status.code(), Some(0));
        until("the terminal is as before", || {
            let parser = self.screen.lock().unwrap();
            let modes = tcgetattr(&self.terminal).unwrap().local_flags;
            let cooked = modes.contains(LocalFlags::ECHO | LocalFlags::ICANON | LocalFlags::ISIG);
            let screen = parser.screen();
            if cooked && !screen.alternate_screen() && !screen.hide_cursor() {
                Ok(())
            } else {
                Err(format!("{modes:?}, {}", screen.contents()))
            }
        });
    }
}

impl Drop for Top {
    fn drop(&mut self) {
        if self.child.try_wait().ok().flatten().is_none() {
            self.child.kill().ok();
            self.child.wait().ok();
        }
    }
}

fn routes(waiting: u32) -> Vec<(&'static str, String)> {
    let list = |items| json!({"items": items, "next_cursor": null}).to_string();
    let queue = |name, mode, waiting| {
        json!({
            "name": name, "mode": mode, "mode_by": "ada", "mode_reason": "engine upgrade", "waiting": waiting,
            "admitted": 1, "running": 2, "dead": 3, "oldest_waiting_seconds": 95.5,
            "per_minute": {"done": 40, "failed": 5}, "limits": {}, "workers": 1,
        })
    };
    vec![
        (
            "/queues",
            list(json!([
                queue("provision", "pause", waiting),
                queue("stop", "run", 0)
            ])),
        ),
        (
            "/holds",
            list(
                json!([{"id": "h1", "scope": "tenant", "value": "t1", "mode": "pause", "set_by": "bob"}]),
            ),
        ),
        (
            "/workers",
            list(json!([{
                "name": "w1", "state": "up", "version": "0.1.0", "slots": {"total": 8, "free": 6},
                "running": [{"kind": "provision"}, {"kind": "stop"}],
            }])),
        ),
        (
            "/jobs",
            list(
                json!([{"id": "j1", "kind": "provision", "state": "dead", "last_error": "no such image"}]),
            ),
        ),
    ]
}

#[test]
fn one_frame_is_text_for_scripts() {
    let server = Routes::at("127.0.0.1:0", routes(17));
    let url = format!("http://{}", server.address);
    let (exit, out, err) = run(longshore().args(["top", "--once", "--url", &url]));
    assert_eq!(exit, Some(0), "{err}");
    let expected = format!(
        "\
longshore top  {url}  2 running on 1 of 1 workers

QUEUE      MODE   WAITING  ADMITTED  RUNNING  DEAD  OLDEST  DONE/MIN  FAILED/MIN  WORKERS  NOTE
provision  pause  17       1         2        3     1m 35s  40        5           1        engine upgrade (by ada)
stop       run    0        1         2        3     1m 35s  40        5           1

HELD    VALUE  MODE   SINCE (UTC)  UNTIL (UTC)  BY   REASON
tenant  t1     pause                            bob

WORKER  STATE  FREE  VERSION  RUNNING
w1      up     6/8   0.1.0    provision 1, stop 1

FAILED (UTC)  KIND       JOB  WORKSPACE  ERROR
              provision  j1              no such image
"
    );
    assert_eq!(out, expected);
    let (exit, out, err) = run(longshore().args(["top", "--json", "--url", &url]));
    assert_eq!(exit, Some(0), "{err}");
    let all: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(all["queues"][0]["waiting"], 17);
    // Without a terminal there is nothing to draw on.
    let (exit, _, err) = run(longshore().args(["top", "--url", &url]));
    assert_eq!(exit, Some(2));
    assert!(err.contains("--once"), "{err}");
}

#[test]
fn a_server_that_goes_away_is_told_and_found_again() {
    let server = Routes::at("127.0.0.1:0", routes(17));
    let address = server.address.to_string();
    let mut top = Top::start(&format!("http://{address}"));
    top.shows("17");
    top.shows("engine upgrade (by ada)");
    top.shows("no such image");
    drop(server);
    top.shows("cannot reach the server");
    // What was known is still there.
    top.shows("engine upgrade (by ada)");
    let _server = Routes::at(&address, routes(4711));
    top.shows("4711");
    top.shows("2 running on 1 of 1 workers");
    top.keyboard.write_all(b"q").unwrap();
    top.ends_and_gives_the_terminal_back();
}

#[test]
fn every_way_out_gives_the_terminal_back() {
    let server = Routes::at("127.0.0.1:0", routes(17));
    let url = format!("http://{}", server.address);
    for key in [&b"q"[..], b"\x1b", b"\x03"] {
        let mut top = Top::start(&url);
        top.shows("QUEUE");
        top.keyboard.write_all(key).unwrap();
        top.ends_and_gives_the_terminal_back();
    }
    let mut top = Top::start(&url);
    top.shows("QUEUE");
    let pid = i32::try_from(top.child.id()).unwrap();
    kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap();
    top.ends_and_gives_the_terminal_back();
}

#[test]
fn it_starts_although_nobody_answers_yet() {
    let mut top = Top::start("http://127.0.0.1:1");
    top.shows("cannot reach the server at http://127.0.0.1:1; trying again");
    top.keyboard.write_all(b"q").unwrap();
    top.ends_and_gives_the_terminal_back();
}
