//! The context of everything the fleet does.

use std::time::Duration;

use longshore_base::redact::Redactor;
use longshore_events::{EventBus, Presence};

use crate::config::FleetConfig;
use crate::inbound_secret::InboundSecrets;
use crate::registry::Capabilities;
use crate::runtimes::Runtimes;
use crate::secrets::Sealer;
use crate::templates::Templates;

/// Deadline of a bringing-up where neither the operator nor a template says one.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(600);
/// As above for the one runtime that is known to be slow.
const SLOW_RUNTIME: &str = "hermes";
const SLOW_TIMEOUT: Duration = Duration::from_secs(1800);

/// What the functions of this crate need beside a connection. Built once; share it in an `Arc`.
pub struct Fleet {
    /// Settings.
    pub config: FleetConfig,
    /// The key ring of secrets.
    pub keys: Sealer,
    /// The known runtimes.
    pub runtimes: Runtimes,
    /// The templates.
    pub templates: Templates,
    /// Learns every secret that is opened.
    pub redactor: Redactor,
    /// Where changes are announced after the commit.
    pub bus: EventBus,
    /// The keys of workspaces in Redis.
    pub presence: Presence,
    /// Read cache of what the platform authenticates with towards agents.
    pub inbound_secrets: InboundSecrets,
    /// What agents of this process's heartbeats declared.
    pub capabilities: Capabilities,
}

impl Fleet {
    /// Reads manifest and templates, and puts the parts together.
    #[must_use]
    pub fn load(config: FleetConfig, keys: Sealer, redactor: Redactor, bus: EventBus) -> Self {
        Self {
            runtimes: Runtimes::load(config.manifest_path.as_deref()),
            templates: Templates::load(config.configs_dir.as_deref()),
            presence: bus.presence(),
            inbound_secrets: InboundSecrets::default(),
            capabilities: Capabilities::default(),
            config,
            keys,
            redactor,
            bus,
        }
    }

    /// The deadline of a runtime's bringing-up: the operator's for all, else its templates', else the built-in one.
    #[must_use]
    pub fn provision_timeout(&self, runtime: &str) -> Duration {
        resolve_timeout(
            self.config.provision_timeout,
            self.templates.declared_timeout(runtime),
            runtime,
        )
    }
}

fn resolve_timeout(
    everywhere: Option<Duration>,
    declared: Option<Duration>,
    runtime: &str,
) -> Duration {
    let built_in = if runtime == SLOW_RUNTIME {
        SLOW_TIMEOUT
    } else {
        DEFAULT_TIMEOUT
    };
    everywhere.or(declared).unwrap_or(built_in)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_operator_beats_the_template_beats_the_built_in_deadline() {
        let secs = |n| Some(Duration::from_secs(n));
        for (everywhere, declared, runtime, expected) in [
            (None, None, "claude-code", 600),
            (None, None, "hermes", 1800),
            (None, secs(1200), "claude-code", 1200),
            // Downwards too.
            (None, secs(720), "hermes", 720),
            (secs(60), secs(1200), "hermes", 60),
            (secs(3600), None, "codex", 3600),
        ] {
            let got = resolve_timeout(everywhere, declared, runtime);
            assert_eq!(got.as_secs(), expected, "{runtime}");
        }
    }
}
