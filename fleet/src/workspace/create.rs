//! Creating a workspace: all checks, then one transaction's worth of rows (`spec: lifecycle` §1.3, `rest-api` §6.2.1).

use std::collections::BTreeMap;

use longshore_base::{Secret, WorkspaceId};
use longshore_events::{NewEvent, append, names};
use serde_json::json;
use sqlx::{Connection as _, PgConnection};

use super::fields::{
    TextFields, TierRefusal, check_texts, check_tier, is_allowed_dir, non_empty, parse_access,
};
use super::tree::{TreeLock, lock_tree};
use super::{
    DeliveryMode, EXTERNAL, Origin, Workspace, WorkspaceAccess, awareness_namespace, load_workspace,
};
use crate::config::FleetConfig;
use crate::memories::{self, MemorySeed};
use crate::models::{MODEL_SECRET, PROVIDER_SECRET, derive_provider};
use crate::secrets::{check_secret_name, save_workspace_secret};
use crate::status::WorkspaceStatus;
use crate::url_safety::{self, Own, UrlError};
use crate::{Fleet, FleetError};

/// A place on the canvas.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Position {
    /// To the right.
    pub x: f64,
    /// Down.
    pub y: f64,
}

/// What a client asks for, as it was sent. Empty texts mean the same as none.
#[derive(Clone, Debug, Default)]
pub struct NewWorkspace {
    /// Name; required.
    pub name: String,
    /// What the agent is there for.
    pub role: Option<String>,
    /// Template, a directory name.
    pub template: Option<String>,
    /// Tier; zero means none.
    pub tier: Option<i64>,
    /// Model slug.
    pub model: Option<String>,
    /// Runtime; an unknown one becomes the default.
    pub runtime: Option<String>,
    /// The same as the runtime `external`.
    pub external: bool,
    /// Where an external agent is reached; ignored for others.
    pub url: Option<String>,
    /// `push` or `poll`; for external workspaces.
    pub delivery_mode: Option<String>,
    /// Host directory.
    pub workspace_dir: Option<String>,
    /// What of it the agent gets.
    pub workspace_access: Option<String>,
    /// The parent's id.
    pub parent_id: Option<String>,
    /// Monthly ceiling in cents.
    pub budget_limit: Option<i64>,
    /// Secrets to start with.
    pub secrets: BTreeMap<String, Secret<String>>,
    /// Tasks at a time; one when not positive.
    pub max_concurrent_tasks: i64,
    /// Where it stands on the canvas.
    pub canvas: Option<Position>,
    /// Memories to start with.
    pub initial_memories: Vec<MemorySeed>,
    /// What it is made from.
    pub origin: Origin,
}

/// Why a workspace was not created. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// No name.
    #[error("invalid workspace payload")]
    MissingName,
    /// A field breaks its rule.
    #[error("invalid workspace fields")]
    InvalidFields {
        /// Which and how, for the client.
        detail: String,
    },
    /// The template's name leads out of the root.
    #[error("invalid template")]
    InvalidTemplate,
    /// A tier above what this installation allows.
    #[error("tier {tier} is not allowed here: LONGSHORE_MAX_TIER is {max}")]
    TierNotAllowed {
        /// The tier asked for.
        tier: i32,
        /// The highest allowed.
        max: i32,
    },
    /// A host directory that no agent gets.
    #[error("invalid workspace directory")]
    InvalidDirectory,
    /// An unknown access, or one without a directory.
    #[error("invalid workspace access")]
    InvalidAccess,
    /// No such parent, or it is removed.
    #[error("invalid parent_id")]
    UnknownParent,
    /// Neither `push` nor `poll`, or not for this workspace.
    #[error("invalid delivery_mode")]
    InvalidDeliveryMode,
    /// The URL must not be called. The text is the check's.
    #[error(transparent)]
    Url(UrlError),
    /// A secret was not stored.
    #[error("failed to save secret: {name}")]
    SaveSecret {
        /// Which.
        name: String,
        /// Why.
        source: FleetError,
    },
    /// Nobody's mistake.
    #[error("failed to create workspace")]
    Fleet(#[from] FleetError),
}

impl From<sqlx::Error> for CreateError {
    fn from(error: sqlx::Error) -> Self {
        Self::Fleet(error.into())
    }
}

impl From<TierRefusal> for CreateError {
    fn from(refusal: TierRefusal) -> Self {
        match refusal {
            TierRefusal::OutOfRange => invalid("tier must be 1, 2, 3 or 4"),
            TierRefusal::NotAllowed { tier, max } => Self::TierNotAllowed { tier, max },
        }
    }
}

fn invalid(detail: impl Into<String>) -> CreateError {
    CreateError::InvalidFields {
        detail: detail.into(),
    }
}

/// What will be written: everything parsed, nothing left to judge but the parent.
struct Checked {
    id: WorkspaceId,
    name: String,
    role: Option<String>,
    template: Option<String>,
    tier: i32,
    model: Option<String>,
    runtime: String,
    url: Option<String>,
    delivery_mode: Option<DeliveryMode>,
    workspace_dir: Option<String>,
    access: WorkspaceAccess,
    parent_id: Option<WorkspaceId>,
    budget_limit: Option<i64>,
    secrets: BTreeMap<String, Secret<String>>,
    max_concurrent_tasks: i32,
    canvas: Position,
    origin: Origin,
}

impl Checked {
    /// Managed workspaces are brought up by a job. An external one is there already if it says where, and is awaited
    /// otherwise.
    const fn status(&self, external: bool) -> WorkspaceStatus {
        match (external, &self.url) {
            (false, _) => WorkspaceStatus::Provisioning,
            (true, Some(_)) => WorkspaceStatus::Online,
            (true, None) => WorkspaceStatus::AwaitingAgent,
        }
    }
}

/// Creates a workspace: row, secrets, model, layout, memories and events. The job that brings a managed one up is the
/// caller's to request in the same transaction, and so is the token of an awaited external one
/// ([`crate::connection::issue_connection`]). After the commit: poke the bus; for an external one with a URL, cache it.
///
/// The tree stays held until the transaction ends when there is a parent, so keep it short.
///
/// # Errors
/// [`CreateError`]; all but its last variant before anything was written.
pub async fn create_workspace(
    tx: &mut PgConnection,
    fleet: &Fleet,
    mut new: NewWorkspace,
) -> Result<Workspace, CreateError> {
    let memories = std::mem::take(&mut new.initial_memories);
    let checked = check(fleet, new).await?;
    hold_parent(tx, checked.parent_id).await?;
    let id = checked.id;
    let external = checked.runtime == EXTERNAL;
    insert_row(tx, &checked, checked.status(external)).await?;
    save_secrets(tx, fleet, &checked).await?;
    place(tx, id, checked.canvas).await;
    memories::seed(tx, id, &awareness_namespace(id), &memories).await;
    append_events(tx, &checked, external).await?;
    Ok(load_workspace(tx, id).await?)
}

async fn check(fleet: &Fleet, new: NewWorkspace) -> Result<Checked, CreateError> {
    if new.name.is_empty() {
        return Err(CreateError::MissingName);
    }
    check_texts(&TextFields {
        name: Some(&new.name),
        role: new.role.as_deref(),
        model: new.model.as_deref(),
        runtime: new.runtime.as_deref(),
    })
    .map_err(invalid)?;
    let id = WorkspaceId::random();
    let tier = check_new_tier(new.tier, fleet.config.max_tier)?;
    let template = non_empty(new.template);
    let (runtime, model) = choose_runtime(
        fleet,
        template.as_deref(),
        if new.external {
            Some(EXTERNAL.to_owned())
        } else {
            non_empty(new.runtime)
        },
        non_empty(new.model),
    )?;
    let workspace_dir = non_empty(new.workspace_dir);
    if workspace_dir
        .as_deref()
        .is_some_and(|dir| !is_allowed_dir(dir))
    {
        return Err(CreateError::InvalidDirectory);
    }
    let access = parse_access(new.workspace_access.as_deref(), workspace_dir.as_deref())
        .ok_or(CreateError::InvalidAccess)?;
    let parent_id = non_empty(new.parent_id)
        .map(|text| text.parse().map_err(|_| CreateError::UnknownParent))
        .transpose()?;
    for (name, value) in &new.secrets {
        check_secret_name(name, value.expose()).map_err(|error| invalid(error.to_string()))?;
    }
    let external = runtime == EXTERNAL;
    let delivery_mode = parse_delivery_mode(new.delivery_mode.as_deref(), external)?;
    let url = non_empty(new.url).filter(|_| external);
    if let Some(url) = &url {
        url_safety::check(&fleet.config.url_policy(), url, Own::Nothing)
            .await
            .map_err(CreateError::Url)?;
    }
    Ok(Checked {
        id,
        name: new.name,
        role: non_empty(new.role),
        template,
        tier,
        model,
        runtime,
        url,
        delivery_mode,
        workspace_dir,
        access,
        parent_id,
        budget_limit: new.budget_limit,
        secrets: new.secrets,
        max_concurrent_tasks: i32::try_from(new.max_concurrent_tasks.max(1)).unwrap_or(i32::MAX),
        canvas: new.canvas.unwrap_or_default(),
        origin: new.origin,
    })
}

/// The tier of a new workspace, which may ask for one.
///
/// # Errors
/// [`CreateError::InvalidFields`], [`CreateError::TierNotAllowed`].
pub(crate) fn check_new_tier(asked: Option<i64>, max: i32) -> Result<i32, CreateError> {
    let tier = match asked {
        // The default is what an installation that allows less gives.
        None | Some(0) => FleetConfig::DEFAULT_TIER.min(max),
        Some(tier) => i32::try_from(tier).unwrap_or(-1),
    };
    Ok(check_tier(tier, max)?)
}

fn choose_runtime(
    fleet: &Fleet,
    template: Option<&str>,
    mut runtime: Option<String>,
    mut model: Option<String>,
) -> Result<(String, Option<String>), CreateError> {
    if let Some(template) = template {
        let declared = fleet
            .templates
            .read(template)
            .map_err(|_| CreateError::InvalidTemplate)?;
        runtime = runtime.or(declared.runtime);
        model = model.or(declared.model);
    }
    let runtime = fleet.runtimes.sanitize(runtime.as_deref().unwrap_or(""));
    Ok((runtime, model))
}

fn parse_delivery_mode(
    text: Option<&str>,
    external: bool,
) -> Result<Option<DeliveryMode>, CreateError> {
    let asked = match text {
        None | Some("") => None,
        Some(text) => Some(DeliveryMode::parse(text).ok_or(CreateError::InvalidDeliveryMode)?),
    };
    match (external, asked) {
        (true, asked) => Ok(asked),
        // A boot in progress must look transient, so a managed workspace never lacks a mode.
        (false, None | Some(DeliveryMode::Push)) => Ok(Some(DeliveryMode::Push)),
        (false, Some(DeliveryMode::Poll)) => Err(CreateError::InvalidDeliveryMode),
    }
}

/// Finds the parent and keeps it from being removed, or anything from being moved, until the child is committed.
async fn hold_parent(
    tx: &mut PgConnection,
    parent: Option<WorkspaceId>,
) -> Result<(), CreateError> {
    let Some(parent) = parent else { return Ok(()) };
    lock_tree(tx, TreeLock::Shared).await?;
    if is_live(tx, parent).await? {
        Ok(())
    } else {
        Err(CreateError::UnknownParent)
    }
}

/// Whether a workspace exists and is not removed.
pub(super) async fn is_live(conn: &mut PgConnection, id: WorkspaceId) -> Result<bool, FleetError> {
    Ok(sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT 1 FROM workspaces WHERE id = $1 AND status <> $2) AS "yes!""#,
        id as WorkspaceId,
        WorkspaceStatus::Removed as WorkspaceStatus,
    )
    .fetch_one(conn)
    .await?)
}

async fn insert_row(
    tx: &mut PgConnection,
    checked: &Checked,
    status: WorkspaceStatus,
) -> Result<(), FleetError> {
    sqlx::query!(
        "INSERT INTO workspaces (id, name, role, tier, status, runtime, template, parent_id, awareness_namespace,
                                 workspace_dir, workspace_access, url, delivery_mode, budget_limit,
                                 max_concurrent_tasks, source_bundle_id, agent_card)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)",
        checked.id as WorkspaceId,
        checked.name,
        checked.role,
        checked.tier,
        status as WorkspaceStatus,
        checked.runtime,
        checked.template,
        checked.parent_id as Option<WorkspaceId>,
        awareness_namespace(checked.id),
        checked.workspace_dir,
        checked.access.as_str(),
        checked.url.as_deref().unwrap_or(""),
        checked.delivery_mode.map(DeliveryMode::as_str),
        checked.budget_limit,
        checked.max_concurrent_tasks,
        checked.origin.bundle_id(),
        checked.origin.agent_card(),
    )
    .execute(tx)
    .await?;
    Ok(())
}

async fn save_secrets(
    tx: &mut PgConnection,
    fleet: &Fleet,
    checked: &Checked,
) -> Result<(), CreateError> {
    let given = checked
        .secrets
        .iter()
        .map(|(name, value)| (name.as_str(), value.expose().as_str()));
    // A restart carries no model, so these two are the only memory of the choice. They come last and win.
    let model = checked.model.as_deref();
    let chosen = [
        model.map(|slug| (MODEL_SECRET, slug)),
        model
            .and_then(derive_provider)
            .map(|provider| (PROVIDER_SECRET, provider)),
    ];
    for (name, value) in given.chain(chosen.into_iter().flatten()) {
        save_workspace_secret(tx, fleet, checked.id, name, value)
            .await
            .map_err(|source| CreateError::SaveSecret {
                name: name.to_owned(),
                source,
            })?;
    }
    Ok(())
}

/// Puts it on the canvas. A workspace without a place is a nuisance, not a failure.
async fn place(tx: &mut PgConnection, id: WorkspaceId, at: Position) {
    async fn insert(
        tx: &mut PgConnection,
        id: WorkspaceId,
        at: Position,
    ) -> Result<(), sqlx::Error> {
        let mut savepoint = tx.begin().await?;
        sqlx::query!(
            "INSERT INTO canvas_layouts (workspace_id, x, y) VALUES ($1, $2, $3)",
            id as WorkspaceId,
            at.x,
            at.y,
        )
        .execute(&mut *savepoint)
        .await?;
        savepoint.commit().await
    }
    if let Err(error) = insert(tx, id, at).await {
        tracing::warn!(workspace.id = %id, %error, "the place on the canvas was not stored");
    }
}

async fn append_events(
    tx: &mut PgConnection,
    checked: &Checked,
    external: bool,
) -> Result<(), FleetError> {
    let event = |event_type, payload| NewEvent {
        event_type,
        workspace_id: Some(checked.id),
        payload,
    };
    let mut created =
        json!({ "name": checked.name, "tier": checked.tier, "runtime": checked.runtime });
    checked
        .origin
        .tell(&mut created, checked.parent_id, checked.canvas);
    append(tx, event(names::WORKSPACE_PROVISIONING, created)).await?;
    let there = json!({ "name": checked.name, "external": true });
    match checked.status(external) {
        WorkspaceStatus::Online => append(tx, event(names::WORKSPACE_ONLINE, there)).await?,
        WorkspaceStatus::AwaitingAgent => {
            append(tx, event(names::WORKSPACE_AWAITING_AGENT, there)).await?;
        }
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_omitted_tier_is_two_or_the_most_there_is() {
        assert!(matches!(check_new_tier(None, 2), Ok(2)));
        assert!(matches!(check_new_tier(Some(0), 4), Ok(2)));
        assert!(matches!(check_new_tier(None, 1), Ok(1)));
        assert!(matches!(check_new_tier(Some(4), 4), Ok(4)));
        let refused = check_new_tier(Some(4), 2).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "tier 4 is not allowed here: LONGSHORE_MAX_TIER is 2"
        );
        for out in [-1, 5, 9, i64::MAX] {
            assert!(matches!(
                check_new_tier(Some(out), 4),
                Err(CreateError::InvalidFields { .. })
            ));
        }
    }

    #[test]
    fn a_managed_workspace_is_pushed_to_and_an_external_one_may_choose() {
        assert!(matches!(
            parse_delivery_mode(None, false),
            Ok(Some(DeliveryMode::Push))
        ));
        assert!(parse_delivery_mode(Some("poll"), false).is_err());
        assert!(matches!(parse_delivery_mode(None, true), Ok(None)));
        assert!(matches!(
            parse_delivery_mode(Some("poll"), true),
            Ok(Some(DeliveryMode::Poll))
        ));
        assert!(parse_delivery_mode(Some("PUSH"), true).is_err());
    }
}
