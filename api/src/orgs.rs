//! Templates of whole organisations (`spec: lifecycle` §1.5): listed, and imported.

use std::sync::Arc;

use longshore_fleet::org::{self, OrgError, OrgTemplate, find_missing_env};
use longshore_fleet::{Fleet, import::ImportNode};
use longshore_jobs::import::Imported;
use longshore_jobs::provision;
use poem::http::StatusCode;
use poem_openapi::payload::Json;
use poem_openapi::{ApiResponse, Object, OpenApi};
use serde::Deserialize;
use uuid::Uuid;

use crate::auth::AdminAccess;
use crate::body::{JsonBody, JsonRequest};
use crate::document::Tag;
use crate::idempotency::{IdempotencyKey, Idempotent};
use crate::imports::{self, Words};
use crate::problem::{ApiError, ApiResult};
use crate::state::Shared;

const NOT_LISTED: &str = "failed to read org templates";
const NOT_IMPORTED: &str = "failed to import organisation";
const WORDS: Words = Words {
    invalid: "invalid org template",
    failed: NOT_IMPORTED,
};

/// A template of an organisation.
#[derive(Object)]
#[oai(rename = "OrgTemplate")]
pub(crate) struct OrgTemplateEntry {
    /// Its directory's name, which it is imported by.
    dir: String,
    name: String,
    description: String,
    /// How many workspaces it makes.
    workspaces: usize,
    /// Variables that must be global secrets before it is imported.
    required_env: Vec<String>,
    /// Variables that it would like.
    recommended_env: Vec<String>,
}

impl From<OrgTemplate> for OrgTemplateEntry {
    fn from(template: OrgTemplate) -> Self {
        Self {
            workspaces: template.workspaces(),
            dir: template.dir,
            name: template.name,
            description: template.description,
            required_env: template.required_env,
            recommended_env: template.recommended_env,
        }
    }
}

/// Which organisation is to be made.
#[derive(Deserialize, Object)]
pub(crate) struct ImportOrgRequest {
    /// A template's directory.
    dir: String,
    /// Also without the variables that it requires.
    #[serde(default)]
    #[oai(default)]
    force: bool,
}

impl JsonRequest for ImportOrgRequest {}

/// A workspace of an organisation that was imported, or was not.
#[derive(Object)]
#[oai(skip_serializing_if_is_none)]
pub(crate) struct ImportedMember {
    /// Absent where it was not created.
    id: Option<Uuid>,
    name: String,
    parent_id: Option<Uuid>,
    /// `provisioning`; for an external one `online` or `awaiting_agent`; or `failed`.
    status: String,
    /// Why it was not created.
    error: Option<String>,
    /// The job that brings it up.
    job_id: Option<Uuid>,
}

/// An organisation that was imported.
#[derive(Object)]
pub(crate) struct ImportedOrg {
    /// Its name.
    org: String,
    /// How many workspaces were created.
    count: usize,
    /// All of its workspaces, each after its parent.
    workspaces: Vec<ImportedMember>,
    /// The job that brings up the first of them.
    #[oai(skip_serializing_if_is_none)]
    job_id: Option<Uuid>,
}

#[derive(ApiResponse)]
pub(crate) enum ImportOrgResponse {
    /// It exists, and is being brought up.
    #[oai(status = 201)]
    Imported(
        Json<ImportedOrg>,
        /// The job that brings up the first of its workspaces.
        #[oai(header = "Location")]
        Option<String>,
    ),
}

pub(crate) struct OrgsApi;

#[OpenApi(tag = "Tag::Templates")]
impl OrgsApi {
    /// Lists the templates of organisations, as they are on disk now. One that cannot be read is logged and left out.
    #[oai(
        path = "/org/templates",
        method = "get",
        operation_id = "list_organisation_templates"
    )]
    async fn list_organisation_templates(
        &self,
        _access: AdminAccess,
        state: Shared<'_>,
    ) -> ApiResult<Json<Vec<OrgTemplateEntry>>> {
        let fleet = state.fleet.clone();
        let listed = tokio::task::spawn_blocking(move || org::list(&fleet.templates))
            .await
            .map_err(|error| ApiError::internal(NOT_LISTED, error))?;
        Ok(Json(listed.into_iter().map(Into::into).collect()))
    }

    /// Makes an organisation of a template: its workspaces, at most 200, in one step. They are brought up by and by, three
    /// at a time and two seconds apart unless the server was told otherwise. 412 when required variables are missing.
    #[oai(
        path = "/org/import",
        method = "post",
        operation_id = "import_organisation"
    )]
    async fn import_organisation(
        &self,
        access: AdminAccess,
        state: Shared<'_>,
        /// Makes the request safe to send again: a repetition with the same key and body gets the first answer.
        #[oai(name = "Idempotency-Key")]
        key: IdempotencyKey,
        body: JsonBody<ImportOrgRequest>,
    ) -> ApiResult<Idempotent<ImportOrgResponse>> {
        let ImportOrgRequest { dir, force } = body.0;
        let (template, nodes) = read(&state.fleet, dir).await?;
        let (answer, queues) = key
            .once(&state, NOT_IMPORTED, async |tx| {
                let missing = find_missing_env(tx, &template.required_env)
                    .await
                    .map_err(|error| ApiError::fleet(error, NOT_IMPORTED))?;
                require_env(&template, &missing, force)?;
                let turn = (provision::Cause::OrgImport, Some(state.config.import_pace));
                let imported = imports::import(tx, &state, nodes, turn, &access.0, WORDS).await?;
                let queues = imports::queues(&imported);
                Ok((told(template.name, &imported), queues))
            })
            .await?;
        if let Some(queues) = queues {
            state.poke(&queues);
        }
        Ok(answer)
    }
}

async fn read(fleet: &Arc<Fleet>, dir: String) -> ApiResult<(OrgTemplate, Vec<ImportNode>)> {
    let fleet = fleet.clone();
    let read = tokio::task::spawn_blocking(move || {
        let template = OrgTemplate::read(&fleet.templates, &dir)?;
        let nodes = org::plan(&fleet, &template)?;
        Ok::<_, OrgError>((template, nodes))
    });
    read.await
        .map_err(|error| ApiError::internal(NOT_IMPORTED, error))?
        .map_err(|error| {
            let text = error.to_string();
            match error {
                OrgError::NotFound => ApiError::not_found(text),
                OrgError::Invalid(why) => ApiError::bad_request(text).detail(why),
                OrgError::Import(error) => imports::refuse(error, WORDS),
            }
        })
}

fn require_env(template: &OrgTemplate, missing: &[String], force: bool) -> ApiResult<()> {
    if missing.is_empty() {
        return Ok(());
    }
    if force {
        tracing::warn!(
            template = template.dir,
            ?missing,
            "an organisation is imported without variables that it requires"
        );
        return Ok(());
    }
    let text = format!(
        "missing required env vars {} — add them as Global secrets and retry, or import with force",
        missing.join(", ")
    );
    Err(ApiError::new(StatusCode::PRECONDITION_FAILED, text)
        .member("missing_env", missing)
        .member("required_env", template.required_env.clone())
        .member("template", template.dir.clone()))
}

fn told(org: String, imported: &[Imported]) -> ImportOrgResponse {
    let member = |one: &Imported| {
        let parent = one.parent.and_then(|parent| imported[parent].id());
        let (workspace, job) = match &one.made {
            Ok((workspace, job)) => (Some(workspace), job.as_ref()),
            Err(_) => (None, None),
        };
        ImportedMember {
            id: workspace.map(|workspace| workspace.id.0),
            name: one.name.clone(),
            parent_id: parent.map(|parent| parent.0),
            status: workspace.map_or_else(
                || "failed".to_owned(),
                |workspace| workspace.status.to_string(),
            ),
            error: one.made.as_ref().err().cloned(),
            job_id: job.map(|job| job.job_id.0),
        }
    };
    let job = imports::first_job(imported);
    let body = ImportedOrg {
        org,
        count: imported.iter().filter(|one| one.made.is_ok()).count(),
        workspaces: imported.iter().map(member).collect(),
        job_id: job.map(|job| job.0),
    };
    ImportOrgResponse::Imported(Json(body), job.map(|job| format!("/jobs/{job}")))
}
