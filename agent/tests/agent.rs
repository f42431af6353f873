//! The real binary beside a platform of a few lines, which answers what a test wants and tells what it was asked.
//!
//! The platform here only makes the agent's own behaviour visible; whether the two fit is for the tests of the
//! real platform.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failure here is the test's"
)]

use std::collections::VecDeque;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

const ID: &str = "0b6f3c1e-4d2a-4c55-9a53-0a6f3c1e4d2a";
const DEADLINE: Duration = Duration::from_secs(10);

/// What an agent asked its platform.
#[derive(Debug)]
struct Asked {
    path: String,
    bearer: Option<String>,
    body: Value,
}

/// One agent, its platform and its config directory; ended when dropped.
struct Run {
    process: Child,
    /// What the platform will say next.
    answers: Arc<Mutex<VecDeque<(u16, Value)>>>,
    asked: Receiver<Asked>,
    log: Receiver<Value>,
    configs: TempDir,
}

/// Starts an agent whose platform gives `answers` in turn, then 200 for ever.
fn run(answers: &[(u16, Value)], files: &[(&str, &str)], variables: &[(&str, &str)]) -> Run {
    let platform = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://localhost:{}", platform.local_addr().unwrap().port());
    let answers = Arc::new(Mutex::new(VecDeque::from(answers.to_vec())));
    let next = Arc::clone(&answers);
    let (tell, asked) = channel();
    thread::spawn(move || {
        for stream in platform.incoming() {
            let mut stream = stream.unwrap();
            let (head, body) = read_message(&mut stream);
            let bearer = head
                .lines()
                .find_map(|line| line.strip_prefix("authorization: Bearer "));
            let path = head.split(' ').nth(1).unwrap().to_owned();
            let answer = next.lock().unwrap().pop_front();
            let (status, answer) = answer.unwrap_or((200, json!({})));
            let answer = answer.to_string();
            let length = answer.len();
            write!(
                stream,
                "HTTP/1.1 {status} X\r\ncontent-length: {length}\r\n\r\n{answer}"
            )
            .unwrap();
            let asked = Asked {
                path,
                bearer: bearer.map(str::to_owned),
                body,
            };
            if tell.send(asked).is_err() {
                return;
            }
        }
    });

    let configs = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(configs.path().join(name), text).unwrap();
    }
    let mut process = Command::new(env!("CARGO_BIN_EXE_longshore-agent"))
        .env_clear()
        .env("WORKSPACE_ID", ID)
        .env("PLATFORM_URL", url)
        .env("HOSTNAME", "ws-0b6f3c1e-4d2")
        .env("WORKSPACE_CONFIG_PATH", configs.path())
        .env("AGENT_LISTEN", "127.0.0.1:0")
        .envs(variables.iter().copied())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let stdout = BufReader::new(process.stdout.take().unwrap());
    let (tell, log) = channel();
    thread::spawn(move || {
        for line in stdout.lines().map_while(Result::ok) {
            let line =
                serde_json::from_str(&line).expect("every line of the log is one JSON object");
            if tell.send(line).is_err() {
                return;
            }
        }
    });
    Run {
        process,
        answers,
        asked,
        log,
        configs,
    }
}

impl Run {
    fn asked(&self) -> Asked {
        self.asked
            .recv_timeout(DEADLINE)
            .expect("the agent asks its platform")
    }

    /// The first beat that `wanted` accepts.
    fn beat(&self, wanted: impl Fn(&Value) -> bool) -> Asked {
        let until = Instant::now() + DEADLINE;
        loop {
            let asked = self.asked();
            if asked.path == "/registry/heartbeat" && wanted(&asked.body) {
                return asked;
            }
            assert!(
                Instant::now() < until,
                "no such beat; the last was {asked:?}"
            );
        }
    }

    fn logged(&self, message: &str) -> Value {
        loop {
            let line = self
                .log
                .recv_timeout(DEADLINE)
                .unwrap_or_else(|_| panic!("no line {message:?}"));
            if line["message"].as_str().unwrap().contains(message) {
                return line;
            }
        }
    }

    fn ended(&mut self) -> ExitStatus {
        let until = Instant::now() + DEADLINE;
        while Instant::now() < until {
            if let Some(status) = self.process.try_wait().unwrap() {
                return status;
            }
            thread::sleep(Duration::from_millis(10));
        }
        panic!("the agent still runs");
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // Either may fail only because the agent has ended by itself.
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// Head and JSON body of a request or an answer.
fn read_message(stream: &mut TcpStream) -> (String, Value) {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert_ne!(
            reader.read_line(&mut head).unwrap(),
            0,
            "cut off after {head:?}"
        );
    }
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.unwrap().parse().unwrap()];
    reader.read_exact(&mut body).unwrap();
    (head, serde_json::from_slice(&body).unwrap())
}

/// Status and body of the agent's answer.
fn request(port: u64, line: &str, headers: &str, body: &[u8]) -> (u16, Value) {
    let mut stream = TcpStream::connect(("127.0.0.1", u16::try_from(port).unwrap())).unwrap();
    let length = body.len();
    write!(
        stream,
        "{line} HTTP/1.1\r\nhost: x\r\n{headers}content-length: {length}\r\n\r\n"
    )
    .unwrap();
    // The agent may refuse a large body before it has taken all of it.
    stream.write_all(body).ok();
    let (head, body) = read_message(&mut stream);
    (head[9..12].parse().unwrap(), body)
}

fn message(text: &str) -> Vec<u8> {
    let message =
        json!({"messageId": "m1", "role": "user", "parts": [{"kind": "text", "text": text}]});
    let body = json!({"jsonrpc": "2.0", "id": 7, "method": "message/send", "params": {"message": message}});
    body.to_string().into_bytes()
}

#[test]
fn registers_keeps_its_token_beats_and_stops_when_told() {
    let answers = [
        (503, json!({})),
        (401, json!({})),
        (200, json!({"auth_token": "issued"})),
    ];
    let mut agent = run(
        &answers,
        &[("config.yaml", "name: Ada\n")],
        &[("AGENT_ERROR_RATE", "0.7")],
    );
    let port = agent.logged("serving")["port"].as_u64().unwrap();
    for _ in &answers {
        let asked = agent.asked();
        assert_eq!(
            (asked.path.as_str(), asked.bearer),
            ("/registry/register", None)
        );
        assert_eq!(asked.body["id"], ID);
        assert_eq!(asked.body["url"], format!("http://ws-0b6f3c1e-4d2:{port}"));
        assert_eq!(asked.body["agent_card"]["name"], "Ada");
    }
    let first = agent.beat(|_| true);
    assert_eq!(first.bearer.as_deref(), Some("issued"));
    assert_eq!(
        first.body,
        json!({
            "workspace_id": ID, "error_rate": 0.7, "sample_error": "set by AGENT_ERROR_RATE",
            "active_tasks": 0, "current_task": "", "uptime_seconds": first.body["uptime_seconds"],
            "runtime_state": "", "runtime_metadata": {"capabilities": {}},
        })
    );
    let token = agent.configs.path().join(".auth_token");
    assert_eq!(fs::read_to_string(&token).unwrap(), "issued");
    assert_eq!(
        fs::metadata(&token).unwrap().permissions().mode() & 0o777,
        0o600
    );

    let asked_to_stop = Instant::now();
    kill(
        Pid::from_raw(i32::try_from(agent.process.id()).unwrap()),
        Signal::SIGTERM,
    )
    .unwrap();
    assert!(agent.ended().success());
    assert!(asked_to_stop.elapsed() < Duration::from_secs(1));
}

#[test]
fn answers_whom_it_should_and_refuses_the_rest() {
    let agent = run(
        &[],
        &[("config.yaml", "name: Ada\n"), (".auth_token", "mine\n")],
        &[],
    );
    let port = agent.logged("serving")["port"].as_u64().unwrap();
    for path in ["agent-card.json", "agent.json"] {
        let (status, card) = request(port, &format!("GET /.well-known/{path}"), "", b"");
        assert_eq!(
            (status, &card["name"], &card["skills"][0]["id"]),
            (200, &json!("Ada"), &json!("echo"))
        );
    }
    let (status, answer) = request(port, "POST /", "", &message("hello"));
    let part = &answer["result"]["parts"][0]["text"];
    assert_eq!(
        (status, &answer["id"], part),
        (200, &json!(7), &json!("Ada: hello"))
    );

    let (status, said) = request(
        port,
        "GET /transcript?since=1",
        "authorization: Bearer mine\r\n",
        b"",
    );
    let said = &said["messages"].as_array().unwrap()[..];
    assert_eq!(
        (status, said.len(), &said[0]["text"]),
        (200, 1, &json!("Ada: hello"))
    );

    let megabyte = 1024 * 1024;
    for (line, headers, body, expected) in [
        ("GET /transcript", "", 0, 401),
        ("GET /transcript", "authorization: Bearer other\r\n", 0, 401),
        ("GET /nothing", "", 0, 404),
        ("GET /", "", 0, 405),
        ("POST /healthz", "", 0, 405),
        ("GET /healthz", "", 0, 200),
        ("POST /", "", megabyte, 200),
        ("POST /", "", megabyte + 1, 413),
    ] {
        let (status, answer) = request(port, line, headers, &vec![b' '; body]);
        assert_eq!(status, expected, "{line} with {body} bytes: {answer}");
    }
}

#[test]
fn a_refused_token_is_read_again_once() {
    let agent = run(&[(401, json!({}))], &[(".auth_token", "old")], &[]);
    assert_eq!(agent.asked().bearer.as_deref(), Some("old"));
    // The file held the same token, so only the next attempt asks again.
    assert_eq!(agent.asked().bearer.as_deref(), Some("old"));

    let beats = [("AGENT_HEARTBEAT_SECONDS", "0.1")];
    let agent = run(&[], &[(".auth_token", "old")], &beats);
    assert_eq!(agent.beat(|_| true).bearer.as_deref(), Some("old"));
    fs::write(agent.configs.path().join(".auth_token"), "new").unwrap();
    assert_eq!(agent.beat(|_| true).bearer.as_deref(), Some("old"));
    agent.answers.lock().unwrap().push_back((401, json!({})));
    agent.logged("asking again");
    while agent.beat(|_| true).bearer.as_deref() != Some("new") {}
}

#[test]
fn a_removed_workspace_has_no_agent() {
    for status in [404, 410] {
        let mut agent = run(&[(status, json!({"error": "workspace removed"}))], &[], &[]);
        assert!(agent.ended().success());
        assert_eq!(
            agent.logged("does not have this workspace")["error"],
            "workspace removed"
        );
    }
    let mut agent = run(&[(200, json!({})), (410, json!({}))], &[], &[]);
    assert!(agent.ended().success(), "a beat tells it as well");
}

#[test]
fn slow_replies_show_as_a_task_and_the_status_can_be_set() {
    let switches = [
        ("AGENT_SLOW_REPLY_MS", "1500"),
        ("AGENT_REPLY_STATUS", "503"),
    ];
    let agent = run(&[], &[], &switches);
    let port = agent.logged("serving")["port"].as_u64().unwrap();
    let caller = thread::spawn(move || request(port, "POST /", "", &message("think")));
    let busy = agent.beat(|beat| beat["active_tasks"] == 1);
    assert_eq!(busy.body["current_task"], "think");
    assert_eq!(caller.join().unwrap().0, 503);
    agent.beat(|beat| beat["active_tasks"] == 0);
}

#[test]
fn switches_make_it_crash_or_fall_silent() {
    let mut crashing = run(&[], &[], &[("AGENT_CRASH_AFTER_SECONDS", "0.2")]);
    assert_eq!(crashing.ended().code(), Some(101));

    let silent = run(&[], &[], &[("AGENT_NEVER_REGISTER", "1")]);
    let fading = [
        ("AGENT_STOP_BEATING_AFTER_SECONDS", "0.3"),
        ("AGENT_HEARTBEAT_SECONDS", "0.1"),
    ];
    let fading = run(&[], &[], &fading);
    fading.logged("no more beats");
    while fading.asked.try_recv().is_ok() {}
    assert!(
        fading
            .asked
            .recv_timeout(Duration::from_millis(500))
            .is_err()
    );
    assert!(silent.asked.try_recv().is_err());
    let port = silent.logged("serving")["port"].as_u64().unwrap();
    assert_eq!(request(port, "GET /healthz", "", b"").0, 200);
}

#[test]
fn wrong_settings_end_it_with_status_2_and_a_reason() {
    for (name, value, reason) in [
        (
            "AGENT_ERROR_RATE",
            "lots",
            "AGENT_ERROR_RATE must be a number from 0 to 1",
        ),
        (
            "PLATFORM_URL",
            "https://x",
            "https PLATFORM_URL is not supported by the reference agent",
        ),
    ] {
        let mut agent = run(&[], &[], &[(name, value)]);
        assert_eq!(agent.ended().code(), Some(2));
        agent.logged(reason);
    }
}
