//! Counters of the HTTP surface, in Prometheus' text form.
//!
//! They are kept here and not in the recorder of the `metrics` crate, because one of them counts seconds, and counters
//! there are whole numbers.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Labels: method, route pattern, status.
type Labels = (&'static str, &'static str, u16);

/// The counts of this process.
#[derive(Default)]
pub(crate) struct HttpMetrics {
    requests: Mutex<BTreeMap<Labels, (u64, Duration)>>,
    sockets: AtomicI64,
}

impl HttpMetrics {
    /// Counts a request that was answered.
    pub(crate) fn record(
        &self,
        method: &poem::http::Method,
        path: &'static str,
        status: u16,
        took: Duration,
    ) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let (count, seconds) = requests
            .entry((method_label(method), path, status))
            .or_default();
        *count += 1;
        *seconds += took;
    }

    /// Counts an open WebSocket for as long as the answer lives.
    pub(crate) fn socket(self: &std::sync::Arc<Self>) -> OpenSocket {
        self.sockets.fetch_add(1, Ordering::Relaxed);
        OpenSocket(self.clone())
    }

    /// All families, to be put behind those of the recorder.
    pub(crate) fn render(&self) -> String {
        let mut counts = String::from("# TYPE longshore_http_requests_total counter\n");
        let mut durations =
            String::from("# TYPE longshore_http_request_duration_seconds_total counter\n");
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        for ((method, path, status), (count, took)) in requests.iter() {
            let labels = format!("{{method=\"{method}\",path=\"{path}\",status=\"{status}\"}}");
            line(&mut counts, "longshore_http_requests_total", &labels, count);
            line(
                &mut durations,
                "longshore_http_request_duration_seconds_total",
                &labels,
                took.as_secs_f64(),
            );
        }
        drop(requests);
        let mut text = counts + &durations;
        let mut gauge = |name, value: i64| {
            text.push_str("# TYPE ");
            text.push_str(name);
            text.push_str(" gauge\n");
            line(&mut text, name, "", value);
        };
        gauge(
            "longshore_websocket_connections_active",
            self.sockets.load(Ordering::Relaxed),
        );
        if let Some(bytes) = resident_bytes() {
            gauge("longshore_process_resident_memory_bytes", bytes);
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let tasks = runtime.metrics().num_alive_tasks();
            gauge(
                "longshore_process_tasks",
                i64::try_from(tasks).unwrap_or(i64::MAX),
            );
        }
        text
    }
}

/// Methods are a closed set, so that nobody can make labels up.
fn method_label(method: &poem::http::Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        _ => "other",
    }
}

fn line(text: &mut String, name: &str, labels: &str, value: impl std::fmt::Display) {
    // Writing to a string cannot fail.
    writeln!(text, "{name}{labels} {value}").unwrap_or_default();
}

fn resident_bytes() -> Option<i64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?
        .trim()
        .strip_suffix("kB")?
        .trim()
        .parse::<i64>()
        .ok()?;
    Some(kib * 1024)
}

/// One open WebSocket.
pub(crate) struct OpenSocket(std::sync::Arc<HttpMetrics>);

impl Drop for OpenSocket {
    fn drop(&mut self) {
        self.0.sockets.fetch_sub(1, Ordering::Relaxed);
    }
}
