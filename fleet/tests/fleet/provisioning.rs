use std::time::Duration;

use longshore_base::WorkspaceId;
use longshore_fleet::provisioning::{
    Begin, NO_BACKEND, NotWanted, Started, begin, current_generation, fail_overdue, list_awaited,
    mark_engine, mark_failed, mark_started, persist_no_backend, reopen,
};
use longshore_fleet::workspace::{NewWorkspace, Workspace, remove_workspaces};
use longshore_fleet::{FleetConfig, WorkspaceStatus};
use serde_json::{Value, json};

use crate::setup::{Setup, config, external, named};

fn started() -> Started {
    Started {
        url: "http://127.0.0.1:1".into(),
        container_id: "new".into(),
        engine_id: "e".into(),
        image_digest: Some(format!("reg/img@sha256:{}", "AB".repeat(32))),
    }
}

async fn go(setup: &Setup, id: WorkspaceId) -> Workspace {
    let mut tx = setup.begin().await;
    let begun = begin(&mut tx, id).await.unwrap();
    tx.commit().await.unwrap();
    match begun {
        Begin::Go(workspace) => *workspace,
        Begin::NotWanted(reason) => panic!("{reason}"),
    }
}

#[tokio::test]
async fn each_attempt_has_a_generation_and_only_the_last_may_write() {
    let setup = Setup::new().await;
    let id = setup.create(named("n")).await.id;
    let first = go(&setup, id).await;
    let second = go(&setup, id).await;
    assert_eq!(
        (first.provision_generation, second.provision_generation),
        (1, 2)
    );
    assert!(second.provision_started_at.unwrap() > first.provision_started_at.unwrap());
    let mut conn = setup.conn().await;
    assert!(
        !mark_failed(&mut conn, id, Some(1), "late", json!({}))
            .await
            .unwrap()
    );
    assert!(!mark_started(&mut conn, id, 1, started()).await.unwrap());
    assert!(mark_started(&mut conn, id, 2, started()).await.unwrap());
    let row = setup.load(id).await;
    assert_eq!(
        (row.container_id.as_deref(), row.engine_id.as_deref()),
        (Some("new"), Some("e"))
    );
    assert_eq!(row.runtime_image_digest, Some("ab".repeat(32)));
    assert_eq!(
        current_generation(&mut conn, id).await.unwrap(),
        Some((2, WorkspaceStatus::Provisioning))
    );
    assert_eq!(
        current_generation(&mut conn, WorkspaceId::random())
            .await
            .unwrap(),
        None
    );
    assert_eq!(setup.events_after(id, 1).await, []);
}

#[tokio::test]
async fn the_engine_is_known_from_before_the_start_unless_the_attempt_is_history() {
    let setup = Setup::new().await;
    let id = setup.create(named("n")).await.id;
    go(&setup, id).await;
    go(&setup, id).await;
    let mut conn = setup.conn().await;
    assert!(!mark_engine(&mut conn, id, 1, "late").await.unwrap());
    assert!(mark_engine(&mut conn, id, 2, "e").await.unwrap());
    let row = setup.load(id).await;
    assert_eq!(
        (row.engine_id.as_deref(), row.container_id),
        (Some("e"), None)
    );
    let mut tx = setup.begin().await;
    let removed = remove_workspaces(&mut tx, id).await.unwrap().unwrap();
    tx.commit().await.unwrap();
    assert!(removed.workspaces[0].may_have_run());
    assert!(!mark_engine(&mut conn, id, 3, "late").await.unwrap());

    let other = setup.create(named("o")).await.id;
    go(&setup, other).await;
    let mut tx = setup.begin().await;
    let removed = remove_workspaces(&mut tx, other).await.unwrap().unwrap();
    assert!(!removed.workspaces[0].may_have_run());
}

#[tokio::test]
async fn an_agent_that_registered_first_does_not_keep_its_start_from_being_recorded() {
    let setup = Setup::new().await;
    let id = setup.create(named("n")).await.id;
    let generation = go(&setup, id).await.provision_generation;
    setup.write_status(id, WorkspaceStatus::Online).await;
    assert!(
        mark_started(&mut *setup.conn().await, id, generation, started())
            .await
            .unwrap()
    );
    let row = setup.load(id).await;
    assert_eq!(
        (row.status, row.url.as_str()),
        (WorkspaceStatus::Online, "http://127.0.0.1:1")
    );
}

#[tokio::test]
async fn an_agent_that_is_up_without_a_recorded_start_is_begun_anew() {
    let setup = Setup::new().await;
    let id = setup.create(named("n")).await.id;
    go(&setup, id).await;
    // The worker died between start and record; the agent registered all the same.
    setup.write_status(id, WorkspaceStatus::Online).await;
    let again = go(&setup, id).await;
    assert_eq!(again.status, WorkspaceStatus::Provisioning);
    assert_eq!(again.provision_generation, 2);
    assert_eq!(
        setup.events_after(id, 1).await,
        [(
            "WORKSPACE_PROVISIONING".to_owned(),
            json!({ "name": "n", "tier": 2, "runtime": "claude-code" })
        )]
    );
}

#[tokio::test]
async fn only_what_waits_to_come_up_is_begun() {
    let setup = Setup::new().await;
    let verdict = async |id| {
        let mut tx = setup.begin().await;
        begin(&mut tx, id).await.unwrap()
    };
    assert_eq!(
        verdict(WorkspaceId::random()).await,
        Begin::NotWanted(NotWanted::Unknown)
    );
    let far = setup.create(external("far")).await.id;
    assert_eq!(verdict(far).await, Begin::NotWanted(NotWanted::External));
    for status in WorkspaceStatus::ALL {
        let id = setup.create_in("n", status).await.id;
        match verdict(id).await {
            Begin::Go(_) => assert_eq!(status, WorkspaceStatus::Provisioning),
            Begin::NotWanted(reason) => assert_eq!(reason, NotWanted::Status(status)),
        }
    }
}

#[tokio::test]
async fn a_failure_is_written_once_and_only_while_the_row_waits() {
    let setup = Setup::new().await;
    for status in WorkspaceStatus::ALL {
        let workspace = setup.create_in("n", status).await;
        let generation = Some(workspace.provision_generation);
        let mut tx = setup.begin().await;
        let extras = json!({ "missing": ["A"], "error": "not this" });
        let failed = mark_failed(&mut tx, workspace.id, generation, "no start", extras)
            .await
            .unwrap();
        let again = mark_failed(&mut tx, workspace.id, generation, "no start", json!({}))
            .await
            .unwrap();
        tx.commit().await.unwrap();
        assert_eq!(
            (failed, again),
            (status == WorkspaceStatus::Provisioning, false),
            "{status}"
        );
        let row = setup.load(workspace.id).await;
        if failed {
            assert_eq!(
                (row.status, row.last_sample_error.as_str()),
                (WorkspaceStatus::Failed, "no start")
            );
            assert_eq!(
                setup.events_after(workspace.id, 1).await,
                [(
                    "WORKSPACE_PROVISION_FAILED".to_owned(),
                    json!({ "error": "no start", "missing": ["A"] })
                )]
            );
        } else {
            assert_eq!(row, workspace);
        }
    }
}

#[tokio::test]
async fn a_delete_ends_every_attempt() {
    let setup = Setup::new().await;
    let id = setup.create(named("n")).await.id;
    let generation = go(&setup, id).await.provision_generation;
    let mut tx = setup.begin().await;
    remove_workspaces(&mut tx, id).await.unwrap().unwrap();
    tx.commit().await.unwrap();
    let mut conn = setup.conn().await;
    assert!(
        !mark_started(&mut conn, id, generation, started())
            .await
            .unwrap()
    );
    assert!(
        !mark_failed(&mut conn, id, None, "x", json!({}))
            .await
            .unwrap()
    );
    assert_eq!(
        begin(&mut conn, id).await.unwrap(),
        Begin::NotWanted(NotWanted::Status(WorkspaceStatus::Removed))
    );
    assert_eq!(
        reopen(&mut conn, id).await.unwrap(),
        Begin::NotWanted(NotWanted::Status(WorkspaceStatus::Removed))
    );
}

#[tokio::test]
async fn a_failed_one_can_be_opened_again() {
    let setup = Setup::new().await;
    let workspace = setup.create_in("n", WorkspaceStatus::Failed).await;
    let mut tx = setup.begin().await;
    let Begin::Go(reopened) = reopen(&mut tx, workspace.id).await.unwrap() else {
        panic!("a failed workspace may be tried again");
    };
    tx.commit().await.unwrap();
    assert_eq!(reopened.status, WorkspaceStatus::Provisioning);
    assert_eq!(
        reopened.provision_generation,
        workspace.provision_generation + 1
    );
    assert_eq!(
        (reopened.provision_started_at, reopened.url.as_str()),
        (None, "")
    );
    assert_eq!(
        setup.events_after(workspace.id, 1).await[0].0,
        "WORKSPACE_PROVISIONING"
    );
    let up = setup.create_in("up", WorkspaceStatus::Online).await.id;
    let refused = reopen(&mut *setup.conn().await, up).await.unwrap();
    assert_eq!(
        refused,
        Begin::NotWanted(NotWanted::Status(WorkspaceStatus::Online))
    );
}

#[tokio::test]
async fn without_a_backend_the_settings_are_kept_and_the_reason_is_told() {
    let setup = Setup::new().await;
    let workspace = setup
        .create(NewWorkspace {
            runtime: Some("codex".into()),
            ..named("n")
        })
        .await;
    let mut tx = setup.begin().await;
    assert!(persist_no_backend(&mut tx, &workspace).await.unwrap());
    assert!(!persist_no_backend(&mut tx, &workspace).await.unwrap());
    tx.commit().await.unwrap();
    let data: Value = sqlx::query_scalar("SELECT data FROM workspace_config")
        .fetch_one(setup.pool())
        .await
        .unwrap();
    assert_eq!(
        data,
        json!({ "name": "n", "runtime": "codex", "tier": 2, "template": "" })
    );
    assert_eq!(setup.load(workspace.id).await.last_sample_error, NO_BACKEND);
    assert_eq!(
        setup.events_after(workspace.id, 1).await,
        [(
            "WORKSPACE_PROVISION_FAILED".to_owned(),
            json!({ "error": NO_BACKEND })
        )]
    );
}

/// Templates that give claude-code 20 minutes and hermes 12.
fn templates() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for (runtime, seconds) in [("claude-code", 1200), ("hermes", 720)] {
        let directory = root.path().join(runtime);
        std::fs::create_dir(&directory).unwrap();
        let text = format!(
            "runtime: {runtime}\nruntime_config: {{provision_timeout_seconds: {seconds}}}\n"
        );
        std::fs::write(directory.join("config.yaml"), text).unwrap();
    }
    root
}

#[tokio::test]
async fn each_runtime_has_its_deadline_and_a_waiting_job_none() {
    let root = templates();
    let setup = Setup::with(FleetConfig {
        configs_dir: Some(root.path().to_owned()),
        ..config()
    })
    .await;
    let with = |runtime: &str| NewWorkspace {
        runtime: Some(runtime.into()),
        ..named(runtime)
    };
    let queued = setup.create(with("claude-code")).await.id;
    let claude = setup.create(with("claude-code")).await.id;
    let hermes = setup.create(with("hermes")).await.id;
    let codex = setup.create(with("codex")).await.id;
    let up = setup.create_in("up", WorkspaceStatus::Online).await.id;
    let far = setup.create(external("far")).await.id;
    for id in [claude, hermes, codex] {
        go(&setup, id).await;
    }
    let sweep = async || {
        let mut tx = setup.begin().await;
        let awaited = list_awaited(&mut tx, &setup.fleet).await.unwrap();
        let mut failed = Vec::new();
        for overdue in awaited.iter().filter(|one| one.is_overdue) {
            assert!(fail_overdue(&mut tx, overdue).await.unwrap());
            assert!(!fail_overdue(&mut tx, overdue).await.unwrap());
            failed.push((overdue.id, overdue.timeout_secs));
        }
        tx.commit().await.unwrap();
        failed
    };
    setup.db.advance(Duration::from_secs(9 * 60)).await;
    assert_eq!(sweep().await, []);
    setup.db.advance(Duration::from_secs(2 * 60)).await;
    assert_eq!(sweep().await, [(codex, 600)]);
    setup.db.advance(Duration::from_secs(2 * 60)).await;
    assert_eq!(sweep().await, [(hermes, 720)]);
    setup.db.advance(Duration::from_secs(8 * 60)).await;
    assert_eq!(sweep().await, [(claude, 1200)]);
    assert_eq!(sweep().await, []);
    let events = setup.events_after(claude, 1).await;
    let (name, payload) = &events[0];
    assert_eq!(
        (name.as_str(), events.len()),
        ("WORKSPACE_PROVISION_FAILED", 1)
    );
    assert_eq!(payload["timeout_secs"], 1200);
    assert_eq!(
        (&payload["runtime"], &payload["source"]),
        (&json!("claude-code"), &json!("provision_timeout_sweep"))
    );
    assert_eq!(payload["error"], setup.load(claude).await.last_sample_error);
    for (id, status) in [
        (queued, WorkspaceStatus::Provisioning),
        (up, WorkspaceStatus::Online),
        (far, WorkspaceStatus::AwaitingAgent),
    ] {
        assert_eq!(setup.status(id).await, status);
    }
}
