//! Servers that answer as told.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use crate::process::{longshore, run};

pub(crate) const JSON: &str = "application/json";
pub(crate) const PROBLEM: &str = "application/problem+json";

/// Gives the answers one after the other, one connection each, and hands back the requests.
pub(crate) struct Server {
    pub(crate) url: String,
    pub(crate) requests: mpsc::Receiver<String>,
    task: Option<JoinHandle<()>>,
}

impl Server {
    pub(crate) fn answering(answers: &[(u16, &str, &str)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let answers: Vec<String> = answers
            .iter()
            .map(|(status, kind, body)| response(*status, kind, body))
            .collect();
        let (send, requests) = mpsc::channel();
        let task = std::thread::spawn(move || {
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let request = read_request(&stream);
                send.send(request).ok();
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        Self {
            url,
            requests,
            task: Some(task),
        }
    }

    pub(crate) fn run(&self, args: &[&str]) -> (Option<i32>, String, String) {
        run(longshore()
            .args(args)
            .env("LONGSHORE_URL", &self.url)
            .env("LONGSHORE_TOKEN", "the-token"))
    }

    /// The next request: its first line, and its body as JSON.
    pub(crate) fn asked(&self) -> (String, serde_json::Value) {
        let request = self.requests.recv().unwrap();
        let mut lines = request.lines();
        let first = lines.next().unwrap().trim_end_matches(" HTTP/1.1");
        let body = serde_json::from_str(lines.next_back().unwrap());
        (first.to_owned(), body.unwrap_or_default())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A test that has failed leaves requests unasked, which nobody may wait for.
        if !std::thread::panicking() {
            self.task.take().unwrap().join().unwrap();
        }
    }
}

/// Answers each path the same way, as often and in whatever order it is asked, until it is dropped.
pub(crate) struct Routes {
    pub(crate) address: SocketAddr,
    ending: Arc<AtomicBool>,
    task: Option<JoinHandle<()>>,
}

impl Routes {
    pub(crate) fn at(address: &str, routes: Vec<(&'static str, String)>) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let ending = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&ending);
        let task = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if ends.load(Ordering::Relaxed) {
                    return;
                }
                let mut stream = stream.unwrap();
                let request = read_request(&stream);
                let path = request.split([' ', '?']).nth(1).unwrap_or_default();
                let found = routes.iter().find(|(route, _)| *route == path);
                let answer = match found {
                    Some((_, body)) => response(200, JSON, body),
                    None => response(404, PROBLEM, r#"{"error":"not found"}"#),
                };
                // Who asked may have gone.
                stream.write_all(answer.as_bytes()).ok();
            }
        });
        Self {
            address,
            ending,
            task: Some(task),
        }
    }
}

impl Drop for Routes {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Relaxed);
        TcpStream::connect(self.address).ok();
        self.task.take().unwrap().join().ok();
    }
}

fn response(status: u16, kind: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nDate: Sat, 31 Jan 2026 12:00:00 GMT\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    )
}

fn read_request(stream: &TcpStream) -> String {
    let mut reader = BufReader::new(stream);
    let (mut request, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if line == "\r\n" || line.is_empty() {
            break;
        }
        request.push_str(&line);
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    request.push_str(&String::from_utf8(body).unwrap());
    request
}
