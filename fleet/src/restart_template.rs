//! Which template a restart applies, if any (`spec: lifecycle` §4.4). Reads the disk and blocks; call it where that is
//! allowed.
//!
//! Without a flag none: what the agent and its owner have made of the config volume survives.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::Fleet;
use crate::templates::{CONFIG_FILE, Templates};

/// The label of a restart that applies no template.
pub const EXISTING_VOLUME: &str = "existing-volume";
/// Where the templates of organisations are, below the root.
pub(crate) const ORG_TEMPLATES: &str = "org-templates";
/// Directories that belong to workspaces; not found by the name inside.
const OF_WORKSPACES: &str = "ws-";

/// What was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateChoice {
    /// A directory below the root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// The template of the workspace's name, else that of its runtime.
    #[serde(default)]
    pub apply_template: bool,
    /// The organisation's template of the workspace's name.
    #[serde(default)]
    pub rebuild_config: bool,
}

/// What it means now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChosenTemplate {
    /// Its name, or [`EXISTING_VOLUME`].
    pub label: String,
    /// Where it is; none leaves the volume as it is.
    pub directory: Option<PathBuf>,
}

impl TemplateChoice {
    /// Resolves it for a workspace of this name and runtime; the first hit wins. A template that is missing or leads out
    /// of the root is logged and passed over.
    #[must_use]
    pub fn resolve(&self, fleet: &Fleet, name: &str, runtime: &str) -> ChosenTemplate {
        let templates = &fleet.templates;
        let explicit = self.template.as_deref().filter(|name| !name.is_empty());
        if let Some(found) = explicit.and_then(|named| explicitly(templates, named)) {
            return found;
        }
        let by_name = self
            .apply_template
            .then(|| named_like(templates, None, name))
            .flatten();
        let by_org = || {
            self.rebuild_config
                .then(|| named_like(templates, Some(ORG_TEMPLATES), name))
                .flatten()
        };
        let by_runtime = || {
            (self.apply_template && !runtime.is_empty())
                .then(|| default_of(fleet, runtime))
                .flatten()
        };
        by_name
            .or_else(by_org)
            .or_else(by_runtime)
            .unwrap_or_else(|| ChosenTemplate {
                label: EXISTING_VOLUME.to_owned(),
                directory: None,
            })
    }
}

fn explicitly(templates: &Templates, name: &str) -> Option<ChosenTemplate> {
    let found = find(templates, name);
    if found.is_none() {
        tracing::warn!(
            template = name,
            "a restart names a template that is not there or not usable; passed over"
        );
    }
    found
}

/// The default template of a runtime.
pub(crate) fn default_of(fleet: &Fleet, runtime: &str) -> Option<ChosenTemplate> {
    let runtime = fleet.runtimes.sanitize(runtime);
    [format!("{runtime}-default"), runtime]
        .iter()
        .find_map(|name| find(&fleet.templates, name))
}

/// By the directory's name, else by the name its configuration gives.
pub(crate) fn named_like(
    templates: &Templates,
    below: Option<&str>,
    name: &str,
) -> Option<ChosenTemplate> {
    let wanted = name.trim().to_lowercase();
    let as_directory = wanted.replace(' ', "-");
    let full = |directory: &str| match below {
        Some(below) => format!("{below}/{directory}"),
        None => directory.to_owned(),
    };
    let mut directories = templates.directories(below);
    directories.retain(|directory| directory != ORG_TEMPLATES);
    let by_directory = directories
        .iter()
        .find(|directory| directory.to_lowercase() == as_directory);
    let by_content = || {
        directories
            .iter()
            .filter(|directory| !directory.starts_with(OF_WORKSPACES))
            .find(|directory| name_inside(templates, &full(directory)).as_deref() == Some(&*wanted))
    };
    let directory = by_directory.or_else(by_content)?;
    find(templates, &full(directory))
}

fn find(templates: &Templates, name: &str) -> Option<ChosenTemplate> {
    let directory = templates.find_directory(name).ok()??;
    Some(ChosenTemplate {
        label: name.to_owned(),
        directory: Some(directory),
    })
}

/// What the first `name:` line of a template's configuration says, in lower case.
fn name_inside(templates: &Templates, template: &str) -> Option<String> {
    let directory = templates.find_directory(template).ok()??;
    let text = std::fs::read_to_string(directory.join(CONFIG_FILE)).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("name:"))?;
    let name = line.trim().trim_matches(['"', '\'']);
    Some(name.to_lowercase())
}
