use std::time::Duration;

use longshore_base::WorkspaceId;
use longshore_fleet::WorkspaceStatus;
use longshore_fleet::images::{Followed, list_followed, list_followers, record_seen, settle};

use crate::setup::Setup;

const RUNTIME: &str = "claude-code";

async fn followed(setup: &Setup) -> Followed {
    let all = list_followed(&mut *setup.conn().await, &setup.fleet).await;
    let mut all = all.unwrap().into_iter();
    all.find(|followed| followed.runtime == RUNTIME).unwrap()
}

async fn see(setup: &Setup, digest: &str) {
    let before = followed(setup).await;
    record_seen(&mut *setup.conn().await, &before, digest)
        .await
        .unwrap();
    setup.db.advance(Duration::from_secs(1)).await;
}

/// As a start on that digest leaves it.
async fn write_started(setup: &Setup, id: WorkspaceId, digest: Option<&str>) {
    sqlx::query("UPDATE workspaces SET runtime_image_digest = $2, provision_started_at = longshore_now() WHERE id = $1")
        .bind(id)
        .bind(digest)
        .execute(setup.pool())
        .await
        .unwrap();
    setup.db.advance(Duration::from_secs(1)).await;
}

async fn outdated(setup: &Setup) -> Vec<WorkspaceId> {
    let followers = list_followers(&mut *setup.conn().await, RUNTIME).await;
    let followers = followers.unwrap().into_iter();
    let outdated = followers.filter(|follower| follower.is_outdated);
    outdated.map(|follower| follower.id).collect()
}

#[tokio::test]
async fn who_began_before_a_tag_moved_is_outdated_and_nobody_twice() {
    let setup = Setup::new().await;
    let (old, new) = ("ab".repeat(32), "cd".repeat(32));
    let up = setup.create_in("up", WorkspaceStatus::Online).await.id;
    let unknown = setup.create_in("own", WorkspaceStatus::Online).await.id;
    let down = setup.create_in("down", WorkspaceStatus::Paused).await.id;
    for id in [up, down] {
        write_started(&setup, id, Some(&old)).await;
    }
    write_started(&setup, unknown, None).await;
    let first = followed(&setup).await;
    assert_eq!((&first.digest, first.has_moved), (&None, false));
    assert!(first.reference.ends_with(":latest"), "{first:?}");
    see(&setup, &new).await;
    let seen = followed(&setup).await;
    assert_eq!((seen.digest.as_ref(), seen.has_moved), (Some(&new), false));
    assert_eq!(outdated(&setup).await, [], "a first look remembers");

    see(&setup, &old).await;
    see(&setup, &new).await;
    assert!(followed(&setup).await.has_moved);
    assert_eq!(outdated(&setup).await, [up]);
    // Restarted, and for some reason still on what it was: once is enough.
    write_started(&setup, up, Some(&old)).await;
    assert_eq!(outdated(&setup).await, []);

    settle(&mut *setup.conn().await, RUNTIME).await.unwrap();
    assert!(followed(&setup).await.has_moved, "some may be on their way");
    setup.db.advance(Duration::from_secs(2 * 3600)).await;
    settle(&mut *setup.conn().await, RUNTIME).await.unwrap();
    assert!(!followed(&setup).await.has_moved);
}
