//! Templates: directories under one root, each with a `config.yaml` (`spec: lifecycle` §7.4, §7.5).
//!
//! What they declare is read once, at start, because the API and the deadline sweep must not disagree; a change needs a
//! restart. Which directory a name means is looked up when it is asked, so a template added later can be used.

mod catalog;
mod import;

pub use catalog::{Catalog, CatalogEntry, CatalogProblem, ModelOffer, ProviderOffer};
pub use import::{ImportError, MAX_FILES, import};

use std::collections::BTreeMap;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use serde_norway::Value;

/// The file that makes a directory a template.
pub const CONFIG_FILE: &str = "config.yaml";
/// A template's configuration is a page; more is a mistake.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// What a template declares, as far as the control plane reads it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Template {
    /// Its directory's name.
    pub id: String,
    /// Name for people.
    pub name: Option<String>,
    /// What it is for.
    pub description: Option<String>,
    /// Tier it suggests.
    pub tier: Option<i64>,
    /// Runtime it is for.
    pub runtime: Option<String>,
    /// Model it suggests: the top-level one, else that of `runtime_config`.
    pub model: Option<String>,
    /// Variables without which it does not start.
    pub required_env: Vec<String>,
    /// Deadline of its bringing-up.
    pub provision_timeout: Option<Duration>,
}

/// A template that cannot be used, for the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TemplateProblem {
    /// Its directory's name.
    pub template: String,
    /// What is wrong with it.
    pub error: String,
}

/// The name leads out of the root, or nowhere.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error("invalid template")]
pub struct InvalidTemplate;

/// All templates of the root.
#[derive(Clone, Debug, Default)]
pub struct Templates {
    root: Option<PathBuf>,
    list: Vec<Template>,
    problems: Vec<TemplateProblem>,
    timeouts: BTreeMap<String, Duration>,
}

impl Templates {
    /// Reads every template under the root. A broken one is logged, listed in [`Templates::problems`] and skipped.
    #[must_use]
    pub fn load(root: Option<&Path>) -> Self {
        let mut templates = Self {
            root: root.map(Path::to_owned),
            ..Self::default()
        };
        for id in root.map(list_directories).unwrap_or_default() {
            templates.add(id);
        }
        templates
    }

    fn add(&mut self, id: String) {
        let Some(root) = &self.root else { return };
        match read_template(&root.join(&id), &id) {
            Ok(None) => {}
            Ok(Some(template)) => {
                if let (Some(runtime), Some(timeout)) =
                    (&template.runtime, template.provision_timeout)
                {
                    let longest = self.timeouts.entry(runtime.clone()).or_default();
                    *longest = timeout.max(*longest);
                }
                self.list.push(template);
            }
            Err(error) => {
                tracing::warn!(template = id, error, "a template cannot be used; skipped");
                self.problems.push(TemplateProblem {
                    template: id,
                    error,
                });
            }
        }
    }

    /// Where they are.
    #[must_use]
    pub fn root(&self) -> Option<&Path> {
        self.root.as_deref()
    }

    /// The usable ones, by directory name.
    #[must_use]
    pub fn list(&self) -> &[Template] {
        &self.list
    }

    /// The broken ones, by directory name.
    #[must_use]
    pub fn problems(&self) -> &[TemplateProblem] {
        &self.problems
    }

    /// The deadline that the templates of a runtime declare, the longest if several do.
    #[must_use]
    pub fn declared_timeout(&self, runtime: &str) -> Option<Duration> {
        self.timeouts.get(runtime).copied()
    }

    /// Every runtime with a declared deadline.
    pub fn declared_timeouts(&self) -> impl Iterator<Item = (&str, Duration)> {
        self.timeouts
            .iter()
            .map(|(runtime, timeout)| (runtime.as_str(), *timeout))
    }

    /// The directory a name means; `None` when there is none of that name. Reads the disk.
    ///
    /// # Errors
    /// [`InvalidTemplate`] for a name that is absolute, empty, or leads out of the root, by dots or by links.
    pub fn find_directory(&self, name: &str) -> Result<Option<PathBuf>, InvalidTemplate> {
        let relative = Path::new(name);
        let plain = relative
            .components()
            .all(|part| matches!(part, Component::Normal(_)));
        if name.is_empty() || name.contains('\0') || !plain {
            return Err(InvalidTemplate);
        }
        let Some(root) = &self.root else {
            return Ok(None);
        };
        let directory = root.join(relative);
        if !directory.is_dir() {
            return Ok(None);
        }
        match (root.canonicalize(), directory.canonicalize()) {
            (Ok(root), Ok(real)) if real.starts_with(&root) => Ok(Some(directory)),
            (Ok(_), Ok(_)) => Err(InvalidTemplate),
            (Err(error), _) | (_, Err(error)) => {
                tracing::warn!(template = name, %error, "a template's directory cannot be resolved");
                Ok(None)
            }
        }
    }

    /// Names of the directories right below the root, or below one of its directories, in order. Reads the disk.
    #[must_use]
    pub fn directories(&self, below: Option<&str>) -> Vec<String> {
        let Some(root) = &self.root else {
            return Vec::new();
        };
        let place = below.map_or_else(|| root.clone(), |below| root.join(below));
        if place.is_dir() {
            list_directories(&place)
        } else {
            Vec::new()
        }
    }

    /// What a template suggests right now. A template that is not there or cannot be read suggests nothing, with a log
    /// line. Reads the disk.
    ///
    /// # Errors
    /// [`InvalidTemplate`], as [`Templates::find_directory`].
    pub fn read(&self, name: &str) -> Result<Template, InvalidTemplate> {
        let Some(directory) = self.find_directory(name)? else {
            tracing::warn!(template = name, "no template of this name");
            return Ok(Template::default());
        };
        match read_template(&directory, name) {
            Ok(Some(template)) => return Ok(template),
            Ok(None) => tracing::warn!(template = name, "the template has no {CONFIG_FILE}"),
            Err(error) => tracing::warn!(template = name, error, "the template cannot be read"),
        }
        Ok(Template::default())
    }
}

fn list_directories(root: &Path) -> Vec<String> {
    let entries = match std::fs::read_dir(root) {
        Ok(entries) => entries,
        Err(error) => {
            tracing::warn!(templates.root = %root.display(), %error, "the templates' root cannot be read");
            return Vec::new();
        }
    };
    let mut names: Vec<_> = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.path().is_dir())
        .filter_map(|entry| entry.file_name().into_string().ok())
        // Hidden ones are being written.
        .filter(|name| !name.starts_with('.'))
        .collect();
    names.sort();
    names
}

fn read_template(directory: &Path, id: &str) -> Result<Option<Template>, String> {
    match read_config(directory)? {
        Some(text) => parse_template(id, &text).map(Some),
        None => Ok(None),
    }
}

/// The text of a template's configuration; `None` for a directory that is no template.
pub(crate) fn read_config(directory: &Path) -> Result<Option<String>, String> {
    let path = directory.join(CONFIG_FILE);
    match std::fs::metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
        Ok(meta) if !meta.is_file() => return Err(format!("{CONFIG_FILE} is not a file")),
        Ok(meta) if meta.len() > MAX_CONFIG_BYTES => {
            return Err(format!("{CONFIG_FILE} is larger than 1 MiB"));
        }
        Ok(_) => {}
    }
    std::fs::read_to_string(&path)
        .map(Some)
        .map_err(|error| error.to_string())
}

/// Reads a `config.yaml`. Members of the wrong type count as absent: one odd key must not cost the template.
pub(crate) fn parse_template(id: &str, text: &str) -> Result<Template, String> {
    let yaml: Value = serde_norway::from_str(text).map_err(|error| error.to_string())?;
    if !yaml.is_mapping() {
        return Err("it is not a mapping".to_owned());
    }
    let runtime_config = yaml.get("runtime_config");
    let inner = |key: &str| runtime_config.and_then(|config| config.get(key));
    let required_env = inner("required_env").and_then(Value::as_sequence);
    Ok(Template {
        id: id.to_owned(),
        name: text_of(yaml.get("name")),
        description: text_of(yaml.get("description")),
        tier: yaml.get("tier").and_then(Value::as_i64),
        runtime: text_of(yaml.get("runtime")),
        model: text_of(yaml.get("model")).or_else(|| text_of(inner("model"))),
        required_env: required_env
            .into_iter()
            .flatten()
            .filter_map(|name| text_of(Some(name)))
            .collect(),
        provision_timeout: inner("provision_timeout_seconds")
            .and_then(Value::as_u64)
            .filter(|seconds| *seconds > 0)
            .map(Duration::from_secs),
    })
}

fn text_of(value: Option<&Value>) -> Option<String> {
    let text = value?.as_str()?.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root_with(templates: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, config) in templates {
            let directory = root.path().join(name);
            std::fs::create_dir_all(&directory).unwrap();
            std::fs::write(directory.join(CONFIG_FILE), config).unwrap();
        }
        root
    }

    #[test]
    fn the_longest_declared_timeout_of_a_runtime_counts() {
        let root = root_with(&[
            (
                "a",
                "runtime: hermes\nruntime_config: {provision_timeout_seconds: 720}",
            ),
            (
                "b",
                "runtime: hermes\nruntime_config: {provision_timeout_seconds: 1200}",
            ),
            (
                "c",
                "runtime: codex\nruntime_config: {provision_timeout_seconds: 0}",
            ),
            (
                "d",
                "runtime: codex\nruntime_config: {provision_timeout_seconds: soon}",
            ),
            ("e", "runtime_config: {provision_timeout_seconds: 5}"),
        ]);
        let templates = Templates::load(Some(root.path()));
        assert_eq!(
            templates.declared_timeout("hermes"),
            Some(Duration::from_secs(1200))
        );
        assert_eq!(templates.declared_timeout("codex"), None);
        assert_eq!(templates.problems(), []);
    }

    #[test]
    fn a_broken_template_is_listed_and_the_others_are_used() {
        let root = root_with(&[
            ("bad", "name: [unclosed"),
            ("good", "name: Good\nruntime: codex"),
            ("list", "- a"),
        ]);
        std::fs::create_dir(root.path().join("no-config")).unwrap();
        let templates = Templates::load(Some(root.path()));
        let names: Vec<_> = templates
            .list()
            .iter()
            .map(|template| template.id.as_str())
            .collect();
        assert_eq!(names, ["good"]);
        let broken: Vec<_> = templates
            .problems()
            .iter()
            .map(|problem| problem.template.as_str())
            .collect();
        assert_eq!(broken, ["bad", "list"]);
        assert!(!templates.problems()[0].error.is_empty());
    }

    #[test]
    fn the_top_level_model_wins() {
        let both = parse_template(
            "t",
            "model: top\nruntime_config: {model: inner, required_env: [A_KEY, B_KEY]}",
        )
        .unwrap();
        assert_eq!(both.model.as_deref(), Some("top"));
        assert_eq!(both.required_env, ["A_KEY", "B_KEY"]);
        let inner = parse_template("t", "runtime_config: {model: inner}").unwrap();
        assert_eq!(inner.model.as_deref(), Some("inner"));
    }

    #[test]
    fn names_that_leave_the_root_are_invalid() {
        let root = root_with(&[("inside", "name: x")]);
        let outside = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(outside.path(), root.path().join("link")).unwrap();
        let templates = Templates::load(Some(root.path()));
        assert!(templates.find_directory("inside").unwrap().is_some());
        assert_eq!(templates.find_directory("missing"), Ok(None));
        for bad in [
            "",
            "/etc",
            "../x",
            "inside/../..",
            ".",
            "./inside",
            "a\0b",
            "link",
        ] {
            assert_eq!(
                templates.find_directory(bad),
                Err(InvalidTemplate),
                "{bad:?}"
            );
        }
        assert_eq!(Templates::load(None).find_directory("inside"), Ok(None));
    }
}
