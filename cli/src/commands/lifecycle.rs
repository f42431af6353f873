//! `longshore restart`, `longshore pause`, `longshore resume` and `longshore hibernate`: stop workspaces and bring them up
//! again, at once or after a while. `longshore expand` and `longshore collapse`: make and remove the team below one.

use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::workspaces::{find_id, until_up};
use crate::client::Client;
use crate::exit::Exit;
use crate::output::{OutputArgs, confirmed, print_json, print_line, print_table, text};
use crate::settings::client::ClientSettings;
use crate::settings::parse;

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

/// Arguments of `longshore restart`.
#[derive(Args, Debug)]
pub(crate) struct RestartArgs {
    /// Put the files of this template over those of the workspace.
    #[arg(long, value_name = "NAME")]
    template: Option<String>,
    /// Do so with the template of the workspace's name, else of its runtime.
    #[arg(long)]
    apply_template: bool,
    /// Do so with the organisation's template of the workspace's name.
    #[arg(long)]
    rebuild_config: bool,
    /// Begin without the sessions of before.
    #[arg(long)]
    reset: bool,
    /// Wait until it is online again, or has failed.
    #[arg(long)]
    wait: bool,
    /// With --wait: give up after this many seconds.
    #[arg(long, value_name = "SECONDS", default_value = "600", value_parser = parse::seconds, requires = "wait")]
    timeout: Duration,
    #[command(flatten)]
    of: LifecycleArgs,
}

/// Restarts.
pub(crate) async fn restart(args: RestartArgs) -> anyhow::Result<Exit> {
    let client = Client::new(&args.of.server)?;
    let id = find_id(&client, &args.of.workspace).await?;
    let mut body = json!({
        "apply_template": args.apply_template, "rebuild_config": args.rebuild_config, "reset": args.reset,
    });
    if let Some(template) = &args.template {
        body["template"] = json!(template);
    }
    let answer: Value = client
        .post(&format!("/workspaces/{id}/restart"), &body)
        .await?;
    let job = text(&answer, "job_id");
    if args.wait {
        return until_up(&client, &id, &job, args.timeout, args.of.output.json).await;
    }
    if args.of.output.json {
        print_json(&answer);
        return Ok(Exit::Done);
    }
    print_line(&match text(&answer, "config_dir").as_str() {
        "existing-volume" => format!("workspace {id} is restarted"),
        template => format!("workspace {id} is restarted with template {template}"),
    });
    eprintln!("job {job}");
    Ok(Exit::Done)
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

/// Arguments of `longshore collapse`.
#[derive(Args, Debug)]
pub(crate) struct CollapseArgs {
    #[command(flatten)]
    which: LifecycleArgs,
    /// Without asking.
    #[arg(long, short = 'y')]
    yes: bool,
}

/// Makes the team of a workspace.
pub(crate) async fn expand(args: LifecycleArgs) -> anyhow::Result<Exit> {
    let client = Client::new(&args.server)?;
    let id = find_id(&client, &args.workspace).await?;
    let path = format!("/workspaces/{id}/expand");
    let answer: Value = client.post(&path, &json!({})).await?;
    if args.output.json {
        print_json(&answer);
        return Ok(Exit::Done);
    }
    let team = answer.get("children").and_then(Value::as_array);
    let team = team.map(Vec::as_slice).unwrap_or_default();
    print_table(
        ["ID", "NAME", "ROLE"],
        team.iter()
            .map(|child| ["id", "name", "role"].map(|member| text(child, member))),
    );
    eprintln!("workspace {id} expanded: {} are brought up", team.len());
    Ok(Exit::Done)
}

/// Removes the team of a workspace.
pub(crate) async fn collapse(args: CollapseArgs) -> anyhow::Result<Exit> {
    let CollapseArgs { which, yes } = args;
    let client = Client::new(&which.server)?;
    let id = find_id(&client, &which.workspace).await?;
    let question = format!("Delete everything below workspace {id}?");
    if !yes && confirmed(&question)? != Some(true) {
        eprintln!("nothing was deleted; repeat with --yes to delete everything below {id}");
        return Ok(Exit::Failed);
    }
    let path = format!("/workspaces/{id}/collapse");
    let answer: Value = client.post(&path, &json!({})).await?;
    if which.output.json {
        print_json(&answer);
        return Ok(Exit::Done);
    }
    let removed = answer.get("removed").and_then(Value::as_array);
    let names: Vec<_> = removed
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    print_line(&match names.as_slice() {
        [] => format!("workspace {id} had nothing below it"),
        names => format!("workspace {id} collapsed: {} removed", names.join(", ")),
    });
    Ok(Exit::Done)
}
