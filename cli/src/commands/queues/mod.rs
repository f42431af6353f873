//! `longshore queues`: what waits, and the operator's hands on it.

mod weights;

use std::time::Duration;

use clap::{Args, Subcommand};
use longshore_base::clock::Stopwatch;
use serde_json::{Map, Value, json};

use crate::client::Client;
use crate::exit::Exit;
use crate::output::{
    OutputArgs, Waiting, headline, items, moment, print_fields, print_json, print_line,
    print_table, reasoned, span, text,
};
use crate::settings::client::ClientSettings;
use crate::settings::parse;

use self::weights::WeightArgs;

/// How long one request waits for a queue to empty: short, so that the number of running jobs is told as it falls. The
/// server allows 300.
const WAIT_PER_CALL: Duration = Duration::from_secs(5);
/// Pause before a server that went away while a queue was being drained is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Arguments of `longshore queues`.
#[derive(Args, Debug)]
pub(crate) struct QueuesArgs {
    #[command(subcommand)]
    command: QueuesCommand,
    #[command(flatten)]
    server: ClientSettings,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Subcommand, Debug)]
enum QueuesCommand {
    /// List all queues.
    List,
    /// Show one queue: its places, its limits, and who has waited longest.
    Get {
        /// The queue's name, such as `provision`.
        name: String,
    },
    /// Start nothing new; what runs goes on.
    Pause(ChangeArgs),
    /// Start nothing new, and say when the last running job has ended.
    ///
    /// With --wait: exits 0 once nothing runs any more, and 6 when the time is over before. The queue goes on draining
    /// then, until `resume`.
    Drain(DrainArgs),
    /// Start nothing new, and refuse new requests with 503.
    Reject(ChangeArgs),
    /// Undo pause, drain and reject.
    Resume(ChangeArgs),
    /// Change how much of a queue runs: a number for each limit (0 lets nothing start), or `none` to remove it.
    Limit(LimitArgs),
    /// Give an organisation more turns than others, in every queue; or list who has a weight.
    ///
    /// Of two organisations that both have enough waiting, one of weight 3 gets three starts for each one of the other's.
    /// One with little waiting does not wait behind the other's backlog, whatever they weigh.
    Weight(WeightArgs),
}

#[derive(Args, Debug)]
struct ChangeArgs {
    /// The queue's name, such as `provision`.
    name: String,
    /// Why, for those who wonder.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

#[derive(Args, Debug)]
struct DrainArgs {
    #[command(flatten)]
    change: ChangeArgs,
    /// Wait until nothing runs any more, at most this long; 300 when no number is given.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "300", value_parser = parse::seconds)]
    wait: Option<Duration>,
}

#[derive(Args, Debug)]
#[group(id = "limits", required = true, multiple = true, args = ["max_running", "max_per_worker", "rate_per_minute"])]
struct LimitArgs {
    /// The queue's name, such as `provision`.
    name: String,
    /// Jobs that run at once, everywhere together.
    #[arg(long, value_name = "N|none", value_parser = limit)]
    max_running: Option<Limit>,
    /// Jobs that run at once on one worker.
    #[arg(long, value_name = "N|none", value_parser = limit)]
    max_per_worker: Option<Limit>,
    /// Jobs that start in a minute.
    #[arg(long, value_name = "N|none", value_parser = limit)]
    rate_per_minute: Option<Limit>,
    /// Why, for those who wonder.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

/// A limit, or that there is to be none.
#[derive(Clone, Copy, Debug)]
struct Limit(Option<u32>);

fn limit(text: &str) -> Result<Limit, String> {
    if text == "none" {
        return Ok(Limit(None));
    }
    text.parse()
        .map(|number| Limit(Some(number)))
        .map_err(|_| "must be a whole number, or `none` to remove the limit".to_owned())
}

/// Runs one of them.
pub(crate) async fn run(args: QueuesArgs) -> anyhow::Result<Exit> {
    let client = Client::new(&args.server)?;
    let json = args.output.json;
    match args.command {
        QueuesCommand::List => list(&client, json).await,
        QueuesCommand::Get { name } => get(&client, &name, json).await,
        QueuesCommand::Pause(change) => set_mode(&client, "pause", &change, json).await,
        QueuesCommand::Reject(change) => set_mode(&client, "reject", &change, json).await,
        QueuesCommand::Resume(change) => set_mode(&client, "resume", &change, json).await,
        QueuesCommand::Drain(drain_args) => match drain_args.wait {
            None => set_mode(&client, "drain", &drain_args.change, json).await,
            Some(limit) => drain(&client, &drain_args.change, limit, json).await,
        },
        QueuesCommand::Limit(limits) => set_limits(&client, &limits, json).await,
        QueuesCommand::Weight(weight) => weights::run(&client, weight, json).await,
    }
}

async fn list(client: &Client, json: bool) -> anyhow::Result<Exit> {
    let queues = client.list("/queues").await?;
    if json {
        print_json(&queues);
        return Ok(Exit::Done);
    }
    print_table(COLUMNS, items(&queues).iter().map(row));
    Ok(Exit::Done)
}

/// What stands in a [`row`].
pub(crate) const COLUMNS: [&str; 11] = [
    "QUEUE",
    "MODE",
    "WAITING",
    "ADMITTED",
    "RUNNING",
    "DEAD",
    "OLDEST",
    "DONE/MIN",
    "FAILED/MIN",
    "WORKERS",
    "NOTE",
];

/// A queue in a row, for the list and `longshore top`.
pub(crate) fn row(queue: &Value) -> [String; 11] {
    let per_minute = |what| queue.get("per_minute").map(|rate| text(rate, what));
    [
        text(queue, "name"),
        text(queue, "mode"),
        text(queue, "waiting"),
        text(queue, "admitted"),
        text(queue, "running"),
        text(queue, "dead"),
        oldest(queue),
        per_minute("done").unwrap_or_default(),
        per_minute("failed").unwrap_or_default(),
        text(queue, "workers"),
        headline(&note(queue), 60),
    ]
}

/// Since when a queue is not as usual, by whom and why, and its limits.
fn note(queue: &Value) -> String {
    let mut notes = Vec::new();
    if text(queue, "mode") != "run" {
        let by = text(queue, "mode_by");
        notes.push(match text(queue, "mode_reason").as_str() {
            "" => format!("by {by}"),
            reason => format!("{reason} (by {by})"),
        });
    }
    notes.extend(limits(queue));
    notes.join("; ")
}

fn limits(queue: &Value) -> Vec<String> {
    let limit = |name: &str, words: &str| {
        let number = queue.get("limits").map(|limits| text(limits, name))?;
        (!number.is_empty()).then(|| format!("{number} {words}"))
    };
    [
        limit("max_running", "at once"),
        limit("max_per_worker", "a worker"),
        limit("rate_per_minute", "a minute"),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn oldest(value: &Value) -> String {
    value
        .get("oldest_waiting_seconds")
        .and_then(Value::as_f64)
        .map(span)
        .unwrap_or_default()
}

async fn get(client: &Client, name: &str, json: bool) -> anyhow::Result<Exit> {
    let queue: Value = client.get(&format!("/queues/{name}"), &[]).await?;
    if json {
        print_json(&queue);
        return Ok(Exit::Done);
    }
    show(&queue);
    let rows = |member| {
        queue
            .get(member)
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
    };
    if rows("places").next().is_some() {
        print_line("");
        print_table(
            ["PLACE", "WAITING", "ADMITTED", "RUNNING", "WORKERS"],
            rows("places").map(|place| {
                [
                    text(place, "queue"),
                    text(place, "waiting"),
                    text(place, "admitted"),
                    text(place, "running"),
                    text(place, "workers"),
                ]
            }),
        );
    }
    if rows("tenants").next().is_some() {
        print_line("");
        print_table(
            ["TENANT", "WEIGHT", "WAITING", "OLDEST"],
            rows("tenants").map(|tenant| {
                [
                    text(tenant, "tenant"),
                    text(tenant, "weight"),
                    text(tenant, "waiting"),
                    oldest(tenant),
                ]
            }),
        );
    }
    Ok(Exit::Done)
}

fn show(queue: &Value) {
    let part = |member: &str, name: &str| {
        queue
            .get(member)
            .map(|part| text(part, name))
            .unwrap_or_default()
    };
    let since = match moment(queue, "mode_since").as_str() {
        "" => String::new(),
        since => format!("{since} by {}", text(queue, "mode_by")),
    };
    print_fields(&[
        ("name", text(queue, "name")),
        ("mode", text(queue, "mode")),
        ("since", since),
        ("reason", text(queue, "mode_reason")),
        ("waiting", text(queue, "waiting")),
        ("admitted", text(queue, "admitted")),
        ("running", text(queue, "running")),
        ("dead", text(queue, "dead")),
        ("oldest waiting", oldest(queue)),
        ("done a minute", part("per_minute", "done")),
        ("failed a minute", part("per_minute", "failed")),
        ("limits", limits(queue).join(", ")),
        ("attempts", part("policy", "max_attempts")),
        ("workers", text(queue, "workers")),
    ]);
}

async fn set_mode(
    client: &Client,
    change: &str,
    args: &ChangeArgs,
    json: bool,
) -> anyhow::Result<Exit> {
    let path = format!("/queues/{}/{change}", args.name);
    let queue: Value = client
        .post(&path, &reasoned(args.reason.as_deref()))
        .await?;
    if json {
        print_json(&queue);
    } else {
        print_line(&sentence(&queue));
    }
    Ok(Exit::Done)
}

/// What a queue is doing now.
fn sentence(queue: &Value) -> String {
    let name = text(queue, "name");
    let (waiting, running) = (text(queue, "waiting"), text(queue, "running"));
    match text(queue, "mode").as_str() {
        "run" => format!("queue {name} runs; {waiting} waiting"),
        "pause" => format!("queue {name} is paused; {waiting} waiting, {running} still running"),
        "drain" => format!("queue {name} is draining; {waiting} waiting, {running} still running"),
        "reject" => format!(
            "queue {name} is closed to new requests; {waiting} waiting, {running} still running"
        ),
        mode => format!("queue {name} is in mode {mode}"),
    }
}

/// Drains and waits. Once the queue drains, a server that goes away for a moment ends nothing.
async fn drain(
    client: &Client,
    args: &ChangeArgs,
    limit: Duration,
    json: bool,
) -> anyhow::Result<Exit> {
    let watch = Stopwatch::start();
    let mut waiting = Waiting::start("draining");
    let mut last = Value::Null;
    loop {
        let left = limit.saturating_sub(watch.elapsed());
        let seconds = left.min(WAIT_PER_CALL).as_secs_f64().ceil().max(1.0);
        let path = format!("/queues/{}/drain?wait={seconds}", args.name);
        let answer = client
            .post::<Value>(&path, &reasoned(args.reason.as_deref()))
            .await;
        match answer {
            Ok(answer) if answer.get("drained") == Some(&Value::Bool(true)) => {
                drop(waiting);
                report_drained(&args.name, &answer, json);
                return Ok(Exit::Done);
            }
            Ok(answer) => {
                last = answer;
                waiting.update(&format!("{} still running", text(&last, "running")));
            }
            Err(error) if error.may_pass() && !last.is_null() => {
                waiting.update(&error.to_string());
                tokio::time::sleep(ASK_AGAIN).await;
            }
            Err(error) => return Err(error.into()),
        }
        if watch.elapsed() >= limit {
            drop(waiting);
            if json {
                print_json(&last);
            }
            eprintln!(
                "longshore: queue {} is not drained after {} s: {} still running; it goes on draining until you resume it",
                args.name,
                limit.as_secs(),
                text(&last, "running"),
            );
            return Ok(Exit::Timeout);
        }
    }
}

fn report_drained(name: &str, answer: &Value, json: bool) {
    if json {
        print_json(answer);
    } else {
        print_line(&format!("queue {name} is drained: nothing runs"));
    }
}

async fn set_limits(client: &Client, args: &LimitArgs, json: bool) -> anyhow::Result<Exit> {
    let mut body = Map::new();
    let limits = [
        ("max_running", args.max_running),
        ("max_per_worker", args.max_per_worker),
        ("rate_per_minute", args.rate_per_minute),
    ];
    for (name, limit) in limits {
        if let Some(Limit(number)) = limit {
            body.insert(name.to_owned(), json!(number));
        }
    }
    if let Some(reason) = &args.reason {
        body.insert("reason".to_owned(), json!(reason));
    }
    let path = format!("/queues/{}", args.name);
    let queue: Value = client.patch(&path, &Value::Object(body)).await?;
    if json {
        print_json(&queue);
        return Ok(Exit::Done);
    }
    let limits = limits_of(&queue);
    print_line(&format!("queue {}: {limits}", text(&queue, "name")));
    Ok(Exit::Done)
}

fn limits_of(queue: &Value) -> String {
    match limits(queue).as_slice() {
        [] => "no limits".to_owned(),
        limits => limits.join(", "),
    }
}
