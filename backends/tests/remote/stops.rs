//! Stopping.

use std::time::Duration;

use longshore_backends::{Backend as _, BackendError, VolumeScope};
use longshore_base::WorkspaceId;
use wiremock::matchers::{method, path, query_param};
use wiremock::{Mock, MockServer, ResponseTemplate};

use crate::rig::{
    BEARER, NOWHERE, TENANT, assert_discreet, client, header, impatient, requests, target,
};

async fn answering(id: WorkspaceId, instance: &str, answer: ResponseTemplate) -> MockServer {
    let server = MockServer::start().await;
    Mock::given(method("DELETE"))
        .and(path(format!("/cp/workspaces/{id}")))
        .and(query_param("instance_id", instance))
        .respond_with(answer)
        .mount(&server)
        .await;
    server
}

#[tokio::test]
async fn any_2xx_stops_the_instance_on_file() {
    // The id is encoded: it must not end the query, nor begin another parameter.
    for instance in ["i-0abc", "i/0 a&b=c#d?é%2F"] {
        for status in [200_u16, 202, 204] {
            let id = WorkspaceId::random();
            let server = answering(id, instance, ResponseTemplate::new(status)).await;
            let backend = client(&server.uri());
            backend.stop(&target(id, Some(instance))).await.unwrap();
            let asked = requests(&server).await;
            assert_eq!(asked.len(), 1);
            assert_eq!(
                header(&asked[0], "authorization"),
                Some(&*format!("Bearer {BEARER}"))
            );
            assert_eq!(header(&asked[0], "x-longshore-admin-token"), Some(TENANT));
            assert!(asked[0].body.is_empty());
        }
    }
}

#[tokio::test]
async fn without_an_instance_on_file_nobody_is_called() {
    let id = WorkspaceId::random();
    for instance in [None, Some("")] {
        client(NOWHERE).stop(&target(id, instance)).await.unwrap();
    }
}

#[tokio::test]
async fn everything_else_is_an_error_404_included() {
    for status in [301_u16, 400, 404, 409, 410, 500, 503] {
        let id = WorkspaceId::random();
        let answer = ResponseTemplate::new(status).set_body_string("the reason why");
        let server = answering(id, "i-1", answer).await;
        let stopped = client(&server.uri()).stop(&target(id, Some("i-1"))).await;
        let error = stopped.unwrap_err();
        assert!(error.retryable(), "{status}");
        let told = error.to_string();
        assert!(told.contains(&id.to_string()), "{told}");
        assert!(told.contains(&status.to_string()), "{told}");
        // For the log, and only there.
        assert!(error.chain().contains("the reason why"));
        assert_discreet(&error, &["the reason why"]);
    }
}

#[tokio::test]
async fn a_body_of_10_kib_is_cut_to_512_bytes_between_two_characters() {
    for (body, kept) in [
        ("x".repeat(10_240), "x".repeat(512)),
        (
            format!("x{}", "ä".repeat(5120)),
            format!("x{}", "ä".repeat(255)),
        ),
    ] {
        let id = WorkspaceId::random();
        let answer = ResponseTemplate::new(500).set_body_string(body);
        let server = answering(id, "i-1", answer).await;
        let stopped = client(&server.uri()).stop(&target(id, Some("i-1"))).await;
        let told = stopped.unwrap_err().chain();
        let excerpt = told.rsplit("said: ").next().unwrap();
        assert_eq!(excerpt, kept);
    }
}

#[tokio::test]
async fn who_is_away_or_does_not_answer_has_not_stopped_it() {
    let id = WorkspaceId::random();
    let error = client(NOWHERE)
        .stop(&target(id, Some("i-1")))
        .await
        .unwrap_err();
    assert!(matches!(error, BackendError::Remote(_)), "{error:?}");
    assert!(error.retryable() && !error.may_have_started());

    let late = ResponseTemplate::new(200).set_delay(Duration::from_secs(60));
    let server = answering(id, "i-1", late).await;
    let slow = impatient(&server.uri());
    let error = slow.stop(&target(id, Some("i-1"))).await.unwrap_err();
    assert!(error.retryable() && !error.may_have_started());
}

#[tokio::test]
async fn there_are_no_volumes_to_remove() {
    let id = WorkspaceId::random();
    let backend = client(NOWHERE);
    for scope in [VolumeScope::ConfigAndSessions, VolumeScope::All] {
        backend.remove_volumes(id, scope).await.unwrap();
    }
}
