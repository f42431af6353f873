//! Credentials as they stand in a request.

use longshore_base::WorkspaceId;
use longshore_base::secret::sha256;
use longshore_fleet::tokens;
use poem::Request;
use poem::http::header::{AUTHORIZATION, HOST, ORIGIN, REFERER};
use sqlx::PgConnection;

use super::Principal;
use crate::ApiConfig;
use crate::problem::{ApiError, ApiResult};
use crate::rate_limit::Subject;

/// The bearer token, if the header has the one form that counts.
pub(crate) fn bearer(request: &Request) -> Option<&str> {
    request
        .headers()
        .get(AUTHORIZATION)?
        .to_str()
        .ok()?
        .strip_prefix("Bearer ")
        .map(str::trim)
        .filter(|token| !token.is_empty())
}

/// Under what a bearer is counted.
pub(crate) fn bearer_subject(token: &str) -> Subject {
    Subject::Credential(sha256(token.as_bytes()))
}

/// The workspace that the request says it comes from.
///
/// # Errors
/// 400 for a name that is no id.
pub(crate) fn named_caller(request: &Request) -> ApiResult<Option<WorkspaceId>> {
    match request.headers().get("x-workspace-id") {
        None => Ok(None),
        Some(value) => value
            .to_str()
            .ok()
            .map(str::trim)
            .and_then(|text| text.parse().ok())
            .map(Some)
            .ok_or_else(|| ApiError::bad_request("invalid workspace id")),
    }
}

/// Whose token this is, if anybody's: the admin's, an organisation's, a workspace's.
///
/// # Errors
/// 503 when the datastore does not answer: nobody gets in on doubt.
pub(crate) async fn find_bearer_owner(
    config: &ApiConfig,
    conn: &mut PgConnection,
    token: &str,
) -> ApiResult<Option<Principal>> {
    if is_admin_token(config, token) {
        return Ok(Some(Principal::Admin));
    }
    if let Some(org) = tokens::verify_org_token(conn, token)
        .await
        .map_err(ApiError::datastore)?
    {
        return Ok(Some(Principal::Org { id: org.id }));
    }
    let owner = tokens::verify_workspace_token(conn, token)
        .await
        .map_err(ApiError::datastore)?;
    Ok(owner.map(Principal::Workspace))
}

/// Compares in constant time.
pub(crate) fn is_admin_token(config: &ApiConfig, token: &str) -> bool {
    config
        .admin_token
        .as_ref()
        .is_some_and(|admin| admin.matches(token))
}

/// Whether the request comes from the canvas that the operator serves behind this server and chose to trust.
pub(crate) fn same_origin_canvas(config: &ApiConfig, request: &Request) -> bool {
    config.trust_same_origin_canvas && is_same_origin(request)
}

/// Whether a browser says that a page of this very host sends the request.
pub(crate) fn is_same_origin(request: &Request) -> bool {
    let Some(host) = request.headers().get(HOST).and_then(|it| it.to_str().ok()) else {
        return false;
    };
    let header = |name| request.headers().get(name).and_then(|it| it.to_str().ok());
    ["http", "https"].iter().any(|scheme| {
        let own = format!("{scheme}://{host}");
        header(ORIGIN) == Some(own.as_str())
            || header(REFERER).is_some_and(|referer| {
                referer == own
                    || referer
                        .strip_prefix(own.as_str())
                        .is_some_and(|rest| rest.starts_with('/'))
            })
    })
}
