//! The runtimes this installation knows (`spec: lifecycle` §7): from a manifest when there is one, else a fixed list.

use std::collections::BTreeSet;
use std::path::Path;

use serde::Deserialize;

use crate::workspace::EXTERNAL;

/// The runtime of a workspace that names none, or an unknown one.
pub const DEFAULT_RUNTIME: &str = "claude-code";
/// Those that have an image of their own.
pub const PROVISIONABLE: [&str; 4] = ["claude-code", "hermes", "openclaw", "codex"];

const DEFAULT_SUFFIX: &str = "-default";
#[derive(Deserialize)]
struct Manifest {
    #[serde(default)]
    workspace_templates: Vec<ManifestEntry>,
}

#[derive(Deserialize)]
struct ManifestEntry {
    #[serde(default)]
    name: String,
}

/// The known runtimes. Read once, for the life of the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runtimes {
    known: BTreeSet<String>,
}

impl Runtimes {
    /// Reads the manifest at `path`; without one, and where it cannot be read, the fixed list, with a log line.
    #[must_use]
    pub fn load(path: Option<&Path>) -> Self {
        let Some(path) = path else {
            tracing::info!("no runtime manifest; the built-in list of runtimes is in force");
            return Self::fallback();
        };
        let read = std::fs::read_to_string(path)
            .map_err(|error| error.to_string())
            .and_then(|text| Self::from_manifest(&text).map_err(|error| error.to_string()));
        read.unwrap_or_else(|error| {
            tracing::warn!(
                manifest.path = %path.display(),
                error,
                "the runtime manifest cannot be used; the built-in list is in force"
            );
            Self::fallback()
        })
    }

    /// The list without a manifest.
    #[must_use]
    pub fn fallback() -> Self {
        Self::from_names(PROVISIONABLE)
    }

    fn from_manifest(text: &str) -> Result<Self, serde_json::Error> {
        let manifest: Manifest = serde_json::from_str(text)?;
        Ok(Self::from_names(manifest.workspace_templates.iter().map(
            |entry| {
                let name = entry.name.trim();
                name.strip_suffix(DEFAULT_SUFFIX).unwrap_or(name)
            },
        )))
    }

    fn from_names<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let names = names.into_iter().chain([EXTERNAL]);
        Self {
            known: names
                .filter(|name| !name.is_empty())
                .map(str::to_owned)
                .collect(),
        }
    }

    /// Whether workspaces may have this runtime.
    #[must_use]
    pub fn knows(&self, runtime: &str) -> bool {
        self.known.contains(runtime)
    }

    /// All of them, `external` included.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.known.iter().map(String::as_str)
    }

    /// A runtime that is safe to store, to put into YAML and to look up as a directory: the given one if it is known,
    /// else the default, with a log line for what was rejected.
    #[must_use]
    pub fn sanitize(&self, runtime: &str) -> String {
        let runtime = runtime.trim();
        if self.knows(runtime) {
            return runtime.to_owned();
        }
        if !runtime.is_empty() {
            tracing::warn!(
                runtime,
                "unknown runtime; {DEFAULT_RUNTIME} takes its place"
            );
        }
        DEFAULT_RUNTIME.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn the_manifest_names_the_runtimes_and_external_is_always_one() {
        let text = r#"{"version": 1, "plugins": [{"name": "p"}], "workspace_templates": [
            {"name": " claude-code-default ", "repo": "r", "ref": "v1"}, {"name": "hermes"}, {"name": ""}, {"repo": "x"}
        ]}"#;
        let runtimes = Runtimes::from_manifest(text).unwrap();
        let known: Vec<_> = runtimes.known.iter().map(String::as_str).collect();
        assert_eq!(known, ["claude-code", "external", "hermes"]);
    }

    #[test]
    fn a_manifest_that_cannot_be_used_gives_the_built_in_list() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("manifest.json");
        assert_eq!(Runtimes::load(Some(&path)), Runtimes::fallback());
        std::fs::write(&path, "{not json").unwrap();
        assert_eq!(Runtimes::load(Some(&path)), Runtimes::fallback());
        std::fs::write(&path, r#"{"workspace_templates": [{"name": "codex"}]}"#).unwrap();
        assert!(!Runtimes::load(Some(&path)).knows("hermes"));
    }

    #[test]
    fn unknown_and_hostile_runtimes_become_the_default() {
        let runtimes = Runtimes::fallback();
        for known in PROVISIONABLE.into_iter().chain([EXTERNAL]) {
            assert_eq!(runtimes.sanitize(known), known);
        }
        assert_eq!(runtimes.sanitize(" hermes "), "hermes");
        for other in [
            "",
            "  ",
            "langgraph",
            "crewai",
            "autogen",
            "deepagents",
            "gemini-cli",
            "../../etc",
            "x\ny: z",
        ] {
            assert_eq!(runtimes.sanitize(other), DEFAULT_RUNTIME, "{other:?}");
        }
    }

    #[test]
    fn what_is_rejected_is_told_and_nothing_else_is() {
        let told = |runtime: &str| {
            let log = Log::default();
            let subscriber = tracing_subscriber::fmt()
                .with_writer(log.clone())
                .with_ansi(false)
                .finish();
            tracing::subscriber::with_default(subscriber, || {
                Runtimes::fallback().sanitize(runtime)
            });
            log.text()
        };
        let line = told("gemini-cli");
        assert!(
            line.contains("WARN") && line.contains("gemini-cli"),
            "{line}"
        );
        for quiet in ["", "hermes", "external"] {
            assert_eq!(told(quiet), "", "{quiet}");
        }
    }

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Log {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl std::io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl tracing_subscriber::fmt::MakeWriter<'_> for Log {
        type Writer = Self;

        fn make_writer(&self) -> Self {
            self.clone()
        }
    }
}
