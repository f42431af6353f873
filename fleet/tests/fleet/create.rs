use std::collections::BTreeMap;

use longshore_base::Secret;
use longshore_fleet::connection::{issue_connection, rotate_connection};
use longshore_fleet::memories::MemorySeed;
use longshore_fleet::secrets::{find_workspace_secret, open_secrets};
use longshore_fleet::tokens::{has_live, verify_workspace_token};
use longshore_fleet::workspace::{
    DeliveryMode, NewWorkspace, Position, WorkspaceAccess, list_workspaces,
};
use longshore_fleet::{FleetConfig, WorkspaceStatus};
use serde_json::json;

use crate::setup::{Setup, config, external, named};

async fn refusal(setup: &Setup, new: NewWorkspace) -> String {
    let error = setup.try_create(new).await.unwrap_err();
    assert_eq!(setup.count("workspaces").await, 0, "{error}");
    assert_eq!(setup.count("structure_events").await, 0, "{error}");
    match &error {
        longshore_fleet::workspace::CreateError::InvalidFields { detail } => {
            format!("{error}: {detail}")
        }
        _ => error.to_string(),
    }
}

#[tokio::test]
async fn a_managed_workspace_waits_to_be_brought_up() {
    let setup = Setup::new().await;
    let created = setup
        .create(NewWorkspace {
            role: Some("research".into()),
            budget_limit: Some(500),
            canvas: Some(Position { x: 3.5, y: -1.0 }),
            workspace_dir: Some("/srv/data".into()),
            workspace_access: Some("read_only".into()),
            url: Some("http://ignored.example".into()),
            ..named("Lead")
        })
        .await;
    assert_eq!(created.status, WorkspaceStatus::Provisioning);
    assert_eq!(created.runtime, "claude-code");
    assert_eq!((created.tier, created.max_concurrent_tasks), (2, 1));
    assert_eq!(
        created.awareness_namespace,
        Some(format!("workspace:{}", created.id))
    );
    assert_eq!(created.delivery_mode, Some(DeliveryMode::Push));
    assert_eq!(created.workspace_access, WorkspaceAccess::ReadOnly);
    assert_eq!(
        (created.x, created.y, created.url.as_str()),
        (3.5, -1.0, "")
    );
    assert_eq!(created.id.0.get_version_num(), 4);
    assert_eq!(created.provision_started_at, None);
    assert_eq!(
        setup.events(created.id).await,
        [(
            "WORKSPACE_PROVISIONING".to_owned(),
            json!({ "name": "Lead", "tier": 2, "runtime": "claude-code" })
        )]
    );
    let listed = list_workspaces(&mut *setup.conn().await).await.unwrap();
    assert_eq!(listed, [created]);
}

#[tokio::test]
async fn bad_input_is_named_and_nothing_is_written() {
    let setup = Setup::new().await;
    let with = |change: fn(&mut NewWorkspace)| {
        let mut new = named("n");
        change(&mut new);
        new
    };
    let table = [
        (
            with(|new| new.name = String::new()),
            "invalid workspace payload",
        ),
        (
            with(|new| new.name = "a".repeat(256)),
            "invalid workspace fields: name must be at most 255 characters",
        ),
        (
            with(|new| new.name = "a\nb".into()),
            "invalid workspace fields: name must not contain newline characters",
        ),
        (
            with(|new| new.role = Some("a{b".into())),
            "invalid workspace fields: role contains invalid characters",
        ),
        (
            with(|new| new.tier = Some(9)),
            "invalid workspace fields: tier must be 1, 2, 3 or 4",
        ),
        (
            with(|new| new.tier = Some(4)),
            "tier 4 is not allowed here: LONGSHORE_MAX_TIER is 2",
        ),
        (
            with(|new| new.template = Some("../etc".into())),
            "invalid template",
        ),
        (
            with(|new| new.workspace_dir = Some("/etc/x".into())),
            "invalid workspace directory",
        ),
        (
            with(|new| new.workspace_access = Some("read_write".into())),
            "invalid workspace access",
        ),
        (
            with(|new| new.parent_id = Some("nope".into())),
            "invalid parent_id",
        ),
        (
            with(|new| new.parent_id = Some("0b6f3c1e-4d2a-4c3b-9f00-0123456789ab".into())),
            "invalid parent_id",
        ),
        (
            with(|new| new.delivery_mode = Some("pigeon".into())),
            "invalid delivery_mode",
        ),
        (
            with(|new| {
                new.secrets = BTreeMap::from([("WORKSPACE_ID".into(), Secret::from("x"))]);
            }),
            "invalid workspace fields: secret name WORKSPACE_ID is reserved",
        ),
        (
            with(|new| {
                new.external = true;
                new.url = Some("http://169.254.169.254/latest".into());
            }),
            "url targets a blocked address: link-local (cloud metadata)",
        ),
    ];
    for (new, text) in table {
        assert_eq!(refusal(&setup, new).await, text);
    }
}

#[tokio::test]
async fn secrets_and_the_model_are_sealed_with_the_row() {
    let setup = Setup::new().await;
    let id = setup
        .create(NewWorkspace {
            model: Some("minimax/MiniMax-M2.7".into()),
            secrets: BTreeMap::from([
                ("API_KEY".into(), Secret::from("sk-very-secret")),
                ("MODEL_PROVIDER".into(), Secret::from("overridden")),
            ]),
            ..named("n")
        })
        .await
        .id;
    let opened = open_secrets(&mut *setup.conn().await, &setup.fleet, id)
        .await
        .unwrap();
    let plain: Vec<_> = opened
        .values
        .iter()
        .map(|(name, value)| (name.as_str(), value.expose().as_str()))
        .collect();
    assert_eq!(
        plain,
        [
            ("API_KEY", "sk-very-secret"),
            ("LLM_PROVIDER", "minimax"),
            ("MODEL_PROVIDER", "minimax/MiniMax-M2.7"),
        ]
    );
    let stored: Vec<(Vec<u8>, i32, Option<String>)> =
        sqlx::query_as("SELECT encrypted_value, encryption_version, key_id FROM workspace_secrets")
            .fetch_all(setup.pool())
            .await
            .unwrap();
    for (bytes, version, key_id) in stored {
        assert_eq!((version, key_id.as_deref()), (2, Some("default")));
        assert!(!bytes.windows(9).any(|window| window == b"sk-very-s"));
    }
    // The redactor masks what was opened.
    assert_eq!(
        setup.fleet.redactor.clean("x sk-very-secret y"),
        "x [redacted] y"
    );
}

#[tokio::test]
async fn an_unknown_model_prefix_stores_no_provider_and_no_model_stores_nothing() {
    let setup = Setup::new().await;
    let stored = async |model: Option<&str>| {
        let new = NewWorkspace {
            model: model.map(str::to_owned),
            ..named("n")
        };
        let id = setup.create(new).await.id;
        let mut conn = setup.conn().await;
        let mut found = Vec::new();
        for name in ["MODEL_PROVIDER", "LLM_PROVIDER"] {
            let secret = find_workspace_secret(&mut conn, &setup.fleet, id, name)
                .await
                .unwrap();
            found.push(secret.map(|value| value.expose().clone()));
        }
        found
    };
    assert_eq!(
        stored(Some("nobody/x")).await,
        [Some("nobody/x".into()), None]
    );
    assert_eq!(stored(None).await, [None, None]);
}

#[tokio::test]
async fn a_template_gives_runtime_and_model_where_the_request_has_none() {
    let root = tempfile::tempdir().unwrap();
    let template = root.path().join("lead");
    std::fs::create_dir(&template).unwrap();
    std::fs::write(
        template.join("config.yaml"),
        "runtime: hermes\nmodel: minimax/M2\nruntime_config: {model: other, provision_timeout_seconds: 1200}\n",
    )
    .unwrap();
    let setup = Setup::with(FleetConfig {
        configs_dir: Some(root.path().to_owned()),
        ..config()
    })
    .await;
    let from = |template: &str, runtime: Option<&str>| NewWorkspace {
        template: Some(template.into()),
        runtime: runtime.map(str::to_owned),
        ..named("n")
    };
    let created = setup.create(from("lead", None)).await;
    assert_eq!(
        (created.runtime.as_str(), created.template.as_deref()),
        ("hermes", Some("lead"))
    );
    assert_eq!(created.provision_timeout_ms(&setup.fleet), Some(1_200_000));
    let model = find_workspace_secret(
        &mut *setup.conn().await,
        &setup.fleet,
        created.id,
        "MODEL_PROVIDER",
    )
    .await
    .unwrap();
    assert_eq!(model, Some(Secret::from("minimax/M2")));
    assert_eq!(
        setup.create(from("lead", Some("codex"))).await.runtime,
        "codex"
    );
    // Missing is not fatal, and an unknown runtime becomes the default.
    assert_eq!(
        setup
            .create(from("missing", Some("langgraph")))
            .await
            .runtime,
        "claude-code"
    );
}

#[tokio::test]
async fn an_external_workspace_is_online_or_awaited_and_gets_a_connection() {
    let setup = Setup::new().await;
    let there = setup
        .create(NewWorkspace {
            url: Some("https://8.8.8.8/agent".into()),
            ..external("there")
        })
        .await;
    assert_eq!(
        (there.status, there.url.as_str()),
        (WorkspaceStatus::Online, "https://8.8.8.8/agent")
    );
    let types = |events: Vec<(String, serde_json::Value)>| {
        events.into_iter().map(|(name, _)| name).collect::<Vec<_>>()
    };
    assert_eq!(
        types(setup.events(there.id).await),
        ["WORKSPACE_PROVISIONING", "WORKSPACE_ONLINE"]
    );

    let awaited = setup.create(external("awaited")).await;
    assert_eq!(awaited.status, WorkspaceStatus::AwaitingAgent);
    assert_eq!(
        (awaited.runtime.as_str(), awaited.delivery_mode),
        ("external", None)
    );
    assert_eq!(
        setup.events(awaited.id).await[1],
        (
            "WORKSPACE_AWAITING_AGENT".to_owned(),
            json!({ "name": "awaited", "external": true })
        )
    );
    let mut tx = setup.begin().await;
    let connection =
        issue_connection(&mut tx, &setup.fleet, awaited.id, "https://ship.example/").await;
    tx.commit().await.unwrap();
    assert_eq!(
        connection.registry_endpoint,
        "https://ship.example/registry/register"
    );
    assert!(
        connection
            .curl_register_template
            .contains(&awaited.id.to_string())
    );
    assert!(!connection.python_snippet.contains("{{"));
    let mut conn = setup.conn().await;
    let owner = async |conn: &mut sqlx::PgConnection, token: &str| {
        verify_workspace_token(conn, token).await.unwrap()
    };
    assert_eq!(
        owner(&mut conn, connection.auth_token.expose()).await,
        Some(awaited.id)
    );

    let mut tx = setup.begin().await;
    let rotated = rotate_connection(&mut tx, &setup.fleet, awaited.id, "not a url")
        .await
        .unwrap();
    tx.commit().await.unwrap();
    assert_eq!(rotated.platform_url, "http://platform:8080");
    assert_eq!(owner(&mut conn, connection.auth_token.expose()).await, None);
    assert_eq!(
        owner(&mut conn, rotated.auth_token.expose()).await,
        Some(awaited.id)
    );
}

#[tokio::test]
async fn a_token_that_cannot_be_issued_leaves_the_creation_standing() {
    let setup = Setup::new().await;
    let mut tx = setup.begin().await;
    let created =
        longshore_fleet::workspace::create_workspace(&mut tx, &setup.fleet, external("n"))
            .await
            .unwrap();
    sqlx::query("ALTER TABLE workspace_auth_tokens RENAME TO elsewhere")
        .execute(&mut *tx)
        .await
        .unwrap();
    let connection = issue_connection(&mut tx, &setup.fleet, created.id, "http://x").await;
    assert_eq!(connection.auth_token.expose(), "");
    sqlx::query("ALTER TABLE elsewhere RENAME TO workspace_auth_tokens")
        .execute(&mut *tx)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    assert_eq!(
        setup.status(created.id).await,
        WorkspaceStatus::AwaitingAgent
    );
    assert!(
        !has_live(&mut *setup.conn().await, created.id)
            .await
            .unwrap()
    );
}

#[tokio::test]
async fn initial_memories_are_stored_redacted_and_the_odd_ones_left_out() {
    let setup = Setup::new().await;
    let seed = |content: &str, scope: &str| MemorySeed {
        content: content.into(),
        scope: scope.into(),
    };
    let id = setup
        .create(NewWorkspace {
            initial_memories: vec![
                seed("use CI_TOKEN=abc123 here", ""),
                seed("shared", "team"),
                seed("nobody", "world"),
                seed("", "LOCAL"),
            ],
            ..named("n")
        })
        .await
        .id;
    let rows: Vec<(String, String, String)> =
        sqlx::query_as("SELECT scope, content, namespace FROM agent_memories ORDER BY scope")
            .fetch_all(setup.pool())
            .await
            .unwrap();
    let namespace = format!("workspace:{id}");
    assert_eq!(
        rows,
        [
            (
                "LOCAL".into(),
                "use [REDACTED:TOKEN] here".into(),
                namespace.clone()
            ),
            ("TEAM".into(), "shared".into(), namespace),
        ]
    );
}

#[tokio::test]
async fn a_removed_parent_takes_no_children() {
    let setup = Setup::new().await;
    let parent = setup.create(named("parent")).await.id;
    let child = setup.create_child("child", parent).await;
    assert_eq!(child.parent_id, Some(parent));
    setup.write_status(parent, WorkspaceStatus::Removed).await;
    let refused = setup
        .try_create(NewWorkspace {
            parent_id: Some(parent.to_string()),
            ..named("late")
        })
        .await;
    assert_eq!(refused.unwrap_err().to_string(), "invalid parent_id");
}
