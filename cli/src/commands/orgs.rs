//! `longshore orgs`: make whole organisations of templates.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::client::Client;
use crate::exit::Exit;
use crate::output::{OutputArgs, headline, print_json, print_table, text};
use crate::settings::client::ClientSettings;

/// Arguments of `longshore orgs`.
#[derive(Args, Debug)]
pub(crate) struct OrgsArgs {
    #[command(subcommand)]
    command: OrgsCommand,
    #[command(flatten)]
    server: ClientSettings,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Subcommand, Debug)]
enum OrgsCommand {
    /// List the templates of organisations.
    Templates,
    /// Create the workspaces of a template and bring them up, a few at a time.
    Import {
        /// The template's directory.
        dir: String,
        /// Also without the variables that it requires as global secrets.
        #[arg(long)]
        force: bool,
    },
}

/// Runs one of them.
pub(crate) async fn run(args: OrgsArgs) -> anyhow::Result<Exit> {
    let client = Client::new(&args.server)?;
    let json = args.output.json;
    match args.command {
        OrgsCommand::Templates => {
            let templates: Value = client.get("/org/templates", &[]).await?;
            Ok(show(
                &templates,
                &templates,
                json,
                ["dir", "name", "workspaces", "description"],
            ))
        }
        OrgsCommand::Import { dir, force } => {
            let body = json!({ "dir": dir, "force": force });
            let answer: Value = client.post("/org/import", &body).await?;
            let members = answer.get("workspaces").cloned().unwrap_or_default();
            Ok(show(
                &answer,
                &members,
                json,
                ["id", "name", "status", "error"],
            ))
        }
    }
}

fn show(answer: &Value, rows: &Value, json: bool, columns: [&str; 4]) -> Exit {
    let rows = rows.as_array().map(Vec::as_slice).unwrap_or_default();
    if json {
        print_json(answer);
    } else {
        print_table(
            columns
                .map(|column| column.to_uppercase())
                .each_ref()
                .map(String::as_str),
            rows.iter()
                .map(|row| columns.map(|column| headline(&text(row, column), 60))),
        );
    }
    if rows.iter().any(|row| text(row, "status") == "failed") {
        Exit::Failed
    } else {
        Exit::Done
    }
}
