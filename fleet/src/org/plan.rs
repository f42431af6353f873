//! From an organisation's template to the workspaces it stands for: everything is judged before anything is written.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use longshore_base::Secret;

use super::{Member, Memory, OrgError, OrgTemplate, Settings, directory, env_file};
use crate::Fleet;
use crate::config_source::{GeneratedConfig, generate};
use crate::import::{ImportError, ImportNode, ImportedFiles, MAX_WORKSPACES, is_inside};
use crate::memories::MemorySeed;
use crate::restart_template::{ORG_TEMPLATES, default_of};
use crate::templates::{CONFIG_FILE, Template};
use crate::workspace::fields::{TextFields, check_texts, non_empty};
use crate::workspace::{EXTERNAL, NewWorkspace, Origin, Position, check_new_tier};
use crate::yaml::quoted;

const SYSTEM_PROMPT: &str = "system-prompt.md";
/// Rest between two idle prompts where a template asks for one and says no time.
const IDLE_INTERVAL_SECONDS: i64 = 600;

/// The workspaces of a template, each after its parent. Reads the disk.
///
/// # Errors
/// [`OrgError`] for the first rule that any of them breaks, with its place in the template.
pub fn plan(fleet: &Fleet, template: &OrgTemplate) -> Result<Vec<ImportNode>, OrgError> {
    if template.workspaces() > MAX_WORKSPACES {
        let text = format!("an organisation has at most {MAX_WORKSPACES} workspaces");
        return Err(OrgError::Invalid(text));
    }
    let root = directory(&fleet.templates, &template.dir)?.ok_or(OrgError::NotFound)?;
    let shared = Shared {
        fleet,
        template,
        secrets: env_file::read(&root),
    };
    let mut nodes = Vec::new();
    let roots = template.document.workspaces.iter().enumerate().rev();
    let mut left: Vec<_> = roots
        .map(|(number, member)| (member, None, format!("workspaces[{number}]")))
        .collect();
    while let Some((member, parent, place)) = left.pop() {
        let this = nodes.len();
        let mut node = shared.node(member, &place)?;
        node.parent = parent;
        if this == 0 {
            let global = template.document.global_memories.iter();
            let global = global.map(|memory| seed(memory, Some("GLOBAL")));
            node.new.initial_memories.extend(global);
        }
        nodes.push(node);
        let children = member.children.iter().enumerate().rev();
        left.extend(
            children
                .map(|(number, child)| (child, Some(this), format!("{place}.children[{number}]"))),
        );
    }
    if nodes.is_empty() {
        return Err(OrgError::Invalid("it has no workspaces".to_owned()));
    }
    Ok(nodes)
}

/// What all workspaces of an import have in common.
struct Shared<'a> {
    fleet: &'a Fleet,
    template: &'a OrgTemplate,
    secrets: BTreeMap<String, Secret<String>>,
}

impl Shared<'_> {
    fn node(&self, member: &Member, place: &str) -> Result<ImportNode, OrgError> {
        let invalid = |what: String| OrgError::Invalid(format!("{place}: {what}"));
        let (own, defaults) = (&member.settings, &self.template.document.defaults);
        let said = |of: fn(&Settings) -> &Option<String>| {
            non_empty(of(own).clone()).or_else(|| non_empty(of(defaults).clone()))
        };
        let named = self.source(member, said(|settings| &settings.template), place)?;
        let declared = |name: Option<&String>| match name {
            Some(name) => self.fleet.templates.read(name),
            None => Ok(Template::default()),
        };
        let of_named = declared(named.as_ref()).map_err(|error| invalid(error.to_string()))?;
        let runtime = said(|settings| &settings.runtime).or(of_named.runtime);
        let runtime = if member.external {
            EXTERNAL.to_owned()
        } else {
            let runtime = runtime.as_deref().unwrap_or_default();
            self.fleet.runtimes.sanitize(runtime)
        };
        let default = || default_of(self.fleet, &runtime).map(|default| default.label);
        let template = named.or_else(default);
        // The same as the one that the environment is going to name.
        let of_template =
            declared(template.as_ref()).map_err(|error| invalid(error.to_string()))?;
        let model = said(|settings| &settings.model).or(of_template.model);
        check_texts(&TextFields {
            name: Some(&member.name),
            role: member.role.as_deref(),
            model: model.as_deref(),
            runtime: Some(&runtime),
        })
        .map_err(invalid)?;
        if member.name.is_empty() {
            return Err(invalid("name is required".to_owned()));
        }
        let tier = own.tier.or(defaults.tier);
        let checked = check_new_tier(tier, self.fleet.config.max_tier);
        let tier_here = checked.map_err(ImportError::from)?;
        let config = GeneratedConfig {
            name: &member.name,
            role: member.role.as_deref().unwrap_or_default(),
            tier: tier_here,
            runtime: &runtime,
            model: model.as_deref(),
        };
        let more = self.more_config(
            own,
            said(|settings| &settings.initial_prompt),
            said(|settings| &settings.idle_prompt),
        );
        let mut texts = BTreeMap::from([(CONFIG_FILE.to_owned(), generate(&config) + &more)]);
        if let Some(prompt) = non_empty(member.system_prompt.clone()) {
            texts.insert(SYSTEM_PROMPT.to_owned(), prompt);
        }
        let memories = member.initial_memories.iter();
        Ok(ImportNode {
            new: NewWorkspace {
                name: member.name.clone(),
                role: member.role.clone(),
                template,
                tier,
                model,
                runtime: Some(runtime),
                external: member.external,
                url: member.url.clone(),
                workspace_dir: said(|settings| &settings.workspace_dir),
                workspace_access: said(|settings| &settings.workspace_access),
                secrets: self.secrets_of(member),
                max_concurrent_tasks: member.max_concurrent_tasks,
                canvas: member.canvas.map(|place| Position {
                    x: place.x,
                    y: place.y,
                }),
                initial_memories: memories.map(|memory| seed(memory, None)).collect(),
                origin: Origin::Organisation,
                ..NewWorkspace::default()
            },
            files: ImportedFiles {
                texts,
                plugins: plugins(&defaults.plugins, &own.plugins),
            },
            parent: None,
        })
    }

    /// The workspace's own files, else its template; the name to look either up by.
    fn source(
        &self,
        member: &Member,
        template: Option<String>,
        place: &str,
    ) -> Result<Option<String>, OrgError> {
        let Some(files_dir) = non_empty(member.files_dir.clone()) else {
            return Ok(template);
        };
        let name = format!("{ORG_TEMPLATES}/{}/{files_dir}", self.template.dir);
        let found = if is_inside(&files_dir) {
            self.fleet.templates.find_directory(&name).ok()
        } else {
            None
        };
        match found {
            Some(Some(_)) => Ok(Some(name)),
            Some(None) => {
                tracing::warn!(
                    template = self.template.dir,
                    files_dir,
                    "there is no such directory of files"
                );
                Ok(template)
            }
            None => Err(OrgError::Invalid(format!(
                "{place}: files_dir {files_dir:?} is no directory inside of the template"
            ))),
        }
    }

    /// Those of the whole organisation, and its own over them.
    fn secrets_of(&self, member: &Member) -> BTreeMap<String, Secret<String>> {
        let mut secrets = self.secrets.clone();
        let files_dir = member.files_dir.as_deref().filter(|dir| is_inside(dir));
        let own = files_dir.and_then(|files_dir| {
            let root = directory(&self.fleet.templates, &self.template.dir).ok()??;
            Some(env_file::read(&root.join(Path::new(files_dir))))
        });
        secrets.extend(own.unwrap_or_default());
        secrets
    }

    /// What an organisation adds to the configuration that is made for each workspace.
    fn more_config(
        &self,
        own: &Settings,
        initial_prompt: Option<String>,
        idle_prompt: Option<String>,
    ) -> String {
        let defaults = &self.template.document.defaults;
        let mut yaml = String::new();
        let mut routing = defaults.category_routing.clone();
        routing.extend(own.category_routing.clone());
        // Writing into a String cannot fail.
        if !routing.is_empty() {
            yaml.push_str("category_routing:\n");
            for (category, roles) in routing {
                let roles: Vec<_> = roles.iter().map(|role| quoted(role)).collect();
                writeln!(yaml, "  {}: [{}]", quoted(&category), roles.join(", ")).ok();
            }
        }
        if let Some(prompt) = initial_prompt {
            writeln!(yaml, "initial_prompt: {}", quoted(&prompt)).ok();
        }
        if let Some(prompt) = idle_prompt {
            let seconds = [own.idle_interval_seconds, defaults.idle_interval_seconds]
                .into_iter()
                .find(|seconds| *seconds > 0)
                .unwrap_or(IDLE_INTERVAL_SECONDS);
            writeln!(yaml, "idle_prompt: {}", quoted(&prompt)).ok();
            writeln!(yaml, "idle_interval_seconds: {seconds}").ok();
        }
        yaml
    }
}

fn seed(memory: &Memory, scope: Option<&str>) -> MemorySeed {
    MemorySeed {
        content: memory.content.clone(),
        scope: scope.unwrap_or(&memory.scope).to_owned(),
    }
}

/// Those of all, then its own; one with `!` or `-` before it is left out.
fn plugins(defaults: &[String], own: &[String]) -> Vec<String> {
    let mut wanted: Vec<String> = Vec::new();
    for name in defaults.iter().chain(own) {
        match name.strip_prefix(['!', '-']) {
            Some(unwanted) => wanted.retain(|name| name != unwanted),
            None if wanted.contains(name) => {}
            None => wanted.push(name.clone()),
        }
    }
    wanted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plugins_add_up_and_a_sign_takes_one_away() {
        let names = |list: &[&str]| {
            list.iter()
                .map(|name| (*name).to_owned())
                .collect::<Vec<_>>()
        };
        let defaults = names(&["a", "b", "c"]);
        assert_eq!(
            plugins(&defaults, &names(&["!b", "d", "a", "-c"])),
            ["a", "d"]
        );
        assert_eq!(plugins(&[], &names(&["x", "x"])), ["x"]);
    }
}
