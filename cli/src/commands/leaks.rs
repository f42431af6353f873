//! `longshore leaks`: what was left behind, and what becomes of it.

use clap::{Args, Subcommand};
use serde_json::Value;

use crate::client::Client;
use crate::commands::jobs::{exit_of, outcome, watch};
use crate::exit::Exit;
use crate::output::{
    OutputArgs, headline, items, moment, print_json, print_line, print_table, reasoned, text,
};
use crate::settings::client::ClientSettings;

/// Arguments of `longshore leaks`.
#[derive(Args, Debug)]
pub(crate) struct LeaksArgs {
    #[command(subcommand)]
    command: LeaksCommand,
    #[command(flatten)]
    server: ClientSettings,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Subcommand, Debug)]
enum LeaksCommand {
    /// List what was left behind, newest first; what is still open unless `--all`.
    List {
        /// Also what is settled.
        #[arg(long)]
        all: bool,
    },
    /// Remove one now, and wait until it is gone.
    Remove(ChangeArgs),
    /// Let one stay: no sweep touches it any more.
    Keep(ChangeArgs),
}

#[derive(Args, Debug)]
struct ChangeArgs {
    /// The leak's id.
    id: String,
    /// Why, for those who wonder.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

/// Runs one of them.
pub(crate) async fn run(args: LeaksArgs) -> anyhow::Result<Exit> {
    let client = Client::new(&args.server)?;
    let json = args.output.json;
    match args.command {
        LeaksCommand::List { all } => list(&client, all, json).await,
        LeaksCommand::Remove(change) => remove(&client, &change, json).await,
        LeaksCommand::Keep(change) => keep(&client, &change, json).await,
    }
}

async fn list(client: &Client, all: bool, json: bool) -> anyhow::Result<Exit> {
    let mut leaks = client.list("/leaks").await?;
    if !all && let Some(Value::Array(items)) = leaks.get_mut("items") {
        items.retain(|leak| leak.get("resolved_at").is_none_or(Value::is_null));
    }
    if json {
        print_json(&leaks);
        return Ok(Exit::Done);
    }
    print_table(
        [
            "ID",
            "STATE",
            "FOUND (UTC)",
            "SOURCE",
            "WHAT",
            "RESOURCE",
            "WORKSPACE",
            "WHY",
        ],
        items(&leaks).iter().map(|leak| {
            [
                text(leak, "id"),
                text(leak, "state"),
                moment(leak, "found_at"),
                text(leak, "source"),
                text(leak, "resource"),
                text(leak, "resource_id").chars().take(40).collect(),
                text(leak, "workspace_id"),
                headline(&text(leak, "error"), 60),
            ]
        }),
    );
    Ok(Exit::Done)
}

async fn remove(client: &Client, args: &ChangeArgs, json: bool) -> anyhow::Result<Exit> {
    let path = format!("/leaks/{}/remove", args.id);
    let started: Value = client
        .post(&path, &reasoned(args.reason.as_deref()))
        .await?;
    let job = watch(client, &text(&started, "job_id"), None).await?;
    if json {
        print_json(&job);
    } else {
        let state = job.get("result").map(|result| text(result, "state"));
        match state.filter(|state| !state.is_empty()) {
            Some(state) => print_line(&format!("leak {} is {state}", args.id)),
            None => print_line(&outcome(&job)),
        }
    }
    Ok(exit_of(&job))
}

async fn keep(client: &Client, args: &ChangeArgs, json: bool) -> anyhow::Result<Exit> {
    let path = format!("/leaks/{}/keep", args.id);
    let leak: Value = client
        .post(&path, &reasoned(args.reason.as_deref()))
        .await?;
    if json {
        print_json(&leak);
    } else {
        print_line(&format!("leak {} is kept", args.id));
    }
    Ok(Exit::Done)
}
