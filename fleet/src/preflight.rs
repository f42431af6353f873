//! What a template wants before it is worth starting.

use crate::config_source::ConfigFile;
use crate::environment::Environment;
use crate::templates::{CONFIG_FILE, parse_template};

/// The variables that the effective `config.yaml` requires and the environment lacks or has empty, in its order. A file
/// that does not parse requires nothing: the runtime will say what is wrong with it.
#[must_use]
pub fn missing_env(files: &[ConfigFile], env: &Environment) -> Vec<String> {
    let Some(file) = files.iter().rev().find(|file| file.path == CONFIG_FILE) else {
        return Vec::new();
    };
    let text = String::from_utf8_lossy(&file.bytes);
    let required = match parse_template("", &text) {
        Ok(template) => template.required_env,
        Err(error) => {
            tracing::warn!(
                error,
                "the workspace's {CONFIG_FILE} does not parse; nothing is required of it"
            );
            return Vec::new();
        }
    };
    let absent = |name: &String| env.get(name).is_none_or(|value| value.expose().is_empty());
    required.into_iter().filter(absent).collect()
}

/// The reason that is stored and shown for missing variables.
#[must_use]
pub fn missing_env_text(names: &[String]) -> String {
    match names {
        [name] => format!(
            "missing required env var \"{name}\" — add it under Config → Env Vars (or as a Global secret) and retry"
        ),
        _ => format!(
            "missing required env vars {} — add them under Config → Env Vars (or as Global secrets) and retry",
            names.join(", ")
        ),
    }
}

#[cfg(test)]
mod tests {
    use longshore_base::Secret;

    use super::*;

    fn config(text: &str) -> Vec<ConfigFile> {
        vec![ConfigFile {
            path: CONFIG_FILE.to_owned(),
            mode: 0o644,
            bytes: text.as_bytes().to_vec(),
        }]
    }

    #[test]
    fn absent_and_empty_variables_are_missing() {
        let files = config("runtime_config:\n  required_env: [A_KEY, B_KEY, C_KEY]\n");
        let env = Environment {
            vars: vec![
                ("A_KEY".into(), Secret::from("set")),
                ("B_KEY".into(), Secret::from("")),
            ],
        };
        assert_eq!(missing_env(&files, &env), ["B_KEY", "C_KEY"]);
        assert_eq!(
            missing_env(&config("name: [broken"), &env),
            Vec::<String>::new()
        );
        assert_eq!(missing_env(&[], &env), Vec::<String>::new());
    }

    #[test]
    fn the_text_names_what_to_add() {
        assert_eq!(
            missing_env_text(&["A".into()]),
            "missing required env var \"A\" — add it under Config → Env Vars (or as a Global secret) and retry"
        );
        assert_eq!(
            missing_env_text(&["A".into(), "B".into()]),
            "missing required env vars A, B — add them under Config → Env Vars (or as Global secrets) and retry"
        );
    }
}
