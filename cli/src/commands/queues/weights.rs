//! `longshore queues weight`: how many turns an organisation gets for each one of another's.

use clap::Args;
use serde_json::{Map, Value, json};

use crate::client::Client;
use crate::exit::Exit;
use crate::output::{headline, items, moment, print_json, print_line, print_table, text};

#[derive(Args, Debug)]
pub(super) struct WeightArgs {
    /// The organisation, by the id of its root workspace. Left out: all that have a weight are listed.
    #[arg(requires = "change")]
    organisation: Option<String>,
    #[command(flatten)]
    change: Change,
    /// Why, for those who wonder.
    #[arg(long, value_name = "TEXT", requires = "organisation")]
    reason: Option<String>,
}

#[derive(Args, Debug)]
#[group(id = "change", multiple = false)]
struct Change {
    /// Its turns for each one of an organisation without a weight, 1 to 100.
    #[arg(value_parser = clap::value_parser!(u8).range(1..=100))]
    weight: Option<u8>,
    /// Take its weight away: it weighs 1 again.
    #[arg(long, requires = "organisation")]
    clear: bool,
}

/// Lists the weights, or changes one.
pub(super) async fn run(client: &Client, args: WeightArgs, json: bool) -> anyhow::Result<Exit> {
    let Some(organisation) = args.organisation else {
        return list(client, json).await;
    };
    let path = format!("/queues/weights/{organisation}");
    let (answer, told): (Value, _) = match args.change.weight {
        Some(weight) => {
            let mut body = Map::new();
            body.insert("weight".to_owned(), json!(weight));
            if let Some(reason) = args.reason {
                body.insert("reason".to_owned(), json!(reason));
            }
            let set = client.put(&path, &Value::Object(body)).await?;
            (set, format!("organisation {organisation} weighs {weight}"))
        }
        None => {
            let query: Vec<_> = args
                .reason
                .map(|reason| ("reason", reason))
                .into_iter()
                .collect();
            let was = client.delete(&path, &query).await?;
            (was, format!("organisation {organisation} weighs 1 again"))
        }
    };
    if json {
        print_json(&answer);
    } else {
        print_line(&told);
    }
    Ok(Exit::Done)
}

async fn list(client: &Client, json: bool) -> anyhow::Result<Exit> {
    let weights = client.list("/queues/weights").await?;
    if json {
        print_json(&weights);
        return Ok(Exit::Done);
    }
    print_table(
        ["ORGANISATION", "WEIGHT", "SINCE (UTC)", "BY", "REASON"],
        items(&weights).iter().map(|weight| {
            [
                text(weight, "tenant"),
                text(weight, "weight"),
                moment(weight, "since"),
                text(weight, "set_by"),
                headline(&text(weight, "reason"), 60),
            ]
        }),
    );
    Ok(Exit::Done)
}
