//! Answers kept under a client's key.

use std::time::Duration;

use longshore_fleet::FleetError;
use longshore_fleet::idempotency::{Claim, Fresh, KeptAnswer, KeyedRequest, claim};
use longshore_fleet::secrets::Sealer;
use longshore_fleet::tokens::mint_org_token;
use sqlx::PgConnection;

use crate::setup::Setup;

const DAY: Duration = Duration::from_secs(24 * 3600);
const REQUEST: KeyedRequest<'static> = KeyedRequest {
    caller: "admin",
    method: "POST",
    route: "/workspaces",
    query: "",
    key: "k-1",
    body: b"{\"name\":\"n\"}",
};

fn answer() -> KeptAnswer {
    KeptAnswer {
        status: 201,
        headers: vec![
            ("content-type".to_owned(), "application/json".to_owned()),
            ("location".to_owned(), "/jobs/1".to_owned()),
        ],
        body: b"{\"auth_token\":\"the-token-of-an-agent\"}".to_vec(),
    }
}

async fn claim_fresh(tx: &mut PgConnection, keys: &Sealer, request: &KeyedRequest<'_>) -> Fresh {
    match claim(tx, keys, request).await.unwrap() {
        Claim::Fresh(fresh) => fresh,
        other => panic!("{other:?}"),
    }
}

/// What a claim finds, without keeping anything.
async fn look(setup: &Setup, keys: &Sealer, request: &KeyedRequest<'_>) -> Claim {
    let mut tx = setup.begin().await;
    let found = claim(&mut tx, keys, request).await.unwrap();
    // Dropped, it would hold the key for another moment.
    tx.rollback().await.unwrap();
    found
}

async fn keep(setup: &Setup, keys: &Sealer, request: &KeyedRequest<'_>) {
    let mut tx = setup.begin().await;
    let fresh = claim_fresh(&mut tx, keys, request).await;
    fresh.keep(&mut tx, keys, &answer(), DAY).await.unwrap();
    tx.commit().await.unwrap();
}

async fn count(setup: &Setup) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM idempotency_keys")
        .fetch_one(setup.pool())
        .await
        .unwrap()
}

#[tokio::test]
async fn a_kept_answer_is_given_again_as_it_was() {
    let setup = Setup::new().await;
    let keys = &setup.fleet.keys;
    keep(&setup, keys, &REQUEST).await;
    for _ in 0..2 {
        let Claim::Answered(kept) = look(&setup, keys, &REQUEST).await else {
            panic!("nothing was kept");
        };
        assert_eq!(kept, answer());
    }
    assert_eq!(count(&setup).await, 1);
}

#[tokio::test]
async fn a_key_is_held_until_its_transaction_ends_and_by_nobody_after_a_rollback() {
    let setup = Setup::new().await;
    let keys = &setup.fleet.keys;
    let mut first = setup.begin().await;
    let fresh = claim_fresh(&mut first, keys, &REQUEST).await;
    assert!(matches!(
        look(&setup, keys, &REQUEST).await,
        Claim::InProgress
    ));
    fresh.keep(&mut first, keys, &answer(), DAY).await.unwrap();
    // Kept, but not committed: to others it is still under way.
    assert!(matches!(
        look(&setup, keys, &REQUEST).await,
        Claim::InProgress
    ));
    first.rollback().await.unwrap();
    assert!(matches!(
        look(&setup, keys, &REQUEST).await,
        Claim::Fresh(_)
    ));
    assert_eq!(count(&setup).await, 0);
}

#[tokio::test]
async fn a_key_belongs_to_a_caller_a_method_and_a_route_and_to_one_request_of_them() {
    let setup = Setup::new().await;
    let keys = &setup.fleet.keys;
    keep(&setup, keys, &REQUEST).await;
    let elsewhere = [
        KeyedRequest {
            caller: "org-token:1",
            ..REQUEST
        },
        KeyedRequest {
            method: "PUT",
            ..REQUEST
        },
        KeyedRequest {
            route: "/jobs/1/cancel",
            ..REQUEST
        },
        KeyedRequest {
            key: "k-2",
            ..REQUEST
        },
    ];
    for request in elsewhere {
        let found = look(&setup, keys, &request).await;
        assert!(matches!(found, Claim::Fresh(_)), "{request:?}: {found:?}");
    }
    let others = [
        KeyedRequest {
            body: b"{}",
            ..REQUEST
        },
        KeyedRequest {
            query: "force=true",
            ..REQUEST
        },
    ];
    for request in others {
        let found = look(&setup, keys, &request).await;
        assert!(matches!(found, Claim::OtherRequest), "{found:?}");
    }
}

#[tokio::test]
async fn work_is_undone_alone_and_the_answer_kept() {
    let setup = Setup::new().await;
    let keys = &setup.fleet.keys;
    let mut tx = setup.begin().await;
    let fresh = claim_fresh(&mut tx, keys, &REQUEST).await;
    mint_org_token(&mut tx, None, "test", None).await.unwrap();
    // A statement that fails breaks the transaction; the savepoint mends that too.
    sqlx::query("SELECT 1 / 0")
        .execute(&mut *tx)
        .await
        .unwrap_err();
    fresh.undo_work(&mut tx).await.unwrap();
    fresh.keep(&mut tx, keys, &answer(), DAY).await.unwrap();
    tx.commit().await.unwrap();
    let tokens: i64 = sqlx::query_scalar("SELECT count(*) FROM org_api_tokens")
        .fetch_one(setup.pool())
        .await
        .unwrap();
    assert_eq!((tokens, count(&setup).await), (0, 1));
}

#[tokio::test]
async fn an_answer_expires_and_is_cleared_away_by_those_kept_later() {
    let setup = Setup::new().await;
    let keys = &setup.fleet.keys;
    let names: Vec<String> = (0..120).map(|number| format!("old-{number}")).collect();
    for key in &names {
        keep(&setup, keys, &KeyedRequest { key, ..REQUEST }).await;
    }
    let old = KeyedRequest {
        key: &names[0],
        ..REQUEST
    };
    setup.db.advance(DAY - Duration::from_secs(60)).await;
    assert!(matches!(look(&setup, keys, &old).await, Claim::Answered(_)));
    setup.db.advance(Duration::from_secs(120)).await;
    // Expired is absent, although the row is still there: it is replaced, also for another body.
    let changed = KeyedRequest { body: b"{}", ..old };
    keep(&setup, keys, &changed).await;
    assert_eq!(count(&setup).await, 70);
    assert!(matches!(
        look(&setup, keys, &changed).await,
        Claim::Answered(_)
    ));
    keep(&setup, keys, &REQUEST).await;
    keep(
        &setup,
        keys,
        &KeyedRequest {
            key: "k-2",
            ..REQUEST
        },
    )
    .await;
    assert_eq!(count(&setup).await, 3, "only what was kept since");
}

#[tokio::test]
async fn a_body_is_sealed_and_opens_only_in_its_own_row_and_with_its_key() {
    let setup = Setup::new().await;
    let keys = &setup.fleet.keys;
    keep(&setup, keys, &REQUEST).await;
    let (stored, version): (Vec<u8>, i32) =
        sqlx::query_as("SELECT encrypted_body, encryption_version FROM idempotency_keys")
            .fetch_one(setup.pool())
            .await
            .unwrap();
    assert_eq!(version, 2);
    assert!(!String::from_utf8_lossy(&stored).contains("the-token-of-an-agent"));

    // Rotated: the old key still opens, and still tells the same request from another.
    let old = "0123456789abcdef0123456789abcdef";
    let ring = "next:MDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDA=";
    let rotated = Sealer::from_settings(Some(old), Some(ring)).unwrap();
    assert!(matches!(
        look(&setup, &rotated, &REQUEST).await,
        Claim::Answered(_)
    ));
    let another = KeyedRequest {
        body: b"{}",
        ..REQUEST
    };
    assert!(matches!(
        look(&setup, &rotated, &another).await,
        Claim::OtherRequest
    ));
    // Gone: nobody knows what was answered, and the work must not be done again.
    let lost = Sealer::from_settings(None, Some(ring)).unwrap();
    let mut tx = setup.begin().await;
    let error = claim(&mut tx, &lost, &REQUEST).await.unwrap_err();
    assert!(matches!(error, FleetError::Unseal(_)), "{error:?}");
    tx.rollback().await.unwrap();

    sqlx::query("UPDATE idempotency_keys SET key = 'k-2'")
        .execute(setup.pool())
        .await
        .unwrap();
    let mut tx = setup.begin().await;
    let moved = KeyedRequest {
        key: "k-2",
        ..REQUEST
    };
    let error = claim(&mut tx, keys, &moved).await.unwrap_err();
    assert!(matches!(error, FleetError::Unseal(_)), "{error:?}");
}

#[tokio::test]
async fn without_a_sealing_key_a_body_is_plain_text_and_everything_else_the_same() {
    let setup = Setup::new().await;
    let keys = Sealer::without_key();
    keep(&setup, &keys, &REQUEST).await;
    let stored: (Vec<u8>, i32, Option<String>) =
        sqlx::query_as("SELECT encrypted_body, encryption_version, key_id FROM idempotency_keys")
            .fetch_one(setup.pool())
            .await
            .unwrap();
    assert_eq!(stored, (answer().body, 0, None));
    let another = KeyedRequest {
        body: b"{}",
        ..REQUEST
    };
    for keys in [&keys, &setup.fleet.keys] {
        let Claim::Answered(kept) = look(&setup, keys, &REQUEST).await else {
            panic!("nothing was kept");
        };
        assert_eq!(kept, answer());
        assert!(matches!(
            look(&setup, keys, &another).await,
            Claim::OtherRequest
        ));
    }
}
