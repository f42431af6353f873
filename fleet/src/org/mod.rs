//! Templates of whole organisations (`spec: lifecycle` §1.5): directories of `org-templates` below the templates' root, each
//! with an `org.yaml` that says which workspaces there are, what they have in common and what stands below what.

mod env_file;
mod plan;

pub use plan::plan;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use sqlx::PgConnection;

use crate::FleetError;
use crate::import::ImportError;
use crate::restart_template::ORG_TEMPLATES;
use crate::templates::Templates;

/// The file that makes a directory a template of an organisation.
pub const ORG_FILE: &str = "org.yaml";
/// An organisation is a page or two; more is a mistake.
const MAX_BYTES: u64 = 1 << 20;

/// An organisation's template.
#[derive(Clone, Debug, Default)]
pub struct OrgTemplate {
    /// Its directory's name.
    pub dir: String,
    /// Name for people.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// Variables without which it is not imported.
    pub required_env: Vec<String>,
    /// Variables that it would like.
    pub recommended_env: Vec<String>,
    document: Document,
}

/// Why a template of an organisation cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum OrgError {
    /// There is none of this name.
    #[error("org template not found")]
    NotFound,
    /// It breaks a rule; the text says which.
    #[error("invalid org template")]
    Invalid(String),
    /// A workspace of it cannot be created.
    #[error(transparent)]
    Import(#[from] ImportError),
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Document {
    name: Option<String>,
    description: Option<String>,
    defaults: Settings,
    workspaces: Vec<Member>,
    global_memories: Vec<Memory>,
    required_env: Vec<String>,
    recommended_env: Vec<String>,
}

/// What a workspace may say, and the organisation for all.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Settings {
    runtime: Option<String>,
    tier: Option<i64>,
    model: Option<String>,
    template: Option<String>,
    plugins: Vec<String>,
    category_routing: BTreeMap<String, Vec<String>>,
    initial_prompt: Option<String>,
    idle_prompt: Option<String>,
    idle_interval_seconds: i64,
    workspace_dir: Option<String>,
    workspace_access: Option<String>,
    required_env: Vec<String>,
    recommended_env: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Member {
    name: String,
    role: Option<String>,
    files_dir: Option<String>,
    system_prompt: Option<String>,
    external: bool,
    url: Option<String>,
    max_concurrent_tasks: i64,
    canvas: Option<Place>,
    initial_memories: Vec<Memory>,
    #[serde(flatten)]
    settings: Settings,
    children: Vec<Member>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
struct Place {
    x: f64,
    y: f64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Memory {
    content: String,
    scope: String,
}

impl Member {
    /// It itself and all below it.
    fn count(&self) -> usize {
        1 + self.children.iter().map(Self::count).sum::<usize>()
    }

    fn names(&self, of: fn(&Settings) -> &Vec<String>, into: &mut Vec<String>) {
        into.extend(of(&self.settings).iter().cloned());
        for child in &self.children {
            child.names(of, into);
        }
    }
}

impl OrgTemplate {
    /// Workspaces it makes.
    #[must_use]
    pub fn workspaces(&self) -> usize {
        self.document.workspaces.iter().map(Member::count).sum()
    }

    /// Reads the one of this name. Reads the disk.
    ///
    /// # Errors
    /// [`OrgError::NotFound`], [`OrgError::Invalid`].
    pub fn read(templates: &Templates, dir: &str) -> Result<Self, OrgError> {
        let directory = directory(templates, dir)?.ok_or(OrgError::NotFound)?;
        let path = directory.join(ORG_FILE);
        let meta = std::fs::metadata(&path).map_err(|_| OrgError::NotFound)?;
        if !meta.is_file() || meta.len() > MAX_BYTES {
            let text = format!("{ORG_FILE} is no file of at most 1 MiB");
            return Err(OrgError::Invalid(text));
        }
        let invalid = |error: String| OrgError::Invalid(format!("{ORG_FILE}: {error}"));
        let text = std::fs::read_to_string(&path).map_err(|error| invalid(error.to_string()))?;
        let document: Document =
            serde_norway::from_str(&text).map_err(|error| invalid(error.to_string()))?;
        Self::of(dir, document).map_err(invalid)
    }

    fn of(dir: &str, document: Document) -> Result<Self, String> {
        let all = |of: fn(&Settings) -> &Vec<String>, own: &[String]| {
            let mut names = own.to_vec();
            names.extend(of(&document.defaults).iter().cloned());
            for member in &document.workspaces {
                member.names(of, &mut names);
            }
            names.sort();
            names.dedup();
            names
        };
        let required_env = all(|settings| &settings.required_env, &document.required_env);
        let recommended_env = all(
            |settings| &settings.recommended_env,
            &document.recommended_env,
        );
        let mut names = required_env.iter().chain(&recommended_env);
        if let Some(bad) = names.find(|name| !is_variable(name)) {
            return Err(format!("{bad:?} is no name of a variable"));
        }
        Ok(Self {
            dir: dir.to_owned(),
            name: document.name.clone().unwrap_or_else(|| dir.to_owned()),
            description: document.description.clone().unwrap_or_default(),
            required_env,
            recommended_env,
            document,
        })
    }
}

/// Names of the variables of organisations (`spec: lifecycle` §1.4).
fn is_variable(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_';
    name.len() <= 128
        && name.starts_with(|c: char| c.is_ascii_uppercase())
        && name.bytes().all(plain)
}

fn directory(templates: &Templates, dir: &str) -> Result<Option<PathBuf>, OrgError> {
    if dir.is_empty() || dir.contains('/') {
        return Err(OrgError::NotFound);
    }
    let path = format!("{ORG_TEMPLATES}/{dir}");
    templates
        .find_directory(&path)
        .map_err(|_| OrgError::NotFound)
}

/// The templates of organisations that can be used, by directory name; those that cannot are logged and left out. Reads the
/// disk.
#[must_use]
pub fn list(templates: &Templates) -> Vec<OrgTemplate> {
    let read = |dir: String| match OrgTemplate::read(templates, &dir) {
        Ok(template) => Some(template),
        Err(OrgError::NotFound) => None,
        Err(OrgError::Invalid(error)) => {
            tracing::warn!(template = dir, error, "org templates list: skip {dir}");
            None
        }
        Err(OrgError::Import(error)) => {
            tracing::warn!(template = dir, %error, "org templates list: skip {dir}");
            None
        }
    };
    let dirs = templates.directories(Some(ORG_TEMPLATES));
    dirs.into_iter().filter_map(read).collect()
}

/// Which of these variables no global secret holds (`spec: lifecycle` §9.2). An empty one counts as none.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn find_missing_env(
    conn: &mut PgConnection,
    names: &[String],
) -> Result<Vec<String>, FleetError> {
    let held: Vec<String> = sqlx::query_scalar!(
        "SELECT key FROM global_secrets WHERE key = ANY($1) AND length(encrypted_value) > 0",
        names,
    )
    .fetch_all(conn)
    .await?;
    let missing = names.iter().filter(|name| !held.contains(name));
    Ok(missing.cloned().collect())
}
