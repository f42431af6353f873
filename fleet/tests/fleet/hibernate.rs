use std::time::Duration;

use longshore_base::WorkspaceId;
use longshore_fleet::WorkspaceStatus;
use longshore_fleet::provisioning::{Begin, begin};
use longshore_fleet::workspace::{
    HibernateError, NewWorkspace, Workspace, claim_hibernation, claim_idle, list_idle,
    list_stuck_hibernating, mark_hibernated, wake_workspace,
};
use serde_json::json;

use crate::setup::{Setup, external};

async fn claim(setup: &Setup, id: WorkspaceId, force: bool) -> Result<Workspace, HibernateError> {
    let mut tx = setup.begin().await;
    let claimed = claim_hibernation(&mut tx, id, force).await?;
    tx.commit().await.unwrap();
    Ok(claimed)
}

async fn write(setup: &Setup, id: WorkspaceId, column: &str, value: i32) {
    let sql = format!("UPDATE workspaces SET {column} = $2 WHERE id = $1");
    sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(id)
        .bind(value)
        .execute(setup.pool())
        .await
        .unwrap();
}

/// As a beat without tasks leaves it.
async fn write_idle(setup: &Setup, id: WorkspaceId) {
    sqlx::query("UPDATE workspaces SET idle_since = longshore_now() WHERE id = $1")
        .bind(id)
        .execute(setup.pool())
        .await
        .unwrap();
}

async fn idle(setup: &Setup, default_minutes: Option<i32>) -> Vec<WorkspaceId> {
    let idle = list_idle(&mut *setup.conn().await, default_minutes).await;
    idle.unwrap().iter().map(|workspace| workspace.id).collect()
}

#[tokio::test]
async fn a_workspace_that_is_up_is_claimed_stopped_and_woken() {
    let setup = Setup::new().await;
    let row = setup.create_in("sleepy", WorkspaceStatus::Online).await;
    let id = row.id;
    write_idle(&setup, id).await;
    let claimed = claim(&setup, id, false).await.unwrap();
    assert_eq!(claimed.status, WorkspaceStatus::Hibernating);
    assert_eq!(claimed.provision_generation, row.provision_generation + 1);
    assert!(claimed.may_have_run());
    assert_eq!(claimed.url, row.url, "it can be called until it is stopped");

    let generation = claimed.provision_generation;
    let mut conn = setup.conn().await;
    assert!(
        !mark_hibernated(&mut conn, id, generation - 1)
            .await
            .unwrap()
    );
    assert!(mark_hibernated(&mut conn, id, generation).await.unwrap());
    assert!(!mark_hibernated(&mut conn, id, generation).await.unwrap());
    let asleep = setup.load(id).await;
    assert_eq!(asleep.status, WorkspaceStatus::Hibernated);
    assert_eq!((asleep.url.as_str(), asleep.container_id), ("", None));
    assert_eq!(
        setup.events_after(id, 1).await,
        [(
            "WORKSPACE_HIBERNATED".to_owned(),
            json!({ "name": "sleepy", "tier": 2 })
        )]
    );

    let woken = wake_workspace(&mut conn, id).await.unwrap().unwrap();
    assert_eq!(woken.status, WorkspaceStatus::Provisioning);
    assert_eq!(wake_workspace(&mut conn, id).await.unwrap(), None);
    assert_eq!(
        setup.events_after(id, 2).await,
        [(
            "WORKSPACE_PROVISIONING".to_owned(),
            json!({ "name": "sleepy", "tier": 2, "runtime": "claude-code" })
        )]
    );
    // Whoever wakes is not idle because of what was before.
    write_idle(&setup, id).await;
    let mut tx = setup.begin().await;
    let Begin::Go(begun) = begin(&mut tx, id).await.unwrap() else {
        panic!("a woken workspace is wanted");
    };
    assert_eq!(begun.idle_since, None);
}

#[tokio::test]
async fn only_what_is_up_and_has_nothing_to_do_is_hibernated_unless_forced() {
    let setup = Setup::new().await;
    for status in WorkspaceStatus::ALL {
        let id = setup.create_in("n", status).await.id;
        match claim(&setup, id, true).await {
            Ok(_) => assert!(status.is_up(), "{status}"),
            Err(HibernateError::NotUp) => assert!(!status.is_up(), "{status}"),
            Err(error) => panic!("{status}: {error}"),
        }
    }
    let busy = setup.create_in("busy", WorkspaceStatus::Degraded).await.id;
    write(&setup, busy, "active_tasks", 3).await;
    assert!(matches!(
        claim(&setup, busy, false).await,
        Err(HibernateError::ActiveTasks(3))
    ));
    assert_eq!(setup.status(busy).await, WorkspaceStatus::Degraded);
    claim(&setup, busy, true).await.unwrap();

    let outside = setup.create(external("outside")).await.id;
    setup.write_status(outside, WorkspaceStatus::Online).await;
    assert!(matches!(
        claim(&setup, outside, true).await,
        Err(HibernateError::External)
    ));
    assert!(matches!(
        claim(&setup, WorkspaceId::random(), true).await,
        Err(HibernateError::NotUp)
    ));
}

#[tokio::test]
async fn only_one_of_many_gets_the_claim_and_the_others_hear_how_it_stands() {
    let setup = Setup::new().await;
    let id = setup.create_in("wanted", WorkspaceStatus::Online).await.id;
    let mut first = setup.begin().await;
    claim_hibernation(&mut first, id, false).await.unwrap();
    let (second, ()) = tokio::join!(claim(&setup, id, false), async {
        setup.until_someone_waits().await;
        first.commit().await.unwrap();
    });
    assert!(matches!(
        second,
        Err(HibernateError::Changed(WorkspaceStatus::Hibernating))
    ));
}

#[tokio::test]
async fn idle_is_who_has_had_no_task_for_longer_than_its_minutes() {
    let setup = Setup::new().await;
    let own = setup.create_in("own", WorkspaceStatus::Online).await.id;
    let never = setup.create_in("never", WorkspaceStatus::Online).await.id;
    let silent = setup
        .create_in("says nothing", WorkspaceStatus::Online)
        .await
        .id;
    let busy = setup.create_in("busy", WorkspaceStatus::Online).await.id;
    let gone = setup.create_in("gone", WorkspaceStatus::Offline).await.id;
    let outside = setup
        .create(NewWorkspace {
            url: Some("https://8.8.8.8".into()),
            ..external("far")
        })
        .await
        .id;
    for id in [own, busy, gone, outside] {
        write(&setup, id, "hibernation_idle_minutes", 10).await;
    }
    write(&setup, never, "hibernation_idle_minutes", 0).await;
    for id in [own, never, silent, busy, gone, outside] {
        write_idle(&setup, id).await;
    }
    write(&setup, busy, "active_tasks", 1).await;
    setup.db.advance(Duration::from_secs(599)).await;
    assert_eq!(idle(&setup, None).await, []);
    setup.db.advance(Duration::from_secs(2)).await;
    assert_eq!(idle(&setup, None).await, [own]);
    assert_eq!(idle(&setup, Some(0)).await, [own]);
    let mut both = [own, silent];
    both.sort();
    let mut found = idle(&setup, Some(5)).await;
    found.sort();
    assert_eq!(found, both);

    let mut tx = setup.begin().await;
    assert_eq!(claim_idle(&mut tx, busy, Some(5)).await.unwrap(), None);
    assert_eq!(claim_idle(&mut tx, never, Some(5)).await.unwrap(), None);
    let claimed = claim_idle(&mut tx, own, None).await.unwrap().unwrap();
    assert_eq!(claimed.status, WorkspaceStatus::Hibernating);
    assert_eq!(claim_idle(&mut tx, own, None).await.unwrap(), None);
    tx.commit().await.unwrap();

    let stuck = async || {
        let stuck = list_stuck_hibernating(&mut *setup.conn().await, 5).await;
        stuck.unwrap().len()
    };
    assert_eq!(stuck().await, 0);
    setup.db.advance(Duration::from_secs(301)).await;
    assert_eq!(stuck().await, 1);
}

#[tokio::test]
async fn nothing_below_a_paused_workspace_is_woken() {
    let setup = Setup::new().await;
    let root = setup.create_in("root", WorkspaceStatus::Paused).await.id;
    let child = setup.create_child("child", root).await.id;
    setup.write_status(child, WorkspaceStatus::Hibernated).await;
    let mut conn = setup.conn().await;
    assert_eq!(wake_workspace(&mut conn, child).await.unwrap(), None);
    assert_eq!(setup.status(child).await, WorkspaceStatus::Hibernated);
}
