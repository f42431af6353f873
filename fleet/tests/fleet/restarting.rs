use std::time::Duration;

use longshore_base::WorkspaceId;
use longshore_fleet::liveness::mark_offline;
use longshore_fleet::restarting::{
    Asked, AutoRestart, Beginning, Refusal, RestartBudget, begin_restart, check_restart,
    plan_auto_restart, runtime_in, take_restart_context,
};
use longshore_fleet::workspace::{Workspace, remove_workspaces};
use longshore_fleet::{FleetConfig, WorkspaceStatus};
use serde_json::json;

use crate::setup::{Setup, config, external};

const BY_USER: Beginning = Beginning {
    asked: Asked::ByUser,
    again: false,
};
const BY_ITSELF: Beginning = Beginning {
    asked: Asked::ByItself,
    again: false,
};

/// Loses a workspace and decides what is done about it.
async fn lose(setup: &Setup, id: WorkspaceId) -> AutoRestart {
    setup.write_status(id, WorkspaceStatus::Online).await;
    let mut tx = setup.begin().await;
    let generation = setup.load(id).await.provision_generation;
    assert!(mark_offline(&mut tx, id, generation).await.unwrap());
    let plan = plan_auto_restart(&mut tx, &setup.fleet, id).await.unwrap();
    tx.commit().await.unwrap();
    plan
}

async fn begin(
    setup: &Setup,
    id: WorkspaceId,
    beginning: Beginning,
) -> Result<Box<Workspace>, Refusal> {
    let mut tx = setup.begin().await;
    let begun = begin_restart(&mut tx, &setup.fleet, id, beginning).await;
    tx.commit().await.unwrap();
    begun.unwrap()
}

fn rest_of(plan: &AutoRestart) -> Option<u64> {
    match plan {
        AutoRestart::After(rest, _) => Some(rest.as_secs()),
        AutoRestart::GivenUp | AutoRestart::Refused(_) | AutoRestart::Off => None,
    }
}

#[tokio::test]
async fn a_restart_begins_a_new_generation_of_which_nothing_is_known_yet() {
    let setup = Setup::new().await;
    let before = setup.create_in("n", WorkspaceStatus::Online).await;
    let begun = begin(&setup, before.id, BY_USER).await.unwrap();
    assert_eq!(begun.status, WorkspaceStatus::Provisioning);
    assert_eq!(begun.provision_generation, before.provision_generation + 1);
    assert_eq!((begun.url.as_str(), &begun.container_id), ("", &None));
    assert!(begun.provision_started_at.is_some());
    // Where it was it comes up again.
    assert_eq!(begun.engine_id, before.engine_id);
    let events = setup.events_after(before.id, 1).await;
    let payload = json!({ "name": "n", "tier": 2, "runtime": "claude-code" });
    assert_eq!(events, [("WORKSPACE_PROVISIONING".to_owned(), payload)]);

    let mut conn = setup.conn().await;
    let told = take_restart_context(&mut conn, before.id).await.unwrap();
    let told = told.unwrap();
    assert_eq!(told.previous_heartbeat_at, before.last_heartbeat_at);
    assert!(told.restarted_at >= before.last_heartbeat_at.unwrap());
    let again = take_restart_context(&mut conn, before.id).await.unwrap();
    assert_eq!(again, None);
}

#[tokio::test]
async fn a_workspace_that_is_lost_too_often_has_failed_until_the_window_has_passed() {
    let setup = Setup::new().await;
    let id = setup.create_in("n", WorkspaceStatus::Online).await.id;
    for rest in [0, 10, 60] {
        assert_eq!(rest_of(&lose(&setup, id).await), Some(rest));
        begin(&setup, id, BY_ITSELF).await.unwrap();
        // A run that comes again after its worker died is the same one.
        let again = Beginning {
            again: true,
            ..BY_ITSELF
        };
        begin(&setup, id, again).await.unwrap();
        // What somebody asks for does not count.
        begin(&setup, id, BY_USER).await.unwrap();
    }
    assert_eq!(lose(&setup, id).await, AutoRestart::GivenUp);
    let row = setup.load(id).await;
    assert_eq!(row.status, WorkspaceStatus::Failed);
    assert!(
        row.last_sample_error
            .starts_with("crash loop: lost again after 3 automatic restarts within 600 s")
    );
    let (name, payload) = setup.events(id).await.pop().unwrap();
    assert_eq!(name, "WORKSPACE_PROVISION_FAILED");
    assert_eq!(payload["error"], row.last_sample_error);
    assert_eq!(
        (&payload["source"], &payload["restarts"]),
        (&json!("crash_loop"), &json!(3))
    );

    setup.db.advance(Duration::from_secs(601)).await;
    assert_eq!(rest_of(&lose(&setup, id).await), Some(0));
}

#[tokio::test]
async fn an_operator_may_want_nothing_restarted_by_itself() {
    let setup = Setup::with(FleetConfig {
        auto_restart: RestartBudget {
            most: 0,
            ..RestartBudget::DEFAULT
        },
        ..config()
    })
    .await;
    let id = setup.create_in("n", WorkspaceStatus::Online).await.id;
    assert_eq!(lose(&setup, id).await, AutoRestart::Off);
    assert_eq!(setup.status(id).await, WorkspaceStatus::Offline);
}

#[tokio::test]
async fn what_was_heard_again_meanwhile_is_left_alone_unless_somebody_asked() {
    let setup = Setup::new().await;
    let id = setup.create_in("n", WorkspaceStatus::Online).await.id;
    let refused = begin(&setup, id, BY_ITSELF).await;
    assert_eq!(refused, Err(Refusal::Back(WorkspaceStatus::Online)));
    begin(&setup, id, BY_USER).await.unwrap();
}

#[tokio::test]
async fn a_restart_is_refused_below_a_paused_workspace_and_for_what_is_gone_or_elsewhere() {
    let setup = Setup::new().await;
    let root = setup.create_in("root", WorkspaceStatus::Paused).await.id;
    let middle = setup.create_child("middle", root).await.id;
    let leaf = setup.create_child("leaf", middle).await;
    let mut conn = setup.conn().await;
    let refused = check_restart(&mut conn, &leaf, Asked::ByUser).await;
    let name = "root".to_owned();
    assert_eq!(refused.unwrap(), Some(Refusal::ParentPaused { name }));
    setup.write_status(root, WorkspaceStatus::Online).await;
    let allowed = check_restart(&mut conn, &leaf, Asked::ByUser).await;
    assert_eq!(allowed.unwrap(), None);

    let outside = setup.create(external("outside")).await.id;
    let refused = begin(&setup, outside, BY_USER).await;
    assert_eq!(refused, Err(Refusal::External));
    let mut tx = setup.begin().await;
    remove_workspaces(&mut tx, leaf.id).await.unwrap();
    tx.commit().await.unwrap();
    let refused = begin(&setup, leaf.id, BY_USER).await;
    assert_eq!(refused, Err(Refusal::Removed));
    let refused = begin(&setup, WorkspaceId::random(), BY_USER).await;
    assert_eq!(refused, Err(Refusal::Unknown));
}

#[tokio::test]
async fn only_a_runtime_that_a_container_can_run_is_taken_from_a_configuration() {
    let setup = Setup::new().await;
    for (config, runtime) in [
        ("runtime: hermes\n", Some("hermes")),
        ("name: x\n", None),
        ("runtime: langgraph\n", None),
        ("runtime: external\n", None),
        ("runtime: ../../etc\n", None),
        ("{not yaml", None),
    ] {
        let found = runtime_in(&setup.fleet, config);
        assert_eq!(found.as_deref(), runtime, "{config}");
    }
}
