//! Bundles (`spec: rest-api` §6.16): a workspace and all below it as one document, to be brought up again elsewhere. It
//! holds no secrets, no memories and no conversations.

mod export;
mod import;

pub use export::describe;
pub use import::plan;

use std::collections::BTreeMap;

use serde_json::Value;

/// The version of the document's shape.
pub const SCHEMA: &str = "1.0";
const SYSTEM_PROMPT: &str = "system-prompt.md";
const SKILL_FILE: &str = "SKILL.md";

/// A workspace as a document.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Bundle {
    /// Whose it is: the id of the workspace it was made of.
    pub id: String,
    /// Name of the workspace.
    pub name: String,
    /// Its role.
    pub description: String,
    /// Its tier; 0 for the default one.
    pub tier: i64,
    /// Its model slug; empty without one.
    pub model: String,
    /// What its agent is told first.
    pub system_prompt: String,
    /// What its agent can do.
    pub skills: Vec<Skill>,
    /// Tools; kept as they are.
    pub tools: Vec<Tool>,
    /// Its other texts by path, the configuration among them.
    pub prompts: BTreeMap<String, String>,
    /// What is below it.
    pub sub_workspaces: Vec<Bundle>,
    /// What its agent said of itself.
    pub agent_card: Option<Value>,
    /// Who made it.
    pub author: String,
    /// Which version it is.
    pub version: String,
}

/// Something that an agent can do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Skill {
    /// Its directory's name.
    pub id: String,
    /// Name for people.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// Texts by path, below its directory.
    pub files: BTreeMap<String, String>,
}

/// A tool.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tool {
    /// Its name.
    pub id: String,
    /// Its settings.
    pub config: Value,
}
