//! `longshore top`: queues, workers and failures as they change, on one screen.
//!
//! One task asks the server each interval and hands on what it learned; the screen is drawn from the newest that there
//! is, and says so when that grows old. A server that is away is shown and asked again; only one that does not let us in
//! ends the command.

mod screen;
mod snapshot;
mod view;

use std::io::IsTerminal as _;
use std::time::Duration;

use clap::Args;

use self::snapshot::Snapshot;
use crate::client::Client;
use crate::exit::Exit;
use crate::output::{print_json, print_line};
use crate::settings::client::ClientSettings;
use crate::settings::parse;

/// Columns of `--once` where there is no terminal to ask.
const COLUMNS: u16 = 160;

/// Arguments of `longshore top`.
#[derive(Args, Debug)]
pub(crate) struct TopArgs {
    /// Seconds between two looks.
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = parse::seconds)]
    interval: Duration,
    /// Print what there is now as text, and end.
    #[arg(long)]
    once: bool,
    /// Print what there is now as JSON, and end.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ClientSettings,
}

/// Runs it.
pub(crate) async fn run(args: TopArgs) -> anyhow::Result<Exit> {
    let client = Client::new(&args.server)?;
    if args.once || args.json {
        let snapshot = Snapshot::take(&client).await?;
        if args.json {
            print_json(&snapshot.to_json());
        } else {
            let columns = ratatui::crossterm::terminal::size()
                .ok()
                .filter(|_| std::io::stdout().is_terminal())
                .map_or(COLUMNS, |(columns, _)| columns);
            for line in view::plain(&snapshot, client.address(), columns) {
                print_line(&line);
            }
        }
        return Ok(Exit::Done);
    }
    if !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
        eprintln!(
            "longshore: top needs a terminal: use --once or --json to print what there is now"
        );
        return Ok(Exit::Usage);
    }
    screen::show(client, args.interval).await
}
