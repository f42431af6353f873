//! Model and provider of a workspace (`spec: rest-api` §6.11).

use longshore_base::WorkspaceId;
use longshore_fleet::FleetError;
use longshore_fleet::models::{
    check_choice, choose_model, choose_provider, find_model, find_provider,
};
use longshore_jobs::restart::Source;
use poem_openapi::param::Path;
use poem_openapi::payload::Json;
use poem_openapi::{ApiResponse, Object, OpenApi};
use serde::Deserialize;
use uuid::Uuid;

use crate::auth::WorkspaceAccess;
use crate::body::{JsonBody, JsonRequest};
use crate::document::Tag;
use crate::problem::{ApiError, ApiResult};
use crate::secrets::change;
use crate::state::Shared;
use crate::workspaces::{lock_live, require_live};

const FAILED: &str = "query failed";
/// Where a choice that was made is kept.
const STORED: &str = "workspace_secrets";
/// Nobody has chosen.
const DEFAULT: &str = "default";

/// A model to be used.
#[derive(Deserialize, Object)]
pub(crate) struct SetModelRequest {
    /// The slug, at most 100 characters; empty takes the choice back.
    model: String,
}

impl JsonRequest for SetModelRequest {}

/// A provider to be used.
#[derive(Deserialize, Object)]
pub(crate) struct SetProviderRequest {
    /// The provider, at most 100 characters; empty takes the choice back.
    provider: String,
}

impl JsonRequest for SetProviderRequest {}

/// The model of a workspace.
#[derive(Object)]
pub(crate) struct ChosenModel {
    /// Empty when nobody has chosen one.
    model: String,
    /// `workspace_secrets`, or `default` when nobody has chosen one.
    source: String,
}

/// The provider of a workspace.
#[derive(Object)]
pub(crate) struct ChosenProvider {
    /// Empty when there is none.
    provider: String,
    /// `workspace_secrets`, or `default` when there is none.
    source: String,
}

/// A model was chosen, or its choice taken back.
#[derive(Object)]
pub(crate) struct ModelChanged {
    /// `saved` or `cleared`.
    status: String,
    #[oai(skip_serializing_if_is_none)]
    model: Option<String>,
    /// The job that brings it to the agent; without one it gets it with its next start.
    #[oai(skip_serializing_if_is_none)]
    job_id: Option<Uuid>,
}

#[derive(ApiResponse)]
pub(crate) enum ModelResponse {
    /// It is so from now on.
    #[oai(status = 200)]
    Changed(
        Json<ModelChanged>,
        /// The job that brings it to the agent.
        #[oai(header = "Location")]
        Option<String>,
    ),
}

/// A provider was chosen, or its choice taken back.
#[derive(Object)]
pub(crate) struct ProviderChanged {
    /// `saved` or `cleared`.
    status: String,
    #[oai(skip_serializing_if_is_none)]
    provider: Option<String>,
    /// The job that brings it to the agent; without one it gets it with its next start.
    #[oai(skip_serializing_if_is_none)]
    job_id: Option<Uuid>,
}

#[derive(ApiResponse)]
pub(crate) enum ProviderResponse {
    /// It is so from now on.
    #[oai(status = 200)]
    Changed(
        Json<ProviderChanged>,
        /// The job that brings it to the agent.
        #[oai(header = "Location")]
        Option<String>,
    ),
}

pub(crate) struct ModelsApi;

#[OpenApi(tag = "Tag::Secrets")]
impl ModelsApi {
    /// Shows the model a workspace was given.
    #[oai(
        path = "/workspaces/:id/model",
        method = "get",
        operation_id = "get_model"
    )]
    async fn get_model(
        &self,
        _access: WorkspaceAccess,
        state: Shared<'_>,
        id: Path<Uuid>,
    ) -> ApiResult<Json<ChosenModel>> {
        let id = WorkspaceId(id.0);
        require_live(&state, id, FAILED).await?;
        let mut conn = state.connection(FAILED).await?;
        let found = find_model(&mut conn, &state.fleet, id)
            .await
            .map_err(unread)?;
        Ok(Json(ChosenModel {
            source: source(found.as_ref()),
            model: found.unwrap_or_default(),
        }))
    }

    /// Gives a workspace a model. Its provider follows, unless somebody chose the provider.
    #[oai(
        path = "/workspaces/:id/model",
        method = "put",
        operation_id = "update_model"
    )]
    async fn update_model(
        &self,
        access: WorkspaceAccess,
        state: Shared<'_>,
        id: Path<Uuid>,
        body: JsonBody<SetModelRequest>,
    ) -> ApiResult<ModelResponse> {
        let id = WorkspaceId(id.0);
        let model = body.0.model;
        check_choice("model", &model).map_err(ApiError::bad_request)?;
        let failed = if model.is_empty() {
            "failed to clear model"
        } else {
            "failed to save model"
        };
        let mut tx = state.transaction(failed).await?;
        let workspace = lock_live(&mut tx, id, failed).await?;
        choose_model(&mut tx, &state.fleet, id, &model)
            .await
            .map_err(|error| ApiError::fleet(error, failed))?;
        let set_off =
            change::restart(&mut tx, &workspace, Source::Model, &access.0, failed).await?;
        tx.commit()
            .await
            .map_err(|error| ApiError::database(error, failed))?;
        set_off.poke(&state);
        let changed = ModelChanged {
            status: changed(&model),
            model: Some(model).filter(|model| !model.is_empty()),
            job_id: set_off.job_id(),
        };
        Ok(ModelResponse::Changed(Json(changed), set_off.location()))
    }

    /// Shows the provider a workspace was given, or that its model stands for.
    #[oai(
        path = "/workspaces/:id/provider",
        method = "get",
        operation_id = "get_provider"
    )]
    async fn get_provider(
        &self,
        _access: WorkspaceAccess,
        state: Shared<'_>,
        id: Path<Uuid>,
    ) -> ApiResult<Json<ChosenProvider>> {
        let id = WorkspaceId(id.0);
        require_live(&state, id, FAILED).await?;
        let mut conn = state.connection(FAILED).await?;
        let found = find_provider(&mut conn, &state.fleet, id)
            .await
            .map_err(unread)?;
        Ok(Json(ChosenProvider {
            source: source(found.as_ref()),
            provider: found.unwrap_or_default(),
        }))
    }

    /// Gives a workspace a provider, which later models leave alone.
    #[oai(
        path = "/workspaces/:id/provider",
        method = "put",
        operation_id = "update_provider"
    )]
    async fn update_provider(
        &self,
        access: WorkspaceAccess,
        state: Shared<'_>,
        id: Path<Uuid>,
        body: JsonBody<SetProviderRequest>,
    ) -> ApiResult<ProviderResponse> {
        let id = WorkspaceId(id.0);
        let provider = body.0.provider;
        check_choice("provider", &provider).map_err(ApiError::bad_request)?;
        let failed = if provider.is_empty() {
            "failed to clear provider"
        } else {
            "failed to save provider"
        };
        let mut tx = state.transaction(failed).await?;
        let workspace = lock_live(&mut tx, id, failed).await?;
        choose_provider(&mut tx, &state.fleet, id, &provider)
            .await
            .map_err(|error| ApiError::fleet(error, failed))?;
        let set_off =
            change::restart(&mut tx, &workspace, Source::Provider, &access.0, failed).await?;
        tx.commit()
            .await
            .map_err(|error| ApiError::database(error, failed))?;
        set_off.poke(&state);
        let changed = ProviderChanged {
            status: changed(&provider),
            provider: Some(provider).filter(|provider| !provider.is_empty()),
            job_id: set_off.job_id(),
        };
        Ok(ProviderResponse::Changed(Json(changed), set_off.location()))
    }
}

fn source(found: Option<&String>) -> String {
    if found.is_some() { STORED } else { DEFAULT }.to_owned()
}

fn changed(text: &str) -> String {
    if text.is_empty() { "cleared" } else { "saved" }.to_owned()
}

fn unread(error: FleetError) -> ApiError {
    match error {
        FleetError::Unseal(_) => ApiError::internal("failed to decrypt", error),
        other => ApiError::fleet(other, FAILED),
    }
}
