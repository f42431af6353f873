//! Registration: an agent says where it is and what it can, and its workspace is online.
//!
//! In two steps, because a name must be resolved in between and no transaction should wait for that:
//! [`check_registration`] judges the caller and the URL, [`register`] judges again under the row's lock and writes.

use longshore_base::{Secret, WorkspaceId};
use longshore_events::{NewEvent, append, names};
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection, PgPool};

use super::gate::{Call, GateError, Passed, Presented, pass};
use crate::status::{Change, RegisterVerdict, WorkspaceStatus, register_verdict};
use crate::url_safety::{self, UrlError};
use crate::workspace::{DeliveryMode, LOCAL_HOST, Workspace, lock_workspace};
use crate::{Fleet, FleetError, tokens};

/// What an agent sends, as it was sent.
#[derive(Clone, Debug)]
pub struct Registration {
    /// The workspace it speaks for.
    pub id: WorkspaceId,
    /// Where it is reached; empty means the same as none.
    pub url: Option<String>,
    /// Who it is.
    pub agent_card: Value,
    /// `push` or `poll`; absent leaves what is stored.
    pub delivery_mode: Option<String>,
    /// Its credential.
    pub presented: Presented,
}

/// A registration whose caller and URL were found good.
#[derive(Debug)]
pub struct CheckedRegistration {
    id: WorkspaceId,
    url: Option<String>,
    agent_card: Value,
    delivery_mode: Option<DeliveryMode>,
    presented: Presented,
}

/// Why a registration is refused. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// The caller may not, or there is no such workspace.
    #[error(transparent)]
    Gate(#[from] GateError),
    /// It was stopped on purpose; a late registration must not undo that.
    #[error("workspace is {status}")]
    Stopped {
        /// How.
        status: WorkspaceStatus,
    },
    /// Neither `push` nor `poll`.
    #[error("invalid delivery_mode")]
    InvalidDeliveryMode,
    /// The card cannot be stored.
    #[error("invalid request body")]
    InvalidCard,
    /// The URL is missing or must not be called. The text is the check's.
    #[error(transparent)]
    Url(UrlError),
}

impl From<FleetError> for RegisterError {
    fn from(error: FleetError) -> Self {
        Self::Gate(error.into())
    }
}

impl From<sqlx::Error> for RegisterError {
    fn from(error: sqlx::Error) -> Self {
        Self::Gate(error.into())
    }
}

/// A registration that was written.
#[derive(Debug)]
pub struct Registered {
    /// The workspace.
    pub id: WorkspaceId,
    /// Its status before.
    pub from: WorkspaceStatus,
    /// Where the platform reaches it from now on.
    pub url: String,
    /// Where other containers reach it.
    pub reported_url: Option<String>,
    /// Its first token, to be shown once.
    pub auth_token: Option<Secret<String>>,
    /// What the platform will authenticate with.
    pub inbound_secret: Option<Secret<String>>,
}

impl Registered {
    /// Does what must wait for the commit: presence, cache, and the poke for the event.
    pub async fn after_commit(&self, fleet: &Fleet) {
        fleet.presence.mark_alive(self.id).await;
        if !self.url.is_empty() {
            fleet.presence.cache_url(self.id, &self.url).await;
        }
        if let Some(url) = &self.reported_url {
            fleet.presence.cache_internal_url(self.id, url).await;
        }
        if let Some(secret) = &self.inbound_secret {
            fleet.inbound_secrets.put(self.id, secret);
        }
        fleet.bus.poke();
    }
}

/// Judges the caller, then what it says. Takes a connection only while it needs one, since resolving a name may take
/// seconds. Writes nothing but the time a token was last used.
///
/// # Errors
/// [`RegisterError`].
pub async fn check_registration(
    pool: &PgPool,
    fleet: &Fleet,
    registration: Registration,
) -> Result<CheckedRegistration, RegisterError> {
    let Registration {
        id,
        url,
        agent_card,
        delivery_mode,
        presented,
    } = registration;
    let mut conn = pool.acquire().await?;
    let Passed { workspace, .. } = pass(&mut conn, fleet, id, &presented, Call::Register).await?;
    drop(conn);
    check_not_stopped(workspace.status)?;
    if holds_nul(&agent_card) {
        return Err(RegisterError::InvalidCard);
    }
    let delivery_mode = match delivery_mode.as_deref() {
        None => None,
        Some(text) => Some(DeliveryMode::parse(text).ok_or(RegisterError::InvalidDeliveryMode)?),
    };
    let url = url.filter(|url| !url.is_empty());
    if url.is_some() || needs_url(&workspace, delivery_mode) {
        let text = url.as_deref().unwrap_or("");
        url_safety::check(&fleet.config.url_policy(), text, workspace.url_owner())
            .await
            .map_err(RegisterError::Url)?;
    }
    Ok(CheckedRegistration {
        id,
        url,
        agent_card,
        delivery_mode,
        presented,
    })
}

fn needs_url(workspace: &Workspace, asked: Option<DeliveryMode>) -> bool {
    match asked.or(workspace.delivery_mode) {
        Some(DeliveryMode::Poll) => false,
        Some(DeliveryMode::Push) => true,
        None => !workspace.is_external(),
    }
}

/// Postgres cannot store U+0000, not even inside JSON.
pub(super) fn holds_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(items) => items.iter().any(holds_nul),
        Value::Object(members) => members
            .iter()
            .any(|(key, value)| key.contains('\0') || holds_nul(value)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

fn check_not_stopped(status: WorkspaceStatus) -> Result<(), RegisterError> {
    match register_verdict(status) {
        RegisterVerdict::Accept => Ok(()),
        RegisterVerdict::Stopped => Err(RegisterError::Stopped { status }),
        RegisterVerdict::Gone => Err(GateError::Removed.into()),
    }
}

/// Brings the workspace online, under its row's lock: row, event, and a token if it has none. After the commit call
/// [`Registered::after_commit`].
///
/// # Errors
/// [`RegisterError`].
pub async fn register(
    tx: &mut PgConnection,
    fleet: &Fleet,
    checked: CheckedRegistration,
) -> Result<Registered, RegisterError> {
    let id = checked.id;
    // What was true before the lock may be over.
    lock_workspace(tx, id).await?.ok_or(GateError::NotFound)?;
    let Passed {
        workspace,
        has_live,
    } = pass(tx, fleet, id, &checked.presented, Call::Register).await?;
    check_not_stopped(workspace.status)?;
    let url = effective_url(&workspace, checked.url.as_deref());
    let inbound_secret = save(tx, &checked, &url).await?;
    let payload = json!({ "url": url, "agent_card": checked.agent_card });
    let event = NewEvent {
        event_type: names::WORKSPACE_ONLINE,
        workspace_id: Some(id),
        payload,
    };
    append(tx, event).await.map_err(FleetError::from)?;
    let auth_token = if has_live {
        None
    } else {
        first_token(tx, id).await
    };
    Ok(Registered {
        id,
        from: workspace.status,
        url,
        reported_url: checked.url,
        auth_token,
        inbound_secret: Some(inbound_secret),
    })
}

fn effective_url(workspace: &Workspace, reported: Option<&str>) -> String {
    let stored = workspace.url.as_str();
    let by_provisioner = !workspace.is_external() && stored.starts_with(LOCAL_HOST);
    if by_provisioner {
        return stored.to_owned();
    }
    reported.unwrap_or(stored).to_owned()
}

async fn save(
    tx: &mut PgConnection,
    checked: &CheckedRegistration,
    url: &str,
) -> Result<Secret<String>, FleetError> {
    let secret = sqlx::query_scalar!(
        r#"UPDATE workspaces
           SET status = $2, url = $3, agent_card = $4, delivery_mode = coalesce($5, delivery_mode),
               platform_inbound_secret = coalesce(platform_inbound_secret, $6),
               last_heartbeat_at = longshore_now(), updated_at = longshore_now()
           WHERE id = $1 AND status = ANY($7)
           RETURNING platform_inbound_secret AS "secret!""#,
        checked.id as WorkspaceId,
        WorkspaceStatus::Online as WorkspaceStatus,
        url,
        checked.agent_card,
        checked.delivery_mode.map(DeliveryMode::as_str),
        longshore_base::random::token(),
        Change::Registered.sources() as Vec<WorkspaceStatus>,
    )
    .fetch_optional(tx)
    .await?;
    secret
        .map(Secret::new)
        .ok_or(FleetError::NoWorkspace(checked.id))
}

/// A registration without a token is of more use than none: it can be issued later.
async fn first_token(tx: &mut PgConnection, id: WorkspaceId) -> Option<Secret<String>> {
    let issued = async {
        let mut savepoint = tx.begin().await?;
        let token = tokens::issue(&mut savepoint, id).await?;
        savepoint.commit().await?;
        Ok::<_, FleetError>(token)
    };
    match issued.await {
        Ok(token) => Some(token),
        Err(error) => {
            tracing::error!(
                workspace.id = %id, error = &error as &dyn std::error::Error,
                "no token could be issued at registration"
            );
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nul_is_found_wherever_it_hides() {
        assert!(holds_nul(&json!({ "a": [{ "b": "x\0" }] })));
        assert!(holds_nul(&json!({ "a\0": 1 })));
        assert!(!holds_nul(&json!({ "a": ["b", 1, null, true] })));
    }
}
