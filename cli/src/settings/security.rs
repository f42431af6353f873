//! Who may come in, and what seals secrets. Fails closed: outside dev mode a server without an admin token or without a
//! sealing key does not start.

use clap::Args;
use longshore_base::Secret;
use longshore_fleet::secrets::{KeyError, Sealer};

use super::{SettingError, parse};

const ENVIRONMENT: &str = "LONGSHORE_ENV";
const ADMIN_TOKEN: &str = "ADMIN_TOKEN";
const SEALING_KEY: &str = "SECRETS_ENCRYPTION_KEY";
const SEALING_RING: &str = "SECRETS_ENCRYPTION_KEYS";
/// Shorter admin tokens could be guessed.
const MIN_TOKEN_CHARS: usize = 16;

/// Settings of authentication and of encryption at rest.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Security")]
pub(crate) struct SecuritySettings {
    /// `production` (also when unset), `staging`, `test`, `ci` or `development`. Development without an admin token is dev
    /// mode: everything is open to everybody who can reach the port.
    #[arg(long = "environment", env = ENVIRONMENT, value_name = "NAME")]
    pub(crate) environment: Option<String>,

    /// Whether `GET /admin/workspaces/{id}/test-token` hands workspace tokens to the admin token in staging too. It does so
    /// in development, test and ci, and never in production or where no environment is named.
    #[arg(
        long = "enable-test-tokens",
        env = "LONGSHORE_ENABLE_TEST_TOKENS",
        value_name = "BOOL",
        default_value = "false",
        value_parser = parse::boolean,
        action = clap::ArgAction::Set
    )]
    pub(crate) enable_test_tokens: bool,

    /// The bearer token of the operator, at least 16 characters. Without one a server starts in dev mode only; `up`
    /// makes one in `<data>/admin-token`.
    #[arg(long = "admin-token", env = ADMIN_TOKEN, value_name = "TOKEN", hide_env_values = true)]
    pub(crate) admin_token: Option<String>,

    /// Key that seals secrets at rest: 32 bytes as standard base64, or 32 raw characters. Without one a server starts
    /// in dev mode only; `up` makes one in `<data>/secrets.key`.
    #[arg(long = "secrets-encryption-key", env = SEALING_KEY, value_name = "KEY", hide_env_values = true)]
    pub(crate) sealing_key: Option<String>,

    /// A ring of keys, `id:base64,…`: the first one seals, all of them open. To rotate, put the new key first; a single key
    /// beside a ring only opens.
    #[arg(long = "secrets-encryption-keys", env = SEALING_RING, value_name = "RING", hide_env_values = true)]
    pub(crate) sealing_ring: Option<String>,
}

/// What the security settings amount to.
#[derive(Clone, Debug)]
pub(crate) struct Security {
    /// Everything is open.
    pub(crate) dev_mode: bool,
    /// The admin gets workspace tokens for tests.
    pub(crate) test_tokens: bool,
    /// The operator's token; absent in dev mode only.
    pub(crate) admin_token: Option<Secret<String>>,
    /// `SECRETS_ENCRYPTION_KEY`.
    pub(crate) sealing_key: Option<Secret<String>>,
    /// `SECRETS_ENCRYPTION_KEYS`.
    pub(crate) sealing_ring: Option<Secret<String>>,
}

impl SecuritySettings {
    /// For a process that serves requests: needs both token and key outside dev mode.
    pub(crate) fn for_api(&self) -> Result<Security, SettingError> {
        let security = self.read()?;
        if security.admin_token.is_none() && !security.dev_mode {
            return Err(SettingError::new(
                ADMIN_TOKEN,
                "not set; a server without an admin token starts only with LONGSHORE_ENV=development",
            ));
        }
        security.needs_key()
    }

    /// For a process that serves no requests: needs the key only.
    pub(crate) fn for_worker(&self) -> Result<Security, SettingError> {
        self.read()?.needs_key()
    }

    fn read(&self) -> Result<Security, SettingError> {
        let (development, test_tokens) = match self
            .environment
            .as_deref()
            .unwrap_or_default()
            .trim()
            .to_ascii_lowercase()
            .as_str()
        {
            "development" | "dev" => (true, true),
            "test" | "ci" => (false, true),
            "staging" => (false, self.enable_test_tokens),
            // Where nobody says what this is, it is production.
            "" | "production" | "prod" => (false, false),
            _ => {
                return Err(SettingError::new(
                    ENVIRONMENT,
                    "must be production, staging, test, ci or development",
                ));
            }
        };
        if let Some(token) = &self.admin_token {
            if token.chars().count() < MIN_TOKEN_CHARS {
                return Err(SettingError::new(
                    ADMIN_TOKEN,
                    format!("must have at least {MIN_TOKEN_CHARS} characters"),
                ));
            }
            if token.trim() != token || token.chars().any(char::is_control) {
                return Err(SettingError::new(
                    ADMIN_TOKEN,
                    "must not begin or end with a space, nor hold control characters",
                ));
            }
        }
        let secret = |text: &Option<String>| text.as_deref().map(Secret::from);
        Ok(Security {
            dev_mode: development && self.admin_token.is_none(),
            test_tokens,
            admin_token: secret(&self.admin_token),
            sealing_key: secret(&self.sealing_key),
            sealing_ring: secret(&self.sealing_ring),
        })
    }
}

impl Security {
    /// The key ring; refuses keys that are none, without quoting them.
    pub(crate) fn sealer(&self) -> Result<Sealer, SettingError> {
        let text =
            |secret: &Option<Secret<String>>| secret.as_ref().map(|secret| secret.expose().clone());
        Sealer::from_settings(
            text(&self.sealing_key).as_deref(),
            text(&self.sealing_ring).as_deref(),
        )
        .map_err(|error| match error {
            KeyError::NotAKey => {
                SettingError::new(SEALING_KEY, "must be 32 bytes, or base64 of 32 bytes")
            }
            KeyError::BadEntry { position } => SettingError::new(
                SEALING_RING,
                format!(
                    "entry {position} must be id:key, the id of letters, digits, . _ - and the key base64 of 32 bytes"
                ),
            ),
            KeyError::DuplicateId { id } => {
                SettingError::new(SEALING_RING, format!("names the id {id} twice"))
            }
        })
    }

    /// Every secret among these settings, for the log to mask.
    pub(crate) fn secrets(&self) -> impl Iterator<Item = &str> {
        [&self.admin_token, &self.sealing_key, &self.sealing_ring]
            .into_iter()
            .flatten()
            .map(|secret| secret.expose().as_str())
    }

    fn needs_key(self) -> Result<Self, SettingError> {
        if self.sealing_key.is_none() && self.sealing_ring.is_none() && !self.dev_mode {
            return Err(SettingError::new(
                SEALING_KEY,
                "not set; without a key secrets would be stored in the clear, so a server starts only with \
                 LONGSHORE_ENV=development (make one with `openssl rand -base64 32`)",
            ));
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(
        environment: Option<&str>,
        token: Option<&str>,
        key: Option<&str>,
    ) -> SecuritySettings {
        SecuritySettings {
            environment: environment.map(str::to_owned),
            enable_test_tokens: true,
            admin_token: token.map(str::to_owned),
            sealing_key: key.map(str::to_owned),
            sealing_ring: None,
        }
    }

    const TOKEN: Option<&str> = Some("0123456789abcdef");
    const KEY: Option<&str> = Some("01234567890123456789012345678901");

    #[test]
    fn nothing_starts_without_a_token_and_a_key_outside_dev_mode() {
        assert!(settings(None, TOKEN, KEY).for_api().is_ok());
        assert!(settings(None, None, KEY).for_api().is_err());
        assert!(settings(None, TOKEN, None).for_api().is_err());
        assert!(settings(Some("production"), None, KEY).for_api().is_err());
        assert!(settings(None, None, KEY).for_worker().is_ok());
        assert!(settings(None, None, None).for_worker().is_err());
        assert!(
            settings(Some("dev"), None, None)
                .for_api()
                .unwrap()
                .dev_mode
        );
    }

    #[test]
    fn test_tokens_are_closed_in_production_and_where_no_environment_is_named() {
        for (environment, open) in [
            (None, false),
            (Some(""), false),
            (Some("production"), false),
            (Some("PROD"), false),
            (Some("staging"), true),
            (Some("test"), true),
            (Some("CI"), true),
            (Some("dev"), true),
        ] {
            let security = settings(environment, TOKEN, KEY).for_api().unwrap();
            assert_eq!(security.test_tokens, open, "{environment:?}");
            let mut unasked = settings(environment, TOKEN, KEY);
            unasked.enable_test_tokens = false;
            let by_itself = open && environment != Some("staging");
            let security = unasked.for_api().unwrap();
            assert_eq!(security.test_tokens, by_itself, "{environment:?} unasked");
        }
    }

    #[test]
    fn a_token_ends_dev_mode_and_unknown_environments_are_refused() {
        let security = settings(Some(" Development "), TOKEN, KEY)
            .for_api()
            .unwrap();
        assert!(!security.dev_mode);
        assert!(settings(Some("devel"), None, KEY).for_api().is_err());
        assert!(settings(None, Some("short"), KEY).for_api().is_err());
    }
}
