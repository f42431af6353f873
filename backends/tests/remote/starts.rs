//! Starting.

use std::time::Duration;

use longshore_backends::{
    Backend as _, BackendError, CallFailure, Delivers, RemoteError, Started, StartedInstance,
};
use longshore_base::WorkspaceId;
use serde_json::{Value, json};
use wiremock::matchers::{method, path};
use wiremock::{Mock, MockServer, ResponseTemplate};

use crate::rig::{
    BEARER, NOWHERE, SECRET, Says, TENANT, assert_discreet, client, header, impatient, requests,
    spec,
};

async fn answering(answer: ResponseTemplate) -> MockServer {
    let server = MockServer::start().await;
    Mock::given(method("POST"))
        .and(path("/cp/workspaces/provision"))
        .respond_with(answer)
        .mount(&server)
        .await;
    server
}

fn created(instance: &str) -> ResponseTemplate {
    ResponseTemplate::new(201).set_body_json(json!({
        "instance_id": instance, "private_ip": "10.0.0.7", "state": "pending", "error": "",
    }))
}

async fn failed(answer: ResponseTemplate) -> BackendError {
    let server = answering(answer).await;
    let id = WorkspaceId::random();
    let started = client(&server.uri()).start(&spec(id), &Says(true)).await;
    let error = started.unwrap_err();
    assert!(error.to_string().contains(&id.to_string()), "{error}");
    assert_eq!(error.public(), "provisioning failed");
    error
}

fn remote(error: &BackendError) -> &RemoteError {
    match error {
        BackendError::Remote(error) => error,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_start_sends_what_was_agreed_and_nothing_else() {
    let server = answering(created("i-0abc")).await;
    let id = WorkspaceId::random();
    let backend = client(&format!("{}/", server.uri()));
    let started = backend.start(&spec(id), &Says(true)).await.unwrap();
    assert_eq!(
        started,
        Started::Instance(StartedInstance {
            instance_id: "i-0abc".to_owned(),
            place: backend.engine_id().unwrap().to_owned(),
            replayed: false,
        })
    );
    let asked = requests(&server).await;
    assert_eq!(asked.len(), 1);
    assert_eq!(
        header(&asked[0], "authorization"),
        Some(&*format!("Bearer {BEARER}"))
    );
    assert_eq!(header(&asked[0], "x-longshore-admin-token"), Some(TENANT));
    assert_eq!(header(&asked[0], "content-type"), Some("application/json"));
    assert_eq!(
        header(&asked[0], "idempotency-key"),
        Some(&*format!("{id}:7"))
    );
    let body: Value = asked[0].body_json().unwrap();
    assert_eq!(
        body,
        json!({
            "org_id": "tenant-1", "workspace_id": id, "runtime": "hermes", "tier": 2,
            "platform_url": "http://platform.example:8080",
            "env": { "MODEL": "minimax/M2", "API_KEY": SECRET },
        })
    );
}

#[tokio::test]
async fn an_answer_to_an_earlier_call_is_told_apart() {
    let server = answering(created("i-1").insert_header("Idempotent-Replayed", "true")).await;
    let id = WorkspaceId::random();
    let started = client(&server.uri()).start(&spec(id), &Says(true)).await;
    let Started::Instance(instance) = started.unwrap() else {
        panic!("an instance was started");
    };
    assert!(instance.replayed);
}

#[tokio::test]
async fn whoever_may_not_go_on_calls_nobody() {
    let server = answering(created("i-1")).await;
    let id = WorkspaceId::random();
    let error = client(&server.uri())
        .start(&spec(id), &Says(false))
        .await
        .unwrap_err();
    assert!(matches!(error, BackendError::Abandoned(_)), "{error:?}");
    assert!(requests(&server).await.is_empty());
}

#[tokio::test]
async fn only_201_is_a_success_and_the_error_member_is_for_the_log() {
    for status in [200_u16, 202, 301, 400, 401, 404, 409, 422, 500, 503] {
        let answer = ResponseTemplate::new(status)
            .set_body_json(json!({ "error": "no capacity in zone b", "echo": SECRET }));
        let error = failed(answer).await;
        assert_eq!(remote(&error).status(), Some(status));
        assert!(error.to_string().contains(&status.to_string()), "{error}");
        assert!(!error.may_have_started(), "{status}");
        assert!(error.chain().contains("no capacity in zone b"));
        assert!(!error.chain().contains(SECRET), "{}", error.chain());
        assert_discreet(&error, &["no capacity"]);
    }
}

#[tokio::test]
async fn without_an_error_member_only_the_size_of_the_body_is_kept() {
    for body in [
        format!("<html>you sent {SECRET}</html>"),
        json!({ "message": SECRET }).to_string(),
        json!({ "error": { "env": SECRET } }).to_string(),
        format!("\"{SECRET}"),
    ] {
        let length = body.len();
        let error = failed(ResponseTemplate::new(500).set_body_string(body)).await;
        let told = error.chain();
        assert!(told.contains(&format!("{length} bytes")), "{told}");
        assert!(!told.contains(SECRET), "{told}");
    }
    let endless = "y".repeat(100 * 1024);
    let error = failed(ResponseTemplate::new(500).set_body_string(endless)).await;
    assert!(
        error.chain().contains("65536 bytes or more"),
        "{}",
        error.chain()
    );
}

#[tokio::test]
async fn a_long_error_text_is_cut_between_characters() {
    let answer = json!({ "error": format!("x{}", "ä".repeat(5000)) });
    let error = failed(ResponseTemplate::new(500).set_body_json(answer)).await;
    let told = error.chain();
    assert!(told.ends_with(&format!(": x{}", "ä".repeat(255))), "{told}");
}

#[tokio::test]
async fn a_success_that_names_no_instance_may_have_started_one() {
    for body in [
        String::new(),
        "{}".to_owned(),
        json!({ "instance_id": "" }).to_string(),
        json!({ "instance_id": 7 }).to_string(),
        json!({ "instance_id": null, "error": SECRET }).to_string(),
        format!(
            "{{\"instance_id\":\"i-1\",\"pad\":\"{}\"}}",
            "z".repeat(70_000)
        ),
    ] {
        let error = failed(ResponseTemplate::new(201).set_body_string(body.clone())).await;
        assert!(error.may_have_started(), "{body}");
        assert_discreet(&error, &[]);
        assert!(!error.chain().contains(SECRET), "{}", error.chain());
    }
}

#[tokio::test]
async fn no_answer_may_have_started_one_and_no_connection_has_not() {
    let id = WorkspaceId::random();
    let error = client(NOWHERE)
        .start(&spec(id), &Says(true))
        .await
        .unwrap_err();
    assert_eq!(remote(&error).failure(), CallFailure::Unreachable);
    assert!(!error.may_have_started());
    assert!(!error.chain().contains(NOWHERE), "{}", error.chain());

    let server = answering(created("i-1").set_delay(Duration::from_secs(60))).await;
    let slow = impatient(&server.uri());
    let error = slow.start(&spec(id), &Says(true)).await.unwrap_err();
    assert_eq!(remote(&error).failure(), CallFailure::TimedOut);
    assert!(error.may_have_started());
    assert_discreet(&error, &[&server.uri()]);
}

#[tokio::test]
async fn a_redirect_leads_nowhere() {
    let elsewhere = answering(created("i-1")).await;
    let target = format!("{}/cp/workspaces/provision", elsewhere.uri());
    let error = failed(ResponseTemplate::new(307).insert_header("Location", &*target)).await;
    assert_eq!(remote(&error).status(), Some(307));
    assert!(requests(&elsewhere).await.is_empty());
}

#[tokio::test]
async fn what_a_caller_must_know_of_it_is_told() {
    let backend = client(NOWHERE);
    let manner = backend.manner();
    assert_eq!(manner.delivers, Delivers::Environment);
    assert_eq!(manner.start_uncertain_for, Some(Duration::from_secs(120)));
    assert_eq!(manner.run_limit, Duration::from_secs(420 + 2 * 120 + 60));
    assert_eq!(manner.look_every, Duration::from_secs(60));
    assert_eq!(backend.kind(), "remote");
    backend.check().await.unwrap();
}
