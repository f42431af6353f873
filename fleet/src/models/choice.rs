//! What a workspace's model and provider are, and choosing them (`spec: lifecycle` §8.3).

use longshore_base::WorkspaceId;
use sqlx::PgConnection;

use super::{MODEL_SECRET, PROVIDER_SECRET, derive_provider};
use crate::secrets::{delete_workspace_secret, find_workspace_secret, save_workspace_secret};
use crate::workspace::fields::check_model_text;
use crate::{Fleet, FleetError};

/// Checks what a client wants to store as `model` or `provider`. The error is fit for the client.
///
/// # Errors
/// The text of the first rule it breaks.
pub fn check_choice(field: &'static str, text: &str) -> Result<(), String> {
    check_model_text(field, text)
}

/// The model slug that a workspace was given, if any.
///
/// # Errors
/// [`FleetError::Unseal`], [`FleetError::Database`].
pub async fn find_model(
    conn: &mut PgConnection,
    fleet: &Fleet,
    id: WorkspaceId,
) -> Result<Option<String>, FleetError> {
    find(conn, fleet, id, MODEL_SECRET).await
}

/// The provider that a workspace was given or that its model stands for, if any.
///
/// # Errors
/// [`FleetError::Unseal`], [`FleetError::Database`].
pub async fn find_provider(
    conn: &mut PgConnection,
    fleet: &Fleet,
    id: WorkspaceId,
) -> Result<Option<String>, FleetError> {
    find(conn, fleet, id, PROVIDER_SECRET).await
}

/// Stores a model, or forgets it where the slug is empty. The provider follows it, unless somebody chose the provider:
/// then it is not what the model of before stands for.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn choose_model(
    tx: &mut PgConnection,
    fleet: &Fleet,
    id: WorkspaceId,
    slug: &str,
) -> Result<(), FleetError> {
    let before = readable(find_model(tx, fleet, id).await)?;
    let provider = readable(find_provider(tx, fleet, id).await)?;
    set(tx, fleet, id, MODEL_SECRET, slug).await?;
    if is_chosen(before.as_deref(), provider.as_deref()) {
        return Ok(());
    }
    let derived = derive_provider(slug).unwrap_or_default();
    set(tx, fleet, id, PROVIDER_SECRET, derived).await
}

/// Stores a provider, or forgets it where it is empty: an empty one would make the image guess.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn choose_provider(
    tx: &mut PgConnection,
    fleet: &Fleet,
    id: WorkspaceId,
    provider: &str,
) -> Result<(), FleetError> {
    set(tx, fleet, id, PROVIDER_SECRET, provider).await
}

/// Whether the stored provider is somebody's choice rather than what the stored model stands for.
fn is_chosen(model: Option<&str>, provider: Option<&str>) -> bool {
    provider.is_some_and(|provider| model.and_then(derive_provider) != Some(provider))
}

/// What cannot be opened cannot be kept either: it is replaced by what was asked for.
fn readable(found: Result<Option<String>, FleetError>) -> Result<Option<String>, FleetError> {
    match found {
        Err(FleetError::Unseal(error)) => {
            tracing::warn!(%error, "a stored choice is replaced unread");
            Ok(None)
        }
        other => other,
    }
}

async fn find(
    conn: &mut PgConnection,
    fleet: &Fleet,
    id: WorkspaceId,
    name: &str,
) -> Result<Option<String>, FleetError> {
    let found = find_workspace_secret(conn, fleet, id, name).await?;
    Ok(found
        .map(|value| value.expose().clone())
        .filter(|value| !value.is_empty()))
}

async fn set(
    tx: &mut PgConnection,
    fleet: &Fleet,
    id: WorkspaceId,
    name: &str,
    value: &str,
) -> Result<(), FleetError> {
    if value.is_empty() {
        delete_workspace_secret(tx, id, name).await?;
        return Ok(());
    }
    save_workspace_secret(tx, fleet, id, name, value).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_provider_is_somebodys_choice_unless_the_model_stands_for_it() {
        for (model, provider, chosen) in [
            (None, None, false),
            (Some("minimax/M2"), None, false),
            (Some("minimax/M2"), Some("minimax"), false),
            (Some("openai/gpt-4o"), Some("openrouter"), false),
            (Some("openai/gpt-4o"), Some("openai"), true),
            (Some("MiniMax-M2"), Some("minimax"), true),
            (None, Some("minimax"), true),
        ] {
            assert_eq!(is_chosen(model, provider), chosen, "{model:?} {provider:?}");
        }
    }
}
