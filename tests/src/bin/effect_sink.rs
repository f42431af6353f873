//! The effect sink: a process of its own that writes down what runs of the kind `effect` say they do.
//!
//! `effect-sink <log>` listens on a port of its choice, prints it, and answers every line of JSON with `ok` or `fenced`.
//! A line with a lower fence than another had before it for one of the same keys (or for the same job) is refused, yet
//! written down as such. The log is append-only, a line of JSON each, with the time of this process' own clock.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Result, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use serde_json::{Value, json};

struct Sink {
    began: Instant,
    book: Mutex<Book>,
}

struct Book {
    log: File,
    /// The highest fence seen, by key and by job.
    highest: HashMap<String, i64>,
}

fn main() -> Result<()> {
    let path = std::env::args()
        .nth(1)
        .ok_or_else(|| std::io::Error::other("usage: effect-sink <log>"))?;
    let sink = Sink {
        began: Instant::now(),
        book: Mutex::new(Book {
            log: File::create(path)?,
            highest: HashMap::new(),
        }),
    };
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    println!("listens on {}", listener.local_addr()?.port());
    std::thread::scope(|scope| {
        for link in listener.incoming() {
            let (link, sink) = (link?, &sink);
            // A run that is killed in the middle of a line has said nothing.
            scope.spawn(move || serve(sink, &link).ok());
        }
        Ok(())
    })
}

fn serve(sink: &Sink, mut link: &TcpStream) -> Result<()> {
    link.set_nodelay(true)?;
    for line in BufReader::new(link).lines() {
        let effect: Value = serde_json::from_str(&line?)?;
        let answer = if record(sink, effect)? {
            "ok\n"
        } else {
            "fenced\n"
        };
        link.write_all(answer.as_bytes())?;
    }
    Ok(())
}

/// Writes an effect down, and says whether it counts.
fn record(sink: &Sink, mut effect: Value) -> Result<bool> {
    let fence = effect["fence"].as_i64().unwrap_or_default();
    let mut guarded: Vec<String> = effect["keys"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|key| Some(format!("key {}", key.as_str()?)))
        .collect();
    guarded.push(format!(
        "job {}",
        effect["job"].as_str().unwrap_or_default()
    ));
    let mut book = sink.book.lock().unwrap_or_else(PoisonError::into_inner);
    let accepted = guarded
        .iter()
        .all(|name| book.highest.get(name).is_none_or(|seen| *seen <= fence));
    if accepted {
        for name in guarded {
            book.highest.insert(name, fence);
        }
    }
    effect["accepted"] = json!(accepted);
    // Taken under the lock, so that the log is in the order of its times.
    effect["at_us"] = json!(u64::try_from(sink.began.elapsed().as_micros()).unwrap_or(u64::MAX));
    book.log.write_all(format!("{effect}\n").as_bytes())?;
    Ok(accepted)
}
