//! `longshore reconcilers` and `longshore reconcile`: what keeps the fleet as it should be, and whether it may.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::client::Client;
use crate::commands::jobs::{exit_of, outcome, watch};
use crate::exit::Exit;
use crate::output::{
    OutputArgs, headline, items, moment, print_json, print_line, print_table, reasoned, text,
};
use crate::settings::client::ClientSettings;

/// Arguments of `longshore reconcilers`.
#[derive(Args, Debug)]
pub(crate) struct ReconcilersArgs {
    #[command(subcommand)]
    command: ReconcilersCommand,
    #[command(flatten)]
    server: ClientSettings,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Subcommand, Debug)]
enum ReconcilersCommand {
    /// List all reconcilers, what they last did, and what they hold back.
    List,
    /// Let a reconciler make passes again.
    Enable(ChangeArgs),
    /// Keep a reconciler from making passes. Wants a reason.
    Disable(ChangeArgs),
    /// Let one pass destroy what the blocked one listed; `list` shows how much that is.
    Approve(ChangeArgs),
}

#[derive(Args, Debug)]
struct ChangeArgs {
    /// The reconciler's name.
    name: String,
    /// Only this scope of it: an engine's id, or `all`.
    #[arg(long, value_name = "SCOPE")]
    scope: Option<String>,
    /// Why, for those who wonder.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

/// Arguments of `longshore reconcile`.
#[derive(Args, Debug)]
pub(crate) struct ReconcileArgs {
    /// The reconciler's name.
    name: String,
    /// Change nothing; print what would be done.
    #[arg(long)]
    dry_run: bool,
    /// Only in this scope: an engine's id, or `all`.
    #[arg(long, value_name = "SCOPE")]
    scope: Option<String>,
    #[command(flatten)]
    server: ClientSettings,
    #[command(flatten)]
    output: OutputArgs,
}

/// Runs one of `longshore reconcilers`.
pub(crate) async fn run(args: ReconcilersArgs) -> anyhow::Result<Exit> {
    let client = Client::new(&args.server)?;
    let json = args.output.json;
    match args.command {
        ReconcilersCommand::List => list(&client, json).await,
        ReconcilersCommand::Enable(change) => act(&client, "enable", &change, json).await,
        ReconcilersCommand::Disable(change) => act(&client, "disable", &change, json).await,
        ReconcilersCommand::Approve(change) => act(&client, "approve", &change, json).await,
    }
}

async fn list(client: &Client, json: bool) -> anyhow::Result<Exit> {
    let reconcilers = client.list("/reconcilers").await?;
    if json {
        print_json(&reconcilers);
        return Ok(Exit::Done);
    }
    print_table(
        [
            "NAME",
            "SCOPE",
            "STATE",
            "EVERY",
            "LAST PASS (UTC)",
            "SEEN",
            "ACTED",
            "FAILED",
            "NOTE",
        ],
        items(&reconcilers).iter().map(|reconciler| {
            let last = reconciler.get("last_pass").unwrap_or(&Value::Null);
            [
                text(reconciler, "name"),
                text(reconciler, "scope").chars().take(12).collect(),
                state(reconciler).to_owned(),
                format!("{} s", text(reconciler, "interval_seconds")),
                moment(last, "at"),
                text(last, "seen"),
                text(last, "acted"),
                text(last, "failed"),
                headline(&note(reconciler, last), 80),
            ]
        }),
    );
    Ok(Exit::Done)
}

fn state(reconciler: &Value) -> &'static str {
    let is = |member: &str| reconciler.get(member).is_some_and(|value| value == true);
    if !is("enabled") {
        "disabled"
    } else if is("approved") {
        "approved"
    } else if reconciler.get("blocked").is_some_and(Value::is_object) {
        "blocked"
    } else if text(reconciler, "owner").is_empty() {
        "unowned"
    } else {
        "on"
    }
}

fn note(reconciler: &Value, last: &Value) -> String {
    match (state(reconciler), reconciler.get("blocked")) {
        ("disabled", _) => text(reconciler, "change_reason"),
        (_, Some(blocked @ Value::Object(_))) => text(blocked, "reason"),
        _ => text(last, "note"),
    }
}

async fn act(client: &Client, action: &str, args: &ChangeArgs, json: bool) -> anyhow::Result<Exit> {
    let path = path(&args.name, action, args.scope.as_deref());
    let changed: Value = client
        .post(&path, &reasoned(args.reason.as_deref()))
        .await?;
    if json {
        print_json(&changed);
        return Ok(Exit::Done);
    }
    for reconciler in items(&changed) {
        let (name, scope) = (text(reconciler, "name"), text(reconciler, "scope"));
        let what = match action {
            "enable" => "makes passes again",
            "disable" => "makes no more passes",
            _ if state(reconciler) == "approved" => "may do what it held back, with its next pass",
            _ => "holds nothing back",
        };
        print_line(&format!("reconciler {name} ({scope}) {what}"));
    }
    Ok(Exit::Done)
}

fn path(name: &str, action: &str, scope: Option<&str>) -> String {
    match scope {
        None => format!("/reconcilers/{name}/{action}"),
        Some(scope) => format!(
            "/reconcilers/{name}/{action}?scope={}",
            url::form_urlencoded::byte_serialize(scope.as_bytes()).collect::<String>()
        ),
    }
}

/// Runs `longshore reconcile`.
pub(crate) async fn run_reconcile(args: ReconcileArgs) -> anyhow::Result<Exit> {
    let client = Client::new(&args.server)?;
    let path = path(&args.name, "run", args.scope.as_deref());
    let started: Value = client
        .post(&path, &json!({"dry_run": args.dry_run}))
        .await?;
    let mut exit = Exit::Done;
    let mut ended = Vec::new();
    for run in started
        .get("jobs")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        let job = watch(&client, &text(run, "job_id"), None).await?;
        if exit_of(&job) != Exit::Done {
            exit = Exit::Failed;
        }
        if !args.output.json {
            tell(&args.name, &text(run, "scope"), &job);
        }
        ended.push(job);
    }
    if args.output.json {
        print_json(&json!({ "items": ended }));
    }
    Ok(exit)
}

fn tell(name: &str, scope: &str, job: &Value) {
    let Some(report) = job.get("result").filter(|report| report.is_object()) else {
        print_line(&outcome(job));
        return;
    };
    let seen = text(report, "seen");
    let list = |member: &str| -> Vec<String> {
        let list = report.get(member).and_then(Value::as_array);
        let texts = list.into_iter().flatten().filter_map(Value::as_str);
        texts.map(|one| format!("  {one}")).collect()
    };
    let (said, lines) = if report.get("would").is_some() {
        let would = list("would");
        (format!("would act on {}", would.len()), would)
    } else {
        let said = format!(
            "acted on {}, left {} alone, failed on {}",
            text(report, "acted"),
            text(report, "skipped"),
            text(report, "failed")
        );
        (said, list("sample"))
    };
    print_line(&format!("{name} ({scope}) looked at {seen}, {said}"));
    lines.iter().for_each(|line| print_line(line));
    let note = text(report, "note");
    if !note.is_empty() {
        print_line(&format!("  {note}"));
    }
}
