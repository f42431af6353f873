//! Jobs as operators and agents see and stop them.

use std::time::Duration;

use futures_util::StreamExt as _;
use longshore_tests::{EventStream, NewWorker, PATIENCE, TestApp, needs_docker, wait_until};
use serde_json::{Value, json};

#[tokio::test]
async fn a_job_that_waits_says_why_and_is_cancelled_at_once() {
    let app = TestApp::build().without_docker().start().await;
    let (id, job) = app.create("nobody's", json!({})).await;
    wait_until("the reason", PATIENCE, || async {
        let job = app.job(&job).await;
        let waiting = &job["waiting"];
        if waiting["reason"] == "no_worker"
            && waiting["text"]
                .as_str()
                .is_some_and(|text| !text.is_empty())
        {
            Ok(())
        } else {
            Err(job.to_string())
        }
    })
    .await;
    let reason = json!({ "reason": "not needed" });
    let path = format!("/jobs/{job}/cancel");
    let cancelled = app.admin().post(&path, &reason).await.expect(200);
    assert_eq!(cancelled["state"], "cancelled");
    let entry = app.entry(&id).await;
    assert_eq!(entry["status"], "failed");
    let told = entry["last_sample_error"].as_str().unwrap();
    assert!(
        told.contains("cancelled by admin") && told.contains("not needed"),
        "{told}"
    );
    let names = app.event_names(&id).await;
    assert_eq!(
        names,
        ["WORKSPACE_PROVISIONING", "WORKSPACE_PROVISION_FAILED"]
    );
    let again = app.admin().post(&path, &reason).await.expect(409);
    assert_eq!(again["error"], "job already finished");
}

#[tokio::test]
async fn a_cancelled_provision_takes_its_container_away_again() {
    needs_docker!();
    // Long enough for the wish to reach the worker while the container is there and not yet started.
    let held = NewWorker::default().failpoint("docker.after_create", "sleep:4000");
    let app = TestApp::build().workers([held]).start().await;
    let (id, job) = app.create("regretted", json!({})).await;
    wait_until("the container", PATIENCE, || async {
        let containers = app.engine().containers_of(&id).await;
        if containers.len() == 1 {
            Ok(())
        } else {
            Err(app.job(&job).await.to_string())
        }
    })
    .await;
    let path = format!("/jobs/{job}/cancel");
    let asked = app.admin().post(&path, &json!({})).await.expect(202);
    assert_eq!(asked["state"], "running");
    app.until_job(&job, "cancelled", PATIENCE).await;
    let entry = app.until_status(&id, "failed", PATIENCE).await;
    let told = entry["last_sample_error"].as_str().unwrap();
    assert!(told.contains("cancelled by admin"), "{told}");
    assert!(app.engine().containers_of(&id).await.is_empty());
}

#[tokio::test]
async fn whatever_cancels_running_jobs_tells_the_workers_through_redis() {
    // A poke that takes long is let go; here each counts, however slow the machine is.
    let app = TestApp::build().without_docker().own_redis();
    let app = app.setting("LONGSHORE_PUBLISH_BUDGET_MS", "20000");
    let mut app = app.start().await;
    let gate = app.path("gate");
    let held = NewWorker::default().failpoint("claim.committed", &format!("gate:{gate}"));
    let _worker = app.start_worker(held).await;
    let redis = redis::Client::open(app.redis().url()).unwrap();
    let mut listening = redis.get_async_pubsub().await.unwrap();
    listening.psubscribe("*jobs-cancelled").await.unwrap();
    let mut pokes = listening.into_on_message();
    let mut poked = async |by: &str| {
        let poke = tokio::time::timeout(PATIENCE, pokes.next()).await;
        assert!(matches!(poke, Ok(Some(_))), "no poke after {by}");
    };
    let (id, job) = app.create("regretted", json!({})).await;
    app.until_job(&job, "running", PATIENCE).await;

    let path = format!("/jobs/{job}/cancel");
    app.admin().post(&path, &json!({})).await.expect(202);
    poked("a cancel").await;

    let path = format!("/workspaces/{id}?confirm=true");
    app.admin().delete(&path).await.expect(200);
    poked("a delete").await;
    std::fs::write(&gate, "").unwrap();

    let count = json!({ "action": "cancel", "filter": { "kind": "stop" }, "dry_run": true });
    let counted = app.admin().post("/jobs/bulk", &count).await.expect(200);
    let apply = json!({ "action": "cancel", "filter_token": counted["filter_token"] });
    let started = app.admin().post("/jobs/bulk", &apply).await.expect(202);
    poked("a bulk cancel").await;
    let bulk = started["job_id"].as_str().unwrap();
    app.until_job(bulk, "succeeded", PATIENCE).await;
}

#[tokio::test]
async fn a_job_that_is_no_longer_kept_is_gone() {
    let mut app = TestApp::build().without_docker().start().await;
    let (_, job) = app.create("long ago", json!({})).await;
    let path = format!("/jobs/{job}/cancel");
    app.admin().post(&path, &json!({})).await.expect(200);
    app.advance(Duration::from_secs(31 * 86_400)).await;
    let path = format!("/jobs/{job}");
    app.admin().get(&path).await.expect(200);
    let _worker = app.start_worker(NewWorker::default()).await;
    wait_until("retention to drop it", PATIENCE, || async {
        let answer = app.admin().get(&path).await;
        if answer.status == 410 {
            Ok(())
        } else {
            Err(answer.text())
        }
    })
    .await;
    let told = app.command(&["jobs", "get", &job]);
    assert_eq!(told.status.code(), Some(3), "{told:?}");
    let text = String::from_utf8_lossy(&told.stderr);
    assert!(
        text.contains("job pruned: ") && text.contains("LONGSHORE_KEEP_CANCELLED_DAYS"),
        "{text}"
    );
}

#[tokio::test]
async fn the_stream_of_a_job_tells_its_steps_and_ends_with_it() {
    needs_docker!();
    let app = TestApp::start().await;
    let (_, job) = app.create("watched", json!({})).await;
    let path = format!("/jobs/{job}/events");
    let stream = EventStream::open(&app.admin(), &path, None).await;
    let events = stream.to_the_end(PATIENCE).await;
    let states: Vec<Value> = events
        .iter()
        .filter(|event| event.event == "state")
        .map(|event| serde_json::from_str(&event.data).unwrap())
        .collect();
    assert_eq!(states.last().unwrap()["state"], "succeeded", "{events:#?}");
    let revisions: Vec<i64> = events
        .iter()
        .map(|event| event.id.parse().unwrap())
        .collect();
    assert!(revisions.is_sorted(), "{revisions:?}");
    // Whoever comes late is told the end all the same.
    let last = events.last().unwrap().id.clone();
    let again = EventStream::open(&app.admin(), &path, Some(&last)).await;
    let again = again.to_the_end(PATIENCE).await;
    assert_eq!(again.last().unwrap().event, "state", "{again:#?}");
}

#[tokio::test]
async fn lists_are_filtered_and_come_in_pages() {
    let app = TestApp::build()
        .without_docker()
        .workers([NewWorker::default()])
        .start()
        .await;
    let mut created = Vec::new();
    for number in 0..5 {
        created.push(app.create(&format!("w{number}"), json!({})).await);
    }
    for (_, job) in &created {
        app.until_job(job, "dead", PATIENCE).await;
    }
    let mut seen = Vec::new();
    let mut path = "/jobs?limit=2&state=dead&kind=provision".to_owned();
    loop {
        let page = app.admin().get(&path).await.expect(200);
        let items = page["items"].as_array().unwrap();
        assert!(items.len() <= 2);
        seen.extend(
            items
                .iter()
                .map(|job| job["id"].as_str().unwrap().to_owned()),
        );
        let Some(cursor) = page["next_cursor"].as_str() else {
            break;
        };
        path = format!("/jobs?limit=2&state=dead&kind=provision&cursor={cursor}");
    }
    let newest_first: Vec<String> = created.iter().rev().map(|(_, job)| job.clone()).collect();
    assert_eq!(seen, newest_first);
    let (id, job) = &created[2];
    let page = app.admin().get(&format!("/jobs?workspace_id={id}")).await;
    let page = page.expect(200);
    assert_eq!(page["items"].as_array().unwrap().len(), 1);
    assert_eq!(page["items"][0]["id"], job.as_str());
    for nonsense in ["/jobs?colour=red", "/jobs?state=lazy", "/jobs?limit=0"] {
        app.admin().get(nonsense).await.expect(400);
    }
}

#[tokio::test]
async fn an_agent_sees_its_own_jobs_and_no_others() {
    needs_docker!();
    let app = TestApp::start().await;
    let (first, first_job) = app.create("first", json!({})).await;
    let (second, second_job) = app.create("second", json!({})).await;
    for id in [&first, &second] {
        app.until_up(id, PATIENCE).await;
    }
    let agent = app.agent(&first).await;
    let own = agent.get(&format!("/jobs/{first_job}")).await.expect(200);
    assert_eq!(own["workspace_id"], first.as_str());
    agent.get(&format!("/jobs/{second_job}")).await.expect(404);
    let own = agent
        .get(&format!("/workspaces/{first}/jobs"))
        .await
        .expect(200);
    assert_eq!(own["items"].as_array().unwrap().len(), 1);
    for path in ["/jobs".to_owned(), format!("/workspaces/{second}/jobs")] {
        agent.get(&path).await.expect(401);
    }
    let org = app.write_org_token_directly().await;
    org.get(&format!("/jobs/{second_job}")).await.expect(200);
    app.nobody()
        .get(&format!("/jobs/{first_job}"))
        .await
        .expect(401);
}
