//! The client: settings in, requests out.

use std::time::Duration;

use longshore_base::clock::Stopwatch;
use longshore_base::{Secret, WorkspaceId, brand};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use reqwest::redirect::Policy;
use reqwest::{Client, ClientBuilder, Method, RequestBuilder};
use url::Url;

use super::answer::Answer;
use super::error::{RemoteCall, RemoteError};
use crate::{BackendError, CallFailure};

/// Of the limit of a call, this much may go by until there is a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// A connection that was idle for longer is not used again.
const IDLE_LIMIT: Duration = Duration::from_secs(30);

/// Settings of the remote backend.
#[derive(Clone, Debug)]
pub struct RemoteConfig {
    /// The organisation whose workspaces run there.
    pub org_id: String,
    /// Where the control plane is: `http(s)://host[:port][/prefix]`.
    pub url: String,
    /// The platform's address as agents see it, told to every instance.
    pub platform_url: String,
    /// What starts, stops and looks; empty or absent leaves the header out.
    pub provision_bearer: Option<Secret<String>>,
    /// What reads consoles; absent stands for the provision bearer.
    pub admin_bearer: Option<Secret<String>>,
    /// The tenant's own token; empty or absent leaves the header out.
    pub tenant_token: Option<Secret<String>>,
    /// Limit of one call, from the connection to the end of the answer.
    pub call_limit: Duration,
}

impl RemoteConfig {
    /// The limit of a call (spec: lifecycle §3.1).
    pub const CALL_LIMIT: Duration = Duration::from_secs(120);
}

/// The remote backend. Keeps nothing of what was started.
pub struct Remote {
    pub(super) org_id: String,
    pub(super) platform_url: String,
    pub(super) call_limit: Duration,
    base: String,
    client: Client,
    provision: HeaderMap,
    admin: HeaderMap,
    config: HeaderMap,
}

/// Whose credentials a call carries.
#[derive(Clone, Copy)]
pub(super) enum Credentials {
    Provision,
    Admin,
    Config,
}

impl Remote {
    /// Takes the settings. Does not speak to the control plane, which may well be away.
    ///
    /// # Errors
    /// [`BackendError::Misconfigured`]: the address is none, or a token cannot be put into a header.
    pub fn connect(config: RemoteConfig) -> Result<Self, BackendError> {
        let url = Url::parse(config.url.trim())
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.host().is_some())
            .filter(|url| url.query().is_none() && url.fragment().is_none())
            .ok_or_else(|| misconfigured("the control plane's address must be an http:// or https:// URL without a query"))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(misconfigured(
                "the control plane's address must not hold a user or a password",
            ));
        }
        let provision = present(config.provision_bearer.as_ref());
        let admin = present(config.admin_bearer.as_ref()).or(provision);
        let tenant = present(config.tenant_token.as_ref());
        let tenant_header = name("admin-token")?;
        let org = HeaderValue::from_str(&config.org_id)
            .map_err(|_| misconfigured("the organisation's id cannot be put into a header"))?;
        Ok(Self {
            base: url.as_str().trim_end_matches('/').to_owned(),
            client: client(&url, config.call_limit)?,
            provision: headers(&[
                (AUTHORIZATION, bearer(provision, "the provision bearer")?),
                (tenant_header.clone(), plain(tenant, "the admin token")?),
            ]),
            admin: headers(&[
                (AUTHORIZATION, bearer(admin, "the console bearer")?),
                (tenant_header, plain(tenant, "the admin token")?),
            ]),
            config: headers(&[
                (AUTHORIZATION, bearer(tenant, "the admin token")?),
                (name("org-id")?, Some(org)),
            ]),
            org_id: config.org_id,
            platform_url: config.platform_url,
            call_limit: config.call_limit,
        })
    }

    /// A request to a path below the control plane's address.
    pub(super) fn request(
        &self,
        credentials: Credentials,
        method: Method,
        path: &str,
    ) -> RequestBuilder {
        let headers = match credentials {
            Credentials::Provision => &self.provision,
            Credentials::Admin => &self.admin,
            Credentials::Config => &self.config,
        };
        self.client
            .request(method, format!("{}{path}", self.base))
            .headers(headers.clone())
    }

    /// Sends a request, reads at most `limit` bytes of the answer, and counts the call by what became of it.
    pub(super) async fn ask(
        &self,
        call: RemoteCall,
        workspace_id: Option<WorkspaceId>,
        request: RequestBuilder,
        limit: usize,
    ) -> Result<Answer, RemoteError> {
        let since = Stopwatch::start();
        let failed = |status, failure, cause: reqwest::Error| RemoteError {
            call,
            workspace_id,
            status,
            failure,
            // The address may be internal.
            cause: cause.without_url().into(),
        };
        let answered = async {
            let response = request
                .send()
                .await
                .map_err(|error| failed(None, failure_of(&error), error))?;
            let status = response.status().as_u16();
            Answer::read(response, limit)
                .await
                .map_err(|error| failed(Some(status), failure_of(&error), error))
        };
        let answer = answered.await;
        count(call, &answer, since);
        answer
    }
}

/// A request that found no connection was not made; of any other nobody knows.
fn failure_of(error: &reqwest::Error) -> CallFailure {
    if error.is_connect() {
        CallFailure::Unreachable
    } else if error.is_timeout() {
        CallFailure::TimedOut
    } else {
        CallFailure::Failed
    }
}

fn count(call: RemoteCall, answer: &Result<Answer, RemoteError>, since: Stopwatch) {
    let result = match answer {
        Ok(answer) if answer.status.is_success() => "ok",
        Ok(answer) => super::answer::failure_of(answer.status).as_str(),
        Err(error) => error.failure.as_str(),
    };
    metrics::counter!("longshore_backend_calls_total", "backend" => "remote", "call" => call.as_str(), "result" => result)
        .increment(1);
    metrics::histogram!("longshore_backend_call_seconds", "backend" => "remote", "call" => call.as_str())
        .record(since.elapsed().as_secs_f64());
}

/// One client for all calls. It follows no redirect, which would carry the tokens elsewhere, and uses no proxy of the
/// environment.
fn client(url: &Url, limit: Duration) -> Result<Client, BackendError> {
    let builder = || -> ClientBuilder {
        Client::builder()
            .redirect(Policy::none())
            .no_proxy()
            .timeout(limit)
            .connect_timeout(CONNECT_LIMIT)
            .pool_idle_timeout(IDLE_LIMIT)
    };
    let built = builder().build();
    let built = match built {
        // A machine without any certificate authority can still speak plain HTTP.
        Err(_) if url.scheme() == "http" => builder().tls_certs_only([]).build(),
        built => built,
    };
    built.map_err(|error| misconfigured(&format!("no HTTP client can be made: {error}")))
}

/// Set to something.
fn present(secret: Option<&Secret<String>>) -> Option<&str> {
    secret
        .map(|secret| secret.expose().as_str())
        .filter(|text| !text.is_empty())
}

fn bearer(token: Option<&str>, what: &str) -> Result<Option<HeaderValue>, BackendError> {
    plain(
        token.map(|token| format!("Bearer {token}")).as_deref(),
        what,
    )
}

fn plain(text: Option<&str>, what: &str) -> Result<Option<HeaderValue>, BackendError> {
    text.map(|text| {
        let mut value = HeaderValue::from_str(text)
            .map_err(|_| misconfigured(&format!("{what} cannot be put into a header")))?;
        value.set_sensitive(true);
        Ok(value)
    })
    .transpose()
}

/// A header of ours.
fn name(rest: &str) -> Result<HeaderName, BackendError> {
    HeaderName::try_from(format!("x-{}-{rest}", brand::NAME))
        .map_err(|_| misconfigured("the product's name cannot be part of a header"))
}

fn headers(pairs: &[(HeaderName, Option<HeaderValue>)]) -> HeaderMap {
    pairs
        .iter()
        .filter_map(|(name, value)| Some((name.clone(), value.clone()?)))
        .collect()
}

fn misconfigured(what: &str) -> BackendError {
    BackendError::Misconfigured(what.to_owned())
}
