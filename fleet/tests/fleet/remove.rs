use longshore_base::WorkspaceId;
use longshore_fleet::WorkspaceStatus;
use longshore_fleet::tokens::{find_former_owner, issue, verify_workspace_token};
use longshore_fleet::workspace::{
    NewWorkspace, RemovedSet, create_workspace, list_children, list_workspaces, organisation_root,
    remove_workspaces,
};
use serde_json::json;

use crate::setup::{Setup, named};

async fn remove(setup: &Setup, id: WorkspaceId) -> Option<RemovedSet> {
    let mut tx = setup.begin().await;
    let removed = remove_workspaces(&mut tx, id).await.unwrap();
    tx.commit().await.unwrap();
    removed
}

#[tokio::test]
async fn everything_below_goes_with_it() {
    let setup = Setup::new().await;
    let root = setup.create_in("root", WorkspaceStatus::Online).await;
    let child = setup.create_child("child", root.id).await.id;
    let grandchild = setup.create_child("grandchild", child).await.id;
    let bystander = setup.create(named("bystander")).await.id;
    let mut conn = setup.conn().await;
    let token = issue(&mut conn, grandchild).await.unwrap();
    let children = list_children(&mut conn, root.id).await.unwrap();
    assert_eq!(
        children
            .iter()
            .map(|child| child.name.as_str())
            .collect::<Vec<_>>(),
        ["child"]
    );

    let removed = remove(&setup, root.id).await.unwrap();
    assert_eq!(removed.cascade_deleted, 2);
    let ids = removed.ids();
    assert_eq!(ids.last(), Some(&root.id));
    assert!(ids.contains(&child) && ids.contains(&grandchild) && ids.len() == 3);
    let last = removed.workspaces.last().unwrap();
    assert_eq!(last.container_id.as_deref(), Some("c0ffee"));
    assert_eq!(last.generation, root.provision_generation + 1);

    for id in ids {
        let row = setup.load(id).await;
        assert_eq!(row.status, WorkspaceStatus::Removed);
        assert!(row.removed_at.is_some());
    }
    assert_eq!(setup.count("canvas_layouts").await, 1);
    assert_eq!(
        verify_workspace_token(&mut conn, token.expose())
            .await
            .unwrap(),
        None
    );
    assert_eq!(
        find_former_owner(&mut conn, token.expose()).await.unwrap(),
        Some(grandchild)
    );
    let removal = |payload| [("WORKSPACE_REMOVED".to_owned(), payload)];
    assert_eq!(
        setup.events_after(root.id, 1).await,
        removal(json!({ "cascade_deleted": 2 }))
    );
    assert_eq!(setup.events_after(grandchild, 1).await, removal(json!({})));
    let left = list_workspaces(&mut conn).await.unwrap();
    assert_eq!(
        left.iter().map(|row| row.id).collect::<Vec<_>>(),
        [bystander]
    );
}

#[tokio::test]
async fn a_repeated_delete_replays_the_stops_without_events() {
    let setup = Setup::new().await;
    let root = setup.create(named("root")).await.id;
    let child = setup.create_child("child", root).await.id;
    remove(&setup, root).await.unwrap();
    let removed_at = setup.load(root).await.removed_at;
    let again = remove(&setup, root).await.unwrap();
    assert_eq!((again.ids(), again.cascade_deleted), (vec![child, root], 0));
    assert!(again.workspaces.iter().all(|workspace| !workspace.newly));
    assert_eq!(setup.events_after(root, 2).await, []);
    assert_eq!(setup.load(root).await.removed_at, removed_at);
}

#[tokio::test]
async fn what_an_earlier_delete_removed_is_kept_apart() {
    let setup = Setup::new().await;
    let root = setup.create(named("root")).await.id;
    let child = setup.create_child("child", root).await.id;
    remove(&setup, child).await.unwrap();
    let removed = remove(&setup, root).await.unwrap();
    assert_eq!((removed.ids(), removed.cascade_deleted), (vec![root], 0));
    assert_eq!(
        removed
            .earlier
            .iter()
            .map(|workspace| workspace.id)
            .collect::<Vec<_>>(),
        [child]
    );
}

#[tokio::test]
async fn an_unknown_workspace_is_not_removed() {
    let setup = Setup::new().await;
    assert_eq!(remove(&setup, WorkspaceId::random()).await, None);
}

#[tokio::test]
async fn no_child_slips_under_a_parent_that_is_being_deleted() {
    let setup = Setup::new().await;
    let root = setup.create(named("root")).await.id;
    let mut creating = setup.begin().await;
    let new = NewWorkspace {
        parent_id: Some(root.to_string()),
        ..named("late")
    };
    let late = create_workspace(&mut creating, &setup.fleet, new)
        .await
        .unwrap()
        .id;
    let (removed, ()) = tokio::join!(remove(&setup, root), async {
        // The delete has to wait for this, or it would miss the child.
        setup.until_someone_waits().await;
        creating.commit().await.unwrap();
    });
    assert_eq!(removed.unwrap().ids(), [late, root]);
}

#[tokio::test]
async fn the_root_of_an_organisation_is_found_from_anywhere_in_it() {
    let setup = Setup::new().await;
    let mut chain = vec![setup.create(named("0")).await.id];
    for depth in 1..=32 {
        let parent = *chain.last().unwrap();
        chain.push(setup.create_child(&depth.to_string(), parent).await.id);
    }
    let mut conn = setup.conn().await;
    for id in &chain {
        assert_eq!(organisation_root(&mut conn, *id).await.unwrap(), chain[0]);
    }
    let unknown = WorkspaceId::random();
    assert_eq!(
        organisation_root(&mut conn, unknown).await.unwrap(),
        unknown
    );
    // One more is over the cap: still an ancestor, and the walk ends.
    let too_deep = setup.create_child("33", *chain.last().unwrap()).await.id;
    assert!(chain.contains(&organisation_root(&mut conn, too_deep).await.unwrap()));
}
