use longshore_base::WorkspaceId;
use longshore_fleet::inbound_secret::{ensure, issue};

use crate::setup::{Setup, named};

#[tokio::test]
async fn a_missing_secret_is_made_and_then_read_from_the_cache() {
    let setup = Setup::new().await;
    let id = setup.create(named("n")).await.id;
    let mut conn = setup.conn().await;
    let made = ensure(&mut conn, &setup.fleet, id).await.unwrap().unwrap();
    assert_eq!(made.expose().len(), 43);
    let write = async |value: Option<&str>| {
        sqlx::query("UPDATE workspaces SET platform_inbound_secret = $1")
            .bind(value)
            .execute(setup.pool())
            .await
            .unwrap();
    };
    write(Some("changed elsewhere")).await;
    assert_eq!(
        ensure(&mut conn, &setup.fleet, id).await.unwrap(),
        Some(made)
    );
    setup.fleet.inbound_secrets.reset();
    let seen = ensure(&mut conn, &setup.fleet, id).await.unwrap().unwrap();
    assert_eq!(seen.expose(), "changed elsewhere");
    // Whoever issues sees its own value at once.
    let issued = issue(&mut conn, &setup.fleet, id).await.unwrap().unwrap();
    assert_eq!(
        ensure(&mut conn, &setup.fleet, id).await.unwrap(),
        Some(issued)
    );
    let unknown = WorkspaceId::random();
    assert_eq!(
        ensure(&mut conn, &setup.fleet, unknown).await.unwrap(),
        None
    );
    assert_eq!(issue(&mut conn, &setup.fleet, unknown).await.unwrap(), None);
}

#[tokio::test]
async fn two_processes_that_heal_at_once_agree() {
    let setup = Setup::new().await;
    let id = setup.create(named("n")).await.id;
    let other = setup.other_process();
    let mut healing = setup.begin().await;
    let first = ensure(&mut healing, &setup.fleet, id).await.unwrap();
    // The other one saw no secret either; it waits for the row, and must not write over it.
    let mut conn = setup.conn().await;
    let (second, ()) = tokio::join!(ensure(&mut conn, &other, id), async {
        setup.until_someone_waits().await;
        healing.commit().await.unwrap();
    });
    assert!(first.is_some());
    assert_eq!(second.unwrap(), first);
}
