//! One trace from a request through its job into the log of the run.

use longshore_base::ids::random_uuid;
use longshore_tests::{Answer, LogLine, NewWorker, PATIENCE, Process, TestApp, wait_until};
use reqwest::Method;
use serde_json::{Value, json};

/// Lines of a process that belong to a trace and are about this.
fn lines(process: &Process, trace_id: &str, message: &str, field: &str, value: &str) -> usize {
    let is_of_trace = |line: &LogLine| {
        let spans = line.0["spans"].as_array();
        spans.is_some_and(|spans| spans.iter().any(|span| span["trace.id"] == trace_id))
    };
    let mut lines = process.log_lines_saying(message);
    lines.retain(|line| is_of_trace(line) && line.field(field) == value);
    lines.len()
}

/// Starts a bulk action over nothing under these `traceparent` headers, and waits for its end; answers the job.
async fn act(app: &TestApp, traceparents: &[&str]) -> Value {
    let count = json!({ "action": "retry", "filter": {}, "dry_run": true });
    let counted = app.admin().post("/jobs/bulk", &count).await.expect(200);
    let apply = json!({ "action": "retry", "filter_token": counted["filter_token"] });
    let mut request = app.admin().request(Method::POST, "/jobs/bulk").json(&apply);
    for traceparent in traceparents {
        request = request.header("traceparent", *traceparent);
    }
    let started = Answer::of(request).await.expect(202);
    let id = started["job_id"].as_str().unwrap();
    app.until_job(id, "succeeded", PATIENCE).await
}

#[tokio::test]
async fn one_request_is_followed_by_its_trace_through_the_api_the_job_and_the_worker() {
    let app = TestApp::build()
        .without_docker()
        .workers([NewWorker::default()])
        .start()
        .await;
    let told = random_uuid().simple().to_string();
    let traceparent = format!("00-{told}-00f067aa0ba902b7-01");
    let other = format!("00-{}-00f067aa0ba902b7-01", random_uuid().simple());
    let malformed = format!("00-{told}-00f067aa0ba902b7");
    let mut seen = Vec::new();
    for (traceparents, is_told) in [
        (vec![traceparent.as_str()], true),
        (vec![], false),
        (vec![malformed.as_str()], false),
        // Nobody can say which of them it is.
        (vec![traceparent.as_str(), other.as_str()], false),
    ] {
        let job = act(&app, &traceparents).await;
        let trace_id = job["trace_id"].as_str().unwrap();
        let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        assert!(
            trace_id.len() == 32 && trace_id.bytes().all(is_hex),
            "{trace_id}"
        );
        assert_eq!(trace_id == told, is_told, "{traceparents:?}: {trace_id}");
        assert!(!other.contains(trace_id), "{trace_id}");
        assert!(!seen.contains(&trace_id.to_owned()), "{trace_id}");
        seen.push(trace_id.to_owned());
        let id = job["id"].as_str().unwrap();
        wait_until("the lines of the trace", PATIENCE, || async {
            let request = lines(&app.api, trace_id, "request", "http.path", "/jobs/bulk");
            let run = lines(&app.workers[0], trace_id, "bulk action done", "job.id", id);
            if (request, run) == (1, 1) {
                Ok(())
            } else {
                Err(format!("{request} of the request, {run} of the run"))
            }
        })
        .await;
    }
}
