//! `longshore holds`: keep a part of the fleet, or all of it, from starting anything.

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Map, Value, json};

use crate::client::Client;
use crate::exit::Exit;
use crate::output::{
    OutputArgs, headline, items, moment, print_json, print_line, print_table, text,
};
use crate::settings::client::ClientSettings;
use crate::when::When;

/// Arguments of `longshore holds`.
#[derive(Args, Debug)]
pub(crate) struct HoldsArgs {
    #[command(subcommand)]
    command: HoldsCommand,
    #[command(flatten)]
    server: ClientSettings,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Subcommand, Debug)]
enum HoldsCommand {
    /// List what is held.
    List,
    /// Hold something: nothing of it starts until the hold is lifted.
    Set(SetArgs),
    /// Lift a hold.
    Lift {
        /// The hold's id.
        id: String,
        /// Why, for those who wonder.
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
}

/// Arguments of `longshore hold`.
#[derive(Args, Debug)]
pub(crate) struct HoldArgs {
    #[command(subcommand)]
    command: HoldCommand,
    #[command(flatten)]
    server: ClientSettings,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Subcommand, Debug)]
enum HoldCommand {
    /// Hold everything: no job starts until the hold is lifted.
    All(HowArgs),
}

#[derive(Args, Debug)]
#[group(id = "scope", required = true, multiple = false, args = ["all", "kind", "engine", "tenant", "workspace"])]
struct SetArgs {
    /// Everything.
    #[arg(long)]
    all: bool,
    /// All jobs of this kind, such as `provision`.
    #[arg(long, value_name = "KIND")]
    kind: Option<String>,
    /// All jobs at this engine.
    #[arg(long, value_name = "ID")]
    engine: Option<String>,
    /// All jobs of this organisation.
    #[arg(long, value_name = "ID")]
    tenant: Option<String>,
    /// All jobs of this workspace.
    #[arg(long, value_name = "ID")]
    workspace: Option<String>,
    #[command(flatten)]
    how: HowArgs,
}

#[derive(Args, Debug)]
struct HowArgs {
    /// What becomes of new requests: they wait, or are refused with 503.
    #[arg(long, value_enum, default_value_t = Mode::Pause)]
    mode: Mode,
    /// Why, for those who wonder.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// When it lifts itself: a duration such as 30m or 2h, or a time in RFC 3339.
    #[arg(long, value_name = "WHEN", value_parser = When::parse)]
    until: Option<When>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Mode {
    /// They wait.
    Pause,
    /// They are refused.
    Reject,
}

/// Runs one of them.
pub(crate) async fn run(args: HoldsArgs) -> anyhow::Result<Exit> {
    let client = Client::new(&args.server)?;
    let json = args.output.json;
    match args.command {
        HoldsCommand::List => list(&client, json).await,
        HoldsCommand::Set(set_args) => {
            let (scope, value) = scope(&set_args);
            set(&client, scope, value, &set_args.how, json).await
        }
        HoldsCommand::Lift { id, reason } => {
            let query: Vec<_> = reason
                .map(|reason| ("reason", reason))
                .into_iter()
                .collect();
            let hold: Value = client.delete(&format!("/holds/{id}"), &query).await?;
            if json {
                print_json(&hold);
            } else {
                print_line(&format!("hold {id} lifted"));
            }
            Ok(Exit::Done)
        }
    }
}

/// Runs `longshore hold all`.
pub(crate) async fn run_hold(args: HoldArgs) -> anyhow::Result<Exit> {
    let client = Client::new(&args.server)?;
    let HoldCommand::All(how) = args.command;
    set(&client, "all", None, &how, args.output.json).await
}

fn scope(args: &SetArgs) -> (&'static str, Option<&str>) {
    let scopes = [
        ("kind", &args.kind),
        ("engine", &args.engine),
        ("tenant", &args.tenant),
        ("workspace", &args.workspace),
    ];
    scopes
        .into_iter()
        .find_map(|(scope, value)| Some((scope, Some(value.as_deref()?))))
        .unwrap_or(("all", None))
}

async fn set(
    client: &Client,
    scope: &str,
    value: Option<&str>,
    how: &HowArgs,
    json: bool,
) -> anyhow::Result<Exit> {
    let mut body = Map::new();
    body.insert("scope".to_owned(), json!(scope));
    let mode = match how.mode {
        Mode::Pause => "pause",
        Mode::Reject => "reject",
    };
    body.insert("mode".to_owned(), json!(mode));
    if let Some(value) = value {
        body.insert("value".to_owned(), json!(value));
    }
    if let Some(reason) = &how.reason {
        body.insert("reason".to_owned(), json!(reason));
    }
    if let Some(until) = how.until {
        body.insert("until".to_owned(), json!(until.ahead(client).await?));
    }
    let hold: Value = client.post("/holds", &Value::Object(body)).await?;
    if json {
        print_json(&hold);
        return Ok(Exit::Done);
    }
    let what = match value {
        None => "everything is held".to_owned(),
        Some(value) => format!("{scope} {value} is held"),
    };
    let until = match moment(&hold, "until").as_str() {
        "" => String::new(),
        until => format!(" until {until} (UTC)"),
    };
    let id = text(&hold, "id");
    print_line(&format!(
        "{what}{until}; lift it with: longshore holds lift {id}"
    ));
    Ok(Exit::Done)
}

async fn list(client: &Client, json: bool) -> anyhow::Result<Exit> {
    let holds = client.list("/holds").await?;
    if json {
        print_json(&holds);
        return Ok(Exit::Done);
    }
    print_table(
        [
            "ID",
            "SCOPE",
            "VALUE",
            "MODE",
            "SINCE (UTC)",
            "UNTIL (UTC)",
            "BY",
            "REASON",
        ],
        items(&holds).iter().map(|hold| {
            [
                text(hold, "id"),
                text(hold, "scope"),
                text(hold, "value"),
                text(hold, "mode"),
                moment(hold, "since"),
                moment(hold, "until"),
                text(hold, "set_by"),
                headline(&text(hold, "reason"), 60),
            ]
        }),
    );
    Ok(Exit::Done)
}
