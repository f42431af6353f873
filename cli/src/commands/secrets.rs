//! `longshore secrets`: list, set and delete secrets, of one workspace or of all.

use std::io::Read as _;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::jobs;
use crate::client::Client;
use crate::exit::Exit;
use crate::output::{OutputArgs, moment, print_json, print_line, print_table, text};
use crate::settings::client::ClientSettings;

/// Arguments of `longshore secrets`.
#[derive(Args, Debug)]
pub(crate) struct SecretsArgs {
    #[command(subcommand)]
    command: SecretsCommand,
    #[command(flatten)]
    server: ClientSettings,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Subcommand, Debug)]
enum SecretsCommand {
    /// List the secrets that are set, never their values.
    List(Whose),
    /// Set a secret. Its value is read from standard input, where no other user of this machine can see it.
    Set {
        /// Its name: the variable that the agent gets.
        key: String,
        #[command(flatten)]
        whose: Whose,
    },
    /// Delete a secret.
    Delete {
        /// Its name.
        key: String,
        #[command(flatten)]
        whose: Whose,
    },
    /// Seal every stored secret with the first key of SECRETS_ENCRYPTION_KEYS. All processes must have been started with the
    /// new key first and the old one after it; secrets stay readable throughout.
    RotateKey {
        /// Do not wait until it is done.
        #[arg(long)]
        no_wait: bool,
    },
}

#[derive(Args, Debug)]
struct Whose {
    /// Of this workspace; without it, of all workspaces.
    #[arg(long, value_name = "ID")]
    workspace: Option<String>,
}

impl Whose {
    fn path(&self) -> String {
        match &self.workspace {
            Some(id) => format!("/workspaces/{id}/secrets"),
            None => "/settings/secrets".to_owned(),
        }
    }
}

/// Runs one of them.
pub(crate) async fn run(args: SecretsArgs) -> anyhow::Result<Exit> {
    let client = Client::new(&args.server)?;
    let json = args.output.json;
    match args.command {
        SecretsCommand::List(whose) => list(&client, &whose, json).await,
        SecretsCommand::Set { key, whose } => {
            let body = json!({ "key": key, "value": read_value()? });
            let answer: Value = client.post(&whose.path(), &body).await?;
            Ok(tell(&answer, &key, "set", json))
        }
        SecretsCommand::Delete { key, whose } => {
            let name: String = url::form_urlencoded::byte_serialize(key.as_bytes()).collect();
            // A space is `+` in forms only.
            let path = format!("{}/{}", whose.path(), name.replace('+', "%20"));
            let answer: Value = client.delete(&path, &[]).await?;
            Ok(tell(&answer, &key, "deleted", json))
        }
        SecretsCommand::RotateKey { no_wait } => rotate(&client, no_wait, json).await,
    }
}

async fn list(client: &Client, whose: &Whose, json: bool) -> anyhow::Result<Exit> {
    let secrets: Value = client.get(&whose.path(), &[]).await?;
    if json {
        print_json(&secrets);
        return Ok(Exit::Done);
    }
    let rows = secrets.as_array().map(Vec::as_slice).unwrap_or_default();
    print_table(
        ["KEY", "SCOPE", "SET (UTC)"],
        rows.iter().map(|secret| {
            [
                text(secret, "key"),
                text(secret, "scope"),
                moment(secret, "updated_at"),
            ]
        }),
    );
    Ok(Exit::Done)
}

async fn rotate(client: &Client, no_wait: bool, json: bool) -> anyhow::Result<Exit> {
    let started: Value = client.post("/secrets/rotate-key", &json!({})).await?;
    let (id, key) = (text(&started, "job_id"), text(&started, "key_id"));
    if no_wait {
        if json {
            print_json(&started);
        } else {
            print_line(&format!("job {id} seals every secret with the key {key}"));
        }
        return Ok(Exit::Done);
    }
    let job = jobs::watch(client, &id, None).await?;
    let exit = jobs::exit_of(&job);
    if json {
        print_json(&job);
    } else if let (Exit::Done, Some(result)) = (&exit, job.get("result")) {
        let resealed = text(result, "resealed");
        print_line(&format!(
            "{resealed} secrets were sealed anew; all of them are sealed with the key {key}"
        ));
        match moment(result, "old_key_needed_until").as_str() {
            "" => print_line("the other keys may be removed"),
            until => print_line(&format!(
                "the other keys may be removed after {until} UTC: until then they open kept answers to repeated requests"
            )),
        }
    } else {
        print_line(&jobs::outcome(&job));
    }
    Ok(exit)
}

fn tell(answer: &Value, key: &str, done: &str, json: bool) -> Exit {
    if json {
        print_json(answer);
    } else {
        print_line(&format!("secret {key} {done}"));
    }
    Exit::Done
}

/// All of standard input but the line break at its end, which editors and `echo` add.
fn read_value() -> anyhow::Result<String> {
    let mut value = String::new();
    std::io::stdin()
        .lock()
        .read_to_string(&mut value)
        .context("the value could not be read from standard input")?;
    if value.ends_with('\n') {
        value.pop();
        if value.ends_with('\r') {
            value.pop();
        }
    }
    if value.is_empty() {
        bail!(
            "the value is empty: give it on standard input, as in `longshore secrets set KEY < file`"
        );
    }
    Ok(value)
}
