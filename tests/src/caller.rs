//! Callers of the API, one kind of credential each, always through HTTP.

use bytes::Bytes;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION};
use reqwest::{Method, RequestBuilder};
use serde_json::Value;

use crate::control_plane::ORG;

/// Somebody who calls the API.
#[derive(Clone)]
pub struct Caller {
    http: reqwest::Client,
    base: String,
    bearer: Option<String>,
}

impl Caller {
    pub(crate) fn new(http: reqwest::Client, base: &str, bearer: Option<&str>) -> Self {
        Self {
            http,
            base: base.to_owned(),
            bearer: bearer.map(str::to_owned),
        }
    }

    /// A caller of whatever answers there.
    #[must_use]
    pub fn at(base: &str, bearer: Option<&str>) -> Self {
        Self::new(client(), base, bearer)
    }

    /// The same, of the organisation of every test that has one.
    #[must_use]
    pub fn of_organisation_at(base: &str, bearer: Option<&str>) -> Self {
        Self::new(client_of(ORG), base, bearer)
    }

    /// The token of this caller.
    #[must_use]
    pub fn token(&self) -> Option<&str> {
        self.bearer.as_deref()
    }

    /// Where it calls.
    #[must_use]
    pub fn base(&self) -> &str {
        &self.base
    }

    /// A request to be completed and sent by the test.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.base));
        match &self.bearer {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// GET.
    pub async fn get(&self, path: &str) -> Answer {
        Answer::of(self.request(Method::GET, path)).await
    }

    /// DELETE.
    pub async fn delete(&self, path: &str) -> Answer {
        Answer::of(self.request(Method::DELETE, path)).await
    }

    /// POST of a JSON value.
    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        Answer::of(self.request(Method::POST, path).json(body)).await
    }

    /// PUT of a JSON value.
    pub async fn put(&self, path: &str, body: &Value) -> Answer {
        Answer::of(self.request(Method::PUT, path).json(body)).await
    }

    /// PATCH with a JSON value.
    pub async fn patch(&self, path: &str, body: &Value) -> Answer {
        Answer::of(self.request(Method::PATCH, path).json(body)).await
    }

    /// POST of bytes that say they are JSON.
    pub async fn post_raw(&self, path: &str, body: impl Into<reqwest::Body>) -> Answer {
        let request = self
            .request(Method::POST, path)
            .header(CONTENT_TYPE, "application/json");
        Answer::of(request.body(body)).await
    }
}

/// A client, which wants a TLS provider although nothing here speaks TLS.
pub(crate) fn client() -> reqwest::Client {
    // Whoever was first is as good.
    rustls::crypto::ring::default_provider()
        .install_default()
        .ok();
    reqwest::Client::new()
}

/// A client that names an organisation in every request, which a hosted installation wants.
pub(crate) fn client_of(org: &str) -> reqwest::Client {
    drop(client());
    let mut headers = HeaderMap::new();
    headers.insert("x-longshore-org-id", HeaderValue::from_str(org).unwrap());
    reqwest::Client::builder()
        .default_headers(headers)
        .build()
        .unwrap()
}

/// What came back.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The media type.
    pub content_type: String,
    /// The header `Location`; empty without one.
    pub location: String,
    /// The body.
    pub body: Bytes,
}

impl Answer {
    /// Sends a request.
    ///
    /// # Panics
    /// When nobody answers.
    pub async fn of(request: RequestBuilder) -> Self {
        match Self::try_of(request).await {
            Ok(answer) => answer,
            Err(error) => panic!("no answer: {error:?}"),
        }
    }

    /// Sends a request that may remain without answer.
    ///
    /// # Errors
    /// What became of it.
    pub async fn try_of(request: RequestBuilder) -> reqwest::Result<Self> {
        Self::from_response(request.send().await?).await
    }

    /// What a response holds.
    ///
    /// # Errors
    /// Its body breaks off.
    pub async fn from_response(response: reqwest::Response) -> reqwest::Result<Self> {
        let header = |name| {
            response
                .headers()
                .get(name)
                .and_then(|value| value.to_str().ok())
                .unwrap_or_default()
                .to_owned()
        };
        Ok(Self {
            status: response.status().as_u16(),
            content_type: header(CONTENT_TYPE),
            location: header(LOCATION),
            body: response.bytes().await?,
        })
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("not JSON ({error}): {} {}", self.status, self.text()))
    }

    /// The body as JSON, of an answer with this status.
    #[track_caller]
    pub fn expect(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text());
        self.json()
    }
}
