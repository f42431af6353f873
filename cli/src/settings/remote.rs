//! The remote control plane of a hosted organisation.

use std::time::Duration;

use clap::Args;
use longshore_backends::RemoteConfig;
use longshore_base::{Secret, failpoint};

use super::fleet::FleetSettings;
use super::security::Security;
use super::{SettingError, parse};

const PROVISION_URL: &str = "CP_PROVISION_URL";
const URL: &str = "LONGSHORE_CP_URL";
const SHARED_SECRET: &str = "LONGSHORE_CP_SHARED_SECRET";
const PROVISION_SECRET: &str = "PROVISION_SHARED_SECRET";
const ADMIN_TOKEN: &str = "CP_ADMIN_API_TOKEN";

/// Settings of the remote backend, which `LONGSHORE_ORG_ID` switches on.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Remote control plane")]
pub(crate) struct RemoteSettings {
    /// Address of the control plane that runs the workspaces of the organisation LONGSHORE_ORG_ID, each on an instance of
    /// its own. With an organisation and without this address no workspace can run.
    #[arg(long = "cp-provision-url", env = PROVISION_URL, value_name = "URL")]
    cp_provision_url: Option<String>,

    /// The same address, for where the other variable is not set.
    #[arg(long = "cp-url", env = URL, value_name = "URL")]
    cp_url: Option<String>,

    /// Bearer token for starting, stopping and looking at instances.
    #[arg(long = "cp-shared-secret", env = SHARED_SECRET, value_name = "TOKEN", hide_env_values = true)]
    cp_shared_secret: Option<String>,

    /// The same token, for where the other variable is not set.
    #[arg(long = "provision-shared-secret", env = PROVISION_SECRET, value_name = "TOKEN", hide_env_values = true)]
    provision_secret: Option<String>,

    /// Bearer token for reading the console of an instance. Unset: the one for starting.
    #[arg(long = "cp-admin-token", env = ADMIN_TOKEN, value_name = "TOKEN", hide_env_values = true)]
    cp_admin_token: Option<String>,
}

impl RemoteSettings {
    /// Refuses addresses that are none and tokens that no header can carry, without quoting them.
    pub(crate) fn check(&self) -> Result<(), SettingError> {
        for (name, url) in [(PROVISION_URL, &self.cp_provision_url), (URL, &self.cp_url)] {
            if let Some(url) = url {
                parse::base_url(url).map_err(|problem| SettingError::new(name, problem))?;
            }
        }
        for (name, token) in [
            (SHARED_SECRET, &self.cp_shared_secret),
            (PROVISION_SECRET, &self.provision_secret),
            (ADMIN_TOKEN, &self.cp_admin_token),
        ] {
            let fits = |text: &String| text.chars().all(|c| c == ' ' || c.is_ascii_graphic());
            if !token.as_ref().is_none_or(fits) {
                return Err(SettingError::new(
                    name,
                    "must hold nothing but printable ASCII characters",
                ));
            }
        }
        Ok(())
    }

    /// Whether a control plane has an address.
    pub(crate) const fn has_address(&self) -> bool {
        self.cp_provision_url.is_some() || self.cp_url.is_some()
    }

    /// What the client is made of; none without an organisation, or without an address.
    pub(crate) fn config(
        &self,
        fleet: &FleetSettings,
        security: &Security,
        platform_url: String,
    ) -> Option<RemoteConfig> {
        let org_id = fleet.org_id.as_ref()?;
        let url = self.cp_provision_url.as_ref().or(self.cp_url.as_ref())?;
        let secret = |text: &Option<String>| text.as_deref().map(Secret::from);
        Some(RemoteConfig {
            org_id: org_id.clone(),
            url: url.clone(),
            platform_url,
            provision_bearer: secret(&self.cp_shared_secret).or(secret(&self.provision_secret)),
            admin_bearer: secret(&self.cp_admin_token),
            tenant_token: security.admin_token.clone(),
            call_limit: call_limit(),
        })
    }

    /// Every secret among these settings, for the log to mask.
    pub(crate) fn secrets(&self) -> impl Iterator<Item = &str> {
        [
            &self.cp_shared_secret,
            &self.provision_secret,
            &self.cp_admin_token,
        ]
        .into_iter()
        .filter_map(Option::as_deref)
    }
}

/// The limit of a call. Tests in which its end is waited for make it shorter.
fn call_limit() -> Duration {
    let limit = RemoteConfig::CALL_LIMIT.as_secs() as usize;
    Duration::from_secs(failpoint::number("LONGSHORE_CP_CALL_SECONDS", limit) as u64)
}
