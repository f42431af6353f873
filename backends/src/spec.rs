//! What is to be run.

use longshore_base::{Secret, WorkspaceId};
use uuid::Uuid;

/// Everything a backend needs to start one workspace. Built by the job, whole, before the first outside call.
#[derive(Clone, Debug)]
pub struct StartSpec {
    /// Whose container it is.
    pub workspace_id: WorkspaceId,
    /// The runtime's name; `claude-code` gets a volume for its sessions.
    pub runtime: String,
    /// 1 to 4; anything else behaves as 2.
    pub tier: i32,
    /// The image reference, as chosen.
    pub image: String,
    /// The reference moves: pull although a local copy exists.
    pub pull_always: bool,
    /// In order: of two entries with one name the later wins.
    pub env: Vec<(String, Secret<String>)>,
    /// What goes into `/configs` before the container's first process runs; of two with one path the later wins.
    pub files: Vec<ConfigFile>,
    /// A directory of the engine's host to mount as `/workspace`, if access allows it.
    pub workspace_dir: Option<String>,
    /// How that directory is mounted.
    pub workspace_access: WorkspaceAccess,
    /// Begin without the sessions of before.
    pub reset_session: bool,
    /// Which (re)provision this is: rises with each, and decides who may remove whose container.
    pub generation: i64,
    /// The run's token; the label by which a run recognises what it made itself.
    pub run: Uuid,
}

/// A file for `/configs`.
#[derive(Clone, PartialEq, Eq)]
pub struct ConfigFile {
    /// Relative to `/configs`, with `/` between its parts.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// What it holds; may be a credential, hence absent from `Debug`.
    pub bytes: Vec<u8>,
}

impl std::fmt::Debug for ConfigFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConfigFile")
            .field("path", &self.path)
            .field("mode", &format_args!("{:#o}", self.mode))
            .field("size_bytes", &self.bytes.len())
            .finish()
    }
}

/// How a workspace sees the directory of the host that was given to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WorkspaceAccess {
    /// Not at all: `/workspace` is a volume of its own.
    #[default]
    None,
    /// `/workspace` is that directory, read-only.
    ReadOnly,
    /// `/workspace` is that directory.
    ReadWrite,
}
