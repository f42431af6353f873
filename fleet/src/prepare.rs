//! Why a workspace cannot be started, found before any engine is asked.

use serde_json::{Value, json};

use crate::FleetError;
use crate::secrets::UnsealError;

/// A provision that ends before the backend. `Display` is for the log; [`PrepareError::public`] for rows and events.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// A secret of every workspace does not open.
    #[error("a global secret does not open")]
    GlobalSecret(#[source] UnsealError),
    /// A secret of this workspace does not open.
    #[error("a secret of the workspace does not open")]
    WorkspaceSecret(#[source] UnsealError),
    /// The template wants variables that are absent or empty.
    #[error("required variables are missing: {}", .names.join(", "))]
    MissingEnv {
        /// Which, in the template's order.
        names: Vec<String>,
    },
    /// Neither the template nor a default has a `config.yaml`.
    #[error("no config.yaml for template {template}")]
    NoConfig {
        /// The template as named.
        template: String,
    },
    /// The config volume holds no `config.yaml`, and the runtime has no default template.
    #[error("the config volume is empty and there is no default template for the runtime")]
    EmptyVolume,
    /// The template's files cannot be read.
    #[error("the template {template} cannot be read")]
    Template {
        /// The template as named.
        template: String,
        /// What the file system said.
        source: std::io::Error,
    },
    /// What an import brought for it could not be read.
    #[error("the files that were imported for the workspace cannot be read")]
    Imported(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The database did not answer.
    #[error("the workspace's data cannot be read")]
    Fleet(#[from] FleetError),
}

impl PrepareError {
    /// The reason that may be stored and shown: no paths, no values.
    #[must_use]
    pub fn public(&self) -> String {
        match self {
            Self::GlobalSecret(_) => "failed to decrypt global secret".to_owned(),
            Self::WorkspaceSecret(_) => "failed to decrypt workspace secret".to_owned(),
            Self::MissingEnv { names } => crate::preflight::missing_env_text(names),
            Self::NoConfig { .. } => {
                "the workspace has no config.yaml: its template has none and there is no default for its runtime — \
                 delete the workspace or supply a template"
                    .to_owned()
            }
            Self::EmptyVolume => {
                "the workspace's config volume has no config.yaml and there is no default template for its runtime — \
                 delete the workspace or supply a template"
                    .to_owned()
            }
            Self::Template { .. } | Self::Imported(_) | Self::Fleet(_) => {
                "provisioning failed".to_owned()
            }
        }
    }

    /// What the event says beside the reason.
    #[must_use]
    pub fn extras(&self) -> Value {
        match self {
            Self::MissingEnv { names } => json!({ "missing": names }),
            Self::GlobalSecret(_)
            | Self::WorkspaceSecret(_)
            | Self::NoConfig { .. }
            | Self::EmptyVolume
            | Self::Template { .. }
            | Self::Imported(_)
            | Self::Fleet(_) => json!({}),
        }
    }

    /// Whether the same attempt can succeed later without anybody changing anything.
    #[must_use]
    pub const fn retryable(&self) -> bool {
        match self {
            Self::Fleet(error) => error.retryable(),
            Self::Imported(_) => true,
            Self::GlobalSecret(_)
            | Self::WorkspaceSecret(_)
            | Self::MissingEnv { .. }
            | Self::NoConfig { .. }
            | Self::EmptyVolume
            | Self::Template { .. } => false,
        }
    }
}
