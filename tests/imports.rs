//! Bundles and organisations, with real containers.

use std::path::Path;

use longshore_tests::{PATIENCE, TestApp, needs_docker};
use serde_json::{Value, json};

fn write(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

async fn file(app: &TestApp, id: &str, path: &str) -> String {
    let containers = app.engine().containers_of(id).await;
    app.engine().read_file(&containers[0].id, path).await
}

async fn payloads(app: &TestApp) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM job_payloads")
        .fetch_one(app.pool())
        .await
        .unwrap()
}

#[tokio::test]
async fn a_bundle_comes_up_with_its_files_and_goes_out_as_its_agents_have_them() {
    needs_docker!();
    let app = TestApp::start().await;
    let place = tempfile::tempdir().unwrap();
    let bundle = json!({
        "id": "b", "name": "lead", "system_prompt": "be kind",
        "prompts": { "config.yaml": "name: lead\nruntime: hermes\n" },
        "skills": [{ "id": "a", "files": { "SKILL.md": "s" } }],
        "sub_workspaces": [{ "name": "helper" }],
    });
    write(place.path(), "in.json", &bundle.to_string());
    let from = place.path().join("in.json");
    let imported = app.command(&["bundles", "import", from.to_str().unwrap(), "--json"]);
    assert!(imported.status.success(), "{imported:?}");
    let imported: Value = serde_json::from_slice(&imported.stdout).unwrap();
    let lead = imported["workspace_id"].as_str().unwrap();
    let helper = imported["children"][0]["workspace_id"].as_str().unwrap();
    for id in [lead, helper] {
        app.until_up(id, PATIENCE).await;
        app.assert_whole(id).await;
    }
    for job in [&imported, &imported["children"][0]] {
        app.until_job(job["job_id"].as_str().unwrap(), "succeeded", PATIENCE)
            .await;
    }
    assert_eq!(payloads(&app).await, 0, "they have done their work");
    assert_eq!(
        file(&app, lead, "/configs/system-prompt.md").await,
        "be kind"
    );
    assert_eq!(file(&app, lead, "/configs/skills/a/SKILL.md").await, "s");
    let generated = file(&app, helper, "/configs/config.yaml").await;
    assert!(generated.contains("name: \"helper\""), "{generated}");

    let to = place.path().join("out.json");
    let exported = app.command(&["bundles", "export", "lead", "--to", to.to_str().unwrap()]);
    assert!(exported.status.success(), "{exported:?}");
    let exported: Value = serde_json::from_slice(&std::fs::read(&to).unwrap()).unwrap();
    assert_eq!(exported["system_prompt"], "be kind");
    assert_eq!(exported["skills"][0]["files"], json!({ "SKILL.md": "s" }));
    assert_eq!(
        exported["prompts"]["config.yaml"],
        "name: lead\nruntime: hermes\n"
    );
    assert_eq!(
        exported["sub_workspaces"][0]["prompts"]["config.yaml"],
        generated
    );
    let token = file(&app, lead, "/configs/.auth_token").await;
    assert!(!exported.to_string().contains(token.trim()));
}

#[tokio::test]
async fn an_imported_workspace_that_is_paused_before_its_turn_has_its_files_when_it_is_resumed() {
    needs_docker!();
    let mut app = TestApp::build().workers([]).start().await;
    let bundle = json!({ "name": "late", "system_prompt": "be late" });
    let answer = app.admin().post("/bundles/import", &bundle).await;
    let imported = answer.expect(201);
    let id = imported["workspace_id"].as_str().unwrap();
    for action in ["pause", "resume"] {
        let path = format!("/workspaces/{id}/{action}");
        app.admin().post(&path, &Value::Null).await.expect(200);
    }
    let worker = app
        .start_worker(longshore_tests::NewWorker::default())
        .await;
    app.until_up(id, PATIENCE).await;
    assert_eq!(file(&app, id, "/configs/system-prompt.md").await, "be late");
    drop(worker);
}

#[tokio::test]
async fn an_organisation_comes_up_no_more_at_once_than_allowed() {
    needs_docker!();
    let templates = tempfile::tempdir().unwrap();
    let root = templates.path().join("templates");
    write(
        &root,
        "org-templates/lab/org.yaml",
        "name: Lab\ndefaults: {plugins: [base]}\nworkspaces:\n- name: head\n  files_dir: head\n  children: \
         [{name: one}, {name: two}, {name: three}, {name: four}]\n",
    );
    write(&root, "org-templates/lab/head/notes.md", "mine");
    write(
        &root,
        "org-templates/lab/head/.env",
        "LAB_TOKEN=of-the-lab\n",
    );
    write(templates.path(), "plugins/base/plugin.md", "p");
    let app = TestApp::build()
        .setting("CONFIGS_DIR", root.to_str().unwrap())
        .setting("IMPORT_CONCURRENCY", "2")
        .setting("IMPORT_PAUSE_MS", "50")
        .start()
        .await;
    let listed = app.command(&["orgs", "templates"]);
    let said = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(said.contains("lab") && said.contains('5'), "{said}");
    let imported = app.command(&["orgs", "import", "lab", "--json"]);
    assert!(imported.status.success(), "{imported:?}");
    let imported: Value = serde_json::from_slice(&imported.stdout).unwrap();
    let members = imported["workspaces"].as_array().unwrap();
    assert_eq!(members.len(), 5);
    for member in members {
        app.until_up(member["id"].as_str().unwrap(), PATIENCE).await;
        let job = member["job_id"].as_str().unwrap();
        app.until_job(job, "succeeded", PATIENCE).await;
    }
    let most: i64 = sqlx::query_scalar(
        "SELECT max((SELECT count(*) FROM job_history b WHERE b.args->>'cause' = 'org-import'
                     AND b.started_at <= a.started_at AND b.finished_at > a.started_at))
         FROM job_history a WHERE a.args->>'cause' = 'org-import'",
    )
    .fetch_one(app.pool())
    .await
    .unwrap();
    assert!((1..=2).contains(&most), "{most} at once");

    let head = members[0]["id"].as_str().unwrap();
    assert_eq!(file(&app, head, "/configs/notes.md").await, "mine");
    assert_eq!(
        file(&app, head, "/configs/plugins/base/plugin.md").await,
        "p"
    );
    let config = file(&app, head, "/configs/config.yaml").await;
    assert!(config.starts_with("name: \"head\"\n"), "{config}");
    let containers = app.engine().containers_of(head).await;
    let docker = app.engine().docker();
    let inspected = docker.inspect_container(&containers[0].id, None).await;
    let env = inspected.unwrap().config.unwrap().env.unwrap();
    assert!(env.contains(&"LAB_TOKEN=of-the-lab".to_owned()));
    let exported = app
        .admin()
        .get(&format!("/bundles/export/{head}"))
        .await
        .expect(200);
    assert!(!exported.to_string().contains("of-the-lab"));
    assert_eq!(payloads(&app).await, 0);
}
