use std::time::Duration;

use longshore_base::WorkspaceId;
use longshore_fleet::WorkspaceStatus;
use longshore_fleet::instances::{
    OpenStart, adopt_instance, clear_instance, close_start, close_stop, find_instance,
    find_open_start, forget_instance, list_open_stops, mark_instance_started, open_start,
    open_stop, take_forgotten_starts,
};
use longshore_fleet::provisioning::{Begin, begin, is_start_unrecorded};
use longshore_fleet::workspace::remove_workspaces;

use crate::setup::{Setup, named};

const LIMIT: Duration = Duration::from_secs(120);

/// A workspace at the beginning of its attempt of this generation.
async fn begun(setup: &Setup, generation: i64) -> WorkspaceId {
    let id = setup.create(named("n")).await.id;
    for _ in 0..generation {
        let mut tx = setup.begin().await;
        let begun = begin(&mut tx, id).await.unwrap();
        tx.commit().await.unwrap();
        assert!(matches!(begun, Begin::Go(_)), "{begun:?}");
    }
    id
}

#[tokio::test]
async fn a_start_stays_open_until_its_instance_is_written_down() {
    let setup = Setup::new().await;
    let id = begun(&setup, 2).await;
    let mut conn = setup.conn().await;
    assert_eq!(find_open_start(&mut conn, id).await.unwrap(), None);
    assert!(!open_start(&mut conn, id, 1, "far", LIMIT).await.unwrap());
    assert!(open_start(&mut conn, id, 2, "far", LIMIT).await.unwrap());
    let open = find_open_start(&mut conn, id).await.unwrap().unwrap();
    assert_eq!(open.called_as, 2);
    assert!(open.uncertain_for > Duration::from_secs(60) && open.uncertain_for <= LIMIT);
    let row = setup.load(id).await;
    assert_eq!(
        (row.engine_id.as_deref(), &row.instance_id),
        (Some("far"), &None)
    );
    assert!(is_start_unrecorded(&row));

    // Time makes it certain, and nobody forgets it.
    setup.db.advance(LIMIT).await;
    let open = find_open_start(&mut conn, id).await.unwrap().unwrap();
    assert_eq!(
        open,
        OpenStart {
            called_as: 2,
            uncertain_for: Duration::ZERO
        }
    );
    assert!(
        !mark_instance_started(&mut conn, id, 1, "i-1", "far")
            .await
            .unwrap()
    );
    assert!(
        mark_instance_started(&mut conn, id, 2, "i-2", "far")
            .await
            .unwrap()
    );
    assert_eq!(find_open_start(&mut conn, id).await.unwrap(), None);
    assert_eq!(
        find_instance(&mut conn, id).await.unwrap().as_deref(),
        Some("i-2")
    );
    assert!(!is_start_unrecorded(&setup.load(id).await));
}

#[tokio::test]
async fn what_an_agent_said_of_itself_is_kept_when_its_instance_is_written_down() {
    let setup = Setup::new().await;
    let id = begun(&setup, 1).await;
    let mut conn = setup.conn().await;
    assert!(open_start(&mut conn, id, 1, "far", LIMIT).await.unwrap());
    setup.write_status(id, WorkspaceStatus::Online).await;
    assert!(
        mark_instance_started(&mut conn, id, 1, "i-1", "far")
            .await
            .unwrap()
    );
    assert_eq!(setup.load(id).await.status, WorkspaceStatus::Online);
}

#[tokio::test]
async fn of_a_removed_workspace_an_instance_is_only_adopted() {
    let setup = Setup::new().await;
    let id = begun(&setup, 1).await;
    let mut conn = setup.conn().await;
    assert!(open_start(&mut conn, id, 1, "far", LIMIT).await.unwrap());
    let mut tx = setup.begin().await;
    let removed = remove_workspaces(&mut tx, id).await.unwrap().unwrap();
    tx.commit().await.unwrap();
    assert!(removed.workspaces[0].may_have_run());
    assert!(!open_start(&mut conn, id, 2, "far", LIMIT).await.unwrap());
    assert!(
        !mark_instance_started(&mut conn, id, 1, "i-1", "far")
            .await
            .unwrap()
    );
    assert!(adopt_instance(&mut conn, id, 1, "i-1").await.unwrap());
    assert!(!adopt_instance(&mut conn, id, 1, "i-2").await.unwrap());
    assert_eq!(find_open_start(&mut conn, id).await.unwrap(), None);
    assert_eq!(
        find_instance(&mut conn, id).await.unwrap().as_deref(),
        Some("i-1")
    );
}

#[tokio::test]
async fn only_what_was_stopped_is_forgotten() {
    let setup = Setup::new().await;
    let id = begun(&setup, 1).await;
    let mut conn = setup.conn().await;
    assert!(open_start(&mut conn, id, 1, "far", LIMIT).await.unwrap());
    assert!(
        mark_instance_started(&mut conn, id, 1, "i-1", "far")
            .await
            .unwrap()
    );
    assert!(!clear_instance(&mut conn, id, "i-0").await.unwrap());
    assert_eq!(
        find_instance(&mut conn, id).await.unwrap().as_deref(),
        Some("i-1")
    );
    assert!(clear_instance(&mut conn, id, "i-1").await.unwrap());
    assert!(!clear_instance(&mut conn, id, "i-1").await.unwrap());
    assert_eq!(find_instance(&mut conn, id).await.unwrap(), None);
    assert_eq!(
        find_instance(&mut conn, WorkspaceId::random())
            .await
            .unwrap(),
        None
    );

    assert!(open_start(&mut conn, id, 1, "far", LIMIT).await.unwrap());
    close_start(&mut conn, id, 0).await.unwrap();
    assert!(find_open_start(&mut conn, id).await.unwrap().is_some());
    close_start(&mut conn, id, 1).await.unwrap();
    assert_eq!(find_open_start(&mut conn, id).await.unwrap(), None);
}

#[tokio::test]
async fn a_start_that_nobody_asks_about_is_taken_once_its_workspace_is_given_up() {
    let setup = Setup::new().await;
    let (given_up, waiting) = (begun(&setup, 1).await, begun(&setup, 1).await);
    let mut conn = setup.conn().await;
    for id in [given_up, waiting] {
        assert!(open_start(&mut conn, id, 1, "far", LIMIT).await.unwrap());
    }
    setup.write_status(given_up, WorkspaceStatus::Failed).await;
    setup.db.advance(LIMIT + Duration::from_secs(50)).await;
    let after = Duration::from_secs(60);
    assert_eq!(take_forgotten_starts(&mut conn, after).await.unwrap(), []);
    setup.db.advance(Duration::from_secs(20)).await;
    let taken = take_forgotten_starts(&mut conn, after).await.unwrap();
    assert_eq!(taken.len(), 1);
    assert_eq!(taken[0].key(), format!("{given_up}:1"));
    assert_eq!(take_forgotten_starts(&mut conn, after).await.unwrap(), []);
    assert!(find_open_start(&mut conn, waiting).await.unwrap().is_some());
}

#[tokio::test]
async fn a_stop_stays_open_until_its_answer_is_written_down() {
    let setup = Setup::new().await;
    let id = begun(&setup, 1).await;
    let mut conn = setup.conn().await;
    assert!(!open_stop(&mut conn, id, "i-1").await.unwrap());
    assert!(open_stop(&mut conn, id, "i-1").await.unwrap());
    assert!(!open_stop(&mut conn, id, "i-2").await.unwrap());
    assert!(close_stop(&mut conn, "i-2").await.unwrap());
    assert!(!close_stop(&mut conn, "i-2").await.unwrap());
    assert_eq!(list_open_stops(&mut conn).await.unwrap(), ["i-1"]);
    assert!(forget_instance(&mut conn, id, "i-1").await.unwrap());
    assert!(!forget_instance(&mut conn, id, "i-1").await.unwrap());
    assert!(list_open_stops(&mut conn).await.unwrap().is_empty());
}
