//! Adding a template: checked whole, written beside the root's others, and put in place in one step (`spec: rest-api` §6.13).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io;
use std::path::Path;

use longshore_base::ids;

use super::CONFIG_FILE;
use crate::import::is_inside;
use crate::yaml::quoted;

/// Files in one template.
pub const MAX_FILES: usize = 200;
/// The model of an imported template that names none; that of the default runtime.
const DEFAULT_MODEL: &str = "sonnet";
const PROMPT: &str = "system-prompt.md";

/// Why a template was not imported. The texts are part of the API.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// Name or files are missing, or a path leads elsewhere.
    #[error("invalid request body")]
    Invalid {
        /// What is wrong.
        detail: String,
    },
    /// More than [`MAX_FILES`].
    #[error("too many files ({0}), max {MAX_FILES}")]
    TooManyFiles(usize),
    /// There is one of this name.
    #[error("template already exists")]
    Exists {
        /// The directory's name.
        id: String,
    },
    /// The directory could not be written.
    #[error("failed to write {CONFIG_FILE}")]
    Write(#[source] io::Error),
}

/// Writes a template under the root; its directory's name. Nothing is there unless all of it is.
///
/// # Errors
/// [`ImportError`].
pub fn import(
    root: &Path,
    name: &str,
    files: &BTreeMap<String, String>,
) -> Result<String, ImportError> {
    let invalid = |detail: String| Err(ImportError::Invalid { detail });
    if name.is_empty() || files.is_empty() {
        return invalid("name and files are required".to_owned());
    }
    if files.len() > MAX_FILES {
        return Err(ImportError::TooManyFiles(files.len()));
    }
    if let Some(bad) = files.keys().find(|path| !is_inside(path)) {
        return invalid(format!("files: {bad:?} is no path inside of the template"));
    }
    let id = directory_name(name);
    let place = root.join(&id);
    if place.symlink_metadata().is_ok() {
        return Err(ImportError::Exists { id });
    }
    // Hidden, so that nobody lists it, and of a name nobody else has.
    let unfinished = root.join(format!(".import-{}", ids::random_uuid()));
    let failed = match write(&unfinished, name, files) {
        Ok(()) => match std::fs::rename(&unfinished, &place) {
            Ok(()) => return Ok(id),
            // Somebody else was faster.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists
                ) =>
            {
                ImportError::Exists { id }
            }
            Err(error) => ImportError::Write(error),
        },
        Err(error) => ImportError::Write(error),
    };
    if let Err(left) = std::fs::remove_dir_all(&unfinished)
        && left.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %unfinished.display(), error = %left, "an unfinished template is left over");
    }
    Err(failed)
}

fn write(directory: &Path, name: &str, files: &BTreeMap<String, String>) -> io::Result<()> {
    std::fs::create_dir(directory)?;
    for (path, content) in files {
        let path = directory.join(path);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(path, content)?;
    }
    if !files.contains_key(CONFIG_FILE) {
        std::fs::write(directory.join(CONFIG_FILE), generate(name, files))?;
    }
    Ok(())
}

/// Lower case; letters, digits, `_` and dashes stay, spaces become dashes, everything else goes.
fn directory_name(name: &str) -> String {
    let id: String = name
        .to_lowercase()
        .chars()
        .filter_map(|c| match c {
            ' ' | '-' => Some('-'),
            '_' => Some('_'),
            c if c.is_alphanumeric() => Some(c),
            _ => None,
        })
        .collect();
    if id.is_empty() {
        "unnamed".to_owned()
    } else {
        id
    }
}

/// The `config.yaml` of files that bring none.
fn generate(name: &str, files: &BTreeMap<String, String>) -> String {
    let mut prompts: Vec<&str> = files
        .keys()
        .map(String::as_str)
        .filter(|path| !path.contains('/') && has_extension(path, "md"))
        .collect();
    if prompts.is_empty() {
        prompts.push(PROMPT);
    }
    let skills: BTreeSet<&str> = files
        .keys()
        .filter_map(|path| path.strip_prefix("skills/")?.strip_suffix("/SKILL.md"))
        .filter(|skill| !skill.contains('/'))
        .collect();
    let mut yaml = format!(
        "name: {}\ndescription: Imported agent\nversion: 1.0.0\ntier: 2\nmodel: {DEFAULT_MODEL}\n",
        quoted(name)
    );
    list(&mut yaml, "prompt_files", prompts);
    list(&mut yaml, "skills", skills);
    yaml.push_str("a2a:\n  port: 8000\n  streaming: true\n  push_notifications: true\n");
    yaml
}

fn has_extension(path: &str, wanted: &str) -> bool {
    Path::new(path)
        .extension()
        .is_some_and(|extension| extension == wanted)
}

fn list<'a>(yaml: &mut String, key: &str, items: impl IntoIterator<Item = &'a str>) {
    let items: Vec<_> = items.into_iter().map(quoted).collect();
    // Writing into a String cannot fail.
    writeln!(yaml, "{key}: [{}]", items.join(", ")).ok();
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_norway::Value;

    use super::*;

    fn files(list: &[(&str, &str)]) -> BTreeMap<String, String> {
        list.iter()
            .map(|(path, content)| ((*path).to_owned(), (*content).to_owned()))
            .collect()
    }

    #[test]
    fn a_template_without_configuration_gets_one() {
        let root = tempfile::tempdir().unwrap();
        let given = files(&[
            ("system-prompt.md", "be kind"),
            ("notes/more.md", "x"),
            ("skills/search/SKILL.md", "s"),
            ("skills/deep/er/SKILL.md", "s"),
        ]);
        let id = import(root.path(), "My \"Agent\" / Ünïted", &given).unwrap();
        assert_eq!(id, "my-agent--ünïted");
        let text = std::fs::read_to_string(root.path().join(&id).join(CONFIG_FILE)).unwrap();
        let yaml: Value = serde_norway::from_str(&text).unwrap();
        assert_eq!(yaml["name"], Value::from("My \"Agent\" / Ünïted"));
        assert_eq!(yaml["tier"], Value::from(2));
        assert_eq!(yaml["prompt_files"], Value::from(vec!["system-prompt.md"]));
        assert_eq!(yaml["skills"], Value::from(vec!["search"]));
        assert_eq!(yaml["a2a"]["push_notifications"], Value::from(true));
        let skill = root.path().join(&id).join("skills/search/SKILL.md");
        assert_eq!(std::fs::read_to_string(skill).unwrap(), "s");
        assert!(matches!(
            import(root.path(), "my agent -ünïted", &given),
            Err(ImportError::Exists { id }) if id == "my-agent--ünïted"
        ));
        let left = std::fs::read_dir(root.path()).unwrap().count();
        assert_eq!(left, 1, "nothing unfinished stays");
    }

    #[test]
    fn paths_that_lead_elsewhere_write_nothing() {
        let root = tempfile::tempdir().unwrap();
        for bad in [
            "",
            "/etc/x",
            "../x",
            "a/../../x",
            "a..b",
            "./x",
            "a/",
            "a//../x",
            ".",
        ] {
            let given = files(&[("good.md", "x"), (bad, "x")]);
            let refused = import(root.path(), "t", &given);
            assert!(
                matches!(refused, Err(ImportError::Invalid { .. })),
                "{bad:?}"
            );
        }
        let many: BTreeMap<_, _> = (0..=MAX_FILES)
            .map(|n| (format!("{n}.md"), String::new()))
            .collect();
        let refused = import(root.path(), "t", &many).unwrap_err();
        assert_eq!(refused.to_string(), "too many files (201), max 200");
        assert!(import(root.path(), "", &files(&[("a.md", "")])).is_err());
        assert!(import(root.path(), "t", &files(&[])).is_err());
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
        // A file stands where a directory is wanted: nothing of it stays either.
        let clash = files(&[("a", "file"), ("a/b", "below it")]);
        assert!(matches!(
            import(root.path(), "t", &clash),
            Err(ImportError::Write(_))
        ));
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_directory_has_a_plain_name() {
        for (name, expected) in [
            ("Research Lead", "research-lead"),
            ("../../etc", "etc"),
            ("a_b-C.9", "a_b-c9"),
            ("...", "unnamed"),
            ("日本", "日本"),
        ] {
            assert_eq!(directory_name(name), expected);
        }
    }

    proptest! {
        #[test]
        fn any_name_reads_back(name in "\\PC*|[\\x01-\\x7f]*|.*") {
            let yaml: Value = serde_norway::from_str(&generate(&name, &BTreeMap::new())).unwrap();
            prop_assert_eq!(yaml["name"].as_str(), Some(name.as_str()));
        }
    }
}
