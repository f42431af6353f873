//! Bundles and templates of organisations: taken out and brought in, up to the jobs that do the rest.

use std::path::Path;

use longshore_base::WorkspaceId;
use longshore_fleet::workspace::NewWorkspace;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::app::{Agent, Options, TestApp, expect, expect_error, named};

fn write(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

async fn app_with(root: &Path) -> TestApp {
    let mut options = Options::default();
    options.fleet.configs_dir = Some(root.to_owned());
    TestApp::with(options).await
}

async fn made(app: &TestApp, path: &str, body: Value) -> Value {
    let answer = app.admin(Method::POST, path).json(&body).send().await;
    expect(answer.unwrap(), StatusCode::CREATED).await
}

async fn show(app: &TestApp, id: &Value) -> Value {
    let path = format!("/workspaces/{}", id.as_str().unwrap());
    app.operate(Method::GET, &path, Value::Null).await
}

fn bundle() -> Value {
    json!({
        "schema": "1.0", "id": "the-bundle", "name": "lead", "description": "leads", "tier": 1,
        "model": "minimax/M2", "system_prompt": "be kind", "agent_card": { "name": "Lead" },
        "skills": [{ "id": "search", "name": "Search", "description": "", "files": { "SKILL.md": "s" } }],
        "tools": [], "prompts": { "config.yaml": "name: lead\nruntime: hermes\n", "more.md": "m" },
        "sub_workspaces": [
            { "id": "below", "name": "helper", "prompts": { "config.yaml": "runtime: langgraph" } },
            { "name": "second", "sub_workspaces": [{ "name": "third" }] },
        ],
        "author": "", "version": "1.0.0"
    })
}

#[tokio::test]
async fn a_bundle_becomes_new_workspaces_with_their_files_waiting_for_their_jobs() {
    let app = TestApp::start().await;
    let send = || {
        app.admin(Method::POST, "/bundles/import")
            .header("Idempotency-Key", "once")
            .json(&bundle())
            .send()
    };
    let answer = send().await.unwrap();
    let location = answer.headers()["location"].to_str().unwrap().to_owned();
    let lead = expect(answer, StatusCode::CREATED).await;
    assert_eq!(
        (&lead["name"], &lead["status"]),
        (&json!("lead"), &json!("provisioning"))
    );
    assert_eq!(
        location,
        format!("/jobs/{}", lead["job_id"].as_str().unwrap())
    );
    let names: Vec<_> = lead["children"]
        .as_array()
        .unwrap()
        .iter()
        .map(|child| child["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["helper", "second"]);
    let third = &lead["children"][1]["children"][0];
    assert_eq!(third["name"], "third");

    let shown = show(&app, &lead["workspace_id"]).await;
    assert_eq!(
        (&shown["runtime"], &shown["tier"], &shown["role"]),
        (&json!("hermes"), &json!(1), &json!("leads"))
    );
    assert_eq!(shown["agent_card"], json!({ "name": "Lead" }));
    let helper = show(&app, &lead["children"][0]["workspace_id"]).await;
    assert_eq!(
        (&helper["runtime"], &helper["tier"], &helper["parent_id"]),
        (&json!("claude-code"), &json!(2), &lead["workspace_id"])
    );
    assert_eq!(
        show(&app, &third["workspace_id"]).await["parent_id"],
        lead["children"][1]["workspace_id"]
    );
    let id = lead["workspace_id"].as_str().unwrap();
    let events = app
        .operate(Method::GET, &format!("/events/{id}"), Value::Null)
        .await;
    assert_eq!(events[0]["payload"]["source_bundle_id"], "the-bundle");
    assert_eq!(
        app.count("workspaces WHERE source_bundle_id = 'the-bundle'")
            .await,
        1
    );
    let model = format!("/workspaces/{id}/model");
    let model = app.operate(Method::GET, &model, Value::Null).await;
    assert_eq!(model["model"], "minimax/M2");
    assert_eq!(
        app.count("jobs WHERE args->>'cause' = 'bundle-import'")
            .await,
        4
    );
    let texts: Value = sqlx::query_scalar(
        "SELECT payload -> 'texts' FROM job_payloads WHERE workspace_id = $1::uuid",
    )
    .bind(id)
    .fetch_one(app.database.pool())
    .await
    .unwrap();
    assert_eq!(
        texts,
        json!({
            "config.yaml": "name: lead\nruntime: hermes\n", "more.md": "m", "skills/search/SKILL.md": "s",
            "system-prompt.md": "be kind",
        })
    );
    let again = send().await.unwrap();
    assert_eq!(again.headers()["idempotent-replayed"], "true");
    assert_eq!(expect(again, StatusCode::CREATED).await, lead);
    assert_eq!(app.count("workspaces").await, 4);

    // Files go with the job that was put away, and with the workspaces that are removed.
    let discard = format!("/jobs/{}/discard", third["job_id"].as_str().unwrap());
    app.operate(Method::POST, &discard, json!({})).await;
    assert_eq!(app.count("job_payloads").await, 3);
    let retry = format!("/jobs/{}/retry", third["job_id"].as_str().unwrap());
    let (status, error) = app.refusal(Method::POST, &retry, json!({})).await;
    assert_eq!(status, 409, "{error}");
    assert!(error.contains("its files are gone"), "{error}");
    let path = format!("/workspaces/{id}?confirm=true");
    app.operate(Method::DELETE, &path, Value::Null).await;
    assert_eq!(app.count("job_payloads").await, 0);
}

#[tokio::test]
async fn a_bundle_that_breaks_a_rule_leaves_nothing_and_says_where() {
    let app = TestApp::start().await;
    let below = |child: Value| json!({ "name": "a", "sub_workspaces": [{ "name": "b", "sub_workspaces": [child] }] });
    for (bundle, place) in [
        (json!({}), "bundle: name is required"),
        (
            below(json!({ "name": "x\ny" })),
            "bundle.sub_workspaces[0].sub_workspaces[0]: name",
        ),
        (
            below(json!({ "name": "c", "description": "[" })),
            "sub_workspaces[0].sub_workspaces[0]: role",
        ),
        (
            below(json!({ "name": "c", "prompts": { "../out": "x" } })),
            "\"../out\" is no path of a file",
        ),
        (
            json!({ "name": "a", "skills": [{ "id": "../x", "files": {} }] }),
            "skill \"../x\"",
        ),
        (
            json!({ "name": "a", "skills": [{ "id": "x", "files": { "/etc/passwd": "" } }] }),
            "is no path of a file",
        ),
        (
            json!({ "name": "a", "sub_workspaces": vec![json!({ "name": "b" }); 200] }),
            "at most 200 workspaces",
        ),
        (json!({ "name": "a", "tier": 9 }), "tier must be"),
        (json!("text"), "invalid type"),
    ] {
        let answer = app.admin(Method::POST, "/bundles/import").json(&bundle);
        let answer = answer.send().await.unwrap();
        let body = expect(answer, StatusCode::BAD_REQUEST).await;
        assert_eq!(body["error"], "invalid bundle", "{place}");
        let detail = body["detail"].as_str().unwrap();
        assert!(detail.contains(place), "{place}: {detail}");
    }
    let above = below(json!({ "name": "c", "tier": 4 }));
    let (status, error) = app.refusal(Method::POST, "/bundles/import", above).await;
    assert_eq!(
        (status, error.as_str()),
        (403, "tier 4 is not allowed here: LONGSHORE_MAX_TIER is 2")
    );
    assert_eq!(app.count("workspaces").await, 0);
}

#[tokio::test]
async fn what_is_exported_holds_the_subtree_and_no_secret_and_can_be_imported() {
    let root = tempfile::tempdir().unwrap();
    let at = root.path();
    write(at, "lead/config.yaml", "name: lead\nruntime: hermes\n");
    write(
        at,
        "lead/system-prompt.md",
        "the key is planted-secret-value",
    );
    write(
        at,
        "lead/skills/a/SKILL.md",
        "---\nname: A\ndescription: does a\n---\n",
    );
    write(at, "lead/.env", "KEY=x");
    let app = app_with(at).await;
    let lead = app
        .insert_agent(NewWorkspace {
            template: Some("lead".to_owned()),
            role: Some("leads".to_owned()),
            model: Some("minimax/M2".to_owned()),
            ..named("lead")
        })
        .await;
    let secret = json!({ "key": "PLANTED", "value": "planted-secret-value" });
    let path = format!("/workspaces/{}/secrets", lead.id);
    app.operate(Method::PUT, &path, secret).await;
    let child = app.insert_child("child", lead.id).await;
    let gone = app.insert_child("gone", lead.id).await;
    let path = format!("/workspaces/{}", gone.id);
    app.operate(Method::DELETE, &path, Value::Null).await;

    let export = |agent: &Agent| format!("/bundles/export/{}", agent.id);
    let bundle = app.operate(Method::GET, &export(&lead), Value::Null).await;
    assert_eq!(
        (
            &bundle["schema"],
            &bundle["name"],
            &bundle["description"],
            &bundle["model"]
        ),
        (
            &json!("1.0"),
            &json!("lead"),
            &json!("leads"),
            &json!("minimax/M2")
        )
    );
    assert_eq!(
        bundle["prompts"],
        json!({ "config.yaml": "name: lead\nruntime: hermes\n" })
    );
    assert_eq!(bundle["system_prompt"], "the key is [redacted]");
    assert_eq!(
        bundle["skills"],
        json!([{
            "id": "a", "name": "A", "description": "does a",
            "files": { "SKILL.md": "---\nname: A\ndescription: does a\n---\n" }
        }])
    );
    assert_eq!(
        (&bundle["tools"], &bundle["agent_card"]),
        (&json!([]), &json!({}))
    );
    let below = bundle["sub_workspaces"].as_array().unwrap();
    assert_eq!(below.len(), 1, "{bundle}");
    assert_eq!(below[0]["id"], json!(child.id));
    let config = below[0]["prompts"]["config.yaml"].as_str().unwrap();
    assert!(config.contains("runtime: claude-code"), "{config}");

    let again = made(&app, "/bundles/import", bundle).await;
    assert_ne!(again["workspace_id"], json!(lead.id));
    let shown = show(&app, &again["workspace_id"]).await;
    assert_eq!(
        (&shown["runtime"], &shown["role"]),
        (&json!("hermes"), &json!("leads"))
    );
    for missing in [
        &gone,
        &Agent {
            id: WorkspaceId::random(),
            token: String::new(),
        },
    ] {
        let answer = app
            .admin(Method::GET, &export(missing))
            .send()
            .await
            .unwrap();
        assert_eq!(
            expect_error(answer, StatusCode::NOT_FOUND).await,
            "bundle not found"
        );
    }
}

const ORG: &str = r#"
name: The Lab
description: looks into things
required_env: [LAB_KEY]
recommended_env: [NICE_KEY]
defaults: {runtime: hermes, model: minimax/M2, plugins: [base, extra], initial_prompt: "begin\nhere"}
global_memories: [{content: we are the lab}]
workspaces:
- name: head
  files_dir: head
  canvas: {x: 3, y: 4}
  children:
  - {name: one, runtime: codex, plugins: ["!extra"], idle_prompt: tick, category_routing: {bugs: [one]}}
  - {name: two, system_prompt: be two, tier: 1}
  - {name: outside, external: true}
"#;

fn write_org(root: &Path) {
    write(root, "org-templates/lab/org.yaml", ORG);
    write(
        root,
        "org-templates/lab/.env",
        "SHARED_TOKEN=of-the-org\nLAB_TOKEN=org\n",
    );
    write(
        root,
        "org-templates/lab/head/.env",
        "LAB_TOKEN=of-the-head\n",
    );
    write(root, "org-templates/lab/head/notes.md", "n");
    write(
        root,
        "org-templates/broken/org.yaml",
        "workspaces: [unclosed",
    );
    write(
        root,
        "org-templates/lower/org.yaml",
        "required_env: [lower]\nworkspaces: [{name: a}]",
    );
    std::fs::create_dir(root.join("org-templates/empty")).unwrap();
}

#[tokio::test]
async fn an_organisation_is_listed_and_imported_with_all_its_template_says() {
    let root = tempfile::tempdir().unwrap();
    write_org(root.path());
    let app = app_with(root.path()).await;
    let listed = app
        .operate(Method::GET, "/org/templates", Value::Null)
        .await;
    assert_eq!(
        listed,
        json!([{
            "dir": "lab", "name": "The Lab", "description": "looks into things", "workspaces": 4,
            "required_env": ["LAB_KEY"], "recommended_env": ["NICE_KEY"]
        }])
    );
    let lab = json!({ "dir": "lab" });
    let answer = app.admin(Method::POST, "/org/import").json(&lab);
    let refused = answer.send().await.unwrap();
    let refused = expect(refused, StatusCode::PRECONDITION_FAILED).await;
    assert_eq!(
        (
            &refused["missing_env"],
            &refused["required_env"],
            &refused["template"]
        ),
        (&json!(["LAB_KEY"]), &json!(["LAB_KEY"]), &json!("lab"))
    );
    assert_eq!(app.count("workspaces").await, 0);
    let secret = json!({ "key": "LAB_KEY", "value": "k" });
    app.operate(Method::PUT, "/settings/secrets", secret).await;

    let imported = made(&app, "/org/import", lab).await;
    assert_eq!(
        (&imported["org"], &imported["count"]),
        (&json!("The Lab"), &json!(4))
    );
    let members = imported["workspaces"].as_array().unwrap();
    let names: Vec<_> = members
        .iter()
        .map(|member| {
            (
                member["name"].as_str().unwrap(),
                member["status"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        names,
        [
            ("head", "provisioning"),
            ("one", "provisioning"),
            ("two", "provisioning"),
            ("outside", "awaiting_agent")
        ]
    );
    assert!(
        members[1..]
            .iter()
            .all(|member| member["parent_id"] == members[0]["id"])
    );
    let runtimes: Vec<Value> = {
        let mut shown = Vec::new();
        for member in members {
            shown.push(show(&app, &member["id"]).await["runtime"].clone());
        }
        shown
    };
    assert_eq!(runtimes, ["hermes", "codex", "hermes", "external"]);

    // Each in its turn, and no more at once than lanes.
    let jobs: Vec<(String, f64, Vec<String>)> = sqlx::query_as(
        "SELECT w.name, extract(epoch FROM j.run_at - j.created_at)::float8, j.keys FROM jobs j
         JOIN workspaces w ON w.id = j.workspace_id WHERE j.args->>'cause' = 'org-import' ORDER BY j.seq",
    )
    .fetch_all(app.database.pool())
    .await
    .unwrap();
    let turns: Vec<_> = jobs
        .iter()
        .map(|(name, delay, keys)| (name.as_str(), *delay, keys.len()))
        .collect();
    assert_eq!(turns, [("head", 0.0, 2), ("one", 0.0, 2), ("two", 2.0, 2)]);

    // The secrets of the files, sealed as any other, the nearer file winning.
    let head = WorkspaceId(members[0]["id"].as_str().unwrap().parse().unwrap());
    let mut conn = app.database.pool().acquire().await.unwrap();
    let opened = longshore_fleet::secrets::open_secrets(&mut conn, &app.fleet, head)
        .await
        .unwrap();
    assert!(opened.failed.is_empty());
    assert_eq!(opened.values["LAB_TOKEN"].expose(), "of-the-head");
    assert_eq!(opened.values["SHARED_TOKEN"].expose(), "of-the-org");
    assert_eq!(
        app.count("workspace_secrets WHERE encryption_version = 0")
            .await,
        0
    );
    assert_eq!(
        app.count("agent_memories WHERE scope = 'GLOBAL' AND content = 'we are the lab'")
            .await,
        1
    );
    let payloads: Vec<(String, Value)> = sqlx::query_as(
        "SELECT w.name, p.payload FROM job_payloads p JOIN workspaces w ON w.id = p.workspace_id ORDER BY w.name",
    )
    .fetch_all(&mut *conn)
    .await
    .unwrap();
    let of = |name: &str| &payloads.iter().find(|(other, _)| other == name).unwrap().1;
    assert_eq!(of("head")["plugins"], json!(["base", "extra"]));
    assert_eq!(of("one")["plugins"], json!(["base"]));
    assert_eq!(of("two")["texts"]["system-prompt.md"], "be two");
    let config = of("one")["texts"]["config.yaml"].as_str().unwrap();
    assert_eq!(
        config,
        "name: \"one\"\ndescription: \"\"\nversion: 1.0.0\ntier: 2\nruntime: codex\nmodel: \"minimax/M2\"\n\
         runtime_config:\n  timeout: 0\ncategory_routing:\n  \"bugs\": [\"one\"]\ninitial_prompt: \"begin\\nhere\"\n\
         idle_prompt: \"tick\"\nidle_interval_seconds: 600\n"
    );
    let id = members[0]["id"].as_str().unwrap();
    let events = app
        .operate(Method::GET, &format!("/events/{id}"), Value::Null)
        .await;
    let told = &events[0]["payload"];
    assert_eq!((&told["x"], &told["y"]), (&json!(3.0), &json!(4.0)));
}

#[tokio::test]
async fn an_organisation_that_cannot_be_imported_says_why() {
    let root = tempfile::tempdir().unwrap();
    write_org(root.path());
    write(
        root.path(),
        "org-templates/high/org.yaml",
        "workspaces: [{name: a, tier: 4}]",
    );
    write(
        root.path(),
        "org-templates/out/org.yaml",
        "workspaces: [{name: a, files_dir: ../lab}]",
    );
    write(root.path(), "org-templates/bare/org.yaml", "name: bare");
    let app = app_with(root.path()).await;
    for (dir, status, text) in [
        ("nowhere", 404, "org template not found"),
        ("../lab", 404, "org template not found"),
        ("", 404, "org template not found"),
        ("empty", 404, "org template not found"),
        ("broken", 400, "invalid org template"),
        ("lower", 400, "invalid org template"),
        ("out", 400, "invalid org template"),
        ("bare", 400, "invalid org template"),
        (
            "high",
            403,
            "tier 4 is not allowed here: LONGSHORE_MAX_TIER is 2",
        ),
    ] {
        let body = json!({ "dir": dir, "force": true });
        let refused = app.refusal(Method::POST, "/org/import", body).await;
        assert_eq!(refused, (status, text.to_owned()), "{dir}");
    }
    assert_eq!(app.count("workspaces").await, 0);
    let forced = json!({ "dir": "lab", "force": true });
    let imported = made(&app, "/org/import", forced).await;
    assert_eq!(imported["count"], 4);
}
