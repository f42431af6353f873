//! Templates: listed as they are, left out with a reason, imported whole.

use std::path::Path;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::app::{Options, TestApp, expect};

fn write(root: &Path, id: &str, config: &str) {
    let directory = root.join(id);
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("config.yaml"), config).unwrap();
}

async fn with_root(root: &Path) -> TestApp {
    let mut options = Options::default();
    options.fleet.configs_dir = Some(root.to_owned());
    TestApp::with(options).await
}

#[tokio::test]
async fn templates_are_listed_with_all_they_declare_and_nothing_they_do_not() {
    let root = tempfile::tempdir().unwrap();
    write(
        root.path(),
        "full",
        "name: Full\ndescription: all of it\nruntime: hermes\ntier: 2\nskills: [search, write]\n\
         providers:\n- {name: one, auth_env: [ONE_KEY], base_url: null}\n\
         runtime_config:\n  model: minimax/M2\n  models: [{id: minimax/M2, name: M2, required_env: [ONE_KEY]}, {id: x}]\n  \
         required_env: [ONE_KEY]\n  provision_timeout_seconds: 720\n  providers: [one, two]\n",
    );
    write(root.path(), "bare", "{}");
    std::fs::create_dir(root.path().join("no-template")).unwrap();
    let app = with_root(root.path()).await;
    let list = app.operate(Method::GET, "/templates", Value::Null).await;
    let bare = json!({
        "id": "bare", "name": "", "description": "", "runtime": "", "tier": 0, "model": "",
        "skills": [], "skill_count": 0
    });
    let full = json!({
        "id": "full", "name": "Full", "description": "all of it", "runtime": "hermes", "tier": 2,
        "model": "minimax/M2",
        "models": [{ "id": "minimax/M2", "name": "M2", "required_env": ["ONE_KEY"] }, { "id": "x" }],
        "required_env": ["ONE_KEY"], "skills": ["search", "write"], "skill_count": 2,
        "provision_timeout_seconds": 720, "providers": ["one", "two"],
        "provider_registry": [
            { "name": "one", "auth_env": ["ONE_KEY"], "model_prefixes": [], "model_aliases": [], "base_url": "" }
        ]
    });
    assert_eq!(list, json!([bare, full]));
    // One accessor says how long a start may take, here and to the sweep.
    let created = app
        .create(json!({ "name": "a", "template": "full", "runtime": "hermes", "secrets": { "ONE_KEY": "k" } }))
        .await;
    let path = format!("/workspaces/{}", created["id"].as_str().unwrap());
    let shown = app.operate(Method::GET, &path, Value::Null).await;
    assert_eq!(shown["provision_timeout_ms"], 720_000);
    assert_eq!(app.fleet.provision_timeout("hermes").as_secs(), 720);
}

#[tokio::test]
async fn a_broken_template_is_left_out_and_says_where() {
    let root = tempfile::tempdir().unwrap();
    write(root.path(), "a-good", "name: Good");
    write(root.path(), "b-syntax", "name: x\nmodel: [unclosed\n");
    write(root.path(), "c-shape", "name: x\nproviders: [slug]\n");
    let app = with_root(root.path()).await;
    let ids = async |path: &str| -> Vec<Value> {
        let answer = app.operate(Method::GET, path, Value::Null).await;
        let list = answer.get("items").unwrap_or(&answer).as_array().unwrap();
        list.iter().map(|item| item["id"].clone()).collect()
    };
    assert_eq!(ids("/templates").await, ["a-good"]);
    assert_eq!(ids("/templates/problems").await, ["b-syntax", "c-shape"]);
    let first = app
        .operate(Method::GET, "/templates/problems?limit=1", Value::Null)
        .await;
    assert_eq!(first["next_cursor"], "b-syntax");
    let problem = &first["items"][0];
    assert_eq!(problem["file"], "config.yaml");
    assert!(
        problem["line"].as_u64().is_some_and(|line| line >= 2),
        "{first}"
    );
    assert!(!problem["error"].as_str().unwrap().is_empty());
    assert_eq!(
        ids("/templates/problems?limit=1&cursor=b-syntax").await,
        ["c-shape"]
    );
    // Mended, it is there at once.
    write(root.path(), "c-shape", "name: x");
    assert_eq!(ids("/templates").await, ["a-good", "c-shape"]);
    assert_eq!(ids("/templates/problems").await, ["b-syntax"]);
    let got = app
        .refusal(Method::GET, "/templates/problems?all=1", Value::Null)
        .await;
    assert_eq!(got.0, 400);
}

#[tokio::test]
async fn without_a_root_there_are_no_templates() {
    let app = TestApp::start().await;
    let list = app.operate(Method::GET, "/templates", Value::Null).await;
    assert_eq!(list, json!([]));
    let gone = tempfile::tempdir().unwrap().path().join("nowhere");
    let app = with_root(&gone).await;
    let list = app.operate(Method::GET, "/templates", Value::Null).await;
    assert_eq!(list, json!([]));
}

#[tokio::test]
async fn an_imported_template_can_be_chosen_at_once() {
    let root = tempfile::tempdir().unwrap();
    let app = with_root(root.path()).await;
    let body = json!({ "name": "Sea Captain", "files": {
        "system-prompt.md": "you are a captain", "skills/sail/SKILL.md": "sail" } });
    let import = || {
        app.admin(Method::POST, "/templates/import")
            .json(&body)
            .send()
    };
    let imported = expect(import().await.unwrap(), StatusCode::CREATED).await;
    assert_eq!(
        imported,
        json!({ "status": "imported", "id": "sea-captain", "name": "Sea Captain" })
    );
    let list = app.operate(Method::GET, "/templates", Value::Null).await;
    assert_eq!(list[0]["name"], "Sea Captain");
    assert_eq!(list[0]["skills"], json!(["sail"]));
    let again = expect(import().await.unwrap(), StatusCode::CONFLICT).await;
    assert_eq!(
        (&again["error"], &again["id"]),
        (&json!("template already exists"), &json!("sea-captain"))
    );
    for (body, text) in [
        (json!({ "name": "x" }), "invalid request body"),
        (json!({ "name": "x", "files": {} }), "invalid request body"),
        (
            json!({ "name": "x", "files": { "ok.md": "", "../../x": "" } }),
            "invalid request body",
        ),
    ] {
        let got = app.refusal(Method::POST, "/templates/import", body).await;
        assert_eq!(got, (400, text.to_owned()));
    }
    let many: serde_json::Map<_, _> = (0..201).map(|n| (format!("{n}.md"), json!(""))).collect();
    let body = json!({ "name": "x", "files": many });
    let got = app.refusal(Method::POST, "/templates/import", body).await;
    assert_eq!(got, (400, "too many files (201), max 200".to_owned()));
    assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 1);
    // Files may be larger together than other bodies.
    let body = json!({ "name": "Big", "files": { "a.md": "x".repeat(9 << 20) } });
    let sent = app.admin(Method::POST, "/templates/import").json(&body);
    expect(sent.send().await.unwrap(), StatusCode::CREATED).await;
}
