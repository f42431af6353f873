//! From a workspace and its files to a bundle.

use std::collections::BTreeMap;

use serde_norway::Value;

use super::{Bundle, SKILL_FILE, SYSTEM_PROMPT, Skill};
use crate::Fleet;
use crate::config_source::ConfigFile;
use crate::templates::CONFIG_FILE;
use crate::workspace::Workspace;

/// The bundle of one workspace, without what is below it. Of its files go along the configuration, the prompts beside it
/// and the skills, as far as they are text; known secrets in them are masked.
#[must_use]
pub fn describe(
    fleet: &Fleet,
    workspace: &Workspace,
    model: Option<String>,
    files: Vec<ConfigFile>,
) -> Bundle {
    let mut bundle = Bundle {
        id: workspace.id.to_string(),
        name: workspace.name.clone(),
        description: workspace.role.clone().unwrap_or_default(),
        tier: i64::from(workspace.tier),
        model: model.unwrap_or_default(),
        agent_card: workspace.agent_card.clone(),
        version: "1.0.0".to_owned(),
        ..Bundle::default()
    };
    let mut skills: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for file in files {
        let Ok(text) = String::from_utf8(file.bytes) else {
            continue;
        };
        if text.contains('\0') {
            continue;
        }
        let text = fleet.redactor.clean(&text);
        match file.path.split_once('/') {
            None if file.path == SYSTEM_PROMPT => bundle.system_prompt = text,
            None if file.path == CONFIG_FILE || is_prompt(&file.path) => {
                bundle.prompts.insert(file.path, text);
            }
            Some(("skills", inside)) => {
                if let Some((skill, path)) = inside.split_once('/') {
                    let files = skills.entry(skill.to_owned()).or_default();
                    files.insert(path.to_owned(), text);
                }
            }
            _ => {}
        }
    }
    bundle.skills = skills.into_iter().map(skill).collect();
    bundle
}

fn is_prompt(path: &str) -> bool {
    !path.starts_with('.') && path.ends_with(".md")
}

fn skill((id, files): (String, BTreeMap<String, String>)) -> Skill {
    let head = files.get(SKILL_FILE).and_then(|text| front_matter(text));
    let said = |key: &str| {
        let value = head.as_ref()?.get(key)?.as_str()?;
        Some(value.to_owned())
    };
    Skill {
        name: said("name").unwrap_or_else(|| id.clone()),
        description: said("description").unwrap_or_default(),
        id,
        files,
    }
}

/// The YAML between the two lines of dashes that a skill begins with.
fn front_matter(text: &str) -> Option<Value> {
    let rest = text.strip_prefix("---\n")?;
    let (head, _) = rest.split_once("\n---")?;
    serde_norway::from_str(head).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skill_is_named_by_what_it_says_of_itself() {
        let files = |text: &str| BTreeMap::from([(SKILL_FILE.to_owned(), text.to_owned())]);
        let told = skill((
            "search".to_owned(),
            files("---\nname: Search\ndescription: finds things\n---\nbody"),
        ));
        assert_eq!(
            (told.name.as_str(), told.description.as_str()),
            ("Search", "finds things")
        );
        for silent in ["no head", "---\n[unclosed\n---\n", ""] {
            let silent = skill(("search".to_owned(), files(silent)));
            assert_eq!(
                (silent.name.as_str(), silent.description.as_str()),
                ("search", "")
            );
        }
    }
}
