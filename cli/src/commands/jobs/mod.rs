//! `longshore jobs`: what is waiting, running and done, and why; and what to do about it.

mod act;
mod filter;

use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::Value;

use self::act::{ActArgs, Action};
use crate::client::{Client, ClientError, StreamItem};
use crate::exit::Exit;
use crate::output::{
    OutputArgs, Waiting, headline, items, moment, print_fields, print_json, print_line,
    print_table, text,
};
use crate::settings::client::ClientSettings;
use crate::settings::parse;
use crate::when::When;

/// States a job never leaves.
const TERMINAL: [&str; 4] = ["succeeded", "dead", "cancelled", "superseded"];

/// Arguments of `longshore jobs`.
#[derive(Args, Debug)]
pub(crate) struct JobsArgs {
    #[command(subcommand)]
    command: JobsCommand,
    #[command(flatten)]
    server: ClientSettings,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Subcommand, Debug)]
enum JobsCommand {
    /// List jobs, newest first.
    List(ListArgs),
    /// Show one job with its errors.
    #[command(visible_alias = "show")]
    Get {
        /// The job's id.
        id: String,
    },
    /// Follow one job until it ends; exits 0 only if it succeeded.
    Watch {
        /// The job's id.
        id: String,
        /// Give up after this many seconds.
        #[arg(long, value_name = "SECONDS", value_parser = parse::seconds)]
        timeout: Option<Duration>,
    },
    /// Cancel jobs: at once while they wait, by asking their worker while they run.
    Cancel(ActArgs),
    /// Run dead jobs again (or cancelled ones).
    Retry(ActArgs),
    /// Put dead jobs away (or waiting ones, which then never run).
    Discard(ActArgs),
}

#[derive(Args, Debug)]
struct ListArgs {
    /// Only this queue.
    #[arg(long)]
    queue: Option<String>,
    /// Only this kind, such as `provision`.
    #[arg(long)]
    kind: Option<String>,
    /// Only this state: scheduled, queued, running, succeeded, dead, cancelled or superseded.
    #[arg(long)]
    state: Option<String>,
    /// Only jobs of this workspace.
    #[arg(long, value_name = "ID")]
    workspace: Option<String>,
    /// Only jobs of this organisation.
    #[arg(long)]
    tenant: Option<String>,
    /// Only jobs whose last error contains this.
    #[arg(long, value_name = "TEXT")]
    error: Option<String>,
    /// Only jobs created before this: how long ago, such as 1h, or a time in RFC 3339.
    #[arg(long, value_name = "WHEN", value_parser = When::parse)]
    older_than: Option<When>,
    /// Only jobs created after this: how long ago, such as 1h, or a time in RFC 3339.
    #[arg(long, value_name = "WHEN", value_parser = When::parse)]
    newer_than: Option<When>,
    /// How many, 1 to 500.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=500))]
    limit: u16,
    /// Go on where an earlier list ended.
    #[arg(long)]
    cursor: Option<String>,
}

/// Runs one of them.
pub(crate) async fn run(args: JobsArgs) -> anyhow::Result<Exit> {
    let client = Client::new(&args.server)?;
    let json = args.output.json;
    match args.command {
        JobsCommand::List(filter) => list(&client, &filter, json).await,
        JobsCommand::Get { id } => get(&client, &id, json).await,
        JobsCommand::Watch { id, timeout } => {
            let job = watch(&client, &id, timeout).await?;
            if json {
                print_json(&job);
            } else {
                print_line(&outcome(&job));
            }
            Ok(exit_of(&job))
        }
        JobsCommand::Cancel(act) => act::run(&client, Action::Cancel, &act, json).await,
        JobsCommand::Retry(act) => act::run(&client, Action::Retry, &act, json).await,
        JobsCommand::Discard(act) => act::run(&client, Action::Discard, &act, json).await,
    }
}

/// Follows a job until it ends and answers how it ended.
pub(crate) async fn watch(
    client: &Client,
    id: &str,
    timeout: Option<Duration>,
) -> Result<Value, ClientError> {
    let following = follow(client, id);
    match timeout {
        None => following.await,
        Some(limit) => tokio::time::timeout(limit, following)
            .await
            .unwrap_or_else(|_| {
                Err(ClientError::Waited {
                    what: format!("the end of job {id}"),
                    seconds: limit.as_secs(),
                })
            }),
    }
}

/// 0 for a job that succeeded, 1 for any other end.
pub(crate) fn exit_of(job: &Value) -> Exit {
    if text(job, "state") == "succeeded" {
        Exit::Done
    } else {
        Exit::Failed
    }
}

/// One line on how a job ended.
pub(crate) fn outcome(job: &Value) -> String {
    let (id, kind, state) = (text(job, "id"), text(job, "kind"), text(job, "state"));
    match text(job, "last_error").as_str() {
        "" => format!("{kind} {id} {state}"),
        error => format!("{kind} {id} {state}: {error}"),
    }
}

async fn follow(client: &Client, id: &str) -> Result<Value, ClientError> {
    let path = format!("/jobs/{id}");
    let mut waiting = Waiting::start("waiting");
    let mut stream = client.follow(&format!("{path}/events"), &[]);
    loop {
        match stream.next().await? {
            StreamItem::Event(event) => {
                let data: Value = serde_json::from_str(&event.data).unwrap_or_default();
                if let Some(line) = progress(&event.event, &data) {
                    waiting.update(&line);
                }
            }
            // The stream ends with the job, or with a server that is being replaced.
            StreamItem::Ended => {
                let job: Value = client.get(&path, &[]).await?;
                if TERMINAL.contains(&text(&job, "state").as_str()) {
                    return Ok(job);
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

/// What an event of a job says, in a line.
fn progress(event: &str, data: &Value) -> Option<String> {
    match event {
        "state" => {
            let waiting = data.get("waiting").map(|why| text(why, "text"));
            match (text(data, "state"), waiting) {
                (_, Some(why)) if !why.is_empty() => Some(why),
                (state, _) if !state.is_empty() => Some(state),
                _ => None,
            }
        }
        "progress" => {
            let step = text(data, "step");
            if let Some(counted) = act::counted(&text(data, "message")) {
                return Some(counted);
            }
            match (text(data, "message"), text(data, "percent")) {
                (message, _) if !message.is_empty() => Some(format!("{step}: {message}")),
                (_, percent) if !percent.is_empty() => Some(format!("{step}: {percent} %")),
                _ => (!step.is_empty()).then_some(step),
            }
        }
        "log" => {
            let error = text(data, "error");
            (!error.is_empty())
                .then(|| format!("attempt {} failed: {error}", text(data, "attempt")))
        }
        _ => None,
    }
}

async fn list(client: &Client, filter: &ListArgs, json: bool) -> anyhow::Result<Exit> {
    let mut query = vec![("limit", filter.limit.to_string())];
    let filters = [
        ("queue", &filter.queue),
        ("kind", &filter.kind),
        ("state", &filter.state),
        ("workspace_id", &filter.workspace),
        ("tenant", &filter.tenant),
        ("error", &filter.error),
        ("cursor", &filter.cursor),
    ];
    for (name, value) in filters {
        if let Some(value) = value {
            query.push((name, value.clone()));
        }
    }
    let moments = [
        ("older_than", filter.older_than),
        ("newer_than", filter.newer_than),
    ];
    for (name, when) in moments {
        if let Some(when) = when {
            query.push((name, when.ago(client).await?));
        }
    }
    let page: Value = client.get("/jobs", &query).await?;
    if json {
        print_json(&page);
        return Ok(Exit::Done);
    }
    print_table(
        [
            "ID",
            "KIND",
            "STATE",
            "ATTEMPT",
            "CREATED (UTC)",
            "WORKSPACE",
            "NOTE",
        ],
        items(&page).iter().map(|job| {
            [
                text(job, "id"),
                text(job, "kind"),
                text(job, "state"),
                format!("{}/{}", text(job, "attempt"), text(job, "max_attempts")),
                moment(job, "created_at"),
                text(job, "workspace_id"),
                headline(&note(job), 60),
            ]
        }),
    );
    if let Some(cursor) = page.get("next_cursor").and_then(Value::as_str) {
        eprintln!("more with --cursor {cursor}");
    }
    Ok(Exit::Done)
}

/// Why it waits, what it does, or what went wrong last.
fn note(job: &Value) -> String {
    let part = |member: &str, name: &str| job.get(member).map(|part| text(part, name));
    let now = [part("waiting", "text"), part("progress", "step")];
    let error = text(job, "last_error");
    // How far a job had come that did not succeed says less than why.
    if matches!(text(job, "state").as_str(), "dead" | "cancelled") && !error.is_empty() {
        return error;
    }
    now.into_iter()
        .flatten()
        .find(|note| !note.is_empty())
        .unwrap_or(error)
}

async fn get(client: &Client, id: &str, json: bool) -> anyhow::Result<Exit> {
    let job: Value = client.get(&format!("/jobs/{id}"), &[]).await?;
    if json {
        print_json(&job);
        return Ok(Exit::Done);
    }
    print_fields(&[
        ("id", text(&job, "id")),
        ("kind", text(&job, "kind")),
        ("queue", text(&job, "queue")),
        ("state", text(&job, "state")),
        ("workspace", text(&job, "workspace_id")),
        (
            "attempt",
            format!(
                "{} of {}",
                text(&job, "attempt"),
                text(&job, "max_attempts")
            ),
        ),
        ("note", note(&job)),
        ("worker", text(&job, "worker")),
        ("created", moment(&job, "created_at")),
        ("created by", text(&job, "created_by")),
        ("started", moment(&job, "started_at")),
        ("finished", moment(&job, "finished_at")),
        ("arguments", text(&job, "args")),
        ("result", text(&job, "result")),
    ]);
    let errors = job.get("errors").and_then(Value::as_array);
    for error in errors.into_iter().flatten() {
        // A job that was cancelled while it waited had no worker.
        let on = match text(error, "worker").as_str() {
            "" => String::new(),
            worker => format!(" on {worker}"),
        };
        print_line(&format!(
            "attempt {} failed {}{on}: {}",
            text(error, "attempt"),
            moment(error, "at"),
            text(error, "error")
        ));
    }
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_event_of_a_job_reads_as_one_line() {
        let line = |event, data| progress(event, &data);
        assert_eq!(
            line("state", json!({"state": "running"})).as_deref(),
            Some("running")
        );
        assert_eq!(
            line(
                "state",
                json!({"state": "scheduled", "waiting": {"text": "behind job x"}})
            )
            .as_deref(),
            Some("behind job x")
        );
        assert_eq!(
            line("progress", json!({"step": "pull", "percent": 40})).as_deref(),
            Some("pull: 40 %")
        );
        assert_eq!(
            line("log", json!({"attempt": 1, "error": "engine away"})).as_deref(),
            Some("attempt 1 failed: engine away")
        );
        assert_eq!(line("progress", Value::Null), None);
    }

    #[test]
    fn only_success_is_exit_0() {
        assert_eq!(exit_of(&json!({"state": "succeeded"})), Exit::Done);
        for state in ["dead", "cancelled", "superseded"] {
            assert_eq!(exit_of(&json!({"state": state})), Exit::Failed);
        }
    }
}
