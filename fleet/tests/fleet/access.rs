use longshore_base::WorkspaceId;
use longshore_fleet::WorkspaceStatus;
use longshore_fleet::access::can_communicate;

use crate::setup::{Setup, named};

#[tokio::test]
async fn siblings_and_the_line_of_ancestors_may_talk() {
    let setup = Setup::new().await;
    let root = setup.create(named("root")).await.id;
    let a = setup.create_child("a", root).await.id;
    let b = setup.create_child("b", root).await.id;
    let a1 = setup.create_child("a1", a).await.id;
    let a11 = setup.create_child("a11", a1).await.id;
    let b1 = setup.create_child("b1", b).await.id;
    let other_root = setup.create(named("other")).await.id;
    let unknown = WorkspaceId::random();
    setup.write_status(b, WorkspaceStatus::Removed).await;
    let mut conn = setup.conn().await;
    for (caller, target, allowed) in [
        (a, a, true),
        (a, b, true),
        (root, other_root, true),
        (root, a, true),
        (root, a11, true),
        (a11, root, true),
        (a, a11, true),
        (a1, b1, false),
        (a1, b, false),
        (a, other_root, false),
        (a11, b1, false),
        (a, unknown, false),
        (unknown, a, false),
        (unknown, unknown, true),
    ] {
        assert_eq!(
            can_communicate(&mut conn, caller, target).await,
            allowed,
            "{caller} {target}"
        );
        assert_eq!(
            can_communicate(&mut conn, target, caller).await,
            allowed,
            "{target} {caller}"
        );
    }
}

#[tokio::test]
async fn a_cycle_ends_in_no() {
    let setup = Setup::new().await;
    let a = setup.create(named("a")).await.id;
    let b = setup.create_child("b", a).await.id;
    let outside = setup.create(named("outside")).await.id;
    sqlx::query("UPDATE workspaces SET parent_id = $2 WHERE id = $1")
        .bind(a)
        .bind(b)
        .execute(setup.pool())
        .await
        .unwrap();
    let mut conn = setup.conn().await;
    assert!(!can_communicate(&mut conn, a, outside).await);
    assert!(can_communicate(&mut conn, a, b).await);
}

#[tokio::test]
async fn a_database_that_does_not_answer_means_no() {
    let setup = Setup::new().await;
    let a = setup.create(named("a")).await.id;
    let b = setup.create(named("b")).await.id;
    let mut tx = setup.begin().await;
    sqlx::query("ALTER TABLE workspaces RENAME TO elsewhere")
        .execute(&mut *tx)
        .await
        .unwrap();
    assert!(!can_communicate(&mut tx, a, b).await);
}
