//! Which backend a workspace gets (spec: lifecycle §1.2).

use std::sync::Arc;

use crate::Backend;

/// What this process can run workspaces on. The one place that knows there is more than one backend.
#[derive(Clone, Default)]
pub struct Backends {
    /// The engine, where one is configured.
    pub docker: Option<Arc<dyn Backend>>,
    /// The control plane of a hosted organisation, where its client could be made.
    pub remote: Option<Arc<dyn Backend>>,
    /// A hosted organisation is configured: then the engine is never tried, not even when the client of its control plane
    /// could not be made.
    pub remote_org: bool,
}

/// Neither backend exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no Docker daemon or external provisioning is available")]
pub struct NoBackend;

impl NoBackend {
    /// The reason a row and an event may carry.
    #[must_use]
    pub fn public(self) -> &'static str {
        "no Docker daemon or external provisioning is available"
    }
}

impl Backends {
    /// The backend for every workspace, or none.
    ///
    /// # Errors
    /// [`NoBackend`]: the caller keeps the row's config and marks it failed with that reason.
    pub fn choose(&self) -> Result<Arc<dyn Backend>, NoBackend> {
        let chosen = if self.remote_org {
            &self.remote
        } else {
            &self.docker
        };
        chosen.clone().ok_or(NoBackend)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::docker::{Docker, DockerConfig};
    use crate::remote::{Remote, RemoteConfig};

    fn docker() -> Option<Arc<dyn Backend>> {
        let config = DockerConfig::new(longshore_base::ids::random_uuid());
        Some(Arc::new(Docker::connect(config).unwrap()))
    }

    fn remote() -> Option<Arc<dyn Backend>> {
        rustls::crypto::ring::default_provider()
            .install_default()
            .ok();
        let config = RemoteConfig {
            org_id: "tenant-1".to_owned(),
            url: "http://127.0.0.1:1".to_owned(),
            platform_url: "http://127.0.0.1:2".to_owned(),
            provision_bearer: None,
            admin_bearer: None,
            tenant_token: None,
            call_limit: RemoteConfig::CALL_LIMIT,
        };
        Some(Arc::new(Remote::connect(config).unwrap()))
    }

    #[test]
    fn a_hosted_organisation_rules_the_engine_out_with_and_without_its_control_plane() {
        let chosen = |remote_org, remote: Option<Arc<dyn Backend>>, docker| {
            let backends = Backends {
                docker,
                remote,
                remote_org,
            };
            backends.choose().map(|backend| backend.kind())
        };
        assert_eq!(chosen(true, remote(), docker()), Ok("remote"));
        assert_eq!(chosen(true, remote(), None), Ok("remote"));
        assert_eq!(chosen(true, None, docker()), Err(NoBackend));
        assert_eq!(chosen(true, None, None), Err(NoBackend));
        assert_eq!(chosen(false, None, docker()), Ok("docker"));
        assert_eq!(chosen(false, None, None), Err(NoBackend));
        // A client that nobody configured an organisation for is nobody's.
        assert_eq!(chosen(false, remote(), docker()), Ok("docker"));
    }
}
