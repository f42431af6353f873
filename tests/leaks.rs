//! What is there and nobody wants: suspected, looked at again, removed, or left to an operator.

use std::collections::HashMap;
use std::time::Duration;

use bollard::models::{ContainerCreateBody, VolumeCreateRequest};
use bollard::query_parameters::CreateContainerOptionsBuilder;
use longshore_base::WorkspaceId;
use longshore_base::brand::{LABEL_ENGINE, LABEL_INSTALLATION, LABEL_MANAGED, LABEL_WORKSPACE};
use longshore_tests::{NewWorker, PATIENCE, TestApp, needs_docker, wait_until};
use serde_json::{Value, json};

use crate::sweeps::{disable, run, up};

const SIMULATION: &str = env!("CARGO_BIN_EXE_longshore-cp-sim");
/// Longer than something must have been known before it is removed.
const GRACE: Duration = Duration::from_secs(601);

/// A control plane in which only the sweep under test changes anything, however far its clock is moved.
async fn with_leaks_only() -> TestApp {
    let app = TestApp::start().await;
    for name in ["health", "liveness", "orphans", "stale-tokens"] {
        disable(&app, name).await;
    }
    app
}

async fn engine_id(app: &TestApp) -> String {
    sqlx::query_scalar("SELECT max(engine_id) FROM workers")
        .fetch_one(app.pool())
        .await
        .unwrap()
}

/// All labels of what this installation makes for a workspace.
async fn labels(app: &TestApp, workspace: &str) -> HashMap<String, String> {
    let installation = app.engine().installation().to_string();
    [
        (LABEL_MANAGED, "true".to_owned()),
        (LABEL_INSTALLATION, installation),
        (LABEL_ENGINE, engine_id(app).await),
        (LABEL_WORKSPACE, workspace.to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

async fn make_volume(app: &TestApp, name: &str, labels: HashMap<String, String>) {
    let request = VolumeCreateRequest {
        name: Some(name.to_owned()),
        labels: Some(labels),
        ..VolumeCreateRequest::default()
    };
    app.engine().docker().create_volume(request).await.unwrap();
}

async fn make_container(app: &TestApp, name: &str, labels: HashMap<String, String>) {
    let body = ContainerCreateBody {
        image: Some(app.engine().image().to_owned()),
        labels: Some(labels),
        ..ContainerCreateBody::default()
    };
    let named = CreateContainerOptionsBuilder::default().name(name).build();
    let created = app.engine().docker().create_container(Some(named), body);
    created.await.unwrap();
}

pub(crate) async fn leaks(app: &TestApp) -> Vec<Value> {
    let listed = app.admin().get("/leaks").await.expect(200);
    listed["items"].as_array().unwrap().clone()
}

async fn leak_of(app: &TestApp, resource_id: &str) -> Value {
    let all = leaks(app).await;
    let found = all.iter().find(|leak| leak["resource_id"] == resource_id);
    found
        .unwrap_or_else(|| panic!("{resource_id} is not in {all:?}"))
        .clone()
}

async fn until_leak(app: &TestApp, resource_id: &str, state: &str) -> Value {
    wait_until("the leak to be settled", PATIENCE, || async {
        let leak = leak_of(app, resource_id).await;
        if leak["state"] == state {
            Ok(leak)
        } else {
            Err(leak.to_string())
        }
    })
    .await
}

fn said(app: &TestApp, arguments: &[&str]) -> String {
    let output = app.command(arguments);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{arguments:?}: {said}{error}");
    said
}

#[tokio::test]
async fn what_nobody_wants_is_removed_after_ten_minutes_and_what_is_not_ours_never() {
    needs_docker!();
    let app = with_leaks_only().await;
    let (live, paused) = (up(&app, "live").await, up(&app, "paused").await);
    let container = app.engine().containers_of(&paused).await[0].id.clone();
    let nobody = WorkspaceId::random();
    let ours = labels(&app, &nobody.to_string()).await;
    let config = format!("{}-configs", nobody.container_name());
    let work = format!("ws-{nobody}-workspace");
    make_volume(&app, &config, ours.clone()).await;
    make_volume(&app, &work, ours.clone()).await;
    // What reads the configuration of a stopped workspace has no name.
    make_container(&app, &format!("probe-{nobody}"), labels(&app, &live).await).await;
    // Of another engine by its label: counted, and nothing else.
    let mut strange = ours.clone();
    strange.insert(LABEL_ENGINE.to_owned(), "another".to_owned());
    let stranger = WorkspaceId::random().container_name();
    make_volume(&app, &format!("{stranger}-configs"), strange.clone()).await;
    make_container(&app, &stranger, strange).await;
    app.write_status_directly(&paused, "paused").await;

    let told = said(&app, &["reconcile", "leaks", "--dry-run"]);
    assert!(
        told.contains(&format!("suspects volume {config}")),
        "{told}"
    );
    assert!(leaks(&app).await.is_empty(), "a dry run writes nothing");

    run(&app, "leaks").await;
    let states = |leaks: &[Value]| -> Vec<(String, String)> {
        let mut states: Vec<_> = leaks
            .iter()
            .map(|leak| {
                let word = |name: &str| leak[name].as_str().unwrap().to_owned();
                assert_eq!(leak["source"], "sweep", "{leak}");
                (word("resource"), word("state"))
            })
            .collect();
        states.sort();
        states
    };
    let suspected = |resource: &str| (resource.to_owned(), "suspected".to_owned());
    assert_eq!(
        states(&leaks(&app).await),
        [
            suspected("container"),
            suspected("container"),
            suspected("volume"),
            suspected("volume")
        ]
    );
    let report = run(&app, "leaks").await;
    assert_eq!(
        report["acted"], 0,
        "nothing is removed before its time: {report}"
    );
    assert_eq!(app.engine().containers_of(&paused).await.len(), 1);

    app.advance(GRACE).await;
    run(&app, "leaks").await;
    until_leak(&app, &container, "removed").await;
    until_leak(&app, &config, "removed").await;
    assert!(app.engine().containers_of(&paused).await.is_empty());
    assert_eq!(
        app.engine().containers_of(&live).await.len(),
        1,
        "the probe is gone"
    );
    app.assert_whole(&live).await;
    let left = app.engine().volume_names().await;
    assert!(!left.contains(&config) && left.contains(&work), "{left:?}");
    assert!(left.contains(&format!("{stranger}-configs")), "{left:?}");
    let names = app.engine().containers().await;
    assert!(
        names.iter().any(|container| container.name == stranger),
        "{names:?}"
    );

    // Work goes only by an operator's word.
    let leak = leak_of(&app, &work).await;
    assert_eq!(
        (&leak["state"], &leak["resolved_at"]),
        (&json!("confirmed"), &Value::Null)
    );
    let id = leak["id"].as_str().unwrap();
    let told = said(&app, &["leaks", "list"]);
    assert!(told.contains(id) && !told.contains("removed"), "{told}");
    assert_eq!(
        said(&app, &["leaks", "remove", id]),
        format!("leak {id} is removed\n")
    );
    assert!(!app.engine().volume_names().await.contains(&work));
    let again = app
        .admin()
        .post(&format!("/leaks/{id}/remove"), &json!({}))
        .await;
    assert_eq!(again.status, 409, "{}", again.text());
    let events: Vec<Value> = sqlx::query_scalar(
        "SELECT payload FROM structure_events WHERE event_type = 'LEAK_RESOLVED' AND payload->>'leak_id' = $1",
    )
    .bind(id)
    .fetch_all(app.pool())
    .await
    .unwrap();
    assert_eq!(events, [json!({ "leak_id": id, "state": "removed" })]);
}

#[tokio::test]
async fn what_runs_for_a_failed_workspace_that_never_knew_of_it_is_removed() {
    needs_docker!();
    let app = with_leaks_only().await;
    let (unknown, known) = (up(&app, "unknown").await, up(&app, "known").await);
    let container = app.engine().containers_of(&unknown).await[0].id.clone();
    for id in [&unknown, &known] {
        app.write_status_directly(id, "failed").await;
    }
    sqlx::query("UPDATE workspaces SET container_id = NULL WHERE id = $1::uuid")
        .bind(&unknown)
        .execute(app.pool())
        .await
        .unwrap();
    run(&app, "leaks").await;
    assert_eq!(leaks(&app).await.len(), 1, "what is on record is kept");
    assert_eq!(leak_of(&app, &container).await["state"], "suspected");
    app.advance(GRACE).await;
    run(&app, "leaks").await;
    until_leak(&app, &container, "removed").await;
    assert!(app.engine().containers_of(&unknown).await.is_empty());
    assert_eq!(app.engine().containers_of(&known).await.len(), 1);
}

#[tokio::test]
async fn what_an_operator_keeps_stays_until_its_removal_is_asked_for() {
    needs_docker!();
    let app = with_leaks_only().await;
    let nobody = WorkspaceId::random();
    let config = format!("{}-configs", nobody.container_name());
    make_volume(&app, &config, labels(&app, &nobody.to_string()).await).await;
    run(&app, "leaks").await;
    let id = leak_of(&app, &config).await["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let told = said(&app, &["leaks", "keep", &id, "--reason", "evidence"]);
    assert_eq!(told, format!("leak {id} is kept\n"));
    app.advance(GRACE).await;
    let report = run(&app, "leaks").await;
    assert_eq!(report["acted"], 0, "{report}");
    assert_eq!(leaks(&app).await.len(), 1, "it is not suspected again");
    assert!(app.engine().volume_names().await.contains(&config));
    let asked = app
        .admin()
        .post(&format!("/leaks/{id}/remove"), &json!({}))
        .await;
    let job = asked.expect(202)["job_id"].as_str().unwrap().to_owned();
    app.until_job(&job, "succeeded", PATIENCE).await;
    assert_eq!(leak_of(&app, &config).await["state"], "removed");
    for (path, status) in [
        (format!("/leaks/{nobody}/keep"), 404),
        ("/leaks/nonsense/remove".to_owned(), 400),
        (format!("/leaks/{id}/keep"), 409),
    ] {
        let answer = app.admin().post(&path, &json!({})).await;
        assert_eq!(answer.status, status, "{path}: {}", answer.text());
    }
}

#[tokio::test]
async fn a_mistake_that_would_remove_many_is_stopped_by_the_budget() {
    needs_docker!();
    let app = with_leaks_only().await;
    let mut volumes = Vec::new();
    for _ in 0..6 {
        let nobody = WorkspaceId::random();
        let name = format!("{}-configs", nobody.container_name());
        make_volume(&app, &name, labels(&app, &nobody.to_string()).await).await;
        volumes.push(name);
    }
    volumes.sort();
    run(&app, "leaks").await;
    app.advance(GRACE).await;
    let report = run(&app, "leaks").await;
    assert_eq!(report["acted"], 0, "{report}");
    let shown = app.admin().get("/reconcilers/leaks").await.expect(200);
    assert_eq!(shown["blocked"]["budget"], 5, "{shown}");
    assert_eq!(app.engine().volume_names().await, volumes);
    app.admin()
        .post("/reconcilers/leaks/approve", &json!({}))
        .await
        .expect(200);
    run(&app, "leaks").await;
    for name in &volumes {
        until_leak(&app, name, "removed").await;
    }
    assert!(app.engine().volume_names().await.is_empty());
}

#[tokio::test]
async fn an_instance_that_a_stopped_workspace_has_is_ended_and_one_that_is_gone_is_told() {
    needs_docker!();
    let app = TestApp::build()
        .control_plane(SIMULATION, &[])
        .start()
        .await;
    for name in ["health", "liveness"] {
        disable(&app, name).await;
    }
    let mut instances = Vec::new();
    for name in ["stopped", "live"] {
        let (id, _) = app.create(name, json!({})).await;
        app.until_status(&id, "online", PATIENCE).await;
        let instance = wait_until("its instance", PATIENCE, || async {
            let found: Option<String> =
                sqlx::query_scalar("SELECT instance_id FROM workspaces WHERE id = $1::uuid")
                    .bind(&id)
                    .fetch_one(app.pool())
                    .await
                    .unwrap();
            found.ok_or_else(|| "none".to_owned())
        })
        .await;
        instances.push((id, instance));
    }
    let (stopped, instance) = &instances[0];
    app.write_status_directly(stopped, "paused").await;
    run(&app, "leaks").await;
    assert_eq!(leaks(&app).await.len(), 1, "the live one is nobody's leak");
    assert_eq!(leak_of(&app, instance).await["state"], "suspected");
    assert_eq!(app.control_plane().instances(stopped).await.len(), 1);
    app.advance(GRACE).await;
    run(&app, "leaks").await;
    until_leak(&app, instance, "removed").await;
    assert!(app.control_plane().instances(stopped).await.is_empty());
    let row: Option<String> =
        sqlx::query_scalar("SELECT instance_id FROM workspaces WHERE id = $1::uuid")
            .bind(stopped)
            .fetch_one(app.pool())
            .await
            .unwrap();
    assert_eq!(row, None);
    let (live, instance) = &instances[1];
    let running = app.control_plane().instances(live).await;
    assert_eq!(running.as_slice(), std::slice::from_ref(instance));
}

#[tokio::test]
async fn an_instance_that_does_not_run_yet_is_no_less_a_leak_until_its_stop_is_answered() {
    needs_docker!();
    let app = TestApp::build()
        .control_plane(SIMULATION, &[])
        .start()
        .await;
    for name in ["health", "liveness"] {
        disable(&app, name).await;
    }
    let (id, _) = app.create("late", json!({})).await;
    app.until_status(&id, "online", PATIENCE).await;
    let instance = app.control_plane().instances(&id).await.remove(0);
    wait_until("its instance to be on file", PATIENCE, || async {
        match app.home_in_row(&id).await {
            Some(home) if home == instance => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    app.write_status_directly(&id, "paused").await;
    run(&app, "leaks").await;
    assert_eq!(leak_of(&app, &instance).await["state"], "suspected");
    let faults = json!({ "pending": 1.0 });
    app.control_plane().set_faults(&faults).await;
    run(&app, "leaks").await;
    assert_eq!(leak_of(&app, &instance).await["state"], "suspected");
    app.advance(GRACE).await;
    run(&app, "leaks").await;
    until_leak(&app, &instance, "removed").await;
    assert!(app.control_plane().instances(&id).await.is_empty());
}

/// The containers and volumes of an installation.
async fn things(app: &TestApp) -> (Vec<String>, Vec<String>) {
    let mut containers: Vec<_> = app
        .engine()
        .containers()
        .await
        .into_iter()
        .map(|one| one.id)
        .collect();
    containers.sort();
    (containers, app.engine().volume_names().await)
}

#[tokio::test]
async fn no_sweep_of_one_installation_touches_what_another_one_has_on_the_same_engine() {
    needs_docker!();
    let worker = NewWorker::default;
    let mine = TestApp::build().workers([worker()]).start().await;
    let theirs = TestApp::build().workers([worker()]).start().await;
    let mut ids = Vec::new();
    for app in [&mine, &theirs] {
        for name in ["one", "two"] {
            ids.push((app, up(app, name).await));
        }
    }
    let before = (things(&mine).await, things(&theirs).await);
    for _ in 0..2 {
        for app in [&mine, &theirs] {
            app.advance(GRACE).await;
            for name in [
                "health",
                "orphans",
                "stale-tokens",
                "leaks",
                "liveness",
                "provision-timeout",
                "hibernation",
                "stuck",
                "holds",
                "retention",
            ] {
                let report = run(app, name).await;
                assert_eq!(
                    (&report["acted"], &report["failed"]),
                    (&json!(0), &json!(0)),
                    "{name}: {report}"
                );
            }
        }
    }
    assert_eq!((things(&mine).await, things(&theirs).await), before);
    for (app, id) in &ids {
        assert!(leaks(app).await.is_empty());
        assert_eq!(app.entry(id).await["status"], "online");
        app.assert_whole(id).await;
    }
}
