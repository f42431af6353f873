//! The commands that set what agents work with: models, tokens, templates.

use std::process::Output;

use longshore_tests::TestApp;

#[track_caller]
fn done(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[tokio::test]
async fn models_tokens_and_templates_are_looked_at_and_changed_by_command() {
    let place = tempfile::tempdir().unwrap();
    let root = place.path().join("templates");
    std::fs::create_dir_all(root.join("broken")).unwrap();
    std::fs::write(root.join("broken/config.yaml"), "name: [unclosed").unwrap();
    let app = TestApp::build()
        .without_docker()
        .setting("CONFIGS_DIR", root.to_str().unwrap())
        .start()
        .await;
    // Nobody restarts an external one, so nothing is set off.
    app.create_external("far").await;
    assert_eq!(done(&app.command(&["model", "far"])), "");
    let set = done(&app.command(&["model", "far", "minimax/M2"]));
    assert!(set.ends_with("saved"), "{set}");
    assert_eq!(done(&app.command(&["model", "far"])), "minimax/M2");
    assert_eq!(done(&app.command(&["provider", "far"])), "minimax");
    let cleared = done(&app.command(&["provider", "far", "--clear"]));
    assert!(cleared.ends_with("cleared"), "{cleared}");
    assert_eq!(done(&app.command(&["provider", "far"])), "");

    for whose in [&["--workspace", "far"][..], &[]] {
        let with = |args: &[&str]| {
            let args: Vec<_> = ["tokens"]
                .iter()
                .chain(args)
                .chain(whose)
                .copied()
                .collect();
            app.command(&args)
        };
        let token = done(&with(&["create"]));
        assert_eq!(token.len(), 43);
        let listed = done(&with(&["list", "--json"]));
        let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
        let newest = &listed["tokens"][0];
        assert_eq!(newest["prefix"], token[..8], "{listed}");
        let id = newest["id"].as_str().unwrap();
        assert!(done(&with(&["list"])).contains(&token[..8]));
        assert!(done(&with(&["revoke", id])).ends_with("revoked"));
        assert!(!done(&with(&["list"])).contains(&token[..8]));
    }

    let files = place.path().join("files");
    std::fs::create_dir_all(files.join("skills/a")).unwrap();
    std::fs::write(files.join("config.yaml"), "name: Mine\nruntime: hermes\n").unwrap();
    std::fs::write(files.join("skills/a/SKILL.md"), "s").unwrap();
    let from = files.to_str().unwrap();
    let imported = done(&app.command(&["templates", "import", "My Own", from]));
    assert_eq!(imported, "my-own");
    assert!(root.join("my-own/skills/a/SKILL.md").is_file());
    let listed = done(&app.command(&["templates", "list"]));
    assert!(
        listed.contains("my-own") && listed.contains("hermes"),
        "{listed}"
    );
    let problems = done(&app.command(&["templates", "problems"]));
    assert!(problems.contains("broken"), "{problems}");
    let again = app.command(&["templates", "import", "My Own", from]);
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(
        !again.status.success() && said.contains("already exists"),
        "{said}"
    );
}
