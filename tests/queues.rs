//! Operators close queues, hold parts of the fleet and send workers to rest, through processes that come and go.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use longshore_tests::{Answer, Caller, NewWorker, PATIENCE, TestApp, needs_docker, wait_until};
use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::{Value, json};

/// How soon work goes on after it was let go (`spec: jobs` §8).
const SOON: Duration = Duration::from_secs(1);

/// Where runs wait until the test opens it.
struct Gate {
    _place: tempfile::TempDir,
    path: PathBuf,
}

impl Gate {
    fn closed() -> Self {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("open");
        Self {
            _place: place,
            path,
        }
    }

    /// A worker whose provisions begin and then wait here.
    fn worker(&self) -> NewWorker {
        NewWorker::default()
            .failpoint(
                "provision.entered",
                &format!("gate:{}", self.path.display()),
            )
            .setting("PROVISION_CONCURRENCY_DOCKER", "10")
    }

    fn open(&self) {
        std::fs::write(&self.path, "").unwrap();
    }
}

/// A control plane whose provisions begin, wait at the gate, and then find no engine.
async fn without_engine(workers: impl IntoIterator<Item = NewWorker>) -> TestApp {
    TestApp::build()
        .without_docker()
        .workers(workers)
        .start()
        .await
}

async fn operate(caller: &Caller, path: &str, reason: &str) -> Value {
    let why = json!({ "reason": reason });
    caller.post(path, &why).await.expect(200)
}

/// Why a job waits, once it says one of these reasons.
async fn until_waiting(app: &TestApp, job: &str, reason: &str) -> String {
    wait_until(&format!("{job} to wait: {reason}"), PATIENCE, || async {
        let job = app.job(job).await;
        if job["waiting"]["reason"] == reason {
            Ok(job["waiting"]["text"].as_str().unwrap().to_owned())
        } else {
            Err(job.to_string())
        }
    })
    .await
}

/// The recorded events of a name, newest first.
async fn events(app: &TestApp, name: &str) -> Vec<Value> {
    let events = app.admin().get("/events").await.expect(200);
    let events = events.as_array().unwrap().iter();
    events
        .filter(|event| event["event_type"] == name)
        .map(|event| event["payload"].clone())
        .collect()
}

#[tokio::test]
async fn a_pause_outlives_every_process_and_any_of_them_ends_it() {
    let gate = Gate::closed();
    let mut app = without_engine([gate.worker()]).await;
    let paused = operate(&app.admin(), "/queues/provision/pause", "engine upgrade").await;
    assert_eq!(paused["mode"], "pause");
    let (id, job) = app.create("patient", json!({})).await;

    let assert_waits = async |app: &TestApp| {
        let text = until_waiting(app, &job, "paused").await;
        assert!(
            text.starts_with("waiting: queue provision is paused since ")
                && text.ends_with(" by admin: engine upgrade"),
            "{text}"
        );
        let shown = app.admin().get(&format!("/workspaces/{id}")).await;
        assert_eq!(shown.expect(200)["waiting"], text);
        assert_eq!(app.entry(&id).await["waiting"], text);
    };
    assert_waits(&app).await;

    app.api.kill();
    app.workers[0].kill();
    app.start_api_again().await;
    app.workers[0] = app.start_worker(gate.worker()).await;
    assert_waits(&app).await;
    let queue = app.admin().get("/queues/provision").await.expect(200);
    assert_eq!(queue["mode_since"], paused["mode_since"]);
    // Two looks of the worker at its queues: time enough for what should not start.
    beats(&app).await;
    assert_eq!(app.job(&job).await["started_at"], Value::Null);

    let (_other, elsewhere) = app.start_another_api().await;
    operate(&elsewhere, "/queues/provision/resume", "done").await;
    let resumed = Instant::now();
    let running = app.until_job(&job, "running", PATIENCE).await;
    assert!(resumed.elapsed() < SOON, "{:?}", resumed.elapsed());
    assert_eq!(running["attempt"], 0);
    let shown = app.admin().get(&format!("/workspaces/{id}")).await;
    assert_eq!(shown.expect(200)["waiting"], Value::Null);
    assert_eq!(events(&app, "QUEUE_PAUSED").await.len(), 1);
    assert_eq!(events(&app, "QUEUE_RESUMED").await.len(), 1);
    gate.open();
    app.until_job(&job, "dead", PATIENCE).await;
}

#[tokio::test]
async fn once_a_pause_is_answered_nothing_of_the_queue_starts() {
    let app = TestApp::build()
        .without_docker()
        .workers([NewWorker::default(), NewWorker::default()])
        .setting("PROVISION_CONCURRENCY_DOCKER", "2")
        .start()
        .await;
    let mut jobs = Vec::new();
    for number in 0..40 {
        jobs.push(app.create(&format!("w{number}"), json!({})).await.1);
        if number == 20 {
            operate(&app.admin(), "/queues/provision/pause", "look").await;
        }
    }
    let started = started(&app).await;
    assert!(started > 0, "some had begun before");
    beats(&app).await;
    assert_eq!(self::started(&app).await, started);
    operate(&app.admin(), "/queues/provision/resume", "seen").await;
    for job in &jobs {
        app.until_job(job, "dead", PATIENCE).await;
    }
}

/// A claim is taken for the start. What takes longer from one to the other than a pause waits asks again.
#[tokio::test]
async fn what_is_claimed_when_a_pause_comes_starts_before_its_answer_or_not_at_all() {
    for delay in ["sleep:500", "sleep:1500"] {
        let slow = NewWorker::default().failpoint("claim.committed", delay);
        let app = without_engine([slow]).await;
        let (_, job) = app.create("w", json!({})).await;
        app.until_job(&job, "running", PATIENCE).await;
        operate(&app.admin(), "/queues/provision/pause", "look").await;
        let begun = || {
            let lines = app.workers[0].log_lines_saying("provision entered");
            lines.len()
        };
        let before = begun();
        beats(&app).await;
        assert_eq!(
            begun(),
            before,
            "{delay}: something started after the answer"
        );
        if before == 0 {
            until_waiting(&app, &job, "paused").await;
        }
        operate(&app.admin(), "/queues/provision/resume", "seen").await;
        let job = app.until_job(&job, "dead", PATIENCE).await;
        assert_eq!(job["crashes"], 0);
        assert_eq!(begun(), 1);
    }
}

/// Waits until the newest worker has beaten twice, and so has looked at everything once since now.
async fn beats(app: &TestApp) {
    let newest = async || -> (String, i64) {
        sqlx::query_as("SELECT name, beat FROM workers ORDER BY started_at DESC LIMIT 1")
            .fetch_one(app.pool())
            .await
            .unwrap()
    };
    let before = newest().await;
    wait_until("two beats", PATIENCE, || async {
        let now = newest().await;
        if now.0 == before.0 && now.1 >= before.1 + 2 {
            Ok(())
        } else {
            Err(format!("{now:?}"))
        }
    })
    .await;
}

async fn started(app: &TestApp) -> usize {
    let page = app.admin().get("/jobs?kind=provision&limit=500").await;
    let page = page.expect(200);
    let jobs = page["items"].as_array().unwrap().iter();
    jobs.filter(|job| !job["started_at"].is_null()).count()
}

#[tokio::test]
async fn a_drain_answers_when_the_last_has_ended_and_costs_nobody_an_attempt() {
    needs_docker!();
    let gate = Gate::closed();
    let app = TestApp::build().workers([gate.worker()]).start().await;
    let mut created = Vec::new();
    for number in 0..3 {
        created.push(app.create(&format!("w{number}"), json!({})).await);
    }
    for (_, job) in &created {
        app.until_job(job, "running", PATIENCE).await;
    }
    let path = "/queues/provision/drain";
    let still = app
        .admin()
        .post(&format!("{path}?wait=0"), &json!({}))
        .await;
    assert_eq!(still.expect(202), json!({ "drained": false, "running": 3 }));
    let drain = Answer::of(
        app.admin()
            .request(Method::POST, &format!("{path}?wait=60"))
            .json(&json!({})),
    );
    let drain = tokio::spawn(drain);
    let (late, late_job) = app.create("late", json!({})).await;
    until_waiting(&app, &late_job, "drained").await;
    assert!(!drain.is_finished(), "three are under way");
    gate.open();
    let answer = drain.await.unwrap();
    assert_eq!(answer.expect(200), json!({ "drained": true }));
    for (_, job) in &created {
        let job = app.job(job).await;
        assert_eq!(job["state"], "succeeded", "it was waited for: {job}");
        assert_eq!((&job["attempt"], &job["crashes"]), (&json!(0), &json!(0)));
    }
    assert_eq!(app.job(&late_job).await["started_at"], Value::Null);
    operate(&app.admin(), "/queues/provision/resume", "done").await;
    for (id, _) in created.iter().chain([&(late, late_job)]) {
        app.until_up(id, PATIENCE).await;
    }
}

#[tokio::test]
async fn a_rejecting_queue_refuses_new_requests_and_keeps_the_old() {
    let gate = Gate::closed();
    let mut app = without_engine([]).await;
    let (_, job) = app.create("early", json!({})).await;
    operate(&app.admin(), "/queues/provision/reject", "engine upgrade").await;
    let body = json!({ "name": "refused" });
    let answer = app.admin().request(Method::POST, "/workspaces").json(&body);
    let answer = answer.send().await.unwrap();
    assert_eq!(answer.status(), 503);
    let seconds = answer.headers()["retry-after"].to_str().unwrap();
    assert!(seconds.parse::<u64>().unwrap() > 0, "{seconds}");
    let problem: Value = answer.json().await.unwrap();
    let error = problem["error"].as_str().unwrap();
    assert!(
        error.starts_with("queue provision is closed since")
            && error.ends_with("by admin: engine upgrade"),
        "{error}"
    );
    let list = app.admin().get("/workspaces").await.expect(200);
    assert_eq!(list.as_array().unwrap().len(), 1, "{list}");

    let worker = app.start_worker(gate.worker()).await;
    app.workers.push(worker);
    until_waiting(&app, &job, "paused").await;
    operate(&app.admin(), "/queues/provision/resume", "done").await;
    app.until_job(&job, "running", PATIENCE).await;
    gate.open();
    app.until_job(&job, "dead", PATIENCE).await;
}

#[tokio::test]
async fn a_hold_keeps_its_own_waiting_and_nobody_else() {
    let gate = Gate::closed();
    let app = without_engine([gate.worker()]).await;
    let (root, root_job) = app.create("root", json!({})).await;
    app.until_job(&root_job, "running", PATIENCE).await;
    let hold = async |scope: &str, value: &str| {
        let hold = json!({ "scope": scope, "value": value, "mode": "pause", "reason": "bills" });
        let hold = app.admin().post("/holds", &hold).await.expect(201);
        hold["id"].as_str().unwrap().to_owned()
    };
    let tenant = hold("tenant", &root).await;
    let (child, held) = app.create("child", json!({ "parent_id": root })).await;
    let (_, free) = app.create("free", json!({})).await;
    let text = until_waiting(&app, &held, "held").await;
    assert!(
        text.starts_with(&format!("waiting: organisation {root} is held since "))
            && text.ends_with(" by admin: bills"),
        "{text}"
    );
    assert_eq!(app.entry(&child).await["waiting"], text);
    app.until_job(&free, "running", PATIENCE).await;
    assert_eq!(app.job(&root_job).await["state"], "running", "it goes on");

    // Two holds: only when both are gone it starts.
    let workspace = hold("workspace", &child.to_uppercase()).await;
    let path = format!("/holds/{tenant}");
    app.admin().delete(&path).await.expect(200);
    let text = until_waiting(&app, &held, "held").await;
    assert!(
        text.contains(&format!("workspace {child} is held")),
        "{text}"
    );
    let path = format!("/holds/{workspace}");
    app.admin().delete(&path).await.expect(200);
    let lifted = Instant::now();
    app.until_job(&held, "running", PATIENCE).await;
    assert!(lifted.elapsed() < SOON, "{:?}", lifted.elapsed());
    gate.open();
    for job in [&root_job, &held, &free] {
        app.until_job(job, "dead", PATIENCE).await;
    }
}

#[tokio::test]
async fn a_hold_lifts_itself_at_its_end_and_that_is_recorded() {
    let gate = Gate::closed();
    let app = without_engine([gate.worker()]).await;
    let hour = Duration::from_secs(3600);
    let now: String = sqlx::query_scalar(
        "SELECT to_char((longshore_now() + interval '1 hour') AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')",
    )
    .fetch_one(app.pool())
    .await
    .unwrap();
    let hold = json!({ "scope": "all", "mode": "pause", "until": now });
    let hold = app.admin().post("/holds", &hold).await.expect(201);
    let (_, job) = app.create("patient", json!({})).await;
    until_waiting(&app, &job, "held").await;
    assert_eq!(app.job(&job).await["waiting"]["until"], hold["until"]);

    app.advance(hour).await;
    app.until_job(&job, "running", PATIENCE).await;
    let lifted = wait_until("the event", PATIENCE, || async {
        let lifted = events(&app, "HOLD_LIFTED").await;
        lifted.first().cloned().ok_or_else(|| "none".to_owned())
    })
    .await;
    assert_eq!(lifted["hold_id"], hold["id"]);
    assert_eq!(lifted["by"], "its own end");
    let left = app.admin().get("/holds").await.expect(200);
    assert_eq!(left["items"], json!([]));
    gate.open();
    app.until_job(&job, "dead", PATIENCE).await;
}

#[tokio::test]
async fn a_drained_worker_ends_what_it_runs_and_takes_no_more() {
    let gate = Gate::closed();
    let mut app = without_engine([gate.worker()]).await;
    let (_, first) = app.create("first", json!({})).await;
    let running = app.until_job(&first, "running", PATIENCE).await;
    let drained = running["worker"].as_str().unwrap().to_owned();
    let path = format!("/workers/{drained}");
    let answer = operate(&app.admin(), &format!("{path}/drain"), "new kernel").await;
    assert_eq!(answer["state"], "draining");
    assert_eq!(answer["running"][0]["job_id"], first);
    let slots = &answer["slots"];
    assert_eq!(
        slots["total"].as_i64().unwrap() - slots["free"].as_i64().unwrap(),
        1
    );
    // It learns of it with its next beat.
    beats(&app).await;
    let (_, second) = app.create("second", json!({})).await;
    beats(&app).await;
    assert_eq!(app.job(&second).await["started_at"], Value::Null);

    let worker = app.start_worker(gate.worker()).await;
    app.workers.push(worker);
    let taken = app.until_job(&second, "running", PATIENCE).await;
    assert_ne!(taken["worker"], drained, "the other one has it");
    assert_eq!(app.job(&first).await["state"], "running");

    let answer = operate(&app.admin(), &format!("{path}/undrain"), "done").await;
    assert_eq!(answer["state"], "up");
    app.workers[1].end(Signal::SIGKILL, PATIENCE);
    let (_, third) = app.create("third", json!({})).await;
    let taken = app.until_job(&third, "running", PATIENCE).await;
    assert_eq!(taken["worker"], drained, "it takes jobs again");
    gate.open();
    for job in [&first, &second, &third] {
        app.until_job(job, "dead", 2 * PATIENCE).await;
    }
}
