//! `longshore images`: what the runtimes' workspaces start on; pins, and rollouts ring by ring.

use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::jobs;
use crate::client::{Client, ClientError};
use crate::exit::Exit;
use crate::output::{
    OutputArgs, headline, items, moment, print_fields, print_json, print_line, print_table,
    reasoned, text,
};
use crate::settings::client::ClientSettings;

/// The server fetches the digest before it answers, for which an engine gives a registry 300 s.
const FETCH_TIMEOUT: Duration = Duration::from_secs(330);
/// Characters of a digest in a table.
const SHORT: usize = 19;

/// Arguments of `longshore images`.
#[derive(Args, Debug)]
pub(crate) struct ImagesArgs {
    #[command(subcommand)]
    command: ImagesCommand,
    #[command(flatten)]
    server: ClientSettings,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Subcommand, Debug)]
enum ImagesCommand {
    /// List the images of all runtimes, their pins, and how far rollouts are.
    List,
    /// Show one runtime: its pin, who runs what, and its rollout ring by ring.
    Show {
        /// The runtime, such as `hermes`.
        runtime: String,
    },
    /// Pin a runtime to a digest: every start from now on takes it. What runs is left alone.
    Pin {
        /// The runtime, such as `hermes`.
        runtime: String,
        /// `sha256:` and 64 hexadecimal digits.
        digest: String,
        /// Why, for those who wonder.
        #[arg(long, value_name = "TEXT")]
        note: Option<String>,
    },
    /// Take the pin of a runtime away: starts follow the moving tag again.
    Unpin {
        /// The runtime.
        runtime: String,
        /// Why, for those who wonder.
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
    /// List the workspaces of a runtime with what each was last started on.
    Workspaces {
        /// The runtime.
        runtime: String,
        /// Only those on this digest, or `none`: of which no digest is known.
        #[arg(long)]
        digest: Option<String>,
    },
    /// Take a digest to the workspaces of a runtime, ring by ring. It holds by itself when too much of a ring fails, and
    /// sets the pin at its end.
    Rollout(RolloutArgs),
    /// Let a held rollout go on: what had failed of its ring is restarted once more.
    Resume(ChangeArgs),
    /// Give a rollout up; what it took stays on the new digest.
    Abort(ChangeArgs),
    /// Take a rollout back: what it took is restarted on what it ran before, and a pin that it had set is as before.
    Rollback(ChangeArgs),
}

#[derive(Args, Debug)]
struct RolloutArgs {
    /// The runtime.
    runtime: String,
    /// `sha256:` and 64 hexadecimal digits.
    digest: String,
    /// The share in percent of its workspaces that is on the digest after each ring.
    #[arg(long, value_name = "PERCENT,…", value_delimiter = ',', default_values_t = [5, 25, 100])]
    rings: Vec<u8>,
    /// So many of a ring may fail before it holds. Never more than one above that are restarted at a time.
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    max_failures: u32,
    /// How long all of a ring must stay up before the next one begins: 90s, 10m, 1h.
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = humantime::parse_duration)]
    soak: Duration,
    /// Why, for those who wonder.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Wait until it is over or held.
    #[arg(long)]
    wait: bool,
}

#[derive(Args, Debug)]
struct ChangeArgs {
    /// The runtime; of its rollouts the newest is meant.
    runtime: String,
    /// Why, for those who wonder.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Wait until its job is over.
    #[arg(long)]
    wait: bool,
}

/// Runs one of them.
pub(crate) async fn run(args: ImagesArgs) -> anyhow::Result<Exit> {
    let client = Client::new(&args.server)?;
    let json = args.output.json;
    match args.command {
        ImagesCommand::List => list(&client, json).await,
        ImagesCommand::Show { runtime } => {
            let image = find(&client, &runtime).await?;
            if json {
                print_json(&image);
            } else {
                show(&image);
            }
            Ok(Exit::Done)
        }
        ImagesCommand::Pin {
            runtime,
            digest,
            note,
        } => {
            let mut body = Map::from_iter([("digest".to_owned(), json!(digest))]);
            body.extend(note.map(|note| ("note".to_owned(), json!(note))));
            let path = format!("/images/{runtime}/pin");
            let image = client
                .put_within(FETCH_TIMEOUT, &path, &Value::Object(body))
                .await?;
            let told = format!("{runtime} is pinned to {digest}; what runs stays on what it runs");
            Ok(tell(&image, &told, json))
        }
        ImagesCommand::Unpin { runtime, reason } => {
            let query: Vec<_> = reason
                .map(|reason| ("reason", reason))
                .into_iter()
                .collect();
            let image: Value = client
                .delete(&format!("/images/{runtime}/pin"), &query)
                .await?;
            let told = format!("{runtime} follows {} again", text(&image, "image"));
            Ok(tell(&image, &told, json))
        }
        ImagesCommand::Workspaces { runtime, digest } => {
            workspaces(&client, &runtime, digest, json).await
        }
        ImagesCommand::Rollout(args) => roll_out(&client, args, json).await,
        ImagesCommand::Resume(args) => change(&client, &args, "resume", json).await,
        ImagesCommand::Abort(args) => change(&client, &args, "abort", json).await,
        ImagesCommand::Rollback(args) => change(&client, &args, "rollback", json).await,
    }
}

fn tell(answer: &Value, told: &str, json: bool) -> Exit {
    if json {
        print_json(answer);
    } else {
        print_line(told);
    }
    Exit::Done
}

async fn find(client: &Client, runtime: &str) -> anyhow::Result<Value> {
    let all = client.list("/images").await?;
    let found = items(&all)
        .iter()
        .find(|image| text(image, "runtime") == runtime);
    let missing = || ClientError::NotFound {
        text: format!("no runtime {runtime} has an image"),
    };
    Ok(found.cloned().ok_or_else(missing)?)
}

async fn list(client: &Client, json: bool) -> anyhow::Result<Exit> {
    let images = client.list("/images").await?;
    if json {
        print_json(&images);
        return Ok(Exit::Done);
    }
    print_table(
        [
            "RUNTIME",
            "IMAGE",
            "PIN",
            "BEFORE",
            "BY",
            "WORKSPACES",
            "ROLLOUT",
        ],
        items(&images).iter().map(|image| {
            let pin = image.get("pin").unwrap_or(&Value::Null);
            [
                text(image, "runtime"),
                text(image, "image"),
                headline(&text(pin, "digest"), SHORT),
                headline(&text(image, "previous_pin"), SHORT),
                text(pin, "set_by"),
                users(image),
                image.get("rollout").map(in_short).unwrap_or_default(),
            ]
        }),
    );
    Ok(Exit::Done)
}

/// How many workspaces run what.
fn users(image: &Value) -> String {
    let counts = image.get("workspaces").and_then(Value::as_array);
    let counts = counts.into_iter().flatten().map(|on| {
        let digest = text(on, "digest");
        let on_what = if digest.is_empty() {
            "none".to_owned()
        } else {
            headline(&digest, SHORT)
        };
        format!("{} on {on_what}", text(on, "count"))
    });
    counts.collect::<Vec<_>>().join(", ")
}

fn in_short(rollout: &Value) -> String {
    if rollout.is_null() {
        return String::new();
    }
    let rings = rollout.get("rings").and_then(Value::as_array);
    let rings = rings.map_or(0, Vec::len);
    format!(
        "{} (ring {} of {rings})",
        text(rollout, "state"),
        text(rollout, "ring")
    )
}

fn show(image: &Value) {
    let pin = image.get("pin").unwrap_or(&Value::Null);
    let rollout = image.get("rollout").unwrap_or(&Value::Null);
    print_fields(&[
        ("runtime", text(image, "runtime")),
        ("image", text(image, "image")),
        ("pin", text(pin, "digest")),
        ("  set by", text(pin, "set_by")),
        ("  at (UTC)", moment(pin, "set_at")),
        ("  note", text(pin, "note")),
        ("pin before", text(image, "previous_pin")),
        ("workspaces", users(image)),
        ("rollout", in_short(rollout)),
        ("  of", text(rollout, "digest")),
        ("  because", text(rollout, "reason")),
        ("  job", text(rollout, "job_id")),
    ]);
    let rings = rollout.get("rings").and_then(Value::as_array);
    let Some(rings) = rings else { return };
    print_table(
        [
            "RING",
            "PERCENT",
            "UP",
            "UNDER WAY",
            "FAILED",
            "LEFT",
            "RESTORED",
        ],
        rings.iter().zip(1..).map(|(ring, number): (_, usize)| {
            [
                number.to_string(),
                text(ring, "percent"),
                text(ring, "up"),
                text(ring, "under_way"),
                text(ring, "failed"),
                text(ring, "left"),
                text(ring, "restored"),
            ]
        }),
    );
}

async fn workspaces(
    client: &Client,
    runtime: &str,
    digest: Option<String>,
    json: bool,
) -> anyhow::Result<Exit> {
    let filter: Vec<_> = digest
        .map(|digest| ("digest", digest))
        .into_iter()
        .collect();
    let path = format!("/images/{runtime}/workspaces");
    let users = client.list_of(&path, &filter).await?;
    if json {
        print_json(&users);
        return Ok(Exit::Done);
    }
    print_table(
        ["ID", "NAME", "STATUS", "DIGEST"],
        items(&users).iter().map(|user| {
            [
                text(user, "id"),
                text(user, "name"),
                text(user, "status"),
                text(user, "digest"),
            ]
        }),
    );
    Ok(Exit::Done)
}

async fn roll_out(client: &Client, args: RolloutArgs, json: bool) -> anyhow::Result<Exit> {
    let rings: Vec<_> = args
        .rings
        .iter()
        .map(|percent| json!({ "percent": percent }))
        .collect();
    let mut body = reasoned(args.reason.as_deref());
    body["digest"] = json!(args.digest);
    body["rings"] = json!(rings);
    body["max_failures"] = json!(args.max_failures);
    body["soak_seconds"] = json!(args.soak.as_secs());
    let path = format!("/images/{}/rollouts", args.runtime);
    let rollout: Value = client.post(&path, &body).await?;
    let told = format!(
        "{} is rolled out to {}; take it back with: longshore images rollback {}",
        args.digest, args.runtime, args.runtime
    );
    follow(client, &rollout, &told, args.wait, json).await
}

async fn change(
    client: &Client,
    args: &ChangeArgs,
    verb: &str,
    json: bool,
) -> anyhow::Result<Exit> {
    let image = find(client, &args.runtime).await?;
    let rollout = image.get("rollout").filter(|rollout| !rollout.is_null());
    let Some(rollout) = rollout else {
        bail!("{} has no rollout", args.runtime);
    };
    let id = text(rollout, "id");
    let path = format!("/images/{}/rollouts/{id}/{verb}", args.runtime);
    let rollout: Value = client
        .post(&path, &reasoned(args.reason.as_deref()))
        .await?;
    let told = format!(
        "the rollout of {} is {}",
        args.runtime,
        text(&rollout, "state")
    );
    // An abort asks for no job.
    let wait = args.wait && verb != "abort";
    follow(client, &rollout, &told, wait, json).await
}

async fn follow(
    client: &Client,
    rollout: &Value,
    told: &str,
    wait: bool,
    json: bool,
) -> anyhow::Result<Exit> {
    if !wait {
        return Ok(tell(rollout, told, json));
    }
    let id = rollout.get("job_id").and_then(Value::as_str);
    let job = jobs::watch(client, id.context("the rollout has no job")?, None).await?;
    let exit = jobs::exit_of(&job);
    if json {
        print_json(&job);
    } else {
        print_line(&jobs::outcome(&job));
    }
    Ok(exit)
}
