//! Where the files in a workspace's `/configs` come from (`spec: lifecycle` §1.5, §2.7, §2.8), and the files themselves.
//! Reads the disk and blocks; call it where that is allowed.

use std::borrow::Cow;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::Fleet;
use crate::prepare::PrepareError;
use crate::restart_template::{self, ORG_TEMPLATES, TemplateChoice};
use crate::runtimes::DEFAULT_RUNTIME;
use crate::templates::CONFIG_FILE;
use crate::workspace::Workspace;
use crate::yaml;

pub(crate) const GENERATED_MODE: u32 = 0o644;
/// Variables of an organisation. They become secrets, so nothing puts them into a container as a file.
pub(crate) const ENV_FILE: &str = ".env";
/// A template is prompts and scripts. All of it is held in memory on its way, several at a time.
const MAX_TREE_BYTES: u64 = 64 << 20;
/// Shell, Python and Markdown files that were edited on Windows would not run in the container.
const UNIX_LINES: [&str; 3] = ["sh", "py", "md"];

/// Where the configuration comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigSource {
    /// A directory of the templates' root.
    Template {
        /// Its name, for logs.
        label: String,
        /// Where it is.
        directory: PathBuf,
    },
    /// A `config.yaml` made from the row.
    Generated,
    /// What earlier starts have left in the volume; the text of its `config.yaml`, where that could be read.
    Kept(Option<String>),
}

/// What is in a workspace's config volume, as far as could be found out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    /// This `config.yaml`.
    Found(String),
    /// None, or there is no volume.
    Missing,
    /// It could not be looked at, or there is nothing to look at.
    Unknown,
}

/// A file for `/configs`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigFile {
    /// Relative, with slashes, without dots.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// Content.
    pub bytes: Vec<u8>,
}

/// Decides the source: the template named at create; if that is not there, the default one of the runtime; else the
/// generated configuration. A template without a `config.yaml` gives way to the runtime's default, too, unless `imported`,
/// which goes over it, has one.
///
/// # Errors
/// [`PrepareError::NoConfig`]: the named template is there, but neither it nor a default has a `config.yaml`. An agent
/// started without one would crash for ever.
pub fn resolve(
    fleet: &Fleet,
    workspace: &Workspace,
    imported: &[ConfigFile],
) -> Result<ConfigSource, PrepareError> {
    let Some(named) = workspace
        .template
        .as_deref()
        .filter(|name| !name.is_empty())
    else {
        return Ok(ConfigSource::Generated);
    };
    let found = find(fleet, named);
    let brings_config = imported.iter().any(|file| file.path == CONFIG_FILE);
    let usable = |source: &ConfigSource| brings_config || has_config(source);
    if let Some(source) = found.clone().filter(usable) {
        return Ok(source);
    }
    let runtime = fleet.runtimes.sanitize(&workspace.runtime);
    let defaults = [format!("{runtime}-default"), runtime];
    let default = defaults
        .iter()
        .find_map(|name| find(fleet, name).filter(usable));
    match (default, found) {
        (Some(source), _) => Ok(source),
        (None, None) => Ok(ConfigSource::Generated),
        (None, Some(_)) => Err(PrepareError::NoConfig {
            template: named.to_owned(),
        }),
    }
}

/// Decides the source for a workspace that comes up again: the chosen template, else what its volume holds. Where the
/// volume turns out to be empty, the default template of its runtime takes its place; one that has never been heard of
/// is begun as at create.
///
/// # Errors
/// [`PrepareError::EmptyVolume`]: there is nothing to start it with. An agent started so would crash for ever.
pub fn resolve_again(
    fleet: &Fleet,
    workspace: &Workspace,
    choice: &TemplateChoice,
    kept: Kept,
    imported: &[ConfigFile],
) -> Result<ConfigSource, PrepareError> {
    let chosen = choice.resolve(fleet, &workspace.name, &workspace.runtime);
    let chosen = chosen.directory.map(|directory| ConfigSource::Template {
        label: chosen.label,
        directory,
    });
    match (chosen, kept) {
        (Some(template), Kept::Found(_) | Kept::Unknown) => Ok(template),
        (Some(template), Kept::Missing) if has_config(&template) => Ok(template),
        (None, Kept::Found(text)) => Ok(ConfigSource::Kept(Some(text))),
        (None, Kept::Unknown) => Ok(ConfigSource::Kept(None)),
        (_, Kept::Missing) if workspace.last_heartbeat_at.is_none() => {
            resolve(fleet, workspace, imported)
        }
        (_, Kept::Missing) => restart_template::default_of(fleet, &workspace.runtime)
            .and_then(|default| {
                Some(ConfigSource::Template {
                    label: default.label,
                    directory: default.directory?,
                })
            })
            .filter(has_config)
            .ok_or(PrepareError::EmptyVolume),
    }
}

fn has_config(source: &ConfigSource) -> bool {
    match source {
        ConfigSource::Template { directory, .. } => directory.join(CONFIG_FILE).is_file(),
        ConfigSource::Generated | ConfigSource::Kept(_) => true,
    }
}

fn find(fleet: &Fleet, name: &str) -> Option<ConfigSource> {
    match fleet.templates.find_directory(name) {
        Ok(directory) => directory.map(|directory| ConfigSource::Template {
            label: name.to_owned(),
            directory,
        }),
        Err(error) => {
            tracing::warn!(template = name, %error, "the stored template's name is not usable");
            None
        }
    }
}

/// Reads or makes the files of a source. `model` is the one the environment names.
///
/// # Errors
/// [`PrepareError::Template`].
pub fn files(
    fleet: &Fleet,
    workspace: &Workspace,
    source: &ConfigSource,
    model: Option<&str>,
) -> Result<Vec<ConfigFile>, PrepareError> {
    match source {
        ConfigSource::Kept(_) => Ok(Vec::new()),
        ConfigSource::Generated => {
            let runtime = fleet.runtimes.sanitize(&workspace.runtime);
            Ok(vec![ConfigFile {
                path: CONFIG_FILE.to_owned(),
                mode: GENERATED_MODE,
                bytes: generate(&GeneratedConfig {
                    name: &workspace.name,
                    role: workspace.role.as_deref().unwrap_or(""),
                    tier: workspace.tier,
                    runtime: &runtime,
                    model,
                })
                .into_bytes(),
            }])
        }
        ConfigSource::Template { label, directory } => {
            let mut files = Vec::new();
            let mut left = MAX_TREE_BYTES;
            read_tree(directory, "", &mut left, &mut files).map_err(|source| {
                PrepareError::Template {
                    template: label.clone(),
                    source,
                }
            })?;
            if label.starts_with(ORG_TEMPLATES) {
                files.retain(|file| file.path != ENV_FILE);
            }
            Ok(files)
        }
    }
}

/// The files that decide what a source requires of its environment: those that are put there, and where none are, the
/// kept configuration.
#[must_use]
pub fn effective<'a>(source: &ConfigSource, files: &'a [ConfigFile]) -> Cow<'a, [ConfigFile]> {
    match source {
        ConfigSource::Kept(Some(text)) => Cow::Owned(vec![ConfigFile {
            path: CONFIG_FILE.to_owned(),
            mode: GENERATED_MODE,
            bytes: text.clone().into_bytes(),
        }]),
        ConfigSource::Kept(None) | ConfigSource::Generated | ConfigSource::Template { .. } => {
            Cow::Borrowed(files)
        }
    }
}

pub(crate) fn read_tree(
    directory: &Path,
    prefix: &str,
    left: &mut u64,
    files: &mut Vec<ConfigFile>,
) -> std::io::Result<()> {
    let mut entries: Vec<_> = std::fs::read_dir(directory)?.collect::<Result<_, _>>()?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let name = entry.file_name();
        let Some(name) = name.to_str() else {
            tracing::warn!(file = ?name, "a template's file has a name that is not UTF-8; left out");
            continue;
        };
        let path = format!("{prefix}{name}");
        let kind = entry.file_type()?;
        if kind.is_dir() {
            read_tree(&entry.path(), &format!("{path}/"), left, files)?;
        } else if kind.is_file() {
            let meta = entry.metadata()?;
            *left = left.checked_sub(meta.len()).ok_or_else(|| {
                std::io::Error::other("the template's files are more than 64 MiB together")
            })?;
            files.push(ConfigFile {
                mode: meta.permissions().mode() & 0o777,
                bytes: with_unix_lines(&path, std::fs::read(entry.path())?),
                path,
            });
        } else {
            // A link may lead out of the root.
            tracing::warn!(
                file = path,
                "a template's entry is neither file nor directory; left out"
            );
        }
    }
    Ok(())
}

fn with_unix_lines(path: &str, bytes: Vec<u8>) -> Vec<u8> {
    let extension = Path::new(path).extension().and_then(|end| end.to_str());
    if !extension.is_some_and(|extension| UNIX_LINES.contains(&extension)) {
        return bytes;
    }
    let mut fixed = Vec::with_capacity(bytes.len());
    let mut rest = bytes.iter().copied().peekable();
    while let Some(byte) = rest.next() {
        if byte != b'\r' || rest.peek() != Some(&b'\n') {
            fixed.push(byte);
        }
    }
    fixed
}

/// What a generated `config.yaml` says.
pub(crate) struct GeneratedConfig<'a> {
    pub(crate) name: &'a str,
    pub(crate) role: &'a str,
    pub(crate) tier: i32,
    /// Must be a known one: it is not quoted.
    pub(crate) runtime: &'a str,
    pub(crate) model: Option<&'a str>,
}

/// The `config.yaml` of a workspace without a template.
pub(crate) fn generate(config: &GeneratedConfig<'_>) -> String {
    let default_model = if config.runtime == DEFAULT_RUNTIME {
        "sonnet"
    } else {
        "anthropic:claude-opus-4-7"
    };
    let model = config
        .model
        .filter(|model| !model.is_empty())
        .unwrap_or(default_model);
    format!(
        "name: {}\ndescription: {}\nversion: 1.0.0\ntier: {}\nruntime: {}\nmodel: {}\nruntime_config:\n  timeout: 0\n",
        quoted(config.name),
        quoted(config.role),
        config.tier,
        config.runtime,
        quoted(model),
    )
}

/// A double-quoted YAML scalar on one line, whatever the text holds: line feeds become spaces (`spec: lifecycle` §2.8).
fn quoted(text: &str) -> String {
    yaml::quoted(&text.replace('\r', "").replace('\n', " "))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn carriage_returns_before_line_feeds_go_from_scripts_only() {
        for path in ["a.sh", "b/c.py", "README.md"] {
            assert_eq!(
                with_unix_lines(path, b"a\r\nb\rc\r\n".to_vec()),
                b"a\nb\rc\n"
            );
        }
        assert_eq!(with_unix_lines("a.txt", b"a\r\n".to_vec()), b"a\r\n");
    }

    proptest! {
        #[test]
        fn a_quoted_scalar_is_one_line_and_reads_back(text in "\\PC*|[\\x00-\\x7f]*|.*") {
            let scalar = quoted(&text);
            prop_assert!(!scalar.contains('\n'));
            let read: String = serde_norway::from_str(&scalar).unwrap();
            prop_assert_eq!(read, text.replace('\r', "").replace('\n', " "));
        }

        #[test]
        fn no_text_adds_a_key(name in "(\"|: |\n|#|\\{|x|\\\\|')*", model in "(\"|\n|runtime: x|,)*") {
            let yaml = format!("name: {}\nmodel: {}\n", quoted(&name), quoted(&model));
            let read: serde_norway::Mapping = serde_norway::from_str(&yaml).unwrap();
            prop_assert_eq!(read.len(), 2);
        }
    }
}
