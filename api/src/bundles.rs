//! Bundles (`spec: rest-api` §6.16): a workspace and all below it as one document, taken out and brought in.

use std::collections::BTreeMap;

use longshore_base::WorkspaceId;
use longshore_fleet::bundle::{self, Bundle, SCHEMA, Skill, Tool};
use longshore_fleet::config_source::{self, ConfigFile, ConfigSource};
use longshore_fleet::models::find_model;
use longshore_fleet::secrets::open_secrets;
use longshore_fleet::status::WorkspaceStatus;
use longshore_fleet::workspace::{Workspace, find_workspace, list_children};
use longshore_jobs::import::Imported;
use longshore_jobs::provision;
use poem::http::StatusCode;
use poem_openapi::param::Path;
use poem_openapi::payload::Json;
use poem_openapi::{ApiResponse, Object, OpenApi};
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::auth::AdminAccess;
use crate::body::{self, JsonBody, JsonRequest};
use crate::document::Tag;
use crate::idempotency::{IdempotencyKey, Idempotent};
use crate::imports::{self, Words};
use crate::problem::{ApiError, ApiResult};
use crate::state::{ApiState, Shared};

const NOT_EXPORTED: &str = "failed to export bundle";
const NOT_IMPORTED: &str = "failed to import bundle";
const WORDS: Words = Words {
    invalid: BundleDocument::INVALID,
    failed: NOT_IMPORTED,
};

/// A workspace and all below it.
#[derive(Deserialize, Object)]
#[serde(default)]
#[oai(rename = "Bundle")]
pub(crate) struct BundleDocument {
    /// `1.0`.
    schema: String,
    /// Whose it is.
    id: String,
    name: String,
    /// The workspace's role.
    description: String,
    /// 1 to 4; 0 for what is usual where it is imported.
    tier: i64,
    /// Model slug; empty without one.
    model: String,
    system_prompt: String,
    skills: Vec<BundleSkill>,
    tools: Vec<BundleTool>,
    /// Texts by path; `config.yaml` is one of them.
    prompts: BTreeMap<String, String>,
    /// What stands below it, in the same shape.
    sub_workspaces: Vec<BundleDocument>,
    /// What its agent said of itself.
    agent_card: Option<Value>,
    author: String,
    version: String,
}

impl Default for BundleDocument {
    fn default() -> Self {
        Bundle::default().into()
    }
}

impl JsonRequest for BundleDocument {
    const INVALID: &'static str = "invalid bundle";
    const LIMIT: usize = body::FILES_LIMIT;
}

/// Something that an agent can do.
#[derive(Default, Deserialize, Object)]
#[serde(default)]
pub(crate) struct BundleSkill {
    /// Its directory's name.
    id: String,
    name: String,
    description: String,
    /// Texts by path, below its directory.
    files: BTreeMap<String, String>,
}

/// A tool.
#[derive(Default, Deserialize, Object)]
#[serde(default)]
pub(crate) struct BundleTool {
    id: String,
    config: Value,
}

impl From<Bundle> for BundleDocument {
    fn from(bundle: Bundle) -> Self {
        Self {
            schema: SCHEMA.to_owned(),
            id: bundle.id,
            name: bundle.name,
            description: bundle.description,
            tier: bundle.tier,
            model: bundle.model,
            system_prompt: bundle.system_prompt,
            skills: bundle.skills.into_iter().map(Into::into).collect(),
            tools: bundle.tools.into_iter().map(Into::into).collect(),
            prompts: bundle.prompts,
            sub_workspaces: bundle.sub_workspaces.into_iter().map(Into::into).collect(),
            agent_card: Some(bundle.agent_card.unwrap_or_else(|| json!({}))),
            author: bundle.author,
            version: bundle.version,
        }
    }
}

impl From<BundleDocument> for Bundle {
    fn from(document: BundleDocument) -> Self {
        let card = document.agent_card;
        Self {
            id: document.id,
            name: document.name,
            description: document.description,
            tier: document.tier,
            model: document.model,
            system_prompt: document.system_prompt,
            skills: document.skills.into_iter().map(Into::into).collect(),
            tools: document.tools.into_iter().map(Into::into).collect(),
            prompts: document.prompts,
            sub_workspaces: document
                .sub_workspaces
                .into_iter()
                .map(Into::into)
                .collect(),
            // One without anything in it is that of an agent that never registered.
            agent_card: card.filter(|card| card.as_object().is_some_and(|card| !card.is_empty())),
            author: document.author,
            version: document.version,
        }
    }
}

impl From<Skill> for BundleSkill {
    fn from(skill: Skill) -> Self {
        Self {
            id: skill.id,
            name: skill.name,
            description: skill.description,
            files: skill.files,
        }
    }
}

impl From<BundleSkill> for Skill {
    fn from(skill: BundleSkill) -> Self {
        Self {
            id: skill.id,
            name: skill.name,
            description: skill.description,
            files: skill.files,
        }
    }
}

impl From<Tool> for BundleTool {
    fn from(tool: Tool) -> Self {
        Self {
            id: tool.id,
            config: tool.config,
        }
    }
}

impl From<BundleTool> for Tool {
    fn from(tool: BundleTool) -> Self {
        Self {
            id: tool.id,
            config: tool.config,
        }
    }
}

/// A workspace that was imported, or was not.
#[derive(Object)]
#[oai(skip_serializing_if_is_none)]
pub(crate) struct ImportedBundle {
    /// Absent where it was not created.
    workspace_id: Option<Uuid>,
    name: String,
    /// `provisioning` or `failed`.
    status: String,
    /// Why it was not created.
    error: Option<String>,
    /// What stands below it.
    #[oai(skip_serializing_if_is_empty)]
    children: Vec<ImportedBundle>,
    /// The job that brings it up.
    job_id: Option<Uuid>,
}

#[derive(ApiResponse)]
pub(crate) enum ImportBundleResponse {
    /// They exist, and are being brought up.
    #[oai(status = 201)]
    Imported(
        Json<ImportedBundle>,
        /// The job that brings up the first of them.
        #[oai(header = "Location")]
        Option<String>,
    ),
}

pub(crate) struct BundlesApi;

#[OpenApi(tag = "Tag::Templates")]
impl BundlesApi {
    /// Shows a workspace and all below it as a bundle: what they are and the texts their agents work with, as they are in
    /// their containers or else in their templates. It holds no secrets, no memories and no conversations.
    #[oai(
        path = "/bundles/export/:id",
        method = "get",
        operation_id = "export_bundle"
    )]
    async fn export_bundle(
        &self,
        _access: AdminAccess,
        state: Shared<'_>,
        id: Path<Uuid>,
    ) -> ApiResult<Json<BundleDocument>> {
        let bundle = export(&state, WorkspaceId(id.0)).await?;
        Ok(Json(bundle.into()))
    }

    /// Creates the workspaces of a bundle and brings them up, all of them new ones: at most 200, in one step.
    #[oai(
        path = "/bundles/import",
        method = "post",
        operation_id = "import_bundle"
    )]
    async fn import_bundle(
        &self,
        access: AdminAccess,
        state: Shared<'_>,
        /// Makes the request safe to send again: a repetition with the same key and body gets the first answer.
        #[oai(name = "Idempotency-Key")]
        key: IdempotencyKey,
        body: JsonBody<BundleDocument>,
    ) -> ApiResult<Idempotent<ImportBundleResponse>> {
        let nodes = bundle::plan(&state.fleet, body.0.into())
            .map_err(|error| imports::refuse(error, WORDS))?;
        let (answer, queues) = key
            .once(&state, NOT_IMPORTED, async |tx| {
                let turn = (provision::Cause::BundleImport, None);
                let imported = imports::import(tx, &state, nodes, turn, &access.0, WORDS).await?;
                let queues = imports::queues(&imported);
                let job = imports::first_job(&imported);
                let answer = ImportBundleResponse::Imported(
                    Json(told(&imported)),
                    job.map(|job| format!("/jobs/{job}")),
                );
                Ok((answer, queues))
            })
            .await?;
        if let Some(queues) = queues {
            state.poke(&queues);
        }
        Ok(answer)
    }
}

/// As a tree again.
fn told(imported: &[Imported]) -> ImportedBundle {
    let mut below: Vec<Vec<ImportedBundle>> = imported.iter().map(|_| Vec::new()).collect();
    let mut top = None;
    // Parents come first, so from behind every workspace is complete when its turn comes.
    for (this, one) in imported.iter().enumerate().rev() {
        let mut children = std::mem::take(&mut below[this]);
        children.reverse();
        let (workspace, job) = match &one.made {
            Ok((workspace, job)) => (Some(workspace), job.as_ref()),
            Err(_) => (None, None),
        };
        let told = ImportedBundle {
            workspace_id: workspace.map(|workspace| workspace.id.0),
            name: one.name.clone(),
            status: workspace.map_or_else(
                || "failed".to_owned(),
                |workspace| workspace.status.to_string(),
            ),
            error: one.made.as_ref().err().cloned(),
            children,
            job_id: job.map(|job| job.job_id.0),
        };
        match one.parent {
            Some(parent) => below[parent].push(told),
            None => top = Some(told),
        }
    }
    top.unwrap_or_else(|| ImportedBundle {
        workspace_id: None,
        name: String::new(),
        status: "failed".to_owned(),
        error: None,
        children: Vec::new(),
        job_id: None,
    })
}

async fn export(state: &ApiState, id: WorkspaceId) -> ApiResult<Bundle> {
    let fleet = |error| ApiError::fleet(error, NOT_EXPORTED);
    let (found, children) = {
        let mut conn = state.connection(NOT_EXPORTED).await?;
        let found = find_workspace(&mut conn, id).await.map_err(fleet)?;
        (found, list_children(&mut conn, id).await.map_err(fleet)?)
    };
    let found = found
        .filter(|workspace| workspace.status != WorkspaceStatus::Removed)
        .ok_or_else(|| ApiError::not_found("bundle not found"))?;
    let mut bundle = describe(state, found).await?;
    for child in children {
        match Box::pin(export(state, child.id)).await {
            Ok(child) => bundle.sub_workspaces.push(child),
            // Removed since it was listed.
            Err(error) if error.status() == StatusCode::NOT_FOUND => {}
            Err(error) => return Err(error),
        }
    }
    Ok(bundle)
}

async fn describe(state: &ApiState, workspace: Workspace) -> ApiResult<Bundle> {
    let fleet = &state.fleet;
    let model = {
        let mut conn = state.connection(NOT_EXPORTED).await?;
        // What is opened is known to the redactor, and masked in what the agent may have written down.
        open_secrets(&mut conn, fleet, workspace.id)
            .await
            .map_err(|error| ApiError::fleet(error, NOT_EXPORTED))?;
        find_model(&mut conn, fleet, workspace.id).await
    };
    let model = model.unwrap_or_else(|error| {
        tracing::warn!(workspace.id = %workspace.id, %error, "its model is left out of the bundle");
        None
    });
    let files = match kept_files(state, &workspace).await {
        Some(files) => files,
        None => template_files(state, workspace.clone(), model.clone()).await?,
    };
    Ok(bundle::describe(fleet, &workspace, model, files))
}

/// What is in the workspace's container, if that can be looked into.
async fn kept_files(state: &ApiState, workspace: &Workspace) -> Option<Vec<ConfigFile>> {
    let backend = state.backends.choose().ok()?;
    match backend.read_files(workspace.id).await {
        Ok(files) => Some(
            files?
                .into_iter()
                .map(|file| ConfigFile {
                    path: file.path,
                    mode: file.mode,
                    bytes: file.bytes,
                })
                .collect(),
        ),
        Err(error) => {
            let error = error.chain();
            tracing::warn!(workspace.id = %workspace.id, error, "its container cannot be looked into; its template stands for it");
            None
        }
    }
}

async fn template_files(
    state: &ApiState,
    workspace: Workspace,
    model: Option<String>,
) -> ApiResult<Vec<ConfigFile>> {
    let fleet = state.fleet.clone();
    let read = tokio::task::spawn_blocking(move || {
        let source = config_source::resolve(&fleet, &workspace, &[]).unwrap_or_else(|error| {
            tracing::warn!(workspace.id = %workspace.id, %error, "its template cannot stand for it");
            ConfigSource::Generated
        });
        config_source::files(&fleet, &workspace, &source, model.as_deref())
    });
    read.await
        .map_err(|error| ApiError::internal(NOT_EXPORTED, error))?
        .map_err(|error| ApiError::internal(NOT_EXPORTED, error))
}
