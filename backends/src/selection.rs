//! Which backend a workspace gets (spec: lifecycle §1.2).

use std::sync::Arc;

use crate::Backend;

/// What this process can run workspaces on. The one place that knows there is more than one backend.
#[derive(Clone, Default)]
pub struct Backends {
    /// The engine, where one is configured.
    pub docker: Option<Arc<dyn Backend>>,
    /// A remote organisation is configured: then the engine is never tried, not even when the remote client is absent.
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
        if self.remote_org {
            // The remote client is not part of this build; its absence must not let a tenant's work run locally.
            return Err(NoBackend);
        }
        self.docker.clone().ok_or(NoBackend)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::docker::{Docker, DockerConfig};

    fn docker() -> Option<Arc<dyn Backend>> {
        let config = DockerConfig::new(longshore_base::ids::random_uuid());
        Some(Arc::new(Docker::connect(config).unwrap()))
    }

    #[test]
    fn a_remote_organisation_rules_the_engine_out() {
        let chosen = |remote_org, docker: Option<Arc<dyn Backend>>| {
            Backends { docker, remote_org }
                .choose()
                .map(|backend| backend.kind())
        };
        assert_eq!(chosen(false, docker()), Ok("docker"));
        assert_eq!(chosen(false, None), Err(NoBackend));
        assert_eq!(chosen(true, docker()), Err(NoBackend));
        assert_eq!(chosen(true, None), Err(NoBackend));
    }
}
