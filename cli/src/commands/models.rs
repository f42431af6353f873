//! `longshore model` and `longshore provider`: what an agent thinks with.

use clap::Args;
use serde_json::{Map, Value, json};

use super::workspaces::find_id;
use crate::client::Client;
use crate::exit::Exit;
use crate::output::{OutputArgs, print_json, print_line, text};
use crate::settings::client::ClientSettings;

/// Arguments of both.
#[derive(Args, Debug)]
pub(crate) struct ChoiceArgs {
    /// The workspace's id, or its name if no other has it.
    #[arg(value_name = "ID|NAME")]
    workspace: String,
    /// Set this one; the workspace is restarted with it. Without it the one that is set is shown.
    #[arg(value_name = "SLUG")]
    slug: Option<String>,
    /// Set none.
    #[arg(long, conflicts_with = "slug")]
    clear: bool,
    #[command(flatten)]
    server: ClientSettings,
    #[command(flatten)]
    output: OutputArgs,
}

/// Shows or sets the member `what` of a workspace, `model` or `provider`.
pub(crate) async fn run(what: &'static str, args: ChoiceArgs) -> anyhow::Result<Exit> {
    let client = Client::new(&args.server)?;
    let id = find_id(&client, &args.workspace).await?;
    let path = format!("/workspaces/{id}/{what}");
    let wanted = args.slug.or(args.clear.then(String::new));
    let answer: Value = match &wanted {
        None => client.get(&path, &[]).await?,
        Some(slug) => {
            let body = Map::from_iter([(what.to_owned(), json!(slug))]);
            client.put(&path, &Value::Object(body)).await?
        }
    };
    if args.output.json {
        print_json(&answer);
        return Ok(Exit::Done);
    }
    match wanted {
        None => print_line(&text(&answer, what)),
        Some(_) => print_line(&format!("{what} of {id} {}", text(&answer, "status"))),
    }
    let job = text(&answer, "job_id");
    if !job.is_empty() {
        eprintln!("job {job}");
    }
    Ok(Exit::Done)
}
