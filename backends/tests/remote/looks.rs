//! Status, console and the tenant's configuration.

use std::time::Duration;

use longshore_backends::{Backend as _, BackendError, KeptConfig, LogsQuery};
use longshore_base::WorkspaceId;
use serde_json::json;
use wiremock::matchers::{method, path, query_param};
use wiremock::{Mock, MockServer, ResponseTemplate};

use crate::rig::{
    ADMIN, BEARER, NOWHERE, TENANT, assert_discreet, client, header, impatient, requests,
};

async fn answering(path_asked: &str, answer: ResponseTemplate) -> MockServer {
    let server = MockServer::start().await;
    Mock::given(method("GET"))
        .and(path(path_asked))
        .respond_with(answer)
        .mount(&server)
        .await;
    server
}

async fn status(answer: ResponseTemplate) -> Result<bool, BackendError> {
    let id = WorkspaceId::random();
    let server = MockServer::start().await;
    Mock::given(method("GET"))
        .and(path(format!("/cp/workspaces/{id}/status")))
        .and(query_param("instance_id", "i-0 a&b"))
        .respond_with(answer)
        .mount(&server)
        .await;
    let told = client(&server.uri()).is_running(id, Some("i-0 a&b")).await;
    let asked = requests(&server).await;
    assert_eq!(
        header(&asked[0], "authorization"),
        Some(&*format!("Bearer {BEARER}"))
    );
    assert_eq!(header(&asked[0], "x-longshore-admin-token"), Some(TENANT));
    told
}

#[tokio::test]
async fn an_instance_runs_if_and_only_if_its_state_is_running() {
    for (state, runs) in [
        ("running", true),
        ("pending", false),
        ("stopped", false),
        ("Running", false),
        ("", false),
    ] {
        let answer = ResponseTemplate::new(200).set_body_json(json!({ "state": state }));
        assert_eq!(status(answer).await.unwrap(), runs, "{state}");
    }
}

#[tokio::test]
async fn without_an_instance_on_file_nothing_runs_and_nobody_is_called() {
    for instance in [None, Some("")] {
        let backend = client(NOWHERE);
        let told = backend.is_running(WorkspaceId::random(), instance).await;
        assert!(!told.unwrap());
    }
}

#[tokio::test]
async fn whatever_else_is_answered_leaves_the_workspace_alive() {
    for refused in [301_u16, 401, 404, 410, 500, 503] {
        let answer = ResponseTemplate::new(refused).set_body_json(json!({ "state": "stopped" }));
        let error = status(answer).await.unwrap_err();
        assert_discreet(&error, &["stopped"]);
    }
    let long = json!({ "state": "stopped", "pad": "x".repeat(70_000) });
    for body in [
        String::new(),
        "stopped".to_owned(),
        "{}".to_owned(),
        json!({ "state": 3 }).to_string(),
        long.to_string(),
    ] {
        let answer = ResponseTemplate::new(200).set_body_string(body);
        status(answer).await.unwrap_err();
    }
    let id = WorkspaceId::random();
    client(NOWHERE)
        .is_running(id, Some("i-1"))
        .await
        .unwrap_err();
    let late = ResponseTemplate::new(200)
        .set_body_json(json!({ "state": "stopped" }))
        .set_delay(Duration::from_secs(60));
    let server = answering(&format!("/cp/workspaces/{id}/status"), late).await;
    let slow = impatient(&server.uri());
    slow.is_running(id, Some("i-1")).await.unwrap_err();
}

#[tokio::test]
async fn the_console_is_read_with_its_own_bearer() {
    let id = WorkspaceId::random();
    let asked_path = format!("/cp/admin/workspaces/{id}/console");
    let answer = ResponseTemplate::new(200).set_body_json(json!({ "output": "boot\nlogin:" }));
    let server = answering(&asked_path, answer).await;
    let output = client(&server.uri()).console(id).await.unwrap();
    assert_eq!(output, "boot\nlogin:");
    let asked = requests(&server).await;
    assert_eq!(
        header(&asked[0], "authorization"),
        Some(&*format!("Bearer {ADMIN}"))
    );
    assert_eq!(header(&asked[0], "x-longshore-admin-token"), Some(TENANT));

    // Up to 256 KiB with everything around it, and not a byte more.
    for (length, fits) in [(256 * 1024 - 13, true), (256 * 1024 - 12, false)] {
        let answer = json!({ "output": "o".repeat(length) });
        let server = answering(
            &asked_path,
            ResponseTemplate::new(200).set_body_json(answer),
        )
        .await;
        let output = client(&server.uri()).console(id).await;
        assert_eq!(output.is_ok(), fits, "{length}");
    }
    for answer in [
        ResponseTemplate::new(404),
        ResponseTemplate::new(500).set_body_json(json!({ "error": "gone" })),
        ResponseTemplate::new(200).set_body_string("{}"),
        ResponseTemplate::new(200).set_body_json(json!({ "output": null })),
    ] {
        let server = answering(&asked_path, answer).await;
        let error = client(&server.uri()).console(id).await.unwrap_err();
        assert_discreet(&error, &["gone"]);
    }
    client(NOWHERE).console(id).await.unwrap_err();
}

#[tokio::test]
async fn container_logs_are_not_to_be_had_and_no_configuration_is_kept() {
    let id = WorkspaceId::random();
    let backend = client(NOWHERE);
    let Err(logs) = backend.logs(id, LogsQuery::default()).await else {
        panic!("there are no logs");
    };
    assert!(matches!(logs, BackendError::Unsupported { .. }), "{logs:?}");
    let config = backend.read_config(id, "image").await.unwrap();
    assert_eq!(config, KeptConfig::Elsewhere);
}

#[tokio::test]
async fn the_tenants_configuration_leaves_out_what_is_no_setting() {
    let answer = json!({
        "A": "1", "": "nameless", "LONG": "x".repeat(4097), "LONGEST": "y".repeat(4096), "NUMBER": 7,
    });
    let server = answering(
        "/cp/tenants/config",
        ResponseTemplate::new(200).set_body_json(answer),
    )
    .await;
    let config = client(&server.uri()).tenant_config().await.unwrap();
    let names: Vec<&str> = config.keys().map(String::as_str).collect();
    assert_eq!(names, ["A", "LONGEST"]);
    assert_eq!(config["A"].expose(), "1");
    let asked = requests(&server).await;
    assert_eq!(
        header(&asked[0], "authorization"),
        Some(&*format!("Bearer {TENANT}"))
    );
    assert_eq!(header(&asked[0], "x-longshore-org-id"), Some("tenant-1"));

    for answer in [
        ResponseTemplate::new(404),
        ResponseTemplate::new(201).set_body_json(json!({ "A": "1" })),
        ResponseTemplate::new(200).set_body_string("[]"),
    ] {
        let server = answering("/cp/tenants/config", answer).await;
        client(&server.uri()).tenant_config().await.unwrap_err();
    }
}
