//! The tables of secrets: write sealed, open all that an agent gets.

use std::collections::BTreeMap;

use longshore_base::{Secret, WorkspaceId};
use sqlx::PgConnection;

use super::{Owner, Sealed, UnsealError};
use crate::models::{MODEL_SECRET, PROVIDER_SECRET};
use crate::prepare::PrepareError;
use crate::{Fleet, FleetError};

/// Names a secret cannot have: they are the identity of the container (`spec: lifecycle` §2.4). Refused when written,
/// dropped when a row of another release has one.
pub const RESERVED_NAMES: [&str; 5] = [
    "WORKSPACE_ID",
    "PLATFORM_URL",
    "LONGSHORE_URL",
    "WORKSPACE_CONFIG_PATH",
    "TIER",
];

/// A name or value that cannot become an environment variable.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum InvalidSecretName {
    /// The platform sets this variable.
    #[error("secret name {0} is reserved")]
    Reserved(String),
    /// Empty, or with a character no variable's name can hold.
    #[error("secret names must be non-empty, without '=' and without NUL")]
    Malformed,
    /// No variable can hold NUL.
    #[error("the value of secret {0} must not contain NUL")]
    Value(String),
}

/// Checks what a client wants to store.
///
/// # Errors
/// [`InvalidSecretName`], whose text is fit for the client.
pub fn check_secret_name(name: &str, value: &str) -> Result<(), InvalidSecretName> {
    if RESERVED_NAMES.contains(&name) {
        return Err(InvalidSecretName::Reserved(name.to_owned()));
    }
    if name.is_empty() || name.contains(['=', '\0']) {
        return Err(InvalidSecretName::Malformed);
    }
    if value.contains('\0') {
        return Err(InvalidSecretName::Value(name.to_owned()));
    }
    Ok(())
}

/// Seals and stores a workspace's secret, over an earlier one of the name. The name was checked by the caller.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn save_workspace_secret(
    tx: &mut PgConnection,
    fleet: &Fleet,
    id: WorkspaceId,
    name: &str,
    value: &str,
) -> Result<(), FleetError> {
    mask(fleet, [(name, value)]);
    let sealed = fleet.keys.seal(Owner::Workspace(id), name, value);
    sqlx::query!(
        "INSERT INTO workspace_secrets (workspace_id, key, encrypted_value, encryption_version, key_id)
         VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (workspace_id, key) DO UPDATE SET
             encrypted_value = excluded.encrypted_value, encryption_version = excluded.encryption_version,
             key_id = excluded.key_id, updated_at = longshore_now()",
        id as WorkspaceId,
        name,
        sealed.bytes,
        sealed.version,
        sealed.key_id,
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Forgets a workspace's secret; whether there was one.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn delete_workspace_secret(
    tx: &mut PgConnection,
    id: WorkspaceId,
    name: &str,
) -> Result<bool, FleetError> {
    let done = sqlx::query!(
        "DELETE FROM workspace_secrets WHERE workspace_id = $1 AND key = $2",
        id as WorkspaceId,
        name,
    )
    .execute(tx)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Seals and stores a secret of every workspace, over an earlier one of the name. The name was checked by the caller.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn save_global_secret(
    tx: &mut PgConnection,
    fleet: &Fleet,
    name: &str,
    value: &str,
) -> Result<(), FleetError> {
    mask(fleet, [(name, value)]);
    let sealed = fleet.keys.seal(Owner::Global, name, value);
    sqlx::query!(
        "INSERT INTO global_secrets (key, encrypted_value, encryption_version, key_id) VALUES ($1, $2, $3, $4)
         ON CONFLICT (key) DO UPDATE SET
             encrypted_value = excluded.encrypted_value, encryption_version = excluded.encryption_version,
             key_id = excluded.key_id, updated_at = longshore_now()",
        name,
        sealed.bytes,
        sealed.version,
        sealed.key_id,
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Forgets a secret of every workspace; whether there was one.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn delete_global_secret(tx: &mut PgConnection, name: &str) -> Result<bool, FleetError> {
    let done = sqlx::query!("DELETE FROM global_secrets WHERE key = $1", name)
        .execute(tx)
        .await?;
    Ok(done.rows_affected() == 1)
}

/// Opens one secret of a workspace's own.
///
/// # Errors
/// [`FleetError::Unseal`], [`FleetError::Database`].
pub async fn find_workspace_secret(
    conn: &mut PgConnection,
    fleet: &Fleet,
    id: WorkspaceId,
    name: &str,
) -> Result<Option<Secret<String>>, FleetError> {
    let row = sqlx::query!(
        "SELECT encrypted_value, encryption_version, key_id FROM workspace_secrets
         WHERE workspace_id = $1 AND key = $2",
        id as WorkspaceId,
        name,
    )
    .fetch_optional(conn)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let sealed = Sealed {
        bytes: row.encrypted_value,
        version: row.encryption_version,
        key_id: row.key_id,
    };
    Ok(Some(fleet.keys.open(
        Owner::Workspace(id),
        name,
        &sealed,
    )?))
}

/// All secrets a workspace's agent gets, opened.
#[derive(Debug, Default)]
pub struct OpenedSecrets {
    /// Names and values, the workspace's own over the global ones.
    pub values: BTreeMap<String, Secret<String>>,
    /// What could not be opened; then the values are not whole and must not be used.
    pub failed: Vec<FailedSecret>,
}

/// A secret that could not be opened.
#[derive(Debug, PartialEq, Eq)]
pub struct FailedSecret {
    /// Global rather than the workspace's own.
    pub global: bool,
    /// Which one and why.
    pub error: UnsealError,
}

impl FailedSecret {
    /// As clients see it: `global:NAME` or `workspace:NAME`.
    #[must_use]
    pub fn label(&self) -> String {
        let scope = if self.global { "global" } else { "workspace" };
        format!("{scope}:{}", self.error.name)
    }
}

/// Opens the global secrets and a workspace's own over them. Every value opened here is masked from then on wherever
/// the redactor sees it.
///
/// # Errors
/// [`FleetError::Database`]; what does not open is in [`OpenedSecrets::failed`].
pub async fn open_secrets(
    conn: &mut PgConnection,
    fleet: &Fleet,
    id: WorkspaceId,
) -> Result<OpenedSecrets, FleetError> {
    let rows = sqlx::query!(
        r#"SELECT true AS "global!", key AS "key!", encrypted_value AS "encrypted_value!",
                  encryption_version AS "encryption_version!", key_id
           FROM global_secrets
           UNION ALL
           SELECT false, key, encrypted_value, encryption_version, key_id
           FROM workspace_secrets WHERE workspace_id = $1
           ORDER BY 1 DESC, 2"#,
        id as WorkspaceId,
    )
    .fetch_all(conn)
    .await?;
    let mut opened = OpenedSecrets::default();
    for row in rows {
        if RESERVED_NAMES.contains(&row.key.as_str()) {
            tracing::warn!(workspace.id = %id, secret.name = row.key, "a stored secret has a reserved name; left out");
            continue;
        }
        let owner = if row.global {
            Owner::Global
        } else {
            Owner::Workspace(id)
        };
        let sealed = Sealed {
            bytes: row.encrypted_value,
            version: row.encryption_version,
            key_id: row.key_id,
        };
        match fleet.keys.open(owner, &row.key, &sealed) {
            Ok(value) => {
                opened.values.insert(row.key, value);
            }
            Err(error) => opened.failed.push(FailedSecret {
                global: row.global,
                error,
            }),
        }
    }
    let values = opened.values.iter();
    mask(
        fleet,
        values.map(|(name, value)| (name.as_str(), value.expose().as_str())),
    );
    Ok(opened)
}

/// The names of all secrets a workspace's agent gets, in order, each once.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn list_secret_names(
    conn: &mut PgConnection,
    id: WorkspaceId,
) -> Result<Vec<String>, FleetError> {
    let mut names = sqlx::query_scalar!(
        r#"SELECT key AS "key!" FROM global_secrets
           UNION SELECT key FROM workspace_secrets WHERE workspace_id = $1"#,
        id as WorkspaceId,
    )
    .fetch_all(conn)
    .await?;
    names.retain(|name| !RESERVED_NAMES.contains(&name.as_str()));
    names.sort_unstable();
    Ok(names)
}

/// From here on the redactor masks these values; not those that only sit among the secrets and are shown to everybody.
fn mask<'a>(fleet: &Fleet, secrets: impl IntoIterator<Item = (&'a str, &'a str)>) {
    let hidden = secrets
        .into_iter()
        .filter(|(name, _)| !matches!(*name, MODEL_SECRET | PROVIDER_SECRET))
        .map(|(_, value)| value);
    fleet.redactor.learn(hidden);
}

/// All secrets for an agent's environment, or none: a bundle with holes would start an agent that fails later and
/// elsewhere.
///
/// # Errors
/// [`PrepareError::GlobalSecret`] or [`PrepareError::WorkspaceSecret`] for the first that does not open;
/// [`PrepareError::Fleet`].
pub async fn load_secrets(
    conn: &mut PgConnection,
    fleet: &Fleet,
    id: WorkspaceId,
) -> Result<BTreeMap<String, Secret<String>>, PrepareError> {
    let OpenedSecrets { values, failed } = open_secrets(conn, fleet, id).await?;
    match failed.into_iter().next() {
        None => Ok(values),
        Some(FailedSecret {
            global: true,
            error,
        }) => Err(PrepareError::GlobalSecret(error)),
        Some(FailedSecret { error, .. }) => Err(PrepareError::WorkspaceSecret(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_of_a_containers_identity_are_reserved() {
        for name in RESERVED_NAMES {
            assert_eq!(
                check_secret_name(name, "v"),
                Err(InvalidSecretName::Reserved(name.to_owned()))
            );
        }
        for bad in ["", "A=B", "A\0"] {
            assert_eq!(
                check_secret_name(bad, "v"),
                Err(InvalidSecretName::Malformed)
            );
        }
        assert!(check_secret_name("A", "a\0b").is_err());
        // Python's search path may be overridden.
        assert_eq!(check_secret_name("PYTHONPATH", "v"), Ok(()));
    }
}
