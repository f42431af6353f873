//! Secrets of every workspace (`spec: rest-api` §6.10), under two names.

use longshore_fleet::secrets::{delete_global_secret, list_global_secrets, save_global_secret};
use longshore_jobs::secret_fanout;
use poem_openapi::OpenApi;
use poem_openapi::param::Path;
use poem_openapi::payload::Json;
use sqlx::PgConnection;

use super::change::SetOff;
use super::{FAILED, SecretListEntry, SecretResponse, SecretScope, SetSecretRequest};
use crate::auth::{AdminAccess, Principal};
use crate::body::JsonBody;
use crate::document::Tag;
use crate::idempotency::{IdempotencyKey, Idempotent};
use crate::problem::{ApiError, ApiResult};
use crate::state::{ApiState, Shared};

const NOT_SAVED: &str = "failed to save";
const NOT_DELETED: &str = "failed to delete";

pub(crate) struct GlobalSecretsApi;

#[OpenApi(tag = "Tag::Secrets")]
impl GlobalSecretsApi {
    /// Lists the secrets of every workspace, without their values.
    #[oai(
        path = "/settings/secrets",
        method = "get",
        operation_id = "list_global_secrets"
    )]
    async fn list_global_secrets(
        &self,
        _access: AdminAccess,
        state: Shared<'_>,
    ) -> ApiResult<Json<Vec<SecretListEntry>>> {
        list(&state).await
    }

    /// Lists the secrets of every workspace; an alias of `/settings/secrets`.
    #[oai(
        path = "/admin/secrets",
        method = "get",
        operation_id = "list_admin_secrets"
    )]
    async fn list_admin_secrets(
        &self,
        _access: AdminAccess,
        state: Shared<'_>,
    ) -> ApiResult<Json<Vec<SecretListEntry>>> {
        list(&state).await
    }

    /// Sets a secret of every workspace, over an earlier one of the name. A workspace's own of this name takes its place.
    #[oai(
        path = "/settings/secrets",
        method = "post",
        operation_id = "set_global_secret"
    )]
    async fn set_global_secret(
        &self,
        access: AdminAccess,
        state: Shared<'_>,
        /// Makes the request safe to send again: a repetition with the same key and body gets the first answer.
        #[oai(name = "Idempotency-Key")]
        key: IdempotencyKey,
        body: JsonBody<SetSecretRequest>,
    ) -> ApiResult<Idempotent<SecretResponse>> {
        set(&state, &access.0, key, body.0).await
    }

    /// Sets a secret of every workspace; the same as with POST.
    #[oai(
        path = "/settings/secrets",
        method = "put",
        operation_id = "put_global_secret"
    )]
    async fn put_global_secret(
        &self,
        access: AdminAccess,
        state: Shared<'_>,
        body: JsonBody<SetSecretRequest>,
    ) -> ApiResult<Idempotent<SecretResponse>> {
        set(&state, &access.0, IdempotencyKey::none(), body.0).await
    }

    /// Sets a secret of every workspace; an alias of `/settings/secrets`.
    #[oai(
        path = "/admin/secrets",
        method = "post",
        operation_id = "set_admin_secret"
    )]
    async fn set_admin_secret(
        &self,
        access: AdminAccess,
        state: Shared<'_>,
        /// Makes the request safe to send again: a repetition with the same key and body gets the first answer.
        #[oai(name = "Idempotency-Key")]
        key: IdempotencyKey,
        body: JsonBody<SetSecretRequest>,
    ) -> ApiResult<Idempotent<SecretResponse>> {
        set(&state, &access.0, key, body.0).await
    }

    /// Deletes a secret of every workspace.
    #[oai(
        path = "/settings/secrets/:key",
        method = "delete",
        operation_id = "delete_global_secret"
    )]
    async fn delete_global_secret(
        &self,
        access: AdminAccess,
        state: Shared<'_>,
        key: Path<String>,
    ) -> ApiResult<SecretResponse> {
        delete(&state, &access.0, key.0).await
    }

    /// Deletes a secret of every workspace; an alias of `/settings/secrets/{key}`.
    #[oai(
        path = "/admin/secrets/:key",
        method = "delete",
        operation_id = "delete_admin_secret"
    )]
    async fn delete_admin_secret(
        &self,
        access: AdminAccess,
        state: Shared<'_>,
        key: Path<String>,
    ) -> ApiResult<SecretResponse> {
        delete(&state, &access.0, key.0).await
    }
}

async fn list(state: &ApiState) -> ApiResult<Json<Vec<SecretListEntry>>> {
    let mut conn = state.connection(FAILED).await?;
    let entries = list_global_secrets(&mut conn)
        .await
        .map_err(|error| ApiError::fleet(error, FAILED))?;
    Ok(Json(entries.into_iter().map(Into::into).collect()))
}

async fn set(
    state: &ApiState,
    caller: &Principal,
    key: IdempotencyKey,
    body: SetSecretRequest,
) -> ApiResult<Idempotent<SecretResponse>> {
    body.check()?;
    let (answer, set_off) = key
        .once(state, NOT_SAVED, async |tx| {
            save_global_secret(tx, &state.fleet, &body.key, &body.value)
                .await
                .map_err(|error| ApiError::fleet(error, NOT_SAVED))?;
            let set_off = fan_out(tx, &body.key, caller, NOT_SAVED).await?;
            let scope = Some(SecretScope::Global);
            let answer = SecretResponse::new("saved", body.key, scope, &set_off);
            Ok((answer, set_off))
        })
        .await?;
    if let Some(set_off) = set_off {
        set_off.poke(state);
    }
    Ok(answer)
}

async fn delete(state: &ApiState, caller: &Principal, key: String) -> ApiResult<SecretResponse> {
    let mut tx = state.transaction(NOT_DELETED).await?;
    let deleted = delete_global_secret(&mut tx, &key)
        .await
        .map_err(|error| ApiError::fleet(error, NOT_DELETED))?;
    if !deleted {
        return Err(ApiError::not_found("secret not found"));
    }
    let set_off = fan_out(&mut tx, &key, caller, NOT_DELETED).await?;
    tx.commit()
        .await
        .map_err(|error| ApiError::database(error, NOT_DELETED))?;
    set_off.poke(state);
    let scope = Some(SecretScope::Global);
    Ok(SecretResponse::new("deleted", key, scope, &set_off))
}

/// Has everybody restarted who gets it, by a job of its own.
async fn fan_out(
    tx: &mut PgConnection,
    key: &str,
    caller: &Principal,
    failed: &'static str,
) -> ApiResult<SetOff> {
    secret_fanout::request(tx, key, &caller.name())
        .await
        .map(SetOff::by)
        .map_err(|error| ApiError::ledger(error, failed))
}
