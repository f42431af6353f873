//! Tokens of workspaces and of organisations (`spec: rest-api` §6.14): issued and shown once, listed by their first
//! characters, revoked.

use std::time::Duration;

use longshore_base::{Secret, Timestamp, WorkspaceId};
use longshore_fleet::tokens::{
    self, MAX_LIVE, OrgToken, OrgTokenRow, TokenRow, count_live, list_org_tokens, list_tokens,
    mint_org_token, revoke_org_token,
};
use poem::Request;
use poem::http::StatusCode;
use poem_openapi::param::{Path, Query};
use poem_openapi::payload::Json;
use poem_openapi::{ApiResponse, Object, OpenApi};
use serde::Deserialize;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::auth::{AdminAccess, Principal, TestTokenAccess, WorkspaceAccess};
use crate::body::{JsonBody, JsonRequest};
use crate::context::RequestContext;
use crate::document::Tag;
use crate::idempotency::{IdempotencyKey, Idempotent};
use crate::problem::{ApiError, ApiResult};
use crate::rate_limit::{RateLimiter, Subject};
use crate::state::Shared;
use crate::workspaces::{lock_live, require_live};

const NOT_LISTED: &str = "failed to list tokens";
const NOT_CREATED: &str = "failed to create token";
const NOT_REVOKED: &str = "failed to revoke token";
const NOT_MINTED: &str = "failed to mint token";
const ORG_NOT_REVOKED: &str = "failed to revoke";
const NO_TOKEN: &str = "token not found or already revoked";
const DEFAULT_LIMIT: i64 = 50;
const MAX_LIMIT: i64 = 200;
const MAX_NAME: usize = 100;
/// Organisation tokens that one address may mint in an hour.
const MINTED_PER_HOUR: u32 = 10;

/// Counts the organisation tokens that are minted.
pub(crate) fn mint_limiter() -> RateLimiter {
    RateLimiter::with_window(MINTED_PER_HOUR, Duration::from_secs(3600))
}

/// A live token of a workspace.
#[derive(Object)]
pub(crate) struct WorkspaceToken {
    /// To revoke it by.
    id: Uuid,
    /// Its first eight characters.
    prefix: String,
    created_at: Timestamp,
    #[oai(nullable)]
    last_used_at: Option<Timestamp>,
}

impl From<TokenRow> for WorkspaceToken {
    fn from(row: TokenRow) -> Self {
        Self {
            id: row.id,
            prefix: row.prefix,
            created_at: row.created_at,
            last_used_at: row.last_used_at,
        }
    }
}

/// Live tokens of a workspace, newest first.
#[derive(Object)]
pub(crate) struct WorkspaceTokenList {
    tokens: Vec<WorkspaceToken>,
    /// How many these are.
    count: usize,
}

/// A token just issued.
#[derive(Object)]
pub(crate) struct IssuedToken {
    /// Shown this once.
    auth_token: String,
    workspace_id: Uuid,
    message: String,
}

#[derive(ApiResponse)]
pub(crate) enum IssueTokenResponse {
    /// Here it is.
    #[oai(status = 201)]
    Issued(Json<IssuedToken>),
}

/// A token for a test.
#[derive(Object)]
pub(crate) struct TestToken {
    /// Shown this once; like any other of the workspace.
    auth_token: String,
    workspace_id: Uuid,
}

/// A token was revoked.
#[derive(Object)]
pub(crate) struct TokenRevoked {
    /// Always `revoked`.
    status: String,
}

/// A live organisation token.
#[derive(Object)]
#[oai(skip_serializing_if_is_none)]
pub(crate) struct OrganisationToken {
    /// To revoke it by.
    id: Uuid,
    /// Its first eight characters.
    prefix: String,
    /// What it is for.
    name: Option<String>,
    /// The organisation it belongs to.
    org_id: Option<Uuid>,
    /// Who minted it.
    created_by: Option<String>,
    created_at: Timestamp,
    last_used_at: Option<Timestamp>,
}

impl From<OrgTokenRow> for OrganisationToken {
    fn from(row: OrgTokenRow) -> Self {
        Self {
            id: row.id,
            prefix: row.prefix,
            name: row.name,
            org_id: row.org_id.map(|id| id.0),
            created_by: row.created_by,
            created_at: row.created_at,
            last_used_at: row.last_used_at,
        }
    }
}

/// Live organisation tokens, newest first, at most 500.
#[derive(Object)]
pub(crate) struct OrganisationTokenList {
    tokens: Vec<OrganisationToken>,
    /// How many these are.
    count: usize,
}

/// An organisation token to be minted.
#[derive(Deserialize, Object)]
pub(crate) struct MintTokenRequest {
    /// What it is for; at most 100 characters.
    #[serde(default)]
    name: Option<String>,
}

impl JsonRequest for MintTokenRequest {
    const MAY_BE_ABSENT: bool = true;
}

/// An organisation token just minted.
#[derive(Object)]
pub(crate) struct MintedToken {
    id: Uuid,
    /// Its first eight characters.
    prefix: String,
    #[oai(skip_serializing_if_is_none)]
    name: Option<String>,
    /// Shown this once.
    auth_token: String,
    warning: String,
}

/// An organisation token was revoked.
#[derive(Object)]
pub(crate) struct OrganisationTokenRevoked {
    /// Which.
    revoked: Uuid,
}

/// Issues a token to a workspace whose row is held, if it may have one more.
async fn issue_one_more(
    tx: &mut PgConnection,
    id: WorkspaceId,
    failed: &'static str,
) -> ApiResult<Secret<String>> {
    let fleet = |error| ApiError::fleet(error, failed);
    if count_live(tx, id).await.map_err(fleet)? >= MAX_LIVE {
        return Err(ApiError::new(
            StatusCode::TOO_MANY_REQUESTS,
            "maximum 50 active tokens per workspace",
        ));
    }
    tokens::issue(tx, id).await.map_err(fleet)
}

pub(crate) struct TokensApi;

#[OpenApi(tag = "Tag::Tokens")]
impl TokensApi {
    /// Lists the live tokens of a workspace, newest first.
    #[oai(
        path = "/workspaces/:id/tokens",
        method = "get",
        operation_id = "list_tokens"
    )]
    async fn list_tokens(
        &self,
        _access: WorkspaceAccess,
        state: Shared<'_>,
        id: Path<Uuid>,
        /// At most so many, 1 to 200; 50 unless it says otherwise.
        limit: Query<Option<String>>,
        /// Leave out so many of the newest.
        offset: Query<Option<String>>,
    ) -> ApiResult<Json<WorkspaceTokenList>> {
        let id = WorkspaceId(id.0);
        require_live(&state, id, NOT_LISTED).await?;
        let limit = number(limit.0, 1..=MAX_LIMIT).unwrap_or(DEFAULT_LIMIT);
        let offset = number(offset.0, 0..=i64::MAX).unwrap_or(0);
        let mut conn = state.connection(NOT_LISTED).await?;
        let rows = list_tokens(&mut conn, id, limit, offset)
            .await
            .map_err(|error| ApiError::fleet(error, NOT_LISTED))?;
        let tokens: Vec<_> = rows.into_iter().map(WorkspaceToken::from).collect();
        Ok(Json(WorkspaceTokenList {
            count: tokens.len(),
            tokens,
        }))
    }

    /// Issues one more token for a workspace, shown this once. To change tokens without a gap: issue one, give it to the
    /// agent, see by `last_used_at` that it is used, revoke the old one.
    #[oai(
        path = "/workspaces/:id/tokens",
        method = "post",
        operation_id = "create_token"
    )]
    async fn create_token(
        &self,
        _access: WorkspaceAccess,
        state: Shared<'_>,
        id: Path<Uuid>,
        /// Makes the request safe to send again: a repetition with the same key gets the first answer.
        #[oai(name = "Idempotency-Key")]
        key: IdempotencyKey,
    ) -> ApiResult<Idempotent<IssueTokenResponse>> {
        let id = WorkspaceId(id.0);
        let (answer, _) = key
            .once(&state, NOT_CREATED, async |tx| {
                lock_live(tx, id, NOT_CREATED).await?;
                let token = issue_one_more(tx, id, NOT_CREATED).await?;
                let issued = IssuedToken {
                    auth_token: token.expose().clone(),
                    workspace_id: id.0,
                    message: "Save this token now — it cannot be retrieved again.".to_owned(),
                };
                Ok((IssueTokenResponse::Issued(Json(issued)), ()))
            })
            .await?;
        Ok(answer)
    }

    /// Revokes a token of a workspace.
    #[oai(
        path = "/workspaces/:id/tokens/:token_id",
        method = "delete",
        operation_id = "revoke_token"
    )]
    async fn revoke_token(
        &self,
        _access: WorkspaceAccess,
        state: Shared<'_>,
        id: Path<Uuid>,
        token_id: Path<Uuid>,
    ) -> ApiResult<Json<TokenRevoked>> {
        let mut conn = state.connection(NOT_REVOKED).await?;
        let revoked = tokens::revoke(&mut conn, WorkspaceId(id.0), token_id.0)
            .await
            .map_err(|error| ApiError::fleet(error, NOT_REVOKED))?;
        if !revoked {
            return Err(ApiError::not_found(NO_TOKEN));
        }
        Ok(Json(TokenRevoked {
            status: "revoked".to_owned(),
        }))
    }

    /// Issues a token of a workspace to a test that speaks in its name. There only where the environment is one for tests;
    /// organisation tokens do not open it.
    #[oai(
        path = "/admin/workspaces/:id/test-token",
        method = "get",
        operation_id = "get_test_token"
    )]
    async fn get_test_token(
        &self,
        _access: TestTokenAccess,
        state: Shared<'_>,
        id: Path<Uuid>,
    ) -> ApiResult<Json<TestToken>> {
        const NOT_FOUND: &str = "lookup failed";
        const NOT_ISSUED: &str = "token issue failed";
        let id = WorkspaceId(id.0);
        let mut tx = state.transaction(NOT_FOUND).await?;
        lock_live(&mut tx, id, NOT_FOUND).await?;
        let token = issue_one_more(&mut tx, id, NOT_ISSUED).await?;
        tx.commit()
            .await
            .map_err(|error| ApiError::database(error, NOT_ISSUED))?;
        tracing::info!(workspace.id = %id, "a test token was issued");
        Ok(Json(TestToken {
            auth_token: token.expose().clone(),
            workspace_id: id.0,
        }))
    }

    /// Lists the live organisation tokens, newest first.
    #[oai(
        path = "/org/tokens",
        method = "get",
        operation_id = "list_organisation_tokens"
    )]
    async fn list_organisation_tokens(
        &self,
        _access: AdminAccess,
        state: Shared<'_>,
    ) -> ApiResult<Json<OrganisationTokenList>> {
        let mut conn = state.connection(NOT_LISTED).await?;
        let rows = list_org_tokens(&mut conn)
            .await
            .map_err(|error| ApiError::fleet(error, NOT_LISTED))?;
        let tokens: Vec<_> = rows.into_iter().map(OrganisationToken::from).collect();
        Ok(Json(OrganisationTokenList {
            count: tokens.len(),
            tokens,
        }))
    }

    /// Mints an organisation token, shown this once: whoever has it may do what the admin may. At most ten an hour from one
    /// address.
    #[oai(
        path = "/org/tokens",
        method = "post",
        operation_id = "create_organisation_token"
    )]
    async fn create_organisation_token(
        &self,
        access: AdminAccess,
        state: Shared<'_>,
        /// Makes the request safe to send again: a repetition with the same key and body gets the first answer.
        #[oai(name = "Idempotency-Key")]
        key: IdempotencyKey,
        body: JsonBody<MintTokenRequest>,
        request: &Request,
    ) -> ApiResult<Idempotent<Json<MintedToken>>> {
        let name = body.0.name.filter(|name| !name.is_empty());
        if name
            .as_ref()
            .is_some_and(|name| name.chars().count() > MAX_NAME)
        {
            return Err(ApiError::bad_request("name too long (max 100 chars)"));
        }
        let address = RequestContext::of(request)?.address;
        let (answer, _) = key
            .once(&state, NOT_MINTED, async |tx| {
                if let Some(address) = address {
                    let standing = state.mint_limiter.charge(Subject::address(address));
                    if standing.exhausted() {
                        return Err(ApiError::new(
                            StatusCode::TOO_MANY_REQUESTS,
                            "rate limit exceeded",
                        )
                        .retry_after(standing.reset_seconds()));
                    }
                }
                let (created_by, org_id) = minter(tx, &access.0).await?;
                let (row, token) = mint_org_token(tx, name.as_deref(), &created_by, org_id)
                    .await
                    .map_err(|error| ApiError::fleet(error, NOT_MINTED))?;
                let minted = MintedToken {
                    id: row.id,
                    prefix: row.prefix,
                    name,
                    auth_token: token.expose().clone(),
                    warning: "copy this token now; it will not be shown again".to_owned(),
                };
                Ok((Json(minted), ()))
            })
            .await?;
        Ok(answer)
    }

    /// Revokes an organisation token.
    #[oai(
        path = "/org/tokens/:token_id",
        method = "delete",
        operation_id = "revoke_organisation_token"
    )]
    async fn revoke_organisation_token(
        &self,
        _access: AdminAccess,
        state: Shared<'_>,
        token_id: Path<Uuid>,
    ) -> ApiResult<Json<OrganisationTokenRevoked>> {
        let mut conn = state.connection(ORG_NOT_REVOKED).await?;
        let revoked = revoke_org_token(&mut conn, token_id.0)
            .await
            .map_err(|error| ApiError::fleet(error, ORG_NOT_REVOKED))?;
        if !revoked {
            return Err(ApiError::not_found(NO_TOKEN));
        }
        Ok(Json(OrganisationTokenRevoked {
            revoked: token_id.0,
        }))
    }
}

/// How the new token names who minted it, and the organisation it inherits.
async fn minter(
    tx: &mut PgConnection,
    caller: &Principal,
) -> ApiResult<(String, Option<WorkspaceId>)> {
    let Principal::Org { id } = caller else {
        return Ok(("admin-token".to_owned(), None));
    };
    let OrgToken { prefix, org_id, .. } = tokens::find_org_token(tx, *id)
        .await
        .map_err(|error| ApiError::fleet(error, NOT_MINTED))?
        // Revoked since it let the request in.
        .ok_or_else(|| ApiError::unauthorized("invalid admin auth token"))?;
    Ok((format!("org-token:{prefix}"), org_id))
}

/// A number of the query; what is none or out of range counts as absent.
fn number(text: Option<String>, range: std::ops::RangeInclusive<i64>) -> Option<i64> {
    let number = text?.parse().ok()?;
    range.contains(&number).then_some(number)
}
