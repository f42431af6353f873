//! The remote control plane of a process.

use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::Arc;

use longshore_backends::{Backend, BackendError, Backends, Remote};

use super::docker::Engines;
use crate::settings::fleet::FleetSettings;
use crate::settings::remote::RemoteSettings;
use crate::settings::security::Security;

/// Where workspaces run if a hosted organisation is configured, even if that is nowhere; `None` if none is. Speaks to
/// nobody: the control plane may be away.
pub(crate) fn remote_engines(
    settings: &RemoteSettings,
    fleet: &FleetSettings,
    security: &Security,
    port: u16,
) -> Option<Engines> {
    match (&fleet.org_id, settings.has_address()) {
        (None, false) => return None,
        (None, true) => {
            tracing::warn!(
                "the address of a control plane is set without LONGSHORE_ORG_ID: workspaces run on the Docker engine"
            );
            return None;
        }
        (Some(_), true) => {}
        (Some(_), false) => tracing::error!(
            "LONGSHORE_ORG_ID is set and neither CP_PROVISION_URL nor LONGSHORE_CP_URL is: no workspace can run"
        ),
    }
    let config = settings.config(fleet, security, fleet.platform_url(port));
    let remote = config.and_then(|config| match Remote::connect(config) {
        Ok(remote) => Some(Arc::new(remote) as Arc<dyn Backend>),
        Err(error) => {
            tracing::error!(
                error = error.chain(),
                "the client of the control plane cannot be made: no workspace can run"
            );
            None
        }
    });
    Some(Engines {
        backends: Backends {
            remote,
            remote_org: true,
            ..Backends::default()
        },
        watched: None,
    })
}

/// Set in a process that has taken its tenant's configuration.
const TAKEN: &str = "LONGSHORE_TENANT_CONFIG_TAKEN";

/// Takes the settings that the control plane keeps for its tenant, at most once for a process: they join the environment,
/// over what it has, and the program begins anew with them. Nothing of it is needed: without an answer the process goes
/// on with what it has (spec: lifecycle §3.2).
pub(crate) async fn take_tenant_config(
    settings: &RemoteSettings,
    fleet: &FleetSettings,
    security: &Security,
) {
    if std::env::var_os(TAKEN).is_some() {
        return;
    }
    // The address that instances are told has no part in this call.
    let Some(config) = settings.config(fleet, security, String::new()) else {
        return;
    };
    let kept = match Remote::connect(config) {
        Ok(remote) => remote.tenant_config().await.map_err(BackendError::from),
        Err(error) => Err(error),
    };
    let kept = match kept {
        Ok(kept) => kept,
        Err(error) => {
            tracing::warn!(
                error = error.chain(),
                "the tenant's configuration cannot be had; going on without it"
            );
            return;
        }
    };
    let is_news = |name: &str, value: &str| {
        std::env::var_os(name).is_none_or(|known| known.as_os_str() != value)
    };
    let news: Vec<_> = kept
        .iter()
        .map(|(name, value)| (name.as_str(), value.expose().as_str()))
        .filter(|(name, value)| !name.contains(['=', '\0']) && !value.contains('\0'))
        .filter(|(name, value)| is_news(name, value))
        .collect();
    if news.is_empty() {
        return;
    }
    let names: Vec<_> = news.iter().map(|(name, _)| *name).collect();
    tracing::info!(
        names = names.join(", "),
        "the tenant's configuration is taken; beginning anew with it"
    );
    let failed = match std::env::current_exe() {
        Ok(program) => Command::new(program)
            .args(std::env::args_os().skip(1))
            .envs(news)
            .env(TAKEN, "1")
            .exec(),
        Err(error) => error,
    };
    tracing::warn!(error = %failed, "cannot begin anew; going on without the tenant's configuration");
}
