//! Settings of the API, built once by whoever starts it.

use std::time::Duration;

use ipnet::IpNet;
use longshore_base::Secret;
use longshore_jobs::import::ImportPace;

/// What the API must be told. Nothing here is read from the environment by the API itself.
#[derive(Clone, Debug)]
pub struct ApiConfig {
    /// The bootstrap admin bearer. `None` is for dev mode only.
    pub admin_token: Option<Secret<String>>,
    /// Lenient rules for one's own machine (`spec: rest-api` §2.7).
    pub dev_mode: bool,
    /// Whether the admin gets workspace tokens for tests (`spec: rest-api` §6.14.3).
    pub test_tokens: bool,
    /// Origins that browsers may call from; exact matches.
    pub cors_origins: Vec<String>,
    /// Requests per minute for one credential, or for one address without one.
    pub rate_limit_per_minute: u32,
    /// Whose forwarded client addresses, schemes and hosts count.
    pub trusted_proxies: Vec<IpNet>,
    /// Set on a hosted installation: requests must name this organisation.
    pub org_id: Option<String>,
    /// The operator serves the canvas behind this server and trusts requests that come from it.
    pub trust_same_origin_canvas: bool,
    /// How long an agent may stay silent, without any event, while a message to it is open.
    pub a2a_idle_timeout: Duration,
    /// How long the answer to a request with an `Idempotency-Key` is kept.
    pub idempotency_ttl: Duration,
    /// How long a delete waits for what it stops before it answers that this goes on.
    pub removal_wait: Duration,
    /// How fast an organisation is brought up that was imported.
    pub import_pace: ImportPace,
    /// Version of the binary, shown by `/readyz?verbose`.
    pub version: &'static str,
    /// A managed agent silent for longer is lost: how often this process has to say that it accepts heartbeats.
    pub liveness_ttl: Duration,
}

impl ApiConfig {
    /// Origins in force when none are configured.
    pub const DEFAULT_CORS_ORIGINS: [&'static str; 2] =
        ["http://localhost:3000", "http://localhost:3001"];
    /// Requests per minute when nothing is configured.
    pub const DEFAULT_RATE_LIMIT: u32 = 600;
    /// A client that repeats a request does so within a day.
    pub const DEFAULT_IDEMPOTENCY_TTL: Duration = Duration::from_secs(24 * 3600);
    /// The canvas gives up on a request after 15 s.
    pub const DEFAULT_REMOVAL_WAIT: Duration = Duration::from_secs(12);
    /// Silence window of a message when nothing is configured.
    pub const DEFAULT_A2A_IDLE_TIMEOUT: Duration = Duration::from_secs(300);
}
