//! Templates (`spec: rest-api` §6.13, `spec: operations` §7): to choose from, left out, imported.

use std::collections::BTreeMap;

use longshore_fleet::templates::{
    Catalog, CatalogEntry, CatalogProblem, ImportError, ModelOffer, ProviderOffer, import,
};
use poem::http::StatusCode;
use poem_openapi::param::Query;
use poem_openapi::payload::Json;
use poem_openapi::{ApiResponse, Object, OpenApi};
use serde::Deserialize;

use crate::auth::AdminAccess;
use crate::body::{self, JsonBody, JsonRequest};
use crate::document::Tag;
use crate::paging;
use crate::problem::{ApiError, ApiResult};
use crate::state::{ApiState, Shared};

const FAILED: &str = "failed to read templates";
const NOT_WRITTEN: &str = "failed to write config.yaml";

/// A template to choose.
#[derive(Object)]
#[oai(rename = "Template")]
pub(crate) struct TemplateEntry {
    /// Its directory's name, which a workspace is created with.
    id: String,
    name: String,
    description: String,
    runtime: String,
    /// The tier it suggests; 0 without one.
    tier: i64,
    model: String,
    /// Models to choose from.
    #[oai(skip_serializing_if_is_empty)]
    models: Vec<TemplateModel>,
    /// Variables without which it does not start.
    #[oai(skip_serializing_if_is_empty)]
    required_env: Vec<String>,
    skills: Vec<String>,
    skill_count: usize,
    /// Deadline of its bringing-up.
    #[oai(skip_serializing_if_is_none)]
    provision_timeout_seconds: Option<u64>,
    /// Slugs of providers it may use.
    #[oai(skip_serializing_if_is_empty)]
    providers: Vec<String>,
    /// How it reaches providers.
    #[oai(skip_serializing_if_is_empty)]
    provider_registry: Vec<TemplateProvider>,
}

/// A model that a template offers.
#[derive(Object)]
pub(crate) struct TemplateModel {
    id: String,
    #[oai(skip_serializing_if_is_none)]
    name: Option<String>,
    #[oai(skip_serializing_if_is_empty)]
    required_env: Vec<String>,
}

/// How a template reaches a provider.
#[derive(Object)]
pub(crate) struct TemplateProvider {
    name: String,
    auth_env: Vec<String>,
    model_prefixes: Vec<String>,
    model_aliases: Vec<String>,
    /// Empty means the provider's own default.
    base_url: String,
}

/// A template that is left out of the list.
#[derive(Object)]
pub(crate) struct TemplateProblem {
    id: String,
    /// Which of its files is at fault.
    file: String,
    error: String,
    /// Where, if that is known.
    #[oai(nullable)]
    line: Option<usize>,
}

/// Part of the list of problems, by template.
#[derive(Object)]
pub(crate) struct TemplateProblemList {
    items: Vec<TemplateProblem>,
    /// Give it back as `cursor` for the next part; null at the end.
    #[oai(nullable)]
    next_cursor: Option<String>,
}

/// A template to be imported.
#[derive(Deserialize, Object)]
pub(crate) struct ImportTemplateRequest {
    /// Its name; the directory is named after it.
    name: String,
    /// What its files hold, by their paths; at most 200. Without a `config.yaml` one is made.
    files: BTreeMap<String, String>,
}

impl JsonRequest for ImportTemplateRequest {
    const LIMIT: usize = body::FILES_LIMIT;
}

/// A template was imported.
#[derive(Object)]
pub(crate) struct ImportedTemplate {
    /// Always `imported`.
    status: String,
    /// Its directory's name.
    id: String,
    name: String,
}

#[derive(ApiResponse)]
pub(crate) enum ImportTemplateResponse {
    /// It can be chosen.
    #[oai(status = 201)]
    Imported(Json<ImportedTemplate>),
}

pub(crate) struct TemplatesApi;

#[OpenApi(tag = "Tag::Templates")]
impl TemplatesApi {
    /// Lists the templates that workspaces can be created from, as they are on disk now.
    #[oai(path = "/templates", method = "get", operation_id = "list_templates")]
    async fn list_templates(
        &self,
        _access: AdminAccess,
        state: Shared<'_>,
    ) -> ApiResult<Json<Vec<TemplateEntry>>> {
        let catalog = read(&state).await?;
        Ok(Json(catalog.entries.into_iter().map(Into::into).collect()))
    }

    /// Lists the templates that are left out because something is wrong with them.
    #[oai(
        path = "/templates/problems",
        method = "get",
        operation_id = "list_template_problems"
    )]
    async fn list_template_problems(
        &self,
        _access: AdminAccess,
        state: Shared<'_>,
        /// At most so many, 1 to 500.
        limit: Query<Option<i64>>,
        cursor: Query<Option<String>>,
    ) -> ApiResult<Json<TemplateProblemList>> {
        let limit = paging::limit(limit.0)?;
        let catalog = read(&state).await?;
        let (items, next_cursor) = paging::part(
            catalog.problems,
            |problem| problem.id.clone(),
            limit,
            cursor.0.as_deref(),
        );
        Ok(Json(TemplateProblemList {
            items: items.into_iter().map(Into::into).collect(),
            next_cursor,
        }))
    }

    /// Imports a template: all of it or nothing.
    #[oai(
        path = "/templates/import",
        method = "post",
        operation_id = "import_template"
    )]
    async fn import_template(
        &self,
        _access: AdminAccess,
        state: Shared<'_>,
        body: JsonBody<ImportTemplateRequest>,
    ) -> ApiResult<ImportTemplateResponse> {
        let ImportTemplateRequest { name, files } = body.0;
        let Some(root) = state.fleet.templates.root().map(ToOwned::to_owned) else {
            let why = "there is no directory of templates: set CONFIGS_DIR";
            return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, NOT_WRITTEN).detail(why));
        };
        let done = tokio::task::spawn_blocking(move || {
            let id = import(&root, &name, &files)?;
            Ok::<_, ImportError>(ImportedTemplate {
                status: "imported".to_owned(),
                id,
                name,
            })
        });
        let imported = done
            .await
            .map_err(|error| ApiError::internal(NOT_WRITTEN, error))?
            .map_err(refuse)?;
        tracing::info!(template = imported.id, "a template was imported");
        Ok(ImportTemplateResponse::Imported(Json(imported)))
    }
}

async fn read(state: &ApiState) -> ApiResult<Catalog> {
    let Some(root) = state.fleet.templates.root().map(ToOwned::to_owned) else {
        return Ok(Catalog::default());
    };
    tokio::task::spawn_blocking(move || Catalog::read(&root))
        .await
        .map_err(|error| ApiError::internal(FAILED, error))
}

fn refuse(error: ImportError) -> ApiError {
    let text = error.to_string();
    match error {
        ImportError::Invalid { detail } => ApiError::bad_request(text).detail(detail),
        ImportError::TooManyFiles(_) => ApiError::bad_request(text),
        ImportError::Exists { id } => ApiError::conflict(text).member("id", id),
        ImportError::Write(source) => ApiError::internal(text, source),
    }
}

impl From<CatalogEntry> for TemplateEntry {
    fn from(entry: CatalogEntry) -> Self {
        let seconds = entry.provision_timeout_seconds;
        Self {
            id: entry.id,
            name: entry.name,
            description: entry.description,
            runtime: entry.runtime,
            tier: entry.tier,
            model: entry.model,
            models: entry.models.into_iter().map(Into::into).collect(),
            required_env: entry.required_env,
            skill_count: entry.skills.len(),
            skills: entry.skills,
            provision_timeout_seconds: (seconds > 0).then_some(seconds),
            providers: entry.providers,
            provider_registry: entry
                .provider_registry
                .into_iter()
                .map(Into::into)
                .collect(),
        }
    }
}

impl From<ModelOffer> for TemplateModel {
    fn from(offer: ModelOffer) -> Self {
        Self {
            id: offer.id,
            name: offer.name,
            required_env: offer.required_env,
        }
    }
}

impl From<ProviderOffer> for TemplateProvider {
    fn from(offer: ProviderOffer) -> Self {
        Self {
            name: offer.name,
            auth_env: offer.auth_env,
            model_prefixes: offer.model_prefixes,
            model_aliases: offer.model_aliases,
            base_url: offer.base_url,
        }
    }
}

impl From<CatalogProblem> for TemplateProblem {
    fn from(problem: CatalogProblem) -> Self {
        Self {
            id: problem.id,
            file: problem.file,
            error: problem.error,
            line: problem.line,
        }
    }
}
