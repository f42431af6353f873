//! What the environment and `config.yaml` say, read once at start.
//!
//! A variable that is empty counts as absent; one that does not parse refuses to start, so that a test never runs
//! without the failure it asked for.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use hyper::{StatusCode, Uri};
use serde::Deserialize;
use uuid::Uuid;

/// Everything the agent is told from outside.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) workspace_id: Uuid,
    pub(crate) platform: PlatformUrl,
    /// Where `config.yaml` and `.auth_token` are.
    pub(crate) configs: PathBuf,
    /// How other containers call this one.
    pub(crate) hostname: String,
    pub(crate) listen: SocketAddr,
    pub(crate) heartbeat: Duration,
    pub(crate) switches: Switches,
}

/// Ways to misbehave, for tests of the platform. Times count from the start of the process.
#[derive(Debug)]
pub(crate) struct Switches {
    /// Serves, but neither registers nor beats.
    pub(crate) never_register: bool,
    pub(crate) crash_after: Option<Duration>,
    pub(crate) stop_beating_after: Option<Duration>,
    pub(crate) error_rate: f64,
    pub(crate) sample_error: String,
    pub(crate) runtime_state: String,
    pub(crate) slow_reply: Duration,
    pub(crate) reply_status: StatusCode,
}

/// `http://host[:port][/prefix]`, taken apart.
#[derive(Debug, PartialEq)]
pub(crate) struct PlatformUrl {
    pub(crate) host: String,
    pub(crate) port: u16,
    /// As the `Host` header wants it.
    pub(crate) authority: String,
    /// Empty, or a path without its last slash.
    pub(crate) prefix: String,
}

#[derive(Debug, thiserror::Error, PartialEq)]
pub(crate) enum SettingsError {
    #[error("{0} is not set")]
    Missing(&'static str),
    #[error("{name} must be {wanted}, not {value:?}")]
    Invalid {
        name: &'static str,
        value: String,
        wanted: &'static str,
    },
    #[error("https PLATFORM_URL is not supported by the reference agent; give it an http address")]
    Https,
}

impl Settings {
    /// Reads the settings through `variable`, which looks a name up in the environment.
    pub(crate) fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Self, SettingsError> {
        let env = Environment(variable);
        let uuid = |text: &str| Uuid::try_parse(text).ok().filter(|_| text.len() == 36);
        let below_root = |text: &str| Path::new(text).parent().map(|_| PathBuf::from(text));
        let seconds = |text: &str| Duration::try_from_secs_f64(text.parse().ok()?).ok();
        let millis = |text: &str| text.parse().ok().map(Duration::from_millis);
        let rate = |text: &str| text.parse().ok().filter(|rate| (0.0..=1.0).contains(rate));
        let flag = |text: &str| ["0", "1"].iter().position(|word| *word == text);
        let status = |text: &str| text.parse().ok().filter(|code| *code >= StatusCode::OK);

        let heartbeat = env.parse("AGENT_HEARTBEAT_SECONDS", "a number of seconds", seconds)?;
        let error_rate = env.parse("AGENT_ERROR_RATE", "a number from 0 to 1", rate)?;
        let sample_error = match error_rate {
            Some(rate) if rate > 0.0 => "set by AGENT_ERROR_RATE",
            _ => "",
        };
        let switches = Switches {
            never_register: env.parse("AGENT_NEVER_REGISTER", "1 or 0", flag)? == Some(1),
            crash_after: env.parse("AGENT_CRASH_AFTER_SECONDS", "a number of seconds", seconds)?,
            stop_beating_after: env.parse(
                "AGENT_STOP_BEATING_AFTER_SECONDS",
                "a number of seconds",
                seconds,
            )?,
            error_rate: error_rate.unwrap_or(0.0),
            sample_error: env.get("AGENT_SAMPLE_ERROR").unwrap_or(sample_error.into()),
            runtime_state: env.get("AGENT_RUNTIME_STATE").unwrap_or_default(),
            slow_reply: env
                .parse("AGENT_SLOW_REPLY_MS", "whole milliseconds", millis)?
                .unwrap_or_default(),
            reply_status: env
                .parse("AGENT_REPLY_STATUS", "a status from 200 to 999", status)?
                .unwrap_or(StatusCode::OK),
        };
        Ok(Self {
            workspace_id: env
                .parse("WORKSPACE_ID", "a UUID", uuid)?
                .ok_or(SettingsError::Missing("WORKSPACE_ID"))?,
            platform: PlatformUrl::parse(&env.need("PLATFORM_URL")?)?,
            configs: env
                .parse("WORKSPACE_CONFIG_PATH", "a directory below /", below_root)?
                .unwrap_or("/configs".into()),
            hostname: env.need("HOSTNAME")?,
            listen: env
                .parse("AGENT_LISTEN", "address:port", |text| text.parse().ok())?
                .unwrap_or(SocketAddr::from(([0, 0, 0, 0], 8000))),
            // A beat without a pause would be an attack on the platform, not a test of it.
            heartbeat: heartbeat
                .unwrap_or(Duration::from_secs(30))
                .max(Duration::from_millis(50)),
            switches,
        })
    }
}

/// Looks up variables; what it does not find or finds empty is absent.
struct Environment<F>(F);

impl<F: Fn(&str) -> Option<String>> Environment<F> {
    fn get(&self, name: &str) -> Option<String> {
        self.0(name).filter(|value| !value.is_empty())
    }

    fn need(&self, name: &'static str) -> Result<String, SettingsError> {
        self.get(name).ok_or(SettingsError::Missing(name))
    }

    /// The value of `name`, if it has one; `wanted` says in words what `read` understands.
    fn parse<T>(
        &self,
        name: &'static str,
        wanted: &'static str,
        read: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>, SettingsError> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        let parsed = read(value.trim());
        parsed.map(Some).ok_or(SettingsError::Invalid {
            name,
            value,
            wanted,
        })
    }
}

impl PlatformUrl {
    fn parse(text: &str) -> Result<Self, SettingsError> {
        let invalid = || SettingsError::Invalid {
            name: "PLATFORM_URL",
            value: text.to_owned(),
            wanted: "an address such as http://host:8080",
        };
        let url = Uri::from_str(text).map_err(|_| invalid())?;
        match url.scheme_str() {
            Some("http") => {}
            Some("https") => return Err(SettingsError::Https),
            _ => return Err(invalid()),
        }
        let authority = url
            .authority()
            .filter(|a| !a.as_str().contains('@'))
            .ok_or_else(invalid)?;
        if authority.host().is_empty() || url.query().is_some() {
            return Err(invalid());
        }
        Ok(Self {
            host: authority.host().to_owned(),
            port: authority.port_u16().unwrap_or(80),
            authority: authority.as_str().to_owned(),
            prefix: url.path().trim_end_matches('/').to_owned(),
        })
    }
}

/// Who the agent says it is: from `config.yaml`, which may be absent, broken or say nothing.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Identity {
    pub(crate) name: String,
    pub(crate) description: String,
}

impl Identity {
    /// Reads `<configs>/config.yaml`; what it does not tell gets a default.
    pub(crate) fn read(configs: &Path) -> Self {
        let mut identity = match std::fs::read_to_string(configs.join("config.yaml")) {
            Ok(text) => serde_norway::from_str::<Self>(&text).unwrap_or_else(|error| {
                tracing::warn!(%error, "config.yaml is not understood; going on without it");
                Self::default()
            }),
            Err(error) => {
                tracing::info!(%error, "no config.yaml; going on without it");
                Self::default()
            }
        };
        for (field, default) in [
            (&mut identity.name, "Longshore agent"),
            (
                &mut identity.description,
                "Reference agent: answers each message with its own name and an echo",
            ),
        ] {
            if field.trim().is_empty() {
                *field = default.to_owned();
            }
        }
        identity
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0b6f3c1e-4d2a-4c55-9a53-0a6f3c1e4d2a";

    fn read(extra: &[(&str, &str)]) -> Result<Settings, SettingsError> {
        let base = [
            ("WORKSPACE_ID", ID),
            ("PLATFORM_URL", "http://platform:8080/"),
            ("HOSTNAME", "ws-1"),
        ];
        Settings::read(|name| {
            let found = extra.iter().chain(&base).find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn defaults_are_a_well_behaved_agent() {
        let settings = read(&[]).unwrap();
        assert_eq!(settings.configs, Path::new("/configs"));
        assert_eq!(settings.listen.to_string(), "0.0.0.0:8000");
        assert_eq!(settings.heartbeat, Duration::from_secs(30));
        let switches = settings.switches;
        assert!(
            !switches.never_register
                && switches.crash_after.is_none()
                && switches.sample_error.is_empty()
        );
        assert_eq!(switches.reply_status, StatusCode::OK);
    }

    #[test]
    fn an_error_rate_brings_its_sample() {
        let switches = read(&[("AGENT_ERROR_RATE", "0.7")]).unwrap().switches;
        assert_eq!(
            (switches.error_rate, switches.sample_error.as_str()),
            (0.7, "set by AGENT_ERROR_RATE")
        );
        let switches = read(&[("AGENT_ERROR_RATE", "0.7"), ("AGENT_SAMPLE_ERROR", "boom")])
            .unwrap()
            .switches;
        assert_eq!(switches.sample_error, "boom");
    }

    #[test]
    fn what_does_not_parse_is_refused_by_name() {
        for (name, value) in [
            ("WORKSPACE_ID", "ws-1"),
            ("PLATFORM_URL", "platform:8080"),
            ("PLATFORM_URL", "http://user:pass@platform"),
            ("WORKSPACE_CONFIG_PATH", "/"),
            ("AGENT_LISTEN", "8000"),
            ("AGENT_HEARTBEAT_SECONDS", "often"),
            ("AGENT_NEVER_REGISTER", "yes please"),
            ("AGENT_CRASH_AFTER_SECONDS", "-1"),
            ("AGENT_STOP_BEATING_AFTER_SECONDS", "inf"),
            ("AGENT_ERROR_RATE", "70"),
            ("AGENT_ERROR_RATE", "NaN"),
            ("AGENT_SLOW_REPLY_MS", "1.5"),
            ("AGENT_REPLY_STATUS", "199"),
        ] {
            let text = read(&[(name, value)]).unwrap_err().to_string();
            assert!(
                text.starts_with(&format!("{name} must be ")) && text.contains(value),
                "{text}"
            );
        }
        assert_eq!(
            read(&[("PLATFORM_URL", "")]).unwrap_err(),
            SettingsError::Missing("PLATFORM_URL")
        );
    }

    #[test]
    fn a_platform_url_is_taken_apart() {
        let url = PlatformUrl::parse("http://platform").unwrap();
        assert_eq!(
            (
                url.host.as_str(),
                url.port,
                url.authority.as_str(),
                url.prefix.as_str()
            ),
            ("platform", 80, "platform", "")
        );
        let url = PlatformUrl::parse("http://[::1]:8080/base/").unwrap();
        assert_eq!(
            (
                url.host.as_str(),
                url.port,
                url.authority.as_str(),
                url.prefix.as_str()
            ),
            ("[::1]", 8080, "[::1]:8080", "/base")
        );
        assert_eq!(
            PlatformUrl::parse("https://platform").unwrap_err(),
            SettingsError::Https
        );
    }

    #[test]
    fn identity_survives_an_absent_empty_or_broken_config() {
        let dir = tempfile::tempdir().unwrap();
        for (text, name) in [
            (None, "Longshore agent"),
            (
                Some(
                    "name: \"Ada\"\ndescription: \"\"\nversion: 1.0.0\nruntime_config:\n  timeout: 0\n",
                ),
                "Ada",
            ),
            (Some("name: \"\"\n"), "Longshore agent"),
            (Some("name: [\n"), "Longshore agent"),
            (Some(""), "Longshore agent"),
        ] {
            if let Some(text) = text {
                std::fs::write(dir.path().join("config.yaml"), text).unwrap();
            }
            let identity = Identity::read(dir.path());
            assert_eq!(identity.name, name, "for {text:?}");
            assert!(identity.description.starts_with("Reference agent"));
        }
    }
}
