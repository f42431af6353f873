use std::collections::BTreeMap;
use std::time::Duration;

use longshore_base::{Secret, WorkspaceId};
use longshore_fleet::registry::{
    Beaten, CheckedRegistration, GateError, Heartbeat, Presented, RegisterError, Registered,
    Registration, RuntimeMetadata, check_registration, heartbeat, register, update_card,
};
use longshore_fleet::tokens::{issue, revoke_all};
use longshore_fleet::workspace::{DeliveryMode, NewWorkspace, Workspace, lock_workspace};
use longshore_fleet::{FleetConfig, WorkspaceStatus};
use serde_json::json;

use crate::setup::{Setup, config, external, named};

fn own_url(id: WorkspaceId) -> Option<String> {
    Some(id.internal_url())
}

fn registration(id: WorkspaceId, presented: Presented) -> Registration {
    Registration {
        id,
        url: own_url(id),
        agent_card: json!({ "name": "agent" }),
        delivery_mode: None,
        presented,
    }
}

async fn check(
    setup: &Setup,
    registration: Registration,
) -> Result<CheckedRegistration, RegisterError> {
    check_registration(setup.pool(), &setup.fleet, registration).await
}

async fn try_register(
    setup: &Setup,
    registration: Registration,
) -> Result<Registered, RegisterError> {
    let checked = check(setup, registration).await?;
    let mut tx = setup.begin().await;
    let registered = register(&mut tx, &setup.fleet, checked).await?;
    tx.commit().await.unwrap();
    registered.after_commit(&setup.fleet).await;
    Ok(registered)
}

async fn try_beat(
    setup: &Setup,
    id: WorkspaceId,
    presented: &Presented,
    beat: Heartbeat,
) -> Result<Beaten, GateError> {
    let mut tx = setup.begin().await;
    let beaten = heartbeat(&mut tx, &setup.fleet, id, presented, beat).await?;
    tx.commit().await.unwrap();
    beaten.after_commit(&setup.fleet).await;
    Ok(beaten)
}

/// A workspace in a status, with the credential of its agent.
async fn agent_in(setup: &Setup, status: WorkspaceStatus) -> (Workspace, Presented) {
    let workspace = setup.create_in("agent", status).await;
    let token = issue(&mut *setup.conn().await, workspace.id).await.unwrap();
    (workspace, Presented::Bearer(token))
}

#[tokio::test]
async fn a_first_registration_brings_the_workspace_online_and_returns_its_token() {
    let setup = Setup::new().await;
    let id = setup.create(named("n")).await.id;
    let registered = try_register(&setup, registration(id, Presented::Nothing))
        .await
        .unwrap();
    let token = registered.auth_token.unwrap();
    let row = setup.load(id).await;
    assert_eq!(
        (row.status, row.url.as_str()),
        (WorkspaceStatus::Online, id.internal_url().as_str())
    );
    assert_eq!(row.agent_card, Some(json!({ "name": "agent" })));
    assert!(row.last_heartbeat_at.is_some());
    assert_eq!(
        setup.events_after(id, 1).await,
        [(
            "WORKSPACE_ONLINE".to_owned(),
            json!({ "url": id.internal_url(), "agent_card": { "name": "agent" } })
        )]
    );
    // Now it has one: nobody registers without it, and it gets no other.
    let again = try_register(&setup, registration(id, Presented::Nothing))
        .await
        .unwrap_err();
    assert_eq!(again.to_string(), "missing workspace auth token");
    let again = try_register(&setup, registration(id, Presented::bearer(Some("wrong"))))
        .await
        .unwrap_err();
    assert_eq!(again.to_string(), "invalid workspace auth token");
    let again = try_register(&setup, registration(id, Presented::Bearer(token)))
        .await
        .unwrap();
    assert_eq!(again.auth_token, None);
    assert_eq!(again.inbound_secret, registered.inbound_secret);
}

#[tokio::test]
async fn presence_in_redis_follows_a_registration() {
    let setup = Setup::new().await;
    let (workspace, presented) = agent_in(&setup, WorkspaceStatus::Provisioning).await;
    try_register(&setup, registration(workspace.id, presented))
        .await
        .unwrap();
    let presence = &setup.fleet.presence;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    loop {
        let seen = (
            presence.url(workspace.id).await,
            presence.internal_url(workspace.id).await,
        );
        // The provisioner's URL is kept; the reported one is what containers use.
        if seen
            == (
                Some(workspace.url.clone()),
                Some(workspace.id.internal_url()),
            )
        {
            break;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "last seen: {seen:?}"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn revoking_every_token_of_a_running_workspace_does_not_open_it() {
    let setup = Setup::new().await;
    let (workspace, presented) = agent_in(&setup, WorkspaceStatus::Online).await;
    revoke_all(&mut *setup.conn().await, workspace.id)
        .await
        .unwrap();
    for presented in [Presented::Nothing, presented] {
        let refused = try_register(&setup, registration(workspace.id, presented))
            .await
            .unwrap_err();
        assert_eq!(refused.to_string(), "missing workspace auth token");
    }
    // A new start of it is open once, as is one that failed.
    setup
        .write_status(workspace.id, WorkspaceStatus::Failed)
        .await;
    let registered = try_register(&setup, registration(workspace.id, Presented::Nothing))
        .await
        .unwrap();
    assert!(registered.auth_token.is_some());
    assert_eq!(registered.from, WorkspaceStatus::Failed);
}

#[tokio::test]
async fn a_registration_for_an_unknown_removed_or_stopped_workspace_changes_nothing() {
    let setup = Setup::new().await;
    let unknown = try_register(
        &setup,
        registration(WorkspaceId::random(), Presented::Nothing),
    )
    .await;
    assert!(matches!(
        unknown,
        Err(RegisterError::Gate(GateError::NotFound))
    ));
    for status in WorkspaceStatus::ALL {
        let (workspace, presented) = agent_in(&setup, status).await;
        let before = setup.load(workspace.id).await;
        let result = try_register(&setup, registration(workspace.id, presented)).await;
        match status {
            WorkspaceStatus::Removed => {
                assert_eq!(result.unwrap_err().to_string(), "workspace removed");
                assert_eq!(setup.load(workspace.id).await, before);
            }
            WorkspaceStatus::Paused
            | WorkspaceStatus::Hibernating
            | WorkspaceStatus::Hibernated => {
                assert_eq!(
                    result.unwrap_err().to_string(),
                    format!("workspace is {status}")
                );
                assert_eq!(setup.load(workspace.id).await, before);
                assert_eq!(setup.events_after(workspace.id, 1).await, []);
            }
            _ => {
                assert_eq!(result.unwrap().from, status);
                assert_eq!(setup.status(workspace.id).await, WorkspaceStatus::Online);
            }
        }
    }
}

#[tokio::test]
async fn a_workspace_stopped_between_check_and_write_stays_stopped() {
    let setup = Setup::new().await;
    let (workspace, presented) = agent_in(&setup, WorkspaceStatus::Online).await;
    let checked = check(&setup, registration(workspace.id, presented))
        .await
        .unwrap();
    setup
        .write_status(workspace.id, WorkspaceStatus::Paused)
        .await;
    let mut tx = setup.begin().await;
    let refused = register(&mut tx, &setup.fleet, checked).await.unwrap_err();
    assert_eq!(refused.to_string(), "workspace is paused");
}

#[tokio::test]
async fn urls_are_checked_and_needed_where_they_are_dialled() {
    let setup = Setup::new().await;
    let (managed, presented) = agent_in(&setup, WorkspaceStatus::Provisioning).await;
    let with = |id, presented: &Presented, url: Option<&str>, mode: Option<&str>| Registration {
        url: url.map(str::to_owned),
        delivery_mode: mode.map(str::to_owned),
        ..registration(id, presented.clone())
    };
    for (url, text) in [
        (
            Some("http://169.254.169.254/"),
            "url targets a blocked address: link-local (cloud metadata)",
        ),
        (
            Some("http://127.0.0.1:1"),
            "url targets a blocked address: loopback",
        ),
        (None, "url is required"),
        (Some(""), "url is required"),
    ] {
        let refused = try_register(&setup, with(managed.id, &presented, url, None))
            .await
            .unwrap_err();
        assert_eq!(refused.to_string(), text);
    }
    let refused = try_register(&setup, with(managed.id, &presented, None, Some("pigeon"))).await;
    assert_eq!(refused.unwrap_err().to_string(), "invalid delivery_mode");
    // What the provisioner stored is its own, and is kept.
    let stored = managed.url.as_str();
    let kept = try_register(&setup, with(managed.id, &presented, Some(stored), None))
        .await
        .unwrap();
    assert_eq!(kept.url, stored);

    let far = setup.create(external("far")).await;
    let far_token = Presented::Bearer(issue(&mut *setup.conn().await, far.id).await.unwrap());
    let own_name = try_register(
        &setup,
        with(far.id, &far_token, own_url(far.id).as_deref(), None),
    )
    .await;
    assert!(
        matches!(own_name, Err(RegisterError::Url(_))),
        "the exception is not for external ones"
    );
    let silent = try_register(&setup, with(far.id, &far_token, None, None))
        .await
        .unwrap();
    assert_eq!(
        (silent.from, silent.url.as_str()),
        (WorkspaceStatus::AwaitingAgent, "")
    );
    try_register(&setup, with(far.id, &far_token, None, Some("poll")))
        .await
        .unwrap();
    assert_eq!(
        setup.load(far.id).await.delivery_mode,
        Some(DeliveryMode::Poll)
    );
    let push = try_register(&setup, with(far.id, &far_token, None, Some("push"))).await;
    assert_eq!(push.unwrap_err().to_string(), "url is required");
    let dialled = try_register(
        &setup,
        with(far.id, &far_token, Some("https://8.8.8.8/"), Some("push")),
    )
    .await;
    assert_eq!(dialled.unwrap().url, "https://8.8.8.8/");
}

#[tokio::test]
async fn a_card_that_cannot_be_stored_is_refused() {
    let setup = Setup::new().await;
    let (workspace, presented) = agent_in(&setup, WorkspaceStatus::Online).await;
    let bad = Registration {
        agent_card: json!({ "name": "a\0" }),
        ..registration(workspace.id, presented)
    };
    assert!(matches!(
        try_register(&setup, bad).await,
        Err(RegisterError::InvalidCard)
    ));
}

#[tokio::test]
async fn heartbeats_need_the_token_and_serve_stopped_workspaces() {
    let setup = Setup::new().await;
    let unknown = try_beat(
        &setup,
        WorkspaceId::random(),
        &Presented::Nothing,
        Heartbeat::default(),
    )
    .await;
    assert!(matches!(unknown, Err(GateError::NotFound)));
    let fresh = setup.create(named("fresh")).await.id;
    let bare = try_beat(&setup, fresh, &Presented::Nothing, Heartbeat::default()).await;
    assert!(matches!(bare, Err(GateError::MissingToken)));
    for status in WorkspaceStatus::ALL {
        let (workspace, presented) = agent_in(&setup, status).await;
        let foreign = try_beat(
            &setup,
            workspace.id,
            &Presented::bearer(Some(&"x".repeat(43))),
            Heartbeat::default(),
        )
        .await;
        let beaten = try_beat(&setup, workspace.id, &presented, Heartbeat::default()).await;
        let after = setup.status(workspace.id).await;
        if status == WorkspaceStatus::Removed {
            assert!(matches!(foreign, Err(GateError::Removed)));
            assert!(matches!(beaten, Err(GateError::Removed)));
            assert_eq!(after, status);
            continue;
        }
        assert!(matches!(foreign, Err(GateError::InvalidToken)), "{status}");
        assert!(beaten.unwrap().inbound_secret.is_some());
        let expected = match status {
            WorkspaceStatus::Provisioning
            | WorkspaceStatus::Offline
            | WorkspaceStatus::Degraded => WorkspaceStatus::Online,
            other => other,
        };
        assert_eq!(after, expected, "{status}");
    }
}

#[tokio::test]
async fn a_heartbeat_that_meets_a_delete_waits_for_it_without_standing_in_its_way() {
    let setup = Setup::new().await;
    let (workspace, presented) = agent_in(&setup, WorkspaceStatus::Online).await;
    let mut delete = setup.begin().await;
    lock_workspace(&mut delete, workspace.id).await.unwrap();
    let beaten = try_beat(&setup, workspace.id, &presented, Heartbeat::default());
    let revoked = async {
        setup.until_someone_waits().await;
        let revoked = revoke_all(&mut delete, workspace.id).await;
        delete.commit().await.unwrap();
        revoked
    };
    let (beaten, revoked) = tokio::join!(beaten, revoked);
    assert_eq!(revoked.unwrap(), 1);
    beaten.unwrap();
}

#[tokio::test]
async fn each_change_by_a_heartbeat_is_one_event_and_no_change_is_none() {
    let setup = Setup::new().await;
    let (workspace, presented) = agent_in(&setup, WorkspaceStatus::Provisioning).await;
    let id = workspace.id;
    let rate = |error_rate| Heartbeat {
        error_rate,
        sample_error: "boom".into(),
        ..Heartbeat::default()
    };
    let wedged = Heartbeat {
        runtime_state: "wedged".into(),
        ..Heartbeat::default()
    };
    for beat in [
        rate(0.0),
        rate(0.0),
        rate(0.6),
        rate(0.6),
        rate(0.05),
        wedged.clone(),
        wedged,
    ] {
        try_beat(&setup, id, &presented, beat).await.unwrap();
    }
    setup.write_status(id, WorkspaceStatus::Offline).await;
    try_beat(&setup, id, &presented, rate(0.9)).await.unwrap();
    let event = |name: &str, payload| (name.to_owned(), payload);
    assert_eq!(
        setup.events_after(id, 1).await,
        [
            event(
                "WORKSPACE_ONLINE",
                json!({ "recovered_from": "provisioning" })
            ),
            event(
                "WORKSPACE_DEGRADED",
                json!({ "error_rate": 0.6, "sample_error": "boom" })
            ),
            event("WORKSPACE_ONLINE", json!({})),
            event(
                "WORKSPACE_DEGRADED",
                json!({ "runtime_state": "wedged", "sample_error": "" })
            ),
            event("WORKSPACE_ONLINE", json!({})),
        ]
    );
}

#[tokio::test]
async fn a_heartbeat_writes_what_it_says_within_bounds() {
    let setup = Setup::new().await;
    let (workspace, presented) = agent_in(&setup, WorkspaceStatus::Online).await;
    let beat = Heartbeat {
        error_rate: 7.0,
        sample_error: "a\0b".into(),
        active_tasks: -3,
        uptime_seconds: i64::MAX,
        current_task: "é".repeat(8000),
        monthly_spend: i64::MAX,
        ..Heartbeat::default()
    };
    try_beat(&setup, workspace.id, &presented, beat)
        .await
        .unwrap();
    let row = setup.load(workspace.id).await;
    assert_eq!(
        (row.last_error_rate, row.last_sample_error.as_str()),
        (1.0, "ab")
    );
    assert_eq!((row.active_tasks, row.uptime_seconds), (0, i32::MAX));
    assert_eq!(
        (row.current_task.len(), row.monthly_spend),
        (8192, 1_000_000_000_000)
    );
    // Zero says nothing about money, and idleness starts with the last task's end.
    let idle_since = row.idle_since.unwrap();
    let working = Heartbeat {
        active_tasks: 2,
        ..Heartbeat::default()
    };
    let beaten = try_beat(&setup, workspace.id, &presented, working)
        .await
        .unwrap();
    assert!(!beaten.has_capacity);
    let row = setup.load(workspace.id).await;
    assert_eq!(
        (row.monthly_spend, row.idle_since),
        (1_000_000_000_000, None)
    );
    let beaten = try_beat(&setup, workspace.id, &presented, Heartbeat::default())
        .await
        .unwrap();
    assert!(beaten.has_capacity);
    assert!(setup.load(workspace.id).await.idle_since.unwrap() > idle_since);
}

#[tokio::test]
async fn a_beat_that_says_nothing_new_is_not_written_for_ten_seconds() {
    let setup = Setup::new().await;
    let (workspace, presented) = agent_in(&setup, WorkspaceStatus::Online).await;
    let written = async || setup.load(workspace.id).await.last_heartbeat_at.unwrap();
    let beat = |uptime_seconds| Heartbeat {
        uptime_seconds,
        ..Heartbeat::default()
    };
    let secret = try_beat(&setup, workspace.id, &presented, beat(1))
        .await
        .unwrap()
        .inbound_secret;
    let first = written().await;
    let quiet = try_beat(&setup, workspace.id, &presented, beat(2))
        .await
        .unwrap();
    assert_eq!((written().await, quiet.inbound_secret), (first, secret));
    let news = Heartbeat {
        active_tasks: 1,
        ..beat(3)
    };
    try_beat(&setup, workspace.id, &presented, news.clone())
        .await
        .unwrap();
    let second = written().await;
    assert!(second > first);
    setup.db.advance(Duration::from_secs(11)).await;
    try_beat(&setup, workspace.id, &presented, news)
        .await
        .unwrap();
    assert!(written().await > second);
}

#[tokio::test]
async fn the_reason_of_a_failure_outlives_the_beats_that_follow() {
    let setup = Setup::new().await;
    let (workspace, presented) = agent_in(&setup, WorkspaceStatus::Provisioning).await;
    let mut tx = setup.begin().await;
    longshore_fleet::provisioning::mark_failed(&mut tx, workspace.id, None, "timed out", json!({}))
        .await
        .unwrap();
    tx.commit().await.unwrap();
    let beat = Heartbeat {
        sample_error: "other".into(),
        active_tasks: 1,
        ..Heartbeat::default()
    };
    try_beat(&setup, workspace.id, &presented, beat)
        .await
        .unwrap();
    let row = setup.load(workspace.id).await;
    assert_eq!(
        (row.status, row.last_sample_error.as_str()),
        (WorkspaceStatus::Failed, "timed out")
    );
    assert_eq!(row.active_tasks, 1);
}

#[tokio::test]
async fn an_agent_that_judges_itself_is_not_judged() {
    let setup = Setup::new().await;
    let (workspace, presented) = agent_in(&setup, WorkspaceStatus::Online).await;
    let id = workspace.id;
    let beat = |metadata| Heartbeat {
        error_rate: 0.9,
        metadata,
        ..Heartbeat::default()
    };
    let native = RuntimeMetadata {
        capabilities: BTreeMap::from([("status_mgmt".into(), true), ("session".into(), true)]),
        idle_timeout_seconds: Some(90),
    };
    try_beat(&setup, id, &presented, beat(Some(native)))
        .await
        .unwrap();
    assert_eq!(setup.status(id).await, WorkspaceStatus::Online);
    assert!(setup.fleet.capabilities.has(id, "session"));
    assert_eq!(
        setup.fleet.capabilities.idle_timeout(id),
        Some(Duration::from_secs(90))
    );
    // A helper's beat is still covered by the last declaration, which it clears.
    try_beat(&setup, id, &presented, beat(None)).await.unwrap();
    assert_eq!(setup.status(id).await, WorkspaceStatus::Online);
    assert!(!setup.fleet.capabilities.has(id, "session"));
    try_beat(&setup, id, &presented, beat(None)).await.unwrap();
    assert_eq!(setup.status(id).await, WorkspaceStatus::Degraded);
}

#[tokio::test]
async fn a_card_is_taken_from_the_agent_and_from_operators() {
    let setup = Setup::new().await;
    let (workspace, presented) = agent_in(&setup, WorkspaceStatus::Online).await;
    let id = workspace.id;
    let mut tx = setup.begin().await;
    for (presented, name) in [(&presented, "one"), (&Presented::Operator, "two")] {
        update_card(
            &mut tx,
            &setup.fleet,
            id,
            presented,
            json!({ "name": name }),
        )
        .await
        .unwrap();
    }
    let stranger = update_card(&mut tx, &setup.fleet, id, &Presented::Nothing, json!({})).await;
    assert!(matches!(
        stranger,
        Err(RegisterError::Gate(GateError::MissingToken))
    ));
    tx.commit().await.unwrap();
    assert_eq!(
        setup.load(id).await.agent_card,
        Some(json!({ "name": "two" }))
    );
    assert_eq!(
        setup.events_after(id, 2).await,
        [(
            "AGENT_CARD_UPDATED".to_owned(),
            json!({ "agent_card": { "name": "two" } })
        )]
    );
}

#[tokio::test]
async fn dev_mode_takes_agents_without_tokens_and_local_urls() {
    let setup = Setup::with(FleetConfig {
        dev_mode: true,
        ..config()
    })
    .await;
    let id = setup
        .create(NewWorkspace {
            url: Some("http://127.0.0.1:9000".into()),
            ..external("dev")
        })
        .await
        .id;
    try_beat(&setup, id, &Presented::Nothing, Heartbeat::default())
        .await
        .unwrap();
    // An external agent's local URL was not put there by the provisioner, so it may change.
    let moved = Registration {
        url: Some("http://127.0.0.1:9001".into()),
        ..registration(id, Presented::Nothing)
    };
    let registered = try_register(&setup, moved).await.unwrap();
    assert_eq!(registered.url, "http://127.0.0.1:9001");
    let wrong = Presented::Bearer(Secret::new("x".repeat(43)));
    let refused = try_beat(&setup, id, &wrong, Heartbeat::default()).await;
    assert!(matches!(refused, Err(GateError::InvalidToken)));
}

#[tokio::test]
async fn a_delete_between_reading_and_writing_a_beat_wins() {
    let setup = Setup::new().await;
    let (workspace, presented) = agent_in(&setup, WorkspaceStatus::Offline).await;
    let id = workspace.id;
    let mut deleting = setup.begin().await;
    longshore_fleet::workspace::remove_workspaces(&mut deleting, id)
        .await
        .unwrap()
        .unwrap();
    // The beat reads the row as it was, then waits for the delete to let go of it.
    let (beaten, ()) = tokio::join!(
        try_beat(&setup, id, &presented, Heartbeat::default()),
        async {
            setup.until_someone_waits().await;
            deleting.commit().await.unwrap();
        }
    );
    assert!(matches!(beaten, Err(GateError::Removed)), "{beaten:?}");
    assert_eq!(setup.status(id).await, WorkspaceStatus::Removed);
    assert_eq!(setup.events_after(id, 2).await, []);
}
