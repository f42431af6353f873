use std::time::Duration;

use longshore_base::{Secret, WorkspaceId};
use longshore_fleet::WorkspaceStatus;
use longshore_fleet::tokens::{
    count_live, ever_issued, has_live, issue, list_org_tokens, list_tokens, mint_org_token, revoke,
    revoke_all, revoke_org_token, revoke_others, rotate, verify_org_token, verify_workspace_token,
};

use crate::setup::{Setup, named};

#[tokio::test]
async fn a_token_is_known_by_its_hash_until_it_is_revoked() {
    let setup = Setup::new().await;
    let id = setup.create(named("n")).await.id;
    let mut conn = setup.conn().await;
    assert!(!ever_issued(&mut conn, id).await.unwrap());
    let token = issue(&mut conn, id).await.unwrap();
    assert_eq!(token.expose().len(), 43);
    assert_eq!(
        verify_workspace_token(&mut conn, token.expose())
            .await
            .unwrap(),
        Some(id)
    );
    let stored: Vec<u8> = sqlx::query_scalar("SELECT token_hash FROM workspace_auth_tokens")
        .fetch_one(setup.pool())
        .await
        .unwrap();
    assert_eq!(
        stored,
        longshore_base::secret::sha256(token.expose().as_bytes())
    );
    let listed = list_tokens(&mut conn, id, 50, 0).await.unwrap();
    assert_eq!(listed[0].prefix, token.expose()[..8]);
    assert!(listed[0].last_used_at.is_some());

    for wrong in ["", "nope", &"x".repeat(43), &token.expose()[..42]] {
        assert_eq!(
            verify_workspace_token(&mut conn, wrong).await.unwrap(),
            None,
            "{wrong}"
        );
    }
    assert!(revoke(&mut conn, id, listed[0].id).await.unwrap());
    assert!(!revoke(&mut conn, id, listed[0].id).await.unwrap());
    assert_eq!(
        verify_workspace_token(&mut conn, token.expose())
            .await
            .unwrap(),
        None
    );
    assert!(!has_live(&mut conn, id).await.unwrap());
    assert!(ever_issued(&mut conn, id).await.unwrap());
}

#[tokio::test]
async fn a_removed_workspace_has_no_valid_token() {
    let setup = Setup::new().await;
    let id = setup.create(named("n")).await.id;
    let mut conn = setup.conn().await;
    let token = issue(&mut conn, id).await.unwrap();
    setup.write_status(id, WorkspaceStatus::Removed).await;
    assert_eq!(
        verify_workspace_token(&mut conn, token.expose())
            .await
            .unwrap(),
        None
    );
}

#[tokio::test]
async fn rotating_leaves_exactly_the_new_one() {
    let setup = Setup::new().await;
    let id = setup.create(named("n")).await.id;
    let mut conn = setup.conn().await;
    let first = issue(&mut conn, id).await.unwrap();
    issue(&mut conn, id).await.unwrap();
    assert_eq!(count_live(&mut conn, id).await.unwrap(), 2);
    let new = rotate(&mut conn, id).await.unwrap();
    assert_eq!(count_live(&mut conn, id).await.unwrap(), 1);
    assert_eq!(
        verify_workspace_token(&mut conn, first.expose())
            .await
            .unwrap(),
        None
    );
    assert_eq!(
        verify_workspace_token(&mut conn, new.expose())
            .await
            .unwrap(),
        Some(id)
    );
    let other = issue(&mut conn, id).await.unwrap();
    assert_eq!(revoke_others(&mut conn, id, &other).await.unwrap(), 1);
    assert_eq!(
        verify_workspace_token(&mut conn, other.expose())
            .await
            .unwrap(),
        Some(id)
    );
    assert_eq!(revoke_all(&mut conn, id).await.unwrap(), 1);
}

#[tokio::test]
async fn using_a_token_is_noted_but_not_each_time() {
    let setup = Setup::new().await;
    let id = setup.create(named("n")).await.id;
    let mut conn = setup.conn().await;
    let token = issue(&mut conn, id).await.unwrap();
    let used = async |conn: &mut sqlx::PgConnection| {
        verify_workspace_token(conn, token.expose()).await.unwrap();
        list_tokens(conn, id, 1, 0).await.unwrap()[0]
            .last_used_at
            .unwrap()
    };
    let first = used(&mut conn).await;
    assert_eq!(used(&mut conn).await, first);
    setup.db.advance(Duration::from_secs(11)).await;
    let later = used(&mut conn).await;
    assert!(later > first);
    // Someone who holds the row does not hold up the next caller.
    setup.db.advance(Duration::from_secs(11)).await;
    let mut tx = setup.begin().await;
    sqlx::query("SET lock_timeout = '1s'")
        .execute(&mut *conn)
        .await
        .unwrap();
    sqlx::query("SELECT 1 FROM workspace_auth_tokens FOR UPDATE")
        .execute(&mut *tx)
        .await
        .unwrap();
    assert_eq!(used(&mut conn).await, later);
}

#[tokio::test]
async fn organisation_tokens_are_listed_newest_first_and_revoked_once() {
    let setup = Setup::new().await;
    let mut conn = setup.conn().await;
    let (first, token) = mint_org_token(&mut conn, Some("ci"), "admin-token", None)
        .await
        .unwrap();
    let created_by = format!("org-token:{}", first.prefix);
    let org = setup.create(named("org")).await.id;
    let (second, _) = mint_org_token(&mut conn, None, &created_by, Some(org))
        .await
        .unwrap();
    assert_eq!(
        verify_org_token(&mut conn, token.expose()).await.unwrap(),
        Some(first.clone())
    );
    let listed = list_org_tokens(&mut conn).await.unwrap();
    assert_eq!(
        listed.iter().map(|row| row.id).collect::<Vec<_>>(),
        [second.id, first.id]
    );
    assert_eq!(
        (listed[0].org_id, listed[1].name.as_deref()),
        (Some(org), Some("ci"))
    );
    assert!(revoke_org_token(&mut conn, first.id).await.unwrap());
    assert!(!revoke_org_token(&mut conn, first.id).await.unwrap());
    assert_eq!(
        verify_org_token(&mut conn, token.expose()).await.unwrap(),
        None
    );
    // A workspace token is no organisation token, and the reverse.
    let own: Secret<String> = issue(&mut conn, org).await.unwrap();
    assert_eq!(
        verify_org_token(&mut conn, own.expose()).await.unwrap(),
        None
    );
    assert_eq!(
        verify_workspace_token(&mut conn, token.expose())
            .await
            .unwrap(),
        None::<WorkspaceId>
    );
}
