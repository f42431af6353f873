//! Images from a real registry: pulled by tag and by digest, pinned, rolled out ring by ring, and taken back.

use std::process::Output;
use std::time::Duration;

use longshore_tests::{
    Line, NewImage, NewWorker, OwnRegistry, PATIENCE, TestApp, needs_docker, wait_until,
};
use serde_json::{Value, json};

use crate::reconcilers::{self, until_passed};
use crate::sweeps::run;

/// For twenty workspaces on a busy machine.
const LONG: Duration = Duration::from_secs(120);
const NAME: &str = "own/hermes";
const NOT_RUNNABLE: NewImage<'_> = NewImage {
    changes: &["ENTRYPOINT [\"/not-there\"]"],
    padding_bytes: 0,
};
/// Enough to look at while it is pulled.
const BIG: NewImage<'_> = NewImage {
    changes: &[],
    padding_bytes: 2 << 20,
};

async fn app_with(image: &str, workers: impl IntoIterator<Item = NewWorker>) -> TestApp {
    TestApp::build()
        .setting("LONGSHORE_RUNTIME_IMAGES", &format!("hermes={image}"))
        .workers(workers)
        .start()
        .await
}

async fn app_for(image: &str) -> TestApp {
    app_with(image, [NewWorker::default()]).await
}

async fn create(app: &TestApp, name: &str) -> (String, String) {
    app.create(name, json!({ "runtime": "hermes" })).await
}

async fn create_many(app: &TestApp, count: usize) -> Vec<String> {
    let mut ids = Vec::new();
    for n in 0..count {
        ids.push(create(app, &format!("one-of-many-{n}")).await.0);
    }
    all_up(app, &ids).await;
    ids
}

async fn all_up(app: &TestApp, ids: &[String]) {
    for id in ids {
        app.until_up(id, LONG).await;
    }
}

/// What is said of hermes in the list of images.
async fn image(app: &TestApp) -> Value {
    let all = app.admin().get("/images").await.expect(200);
    let mut all = all["items"].as_array().unwrap().iter();
    let found = all.find(|image| image["runtime"] == "hermes");
    found.unwrap().clone()
}

async fn on_digest(app: &TestApp, digest: &str) -> Vec<String> {
    let path = format!("/images/hermes/workspaces?digest={digest}");
    let users = app.admin().get(&path).await.expect(200);
    let users = users["items"].as_array().unwrap().iter();
    users
        .map(|user| user["id"].as_str().unwrap().to_owned())
        .collect()
}

async fn pin(app: &TestApp, digest: &str) -> Value {
    let body = json!({ "digest": digest, "note": "known to work" });
    let pinned = app.admin().put("/images/hermes/pin", &body).await;
    pinned.expect(200)
}

fn sorted(mut ids: Vec<String>) -> Vec<String> {
    ids.sort();
    ids
}

fn told(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

async fn events(app: &TestApp, prefix: &str) -> Vec<(String, Value)> {
    let events = app.admin().get("/events").await.expect(200);
    let events = events.as_array().unwrap().iter().rev();
    let named = events.filter_map(|event| {
        let name = event["event_type"].as_str()?;
        let ours = name.starts_with(prefix);
        ours.then(|| (name.to_owned(), event["payload"].clone()))
    });
    named.collect()
}

/// The container of each, if there is one.
async fn containers(app: &TestApp, ids: &[String]) -> Vec<Option<String>> {
    let mut found = Vec::new();
    for id in ids {
        found.push(app.home_in_row(id).await);
    }
    found
}

#[tokio::test]
async fn a_start_pulls_by_tag_writes_the_digest_and_by_digest_once_there_is_a_pin() {
    needs_docker!();
    let registry = OwnRegistry::start().await;
    let app = app_for(&format!("{}/{NAME}:latest", registry.host())).await;
    let first = registry
        .push(&app, NAME, "latest", NewImage::default())
        .await;
    let (one, _) = create(&app, "one").await;
    app.until_up(&one, PATIENCE).await;
    app.assert_whole(&one).await;
    assert_eq!(on_digest(&app, &first).await, std::slice::from_ref(&one));

    let pinned = pin(&app, &first).await;
    assert_eq!(pinned["pin"]["digest"], first.as_str(), "{pinned}");
    assert_eq!(pinned["pin"]["note"], "known to work", "{pinned}");
    // The tag moves; who is pinned does not follow it.
    let second = registry
        .push(&app, NAME, "latest", NewImage::default())
        .await;
    assert_ne!(first, second);
    let (two, _) = create(&app, "two").await;
    app.until_up(&two, PATIENCE).await;
    assert_eq!(
        on_digest(&app, &first).await,
        sorted(vec![one.clone(), two.clone()])
    );
    let output = app.command(&["images", "unpin", "hermes"]);
    assert!(output.status.success(), "{output:?}");
    let (three, _) = create(&app, "three").await;
    app.until_up(&three, PATIENCE).await;
    assert_eq!(on_digest(&app, &second).await, [three]);

    let image = image(&app).await;
    assert_eq!(
        (&image["pin"], &image["previous_pin"]),
        (&Value::Null, &json!(first))
    );
    let counts = json!([{ "digest": first, "count": 2 }, { "digest": second, "count": 1 }]);
    assert_eq!(image["workspaces"], counts);
    let listed = told(&app.command(&["images", "list"]));
    assert!(listed.contains("2 on sha256:"), "{listed}");
    let names: Vec<_> = events(&app, "IMAGE_").await;
    let names: Vec<_> = names.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["IMAGE_PINNED", "IMAGE_UNPINNED"]);
}

#[tokio::test]
async fn a_digest_that_the_registry_does_not_know_is_not_pinned_and_an_absent_tag_fails_with_a_reason()
 {
    needs_docker!();
    let registry = OwnRegistry::start().await;
    let app = app_for(&format!("{}/{NAME}:latest", registry.host())).await;
    let unknown = format!("sha256:{}", "ab".repeat(32));
    let output = app.command(&["images", "pin", "hermes", &unknown]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let text = told(&output);
    assert!(
        text.contains("the registry does not know the digest"),
        "{text}"
    );
    assert_eq!(image(&app).await["pin"], Value::Null);
    let body = json!({ "digest": "sha256:short" });
    let refused = app.admin().put("/images/hermes/pin", &body).await;
    assert_eq!(refused.expect(400)["error"], "invalid digest");
    let body = json!({ "digest": unknown });
    let refused = app.admin().put("/images/nobodys/pin", &body).await;
    assert_eq!(refused.expect(404)["error"], "no such runtime");

    let (id, job) = create(&app, "absent").await;
    let job = app.until_job(&job, "dead", PATIENCE).await;
    assert_eq!(job["last_error"], "workspace start failed");
    app.until_status(&id, "failed", PATIENCE).await;

    // A rollout of it ends before it touches anything.
    let path = "/images/hermes/rollouts";
    let body = json!({ "digest": unknown, "rings": [{ "percent": 100 }], "max_failures": 0, "soak_seconds": 0 });
    let rollout = app.admin().post(path, &body).await.expect(202);
    let job = rollout["job_id"].as_str().unwrap();
    let job = app.until_job(job, "dead", PATIENCE).await;
    assert_eq!(job["last_error"], "the registry does not know the digest");
    assert_eq!(image(&app).await["rollout"]["state"], "aborted");
}

#[tokio::test]
async fn a_registry_that_wants_a_login_lets_nobody_pull_or_pin_and_the_log_says_so() {
    needs_docker!();
    let registry = OwnRegistry::locked().await;
    let app = app_for(&format!("{}/{NAME}:latest", registry.host())).await;
    let body = json!({ "digest": format!("sha256:{}", "ab".repeat(32)) });
    let refused = app.admin().put("/images/hermes/pin", &body).await;
    let problem = refused.expect(503);
    assert_eq!(
        problem["error"],
        "the digest could not be fetched from its registry"
    );
    assert!(app.api.log().contains("no basic auth credentials"));
    let (id, job) = create(&app, "let-me-in").await;
    app.until_job(&job, "dead", PATIENCE).await;
    app.until_status(&id, "failed", PATIENCE).await;
    assert!(app.workers[0].log().contains("no basic auth credentials"));
}

#[tokio::test]
async fn a_slow_pull_is_the_progress_of_its_job_and_one_that_is_cut_goes_on() {
    needs_docker!();
    let registry = OwnRegistry::start().await;
    let line = Line::to(&registry).await;
    let app = app_for(&format!("{}/{NAME}:1", line.host())).await;
    registry.push(&app, NAME, "1", BIG).await;

    line.slow_down(200_000);
    let (id, job) = create(&app, "patient").await;
    wait_until("the pull to be seen", PATIENCE, || async {
        let progress = app.job(&job).await["progress"].clone();
        let percent = progress["percent"].as_u64().unwrap_or_default();
        if progress["step"] == "pull" && (1..100).contains(&percent) {
            assert!(progress["message"].as_str().unwrap().ends_with("layers"));
            Ok(())
        } else {
            Err(progress.to_string())
        }
    })
    .await;
    line.cut_after(0);
    line.broke_off().await;
    line.mend();
    app.until_job(&job, "succeeded", LONG).await;
    app.until_up(&id, PATIENCE).await;
    app.assert_whole(&id).await;
}

#[tokio::test]
async fn a_broken_image_stops_at_the_limit_of_its_ring_and_one_command_takes_it_back() {
    needs_docker!();
    let registry = OwnRegistry::start().await;
    let app = app_for(&format!("{}/{NAME}:1", registry.host())).await;
    let good = registry.push(&app, NAME, "1", NewImage::default()).await;
    let broken = registry.push(&app, NAME, "2", NOT_RUNNABLE).await;
    let ids = create_many(&app, 20).await;
    pin(&app, &good).await;
    let before = containers(&app, &ids).await;

    let output = app.command(&[
        "images",
        "rollout",
        "hermes",
        &broken,
        "--rings",
        "50,100",
        "--max-failures",
        "2",
        "--soak",
        "0s",
        "--wait",
    ]);
    let text = told(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    let reason = "3 of ring 1 (50 %) failed, and at most 2 may; nothing else is touched";
    assert!(text.contains(reason), "{text}");
    let found = image(&app).await;
    let rollout = &found["rollout"];
    assert_eq!(
        (&rollout["state"], &rollout["reason"]),
        (&json!("held"), &json!(reason))
    );
    assert_eq!(
        (&rollout["rings"][0]["failed"], &rollout["rings"][0]["up"]),
        (&json!(3), &json!(0))
    );
    assert_eq!(found["pin"]["digest"], good.as_str());
    // Three failed, and the other seventeen never noticed.
    let mut failed = 0;
    for (id, before) in ids.iter().zip(&before) {
        let entry = app.entry(id).await;
        match entry["status"].as_str() {
            Some("failed") => failed += 1,
            Some("online") => assert_eq!(&app.home_in_row(id).await, before),
            _ => panic!("{entry}"),
        }
    }
    assert_eq!(failed, 3);
    let held = events(&app, "ROLLOUT_HELD").await;
    assert_eq!(held.len(), 1, "{held:?}");
    assert_eq!(
        (&held[0].1["ring"], &held[0].1["digest"]),
        (&json!(1), &json!(broken))
    );
    // Until somebody decides, nobody else may.
    let body = json!({ "digest": good });
    let refused = app.admin().put("/images/hermes/pin", &body).await;
    refused.expect(409);

    let output = app.command(&["images", "rollback", "hermes", "--wait"]);
    assert!(output.status.success(), "{}", told(&output));
    all_up(&app, &ids).await;
    assert_eq!(on_digest(&app, &good).await, sorted(ids));
    let rollout = image(&app).await["rollout"].clone();
    assert_eq!(rollout["state"], "rolled_back", "{rollout}");
    assert_eq!(rollout["rings"][0]["restored"], 3, "{rollout}");
}

#[tokio::test]
async fn a_rollout_survives_its_worker_sets_the_pin_at_its_end_and_can_still_be_taken_back() {
    needs_docker!();
    let registry = OwnRegistry::start().await;
    // It dies with the first of the second ring on their way.
    let dying = NewWorker::default().failpoint("rollout.moved*5", "die");
    let mut app = app_with(&format!("{}/{NAME}:latest", registry.host()), [dying]).await;
    let old = registry
        .push(&app, NAME, "latest", NewImage::default())
        .await;
    let new = registry.push(&app, NAME, "next", NewImage::default()).await;
    let ids = create_many(&app, 4).await;

    let output = app.command(&[
        "images",
        "rollout",
        "hermes",
        &new,
        "--rings",
        "25,100",
        "--max-failures",
        "1",
        "--soak",
        "1s",
        "--json",
    ]);
    let rollout: Value = serde_json::from_slice(&output.stdout).unwrap();
    let job = rollout["job_id"].as_str().unwrap().to_owned();
    let other = json!({ "digest": old, "rings": [{ "percent": 100 }], "max_failures": 0, "soak_seconds": 0 });
    let twice = app.admin().post("/images/hermes/rollouts", &other).await;
    twice.expect(409);
    app.workers[0].died(LONG).await;
    assert_eq!(image(&app).await["pin"], Value::Null);
    let _successor = app.start_worker(NewWorker::default()).await;
    let job = app.until_job(&job, "succeeded", LONG).await;
    assert_eq!(
        (&job["crashes"], &job["result"]["state"]),
        (&json!(1), &json!("done")),
        "{job}"
    );
    assert_eq!(on_digest(&app, &new).await, sorted(ids.clone()));
    let found = image(&app).await;
    assert_eq!(found["pin"]["digest"], new.as_str(), "{found}");
    assert_eq!(found["rollout"]["rings"][0]["up"], 1, "{found}");
    assert_eq!(found["rollout"]["rings"][1]["up"], 3, "{found}");
    for id in &ids {
        app.assert_whole(id).await;
    }

    let output = app.command(&[
        "images", "rollback", "hermes", "--wait", "--reason", "too slow",
    ]);
    assert!(output.status.success(), "{}", told(&output));
    assert_eq!(on_digest(&app, &old).await, sorted(ids));
    let found = image(&app).await;
    assert_eq!(
        (&found["pin"], &found["previous_pin"]),
        (&Value::Null, &json!(new))
    );
    let names: Vec<_> = events(&app, "ROLLOUT_").await;
    let names: Vec<_> = names.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        [
            "ROLLOUT_STARTED",
            "ROLLOUT_DONE",
            "ROLLOUT_ROLLING_BACK",
            "ROLLOUT_ROLLED_BACK"
        ]
    );
}

/// An app that follows the tag `latest` of a registry, where it names the digest; its first pass has remembered that.
async fn following(registry: &OwnRegistry) -> (TestApp, String) {
    let mut app = TestApp::build()
        .setting("IMAGE_AUTO_REFRESH", "true")
        .setting(
            "LONGSHORE_RUNTIME_IMAGES",
            &format!("hermes={}/{NAME}:latest", registry.host()),
        )
        .workers([])
        .start()
        .await;
    let digest = registry
        .push(&app, NAME, "latest", NewImage::default())
        .await;
    let worker = app.start_worker(NewWorker::default()).await;
    app.workers.push(worker);
    until_passed(&app, "image-watch").await;
    (app, digest)
}

async fn move_tag(registry: &OwnRegistry, app: &TestApp) -> String {
    let image = NewImage::default();
    registry.push(app, NAME, "latest", image).await
}

async fn until_on(app: &TestApp, digest: &str, ids: &[String]) {
    let expected = sorted(ids.to_vec());
    wait_until("all to be on the digest", LONG, || async {
        let now = on_digest(app, digest).await;
        if now == expected {
            Ok(())
        } else {
            Err(format!("{now:?}, not {expected:?}"))
        }
    })
    .await;
    all_up(app, ids).await;
}

#[tokio::test]
async fn when_a_tag_moves_what_runs_on_it_is_restarted_and_nothing_else() {
    needs_docker!();
    let registry = OwnRegistry::start().await;
    let (app, old) = following(&registry).await;
    let ids = create_many(&app, 2).await;
    let (asleep, _) = create(&app, "asleep").await;
    app.until_up(&asleep, PATIENCE).await;
    let pause = format!("/workspaces/{asleep}/pause");
    app.admin().post(&pause, &json!({})).await.expect(200);
    // Once more the same: nothing to do.
    assert_eq!(run(&app, "image-watch").await["acted"], 0);

    let new = move_tag(&registry, &app).await;
    let dry = reconcilers::run(&app, "image-watch", json!({ "dry_run": true })).await;
    assert_eq!(dry["would"], json!(sorted(ids.clone())), "{dry}");
    let homes = containers(&app, &ids).await;
    let report = run(&app, "image-watch").await;
    assert_eq!(
        (&report["acted"], &report["seen"]),
        (&json!(2), &json!(2)),
        "{report}"
    );
    until_on(&app, &new, &ids).await;
    for (before, now) in homes.iter().zip(containers(&app, &ids).await) {
        assert_ne!(*before, now);
    }
    assert_eq!(on_digest(&app, &old).await, [asleep]);
    let jobs = app.admin().get("/jobs?kind=restart").await.expect(200);
    let jobs = jobs["items"].as_array().unwrap();
    assert_eq!(jobs.len(), 2, "{jobs:?}");
    for job in jobs {
        assert_eq!(
            (&job["args"]["source"], &job["created_by"]),
            (&json!("image"), &json!("image-watch"))
        );
    }
    assert_eq!(run(&app, "image-watch").await["acted"], 0);

    // Pinned, it does not follow; and what is not pinned any more begins with a first look.
    pin(&app, &new).await;
    let newest = move_tag(&registry, &app).await;
    let report = run(&app, "image-watch").await;
    assert_eq!((&report["acted"], &report["seen"]), (&json!(0), &json!(0)));
    let output = app.command(&["images", "unpin", "hermes"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(run(&app, "image-watch").await["acted"], 0);
    assert_eq!(on_digest(&app, &newest).await, Vec::<String>::new());
    assert_eq!(on_digest(&app, &new).await, sorted(ids));
}

#[tokio::test]
async fn a_tag_that_moves_during_a_rollout_or_below_what_it_took_restarts_nobody_there() {
    needs_docker!();
    let registry = OwnRegistry::start().await;
    let (app, old) = following(&registry).await;
    let ids = create_many(&app, 2).await;
    let image = NewImage::default();
    let chosen = registry.push(&app, NAME, "chosen", image).await;
    let body = json!({
        "digest": chosen, "rings": [{ "percent": 50 }, { "percent": 100 }], "max_failures": 0, "soak_seconds": 3600,
    });
    let path = "/images/hermes/rollouts";
    let rollout = app.admin().post(path, &body).await.expect(202);
    wait_until("the first ring", LONG, || async {
        let taken = on_digest(&app, &chosen).await;
        (taken.len() == 1)
            .then_some(())
            .ok_or_else(|| format!("{taken:?}"))
    })
    .await;
    let taken = on_digest(&app, &chosen).await;
    app.until_up(&taken[0], LONG).await;

    let new = move_tag(&registry, &app).await;
    let report = run(&app, "image-watch").await;
    assert_eq!((&report["acted"], &report["seen"]), (&json!(0), &json!(0)));
    assert_eq!(on_digest(&app, &old).await.len(), 1);
    let id = rollout["id"].as_str().unwrap();
    let abort = format!("/images/hermes/rollouts/{id}/abort");
    app.admin().post(&abort, &json!({})).await.expect(200);
    // What the rollout took stays on what it took; the other one follows its tag again.
    let report = run(&app, "image-watch").await;
    assert_eq!(
        (&report["acted"], &report["seen"]),
        (&json!(1), &json!(1)),
        "{report}"
    );
    let follows: Vec<_> = ids.into_iter().filter(|id| *id != taken[0]).collect();
    until_on(&app, &new, &follows).await;
    assert_eq!(on_digest(&app, &chosen).await, taken);
}

#[tokio::test]
async fn a_tag_below_more_than_a_pass_may_restart_waits_for_an_approval() {
    needs_docker!();
    let registry = OwnRegistry::start().await;
    let (app, old) = following(&registry).await;
    let ids = create_many(&app, 6).await;
    let new = move_tag(&registry, &app).await;
    for _ in 0..2 {
        let report = run(&app, "image-watch").await;
        assert_eq!(
            (&report["acted"], &report["skipped"]),
            (&json!(0), &json!(6))
        );
    }
    assert_eq!(on_digest(&app, &old).await, sorted(ids.clone()));
    let shown = app.admin().get("/reconcilers/image-watch").await.json();
    assert_eq!(shown["blocked"]["wanted"], json!(sorted(ids.clone())));
    let approve = "/reconcilers/image-watch/approve";
    app.admin().post(approve, &json!({})).await.expect(200);
    assert_eq!(run(&app, "image-watch").await["acted"], 6);
    until_on(&app, &new, &ids).await;
}

#[tokio::test]
async fn nobody_watches_tags_unless_asked_to() {
    needs_docker!();
    let app = TestApp::start().await;
    until_passed(&app, "stale-tokens").await;
    let watch = app.admin().get("/reconcilers/image-watch").await;
    watch.expect(404);
}
