//! Teams: expanding and collapsing, up to the jobs that do the rest.

use std::path::Path;
use std::sync::Arc;

use longshore_backends::{Backends, Docker, DockerConfig};
use longshore_base::{WorkspaceId, ids};
use longshore_fleet::status::WorkspaceStatus;
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};

use crate::app::{Options, TestApp, expect, expect_error};
use crate::workspaces::write_engine_directly;

const LEAD: &str = "name: Lead\nsub_workspaces:\n- {config: helper, role: helps}\n- {config: nowhere, name: Second}\n";
const HELPER: &str = "runtime: hermes\nmodel: minimax/M2\n";

/// With an engine that is configured and never asked, and these templates.
async fn app_with(root: &Path, templates: &[(&str, &str)]) -> TestApp {
    for (name, config) in templates {
        let directory = root.join(name);
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("config.yaml"), config).unwrap();
    }
    let docker = Docker::connect(DockerConfig::new(ids::random_uuid())).unwrap();
    let mut options = Options {
        backends: Backends {
            docker: Some(Arc::new(docker)),
            ..Backends::default()
        },
        ..Options::default()
    };
    options.fleet.configs_dir = Some(root.to_owned());
    TestApp::with(options).await
}

async fn act(app: &TestApp, id: WorkspaceId, action: &str, key: &str) -> Response {
    app.admin(Method::POST, &format!("/workspaces/{id}/{action}"))
        .header("Idempotency-Key", key)
        .send()
        .await
        .unwrap()
}

/// Payloads of the events of a name, oldest first.
async fn told(app: &TestApp, id: &str, name: &str) -> Vec<Value> {
    let path = format!("/events/{id}");
    let events = app.admin(Method::GET, &path).send().await.unwrap();
    let events = expect(events, StatusCode::OK).await;
    let named = events.as_array().unwrap().iter().rev();
    named
        .filter(|event| event["event_type"] == name)
        .map(|event| event["payload"].clone())
        .collect()
}

#[tokio::test]
async fn an_expansion_makes_the_team_once_and_asks_that_it_is_brought_up() {
    let root = tempfile::tempdir().unwrap();
    let app = app_with(root.path(), &[("lead", LEAD), ("helper", HELPER)]).await;
    let lead = app.insert_named("Lead").await;
    let answer = act(&app, lead.id, "expand", "once").await;
    let location = answer.headers()["location"].to_str().unwrap().to_owned();
    let expanded = expect(answer, StatusCode::OK).await;
    assert_eq!(expanded["status"], "expanded");
    let job = expanded["job_id"].as_str().unwrap();
    assert_eq!(location, format!("/jobs/{job}"));
    let children = expanded["children"].as_array().unwrap();
    let named = |child: &Value| (child["name"].clone(), child["role"].clone());
    let names: Vec<_> = children.iter().map(named).collect();
    assert_eq!(
        names,
        [
            (json!("helper"), json!("helps")),
            (json!("Second"), json!(""))
        ]
    );
    assert_eq!(
        app.count("jobs WHERE kind = 'provision' AND args->>'cause' = 'expand'")
            .await,
        2
    );
    for (child, runtime) in children.iter().zip(["hermes", "claude-code"]) {
        let id = child["id"].as_str().unwrap();
        let path = format!("/workspaces/{id}");
        let shown = app.admin(Method::GET, &path).send().await.unwrap();
        let shown = expect(shown, StatusCode::OK).await;
        assert_eq!(shown["status"], "provisioning");
        assert_eq!(
            (&shown["parent_id"], &shown["runtime"], &shown["tier"]),
            (&json!(lead.id), &json!(runtime), &json!(2))
        );
        let begun = told(&app, id, "WORKSPACE_PROVISIONING").await;
        assert_eq!(
            begun,
            [json!({ "name": child["name"], "tier": 2, "runtime": runtime, "parent_id": lead.id })]
        );
    }
    let helper = children[0]["id"].as_str().unwrap();
    let path = format!("/workspaces/{helper}/model");
    let model = app.admin(Method::GET, &path).send().await.unwrap();
    assert_eq!(
        expect(model, StatusCode::OK).await["model"],
        "minimax/M2",
        "its template's"
    );
    let of_parent = told(&app, &lead.id.to_string(), "WORKSPACE_EXPANDED").await;
    assert_eq!(of_parent, [json!({ "children": children })]);

    let again = act(&app, lead.id, "expand", "once").await;
    assert_eq!(expect(again, StatusCode::OK).await, expanded);
    assert_eq!(app.count("workspaces").await, 3);
    // Nothing but the name decides, and a workspace may expand itself.
    let own = app
        .request(Method::POST, &format!("/workspaces/{}/expand", lead.id))
        .bearer_auth(&lead.token)
        .send()
        .await
        .unwrap();
    expect(own, StatusCode::OK).await;
    assert_eq!(app.count("workspaces").await, 5);
}

#[tokio::test]
async fn what_cannot_be_expanded_says_why_and_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    let templates = [
        ("alone", "name: alone"),
        ("broken", "sub_workspaces: [unclosed"),
        ("odd", "sub_workspaces: [{role: nameless}]"),
        ("hostile", "sub_workspaces: [{config: ../../etc}]"),
        ("lead", LEAD),
    ];
    let app = app_with(root.path(), &templates).await;
    for (name, status, text) in [
        ("nobody", 400, "no config found for workspace"),
        (
            "alone",
            400,
            "workspace has no sub_workspaces defined in config",
        ),
        ("broken", 500, "failed to parse config"),
        ("odd", 500, "failed to parse config"),
        ("hostile", 500, "failed to parse config"),
    ] {
        let agent = app.insert_named(name).await;
        let answer = act(&app, agent.id, "expand", name).await;
        let status = StatusCode::from_u16(status).unwrap();
        assert_eq!(expect_error(answer, status).await, text, "{name}");
    }
    let lead = app.insert_named("lead").await;
    sqlx::query("UPDATE workspaces SET tier = 3 WHERE id = $1")
        .bind(lead.id)
        .execute(app.database.pool())
        .await
        .unwrap();
    let answer = act(&app, lead.id, "expand", "tier").await;
    assert_eq!(
        expect_error(answer, StatusCode::FORBIDDEN).await,
        "tier 3 is not allowed here: LONGSHORE_MAX_TIER is 2"
    );
    assert_eq!(app.count("workspaces").await, 6);
    app.set_status(lead.id, WorkspaceStatus::Removed).await;
    for action in ["expand", "collapse"] {
        let answer = act(&app, lead.id, action, action).await;
        assert_eq!(
            expect_error(answer, StatusCode::GONE).await,
            "workspace removed"
        );
        let answer = act(&app, WorkspaceId::random(), action, "unknown").await;
        assert_eq!(
            expect_error(answer, StatusCode::NOT_FOUND).await,
            "workspace not found"
        );
    }
}

#[tokio::test]
async fn a_collapse_removes_everything_below_and_leaves_the_workspace() {
    let root = tempfile::tempdir().unwrap();
    let app = app_with(root.path(), &[]).await;
    let lead = app.insert_named("lead").await;
    let child = app.insert_child("b-child", lead.id).await;
    let grandchild = app.insert_child("a-grandchild", child.id).await;
    let body = json!({ "name": "waiting", "parent_id": lead.id });
    app.create(body).await;
    write_engine_directly(&app, grandchild.id).await;

    // Nobody runs jobs here.
    let answer = act(&app, lead.id, "collapse", "first").await;
    let collapsed = expect(answer, StatusCode::ACCEPTED).await;
    assert_eq!(
        (&collapsed["status"], &collapsed["removed"]),
        (
            &json!("collapsed"),
            &json!(["a-grandchild", "b-child", "waiting"])
        )
    );
    let path = format!("/jobs/{}", collapsed["job_id"].as_str().unwrap());
    let job = app.admin(Method::GET, &path).send().await.unwrap();
    let job = expect(job, StatusCode::OK).await;
    assert_eq!(
        (&job["kind"], &job["workspace_id"], &job["args"]["purge"]),
        (&json!("purge"), &json!(lead.id), &json!(false))
    );
    assert_eq!(job["args"]["ids"].as_array().unwrap().len(), 3);
    // What was to be brought up is not any more.
    assert_eq!(app.count("jobs WHERE kind = 'provision'").await, 0);
    for agent in [&child, &grandchild] {
        let id = agent.id.to_string();
        assert_eq!(
            told(&app, &id, "WORKSPACE_REMOVED").await,
            [json!({})],
            "once each"
        );
        let state = app.get(&format!("/workspaces/{id}/peers"));
        let state = state.bearer_auth(&agent.token).send().await.unwrap();
        assert!(!state.status().is_success(), "its token is revoked");
    }
    let of_lead = told(&app, &lead.id.to_string(), "WORKSPACE_COLLAPSED").await;
    assert_eq!(
        of_lead,
        [json!({ "removed_children": ["a-grandchild", "b-child", "waiting"] })]
    );
    assert_eq!(app.count("canvas_layouts").await, 1, "the lead's");
    let path = format!("/workspaces/{}", lead.id);
    let shown = app.admin(Method::GET, &path).send().await.unwrap();
    expect(shown, StatusCode::OK).await;

    // Asked for anew, it hurries the job that waits and tells of nothing; sent again, it is the first answer.
    let anew = expect(
        act(&app, lead.id, "collapse", "second").await,
        StatusCode::ACCEPTED,
    )
    .await;
    assert_eq!(anew["removed"], json!([]));
    assert_eq!(anew["job_id"], collapsed["job_id"]);
    let again = act(&app, lead.id, "collapse", "first").await;
    assert_eq!(again.headers()["idempotent-replayed"], "true");
    assert_eq!(expect(again, StatusCode::ACCEPTED).await, collapsed);
    let of_lead = told(&app, &lead.id.to_string(), "WORKSPACE_COLLAPSED").await;
    assert_eq!(of_lead.len(), 1);

    let alone = app.insert_named("alone").await;
    let answer = act(&app, alone.id, "collapse", "alone").await;
    assert_eq!(
        expect(answer, StatusCode::OK).await,
        json!({ "status": "collapsed", "removed": [] })
    );
}

/// Whoever named a backend here would leave the teams of installations that have another one unstarted.
#[test]
fn an_expansion_names_no_backend() {
    for source in [
        include_str!("../../src/workspaces/team.rs"),
        include_str!("../../../fleet/src/workspace/team.rs"),
    ] {
        let source = source.to_lowercase();
        for word in ["docker", "remote", "control_plane", "backends"] {
            assert!(!source.contains(word), "{word}");
        }
    }
}
