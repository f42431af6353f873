use std::time::Duration;

use longshore_base::WorkspaceId;
use longshore_fleet::WorkspaceStatus;
use longshore_fleet::liveness::{
    Expiry, MassGuard, RunningWorkspace, expire_external, expire_silent, intake_interval,
    is_intake_steady, list_running, mark_offline, record_intake,
};
use longshore_fleet::workspace::{NewWorkspace, list_idle};
use serde_json::json;

use crate::setup::{Setup, external};

const TTL: Duration = Duration::from_secs(180);

async fn expire(setup: &Setup, believed: &[WorkspaceId]) -> Expiry {
    let mut tx = setup.begin().await;
    let expiry = expire_silent(&mut tx, TTL, MassGuard::DEFAULT, believed)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    expiry
}

async fn running(setup: &Setup) -> Vec<RunningWorkspace> {
    let page = list_running(&mut *setup.conn().await, "engine", WorkspaceId::LEAST).await;
    page.unwrap()
}

async fn create_external(setup: &Setup) -> WorkspaceId {
    let url = Some("https://8.8.8.8".into());
    setup
        .create(NewWorkspace {
            url,
            ..external("far")
        })
        .await
        .id
}

#[tokio::test]
async fn only_the_silent_that_are_up_go_offline() {
    let setup = Setup::new().await;
    let mut silent = Vec::new();
    for status in WorkspaceStatus::ALL {
        let id = setup.create_in("n", status).await.id;
        if status.is_up() {
            silent.push(id);
        }
    }
    let far = create_external(&setup).await;
    setup.db.advance(TTL + Duration::from_secs(1)).await;
    let fresh = setup.create_in("fresh", WorkspaceStatus::Online).await.id;
    silent.sort();
    let Expiry::Expired(mut expired) = expire(&setup, &[]).await else {
        panic!("two silent ones are believed");
    };
    expired.sort();
    assert_eq!(expired, silent);
    for id in silent {
        assert_eq!(setup.status(id).await, WorkspaceStatus::Offline);
        assert_eq!(
            setup.events_after(id, 1).await,
            [("WORKSPACE_OFFLINE".to_owned(), json!({}))]
        );
    }
    for id in [fresh, far] {
        assert_eq!(setup.status(id).await, WorkspaceStatus::Online);
    }
    assert_eq!(expire(&setup, &[]).await, Expiry::Expired(vec![]));
}

#[tokio::test]
async fn when_a_large_part_goes_silent_at_once_nobody_is_given_up() {
    let setup = Setup::new().await;
    for _ in 0..6 {
        setup.create_in("n", WorkspaceStatus::Online).await;
    }
    setup.db.advance(TTL + Duration::from_secs(1)).await;
    setup.create_in("fresh", WorkspaceStatus::Online).await;
    let Expiry::TooMany { stale, watched } = expire(&setup, &[]).await else {
        panic!("six at once were believed");
    };
    assert_eq!((stale.len(), watched), (6, 7));
    assert_eq!(running(&setup).await.len(), 7);
    let Expiry::Expired(mut expired) = expire(&setup, &stale).await else {
        panic!("an operator's word counts");
    };
    expired.sort();
    let mut stale = stale;
    stale.sort();
    assert_eq!(expired, stale);
}

#[tokio::test]
async fn external_ones_have_a_limit_of_their_own() {
    let setup = Setup::new().await;
    let far = create_external(&setup).await;
    let awaited = setup.create(external("awaited")).await.id;
    let managed = setup.create_in("n", WorkspaceStatus::Online).await.id;
    let sweep = async || {
        let mut tx = setup.begin().await;
        let expiry = expire_external(&mut tx, TTL, MassGuard::DEFAULT, &[])
            .await
            .unwrap();
        tx.commit().await.unwrap();
        expiry
    };
    setup.db.advance(TTL - Duration::from_secs(10)).await;
    assert_eq!(sweep().await, Expiry::Expired(vec![]));
    setup.db.advance(Duration::from_secs(20)).await;
    // It never beat, so it counts from its creation.
    assert_eq!(sweep().await, Expiry::Expired(vec![far]));
    assert_eq!(setup.status(awaited).await, WorkspaceStatus::AwaitingAgent);
    assert_eq!(setup.status(managed).await, WorkspaceStatus::Online);
}

#[tokio::test]
async fn a_container_found_gone_takes_its_workspace_offline_once() {
    let setup = Setup::new().await;
    for status in WorkspaceStatus::ALL {
        let id = setup.create_in("n", status).await.id;
        let mut tx = setup.begin().await;
        // It was brought up once more than whoever looked knew.
        assert!(!mark_offline(&mut tx, id, 0).await.unwrap());
        let marked = mark_offline(&mut tx, id, 1).await.unwrap();
        assert!(!mark_offline(&mut tx, id, 1).await.unwrap());
        tx.commit().await.unwrap();
        assert_eq!(marked, status.is_up(), "{status}");
        assert_eq!(setup.events_after(id, 1).await.len(), usize::from(marked));
    }
}

#[tokio::test]
async fn the_health_check_sees_the_managed_ones_that_are_up_on_its_engine_page_by_page() {
    let setup = Setup::new().await;
    let up = setup.create_in("up", WorkspaceStatus::Degraded).await;
    setup.create_in("down", WorkspaceStatus::Offline).await;
    create_external(&setup).await;
    let seen = running(&setup).await;
    assert_eq!(seen.len(), 1);
    assert_eq!(
        (seen[0].id, seen[0].generation),
        (up.id, up.provision_generation)
    );
    let mut conn = setup.conn().await;
    for (engine, after) in [("engine", up.id), ("another", WorkspaceId::LEAST)] {
        let seen = list_running(&mut conn, engine, after).await.unwrap();
        assert_eq!(seen, []);
    }
}

/// More than one page of them.
const MANY: i32 = 1_203;

#[tokio::test]
async fn what_takes_several_pages_is_read_once_and_wholly() {
    let setup = Setup::new().await;
    let mut conn = setup.conn().await;
    sqlx::query(
        "INSERT INTO workspaces (id, name, status, engine_id, last_heartbeat_at, idle_since, hibernation_idle_minutes)
         SELECT gen_random_uuid(), 'one of many', CASE WHEN n % 2 = 0 THEN $2 ELSE $3 END, 'engine',
                longshore_now() - make_interval(secs => n % 7), longshore_now() - make_interval(secs => n % 5),
                CASE WHEN n % 3 = 0 THEN 3 END
         FROM generate_series(1, $1) AS n",
    )
    .bind(MANY)
    .bind(WorkspaceStatus::Online)
    .bind(WorkspaceStatus::Degraded)
    .execute(&mut *conn)
    .await
    .unwrap();
    let mut all: Vec<WorkspaceId> = sqlx::query_scalar("SELECT id FROM workspaces ORDER BY id")
        .fetch_all(&mut *conn)
        .await
        .unwrap();
    let mut after = WorkspaceId::LEAST;
    let mut seen = Vec::new();
    loop {
        let page = list_running(&mut conn, "engine", after).await.unwrap();
        let Some(last) = page.last() else { break };
        after = last.id;
        seen.extend(page.iter().map(|row| row.id));
    }
    assert_eq!(seen, all);

    setup.db.advance(TTL + Duration::from_secs(1)).await;
    let idle = list_idle(&mut conn, Some(3)).await.unwrap();
    let idle: Vec<_> = idle.iter().map(|workspace| workspace.id).collect();
    assert_eq!(idle, all);
    let own = list_idle(&mut conn, None).await.unwrap();
    assert_eq!(i32::try_from(own.len()).unwrap(), MANY / 3);

    let Expiry::TooMany { mut stale, watched } = expire(&setup, &[]).await else {
        panic!("all at once were believed");
    };
    stale.sort();
    all.sort();
    assert_eq!((stale, watched), (all.clone(), all.len()));
}

#[tokio::test]
async fn silence_counts_only_after_heartbeats_were_accepted_for_a_full_ttl_without_a_gap() {
    let setup = Setup::new().await;
    let say = async |setup: &Setup| {
        record_intake(&mut *setup.conn().await, TTL).await.unwrap();
        is_intake_steady(&mut *setup.conn().await, TTL)
            .await
            .unwrap()
    };
    assert!(
        !is_intake_steady(&mut *setup.conn().await, TTL)
            .await
            .unwrap()
    );
    let until_steady = async |setup: &Setup| {
        let mut said = Duration::ZERO;
        while !say(setup).await {
            setup.db.advance(intake_interval(TTL)).await;
            said += intake_interval(TTL);
        }
        said
    };
    assert_eq!(until_steady(&setup).await, TTL);
    // An outage: while it lasts, and for as long after it as before anything was known.
    setup.db.advance(Duration::from_secs(16)).await;
    assert!(
        !is_intake_steady(&mut *setup.conn().await, TTL)
            .await
            .unwrap()
    );
    assert_eq!(until_steady(&setup).await, TTL);
}
