//! `longshore workspaces`: create, look at and delete workspaces.

use std::time::Duration;

use chrono::{DateTime, FixedOffset};
use clap::{Args, Subcommand};
use longshore_base::WorkspaceId;
use longshore_base::clock::Stopwatch;
use serde_json::{Map, Value, json};

use super::jobs;
use crate::client::{Client, ClientError, StreamItem};
use crate::exit::Exit;
use crate::output::{
    OutputArgs, Waiting, confirmed, headline, print_fields, print_json, print_line, print_table,
    text,
};
use crate::settings::client::ClientSettings;
use crate::settings::parse;

/// Pause between two looks at a workspace that is starting.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// Arguments of `longshore workspaces`.
#[derive(Args, Debug)]
pub(crate) struct WorkspacesArgs {
    #[command(subcommand)]
    command: WorkspacesCommand,
    #[command(flatten)]
    server: ClientSettings,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Subcommand, Debug)]
enum WorkspacesCommand {
    /// Create a workspace.
    Create(CreateArgs),
    /// List all workspaces.
    List,
    /// Show one workspace.
    #[command(visible_alias = "show")]
    Get {
        /// The workspace's id.
        id: String,
    },
    /// Delete a workspace.
    Delete {
        /// The workspace's id.
        id: String,
        /// Delete its sub-workspaces with it, without asking.
        #[arg(long, short = 'y', visible_alias = "confirm")]
        yes: bool,
        /// Delete it for good: its rows, and what its agent has written in its volumes.
        #[arg(long)]
        purge: bool,
    },
    /// Show what a workspace's agent wrote.
    Logs(LogsArgs),
}

#[derive(Args, Debug)]
struct CreateArgs {
    /// Its name.
    name: String,
    /// What it is for.
    #[arg(long)]
    role: Option<String>,
    /// Template to start from.
    #[arg(long)]
    template: Option<String>,
    /// Rights on the host, 1 to 4. The server's default is 2, and it may forbid more.
    #[arg(long)]
    tier: Option<i32>,
    /// Agent runtime: claude-code, hermes, openclaw, codex or external.
    #[arg(long)]
    runtime: Option<String>,
    /// Model slug, such as `anthropic:claude-opus-4-7`.
    #[arg(long)]
    model: Option<String>,
    /// Workspace above it in the organisation.
    #[arg(long, value_name = "ID")]
    parent: Option<String>,
    /// Secret of its environment, `KEY=VALUE`; `KEY` alone takes the value from this command's environment.
    #[arg(long = "secret", value_name = "KEY[=VALUE]", value_parser = secret)]
    secrets: Vec<(String, String)>,
    /// Wait until it is online, or has failed.
    #[arg(long)]
    wait: bool,
    /// With --wait: give up after this many seconds.
    #[arg(long, value_name = "SECONDS", default_value = "600", value_parser = parse::seconds, requires = "wait")]
    timeout: Duration,
}

#[derive(Args, Debug)]
struct LogsArgs {
    /// The workspace's id.
    id: String,
    /// Go on as new lines come.
    #[arg(long, short = 'f')]
    follow: bool,
    /// How many of the last lines, 1 to 10000.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    tail: u32,
    /// Only lines after this moment (RFC 3339).
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
}

/// Runs one of them.
pub(crate) async fn run(args: WorkspacesArgs) -> anyhow::Result<Exit> {
    let client = Client::new(&args.server)?;
    let json = args.output.json;
    match args.command {
        WorkspacesCommand::Create(create_args) => create(&client, create_args, json).await,
        WorkspacesCommand::List => list(&client, json).await,
        WorkspacesCommand::Get { id } => get(&client, &id, json).await,
        WorkspacesCommand::Delete { id, yes, purge } => {
            delete(&client, &id, (yes, purge), json).await
        }
        WorkspacesCommand::Logs(logs_args) => logs(&client, &logs_args, json).await,
    }
}

async fn create(client: &Client, args: CreateArgs, json: bool) -> anyhow::Result<Exit> {
    let created: Value = client.post("/workspaces", &create_body(&args)).await?;
    let (id, job) = (text(&created, "id"), text(&created, "job_id"));
    if !args.wait {
        if json {
            print_json(&created);
        } else {
            print_line(&id);
            eprintln!("{} is {}; job {job}", args.name, text(&created, "status"));
        }
        return Ok(Exit::Done);
    }
    until_up(client, &id, &job, args.timeout, json).await
}

/// Follows the job that brings a workspace up, waits for its agent, and shows how that ended.
pub(crate) async fn until_up(
    client: &Client,
    id: &str,
    job: &str,
    limit: Duration,
    json: bool,
) -> anyhow::Result<Exit> {
    let watch = Stopwatch::start();
    if !job.is_empty() {
        let ended = jobs::watch(client, job, Some(limit)).await?;
        if jobs::exit_of(&ended) != Exit::Done {
            eprintln!("{}", jobs::outcome(&ended));
        }
    }
    let workspace = until_settled(client, id, limit.saturating_sub(watch.elapsed()))
        .await
        .map_err(|error| match error {
            ClientError::Waited { what, .. } => ClientError::Waited {
                what,
                seconds: limit.as_secs(),
            },
            other => other,
        })?;
    if json {
        print_json(&workspace);
    } else {
        print_line(id);
        eprintln!(
            "{} is {} after {:.1} s",
            text(&workspace, "name"),
            text(&workspace, "status"),
            watch.elapsed().as_secs_f64()
        );
    }
    Ok(match text(&workspace, "status").as_str() {
        "online" | "degraded" => Exit::Done,
        _ => Exit::Failed,
    })
}

fn create_body(args: &CreateArgs) -> Value {
    let mut body = Map::new();
    body.insert("name".to_owned(), json!(args.name));
    let texts = [
        ("role", &args.role),
        ("template", &args.template),
        ("runtime", &args.runtime),
        ("model", &args.model),
        ("parent_id", &args.parent),
    ];
    for (name, value) in texts {
        if let Some(value) = value {
            body.insert(name.to_owned(), json!(value));
        }
    }
    if let Some(tier) = args.tier {
        body.insert("tier".to_owned(), json!(tier));
    }
    if !args.secrets.is_empty() {
        let secrets: Map<String, Value> = args
            .secrets
            .iter()
            .map(|(key, value)| (key.clone(), json!(value)))
            .collect();
        body.insert("secrets".to_owned(), Value::Object(secrets));
    }
    Value::Object(body)
}

/// Looks until the workspace is no longer starting.
async fn until_settled(client: &Client, id: &str, limit: Duration) -> Result<Value, ClientError> {
    let mut waiting = Waiting::start("waiting for the agent");
    let look = async {
        loop {
            let workspace: Value = client.get(&format!("/workspaces/{id}"), &[]).await?;
            let status = text(&workspace, "status");
            if status != "provisioning" {
                return Ok(workspace);
            }
            waiting.update("waiting for the agent to register");
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    tokio::time::timeout(limit, look).await.unwrap_or_else(|_| {
        Err(ClientError::Waited {
            what: format!("workspace {id} to come online"),
            seconds: limit.as_secs(),
        })
    })
}

async fn list(client: &Client, json: bool) -> anyhow::Result<Exit> {
    let workspaces: Value = client.get("/workspaces", &[]).await?;
    if json {
        print_json(&workspaces);
        return Ok(Exit::Done);
    }
    let rows = workspaces.as_array().map(Vec::as_slice).unwrap_or_default();
    print_table(
        [
            "ID", "NAME", "STATUS", "RUNTIME", "TIER", "TASKS", "URL", "NOTE",
        ],
        rows.iter().map(|workspace| {
            [
                text(workspace, "id"),
                headline(&text(workspace, "name"), 40),
                text(workspace, "status"),
                text(workspace, "runtime"),
                text(workspace, "tier"),
                text(workspace, "active_tasks"),
                text(workspace, "url"),
                headline(&text(workspace, "last_sample_error"), 60),
            ]
        }),
    );
    Ok(Exit::Done)
}

async fn get(client: &Client, id: &str, json: bool) -> anyhow::Result<Exit> {
    let workspace: Value = client.get(&format!("/workspaces/{id}"), &[]).await?;
    if json {
        print_json(&workspace);
        return Ok(Exit::Done);
    }
    let agent = workspace
        .get("agent_card")
        .map(|card| text(card, "name"))
        .unwrap_or_default();
    print_fields(&[
        ("id", text(&workspace, "id")),
        ("name", text(&workspace, "name")),
        ("role", text(&workspace, "role")),
        ("status", text(&workspace, "status")),
        ("runtime", text(&workspace, "runtime")),
        ("tier", text(&workspace, "tier")),
        ("url", text(&workspace, "url")),
        ("agent", agent),
        ("parent", text(&workspace, "parent_id")),
        ("active tasks", text(&workspace, "active_tasks")),
        ("error rate", text(&workspace, "last_error_rate")),
        ("up for (s)", text(&workspace, "uptime_seconds")),
    ]);
    Ok(Exit::Done)
}

async fn delete(
    client: &Client,
    id: &str,
    (yes, purge): (bool, bool),
    json: bool,
) -> anyhow::Result<Exit> {
    let path = format!("/workspaces/{id}");
    let query = |confirm: bool| -> Vec<_> {
        [("confirm", confirm), ("purge", purge)]
            .into_iter()
            .filter(|(_, wanted)| *wanted)
            .map(|(name, _)| (name, "true".to_owned()))
            .collect()
    };
    let answer = match client.delete::<Value>(&path, &query(yes)).await {
        Err(ClientError::Refused { body, .. })
            if text(&body, "status") == "confirmation_required" =>
        {
            let names = children(&body);
            let question = format!(
                "It has {} sub-workspaces ({}). Delete them too?",
                names.len(),
                names.join(", ")
            );
            if confirmed(&question)? != Some(true) {
                eprintln!(
                    "nothing was deleted; it has {} sub-workspaces ({}): repeat with --yes to delete them too",
                    names.len(),
                    names.join(", ")
                );
                return Ok(Exit::Failed);
            }
            client.delete::<Value>(&path, &query(true)).await?
        }
        other => other?,
    };
    if json {
        print_json(&answer);
        return Ok(Exit::Done);
    }
    let status = text(&answer, "status");
    print_line(&match text(&answer, "cascade_deleted").as_str() {
        "" | "0" => format!("workspace {id} {status}"),
        others => format!("workspace {id} and {others} sub-workspaces {status}"),
    });
    if purge && status != "purged" {
        let job = text(&answer, "job_id");
        eprintln!("the purge is still under way: longshore jobs watch {job}");
    }
    Ok(Exit::Done)
}

/// The id of a workspace that may be given by its name.
pub(crate) async fn find_id(client: &Client, id_or_name: &str) -> anyhow::Result<String> {
    if id_or_name.parse::<WorkspaceId>().is_ok() {
        return Ok(id_or_name.to_owned());
    }
    let workspaces: Value = client.get("/workspaces", &[]).await?;
    let ids: Vec<_> = workspaces
        .as_array()
        .into_iter()
        .flatten()
        .filter(|workspace| text(workspace, "name") == id_or_name)
        .map(|workspace| text(workspace, "id"))
        .collect();
    match ids.as_slice() {
        [id] => Ok(id.clone()),
        [] => Err(ClientError::NotFound {
            text: format!("no workspace has the id or the name {id_or_name}"),
        }
        .into()),
        several => Err(ClientError::Ambiguous {
            name: id_or_name.to_owned(),
            ids: several.join(", "),
        }
        .into()),
    }
}

fn children(body: &Value) -> Vec<String> {
    body.get("children")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .map(|child| text(child, "name"))
        .collect()
}

async fn logs(client: &Client, args: &LogsArgs, json: bool) -> anyhow::Result<Exit> {
    let path = format!("/workspaces/{}/logs", args.id);
    let mut query = vec![("tail", args.tail.to_string())];
    if let Some(since) = &args.since {
        query.push(("since", since.clone()));
    }
    if args.follow {
        query.push(("follow", "true".to_owned()));
        return follow_logs(client, &path, &query, json).await;
    }
    let page: Value = client.get(&path, &query).await?;
    if json {
        print_json(&page);
        return Ok(Exit::Done);
    }
    let lines = page.get("items").and_then(Value::as_array);
    for line in lines.into_iter().flatten() {
        print_line(&text(line, "text"));
    }
    Ok(Exit::Done)
}

/// Prints lines as they come, until the container ends. A stream made again repeats its last lines, which are left out
/// by their time.
async fn follow_logs(
    client: &Client,
    path: &str,
    query: &[(&str, String)],
    json: bool,
) -> anyhow::Result<Exit> {
    let mut last: Option<DateTime<FixedOffset>> = None;
    let mut stream = client.follow(path, query);
    loop {
        let event = match stream.next().await? {
            StreamItem::Event(event) => event,
            // The server is being replaced; the container goes on.
            StreamItem::Ended => {
                tokio::time::sleep(LOOK_AGAIN).await;
                continue;
            }
        };
        if event.event == "end" {
            return Ok(Exit::Done);
        }
        let line: Value = serde_json::from_str(&event.data).unwrap_or_default();
        let at = DateTime::parse_from_rfc3339(&text(&line, "at")).ok();
        if at.is_some() && at <= last {
            continue;
        }
        last = at.or(last);
        print_line(&if json {
            event.data
        } else {
            text(&line, "text")
        });
    }
}

fn secret(argument: &str) -> Result<(String, String), String> {
    let (key, value) = match argument.split_once('=') {
        Some((key, value)) => (key, value.to_owned()),
        None => match std::env::var(argument) {
            Ok(value) => (argument, value),
            Err(_) => {
                return Err(format!(
                    "must look like KEY=VALUE, or name a variable of the environment ({argument} is not set)"
                ));
            }
        },
    };
    if key.is_empty() {
        return Err("must look like KEY=VALUE".to_owned());
    }
    Ok((key.to_owned(), value))
}
