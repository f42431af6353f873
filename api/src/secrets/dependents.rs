//! Who is restarted when a secret changes, for whoever is about to change it; and whether a key is a good one, which nobody
//! can tell here (`spec: rest-api` §9).

use longshore_base::WorkspaceId;
use longshore_fleet::restarting::{Asked, check_restart};
use longshore_fleet::secrets::list_affected_workspaces;
use longshore_fleet::workspace::find_workspace;
use poem_openapi::param::Path;
use poem_openapi::payload::Json;
use poem_openapi::{Object, OpenApi};
use serde::Deserialize;
use uuid::Uuid;

use super::FAILED;
use crate::auth::{AdminAccess, WorkspaceAccess};
use crate::body::{JsonBody, JsonRequest};
use crate::document::Tag;
use crate::problem::{ApiError, ApiResult};
use crate::state::Shared;

/// Ids that one answer names at most.
const MOST: i64 = 10_000;

/// Workspaces that are restarted when a secret changes.
#[derive(Object)]
pub(crate) struct SecretDependents {
    /// Their ids, in order; at most 10000.
    dependents: Vec<Uuid>,
}

/// A key to look at.
#[derive(Deserialize, Object)]
pub(crate) struct ValidateSecretRequest {
    /// Whose key it is.
    provider: String,
    /// The key. It is neither kept nor logged.
    key: String,
}

impl JsonRequest for ValidateSecretRequest {}

/// What could be found out about a key.
#[derive(Object)]
pub(crate) struct SecretValidity {
    /// It is known to be good.
    valid: bool,
    /// Why that is not known.
    #[oai(skip_serializing_if_is_none)]
    error: Option<String>,
}

pub(crate) struct DependentsApi;

#[OpenApi(tag = "Tag::Secrets")]
impl DependentsApi {
    /// Lists the workspaces that are restarted when a global secret changes: those that run, without one of their own by
    /// that name.
    #[oai(
        path = "/settings/secrets/:key/dependents",
        method = "get",
        operation_id = "list_global_secret_dependents"
    )]
    async fn list_global_secret_dependents(
        &self,
        _access: AdminAccess,
        state: Shared<'_>,
        key: Path<String>,
    ) -> ApiResult<Json<SecretDependents>> {
        let mut conn = state.connection(FAILED).await?;
        let found = list_affected_workspaces(&mut conn, &key.0, None, MOST)
            .await
            .map_err(|error| ApiError::fleet(error, FAILED))?;
        Ok(Json(SecretDependents {
            dependents: found.into_iter().map(|id| id.0).collect(),
        }))
    }

    /// Lists the workspaces that are restarted when a secret of this one changes: it alone, if it runs.
    #[oai(
        path = "/workspaces/:id/secrets/:key/dependents",
        method = "get",
        operation_id = "list_workspace_secret_dependents"
    )]
    async fn list_workspace_secret_dependents(
        &self,
        _access: WorkspaceAccess,
        state: Shared<'_>,
        id: Path<Uuid>,
        #[oai(name = "key")] _key: Path<String>,
    ) -> ApiResult<Json<SecretDependents>> {
        let mut conn = state.connection(FAILED).await?;
        let fleet = |error| ApiError::fleet(error, FAILED);
        let workspace = find_workspace(&mut conn, WorkspaceId(id.0))
            .await
            .map_err(fleet)?
            .ok_or_else(ApiError::workspace_not_found)?;
        let refusal = check_restart(&mut conn, &workspace, Asked::ByChange)
            .await
            .map_err(fleet)?;
        let is_restarted = refusal.is_none();
        Ok(Json(SecretDependents {
            dependents: is_restarted.then_some(id.0).into_iter().collect(),
        }))
    }

    /// Says of a provider's key whether it is a good one. No provider is asked yet, so of none that is known.
    #[oai(
        path = "/secrets/validate",
        method = "post",
        operation_id = "validate_secret"
    )]
    async fn validate_secret(
        &self,
        _access: AdminAccess,
        body: JsonBody<ValidateSecretRequest>,
    ) -> ApiResult<Json<SecretValidity>> {
        tracing::debug!(provider = body.0.provider, "a key was to be validated");
        Ok(Json(SecretValidity {
            valid: false,
            error: Some("validation is not available for this provider".to_owned()),
        }))
    }
}
