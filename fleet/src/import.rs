//! Workspaces that come in one piece: from a bundle or an organisation's template. Here is what they have in common; what
//! each is made of say [`crate::bundle`] and [`crate::org`], and `jobs` writes the rows and asks for the jobs.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Fleet;
use crate::config_source::{ConfigFile, GENERATED_MODE, read_tree};
use crate::workspace::{CreateError, NewWorkspace};

/// Workspaces in one import: all of them are written in one transaction.
pub const MAX_WORKSPACES: usize = 200;
/// Bytes of one workspace's plugins. All of it is held in memory on its way.
const MAX_PLUGIN_BYTES: u64 = 64 << 20;

/// A workspace of an import.
#[derive(Clone, Debug, Default)]
pub struct ImportNode {
    /// What it is, without its parent.
    pub new: NewWorkspace,
    /// What is put over its configuration.
    pub files: ImportedFiles,
    /// The place of its parent in the list, which is before its own.
    pub parent: Option<usize>,
}

/// What an import puts into a workspace's `/configs` with its first start, over its template: texts that cannot be made
/// again, and names of plugins, which are read when they are needed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportedFiles {
    /// Texts by their paths.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub texts: BTreeMap<String, String>,
    /// Directories of the plugins' root.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub plugins: Vec<String>,
}

/// Why nothing was imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// It breaks a rule; the text says which and where.
    #[error("{0}")]
    Invalid(String),
    /// A workspace of it cannot be created.
    #[error(transparent)]
    Create(#[from] CreateError),
}

impl ImportedFiles {
    /// What was written down for a job; nothing of what cannot be read.
    #[must_use]
    pub fn of_payload(payload: Option<Value>) -> Self {
        let Some(payload) = payload else {
            return Self::default();
        };
        serde_json::from_value(payload).unwrap_or_else(|error| {
            tracing::warn!(%error, "the files of an import cannot be read; left out");
            Self::default()
        })
    }

    /// The files themselves. A plugin that is not there is left out, with a log line. Reads the disk.
    #[must_use]
    pub fn read(self, fleet: &Fleet) -> Vec<ConfigFile> {
        let mut files = Vec::new();
        let mut left = MAX_PLUGIN_BYTES;
        for plugin in &self.plugins {
            let Some(directory) = plugin_directory(fleet, plugin) else {
                tracing::warn!(plugin, "there is no plugin of this name; left out");
                continue;
            };
            let prefix = format!("plugins/{plugin}/");
            if let Err(error) = read_tree(&directory, &prefix, &mut left, &mut files) {
                tracing::warn!(plugin, %error, "a plugin cannot be read; left out");
            }
        }
        let texts = self.texts.into_iter().map(|(path, text)| ConfigFile {
            path,
            mode: GENERATED_MODE,
            bytes: text.into_bytes(),
        });
        files.extend(texts);
        files
    }
}

/// Plugins are beside the templates.
fn plugin_directory(fleet: &Fleet, name: &str) -> Option<PathBuf> {
    let root = fleet.templates.root()?.parent()?.join("plugins");
    let directory = root.join(name);
    (is_inside(name) && !name.contains('/') && directory.is_dir()).then_some(directory)
}

/// A relative path of plain names, without any step up.
pub(crate) fn is_inside(path: &str) -> bool {
    !path.contains(['\0', '\\'])
        && !path.contains("..")
        && path.split('/').all(|part| !part.is_empty() && part != ".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_relative_paths_are_inside() {
        for good in ["a", "a/b.md", ".hidden", "skills/x y/SKILL.md"] {
            assert!(is_inside(good), "{good}");
        }
        for bad in [
            "", "/a", "a/", "a//b", "./a", "a/./b", "../a", "a/..", "a..b", "a\0", "a\\b",
        ] {
            assert!(!is_inside(bad), "{bad:?}");
        }
    }
}
