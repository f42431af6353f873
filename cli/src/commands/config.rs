//! `longshore config`: the reference of every setting, read off the command line definition.

use clap::{Args, Command};

use crate::exit::Exit;
use crate::output::{print_json, print_line};
use crate::settings::reflect::{Setting, groups, server_settings};

/// Arguments of `longshore config`.
#[derive(Args, Debug)]
pub(crate) struct ConfigArgs {
    /// Print the page `docs/configuration.md`.
    #[arg(long, conflicts_with = "json")]
    markdown: bool,

    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Prints the reference.
pub(crate) fn run(args: &ConfigArgs, definition: &Command) -> anyhow::Result<Exit> {
    let settings = server_settings(definition);
    if args.json {
        print_json(&serde_json::to_value(&settings)?);
    } else if args.markdown {
        print_line(markdown(&settings).trim_end());
    } else {
        print_line(text(&settings).trim_end());
    }
    Ok(Exit::Done)
}

fn text(settings: &[Setting]) -> String {
    let mut page = String::from(
        "Every setting is an environment variable and a flag; the flag wins. A value that does not parse refuses to start.\n",
    );
    for group in groups(settings) {
        page.push_str(&format!("\n{group}\n"));
        for setting in settings.iter().filter(|setting| setting.group == group) {
            let name = setting.env.as_deref().unwrap_or(&setting.flag);
            let flag = if setting.env.is_some() {
                format!("  {}", setting.flag)
            } else {
                String::new()
            };
            let default = setting
                .default
                .as_deref()
                .map(|default| format!("  [default: {default}]"))
                .unwrap_or_default();
            page.push_str(&format!(
                "  {name}{flag}  ({}){default}\n      {}\n",
                setting.commands.join(", "),
                setting.meaning
            ));
        }
    }
    page
}

fn markdown(settings: &[Setting]) -> String {
    let mut page = String::from(
        "# Configuration\n\n\
         Printed by `longshore config --markdown`; edit the settings in `cli/src/settings/`, not this page.\n\n\
         Every setting is an environment variable and a flag; the flag wins. A variable that is set but empty counts as \
         unset. A value that does not parse refuses to start. Values marked *secret* are never printed.\n",
    );
    for group in groups(settings) {
        page.push_str(&format!(
            "\n## {group}\n\n| setting | flag | default | commands | meaning |\n|---|---|---|---|---|\n"
        ));
        for setting in settings.iter().filter(|setting| setting.group == group) {
            let env = setting
                .env
                .as_deref()
                .map_or_else(|| "–".to_owned(), |env| format!("`{env}`"));
            let default = setting
                .default
                .as_deref()
                .map_or_else(|| "–".to_owned(), |default| format!("`{default}`"));
            let secret = if setting.secret { "*Secret.* " } else { "" };
            page.push_str(&format!(
                "| {env} | `{}` | {default} | {} | {secret}{} |\n",
                setting.flag,
                setting.commands.join(", "),
                setting.meaning.replace('|', "\\|")
            ));
        }
    }
    page
}
