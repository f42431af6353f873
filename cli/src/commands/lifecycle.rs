//! `longshore pause` and `longshore resume`: stop a workspace for a while, with what is below it.

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
