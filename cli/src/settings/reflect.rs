//! Settings as data, read off the command line definition itself, so that documentation and reality cannot part:
//! the reference of `longshore config`, and the values in force, logged without secrets at debug level.

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};

/// The commands whose options are settings of a server.
const SERVER_COMMANDS: [&str; 4] = ["up", "api", "worker", "migrate"];

/// One setting, as the reference shows it.
#[derive(Clone, Debug, serde::Serialize)]
pub(crate) struct Setting {
    /// The concern it belongs to.
    pub(crate) group: String,
    /// Environment variable.
    pub(crate) env: Option<String>,
    /// Flag, with two dashes.
    pub(crate) flag: String,
    /// Default as text; none when unset is a state of its own.
    pub(crate) default: Option<String>,
    /// Whether its value is a secret.
    pub(crate) secret: bool,
    /// Commands that have it.
    pub(crate) commands: Vec<String>,
    /// What it does, its unit and range.
    pub(crate) meaning: String,
}

/// Every setting of the server commands, in the order of their definition, each once.
pub(crate) fn server_settings(root: &Command) -> Vec<Setting> {
    let mut settings: Vec<Setting> = Vec::new();
    for name in SERVER_COMMANDS {
        let Some(command) = root.find_subcommand(name) else {
            continue;
        };
        for argument in root
            .get_arguments()
            .filter(|argument| argument.is_global_set())
            .chain(command.get_arguments())
        {
            let Some(setting) = describe(argument, name) else {
                continue;
            };
            match settings
                .iter_mut()
                .find(|known| known.flag == setting.flag && known.meaning == setting.meaning)
            {
                Some(known) => known.commands.push(name.to_owned()),
                None => settings.push(setting),
            }
        }
    }
    settings
}

/// The groups in the order in which they first appear.
pub(crate) fn groups(settings: &[Setting]) -> Vec<&str> {
    let mut groups: Vec<&str> = Vec::new();
    for setting in settings {
        if !groups.contains(&setting.group.as_str()) {
            groups.push(&setting.group);
        }
    }
    groups
}

/// Logs the values in force of one command, secrets masked.
pub(crate) fn log_values(command: &Command, matches: &ArgMatches) {
    for argument in command.get_arguments() {
        let id = argument.get_id().as_str();
        let Some(source) = matches.value_source(id) else {
            continue;
        };
        let value = if argument.is_hide_env_values_set() {
            "[set]".to_owned()
        } else {
            matches
                .get_raw(id)
                .map(|values| {
                    values
                        .map(|value| value.to_string_lossy())
                        .collect::<Vec<_>>()
                        .join(",")
                })
                .unwrap_or_default()
        };
        let from = match source {
            ValueSource::DefaultValue => "default",
            ValueSource::EnvVariable => "environment",
            _ => "flag",
        };
        tracing::debug!(setting = %name(argument), value, from, "setting");
    }
}

/// A copy of the definition in which environment variables that are set but empty do not count.
pub(crate) fn without_empty_variables(command: Command) -> Command {
    command
        .mut_args(|argument| {
            let is_empty = argument
                .get_env()
                .and_then(std::env::var_os)
                .is_some_and(|value| value.is_empty());
            if is_empty {
                argument.env(clap::builder::Resettable::<clap::builder::OsStr>::Reset)
            } else {
                argument
            }
        })
        .mut_subcommands(without_empty_variables)
}

fn describe(argument: &Arg, command: &str) -> Option<Setting> {
    let flag = format!("--{}", argument.get_long()?);
    if matches!(flag.as_str(), "--help" | "--version") {
        return None;
    }
    let default = argument
        .get_default_values()
        .iter()
        .map(|value| value.to_string_lossy())
        .collect::<Vec<_>>()
        .join(",");
    Some(Setting {
        group: argument.get_help_heading().unwrap_or("Other").to_owned(),
        env: argument
            .get_env()
            .map(|variable| variable.to_string_lossy().into_owned()),
        flag,
        default: (!default.is_empty()).then_some(default),
        secret: argument.is_hide_env_values_set(),
        commands: vec![command.to_owned()],
        meaning: meaning(argument),
    })
}

fn meaning(argument: &Arg) -> String {
    let text = argument
        .get_long_help()
        .or_else(|| argument.get_help())
        .map(ToString::to_string)
        .unwrap_or_default();
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if text.ends_with(['.', '!']) {
        text
    } else {
        format!("{text}.")
    }
}

fn name(argument: &Arg) -> String {
    argument
        .get_env()
        .map(|variable| variable.to_string_lossy().into_owned())
        .or_else(|| argument.get_long().map(|long| format!("--{long}")))
        .unwrap_or_else(|| argument.get_id().to_string())
}
