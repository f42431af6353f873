use longshore_base::WorkspaceId;
use longshore_fleet::WorkspaceStatus;
use longshore_fleet::memories::{MemorySeed, seed};
use longshore_fleet::tokens::{find_former_owner, issue};
use longshore_fleet::workspace::{
    Purged, clear_footprints, find_workspaces, purge_workspaces, remove_workspaces,
};

use crate::setup::Setup;

async fn purge(setup: &Setup, ids: &[WorkspaceId]) -> Purged {
    let mut tx = setup.begin().await;
    let purged = purge_workspaces(&mut tx, ids).await.unwrap();
    tx.commit().await.unwrap();
    purged
}

#[tokio::test]
async fn nothing_is_deleted_before_nothing_is_left_anywhere() {
    let setup = Setup::new().await;
    let root = setup.create_in("root", WorkspaceStatus::Online).await.id;
    let child = setup.create_child("child", root).await.id;
    let ids = [child, root];
    let mut tx = setup.begin().await;
    remove_workspaces(&mut tx, root).await.unwrap();
    tx.commit().await.unwrap();
    // The child never ran; the root may have.
    assert_eq!(purge(&setup, &ids).await, Purged::Leftovers(vec![root]));
    assert_eq!(
        find_workspaces(&mut *setup.conn().await, &ids)
            .await
            .unwrap()
            .len(),
        2
    );

    clear_footprints(&mut *setup.conn().await, &ids)
        .await
        .unwrap();
    assert_eq!(purge(&setup, &ids).await, Purged::Rows(2));
    assert_eq!(purge(&setup, &ids).await, Purged::Rows(0), "safe to repeat");
}

#[tokio::test]
async fn a_purge_takes_everything_that_was_the_workspaces_alone_and_no_event() {
    let setup = Setup::new().await;
    let root = setup.create_in("root", WorkspaceStatus::Online).await.id;
    let other = setup.create_in("other", WorkspaceStatus::Online).await.id;
    let mut conn = setup.conn().await;
    let token = issue(&mut conn, root).await.unwrap();
    let memory = MemorySeed {
        content: "remember".into(),
        scope: "LOCAL".into(),
    };
    for id in [root, other] {
        seed(&mut conn, id, "ns", std::slice::from_ref(&memory)).await;
    }
    sqlx::query("UPDATE workspaces SET forwarded_to = $1 WHERE id = $2")
        .bind(root)
        .bind(other)
        .execute(setup.pool())
        .await
        .unwrap();
    sqlx::query("INSERT INTO activity_logs (workspace_id, activity_type) VALUES ($1, 'x')")
        .bind(root)
        .execute(setup.pool())
        .await
        .unwrap();
    let mut tx = setup.begin().await;
    remove_workspaces(&mut tx, root).await.unwrap();
    clear_footprints(&mut tx, &[root, other]).await.unwrap();
    tx.commit().await.unwrap();
    let events = setup.events(root).await;

    // One that is not removed is never deleted, whoever asks.
    sqlx::query("UPDATE workspaces SET engine_id = NULL, container_id = NULL")
        .execute(setup.pool())
        .await
        .unwrap();
    assert_eq!(purge(&setup, &[root, other]).await, Purged::Rows(1));
    assert_eq!(setup.count("workspaces").await, 1);
    assert_eq!(setup.load(other).await.forwarded_to, None);
    assert_eq!(setup.count("agent_memories").await, 1);
    assert_eq!(setup.count("activity_logs").await, 0);
    assert_eq!(setup.count("workspace_auth_tokens").await, 0);
    assert_eq!(
        find_former_owner(&mut conn, token.expose()).await.unwrap(),
        None
    );
    assert_eq!(setup.events(root).await, events);
}
