//! From a bundle to the workspaces it stands for: everything is judged before anything is written.

use std::collections::BTreeMap;

use super::{Bundle, SYSTEM_PROMPT};
use crate::Fleet;
use crate::import::{ImportError, ImportNode, ImportedFiles, MAX_WORKSPACES, is_inside};
use crate::templates::{CONFIG_FILE, parse_template};
use crate::workspace::fields::{TextFields, check_texts};
use crate::workspace::{NewWorkspace, Origin, check_new_tier};

/// The workspaces of a bundle, each after its parent.
///
/// # Errors
/// [`ImportError`] for the first rule that any of them breaks, with its place in the bundle.
pub fn plan(fleet: &Fleet, bundle: Bundle) -> Result<Vec<ImportNode>, ImportError> {
    let mut nodes = Vec::new();
    let mut left = vec![(bundle, None, "bundle".to_owned())];
    while let Some((mut bundle, parent, place)) = left.pop() {
        if nodes.len() == MAX_WORKSPACES {
            let text = format!("a bundle has at most {MAX_WORKSPACES} workspaces");
            return Err(ImportError::Invalid(text));
        }
        let below = std::mem::take(&mut bundle.sub_workspaces);
        let this = nodes.len();
        nodes.push(ImportNode {
            parent,
            ..node(fleet, bundle, &place)?
        });
        let below = below.into_iter().enumerate().rev();
        left.extend(below.map(|(number, child)| {
            let place = format!("{place}.sub_workspaces[{number}]");
            (child, Some(this), place)
        }));
    }
    Ok(nodes)
}

fn node(fleet: &Fleet, bundle: Bundle, place: &str) -> Result<ImportNode, ImportError> {
    let invalid = |what: String| ImportError::Invalid(format!("{place}: {what}"));
    if bundle.name.is_empty() {
        return Err(invalid("name is required".to_owned()));
    }
    check_texts(&TextFields {
        name: Some(&bundle.name),
        role: Some(&bundle.description),
        model: Some(&bundle.model),
        runtime: None,
    })
    .map_err(invalid)?;
    let tier = Some(bundle.tier);
    check_new_tier(tier, fleet.config.max_tier)?;
    let mut texts = BTreeMap::new();
    for skill in bundle.skills {
        if !is_inside(&skill.id) || skill.id.contains('/') {
            return Err(invalid(format!(
                "skill {:?} is no name of a directory",
                skill.id
            )));
        }
        let files = skill.files.into_iter();
        texts.extend(files.map(|(path, text)| (format!("skills/{}/{path}", skill.id), text)));
    }
    texts.extend(bundle.prompts);
    if !bundle.system_prompt.is_empty() {
        texts.insert(SYSTEM_PROMPT.to_owned(), bundle.system_prompt);
    }
    if let Some(bad) = texts.keys().find(|path| !is_inside(path)) {
        return Err(invalid(format!("{bad:?} is no path of a file")));
    }
    let config = texts.get(CONFIG_FILE);
    let runtime = config.and_then(|text| parse_template("", text).ok()?.runtime);
    Ok(ImportNode {
        new: NewWorkspace {
            name: bundle.name,
            role: Some(bundle.description),
            tier,
            model: Some(bundle.model),
            runtime,
            origin: Origin::Bundle {
                id: bundle.id,
                agent_card: bundle.agent_card,
            },
            ..NewWorkspace::default()
        },
        files: ImportedFiles {
            texts,
            plugins: Vec::new(),
        },
        parent: None,
    })
}
