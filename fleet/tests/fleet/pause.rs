use longshore_base::WorkspaceId;
use longshore_fleet::WorkspaceStatus;
use longshore_fleet::workspace::{
    ResumeError, Resumed, Workspace, pause_workspaces, resume_workspaces,
};
use serde_json::json;

use crate::setup::{Setup, external};

async fn pause(setup: &Setup, id: WorkspaceId) -> Vec<Workspace> {
    let mut tx = setup.begin().await;
    let paused = pause_workspaces(&mut tx, id).await.unwrap();
    tx.commit().await.unwrap();
    paused
}

async fn resume(setup: &Setup, id: WorkspaceId) -> Result<Resumed, ResumeError> {
    let mut tx = setup.begin().await;
    let resumed = resume_workspaces(&mut tx, id).await?;
    tx.commit().await.unwrap();
    Ok(resumed)
}

fn ids(workspaces: &[Workspace]) -> Vec<WorkspaceId> {
    let mut ids: Vec<_> = workspaces.iter().map(|workspace| workspace.id).collect();
    ids.sort();
    ids
}

fn sorted<const N: usize>(mut ids: [WorkspaceId; N]) -> Vec<WorkspaceId> {
    ids.sort();
    ids.to_vec()
}

#[tokio::test]
async fn a_pause_takes_what_is_below_along_and_a_resume_brings_it_back() {
    let setup = Setup::new().await;
    let root = setup.create_in("root", WorkspaceStatus::Online).await;
    let child = setup.create_child("child", root.id).await.id;
    let grandchild = setup.create_child("grandchild", child).await.id;
    let bystander = setup.create_in("bystander", WorkspaceStatus::Online).await;
    setup
        .write_status(grandchild, WorkspaceStatus::Failed)
        .await;

    let paused = pause(&setup, root.id).await;
    assert_eq!(paused[0].id, root.id, "the root is first");
    assert_eq!(ids(&paused), sorted([root.id, child, grandchild]));
    assert_eq!(
        paused[0].provision_generation,
        root.provision_generation + 1
    );
    assert!(paused[0].may_have_run() && !paused[1].may_have_run());
    for workspace in &paused {
        let row = setup.load(workspace.id).await;
        assert_eq!(row.status, WorkspaceStatus::Paused);
        assert_eq!((row.url.as_str(), row.container_id), ("", None));
        assert_eq!(row.provision_generation, workspace.provision_generation);
        let events = setup.events(workspace.id).await;
        let told = ("WORKSPACE_PAUSED".to_owned(), json!({ "name": row.name }));
        assert_eq!(events.last(), Some(&told));
    }
    assert_eq!(setup.status(bystander.id).await, WorkspaceStatus::Online);
    assert_eq!(pause(&setup, root.id).await, []);

    let resumed = resume(&setup, root.id).await.unwrap();
    assert_eq!(resumed.managed[0].id, root.id, "the root is first");
    assert_eq!(ids(&resumed.managed), sorted([root.id, child, grandchild]));
    assert_eq!(resumed.external, []);
    for workspace in &resumed.managed {
        let row = setup.load(workspace.id).await;
        assert_eq!(row.status, WorkspaceStatus::Provisioning);
        assert_eq!(row.provision_generation, workspace.provision_generation);
        assert_eq!(row.provision_started_at, None);
        let told = (
            "WORKSPACE_PROVISIONING".to_owned(),
            json!({ "name": row.name, "tier": row.tier, "runtime": row.runtime }),
        );
        assert_eq!(setup.events(workspace.id).await.last(), Some(&told));
    }
    assert!(matches!(
        resume(&setup, root.id).await,
        Err(ResumeError::NotPaused)
    ));
}

#[tokio::test]
async fn a_pause_ends_at_what_is_paused_or_removed_and_a_resume_at_what_is_not() {
    let setup = Setup::new().await;
    let root = setup.create_in("root", WorkspaceStatus::Online).await.id;
    let paused_child = setup.create_child("paused", root).await.id;
    let below_paused = setup.create_child("below paused", paused_child).await.id;
    let removed_child = setup.create_child("removed", root).await.id;
    let below_removed = setup.create_child("below removed", removed_child).await.id;
    setup
        .write_status(paused_child, WorkspaceStatus::Paused)
        .await;
    setup
        .write_status(removed_child, WorkspaceStatus::Removed)
        .await;
    assert_eq!(ids(&pause(&setup, root).await), [root]);
    for id in [below_paused, below_removed] {
        assert_eq!(setup.status(id).await, WorkspaceStatus::Provisioning);
    }

    setup
        .write_status(paused_child, WorkspaceStatus::Online)
        .await;
    setup
        .write_status(below_paused, WorkspaceStatus::Paused)
        .await;
    let resumed = resume(&setup, root).await.unwrap();
    assert_eq!(
        ids(&resumed.managed),
        [root],
        "reached through paused ones only"
    );
    assert_eq!(setup.status(below_paused).await, WorkspaceStatus::Paused);
}

#[tokio::test]
async fn every_status_but_removed_and_paused_can_be_paused() {
    let setup = Setup::new().await;
    for status in WorkspaceStatus::ALL {
        let id = setup.create_in("n", status).await.id;
        let can = !matches!(status, WorkspaceStatus::Removed | WorkspaceStatus::Paused);
        assert_eq!(pause(&setup, id).await.len(), usize::from(can), "{status}");
    }
}

#[tokio::test]
async fn nothing_below_a_paused_workspace_is_resumed() {
    let setup = Setup::new().await;
    let root = setup
        .create_in("the \"root\"", WorkspaceStatus::Paused)
        .await
        .id;
    let child = setup.create_child("child", root).await.id;
    let grandchild = setup.create_child("grandchild", child).await.id;
    setup
        .write_status(grandchild, WorkspaceStatus::Paused)
        .await;
    let refused = resume(&setup, grandchild).await.unwrap_err();
    assert_eq!(
        refused.to_string(),
        "parent workspace \"the \"root\"\" is paused — resume it first"
    );
    assert_eq!(setup.status(grandchild).await, WorkspaceStatus::Paused);
}

#[tokio::test]
async fn an_external_workspace_waits_for_its_agent_when_it_is_resumed() {
    let setup = Setup::new().await;
    let known = setup.create(external("known")).await.id;
    let unknown = setup.create(external("unknown")).await.id;
    setup.write_status(known, WorkspaceStatus::Online).await;
    for id in [known, unknown] {
        let paused = pause(&setup, id).await;
        assert!(paused.len() == 1 && !paused[0].may_have_run());
        let resumed = resume(&setup, id).await.unwrap();
        assert_eq!((resumed.managed.len(), resumed.external.len()), (0, 1));
    }
    assert_eq!(setup.status(known).await, WorkspaceStatus::Offline);
    assert_eq!(setup.status(unknown).await, WorkspaceStatus::AwaitingAgent);
    let last = async |id| setup.events(id).await.pop().unwrap();
    assert_eq!(
        last(known).await,
        ("WORKSPACE_OFFLINE".to_owned(), json!({}))
    );
    assert_eq!(
        last(unknown).await,
        (
            "WORKSPACE_AWAITING_AGENT".to_owned(),
            json!({ "name": "unknown", "external": true })
        )
    );
}
