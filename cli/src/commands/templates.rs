//! `longshore templates`: what workspaces can be created from.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::client::Client;
use crate::exit::Exit;
use crate::output::{OutputArgs, headline, print_json, print_line, print_table, text};
use crate::settings::client::ClientSettings;

/// Arguments of `longshore templates`.
#[derive(Args, Debug)]
pub(crate) struct TemplatesArgs {
    #[command(subcommand)]
    command: TemplatesCommand,
    #[command(flatten)]
    server: ClientSettings,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Subcommand, Debug)]
enum TemplatesCommand {
    /// List the templates.
    List,
    /// List those that are left out, and why.
    Problems,
    /// Add the files of a directory as a template.
    Import {
        /// The template's name.
        name: String,
        /// The directory; its files must be text, at most 200.
        dir: PathBuf,
    },
}

/// Runs one of them.
pub(crate) async fn run(args: TemplatesArgs) -> anyhow::Result<Exit> {
    let client = Client::new(&args.server)?;
    let json = args.output.json;
    match args.command {
        TemplatesCommand::List => {
            let templates: Value = client.get("/templates", &[]).await?;
            let columns = ["id", "name", "runtime", "model"];
            show(&templates, &templates, json, columns);
        }
        TemplatesCommand::Problems => {
            let query = [("limit", "500".to_owned())];
            let problems: Value = client.get("/templates/problems", &query).await?;
            let items = problems.get("items").unwrap_or(&Value::Null);
            show(&problems, items, json, ["id", "file", "line", "error"]);
        }
        TemplatesCommand::Import { name, dir } => {
            let mut files = BTreeMap::new();
            read_files(&dir, "", &mut files)?;
            if files.is_empty() {
                bail!("{} has no files", dir.display());
            }
            let body = json!({ "name": name, "files": files });
            let imported: Value = client.post("/templates/import", &body).await?;
            if json {
                print_json(&imported);
            } else {
                print_line(&text(&imported, "id"));
            }
        }
    }
    Ok(Exit::Done)
}

fn show(answer: &Value, rows: &Value, json: bool, columns: [&str; 4]) {
    if json {
        print_json(answer);
        return;
    }
    let rows = rows.as_array().map(Vec::as_slice).unwrap_or_default();
    let header = columns.map(str::to_uppercase);
    print_table(
        header.each_ref().map(String::as_str),
        rows.iter()
            .map(|row| columns.map(|column| headline(&text(row, column), 60))),
    );
}

fn read_files(
    dir: &Path,
    prefix: &str,
    files: &mut BTreeMap<String, String>,
) -> anyhow::Result<()> {
    let unreadable = || format!("{} cannot be read", dir.display());
    for entry in std::fs::read_dir(dir).with_context(unreadable)? {
        let entry = entry.with_context(unreadable)?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else {
            bail!("{} has a name that is not UTF-8", entry.path().display());
        };
        let path = format!("{prefix}{name}");
        let kind = entry.file_type().with_context(unreadable)?;
        if kind.is_dir() {
            read_files(&entry.path(), &format!("{path}/"), files)?;
        } else if kind.is_file() {
            let content = std::fs::read_to_string(entry.path())
                .with_context(|| format!("{} cannot be read as text", entry.path().display()))?;
            files.insert(path, content);
        }
    }
    Ok(())
}
