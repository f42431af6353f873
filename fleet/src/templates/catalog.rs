//! What there is to choose from: the templates as clients list them, and those that are left out (`spec: rest-api` §6.13).
//!
//! Read from the disk each time, so that a template that was added or mended shows at once; only the deadlines that
//! templates declare are kept from the start of the process.

use std::path::Path;

use serde::Deserialize;
use serde_norway::Value;

use super::{CONFIG_FILE, list_directories, read_config, text_of};

/// A template that can be chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CatalogEntry {
    /// Its directory's name.
    pub id: String,
    /// Name for people; empty without one.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// Runtime it is for.
    pub runtime: String,
    /// Tier it suggests; 0 without one.
    pub tier: i64,
    /// Model it suggests: the top-level one, else that of `runtime_config`.
    pub model: String,
    /// Models to choose from.
    pub models: Vec<ModelOffer>,
    /// Variables without which it does not start.
    pub required_env: Vec<String>,
    /// What its agent can do.
    pub skills: Vec<String>,
    /// Deadline of its bringing-up, in seconds; 0 without one.
    pub provision_timeout_seconds: u64,
    /// Slugs of the providers it may use.
    pub providers: Vec<String>,
    /// How it reaches providers; independent of the slugs.
    pub provider_registry: Vec<ProviderOffer>,
}

/// A model to choose.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelOffer {
    /// Its slug.
    pub id: String,
    /// Name for people.
    pub name: Option<String>,
    /// Variables it needs.
    pub required_env: Vec<String>,
}

/// How a template reaches a provider.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProviderOffer {
    /// Its name.
    pub name: String,
    /// Variables of which one holds its key.
    pub auth_env: Vec<String>,
    /// Prefixes of its models.
    pub model_prefixes: Vec<String>,
    /// Other names of its models.
    pub model_aliases: Vec<String>,
    /// Where it is; empty means the provider's own default.
    pub base_url: String,
}

/// A template that is left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CatalogProblem {
    /// Its directory's name.
    pub id: String,
    /// Which of its files is at fault.
    pub file: String,
    /// What is wrong with it.
    pub error: String,
    /// Where, counted from 1, if the parser knows.
    pub line: Option<usize>,
}

/// All templates of a root.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Catalog {
    /// Those that can be chosen, by directory name.
    pub entries: Vec<CatalogEntry>,
    /// Those that cannot, by directory name.
    pub problems: Vec<CatalogProblem>,
}

/// The part of a `config.yaml` whose shape must be right: a client would offer providers that do not exist.
#[derive(Deserialize)]
struct Shape {
    #[serde(default)]
    runtime_config: Option<RuntimeShape>,
    #[serde(default)]
    providers: Option<Vec<ProviderShape>>,
}

#[derive(Deserialize)]
struct RuntimeShape {
    #[serde(default)]
    providers: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct ProviderShape {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    auth_env: Option<Vec<String>>,
    #[serde(default)]
    model_prefixes: Option<Vec<String>>,
    #[serde(default)]
    model_aliases: Option<Vec<String>>,
    #[serde(default)]
    base_url: Option<String>,
}

impl From<ProviderShape> for ProviderOffer {
    fn from(shape: ProviderShape) -> Self {
        Self {
            name: shape.name.unwrap_or_default(),
            auth_env: shape.auth_env.unwrap_or_default(),
            model_prefixes: shape.model_prefixes.unwrap_or_default(),
            model_aliases: shape.model_aliases.unwrap_or_default(),
            base_url: shape.base_url.unwrap_or_default(),
        }
    }
}

impl Catalog {
    /// Reads every template under the root; a root that cannot be read has none. A broken template is logged and listed.
    #[must_use]
    pub fn read(root: &Path) -> Self {
        let mut catalog = Self::default();
        for id in list_directories(root) {
            let parsed = match read_config(&root.join(&id)) {
                Ok(None) => continue,
                Ok(Some(text)) => parse_entry(&id, &text),
                Err(error) => Err(Fault { error, line: None }),
            };
            match parsed {
                Ok(entry) => catalog.entries.push(entry),
                Err(Fault { error, line }) => {
                    tracing::warn!(template = id, "templates list: skip {id}: {error}");
                    catalog.problems.push(CatalogProblem {
                        id,
                        file: CONFIG_FILE.to_owned(),
                        error,
                        line,
                    });
                }
            }
        }
        catalog
    }
}

struct Fault {
    error: String,
    line: Option<usize>,
}

impl From<serde_norway::Error> for Fault {
    fn from(error: serde_norway::Error) -> Self {
        Self {
            line: error.location().map(|place| place.line()),
            error: error.to_string(),
        }
    }
}

/// Reads a `config.yaml`. But for the providers, members of the wrong type count as absent: one odd key must not cost the
/// template.
fn parse_entry(id: &str, text: &str) -> Result<CatalogEntry, Fault> {
    let yaml: Value = serde_norway::from_str(text)?;
    if !yaml.is_mapping() {
        return Err(Fault {
            error: "it is not a mapping".to_owned(),
            line: None,
        });
    }
    let shape: Shape = serde_norway::from_str(text)?;
    let runtime_config = yaml.get("runtime_config");
    let inner = |key: &str| runtime_config.and_then(|config| config.get(key));
    let text = |value: Option<&Value>| text_of(value).unwrap_or_default();
    let model = text_of(yaml.get("model")).or_else(|| text_of(inner("model")));
    let models = inner("models").and_then(Value::as_sequence);
    let slugs = shape.runtime_config.and_then(|config| config.providers);
    let registry = shape.providers.unwrap_or_default();
    Ok(CatalogEntry {
        id: id.to_owned(),
        name: text(yaml.get("name")),
        description: text(yaml.get("description")),
        runtime: text(yaml.get("runtime")),
        tier: yaml.get("tier").and_then(Value::as_i64).unwrap_or_default(),
        model: model.unwrap_or_default(),
        models: models.into_iter().flatten().filter_map(offer).collect(),
        required_env: texts(inner("required_env")),
        skills: texts(yaml.get("skills")),
        provision_timeout_seconds: inner("provision_timeout_seconds")
            .and_then(Value::as_u64)
            .unwrap_or_default(),
        providers: slugs.unwrap_or_default(),
        provider_registry: registry.into_iter().map(ProviderOffer::from).collect(),
    })
}

fn offer(model: &Value) -> Option<ModelOffer> {
    Some(ModelOffer {
        id: text_of(model.get("id"))?,
        name: text_of(model.get("name")),
        required_env: texts(model.get("required_env")),
    })
}

fn texts(list: Option<&Value>) -> Vec<String> {
    let list = list.and_then(Value::as_sequence).into_iter().flatten();
    list.filter_map(|text| text_of(Some(text))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> CatalogEntry {
        parse_entry("t", text).unwrap_or_else(|fault| panic!("{}", fault.error))
    }

    #[test]
    fn the_two_shapes_of_providers_are_independent() {
        let entry = parsed(
            "name: Hermes\ntier: 2\nmodel: m\nskills: [a, b]\nproviders:\n\
             - {name: one, auth_env: [ONE_KEY], model_prefixes: [one/], model_aliases: [uno], base_url: 'https://one.test'}\n\
             - {name: two, base_url: null}\n\
             runtime_config:\n  providers: [two, three]\n  provision_timeout_seconds: 90\n  required_env: [A_KEY]\n  \
             models: [{id: x, name: X, required_env: [X_KEY]}, {id: y}, {name: nobody}]\n",
        );
        assert_eq!(entry.providers, ["two", "three"]);
        let names: Vec<_> = entry
            .provider_registry
            .iter()
            .map(|provider| (provider.name.as_str(), provider.base_url.as_str()))
            .collect();
        assert_eq!(names, [("one", "https://one.test"), ("two", "")]);
        assert_eq!(entry.provider_registry[0].auth_env, ["ONE_KEY"]);
        let models: Vec<_> = entry.models.iter().map(|model| model.id.as_str()).collect();
        assert_eq!(models, ["x", "y"]);
        assert_eq!(entry.models[0].required_env, ["X_KEY"]);
        assert_eq!(entry.skills, ["a", "b"]);
        assert_eq!(entry.provision_timeout_seconds, 90);
        let bare = parsed("name: x\nproviders: null\nruntime_config: {providers: [slug]}");
        assert_eq!(bare.provider_registry, []);
        assert_eq!(bare.providers, ["slug"]);
    }

    #[test]
    fn an_odd_member_costs_nothing_and_odd_providers_cost_the_template() {
        let entry = parsed("name: [x]\ntier: two\nskills: all\nruntime_config: {models: 5}");
        assert_eq!(
            entry,
            CatalogEntry {
                id: "t".to_owned(),
                ..CatalogEntry::default()
            }
        );
        // The parser counts to where it gave up.
        for (text, line) in [("name: [unclosed", Some(2)), ("- a", None)] {
            let fault = parse_entry("t", text).err().unwrap();
            assert_eq!(fault.line, line, "{text}: {}", fault.error);
        }
        for text in [
            "name: x\nproviders: [slug]",
            "name: x\nproviders: {name: one}",
            "name: x\nruntime_config:\n  providers: [{name: one}]",
            "name: x\nruntime_config:\n  providers: one",
        ] {
            let fault = parse_entry("t", text).err().unwrap();
            assert!(fault.error.contains("providers"), "{text}: {}", fault.error);
            assert!(fault.line.is_some(), "{text}: {}", fault.error);
        }
    }
}
