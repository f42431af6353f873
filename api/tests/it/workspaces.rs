//! Creating, reading, changing and deleting workspaces.

use longshore_base::WorkspaceId;
use longshore_fleet::status::WorkspaceStatus;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::app::{ADMIN, TestApp, expect, expect_error};

#[tokio::test]
async fn a_created_workspace_has_its_rows_and_its_job() {
    let app = TestApp::start().await;
    let answer = app
        .admin(Method::POST, "/workspaces")
        .json(&json!({
            "name": "Ünïcode", "role": "tester", "budget_limit": 12.6, "model": "anthropic/claude-opus-4-7",
            "secrets": { "API_KEY": "s3cret-value" }, "canvas": { "x": 10.5, "y": -3 },
            "initial_memories": [{ "content": "remember", "scope": "LOCAL" }], "unknown_member": true
        }))
        .send()
        .await
        .unwrap();
    let location = answer.headers()["location"].to_str().unwrap().to_owned();
    let created = expect(answer, StatusCode::CREATED).await;
    let id = created["id"].as_str().unwrap();
    assert_eq!(created["status"], "provisioning");
    assert_eq!(created["awareness_namespace"], format!("workspace:{id}"));
    assert_eq!(created["workspace_access"], "none");
    assert_eq!(
        location,
        format!("/jobs/{}", created["job_id"].as_str().unwrap())
    );
    assert!(created.get("external").is_none() && created.get("connection").is_none());

    let job = app.admin(Method::GET, &location).send().await.unwrap();
    let job = expect(job, StatusCode::OK).await;
    assert_eq!(job["kind"], "provision");
    assert_eq!(job["workspace_id"], id);
    assert_eq!(job["created_by"], "admin");
    assert!(!job.to_string().contains("s3cret"));

    let list = app.admin(Method::GET, "/workspaces").send().await.unwrap();
    let list = expect(list, StatusCode::OK).await;
    let entry = &list[0];
    assert_eq!(entry["name"], "Ünïcode");
    assert_eq!(entry["budget_limit"], 13);
    assert_eq!(entry["tier"], 2);
    assert_eq!(entry["runtime"], "claude-code");
    assert_eq!((&entry["x"], &entry["y"]), (&json!(10.5), &json!(-3.0)));
    assert_eq!(entry["delivery_mode"], "push");
    for absent in ["agent_card", "workspace_dir", "parent_id"] {
        assert_eq!(entry.get(absent), Some(&Value::Null), "{absent}");
    }
    for empty in ["url", "current_task", "last_sample_error"] {
        assert_eq!(entry[empty], "", "{empty}");
    }
    assert!(entry.get("provision_timeout_ms").is_none());

    let shown = app
        .admin(Method::GET, &format!("/workspaces/{}", id.to_uppercase()))
        .send()
        .await
        .unwrap();
    let shown = expect(shown, StatusCode::OK).await;
    assert_eq!(shown["id"], id);
    assert_eq!(shown.get("last_outbound_at"), Some(&Value::Null));
    for hidden in [
        "budget_limit",
        "monthly_spend",
        "current_task",
        "last_sample_error",
        "workspace_dir",
    ] {
        assert!(shown.get(hidden).is_none(), "{hidden} is shown");
    }

    let events = app.admin(Method::GET, "/events").send().await.unwrap();
    let events = expect(events, StatusCode::OK).await;
    assert_eq!(events[0]["event_type"], "WORKSPACE_PROVISIONING");
    assert_eq!(events[0]["workspace_id"], id);
    assert_eq!(app.count("workspace_secrets").await, 3);
    assert_eq!(app.count("agent_memories").await, 1);
}

#[tokio::test]
async fn an_external_workspace_gets_its_connection_once_and_no_job() {
    let app = TestApp::start().await;
    let created = app
        .create(json!({ "name": "outside", "external": true }))
        .await;
    assert_eq!(created["status"], "awaiting_agent");
    assert_eq!(created["external"], true);
    assert!(created.get("job_id").is_none());
    let connection = &created["connection"];
    let token = connection["auth_token"].as_str().unwrap();
    assert_eq!(token.len(), 43);
    assert_eq!(connection["platform_url"], app.address);
    assert_eq!(
        connection["registry_endpoint"],
        format!("{}/registry/register", app.address)
    );
    assert!(
        connection["python_snippet"]
            .as_str()
            .unwrap()
            .contains(r#"AUTH_TOKEN    = "<paste from create response>""#)
    );
    assert_eq!(app.count("jobs").await, 0);

    let id = created["id"].as_str().unwrap();
    let answer = app
        .post(
            "/registry/register",
            &json!({ "id": id, "agent_card": { "name": "me" }, "delivery_mode": "poll" }),
        )
        .bearer_auth(token)
        .send()
        .await
        .unwrap();
    let registered = expect(answer, StatusCode::OK).await;
    assert_eq!(registered["status"], "registered");
    assert!(registered.get("auth_token").is_none());

    let online = app
        .create(json!({ "name": "there", "runtime": "external", "url": "https://8.8.8.8/agent" }))
        .await;
    assert_eq!(online["status"], "online");
    assert!(online.get("connection").is_none());
}

#[tokio::test]
async fn a_patch_changes_what_it_names() {
    let app = TestApp::start().await;
    let agent = app.insert_named("a").await;
    let parent = app.insert_named("parent").await;
    let path = format!("/workspaces/{}", agent.id);
    let patch = async |body: Value| {
        let answer = app.admin(Method::PATCH, &path).json(&body).send().await;
        expect(answer.unwrap(), StatusCode::OK).await
    };
    assert_eq!(
        patch(
            json!({ "name": "b", "role": "r", "parent_id": parent.id, "x": 4, "budget_limit": 9 })
        )
        .await,
        json!({ "status": "updated" })
    );
    assert_eq!(
        patch(
            json!({ "x": 1, "y": 2, "collapsed": true, "role": null, "workspace_dir": "/data/x" })
        )
        .await,
        json!({ "status": "updated", "needs_restart": true })
    );
    assert_eq!(patch(json!({})).await, json!({ "status": "updated" }));
    let list = app.admin(Method::GET, "/workspaces").send().await.unwrap();
    let list = expect(list, StatusCode::OK).await;
    let entry = list
        .as_array()
        .unwrap()
        .iter()
        .find(|entry| entry["name"] == "b")
        .unwrap();
    assert_eq!(entry["parent_id"], json!(parent.id));
    assert_eq!(entry["role"], Value::Null);
    assert_eq!(entry["workspace_dir"], "/data/x");
    assert_eq!(entry["budget_limit"], Value::Null);
    assert_eq!(
        (&entry["x"], &entry["y"], &entry["collapsed"]),
        (&json!(1.0), &json!(2.0), &json!(true))
    );
    // A workspace may call itself otherwise.
    let own = app
        .request(Method::PATCH, &path)
        .bearer_auth(&agent.token)
        .json(&json!({ "name": "c" }))
        .send()
        .await
        .unwrap();
    assert_eq!(own.status(), StatusCode::OK);
}

/// Says of a workspace that an attempt to bring it up has got as far as an engine.
pub(crate) async fn write_engine_directly(app: &TestApp, id: WorkspaceId) {
    sqlx::query("UPDATE workspaces SET engine_id = 'engine' WHERE id = $1")
        .bind(id)
        .execute(app.database.pool())
        .await
        .unwrap();
}

#[tokio::test]
async fn a_delete_takes_the_subtree_when_that_is_confirmed() {
    let app = TestApp::start().await;
    let root = app.insert_named("root").await;
    let child = app.insert_child("child", root.id).await;
    let grandchild = app.insert_child("grandchild", child.id).await;
    for agent in [&root, &child, &grandchild] {
        write_engine_directly(&app, agent.id).await;
    }
    let path = format!("/workspaces/{}", root.id);

    let answer = app.admin(Method::DELETE, &path).send().await.unwrap();
    let refused = expect(answer, StatusCode::CONFLICT).await;
    assert_eq!(refused["status"], "confirmation_required");
    assert_eq!(refused["children_count"], 1);
    assert_eq!(
        refused["children"],
        json!([{ "id": child.id, "name": "child" }])
    );
    assert!(
        refused["message"]
            .as_str()
            .unwrap()
            .contains("?confirm=true")
    );

    let confirmed = format!("{path}?confirm=true");
    let answer = app.admin(Method::DELETE, &confirmed).send().await.unwrap();
    let location = answer.headers()["location"].to_str().unwrap().to_owned();
    // Nobody runs jobs here, so they are still under way when the answer goes out.
    let deleted = expect(answer, StatusCode::ACCEPTED).await;
    assert_eq!(deleted["status"], "removed");
    assert_eq!(deleted["cascade_deleted"], 2);
    assert_eq!(
        location,
        format!("/jobs/{}", deleted["job_id"].as_str().unwrap())
    );
    assert_eq!(app.count("jobs WHERE kind = 'purge'").await, 1);
    let job = app.admin(Method::GET, &location).send().await.unwrap();
    let job = expect(job, StatusCode::OK).await;
    let ids = job["args"]["ids"].as_array().unwrap();
    assert!(ids.len() == 3 && ids[2] == json!(root.id), "{job}");

    for agent in [&root, &child, &grandchild] {
        let path = format!("/workspaces/{}", agent.id);
        let answer = app.admin(Method::GET, &path).send().await.unwrap();
        let gone = expect(answer, StatusCode::GONE).await;
        assert_eq!(gone["error"], "workspace removed");
        assert_eq!(gone["status"], "removed");
        assert!(gone["removed_at"].is_string());
        let answer = app.get(&path).bearer_auth(&agent.token).send().await;
        expect_error(answer.unwrap(), StatusCode::UNAUTHORIZED).await;
        let shown = app
            .admin(Method::GET, &format!("{path}?include_removed=true"))
            .send()
            .await
            .unwrap();
        assert_eq!(expect(shown, StatusCode::OK).await["status"], "removed");
    }
    for path in ["/logs", "/jobs", "/events/stream"] {
        let path = format!("/workspaces/{}{path}", root.id);
        let answer = app.admin(Method::GET, &path).send().await.unwrap();
        expect_error(answer, StatusCode::GONE).await;
    }
    let list = app.admin(Method::GET, "/workspaces").send().await.unwrap();
    assert_eq!(expect(list, StatusCode::OK).await, json!([]));

    // Again: the same job is waited for, and nothing is announced twice.
    let events = app.count("structure_events").await;
    let answer = app.admin(Method::DELETE, &confirmed).send().await.unwrap();
    expect(answer, StatusCode::ACCEPTED).await;
    assert_eq!(app.count("structure_events").await, events);
    assert_eq!(app.count("jobs WHERE kind = 'purge'").await, 1);

    let unknown = format!("/workspaces/{}", longshore_base::WorkspaceId::random());
    let answer = app.admin(Method::DELETE, &unknown).send().await.unwrap();
    let error = expect_error(answer, StatusCode::NOT_FOUND).await;
    assert_eq!(error, "workspace not found");
    // A purge is another job, for it does more.
    let purge = app
        .admin(Method::DELETE, &format!("{path}?purge=true"))
        .send()
        .await
        .unwrap();
    let purge = expect(purge, StatusCode::ACCEPTED).await;
    assert_eq!(
        (&purge["status"], &purge["cascade_deleted"]),
        (&json!("removed"), &json!(2))
    );
    assert_eq!(app.count("jobs WHERE kind = 'purge'").await, 2);
}

#[tokio::test]
async fn a_delete_that_spans_engines_has_a_job_on_each_of_them() {
    let app = TestApp::start().await;
    let root = app.insert_named("root").await;
    let child = app.insert_child("child", root.id).await;
    app.insert_child("never ran", root.id).await;
    write_engine_directly(&app, root.id).await;
    sqlx::query("UPDATE workspaces SET engine_id = 'another' WHERE id = $1")
        .bind(child.id)
        .execute(app.database.pool())
        .await
        .unwrap();
    let path = format!("/workspaces/{}?confirm=true", root.id);
    let answer = app.admin(Method::DELETE, &path).send().await.unwrap();
    let deleted = expect(answer, StatusCode::ACCEPTED).await;
    let jobs = app.admin(Method::GET, "/jobs?kind=purge").send().await;
    let jobs = expect(jobs.unwrap(), StatusCode::OK).await;
    let mut queues: Vec<_> = jobs["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|job| (job["queue"].as_str().unwrap(), &job["id"]))
        .collect();
    queues.sort_by_key(|(queue, _)| *queue);
    assert_eq!(queues[0].0, "purge@another");
    assert_eq!(queues[1], ("purge@engine", &deleted["job_id"]));
}

#[tokio::test]
async fn what_was_never_on_an_engine_is_deleted_at_once() {
    let app = TestApp::start().await;
    let root = app.insert_named("root").await;
    app.insert_child("child", root.id).await;
    let path = format!("/workspaces/{}?confirm=true", root.id);
    for cascade_deleted in [1, 0] {
        let answer = app.admin(Method::DELETE, &path).send().await.unwrap();
        assert_eq!(
            expect(answer, StatusCode::OK).await,
            json!({ "status": "removed", "cascade_deleted": cascade_deleted })
        );
    }
    assert_eq!(app.count("jobs WHERE kind = 'purge'").await, 0);
}

#[tokio::test]
async fn an_external_workspace_is_deleted_at_once() {
    let app = TestApp::start().await;
    let created = app
        .create(json!({ "name": "outside", "external": true }))
        .await;
    let path = format!("/workspaces/{}", created["id"].as_str().unwrap());
    let answer = app.admin(Method::DELETE, &path).send().await.unwrap();
    let deleted = expect(answer, StatusCode::OK).await;
    assert_eq!(
        deleted,
        json!({ "status": "removed", "cascade_deleted": 0 })
    );
}

#[tokio::test]
async fn reading_a_workspace_wants_a_relation() {
    let app = TestApp::start().await;
    let parent = app.insert_named("parent").await;
    let child = app.insert_child("child", parent.id).await;
    let other = app.insert_named("other").await;
    let cousin = app.insert_child("cousin", other.id).await;
    let read = async |caller: &crate::app::Agent, target: &crate::app::Agent| {
        app.get(&format!("/workspaces/{}", target.id))
            .bearer_auth(&caller.token)
            .header("X-Workspace-ID", caller.id.to_string())
            .send()
            .await
            .unwrap()
    };
    assert_eq!(read(&parent, &child).await.status(), StatusCode::OK);
    assert_eq!(read(&child, &parent).await.status(), StatusCode::OK);
    assert_eq!(read(&parent, &other).await.status(), StatusCode::OK);
    let error = expect_error(read(&cousin, &child).await, StatusCode::FORBIDDEN).await;
    assert_eq!(
        error,
        "access denied: workspaces cannot communicate per hierarchy rules"
    );
    // In another's name.
    let answer = app
        .get(&format!("/workspaces/{}", child.id))
        .bearer_auth(&cousin.token)
        .header("X-Workspace-ID", parent.id.to_string())
        .send()
        .await
        .unwrap();
    let error = expect_error(answer, StatusCode::UNAUTHORIZED).await;
    assert_eq!(error, "invalid workspace auth token");
    let unknown = format!("/workspaces/{}", longshore_base::WorkspaceId::random());
    let answer = app.get(&unknown).bearer_auth(ADMIN).send().await.unwrap();
    expect_error(answer, StatusCode::NOT_FOUND).await;
}

#[tokio::test]
async fn logs_without_a_backend_say_so() {
    let app = TestApp::start().await;
    let agent = app.insert_named("a").await;
    app.set_status(agent.id, WorkspaceStatus::Online).await;
    let path = format!("/workspaces/{}/logs", agent.id);
    let answer = app.get(&path).bearer_auth(&agent.token).send().await;
    let error = expect_error(answer.unwrap(), StatusCode::SERVICE_UNAVAILABLE).await;
    assert_eq!(
        error,
        "no Docker daemon or external provisioning is available"
    );
    for bad in [
        "tail=0",
        "tail=10001",
        "tail=x",
        "since=yesterday",
        "follow=maybe",
        "head=3",
        "tail=1&tail=2",
    ] {
        let answer = app
            .get(&format!("{path}?{bad}"))
            .bearer_auth(&agent.token)
            .send()
            .await;
        expect_error(answer.unwrap(), StatusCode::BAD_REQUEST).await;
    }
}
