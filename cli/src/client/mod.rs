//! A client of the API for the operator's commands.

mod stream;

use std::path::Path;
use std::time::Duration;

use chrono::{DateTime, FixedOffset};
use longshore_base::Secret;
use longshore_base::ids::random_uuid;
use reqwest::header::DATE;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

pub(crate) use stream::{EventStream, StreamItem};

use crate::exit::Exit;
use crate::settings::client::ClientSettings;

/// Longest wait for the answer to one request: DELETE may take 12 s by itself.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A request did not succeed. `Display` is what the operator reads.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// No address is known.
    #[error(
        "no server address: give --url or LONGSHORE_URL, or run this where a `longshore up` keeps its data \
         ({address_file} does not exist)"
    )]
    NoAddress {
        /// The file looked for.
        address_file: String,
    },
    /// The address is none.
    #[error("{0} is not an http:// or https:// address")]
    BadAddress(String),
    /// Nobody answered.
    #[error("cannot reach the server at {address}")]
    Unreachable {
        /// Where it should have been.
        address: String,
        /// Why not.
        source: reqwest::Error,
    },
    /// The answer took too long.
    #[error("the server at {address} did not answer within {seconds} s")]
    Timeout {
        /// Where it should have come from.
        address: String,
        /// How long it was waited for.
        seconds: u64,
    },
    /// 401 or 403.
    #[error("not allowed: {text}{}", if *.had_token { "" } else { " (no token was sent: give LONGSHORE_TOKEN)" })]
    NotAllowed {
        /// What the server said.
        text: String,
        /// Whether a token was sent.
        had_token: bool,
    },
    /// 404 or 410.
    #[error("{text}")]
    NotFound {
        /// What the server said.
        text: String,
    },
    /// Any other answer that is not a success.
    #[error("the server refused ({status}): {text}")]
    Refused {
        /// Its status.
        status: StatusCode,
        /// What the server said.
        text: String,
        /// The whole answer, when it is JSON.
        body: Value,
    },
    /// A success whose body is not what was expected.
    #[error("the server at {address} gave an answer this version does not understand")]
    Shape {
        /// Who answered.
        address: String,
        /// What did not fit.
        source: reqwest::Error,
    },
    /// An answer without the time.
    #[error(
        "the server at {address} does not tell the time: give one in RFC 3339 instead of a duration"
    )]
    NoTime {
        /// Who answered.
        address: String,
    },
    /// A name that several workspaces have.
    #[error("several workspaces are called {name}: give the id of the one you mean ({ids})")]
    Ambiguous {
        /// The name.
        name: String,
        /// Their ids.
        ids: String,
    },
    /// A duration that leads out of the calendar.
    #[error("that is too far away")]
    TooFar,
    /// The time given with `--timeout` or `--wait` has passed.
    #[error("{what} did not happen within {seconds} s")]
    Waited {
        /// What was waited for.
        what: String,
        /// How long.
        seconds: u64,
    },
}

impl ClientError {
    /// Whether the same request may succeed in a moment, without anybody doing anything.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Timeout { .. } => true,
            Self::Refused { status, .. } => status.is_server_error(),
            Self::NoAddress { .. }
            | Self::BadAddress(_)
            | Self::NotAllowed { .. }
            | Self::NotFound { .. }
            | Self::Shape { .. }
            | Self::NoTime { .. }
            | Self::Ambiguous { .. }
            | Self::TooFar
            | Self::Waited { .. } => false,
        }
    }

    /// The exit code of a command that ends with it.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::NoAddress { .. }
            | Self::BadAddress(_)
            | Self::Ambiguous { .. }
            | Self::TooFar => Exit::Usage,
            Self::Unreachable { .. } => Exit::Unreachable,
            Self::Timeout { .. } | Self::Waited { .. } => Exit::Timeout,
            Self::NotAllowed { .. } => Exit::NotAllowed,
            Self::NotFound { .. } => Exit::NotFound,
            Self::Refused { status, .. } => match status.as_u16() {
                // What was sent is wrong in itself and would be refused again.
                400 | 413 | 422 => Exit::Usage,
                _ => Exit::Failed,
            },
            Self::Shape { .. } | Self::NoTime { .. } => Exit::Failed,
        }
    }
}

/// A server and who we are to it.
pub(crate) struct Client {
    http: reqwest::Client,
    address: String,
    token: Option<Secret<String>>,
    org_id: Option<String>,
}

impl Client {
    /// From flags and environment, else from the data directory of a local `longshore up`.
    pub(crate) fn new(settings: &ClientSettings) -> Result<Self, ClientError> {
        let address_file = settings.data.join("address");
        let address = match &settings.url {
            Some(url) => url.clone(),
            None => read_line(&address_file).ok_or_else(|| ClientError::NoAddress {
                address_file: address_file.display().to_string(),
            })?,
        };
        let token = settings
            .token
            .clone()
            // The local token goes to the local server only.
            .or_else(|| match settings.url {
                None => read_line(&settings.data.join("admin-token")),
                Some(_) => None,
            })
            .map(Secret::new);
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .build()
            .map_err(|_| ClientError::BadAddress(address.clone()))?;
        Ok(Self {
            http,
            address,
            token,
            org_id: settings.org_id.clone(),
        })
    }

    /// GET with query values.
    pub(crate) async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, String)],
    ) -> Result<T, ClientError> {
        self.answer(self.request(Method::GET, path).query(query))
            .await
    }

    /// All parts of a list, as one.
    pub(crate) async fn list(&self, path: &str) -> Result<Value, ClientError> {
        self.list_of(path, &[]).await
    }

    /// The same of a list that is filtered.
    pub(crate) async fn list_of(
        &self,
        path: &str,
        filter: &[(&str, String)],
    ) -> Result<Value, ClientError> {
        let mut items = Vec::new();
        let mut query = filter.to_vec();
        loop {
            let mut page: Value = self.get(path, &query).await?;
            if let Some(Value::Array(part)) = page.get_mut("items").map(Value::take) {
                items.extend(part);
            }
            match page.get("next_cursor").and_then(Value::as_str) {
                Some(cursor) => {
                    query = filter.to_vec();
                    query.push(("cursor", cursor.to_owned()));
                }
                None => return Ok(json!({"items": items, "next_cursor": null})),
            }
        }
    }

    /// What the server's clock says. The operator's own may be wrong, and would then hold something for the wrong time.
    pub(crate) async fn now(&self) -> Result<DateTime<FixedOffset>, ClientError> {
        let response = self.send(self.request(Method::GET, "/livez")).await?;
        response
            .headers()
            .get(DATE)
            .and_then(|date| DateTime::parse_from_rfc2822(date.to_str().ok()?).ok())
            .ok_or_else(|| ClientError::NoTime {
                address: self.address.clone(),
            })
    }

    /// Where the server is.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// POST with a JSON body, under a key of its own: whatever between here and the server sends it again, it is done
    /// once.
    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &Value,
    ) -> Result<T, ClientError> {
        let key = format!("\"{}\"", random_uuid());
        let request = self.request(Method::POST, path).json(body);
        self.answer(request.header("Idempotency-Key", key)).await
    }

    /// PUT with a JSON body.
    pub(crate) async fn put<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &Value,
    ) -> Result<T, ClientError> {
        self.answer(self.request(Method::PUT, path).json(body))
            .await
    }

    /// PUT with a JSON body, for an answer that may take longer than others.
    pub(crate) async fn put_within(
        &self,
        limit: Duration,
        path: &str,
        body: &Value,
    ) -> Result<Value, ClientError> {
        let request = self.request(Method::PUT, path).json(body);
        self.read(self.send_within(limit, request).await?).await
    }

    /// PATCH with a JSON body.
    pub(crate) async fn patch<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &Value,
    ) -> Result<T, ClientError> {
        self.answer(self.request(Method::PATCH, path).json(body))
            .await
    }

    /// DELETE with query values.
    pub(crate) async fn delete<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, String)],
    ) -> Result<T, ClientError> {
        self.answer(self.request(Method::DELETE, path).query(query))
            .await
    }

    /// Follows a stream of server-sent events; reconnects by itself, from where it was.
    pub(crate) fn follow(&self, path: &str, query: &[(&str, String)]) -> EventStream<'_> {
        EventStream::new(self, path.to_owned(), query)
    }

    async fn open_stream(
        &self,
        path: &str,
        query: &[(String, String)],
        last_event_id: Option<&str>,
    ) -> Result<Response, ClientError> {
        let mut request = self
            .request(Method::GET, path)
            .query(query)
            .header("Accept", "text/event-stream");
        if let Some(id) = last_event_id {
            request = request.header("Last-Event-ID", id);
        }
        self.checked(request.send().await).await
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let mut request = self.http.request(method, format!("{}{path}", self.address));
        if let Some(org_id) = &self.org_id {
            request = request.header("X-Longshore-Org-Id", org_id);
        }
        match &self.token {
            Some(token) => request.bearer_auth(token.expose()),
            None => request,
        }
    }

    async fn answer<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, ClientError> {
        self.read(self.send(request).await?).await
    }

    async fn read<T: DeserializeOwned>(&self, response: Response) -> Result<T, ClientError> {
        response.json().await.map_err(|source| ClientError::Shape {
            address: self.address.clone(),
            source,
        })
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, ClientError> {
        self.send_within(REQUEST_TIMEOUT, request).await
    }

    async fn send_within(
        &self,
        limit: Duration,
        request: RequestBuilder,
    ) -> Result<Response, ClientError> {
        let sent = request.timeout(limit).send().await;
        self.checked(sent).await.map_err(|error| match error {
            ClientError::Timeout { address, .. } => ClientError::Timeout {
                address,
                seconds: limit.as_secs(),
            },
            error => error,
        })
    }

    async fn checked(
        &self,
        sent: Result<Response, reqwest::Error>,
    ) -> Result<Response, ClientError> {
        let response = sent.map_err(|source| {
            if source.is_builder() {
                ClientError::BadAddress(self.address.clone())
            } else if source.is_timeout() && !source.is_connect() {
                ClientError::Timeout {
                    address: self.address.clone(),
                    seconds: REQUEST_TIMEOUT.as_secs(),
                }
            } else {
                ClientError::Unreachable {
                    address: self.address.clone(),
                    source,
                }
            }
        })?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body: Value = response.json().await.unwrap_or_default();
        let text = explanation(&body).unwrap_or_else(|| {
            status
                .canonical_reason()
                .unwrap_or("no reason given")
                .to_lowercase()
        });
        Err(match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => ClientError::NotAllowed {
                text,
                had_token: self.token.is_some(),
            },
            StatusCode::NOT_FOUND | StatusCode::GONE => ClientError::NotFound { text },
            _ => ClientError::Refused { status, text, body },
        })
    }
}

/// `error`, and `detail` where it says more.
fn explanation(body: &Value) -> Option<String> {
    let text = |name: &str| body.get(name).and_then(Value::as_str);
    match (text("error"), text("detail")) {
        (Some(error), Some(detail)) if error != detail => Some(format!("{error}: {detail}")),
        (Some(one), _) | (None, Some(one)) => Some(one.to_owned()),
        (None, None) => text("message").map(str::to_owned),
    }
}

fn read_line(path: &Path) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.trim();
    (!line.is_empty()).then(|| line.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_explained_by_what_the_server_said() {
        let same = json!({"error": "no such thing", "detail": "no such thing"});
        assert_eq!(explanation(&same).as_deref(), Some("no such thing"));
        let more = json!({"error": "invalid workspace fields", "detail": "name too long"});
        assert_eq!(
            explanation(&more).as_deref(),
            Some("invalid workspace fields: name too long")
        );
        assert_eq!(explanation(&Value::Null), None);
    }
}
