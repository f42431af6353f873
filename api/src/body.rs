//! Request bodies: read up to a limit that holds while they arrive, then parsed strictly.
//!
//! What clients may do, since the canvas does it: name a JSON type on a request without a body, send no type at all,
//! or send no body where every field is optional. What is refused before a handler sees it: another media type, text
//! that is not JSON (`NaN` is not), nesting past [`MAX_DEPTH`], and the character NUL, which Postgres cannot store.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use poem::http::StatusCode;
use poem::{Body, Request, RequestBody};
use poem_openapi::registry::{MetaMediaType, MetaRequest, Registry};
use poem_openapi::types::Type;
use poem_openapi::{ApiExtractor, ApiExtractorType, ExtractParamOptions};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::timeout;

use crate::problem::{ApiError, ApiResult};

/// Largest JSON body where a route names no other limit.
pub(crate) const JSON_LIMIT: usize = 8 * 1024 * 1024;
/// Largest JSON body that carries files.
pub(crate) const FILES_LIMIT: usize = 32 * 1024 * 1024;
/// Largest message to an agent.
pub(crate) const MESSAGE_LIMIT: usize = 1024 * 1024;
/// Deepest nesting. A parsed value is stored and later read back inside of others, and readers give up at 128.
pub(crate) const MAX_DEPTH: usize = 64;
/// How long a body may take to arrive.
const READ_BUDGET: Duration = Duration::from_secs(30);
/// What is read and thrown away of a body that is too large, so that its sender gets to read the answer instead of a
/// broken connection.
const DISCARD_LIMIT: usize = 64 * 1024 * 1024;
const DISCARD_BUDGET: Duration = Duration::from_secs(10);

/// A type that arrives as a JSON body.
pub(crate) trait JsonRequest: DeserializeOwned + Type {
    /// What a client hears of a body that does not fit.
    const INVALID: &'static str = "invalid request body";
    /// All fields are optional, so an absent body is an empty object.
    const MAY_BE_ABSENT: bool = false;
    /// Largest body, in bytes.
    const LIMIT: usize = JSON_LIMIT;
}

/// A JSON body as a parameter of an operation.
pub(crate) struct JsonBody<T>(pub T);

impl<'a, T: JsonRequest> ApiExtractor<'a> for JsonBody<T> {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::RequestObject];
    const PARAM_IS_REQUIRED: bool = !T::MAY_BE_ABSENT;
    type ParamType = ();
    type ParamRawType = ();

    fn register(registry: &mut Registry) {
        T::register(registry);
    }

    fn request_meta() -> Option<MetaRequest> {
        Some(MetaRequest {
            description: None,
            content: vec![MetaMediaType {
                content_type: "application/json",
                schema: T::schema_ref(),
            }],
            required: !T::MAY_BE_ABSENT,
        })
    }

    async fn from_request(
        request: &'a Request,
        body: &mut RequestBody,
        _options: ExtractParamOptions<()>,
    ) -> poem::Result<Self> {
        let bytes = read(request, body.take()?, T::LIMIT).await?;
        Ok(Self(parse(&bytes, T::INVALID, T::MAY_BE_ABSENT)?))
    }
}

fn parse<T: DeserializeOwned>(bytes: &[u8], invalid: &'static str, absent: bool) -> ApiResult<T> {
    let refuse = |why: String| ApiError::bad_request(invalid).detail(why);
    let value = if absent && bytes.iter().all(u8::is_ascii_whitespace) {
        Value::Object(serde_json::Map::new())
    } else {
        serde_json::from_slice(bytes).map_err(|error| refuse(format!("not valid JSON: {error}")))?
    };
    check_storable(&value).map_err(|why| refuse(why.to_owned()))?;
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let why = error.into_inner();
        refuse(if path == "." {
            why.to_string()
        } else {
            format!("{path}: {why}")
        })
    })
}

/// Whether a value can be stored and read back.
///
/// # Errors
/// Why it cannot.
pub(crate) fn check_storable(value: &Value) -> Result<(), &'static str> {
    // A list of what is left to do: recursion is what a deep value would attack.
    let mut left = vec![(value, 1)];
    while let Some((value, depth)) = left.pop() {
        if depth > MAX_DEPTH {
            return Err("nested deeper than 64 levels");
        }
        match value {
            Value::String(text) if text.contains('\0') => return Err("contains the character NUL"),
            Value::Array(items) => left.extend(items.iter().map(|item| (item, depth + 1))),
            Value::Object(members) => {
                if members.keys().any(|name| name.contains('\0')) {
                    return Err("contains the character NUL");
                }
                left.extend(members.values().map(|item| (item, depth + 1)));
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    Ok(())
}

/// Reads a whole body.
///
/// # Errors
/// 415 for a media type that is not JSON, 413 past the limit, 408 when it takes too long, 400 when it breaks off.
pub(crate) async fn read(request: &Request, body: Body, limit: usize) -> ApiResult<Bytes> {
    let content_type = request
        .headers()
        .get(poem::http::header::CONTENT_TYPE)
        .map(|value| value.to_str().unwrap_or_default());
    if content_type.is_some_and(|content_type| !is_json(content_type)) {
        discard(body, 0).await;
        return Err(ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "Content-Type must be application/json",
        ));
    }
    timeout(READ_BUDGET, read_up_to(body, limit))
        .await
        .unwrap_or_else(|_| {
            Err(ApiError::new(
                StatusCode::REQUEST_TIMEOUT,
                "the request body took too long",
            ))
        })
}

async fn read_up_to(body: Body, limit: usize) -> ApiResult<Bytes> {
    let mut stream = body.into_bytes_stream();
    let mut read = BytesMut::new();
    while let Some(chunk) = stream.next().await {
        let chunk = chunk
            .map_err(|error| ApiError::bad_request("failed to read request body").because(error))?;
        if read.len() + chunk.len() > limit {
            let so_far = read.len() + chunk.len();
            drop(read);
            discard(Body::from_bytes_stream(stream), so_far).await;
            return Err(
                ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "request body too large").detail(
                    format!("request body too large: at most {limit} bytes here"),
                ),
            );
        }
        read.extend_from_slice(&chunk);
    }
    Ok(read.freeze())
}

async fn discard(body: Body, so_far: usize) {
    let mut stream = body.into_bytes_stream();
    let mut seen = so_far;
    let drain = async {
        while let Some(Ok(chunk)) = stream.next().await {
            seen += chunk.len();
            if seen > DISCARD_LIMIT {
                break;
            }
        }
    };
    // Past its time the sender is cut off, as it would have been at once.
    timeout(DISCARD_BUDGET, drain).await.unwrap_or(());
}

fn is_json(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    let essence = essence.to_ascii_lowercase();
    essence == "application/json"
        || essence
            .strip_suffix("+json")
            .is_some_and(|kind| !kind.is_empty())
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    struct Sample {
        #[expect(dead_code, reason = "only its parsing is looked at")]
        tier: i32,
    }

    fn refusal(body: &str) -> String {
        let error = parse::<Sample>(body.as_bytes(), "invalid request body", false).unwrap_err();
        assert_eq!(error.to_string(), "invalid request body");
        let problem: Value = serde_json::from_slice(
            &futures_util::FutureExt::now_or_never(error.to_response().into_body().into_vec())
                .unwrap()
                .unwrap(),
        )
        .unwrap();
        problem["detail"].as_str().unwrap().to_owned()
    }

    #[test]
    fn a_body_that_does_not_fit_is_told_where_and_why() {
        assert!(refusal(r#"{"tier": "two"}"#).starts_with("tier: invalid type: string"));
        assert!(refusal(r#"{"tier": NaN}"#).starts_with("not valid JSON"));
        assert!(refusal(r#"{"tier": 1e999}"#).starts_with("not valid JSON"));
        assert!(refusal("").starts_with("not valid JSON"));
        assert!(refusal("[]").contains("invalid type") || refusal("[]").contains("invalid length"));
        assert!(refusal("{}").contains("missing field `tier`"));
        assert_eq!(
            refusal(r#"{"tier": 1, "x": "a\u0000b"}"#),
            "contains the character NUL"
        );
        let deep = format!(
            r#"{{"tier": 1, "x": {}{}}}"#,
            "[".repeat(100),
            "]".repeat(100)
        );
        assert_eq!(refusal(&deep), "nested deeper than 64 levels");
        let deeper = "[".repeat(100_000);
        assert!(refusal(&deeper).starts_with("not valid JSON"));
    }

    #[test]
    fn json_is_known_by_its_essence() {
        for good in [
            "application/json",
            "Application/JSON; charset=utf-8",
            "application/merge-patch+json",
        ] {
            assert!(is_json(good), "{good}");
        }
        for bad in ["", "text/plain", "application/jsonx", "+json"] {
            assert!(!is_json(bad), "{bad}");
        }
    }
}
