//! Secrets of workspaces (`spec: rest-api` §6.10): set, listed by name, deleted; their values go to their own agent alone.

pub(crate) mod change;
pub(crate) mod dependents;
pub(crate) mod global;
pub(crate) mod rotation;

use std::collections::BTreeMap;

use longshore_base::{Timestamp, WorkspaceId};
use longshore_fleet::secrets::{
    OpenedSecrets, SecretEntry, check_secret_name, delete_workspace_secret, list_workspace_secrets,
    open_secrets, save_workspace_secret,
};
use longshore_jobs::restart::Source;
use poem_openapi::param::Path;
use poem_openapi::payload::Json;
use poem_openapi::{ApiResponse, Enum, Object, OpenApi};
use serde::Deserialize;
use uuid::Uuid;

use self::change::SetOff;
use crate::auth::{OwnAccess, Principal, WorkspaceAccess};
use crate::body::{JsonBody, JsonRequest};
use crate::document::Tag;
use crate::idempotency::{IdempotencyKey, Idempotent};
use crate::problem::{ApiError, ApiResult};
use crate::state::{ApiState, Shared};
use crate::workspaces::{lock_live, require_live};

const FAILED: &str = "query failed";
const NOT_SAVED: &str = "failed to save secret";
const NOT_DELETED: &str = "failed to delete secret";
const UNREADABLE: &str = "one or more secrets failed to decrypt; refusing to return partial bundle";

/// A secret to be set.
#[derive(Deserialize, Object)]
pub(crate) struct SetSecretRequest {
    /// The name of the variable that the agent gets. The names of its identity, such as `WORKSPACE_ID`, are reserved.
    key: String,
    /// Not empty.
    value: String,
}

impl JsonRequest for SetSecretRequest {}

impl SetSecretRequest {
    fn check(&self) -> ApiResult<()> {
        let refuse = |why: String| Err(ApiError::bad_request(Self::INVALID).detail(why));
        if self.key.is_empty() || self.value.is_empty() {
            return refuse("key and value are required".to_owned());
        }
        check_secret_name(&self.key, &self.value).or_else(|error| refuse(error.to_string()))
    }
}

/// Whose a secret is.
#[derive(Enum)]
#[oai(rename_all = "snake_case")]
pub(crate) enum SecretScope {
    /// The workspace's own.
    Workspace,
    /// Every workspace's.
    Global,
}

/// A secret that is set, without its value.
#[derive(Object)]
pub(crate) struct SecretListEntry {
    key: String,
    /// Always `true`.
    has_value: bool,
    scope: SecretScope,
    created_at: Timestamp,
    updated_at: Timestamp,
}

impl From<SecretEntry> for SecretListEntry {
    fn from(entry: SecretEntry) -> Self {
        Self {
            key: entry.key,
            has_value: true,
            scope: if entry.global {
                SecretScope::Global
            } else {
                SecretScope::Workspace
            },
            created_at: entry.created_at,
            updated_at: entry.updated_at,
        }
    }
}

/// A secret was set or deleted.
#[derive(Object)]
pub(crate) struct SecretChanged {
    /// `saved` or `deleted`.
    status: String,
    key: String,
    /// `global` for one of every workspace.
    #[oai(skip_serializing_if_is_none)]
    scope: Option<SecretScope>,
    /// The job that brings it to the agents that run; without one they get it with their next start.
    #[oai(skip_serializing_if_is_none)]
    job_id: Option<Uuid>,
}

#[derive(ApiResponse)]
pub(crate) enum SecretResponse {
    /// It is so from now on.
    #[oai(status = 200)]
    Changed(
        Json<SecretChanged>,
        /// The job that brings it to the agents that run.
        #[oai(header = "Location")]
        Option<String>,
    ),
}

impl SecretResponse {
    fn new(status: &str, key: String, scope: Option<SecretScope>, set_off: &SetOff) -> Self {
        let changed = SecretChanged {
            status: status.to_owned(),
            key,
            scope,
            job_id: set_off.job_id(),
        };
        Self::Changed(Json(changed), set_off.location())
    }
}

pub(crate) struct SecretsApi;

#[OpenApi(tag = "Tag::Secrets")]
impl SecretsApi {
    /// Lists the secrets that a workspace's agent gets, without their values: its own, then the global ones.
    #[oai(
        path = "/workspaces/:id/secrets",
        method = "get",
        operation_id = "list_workspace_secrets"
    )]
    async fn list_workspace_secrets(
        &self,
        _access: WorkspaceAccess,
        state: Shared<'_>,
        id: Path<Uuid>,
    ) -> ApiResult<Json<Vec<SecretListEntry>>> {
        let id = WorkspaceId(id.0);
        require_live(&state, id, FAILED).await?;
        let mut conn = state.connection(FAILED).await?;
        let entries = list_workspace_secrets(&mut conn, id)
            .await
            .map_err(|error| ApiError::fleet(error, FAILED))?;
        Ok(Json(entries.into_iter().map(Into::into).collect()))
    }

    /// Sets a secret of a workspace, over an earlier one of the name.
    #[oai(
        path = "/workspaces/:id/secrets",
        method = "post",
        operation_id = "set_workspace_secret"
    )]
    async fn set_workspace_secret(
        &self,
        access: WorkspaceAccess,
        state: Shared<'_>,
        id: Path<Uuid>,
        /// Makes the request safe to send again: a repetition with the same key and body gets the first answer.
        #[oai(name = "Idempotency-Key")]
        key: IdempotencyKey,
        body: JsonBody<SetSecretRequest>,
    ) -> ApiResult<Idempotent<SecretResponse>> {
        set(&state, &access.0, WorkspaceId(id.0), key, body.0).await
    }

    /// Sets a secret of a workspace; the same as with POST.
    #[oai(
        path = "/workspaces/:id/secrets",
        method = "put",
        operation_id = "put_workspace_secret"
    )]
    async fn put_workspace_secret(
        &self,
        access: WorkspaceAccess,
        state: Shared<'_>,
        id: Path<Uuid>,
        body: JsonBody<SetSecretRequest>,
    ) -> ApiResult<Idempotent<SecretResponse>> {
        set(
            &state,
            &access.0,
            WorkspaceId(id.0),
            IdempotencyKey::none(),
            body.0,
        )
        .await
    }

    /// Deletes a workspace's own secret.
    #[oai(
        path = "/workspaces/:id/secrets/:key",
        method = "delete",
        operation_id = "delete_workspace_secret"
    )]
    async fn delete_workspace_secret(
        &self,
        access: WorkspaceAccess,
        state: Shared<'_>,
        id: Path<Uuid>,
        key: Path<String>,
    ) -> ApiResult<SecretResponse> {
        let id = WorkspaceId(id.0);
        let mut tx = state.transaction(NOT_DELETED).await?;
        let workspace = lock_live(&mut tx, id, NOT_DELETED).await?;
        let deleted = delete_workspace_secret(&mut tx, id, &key.0)
            .await
            .map_err(|error| ApiError::fleet(error, NOT_DELETED))?;
        if !deleted {
            return Err(ApiError::not_found("secret not found"));
        }
        let set_off =
            change::restart(&mut tx, &workspace, Source::Secret, &access.0, NOT_DELETED).await?;
        tx.commit()
            .await
            .map_err(|error| ApiError::database(error, NOT_DELETED))?;
        set_off.poke(&state);
        Ok(SecretResponse::new("deleted", key.0, None, &set_off))
    }

    /// Shows the values of all secrets that an agent gets, to this agent alone; all of them or none.
    #[oai(
        path = "/workspaces/:id/secrets/values",
        method = "get",
        operation_id = "get_secret_values"
    )]
    async fn get_secret_values(
        &self,
        _access: OwnAccess,
        state: Shared<'_>,
        id: Path<Uuid>,
    ) -> ApiResult<Json<BTreeMap<String, String>>> {
        let mut conn = state.connection(FAILED).await?;
        let OpenedSecrets { values, failed } =
            open_secrets(&mut conn, &state.fleet, WorkspaceId(id.0))
                .await
                .map_err(|error| ApiError::fleet(error, FAILED))?;
        let labels: Vec<_> = failed.iter().map(|failed| failed.label()).collect();
        if let Some(first) = failed.into_iter().next() {
            return Err(ApiError::internal(UNREADABLE, first.error).member("failed_keys", labels));
        }
        Ok(Json(
            values
                .into_iter()
                .map(|(name, value)| (name, value.expose().clone()))
                .collect(),
        ))
    }
}

async fn set(
    state: &ApiState,
    caller: &Principal,
    id: WorkspaceId,
    key: IdempotencyKey,
    body: SetSecretRequest,
) -> ApiResult<Idempotent<SecretResponse>> {
    body.check()?;
    let (answer, set_off) = key
        .once(state, NOT_SAVED, async |tx| {
            let workspace = lock_live(tx, id, NOT_SAVED).await?;
            save_workspace_secret(tx, &state.fleet, id, &body.key, &body.value)
                .await
                .map_err(|error| ApiError::fleet(error, NOT_SAVED))?;
            let set_off =
                change::restart(tx, &workspace, Source::Secret, caller, NOT_SAVED).await?;
            let answer = SecretResponse::new("saved", body.key, None, &set_off);
            Ok((answer, set_off))
        })
        .await?;
    if let Some(set_off) = set_off {
        set_off.poke(state);
    }
    Ok(answer)
}
