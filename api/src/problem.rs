//! Every answer that is not a success: `application/problem+json` (RFC 9457) with the member `error`, which is the
//! text clients read.
//!
//! Handlers return [`ApiError`]. What poem, poem-openapi and the extractors say in their own types is turned into one
//! by [`ApiError::from_poem`], at one place over the whole route, so no other form of error can reach a client.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;

use longshore_fleet::FleetError;
use longshore_ledger::{LedgerError, Outcome};
use poem::error::{
    MethodNotAllowedError, NotFoundError, ReadBodyError, ResponseError, UpgradeError,
    WebSocketError,
};
use poem::http::header::{CONTENT_TYPE, HeaderName, RETRY_AFTER};
use poem::http::{HeaderValue, StatusCode};
use poem::{Body, IntoResponse, Response};
use poem_openapi::error::{ContentTypeError, ParseParamError, ParsePathError};
use poem_openapi::registry::{MetaMediaType, MetaResponse, MetaResponses, Registry};
use poem_openapi::types::Type;
use poem_openapi::{ApiResponse, Object};
use serde_json::{Map, Value, json};

/// Media type of all errors.
pub(crate) const PROBLEM_JSON: &str = "application/problem+json";

/// What every error answer holds. Some operations add members of their own, which they name.
#[derive(Object)]
pub(crate) struct Problem {
    /// `about:blank`: the status tells the kind of problem.
    #[oai(rename = "type")]
    pub(crate) kind: String,
    /// The name of the status.
    pub(crate) title: String,
    /// The HTTP status.
    pub(crate) status: u16,
    /// What is wrong with this request, in more words than `error` where there is more to say.
    pub(crate) detail: String,
    /// What is wrong, as a text that stays the same.
    pub(crate) error: String,
    /// A code for programs, where one is needed.
    pub(crate) code: Option<String>,
    /// Seconds after which to try again.
    pub(crate) retry_after: Option<u64>,
}

/// An answer that is not a success.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    error: Cow<'static, str>,
    members: Map<String, Value>,
    headers: Vec<(HeaderName, HeaderValue)>,
    bare: bool,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// The outcome of a handler.
pub(crate) type ApiResult<T> = Result<T, ApiError>;

impl ApiError {
    /// An error with its text.
    pub(crate) fn new(status: StatusCode, error: impl Into<Cow<'static, str>>) -> Self {
        Self {
            status,
            error: error.into(),
            members: Map::new(),
            headers: Vec::new(),
            bare: false,
            source: None,
        }
    }

    /// 400.
    pub(crate) fn bad_request(error: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error)
    }

    /// 401.
    pub(crate) fn unauthorized(error: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, error)
            .header(poem::http::header::WWW_AUTHENTICATE, "Bearer")
    }

    /// 403.
    pub(crate) fn forbidden(error: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::FORBIDDEN, error)
    }

    /// 404.
    pub(crate) fn not_found(error: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::NOT_FOUND, error)
    }

    /// 409.
    pub(crate) fn conflict(error: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::CONFLICT, error)
    }

    /// 410 for a workspace that was deleted.
    pub(crate) fn workspace_removed() -> Self {
        Self::new(StatusCode::GONE, "workspace removed")
    }

    /// 404 for a workspace that never was.
    pub(crate) fn workspace_not_found() -> Self {
        Self::not_found("workspace not found")
    }

    /// 410 for a job that ended as one of these so long ago that it is no longer kept.
    pub(crate) fn job_pruned(outcomes: &[Outcome]) -> Self {
        let settings: Vec<String> = outcomes
            .iter()
            .map(|outcome| format!("LONGSHORE_KEEP_{}_DAYS", outcome.as_str().to_uppercase()))
            .collect();
        Self::new(StatusCode::GONE, "job pruned").detail(format!(
            "it has ended, and its history is no longer kept; how long it is kept say the workers' settings: {}",
            settings.join(", ")
        ))
    }

    /// 500 with a public text; the source goes to the log alone.
    pub(crate) fn internal(
        error: impl Into<Cow<'static, str>>,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, error).because(source)
    }

    /// 503 in the form by which the canvas knows that the datastore is away.
    pub(crate) fn datastore(source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "platform datastore unavailable — retry shortly",
        )
        .member("code", "platform_unavailable")
        .because(source)
    }

    /// What the database said, as a client may hear it: 503 when it is not there, else 500 with a public text.
    pub(crate) fn database(error: sqlx::Error, failed: &'static str) -> Self {
        if is_unreachable(&error) {
            Self::datastore(error)
        } else {
            Self::internal(failed, error)
        }
    }

    /// What the fleet said, likewise.
    pub(crate) fn fleet(error: FleetError, failed: &'static str) -> Self {
        match error {
            FleetError::Database(error) => Self::database(error, failed),
            FleetError::Event(_) | FleetError::Unseal(_) | FleetError::NoWorkspace(_) => {
                Self::internal(failed, error)
            }
        }
    }

    /// What the ledger said, likewise.
    pub(crate) fn ledger(error: LedgerError, failed: &'static str) -> Self {
        match error {
            LedgerError::Database { source, .. } if is_unreachable(&source) => {
                Self::datastore(source)
            }
            LedgerError::Database { .. }
            | LedgerError::Unreadable { .. }
            | LedgerError::Hook { .. }
            | LedgerError::Cursor => Self::internal(failed, error),
        }
    }

    /// An answer without a body, where even the form would tell too much.
    pub(crate) fn bare(status: StatusCode) -> Self {
        Self {
            bare: true,
            ..Self::new(status, "")
        }
    }

    /// Adds a member, or replaces `detail`.
    #[must_use]
    pub(crate) fn member(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        self.members.insert(name.to_owned(), value.into());
        self
    }

    /// Says more than the fixed text.
    #[must_use]
    pub(crate) fn detail(self, detail: impl Into<String>) -> Self {
        self.member("detail", detail.into())
    }

    /// Adds a header.
    #[must_use]
    pub(crate) fn header(mut self, name: HeaderName, value: &'static str) -> Self {
        self.headers.push((name, HeaderValue::from_static(value)));
        self
    }

    /// Says when to try again, as a header and as a member.
    #[must_use]
    pub(crate) fn retry_after(mut self, seconds: u64) -> Self {
        self.headers.push((RETRY_AFTER, HeaderValue::from(seconds)));
        self.member("retry_after", seconds)
    }

    /// Keeps the cause, for the log.
    #[must_use]
    pub(crate) fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The status it answers with.
    pub(crate) const fn status(&self) -> StatusCode {
        self.status
    }

    /// The causes, innermost last, on one line.
    pub(crate) fn causes(&self) -> String {
        let mut text = String::new();
        let mut cause: Option<&(dyn StdError + 'static)> = self
            .source
            .as_deref()
            .map(|source| source as &(dyn StdError + 'static));
        while let Some(error) = cause {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }

    /// What a client gets.
    pub(crate) fn to_response(&self) -> Response {
        let mut response = if self.bare {
            Response::builder().status(self.status).finish()
        } else {
            let mut body = json!({
                "type": "about:blank",
                "title": self.status.canonical_reason().unwrap_or("Error"),
                "status": self.status.as_u16(),
                "detail": self.error,
                "error": self.error,
            });
            if let Value::Object(object) = &mut body {
                object.extend(self.members.clone());
            }
            Response::builder()
                .status(self.status)
                .header(CONTENT_TYPE, PROBLEM_JSON)
                .body(Body::from(body.to_string()))
        };
        response.headers_mut().extend(self.headers.iter().cloned());
        response
    }

    /// Whatever poem or an extractor said, as one of ours. An unknown error shows nothing of itself.
    pub(crate) fn from_poem(error: poem::Error) -> Self {
        let error = match error.downcast::<Self>() {
            Ok(error) => return error,
            Err(error) => error,
        };
        if error.is::<NotFoundError>() {
            return Self::not_found("not found");
        }
        if error.is::<MethodNotAllowedError>() {
            return Self::new(StatusCode::METHOD_NOT_ALLOWED, "method not allowed");
        }
        if let Some(bad) = error.downcast_ref::<ParseParamError>() {
            return Self::bad_request(format!("invalid {}", bad.name)).detail(bad.reason.clone());
        }
        if error.is::<ParsePathError>() {
            return Self::bad_request("invalid id");
        }
        if error.is::<ContentTypeError>() {
            return Self::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "Content-Type must be application/json",
            );
        }
        if let Some(ReadBodyError::PayloadTooLarge) = error.downcast_ref::<ReadBodyError>() {
            return Self::new(StatusCode::PAYLOAD_TOO_LARGE, "request body too large");
        }
        if error.is::<ReadBodyError>() {
            return Self::bad_request("failed to read request body");
        }
        if error.is::<WebSocketError>() || error.is::<UpgradeError>() {
            return Self::bad_request("a WebSocket upgrade is expected here");
        }
        if error.status().is_client_error() {
            let status = error.status();
            return Self::new(status, status.canonical_reason().unwrap_or("bad request"))
                .because(error.to_string());
        }
        Self::internal("internal error", error.to_string())
    }
}

/// Nobody answers, as against: it answered that this cannot be done.
const fn is_unreachable(error: &sqlx::Error) -> bool {
    matches!(
        error,
        sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed
    )
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.error)
    }
}

impl StdError for ApiError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source
            .as_deref()
            .map(|source| source as &(dyn StdError + 'static))
    }
}

impl ResponseError for ApiError {
    fn status(&self) -> StatusCode {
        self.status
    }

    fn as_response(&self) -> Response {
        self.to_response()
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        self.to_response()
    }
}

impl ApiResponse for ApiError {
    fn meta() -> MetaResponses {
        MetaResponses {
            responses: vec![MetaResponse {
                description: "The request was refused or failed; `error` says why.",
                status: None,
                status_range: None,
                content: vec![MetaMediaType {
                    content_type: PROBLEM_JSON,
                    schema: Problem::schema_ref(),
                }],
                headers: vec![],
            }],
        }
    }

    fn register(registry: &mut Registry) {
        Problem::register(registry);
    }
}

#[cfg(test)]
mod tests {
    use poem::error::{InternalServerError, ParseJsonError, SizedLimitError};

    use super::*;

    #[test]
    fn whatever_poem_says_becomes_a_problem_of_the_same_status() {
        let parameter = ParseParamError {
            name: "limit",
            reason: "no number".to_owned(),
        };
        let io = std::io::Error::other("secret");
        let table: [(poem::Error, u16, &str); 11] = [
            (NotFoundError.into(), 404, "not found"),
            (MethodNotAllowedError.into(), 405, "method not allowed"),
            (parameter.into(), 400, "invalid limit"),
            (
                ParsePathError {
                    name: "id",
                    reason: String::new(),
                }
                .into(),
                400,
                "invalid id",
            ),
            (
                ContentTypeError::ExpectContentType.into(),
                415,
                "Content-Type must be application/json",
            ),
            (
                ReadBodyError::PayloadTooLarge.into(),
                413,
                "request body too large",
            ),
            (
                ReadBodyError::BodyHasBeenTaken.into(),
                400,
                "failed to read request body",
            ),
            (
                WebSocketError::InvalidProtocol.into(),
                400,
                "a WebSocket upgrade is expected here",
            ),
            (
                ParseJsonError::ContentTypeRequired.into(),
                415,
                "Unsupported Media Type",
            ),
            (
                SizedLimitError::PayloadTooLarge.into(),
                413,
                "Payload Too Large",
            ),
            (InternalServerError(io), 500, "internal error"),
        ];
        for (error, status, text) in table {
            let shown = error.to_string();
            let error = ApiError::from_poem(error);
            assert_eq!(error.status().as_u16(), status, "{shown}");
            assert_eq!(error.to_string(), text, "{shown}");
        }
    }

    #[test]
    fn the_datastore_that_is_away_is_told_apart_from_one_that_refuses() {
        let away = ApiError::database(sqlx::Error::PoolTimedOut, "query failed");
        assert_eq!(away.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(away.members["code"], "platform_unavailable");
        let refuses = ApiError::database(sqlx::Error::RowNotFound, "query failed");
        assert_eq!(refuses.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(refuses.to_string(), "query failed");
        assert!(!refuses.causes().is_empty());
    }
}
