//! A control plane, a client of it, and what is asked of the two.

use std::time::Duration;

use async_trait::async_trait;
use longshore_backends::{
    Abandoned, BackendError, Remote, RemoteConfig, StartSpec, StartWatch, StopTarget,
    WorkspaceAccess,
};
use longshore_base::{Secret, WorkspaceId, ids};
use wiremock::{MockServer, Request};

pub(crate) const BEARER: &str = "provision-bearer-5e7f";
pub(crate) const ADMIN: &str = "console-bearer-91ac";
pub(crate) const TENANT: &str = "tenant-token-33d0";
pub(crate) const SECRET: &str = "sk-secret-value-77b1";

pub(crate) fn config(url: &str) -> RemoteConfig {
    rustls::crypto::ring::default_provider()
        .install_default()
        .ok();
    RemoteConfig {
        org_id: "tenant-1".to_owned(),
        url: url.to_owned(),
        platform_url: "http://platform.example:8080".to_owned(),
        provision_bearer: Some(Secret::from(BEARER)),
        admin_bearer: Some(Secret::from(ADMIN)),
        tenant_token: Some(Secret::from(TENANT)),
        call_limit: RemoteConfig::CALL_LIMIT,
    }
}

pub(crate) fn client(url: &str) -> Remote {
    Remote::connect(config(url)).unwrap()
}

/// A client that waits for no answer longer than this.
pub(crate) fn impatient(url: &str) -> Remote {
    Remote::connect(RemoteConfig {
        call_limit: Duration::from_millis(200),
        ..config(url)
    })
    .unwrap()
}

/// An address where nobody listens.
pub(crate) const NOWHERE: &str = "http://127.0.0.1:1";

pub(crate) fn spec(id: WorkspaceId) -> StartSpec {
    StartSpec {
        workspace_id: id,
        runtime: "hermes".to_owned(),
        tier: 2,
        image: String::new(),
        pull_always: false,
        env: vec![
            ("MODEL".to_owned(), Secret::from("minimax/M2")),
            ("API_KEY".to_owned(), Secret::from("overridden")),
            ("API_KEY".to_owned(), Secret::from(SECRET)),
        ],
        files: Vec::new(),
        workspace_dir: None,
        workspace_access: WorkspaceAccess::None,
        reset_session: false,
        generation: 7,
        run: ids::random_uuid(),
    }
}

pub(crate) fn target(id: WorkspaceId, instance_id: Option<&str>) -> StopTarget {
    StopTarget {
        instance_id: instance_id.map(str::to_owned),
        ..StopTarget::any_generation(id)
    }
}

/// A watch that says yes, or no.
pub(crate) struct Says(pub(crate) bool);

#[async_trait]
impl StartWatch for Says {
    async fn step(
        &self,
        _: &'static str,
        _: Option<String>,
        _: Option<u8>,
    ) -> Result<(), Abandoned> {
        if self.0 { Ok(()) } else { Err(Abandoned) }
    }
}

/// The requests a control plane got.
pub(crate) async fn requests(server: &MockServer) -> Vec<Request> {
    server.received_requests().await.unwrap()
}

pub(crate) fn header<'a>(request: &'a Request, name: &str) -> Option<&'a str> {
    request.headers.get(name)?.to_str().ok()
}

/// What anybody may read of an error holds nothing that was sent or answered, and no log line a token.
pub(crate) fn assert_discreet(error: &BackendError, said: &[&str]) {
    for text in [error.to_string(), error.public().to_owned()] {
        for word in said.iter().chain(&[SECRET]) {
            assert!(!text.contains(word), "{text}");
        }
    }
    for text in [error.chain(), format!("{error:?}")] {
        for token in [BEARER, ADMIN, TENANT] {
            assert!(!text.contains(token), "{text}");
        }
    }
}
