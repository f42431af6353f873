//! Teams (`spec: lifecycle` §1.5, `rest-api` §6.17): the workspaces that the template of a workspace's name puts below it.

use longshore_base::WorkspaceId;
use longshore_events::names;
use serde::Deserialize;
use serde_json::json;
use sqlx::PgConnection;

use super::event::tell;
use super::fields::non_empty;
use super::tree::{TreeLock, lock_tree};
use super::{
    CreateError, NewWorkspace, Origin, Workspace, create_workspace, find_workspace, lock_workspace,
};
use crate::restart_template::named_like;
use crate::status::WorkspaceStatus;
use crate::templates::{Templates, read_config};
use crate::{Fleet, FleetError};

/// Why a team was not made. The texts are part of the API. Nothing may be committed then.
#[derive(Debug, thiserror::Error)]
pub enum ExpandError {
    /// There is no such row.
    #[error("workspace not found")]
    NotFound,
    /// It is a tombstone.
    #[error("workspace removed")]
    Removed,
    /// No template has the workspace's name.
    #[error("no config found for workspace")]
    NoConfig,
    /// The template puts nothing below it.
    #[error("workspace has no sub_workspaces defined in config")]
    NoMembers,
    /// The template's configuration cannot be read.
    #[error("failed to read config")]
    Unreadable(String),
    /// It says nothing that could be understood, or names a member that cannot be.
    #[error("failed to parse config")]
    Malformed(String),
    /// The workspace has a tier that no new one gets.
    #[error(transparent)]
    Tier(CreateError),
    /// Nobody's mistake.
    #[error("the team could not be made")]
    Fleet(#[from] FleetError),
}

#[derive(Deserialize)]
struct TeamConfig {
    #[serde(default)]
    sub_workspaces: Option<Vec<Member>>,
}

#[derive(Deserialize)]
struct Member {
    /// A template.
    #[serde(default)]
    config: Option<String>,
    /// The template's name, unless it says otherwise.
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    role: Option<String>,
}

/// Makes the workspaces that the template of this one's name puts below it: rows, events, and that of the whole on the
/// parent. The jobs that bring them up are the caller's to request in the same transaction. Safe to repeat only in that
/// each call makes a team of its own. Holds the tree and the parent's row until the transaction ends.
///
/// # Errors
/// [`ExpandError`].
pub async fn expand_team(
    tx: &mut PgConnection,
    fleet: &Fleet,
    id: WorkspaceId,
) -> Result<Vec<Workspace>, ExpandError> {
    // Before anything is locked: every template may have to be read.
    let named = find_workspace(tx, id).await?.ok_or(ExpandError::NotFound)?;
    let members = match named.status {
        WorkspaceStatus::Removed => return Err(ExpandError::Removed),
        _ => read_members(fleet, named.name).await?,
    };
    lock_tree(tx, TreeLock::Shared).await?;
    let parent = lock_workspace(tx, id).await?.ok_or(ExpandError::NotFound)?;
    if parent.status == WorkspaceStatus::Removed {
        return Err(ExpandError::Removed);
    }
    let mut team = Vec::new();
    for member in members {
        let new = new_member(member, &parent)?;
        let name = new.name.clone();
        let made = create_workspace(tx, fleet, new).await;
        team.push(made.map_err(|error| refuse(&name, error))?);
    }
    let told: Vec<_> = team
        .iter()
        .map(|child| json!({ "id": child.id, "name": child.name, "role": child.role.as_deref().unwrap_or("") }))
        .collect();
    let payload = json!({ "children": told });
    tell(tx, id, names::WORKSPACE_EXPANDED, payload).await?;
    Ok(team)
}

async fn read_members(fleet: &Fleet, name: String) -> Result<Vec<Member>, ExpandError> {
    let templates = fleet.templates.clone();
    tokio::task::spawn_blocking(move || members_of(&templates, &name))
        .await
        .unwrap_or_else(|panic| Err(ExpandError::Unreadable(panic.to_string())))
}

fn members_of(templates: &Templates, name: &str) -> Result<Vec<Member>, ExpandError> {
    let found = named_like(templates, None, name).and_then(|found| found.directory);
    let directory = found.ok_or(ExpandError::NoConfig)?;
    let text = read_config(&directory)
        .map_err(ExpandError::Unreadable)?
        .ok_or(ExpandError::NoConfig)?;
    let config: TeamConfig =
        serde_norway::from_str(&text).map_err(|error| ExpandError::Malformed(error.to_string()))?;
    config
        .sub_workspaces
        .filter(|members| !members.is_empty())
        .ok_or(ExpandError::NoMembers)
}

fn new_member(member: Member, parent: &Workspace) -> Result<NewWorkspace, ExpandError> {
    let template = non_empty(member.config);
    let name = non_empty(member.name).or_else(|| template.clone());
    let nameless = || ExpandError::Malformed("a sub_workspace has neither name nor config".into());
    Ok(NewWorkspace {
        name: name.ok_or_else(nameless)?,
        role: member.role,
        template,
        // A stored tier that there is not behaves as the default one.
        tier: Some(i64::from(parent.tier)).filter(|tier| (1..=4).contains(tier)),
        parent_id: Some(parent.id.to_string()),
        origin: Origin::Team,
        ..NewWorkspace::default()
    })
}

fn refuse(name: &str, error: CreateError) -> ExpandError {
    let said = match error {
        CreateError::Fleet(error) | CreateError::SaveSecret { source: error, .. } => {
            return ExpandError::Fleet(error);
        }
        CreateError::TierNotAllowed { .. } => return ExpandError::Tier(error),
        CreateError::InvalidFields { detail } => detail,
        CreateError::MissingName
        | CreateError::InvalidTemplate
        | CreateError::InvalidDirectory
        | CreateError::InvalidAccess
        | CreateError::UnknownParent
        | CreateError::InvalidDeliveryMode
        | CreateError::Url(_) => error.to_string(),
    };
    ExpandError::Malformed(format!("sub_workspace {name:?}: {said}"))
}
