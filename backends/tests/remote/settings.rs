//! What the client is made of.

use longshore_backends::{Backend as _, BackendError, Remote, RemoteConfig};
use longshore_base::{Secret, WorkspaceId};
use wiremock::matchers::method;
use wiremock::{Mock, MockServer, ResponseTemplate};

use crate::rig::{BEARER, config, header, requests, target};

#[tokio::test]
async fn an_empty_token_leaves_its_header_out_and_the_console_falls_back() {
    let server = MockServer::start().await;
    Mock::given(method("GET"))
        .respond_with(ResponseTemplate::new(500))
        .mount(&server)
        .await;
    Mock::given(method("DELETE"))
        .respond_with(ResponseTemplate::new(204))
        .mount(&server)
        .await;
    let id = WorkspaceId::random();
    let bare = Remote::connect(RemoteConfig {
        provision_bearer: Some(Secret::from("")),
        admin_bearer: None,
        tenant_token: None,
        ..config(&server.uri())
    });
    bare.unwrap().stop(&target(id, Some("i"))).await.unwrap();
    let without_console = Remote::connect(RemoteConfig {
        admin_bearer: Some(Secret::from("")),
        ..config(&server.uri())
    });
    without_console.unwrap().console(id).await.unwrap_err();

    let asked = requests(&server).await;
    assert_eq!(header(&asked[0], "authorization"), None);
    assert_eq!(header(&asked[0], "x-longshore-admin-token"), None);
    assert_eq!(
        header(&asked[1], "authorization"),
        Some(&*format!("Bearer {BEARER}"))
    );
}

#[tokio::test]
async fn an_address_may_have_a_path_before_that_of_the_calls() {
    let server = MockServer::start().await;
    let id = WorkspaceId::random();
    Mock::given(method("DELETE"))
        .and(wiremock::matchers::path(format!("/eu/cp/workspaces/{id}")))
        .respond_with(ResponseTemplate::new(204))
        .mount(&server)
        .await;
    for url in [
        format!("{}/eu", server.uri()),
        format!("{}/eu/", server.uri()),
    ] {
        let backend = Remote::connect(config(&url)).unwrap();
        backend.stop(&target(id, Some("i"))).await.unwrap();
    }
}

#[test]
fn what_cannot_be_used_is_refused_without_being_shown() {
    let hidden = "hunter2-hunter2";
    let refused = |config: RemoteConfig| match Remote::connect(config) {
        Err(error @ BackendError::Misconfigured(_)) => {
            assert!(!error.chain().contains(hidden), "{}", error.chain());
        }
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("it was taken"),
    };
    for url in [
        "",
        "cp.example",
        "ftp://cp.example",
        "http://",
        "http://cp.example/?x=1",
        "http://cp.example/#x",
        "http://me:hunter2-hunter2@cp.example",
    ] {
        refused(config(url));
    }
    let url = "http://cp.example";
    let broken = Some(Secret::from("hunter2-hunter2\nX-Evil: 1"));
    refused(RemoteConfig {
        provision_bearer: broken.clone(),
        ..config(url)
    });
    refused(RemoteConfig {
        admin_bearer: broken.clone(),
        ..config(url)
    });
    refused(RemoteConfig {
        tenant_token: broken,
        ..config(url)
    });
    refused(RemoteConfig {
        org_id: "hunter2-hunter2\r\n".to_owned(),
        ..config(url)
    });
    let shown = format!("{:?}", config(url));
    assert!(!shown.contains(BEARER), "{shown}");
}
