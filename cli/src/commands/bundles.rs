//! `longshore bundles`: take a workspace out as a document, with all below it, and bring such a document in.

use std::io::{Read as _, Write as _};
use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use serde_json::Value;

use super::workspaces::find_id;
use crate::client::Client;
use crate::exit::Exit;
use crate::output::{OutputArgs, print_json, print_table, text};
use crate::settings::client::ClientSettings;

/// Arguments of `longshore bundles`.
#[derive(Args, Debug)]
pub(crate) struct BundlesArgs {
    #[command(subcommand)]
    command: BundlesCommand,
    #[command(flatten)]
    server: ClientSettings,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Subcommand, Debug)]
enum BundlesCommand {
    /// Write a workspace and all below it as JSON: names, models, prompts and skills; no secrets, no memories.
    Export {
        /// The workspace's id, or its name if no other has it.
        #[arg(value_name = "ID|NAME")]
        workspace: String,
        /// To this file, which must not be there yet; without it to standard output.
        #[arg(long, value_name = "FILE")]
        to: Option<PathBuf>,
    },
    /// Create the workspaces of such a document and bring them up.
    Import {
        /// The document; `-` is standard input.
        file: PathBuf,
    },
}

/// Runs one of them.
pub(crate) async fn run(args: BundlesArgs) -> anyhow::Result<Exit> {
    let client = Client::new(&args.server)?;
    match args.command {
        BundlesCommand::Export { workspace, to } => export(&client, &workspace, to).await,
        BundlesCommand::Import { file } => import(&client, &file, args.output.json).await,
    }
}

async fn export(client: &Client, workspace: &str, to: Option<PathBuf>) -> anyhow::Result<Exit> {
    let id = find_id(client, workspace).await?;
    let bundle: Value = client.get(&format!("/bundles/export/{id}"), &[]).await?;
    let Some(path) = to else {
        print_json(&bundle);
        return Ok(Exit::Done);
    };
    let told = || format!("the bundle was not written to {}", path.display());
    let mut file = std::fs::File::create_new(&path).with_context(told)?;
    serde_json::to_writer_pretty(&mut file, &bundle).with_context(told)?;
    file.write_all(b"\n").with_context(told)?;
    eprintln!("workspace {id} is in {}", path.display());
    Ok(Exit::Done)
}

async fn import(client: &Client, path: &PathBuf, json: bool) -> anyhow::Result<Exit> {
    let mut document = String::new();
    let read = if path.as_os_str() == "-" {
        std::io::stdin().read_to_string(&mut document)
    } else {
        std::fs::File::open(path).and_then(|mut file| file.read_to_string(&mut document))
    };
    read.with_context(|| format!("{} cannot be read", path.display()))?;
    let bundle: Value = serde_json::from_str(&document)
        .with_context(|| format!("{} is not JSON", path.display()))?;
    let answer: Value = client.post("/bundles/import", &bundle).await?;
    if json {
        print_json(&answer);
    } else {
        let mut rows = Vec::new();
        flatten(&answer, &mut rows);
        print_table(["ID", "NAME", "STATUS", "ERROR"], rows);
    }
    Ok(exit_of(&answer))
}

fn flatten(answer: &Value, rows: &mut Vec<[String; 4]>) {
    rows.push(["workspace_id", "name", "status", "error"].map(|member| text(answer, member)));
    for child in children(answer) {
        flatten(child, rows);
    }
}

fn exit_of(answer: &Value) -> Exit {
    let all_of_it = text(answer, "status") != "failed"
        && children(answer).all(|child| matches!(exit_of(child), Exit::Done));
    if all_of_it { Exit::Done } else { Exit::Failed }
}

fn children(answer: &Value) -> impl Iterator<Item = &Value> {
    let children = answer.get("children").and_then(Value::as_array);
    children.into_iter().flatten()
}
