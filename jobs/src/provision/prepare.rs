//! Everything a start needs, gathered in one transaction before the first outside call.

use longshore_backends::{ConfigFile, Delivers, StartSpec, WorkspaceAccess};
use longshore_base::{Secret, failpoint};
use longshore_fleet::config_source::ConfigSource;
use longshore_fleet::import::ImportedFiles;
use longshore_fleet::workspace::{Workspace, WorkspaceAccess as Access};
use longshore_fleet::{
    Fleet, PrepareError, config_source, environment, images, inbound_secret, preflight, tokens,
};
use longshore_ledger::{FencedTx, find_payload};
use uuid::Uuid;

use super::run::{ConfigPlan, Plan};

/// Readable by its owner alone: credentials.
const CREDENTIAL_MODE: u32 = 0o600;
const TOKEN_FILE: &str = ".auth_token";
const INBOUND_SECRET_FILE: &str = ".platform_inbound_secret";

/// Gathers secrets, environment, files and image, and rotates the workspace's token. To a backend that delivers the
/// environment alone go neither files nor a token: the agent's first registration brings it one (`spec: lifecycle` §3.5).
/// Nothing of it holds unless the caller commits.
pub(super) async fn prepare(
    tx: &mut FencedTx,
    fleet: &Fleet,
    workspace: &Workspace,
    plan: &Plan,
    delivers: Delivers,
    run: Uuid,
) -> Result<StartSpec, PrepareError> {
    let env = match delivers {
        Delivers::Everything => environment::build(tx.connection(), fleet, workspace).await?,
        Delivers::Environment => {
            environment::build_without_identity(tx.connection(), fleet, workspace).await?
        }
    };
    let imported = imported_files(tx, fleet, workspace).await?;
    let source = match &plan.config {
        ConfigPlan::AsCreated => config_source::resolve(fleet, workspace, &imported)?,
        ConfigPlan::Again { choice, kept } => {
            config_source::resolve_again(fleet, workspace, choice, kept.clone(), &imported)?
        }
    };
    let mut from_source = config_source::files(fleet, workspace, &source, env.model())?;
    if !matches!(source, ConfigSource::Kept(_)) {
        // Of two files of one name the later counts.
        from_source.extend(imported);
    }
    let effective = config_source::effective(&source, &from_source);
    let missing = preflight::missing_env(&effective, &env);
    if !missing.is_empty() {
        return Err(PrepareError::MissingEnv { names: missing });
    }
    if delivers == Delivers::Environment {
        failpoint::hit("provision.prepared").await;
        tokens::revoke_all(tx.connection(), workspace.id).await?;
        return Ok(spec_of(workspace, env.vars, run));
    }
    let image = images::choose(tx.connection(), fleet, workspace.id, &workspace.runtime).await;
    failpoint::hit("provision.prepared").await;
    let token = tokens::rotate(tx.connection(), workspace.id).await?;
    let inbound = inbound_secret::ensure(tx.connection(), fleet, workspace.id).await?;
    let mut files: Vec<ConfigFile> = from_source
        .into_iter()
        .map(|file| ConfigFile {
            path: file.path,
            mode: file.mode,
            bytes: file.bytes,
        })
        .collect();
    files.push(credential(TOKEN_FILE, token.expose()));
    files.extend(inbound.map(|secret| credential(INBOUND_SECRET_FILE, secret.expose())));
    let wants_session_reset = env.get("WORKSPACE_RESET_SESSION").is_some_and(|value| {
        matches!(
            value.expose().to_ascii_lowercase().as_str(),
            "1" | "t" | "true"
        )
    });
    Ok(StartSpec {
        pull_always: images::is_moving_tag(&image.reference),
        image: image.reference,
        files,
        workspace_dir: workspace
            .workspace_dir
            .clone()
            .or_else(|| fleet.config.workspace_dir.clone()),
        workspace_access: match workspace.workspace_access {
            Access::None => WorkspaceAccess::None,
            Access::ReadOnly => WorkspaceAccess::ReadOnly,
            Access::ReadWrite => WorkspaceAccess::ReadWrite,
        },
        reset_session: plan.reset_session || wants_session_reset,
        ..spec_of(workspace, env.vars, run)
    })
}

/// What an import brought for it, as long as no start has delivered that.
async fn imported_files(
    tx: &mut FencedTx,
    fleet: &Fleet,
    workspace: &Workspace,
) -> Result<Vec<config_source::ConfigFile>, PrepareError> {
    let payload = find_payload(tx.connection(), workspace.id)
        .await
        .map_err(|error| PrepareError::Imported(Box::new(error)))?;
    Ok(ImportedFiles::of_payload(payload).read(fleet))
}

/// What every backend is told.
fn spec_of(workspace: &Workspace, env: Vec<(String, Secret<String>)>, run: Uuid) -> StartSpec {
    StartSpec {
        workspace_id: workspace.id,
        runtime: workspace.runtime.clone(),
        tier: workspace.tier,
        image: String::new(),
        pull_always: false,
        env,
        files: Vec::new(),
        workspace_dir: None,
        workspace_access: WorkspaceAccess::None,
        reset_session: false,
        generation: workspace.provision_generation,
        run,
    }
}

fn credential(path: &str, value: &str) -> ConfigFile {
    ConfigFile {
        path: path.to_owned(),
        mode: CREDENTIAL_MODE,
        bytes: value.as_bytes().to_vec(),
    }
}
