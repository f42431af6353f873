//! `longshore workers`: who works, on what, and who should take no more.

use clap::{Args, Subcommand};
use serde_json::Value;

use crate::client::Client;
use crate::exit::Exit;
use crate::output::{
    OutputArgs, items, moment, print_fields, print_json, print_line, print_table, reasoned, text,
};
use crate::settings::client::ClientSettings;

/// Arguments of `longshore workers`.
#[derive(Args, Debug)]
pub(crate) struct WorkersArgs {
    #[command(subcommand)]
    command: WorkersCommand,
    #[command(flatten)]
    server: ClientSettings,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Subcommand, Debug)]
enum WorkersCommand {
    /// List all workers.
    List,
    /// Show one worker and what it runs.
    Get {
        /// The worker's name.
        name: String,
    },
    /// Let a worker take no more jobs; what it runs goes on. It lasts as long as the process.
    Drain(ChangeArgs),
    /// Let it take jobs again.
    Undrain(ChangeArgs),
}

#[derive(Args, Debug)]
struct ChangeArgs {
    /// The worker's name.
    name: String,
    /// Why, for those who wonder.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

/// Runs one of them.
pub(crate) async fn run(args: WorkersArgs) -> anyhow::Result<Exit> {
    let client = Client::new(&args.server)?;
    let json = args.output.json;
    match args.command {
        WorkersCommand::List => list(&client, json).await,
        WorkersCommand::Get { name } => get(&client, &name, json).await,
        WorkersCommand::Drain(change) => set_draining(&client, "drain", &change, json).await,
        WorkersCommand::Undrain(change) => set_draining(&client, "undrain", &change, json).await,
    }
}

async fn list(client: &Client, json: bool) -> anyhow::Result<Exit> {
    let workers = client.list("/workers").await?;
    if json {
        print_json(&workers);
        return Ok(Exit::Done);
    }
    print_table(
        [
            "NAME",
            "STATE",
            "HOST",
            "VERSION",
            "RUNNING",
            "FREE",
            "ENGINE",
            "LAST BEAT (UTC)",
        ],
        items(&workers).iter().map(|worker| {
            [
                text(worker, "name"),
                text(worker, "state"),
                text(worker, "host"),
                text(worker, "version"),
                runs(worker).len().to_string(),
                slots(worker),
                engine(worker).chars().take(12).collect(),
                moment(worker, "last_beat_at"),
            ]
        }),
    );
    Ok(Exit::Done)
}

/// What a worker runs.
pub(crate) fn runs(worker: &Value) -> &[Value] {
    worker
        .get("running")
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default()
}

/// Free slots of all: `7/8`.
pub(crate) fn slots(worker: &Value) -> String {
    worker
        .get("slots")
        .map(|slots| format!("{}/{}", text(slots, "free"), text(slots, "total")))
        .unwrap_or_default()
}

/// The id of its engine, as holds take it.
fn engine(worker: &Value) -> String {
    worker
        .get("engine")
        .map(|engine| text(engine, "id"))
        .unwrap_or_default()
}

async fn get(client: &Client, name: &str, json: bool) -> anyhow::Result<Exit> {
    let worker: Value = client.get(&format!("/workers/{name}"), &[]).await?;
    if json {
        print_json(&worker);
        return Ok(Exit::Done);
    }
    let queues = worker.get("queues").and_then(Value::as_array);
    let queues: Vec<&str> = queues
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    print_fields(&[
        ("name", text(&worker, "name")),
        ("state", text(&worker, "state")),
        ("host", text(&worker, "host")),
        ("version", text(&worker, "version")),
        ("started", moment(&worker, "started_at")),
        ("last beat", moment(&worker, "last_beat_at")),
        ("engine", engine(&worker)),
        ("free slots", slots(&worker)),
        ("queues", queues.join(", ")),
    ]);
    if !runs(&worker).is_empty() {
        print_line("");
        print_table(
            ["JOB", "KIND", "WORKSPACE", "SINCE (UTC)"],
            runs(&worker).iter().map(|run| {
                [
                    text(run, "job_id"),
                    text(run, "kind"),
                    text(run, "workspace_id"),
                    moment(run, "since"),
                ]
            }),
        );
    }
    Ok(Exit::Done)
}

async fn set_draining(
    client: &Client,
    change: &str,
    args: &ChangeArgs,
    json: bool,
) -> anyhow::Result<Exit> {
    let path = format!("/workers/{}/{change}", args.name);
    let worker: Value = client
        .post(&path, &reasoned(args.reason.as_deref()))
        .await?;
    if json {
        print_json(&worker);
        return Ok(Exit::Done);
    }
    let (name, running) = (&args.name, runs(&worker).len());
    print_line(&if change == "drain" {
        format!("worker {name} takes no more jobs; {running} still running")
    } else {
        format!("worker {name} takes jobs again")
    });
    Ok(Exit::Done)
}
