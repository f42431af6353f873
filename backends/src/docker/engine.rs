//! The connection to one engine: made late, made again, and measured.

use std::time::Duration;

use bollard::API_DEFAULT_VERSION;
use bollard::errors::Error as ClientError;
use longshore_base::clock::Stopwatch;
use tokio::sync::OnceCell;

use super::config::{Address, DockerConfig};
use super::image::PresentImages;
use super::labels::Mark;
use super::network::KnownNetwork;
use crate::{BackendError, CallError, CallFailure};

// The client logs the bodies of calls and answers at debug level, a container's whole environment among them. The
// feature of `log` that this crate asks for leaves those lines out of the binary, whatever a subscriber wants to see.
const _: () = assert!(
    log::STATIC_MAX_LEVEL as usize <= log::LevelFilter::Info as usize,
    "secrets would reach the log"
);

/// Limit of one call. Generous: an engine that starts a hundred containers at once takes seconds for one of them.
pub(super) const CALL_LIMIT: Duration = Duration::from_secs(60);
/// Limit of calls somebody waits for, or that only look: first contact, health, whether a container runs.
pub(super) const LOOK_LIMIT: Duration = Duration::from_secs(10);
/// How far apart looks are at what another process has begun and the engine has not finished.
pub(super) const BETWEEN_LOOKS: Duration = Duration::from_millis(100);

/// The Docker backend.
pub struct Docker {
    pub(super) config: DockerConfig,
    pub(super) address: Address,
    pub(super) images: PresentImages,
    pub(super) network: KnownNetwork,
    engine: OnceCell<Engine>,
}

/// An engine that has been spoken with.
#[derive(Debug)]
pub struct Engine {
    pub(super) client: bollard::Docker,
    id: String,
    cpus: Option<i64>,
}

impl Engine {
    /// The engine's own id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// How many CPUs it has: the most a container can be given.
    #[must_use]
    pub fn cpus(&self) -> Option<i64> {
        self.cpus
    }
}

impl Docker {
    /// Takes the settings. Does not speak to the engine, which may well be away.
    ///
    /// # Errors
    /// [`BackendError::Misconfigured`] when the address is none.
    pub fn connect(config: DockerConfig) -> Result<Self, BackendError> {
        Ok(Self {
            address: Address::parse(config.host.as_deref())?,
            config,
            images: PresentImages::default(),
            network: KnownNetwork::default(),
            engine: OnceCell::new(),
        })
    }

    /// The engine; the first call that succeeds makes contact, and the process keeps what it learned.
    ///
    /// # Errors
    /// The engine is away, or does not say who it is.
    pub async fn engine(&self) -> Result<&Engine, BackendError> {
        self.engine.get_or_try_init(|| self.make_contact()).await
    }

    pub(super) fn known_engine(&self) -> Option<&Engine> {
        self.engine.get()
    }

    /// What marks things as ours on that engine.
    pub(super) fn mark<'a>(&self, engine: &'a Engine) -> Mark<'a> {
        Mark {
            installation: self.config.installation,
            engine_id: &engine.id,
        }
    }

    async fn make_contact(&self) -> Result<Engine, BackendError> {
        let seconds = CALL_LIMIT.as_secs();
        let client = match &self.address {
            Address::Socket(path) => {
                bollard::Docker::connect_with_unix(path, seconds, API_DEFAULT_VERSION)
            }
            Address::Tcp(rest) => {
                bollard::Docker::connect_with_http(rest, seconds, API_DEFAULT_VERSION)
            }
        };
        let negotiated = async { client?.negotiate_version().await };
        let client = call_within(LOOK_LIMIT, "version", negotiated).await?;
        let info = call_within(LOOK_LIMIT, "info", client.info()).await?;
        let Some(id) = info.id.filter(|id| !id.is_empty()) else {
            let cause = "the engine does not tell its id";
            return Err(CallError::new("info", CallFailure::Failed, cause).into());
        };
        tracing::info!(
            engine.id = id,
            engine.version = info.server_version,
            "engine found"
        );
        Ok(Engine {
            client,
            id,
            cpus: info.ncpu.filter(|cpus| *cpus > 0),
        })
    }
}

/// Makes a call, within the usual limit, and counts it.
pub(super) async fn call<T>(
    name: &'static str,
    future: impl Future<Output = Result<T, ClientError>>,
) -> Result<T, CallError> {
    call_within(CALL_LIMIT, name, future).await
}

/// Makes a call and counts it. The limit is our own, since the client's covers only the head of an answer.
pub(super) async fn call_within<T>(
    limit: Duration,
    name: &'static str,
    future: impl Future<Output = Result<T, ClientError>>,
) -> Result<T, CallError> {
    let since = Stopwatch::start();
    let result = match tokio::time::timeout(limit, future).await {
        Ok(answer) => answer.map_err(|error| failed(name, error)),
        Err(elapsed) => Err(CallError::new(name, CallFailure::TimedOut, elapsed)),
    };
    count(name, result.as_ref().err(), since);
    result
}

/// Counts a call that was not made through [`call`].
pub(super) fn count(name: &'static str, error: Option<&CallError>, since: Stopwatch) {
    let result = error.map_or("ok", |error| error.failure().as_str());
    metrics::counter!("longshore_backend_calls_total", "backend" => "docker", "call" => name, "result" => result)
        .increment(1);
    metrics::histogram!("longshore_backend_call_seconds", "backend" => "docker", "call" => name)
        .record(since.elapsed().as_secs_f64());
}

/// Sorts what the client says into what we act on.
pub(super) fn failed(name: &'static str, error: ClientError) -> CallError {
    let failure = match &error {
        ClientError::DockerResponseServerError { status_code, .. } => match status_code {
            404 => CallFailure::NotFound,
            409 => CallFailure::Conflict,
            400..=499 => CallFailure::Refused,
            _ => CallFailure::Failed,
        },
        ClientError::RequestTimeoutError => CallFailure::TimedOut,
        ClientError::SocketNotFoundError(_)
        | ClientError::IOError { .. }
        | ClientError::HyperResponseError { .. }
        | ClientError::HyperLegacyError { .. } => CallFailure::Unreachable,
        // The client's error list grows with its features; what is left are answers that make no sense.
        _ => CallFailure::Failed,
    };
    CallError::new(name, failure, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_status_404_means_not_found() {
        let sorted = |status_code, message: &str| {
            let message = message.to_owned();
            failed(
                "x",
                ClientError::DockerResponseServerError {
                    status_code,
                    message,
                },
            )
            .failure()
        };
        assert_eq!(sorted(404, "No such container"), CallFailure::NotFound);
        assert_eq!(sorted(409, ""), CallFailure::Conflict);
        assert_eq!(sorted(400, "not found"), CallFailure::Refused);
        assert_eq!(sorted(500, "No such container"), CallFailure::Failed);
        let closed = std::io::Error::from(std::io::ErrorKind::NotFound);
        assert_eq!(
            failed("x", ClientError::IOError { err: closed }).failure(),
            CallFailure::Unreachable
        );
        assert_eq!(
            failed("x", ClientError::RequestTimeoutError).failure(),
            CallFailure::TimedOut
        );
    }
}
