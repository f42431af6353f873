//! The environment of a workspace's container (`spec: lifecycle` §2.4).

use longshore_base::{Secret, brand};
use sqlx::PgConnection;

use crate::Fleet;
use crate::models::{MODEL_SECRET, PROVIDER_SECRET};
use crate::prepare::PrepareError;
use crate::secrets::load_secrets;
use crate::workspace::Workspace;

/// The runtime that reads its model from variables of its own.
const HERMES: &str = "hermes";

/// The variables, in order. No name stands twice: a later value takes the place of an earlier one, at the end.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// Names and values.
    pub vars: Vec<(String, Secret<String>)>,
}

impl Environment {
    /// The value of a variable.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Secret<String>> {
        let found = self.vars.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value)
    }

    /// The names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.vars.iter().map(|(name, _)| name.as_str())
    }

    /// The model the agent is to use, if one is known.
    #[must_use]
    pub fn model(&self) -> Option<&str> {
        self.get(MODEL).map(|value| value.expose().as_str())
    }

    fn set(&mut self, name: &str, value: impl Into<String>) {
        self.put(name, Secret::new(value.into()));
    }

    fn put(&mut self, name: &str, value: Secret<String>) {
        self.vars.retain(|(known, _)| known != name);
        self.vars.push((name.to_owned(), value));
    }

    fn set_default(&mut self, name: &str, value: &str) {
        if self.get(name).is_none() {
            self.set(name, value);
        }
    }
}

const MODEL: &str = "MODEL";

/// Builds the environment of a workspace. From here on the redactor masks the values of its secrets.
///
/// # Errors
/// [`PrepareError::GlobalSecret`], [`PrepareError::WorkspaceSecret`], [`PrepareError::Fleet`].
pub async fn build(
    conn: &mut PgConnection,
    fleet: &Fleet,
    workspace: &Workspace,
) -> Result<Environment, PrepareError> {
    let mut env = Environment::default();
    add_identity(&mut env, fleet, workspace);
    complete(conn, fleet, workspace, env).await
}

/// The same without who the workspace is and where it finds what: for a backend that tells its agents in other ways.
///
/// # Errors
/// As [`build`].
pub async fn build_without_identity(
    conn: &mut PgConnection,
    fleet: &Fleet,
    workspace: &Workspace,
) -> Result<Environment, PrepareError> {
    complete(conn, fleet, workspace, Environment::default()).await
}

async fn complete(
    conn: &mut PgConnection,
    fleet: &Fleet,
    workspace: &Workspace,
    mut env: Environment,
) -> Result<Environment, PrepareError> {
    for (name, value) in load_secrets(conn, fleet, workspace.id).await? {
        env.put(&name, value);
    }
    add_git(&mut env, fleet, workspace);
    add_model(&mut env, &workspace.runtime);
    if let Some(role) = workspace.role.as_deref().filter(|role| !role.is_empty()) {
        env.set("LONGSHORE_AGENT_ROLE", role);
    }
    if let Some(parent) = workspace.parent_id {
        env.set("PARENT_ID", parent.to_string());
    }
    Ok(env)
}

fn add_identity(env: &mut Environment, fleet: &Fleet, workspace: &Workspace) {
    let config = &fleet.config;
    env.set("WORKSPACE_ID", workspace.id.to_string());
    env.set("WORKSPACE_CONFIG_PATH", "/configs");
    env.set("PLATFORM_URL", &*config.platform_url);
    env.set("LONGSHORE_URL", &*config.platform_url);
    env.set("TIER", workspace.tier.to_string());
    env.set("PLUGINS_DIR", "/plugins");
    env.set("PYTHONPATH", "/app");
    if let Some(url) = config
        .awareness_url
        .as_deref()
        .filter(|url| !url.is_empty())
    {
        env.set("AWARENESS_NAMESPACE", workspace.awareness_namespace());
        env.set("AWARENESS_URL", url);
    }
}

/// An author for the agent's commits, unless a secret names one.
fn add_git(env: &mut Environment, fleet: &Fleet, workspace: &Workspace) {
    if workspace.name.trim().is_empty() {
        return;
    }
    let name = format!("{} {}", brand::PRODUCT, workspace.name);
    // Git refuses to commit without an address. `.invalid` is nobody's.
    let fallback = format!("{}.invalid", brand::NAME);
    let domain = fleet.config.agent_git_email_domain.as_deref();
    let domain = domain
        .filter(|domain| !domain.is_empty())
        .unwrap_or(&fallback);
    let slug = match slug(&workspace.name) {
        slug if slug.is_empty() => workspace.id.container_name(),
        slug => slug,
    };
    let email = format!("{slug}@agents.{domain}");
    env.set_default("GIT_AUTHOR_NAME", &name);
    env.set_default("GIT_COMMITTER_NAME", &name);
    env.set_default("GIT_AUTHOR_EMAIL", &email);
    env.set_default("GIT_COMMITTER_EMAIL", &email);
}

/// Lower case; every run of other characters becomes one dash, none at the ends.
fn slug(name: &str) -> String {
    let lower = name.to_lowercase();
    let words = lower
        .split(|c: char| !c.is_ascii_lowercase() && !c.is_ascii_digit())
        .filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("-")
}

/// The model goes to every runtime under one name, over a secret of that name, and to hermes under its own names too.
fn add_model(env: &mut Environment, runtime: &str) {
    let model = env.get(MODEL_SECRET).map(|value| value.expose().clone());
    let Some(model) = model.filter(|model| !model.is_empty()) else {
        return;
    };
    env.set(MODEL, &*model);
    if runtime == HERMES {
        env.set("HERMES_DEFAULT_MODEL", &*model);
        env.set_default("HERMES_INFERENCE_MODEL", &model);
    }
    for name in [MODEL_SECRET, PROVIDER_SECRET] {
        if let Some(value) = env.get(name).cloned() {
            env.put(name, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(pairs: &[(&str, &str)]) -> Environment {
        let mut env = Environment::default();
        for (name, value) in pairs {
            env.set(name, *value);
        }
        env
    }

    fn plain(env: &Environment) -> Vec<(&str, &str)> {
        env.vars
            .iter()
            .map(|(name, value)| (name.as_str(), value.expose().as_str()))
            .collect()
    }

    #[test]
    fn a_later_value_takes_the_place_of_an_earlier_one() {
        let env = with(&[("A", "1"), ("B", "2"), ("A", "3")]);
        assert_eq!(plain(&env), [("B", "2"), ("A", "3")]);
    }

    #[test]
    fn the_model_reaches_every_runtime() {
        for (runtime, secrets, expected) in [
            ("claude-code", vec![], vec![]),
            (
                "claude-code",
                vec![("MODEL", "theirs"), ("MODEL_PROVIDER", "MiniMax-M2")],
                vec![("MODEL", "MiniMax-M2"), ("MODEL_PROVIDER", "MiniMax-M2")],
            ),
            (
                "hermes",
                vec![
                    ("LLM_PROVIDER", "minimax"),
                    ("MODEL_PROVIDER", "minimax/M2"),
                ],
                vec![
                    ("MODEL", "minimax/M2"),
                    ("HERMES_DEFAULT_MODEL", "minimax/M2"),
                    ("HERMES_INFERENCE_MODEL", "minimax/M2"),
                    ("MODEL_PROVIDER", "minimax/M2"),
                    ("LLM_PROVIDER", "minimax"),
                ],
            ),
            (
                "codex",
                vec![("MODEL_PROVIDER", "openai:gpt-4o")],
                vec![
                    ("MODEL", "openai:gpt-4o"),
                    ("MODEL_PROVIDER", "openai:gpt-4o"),
                ],
            ),
            (
                "codex",
                vec![("MODEL_PROVIDER", "")],
                vec![("MODEL_PROVIDER", "")],
            ),
        ] {
            let mut env = with(&secrets);
            add_model(&mut env, runtime);
            assert_eq!(plain(&env), expected, "{runtime}");
        }
    }

    #[test]
    fn a_slug_has_letters_digits_and_single_dashes() {
        for (name, expected) in [
            ("Research Lead", "research-lead"),
            ("  --A&&B__9  ", "a-b-9"),
            ("日本", ""),
        ] {
            assert_eq!(slug(name), expected);
        }
    }
}
