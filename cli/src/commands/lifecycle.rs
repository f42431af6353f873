//! `longshore pause`, `longshore resume` and `longshore hibernate`: stop workspaces for a while.

use clap::Args;
use serde_json::{Value, json};

use super::workspaces::find_id;
use crate::client::Client;
use crate::exit::Exit;
use crate::output::{OutputArgs, print_json, print_line, text};
use crate::settings::client::ClientSettings;

/// Arguments of these commands.
#[derive(Args, Debug)]
pub(crate) struct LifecycleArgs {
    /// The workspace's id, or its name if no other has it.
    #[arg(value_name = "ID|NAME")]
    workspace: String,
    #[command(flatten)]
    server: ClientSettings,
    #[command(flatten)]
    output: OutputArgs,
}

/// Arguments of `longshore hibernate`.
#[derive(Args, Debug)]
pub(crate) struct HibernateArgs {
    #[command(flatten)]
    which: LifecycleArgs,
    /// Also when it is busy; what it is doing is lost.
    #[arg(long)]
    force: bool,
}

/// Pauses.
pub(crate) async fn pause(args: LifecycleArgs) -> anyhow::Result<Exit> {
    subtree(&args, "pause", ("paused", "paused_count")).await
}

/// Resumes.
pub(crate) async fn resume(args: LifecycleArgs) -> anyhow::Result<Exit> {
    subtree(&args, "resume", ("resumed", "resumed_count")).await
}

async fn subtree(
    args: &LifecycleArgs,
    action: &str,
    (done, count): (&str, &str),
) -> anyhow::Result<Exit> {
    let client = Client::new(&args.server)?;
    let id = find_id(&client, &args.workspace).await?;
    let answer: Value = client
        .post(&format!("/workspaces/{id}/{action}"), &json!({}))
        .await?;
    if args.output.json {
        print_json(&answer);
        return Ok(Exit::Done);
    }
    let others = answer
        .get(count)
        .and_then(Value::as_u64)
        .unwrap_or(1)
        .saturating_sub(1);
    print_line(&match others {
        0 => format!("workspace {id} {done}"),
        1 => format!("workspace {id} and 1 sub-workspace {done}"),
        others => format!("workspace {id} and {others} sub-workspaces {done}"),
    });
    let job = text(&answer, "job_id");
    if !job.is_empty() {
        eprintln!("job {job}");
    }
    Ok(Exit::Done)
}

/// Sends one workspace to sleep.
pub(crate) async fn hibernate(args: HibernateArgs) -> anyhow::Result<Exit> {
    let HibernateArgs { which, force } = args;
    let client = Client::new(&which.server)?;
    let id = find_id(&client, &which.workspace).await?;
    let query = if force { "?force=true" } else { "" };
    let path = format!("/workspaces/{id}/hibernate{query}");
    let answer: Value = client.post(&path, &json!({})).await?;
    if which.output.json {
        print_json(&answer);
        return Ok(Exit::Done);
    }
    let status = text(&answer, "status");
    print_line(&format!("workspace {id} {status}"));
    if status != "hibernated" {
        let job = text(&answer, "job_id");
        eprintln!("it is still being stopped: longshore jobs watch {job}");
    }
    Ok(Exit::Done)
}
