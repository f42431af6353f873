//! Cancel, retry and discard: of named jobs one by one, of many by a filter.
//!
//! A filter is first counted by the server, which keeps what it counted; what is then applied is exactly that set, in a
//! job of its own that is followed to its end.

use clap::Args;
use futures_util::future::join_all;
use serde_json::{Value, json};

use super::{exit_of, filter, filter::Filter, outcome, watch};
use crate::client::{Client, ClientError};
use crate::exit::Exit;
use crate::output::{confirmed, headline, print_json, print_line, reasoned, text};

/// What to do.
#[derive(Clone, Copy, Debug)]
pub(super) enum Action {
    Cancel,
    Retry,
    Discard,
}

impl Action {
    const fn name(self) -> &'static str {
        match self {
            Self::Cancel => "cancel",
            Self::Retry => "retry",
            Self::Discard => "discard",
        }
    }

    const fn participle(self) -> &'static str {
        match self {
            Self::Cancel => "cancelled",
            Self::Retry => "retried",
            Self::Discard => "discarded",
        }
    }
}

/// Which jobs, and how.
#[derive(Args, Debug)]
pub(crate) struct ActArgs {
    /// The jobs' ids.
    #[arg(value_name = "ID", required_unless_present = "where")]
    ids: Vec<String>,
    #[arg(id = "where", long = "where", value_name = "FILTER", conflicts_with = "ids", value_parser = Filter::parse, help = "Instead of ids: all jobs that match, after a count and a question", long_help = filter::HELP)]
    filter: Option<Filter>,
    /// With --where: do not ask.
    #[arg(long, short = 'y', requires = "where")]
    yes: bool,
    /// With --where: only count.
    #[arg(long, requires = "where", conflicts_with = "yes")]
    dry_run: bool,
    /// Why, for the history.
    #[arg(long, value_name = "TEXT", conflicts_with = "dry_run")]
    reason: Option<String>,
}

/// Does it.
pub(super) async fn run(
    client: &Client,
    action: Action,
    args: &ActArgs,
    json: bool,
) -> anyhow::Result<Exit> {
    match &args.filter {
        Some(filter) => many(client, action, filter, args, json).await,
        None => each(client, action, args, json).await,
    }
}

/// One after the other. What goes wrong with one job does not keep the others; the exit code is that of the first.
async fn each(client: &Client, action: Action, args: &ActArgs, json: bool) -> anyhow::Result<Exit> {
    let mut ended = Exit::Done;
    for id in &args.ids {
        let path = format!("/jobs/{id}/{}", action.name());
        let answer: Result<Value, ClientError> =
            client.post(&path, &reasoned(args.reason.as_deref())).await;
        match answer {
            Ok(job) if json => print_json(&job),
            Ok(job) => print_line(&done(action, id, &job)),
            Err(error @ (ClientError::NotFound { .. } | ClientError::Refused { .. }))
                if !error.may_pass() =>
            {
                eprintln!("longshore: job {id}: {error}");
                if ended == Exit::Done {
                    ended = error.exit();
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(ended)
}

fn done(action: Action, id: &str, job: &Value) -> String {
    match (action, text(job, "state").as_str()) {
        (Action::Cancel, "running") => format!("job {id} was asked to stop"),
        (Action::Retry, _) => format!("job {id} will run again"),
        _ => format!("job {id} {}", action.participle()),
    }
}

async fn many(
    client: &Client,
    action: Action,
    filter: &Filter,
    args: &ActArgs,
    json: bool,
) -> anyhow::Result<Exit> {
    let count = json!({
        "action": action.name(), "filter": filter.body(client).await?, "dry_run": true,
    });
    let plan: Value = client.post("/jobs/bulk", &count).await?;
    let matched = plan.get("matched").and_then(Value::as_u64).unwrap_or(0);
    if args.dry_run || matched == 0 {
        if json {
            print_json(&plan);
        } else {
            print_line(&told_plan(client, action, matched, &plan).await);
        }
        return Ok(Exit::Done);
    }
    if !args.yes {
        eprintln!("{}", told_plan(client, action, matched, &plan).await);
        let question = format!("{} {}?", capital(action.name()), jobs(matched));
        match confirmed(&question)? {
            Some(true) => {}
            Some(false) => {
                eprintln!("nothing was done");
                return Ok(Exit::Failed);
            }
            None => {
                eprintln!(
                    "longshore: nothing was done, since there is no terminal to ask at: repeat with --yes to {} them, or \
                     with --dry-run to count them only",
                    action.name()
                );
                return Ok(Exit::Usage);
            }
        }
    }
    let mut apply = json!({"action": action.name(), "filter_token": plan.get("filter_token")});
    if let Some(reason) = &args.reason {
        apply["reason"] = json!(reason);
    }
    let accepted: Value = client.post("/jobs/bulk", &apply).await?;
    let job = watch(client, &text(&accepted, "job_id"), None).await?;
    if json {
        print_json(&job);
    } else {
        print_line(&told(action, &job));
    }
    Ok(match exit_of(&job) {
        Exit::Done if failed(&job) > 0 => Exit::Failed,
        exit => exit,
    })
}

/// The count and the sample, whose jobs are looked at so that it says more than ids.
async fn told_plan(client: &Client, action: Action, matched: u64, plan: &Value) -> String {
    if matched == 0 {
        return "no job matches".to_owned();
    }
    let sample = plan.get("sample").and_then(Value::as_array);
    let sample = sample.into_iter().flatten().filter_map(Value::as_str);
    let looks = sample.map(async |id| {
        // One that is gone by now is told by its id.
        let job: Result<Value, ClientError> = client.get(&format!("/jobs/{id}"), &[]).await;
        job.map_or_else(|_| id.to_owned(), |job| outcome(&job))
    });
    let mut lines = vec![format!(
        "{} would be {}:",
        jobs(matched),
        action.participle()
    )];
    for told in join_all(looks).await {
        lines.push(format!("  {}", headline(&told, 150)));
    }
    match matched.saturating_sub(lines.len() as u64 - 1) {
        0 => {}
        more => lines.push(format!("  and {more} more")),
    }
    lines.join("\n")
}

fn failed(job: &Value) -> u64 {
    job.get("result")
        .and_then(|result| result.get("failed"))
        .and_then(Value::as_u64)
        .unwrap_or(0)
}

fn told(action: Action, job: &Value) -> String {
    let Some(result) = job.get("result").filter(|result| result.is_object()) else {
        return outcome(job);
    };
    let done = format!(
        "{} of {} jobs {}",
        text(result, "done"),
        text(result, "matched"),
        action.participle()
    );
    match failed(job) {
        0 => done,
        failed => format!("{done}, {failed} failed"),
    }
}

/// How far a bulk action is, from the message of its progress.
pub(super) fn counted(message: &str) -> Option<String> {
    let counts: Value = serde_json::from_str(message).ok()?;
    let [done, matched, failed] =
        ["done", "matched", "failed"].map(|name| counts.get(name).and_then(Value::as_u64));
    Some(match failed? {
        0 => format!("{} of {} done", done?, matched?),
        failed => format!("{} of {} done, {failed} failed", done?, matched?),
    })
}

fn jobs(count: u64) -> String {
    match count {
        1 => "1 job".to_owned(),
        count => format!("{count} jobs"),
    }
}

fn capital(word: &str) -> String {
    let mut letters = word.chars();
    letters
        .next()
        .map(|first| first.to_uppercase().chain(letters).collect())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_progress_of_a_bulk_action_is_told_in_numbers() {
        let told = |message: &str| counted(message);
        assert_eq!(
            told(r#"{"done":500,"matched":1200,"failed":0}"#).as_deref(),
            Some("500 of 1200 done")
        );
        assert_eq!(
            told(r#"{"done":11,"matched":13,"failed":2}"#).as_deref(),
            Some("11 of 13 done, 2 failed")
        );
        assert_eq!(told("pulling 3 of 7"), None);
        assert_eq!(told(""), None);
    }
}
