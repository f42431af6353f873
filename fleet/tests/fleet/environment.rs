use std::collections::BTreeMap;

use longshore_base::{Secret, WorkspaceId};
use longshore_fleet::config_source::{self, ConfigSource};
use longshore_fleet::secrets::{open_secrets, save_global_secret, save_workspace_secret};
use longshore_fleet::workspace::{NewWorkspace, Workspace};
use longshore_fleet::{FleetConfig, PrepareError, environment, images, preflight};

use crate::setup::{Setup, config, named};

async fn save_global(setup: &Setup, name: &str, value: &str) {
    save_global_secret(&mut *setup.conn().await, &setup.fleet, name, value)
        .await
        .unwrap();
}

#[tokio::test]
async fn the_variables_come_in_the_fixed_order() {
    let setup = Setup::with(FleetConfig {
        awareness_url: Some("http://awareness".into()),
        agent_git_email_domain: Some("ship.example".into()),
        ..config()
    })
    .await;
    let parent = setup.create(named("parent")).await.id;
    for (name, value) in [
        ("SHARED", "global"),
        ("BOTH", "global"),
        ("PYTHONPATH", "/theirs"),
    ] {
        save_global(&setup, name, value).await;
    }
    let workspace = setup
        .create(NewWorkspace {
            role: Some("research".into()),
            runtime: Some("hermes".into()),
            model: Some("minimax/M2".into()),
            parent_id: Some(parent.to_string()),
            secrets: BTreeMap::from([
                ("BOTH".into(), Secret::from("own")),
                ("GIT_AUTHOR_NAME".into(), Secret::from("Somebody")),
                ("MODEL".into(), Secret::from("theirs")),
            ]),
            ..named("Research Lead")
        })
        .await;
    let env = environment::build(&mut *setup.conn().await, &setup.fleet, &workspace)
        .await
        .unwrap();
    let id = workspace.id.to_string();
    let namespace = format!("workspace:{id}");
    let parent = parent.to_string();
    let email = "research-lead@agents.ship.example";
    let got: Vec<_> = env
        .vars
        .iter()
        .map(|(name, value)| (name.as_str(), value.expose().as_str()))
        .collect();
    assert_eq!(
        got,
        [
            ("WORKSPACE_ID", id.as_str()),
            ("WORKSPACE_CONFIG_PATH", "/configs"),
            ("PLATFORM_URL", "http://platform:8080"),
            ("LONGSHORE_URL", "http://platform:8080"),
            ("TIER", "2"),
            ("PLUGINS_DIR", "/plugins"),
            ("AWARENESS_NAMESPACE", namespace.as_str()),
            ("AWARENESS_URL", "http://awareness"),
            ("BOTH", "own"),
            ("GIT_AUTHOR_NAME", "Somebody"),
            ("PYTHONPATH", "/theirs"),
            ("SHARED", "global"),
            ("GIT_COMMITTER_NAME", "Longshore Research Lead"),
            ("GIT_AUTHOR_EMAIL", email),
            ("GIT_COMMITTER_EMAIL", email),
            ("MODEL", "minimax/M2"),
            ("HERMES_DEFAULT_MODEL", "minimax/M2"),
            ("HERMES_INFERENCE_MODEL", "minimax/M2"),
            ("MODEL_PROVIDER", "minimax/M2"),
            ("LLM_PROVIDER", "minimax"),
            ("LONGSHORE_AGENT_ROLE", "research"),
            ("PARENT_ID", parent.as_str()),
        ]
    );
    // A backend that says who the workspace is in its own way gets what comes after that.
    let rest =
        environment::build_without_identity(&mut *setup.conn().await, &setup.fleet, &workspace)
            .await
            .unwrap();
    assert_eq!(rest.vars, env.vars[8..]);
    assert_eq!(env.model(), Some("minimax/M2"));
    assert_eq!(setup.fleet.redactor.clean("by Somebody"), "by [redacted]");
}

#[tokio::test]
async fn every_runtime_gets_its_model_and_hermes_under_its_own_names_too() {
    let setup = Setup::new().await;
    let names = ["MODEL", "HERMES_DEFAULT_MODEL", "HERMES_INFERENCE_MODEL"];
    for (runtime, model, expected) in [
        ("claude-code", Some("MiniMax-M2"), [true, false, false]),
        ("hermes", Some("minimax/MiniMax-M2.7"), [true, true, true]),
        ("openclaw", Some("openai:gpt-4o"), [true, false, false]),
        ("codex", Some("openai:gpt-4o"), [true, false, false]),
        ("claude-code", None, [false; 3]),
        ("hermes", None, [false; 3]),
    ] {
        // The row remembers no model, so a restart lives from the secret alone, as every other start does.
        let workspace = setup
            .create(NewWorkspace {
                runtime: Some(runtime.into()),
                model: model.map(Into::into),
                ..named(runtime)
            })
            .await;
        let env = environment::build(&mut *setup.conn().await, &setup.fleet, &workspace)
            .await
            .unwrap();
        for (name, expected) in names.into_iter().zip(expected) {
            let expected = model.filter(|_| expected);
            let got = env.get(name).map(|value| value.expose().as_str());
            assert_eq!(got, expected, "{name} of {runtime} with {model:?}");
        }
    }
}

#[tokio::test]
async fn reserved_names_in_the_table_do_not_replace_a_containers_identity() {
    let setup = Setup::new().await;
    let workspace = setup.create(named("n")).await;
    // Written past the check that refuses it, as an older release might have.
    save_workspace_secret(
        &mut *setup.conn().await,
        &setup.fleet,
        workspace.id,
        "PLATFORM_URL",
        "http://evil",
    )
    .await
    .unwrap();
    let env = environment::build(&mut *setup.conn().await, &setup.fleet, &workspace)
        .await
        .unwrap();
    assert_eq!(
        env.get("PLATFORM_URL"),
        Some(&Secret::from("http://platform:8080"))
    );
}

#[tokio::test]
async fn a_secret_that_does_not_open_stops_the_start_and_is_named() {
    let setup = Setup::new().await;
    let workspace = setup
        .create(NewWorkspace {
            secrets: BTreeMap::from([("OWN".into(), Secret::from("v"))]),
            ..named("n")
        })
        .await;
    let reason = async || {
        let built = environment::build(&mut *setup.conn().await, &setup.fleet, &workspace).await;
        let error = built.unwrap_err();
        assert!(!error.retryable());
        error.public()
    };
    sqlx::query("UPDATE workspace_secrets SET encrypted_value = '\\x0011'::bytea")
        .execute(setup.pool())
        .await
        .unwrap();
    assert_eq!(reason().await, "failed to decrypt workspace secret");
    save_global(&setup, "SHARED", "v").await;
    sqlx::query("UPDATE global_secrets SET encryption_version = 9")
        .execute(setup.pool())
        .await
        .unwrap();
    assert_eq!(reason().await, "failed to decrypt global secret");
    let opened = open_secrets(&mut *setup.conn().await, &setup.fleet, workspace.id)
        .await
        .unwrap();
    let labels: Vec<_> = opened
        .failed
        .iter()
        .map(longshore_fleet::secrets::FailedSecret::label)
        .collect();
    assert_eq!(labels, ["global:SHARED", "workspace:OWN"]);
}

#[tokio::test]
async fn a_failing_query_is_no_empty_environment() {
    let setup = Setup::new().await;
    let workspace = setup.create(named("n")).await;
    let mut tx = setup.begin().await;
    sqlx::query("ALTER TABLE global_secrets RENAME TO elsewhere")
        .execute(&mut *tx)
        .await
        .unwrap();
    let error = environment::build(&mut tx, &setup.fleet, &workspace)
        .await
        .unwrap_err();
    assert!(matches!(error, PrepareError::Fleet(_)));
    assert_eq!(
        (error.public().as_str(), error.retryable()),
        ("provisioning failed", true)
    );
}

fn write(root: &std::path::Path, path: &str, text: &str) {
    let path = root.join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

#[tokio::test]
async fn the_configuration_comes_from_the_named_template_a_default_or_nowhere() {
    let root = tempfile::tempdir().unwrap();
    write(
        root.path(),
        "lead/config.yaml",
        "name: Lead\nruntime_config: {required_env: [LEAD_KEY]}\n",
    );
    write(root.path(), "lead/run.sh", "#!/bin/sh\r\necho\r\n");
    write(root.path(), "lead/skills/a/SKILL.md", "# a\r\n");
    write(root.path(), "empty/notes.txt", "no config\r\n");
    write(root.path(), "codex/config.yaml", "name: Codex\n");
    let setup = Setup::with(FleetConfig {
        configs_dir: Some(root.path().to_owned()),
        ..config()
    })
    .await;
    let create = async |template: Option<&str>, runtime: &str| -> Workspace {
        let new = NewWorkspace {
            template: template.map(str::to_owned),
            runtime: Some(runtime.into()),
            ..named("n")
        };
        setup.create(new).await
    };
    let label = |workspace: &Workspace| match config_source::resolve(&setup.fleet, workspace, &[]) {
        Ok(ConfigSource::Template { label, .. }) => label,
        Ok(ConfigSource::Generated) => "(generated)".to_owned(),
        Ok(ConfigSource::Kept(_)) => "(kept)".to_owned(),
        Err(error) => format!("({error})"),
    };
    let lead = create(Some("lead"), "claude-code").await;
    assert_eq!(label(&lead), "lead");
    assert_eq!(label(&create(None, "codex").await), "(generated)");
    assert_eq!(label(&create(Some("missing"), "codex").await), "codex");
    assert_eq!(
        label(&create(Some("missing"), "hermes").await),
        "(generated)"
    );
    assert_eq!(label(&create(Some("empty"), "codex").await), "codex");
    assert_eq!(
        label(&create(Some("empty"), "hermes").await),
        "(no config.yaml for template empty)"
    );

    let source = config_source::resolve(&setup.fleet, &lead, &[]).unwrap();
    let files = config_source::files(&setup.fleet, &lead, &source, None).unwrap();
    let found: Vec<_> = files
        .iter()
        .map(|file| (file.path.as_str(), file.bytes.as_slice()))
        .collect();
    assert_eq!(
        found,
        [
            (
                "config.yaml",
                b"name: Lead\nruntime_config: {required_env: [LEAD_KEY]}\n".as_slice()
            ),
            ("run.sh", b"#!/bin/sh\necho\n".as_slice()),
            ("skills/a/SKILL.md", b"# a\n".as_slice()),
        ]
    );
    let env = environment::build(&mut *setup.conn().await, &setup.fleet, &lead)
        .await
        .unwrap();
    assert_eq!(preflight::missing_env(&files, &env), ["LEAD_KEY"]);
}

#[tokio::test]
async fn a_template_too_large_for_memory_is_refused_unread() {
    let root = tempfile::tempdir().unwrap();
    write(root.path(), "lead/config.yaml", "name: Lead\n");
    let large = std::fs::File::create(root.path().join("lead/large.bin")).unwrap();
    large.set_len(65 << 20).unwrap();
    let setup = Setup::with(FleetConfig {
        configs_dir: Some(root.path().to_owned()),
        ..config()
    })
    .await;
    let new = NewWorkspace {
        template: Some("lead".into()),
        ..named("n")
    };
    let workspace = setup.create(new).await;
    let source = config_source::resolve(&setup.fleet, &workspace, &[]).unwrap();
    let refused = config_source::files(&setup.fleet, &workspace, &source, None).unwrap_err();
    assert_eq!(refused.public(), "provisioning failed");
}

#[tokio::test]
async fn the_generated_configuration_has_its_keys_in_order() {
    let setup = Setup::new().await;
    let generated = |workspace: &Workspace, model: Option<&str>| {
        let files =
            config_source::files(&setup.fleet, workspace, &ConfigSource::Generated, model).unwrap();
        assert_eq!(
            (files.len(), files[0].path.as_str(), files[0].mode),
            (1, "config.yaml", 0o644)
        );
        String::from_utf8(files[0].bytes.clone()).unwrap()
    };
    let claude = setup
        .create(NewWorkspace {
            role: Some("say \"hi\"".into()),
            ..named("Lead: #1")
        })
        .await;
    assert_eq!(
        generated(&claude, None),
        "name: \"Lead: #1\"\ndescription: \"say \\\"hi\\\"\"\nversion: 1.0.0\ntier: 2\nruntime: claude-code\n\
         model: \"sonnet\"\nruntime_config:\n  timeout: 0\n"
    );
    let codex = setup
        .create(NewWorkspace {
            runtime: Some("codex".into()),
            ..named("n")
        })
        .await;
    assert!(generated(&codex, None).contains("model: \"anthropic:claude-opus-4-7\"\n"));
    assert!(generated(&codex, Some("openai/gpt")).contains("model: \"openai/gpt\"\n"));
    let odd = Workspace {
        runtime: "x\nrequired_env: [A]".into(),
        ..codex
    };
    assert!(generated(&odd, None).contains("runtime: claude-code\n"));
}

#[tokio::test]
async fn the_image_is_the_pin_the_setting_the_map_or_the_default() {
    let digest = "ab".repeat(32);
    let own = BTreeMap::from([("codex".to_owned(), "local/codex:1".to_owned())]);
    let setup = Setup::with(FleetConfig {
        runtime_images: own.clone(),
        ..config()
    })
    .await;
    let mut conn = setup.conn().await;
    let id = WorkspaceId::random();
    let default = "registry.test/owner/workspace-template-claude-code:latest";
    for (runtime, expected) in [
        ("claude-code", default),
        (
            "hermes",
            "registry.test/owner/workspace-template-hermes:latest",
        ),
        ("codex", "local/codex:1"),
        ("langgraph", default),
        ("external", default),
        ("", default),
    ] {
        let choice = images::choose(&mut conn, &setup.fleet, id, runtime).await;
        assert_eq!(
            (choice.reference.as_str(), choice.pinned_digest),
            (expected, None),
            "{runtime}"
        );
    }
    for runtime in ["hermes", "codex", "langgraph", ""] {
        sqlx::query(
            "INSERT INTO runtime_image_pins (template_name, sha256_digest) VALUES ($1, $2)",
        )
        .bind(runtime)
        .bind(&digest)
        .execute(setup.pool())
        .await
        .unwrap();
    }
    for (runtime, expected) in [
        (
            "hermes",
            format!("registry.test/owner/workspace-template-hermes@sha256:{digest}"),
        ),
        ("codex", format!("local/codex@sha256:{digest}")),
        ("claude-code", default.to_owned()),
        ("langgraph", default.to_owned()),
        ("", default.to_owned()),
    ] {
        let choice = images::choose(&mut conn, &setup.fleet, id, runtime).await;
        assert_eq!(choice.reference, expected, "{runtime}");
        assert_eq!(choice.pinned_digest.is_some(), expected.contains('@'));
    }
    // A lookup that fails blocks nothing, and with the local override there is none.
    let mut tx = setup.begin().await;
    sqlx::query("ALTER TABLE runtime_image_pins RENAME TO elsewhere")
        .execute(&mut *tx)
        .await
        .unwrap();
    let unpinned = images::choose(&mut tx, &setup.fleet, id, "codex").await;
    assert_eq!(
        (unpinned.reference.as_str(), unpinned.pinned_digest),
        ("local/codex:1", None)
    );
    // Nor does it break the transaction that everything else of a start is read in.
    sqlx::query("SELECT 1").execute(&mut *tx).await.unwrap();
    drop(tx);
    let local = Setup::with(FleetConfig {
        image_local_override: true,
        image_prefix: String::new(),
        ..config()
    })
    .await;
    let choice = images::choose(&mut conn, &local.fleet, id, "hermes").await;
    assert_eq!(choice.reference, "workspace-template-hermes:latest");
}
