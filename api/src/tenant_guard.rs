//! The guard of a hosted installation (`spec: rest-api` §1.8): requests must belong to its organisation.

use poem::Request;
use poem::http::StatusCode;

use crate::ApiConfig;
use crate::auth::same_origin_canvas;
use crate::problem::{ApiError, ApiResult};

/// Asked without naming the organisation: probes, and agents that were told only where to call.
const EXEMPT: [&str; 6] = [
    "/health",
    "/livez",
    "/readyz",
    "/metrics",
    "/registry/register",
    "/registry/heartbeat",
];

/// Lets everything pass while no organisation is configured.
///
/// # Errors
/// 404 without a body: a stranger learns nothing, not even the form of our errors.
pub(crate) fn check(config: &ApiConfig, request: &Request) -> ApiResult<()> {
    let Some(org) = config.org_id.as_deref() else {
        return Ok(());
    };
    let path = request.uri().path();
    let named = request.header("x-longshore-org-id") == Some(org);
    let replayed = || {
        request.header("fly-replay-src").is_some_and(|source| {
            source
                .split(';')
                .any(|part| part.trim().strip_prefix("state=") == Some(org))
        })
    };
    if EXEMPT.contains(&path)
        || path.starts_with("/cp/")
        || named
        || replayed()
        || same_origin_canvas(config, request)
    {
        return Ok(());
    }
    Err(ApiError::bare(StatusCode::NOT_FOUND))
}
