use longshore_base::WorkspaceId;
use longshore_fleet::WorkspaceStatus;
use longshore_fleet::workspace::{
    PatchError, Patched, PatchedBy, Position, WorkspacePatch, patch_workspace,
};

use crate::setup::{Setup, named};

fn operator() -> WorkspacePatch {
    WorkspacePatch {
        by: PatchedBy::Operator,
        ..WorkspacePatch::default()
    }
}

async fn patch(
    setup: &Setup,
    id: WorkspaceId,
    patch: WorkspacePatch,
) -> Result<Patched, PatchError> {
    let mut tx = setup.begin().await;
    let patched = patch_workspace(&mut tx, &setup.fleet, id, patch).await?;
    tx.commit().await.unwrap();
    Ok(patched)
}

#[tokio::test]
async fn only_the_members_sent_are_changed() {
    let setup = Setup::new().await;
    let parent = setup.create(named("parent")).await.id;
    let before = setup.create(named("before")).await;
    let all = WorkspacePatch {
        name: Some("after".into()),
        role: Some(Some("lead".into())),
        tier: Some(1),
        parent_id: Some(Some(parent)),
        collapsed: Some(true),
        runtime: Some("hermes".into()),
        workspace_dir: Some(Some("/srv/x".into())),
        hibernation_idle_minutes: Some(Some(30)),
        position: Some(Position { x: 1.0, y: 2.0 }),
        ..operator()
    };
    let patched = patch(&setup, before.id, all).await.unwrap();
    assert!(patched.needs_restart);
    let after = setup.load(before.id).await;
    assert_eq!(
        (after.name.as_str(), after.role.as_deref(), after.tier),
        ("after", Some("lead"), 1)
    );
    assert_eq!(
        (after.parent_id, after.runtime.as_str()),
        (Some(parent), "hermes")
    );
    assert_eq!((after.x, after.y, after.collapsed), (1.0, 2.0, true));
    assert_eq!(after.hibernation_idle_minutes, Some(30));

    let clear = WorkspacePatch {
        role: Some(None),
        parent_id: Some(None),
        hibernation_idle_minutes: Some(None),
        collapsed: Some(false),
        ..operator()
    };
    assert!(!patch(&setup, before.id, clear).await.unwrap().needs_restart);
    let cleared = setup.load(before.id).await;
    assert_eq!(
        (
            cleared.role,
            cleared.parent_id,
            cleared.hibernation_idle_minutes
        ),
        (None, None, None)
    );
    assert_eq!(
        (cleared.name.as_str(), cleared.x, cleared.collapsed),
        ("after", 1.0, false)
    );
    // Renaming and moving emit nothing.
    assert_eq!(setup.events(before.id).await.len(), 1);
}

#[tokio::test]
async fn bad_members_are_named_and_nothing_is_written() {
    let setup = Setup::new().await;
    let workspace = setup.create(named("n")).await;
    let table: [(WorkspacePatch, &str); 9] = [
        (
            WorkspacePatch {
                name: Some("a\rb".into()),
                ..operator()
            },
            "name must not contain newline characters",
        ),
        (
            WorkspacePatch {
                role: Some(Some("é".repeat(1001))),
                ..operator()
            },
            "role must be at most 1000 characters",
        ),
        (
            WorkspacePatch {
                workspace_dir: Some(Some("/usr".into())),
                ..operator()
            },
            "invalid workspace directory",
        ),
        (
            WorkspacePatch {
                runtime: Some("langgraph".into()),
                ..operator()
            },
            "unknown runtime",
        ),
        (
            WorkspacePatch {
                tier: Some(0),
                ..operator()
            },
            "invalid workspace fields",
        ),
        (
            WorkspacePatch {
                tier: Some(3),
                ..operator()
            },
            "tier 3 is not allowed here: LONGSHORE_MAX_TIER is 2",
        ),
        (
            WorkspacePatch {
                hibernation_idle_minutes: Some(Some(-1)),
                ..operator()
            },
            "invalid workspace fields",
        ),
        (
            WorkspacePatch {
                name: Some("written?".into()),
                parent_id: Some(Some(WorkspaceId::random())),
                position: Some(Position { x: 9.0, y: 9.0 }),
                ..operator()
            },
            "invalid parent_id",
        ),
        (
            WorkspacePatch {
                parent_id: Some(Some(workspace.id)),
                ..operator()
            },
            "parent_id would create a cycle",
        ),
    ];
    for (bad, text) in table {
        assert_eq!(
            patch(&setup, workspace.id, bad)
                .await
                .unwrap_err()
                .to_string(),
            text
        );
        assert_eq!(setup.load(workspace.id).await, workspace, "{text}");
    }
}

#[tokio::test]
async fn a_workspace_cannot_move_below_itself() {
    let setup = Setup::new().await;
    let top = setup.create(named("top")).await.id;
    let middle = setup.create_child("middle", top).await.id;
    let bottom = setup.create_child("bottom", middle).await.id;
    let under = |parent| WorkspacePatch {
        parent_id: Some(Some(parent)),
        ..operator()
    };
    let refused = patch(&setup, top, under(bottom)).await.unwrap_err();
    assert!(matches!(refused, PatchError::Cycle));
    patch(&setup, bottom, under(top)).await.unwrap();
    patch(&setup, middle, under(bottom)).await.unwrap();
    assert_eq!(setup.load(middle).await.parent_id, Some(bottom));
}

#[tokio::test]
async fn two_moves_at_once_cannot_close_a_cycle() {
    let setup = Setup::new().await;
    let a = setup.create(named("a")).await.id;
    let b = setup.create(named("b")).await.id;
    let under = |parent| WorkspacePatch {
        parent_id: Some(Some(parent)),
        ..operator()
    };
    let mut first = setup.begin().await;
    patch_workspace(&mut first, &setup.fleet, a, under(b))
        .await
        .unwrap();
    // Each alone is right; the second has to see what the first did.
    let (second, ()) = tokio::join!(patch(&setup, b, under(a)), async {
        setup.until_someone_waits().await;
        first.commit().await.unwrap();
    });
    assert!(matches!(second, Err(PatchError::Cycle)), "{second:?}");
}

#[tokio::test]
async fn its_own_token_may_not_raise_its_rights() {
    let setup = Setup::new().await;
    let id = setup.create(named("n")).await.id;
    let table = [
        (
            WorkspacePatch {
                tier: Some(1),
                ..WorkspacePatch::default()
            },
            "tier",
        ),
        (
            WorkspacePatch {
                parent_id: Some(None),
                ..WorkspacePatch::default()
            },
            "parent_id",
        ),
        (
            WorkspacePatch {
                runtime: Some("codex".into()),
                ..WorkspacePatch::default()
            },
            "runtime",
        ),
        (
            WorkspacePatch {
                workspace_dir: Some(None),
                ..WorkspacePatch::default()
            },
            "workspace_dir",
        ),
    ];
    for (own, field) in table {
        let error = patch(&setup, id, own).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("admin credential required to change {field}")
        );
    }
    let own = WorkspacePatch {
        name: Some("me".into()),
        ..WorkspacePatch::default()
    };
    patch(&setup, id, own).await.unwrap();
    assert_eq!(setup.load(id).await.name, "me");
}

#[tokio::test]
async fn unknown_and_removed_workspaces_are_not_changed() {
    let setup = Setup::new().await;
    let missing = patch(&setup, WorkspaceId::random(), operator())
        .await
        .unwrap_err();
    assert_eq!(missing.to_string(), "workspace not found");
    let id = setup.create(named("n")).await.id;
    setup.write_status(id, WorkspaceStatus::Removed).await;
    assert_eq!(
        patch(&setup, id, operator()).await.unwrap_err().to_string(),
        "workspace removed"
    );
}
