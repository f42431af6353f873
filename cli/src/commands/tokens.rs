//! `longshore tokens`: tokens of workspaces and of organisations.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::workspaces::find_id;
use crate::client::Client;
use crate::exit::Exit;
use crate::output::{OutputArgs, moment, print_json, print_line, print_table, text};
use crate::settings::client::ClientSettings;

/// Arguments of `longshore tokens`.
#[derive(Args, Debug)]
pub(crate) struct TokensArgs {
    #[command(subcommand)]
    command: TokensCommand,
    #[command(flatten)]
    server: ClientSettings,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Subcommand, Debug)]
enum TokensCommand {
    /// List the live tokens, newest first, by their first characters.
    List(Whose),
    /// Issue a token. It is written to standard output, this once.
    Create {
        #[command(flatten)]
        whose: Whose,
        /// What an organisation's token is for.
        #[arg(long, conflicts_with = "workspace")]
        name: Option<String>,
    },
    /// Revoke a token.
    Revoke {
        /// The token's id.
        id: String,
        #[command(flatten)]
        whose: Whose,
    },
}

#[derive(Args, Debug)]
struct Whose {
    /// Of this workspace; without it, of the organisation, with the rights of an admin.
    #[arg(long, value_name = "ID|NAME")]
    workspace: Option<String>,
}

impl Whose {
    async fn path(&self, client: &Client) -> anyhow::Result<String> {
        Ok(match &self.workspace {
            Some(workspace) => format!("/workspaces/{}/tokens", find_id(client, workspace).await?),
            None => "/org/tokens".to_owned(),
        })
    }
}

/// Runs one of them.
pub(crate) async fn run(args: TokensArgs) -> anyhow::Result<Exit> {
    let client = Client::new(&args.server)?;
    let json = args.output.json;
    let answer: Value = match &args.command {
        TokensCommand::List(whose) => client.get(&whose.path(&client).await?, &[]).await?,
        TokensCommand::Create { whose, name } => {
            let body = name
                .as_ref()
                .map_or_else(|| json!({}), |name| json!({ "name": name }));
            client.post(&whose.path(&client).await?, &body).await?
        }
        TokensCommand::Revoke { id, whose } => {
            let path = format!("{}/{id}", whose.path(&client).await?);
            client.delete(&path, &[]).await?
        }
    };
    if json {
        print_json(&answer);
        return Ok(Exit::Done);
    }
    match args.command {
        TokensCommand::List(_) => {
            let tokens = answer.get("tokens").and_then(Value::as_array);
            let tokens = tokens.map(Vec::as_slice).unwrap_or_default();
            print_table(
                ["ID", "PREFIX", "NAME", "CREATED", "LAST USED"],
                tokens.iter().map(|token| {
                    [
                        text(token, "id"),
                        text(token, "prefix"),
                        text(token, "name"),
                        moment(token, "created_at"),
                        moment(token, "last_used_at"),
                    ]
                }),
            );
        }
        TokensCommand::Create { .. } => print_line(&text(&answer, "auth_token")),
        TokensCommand::Revoke { id, .. } => print_line(&format!("token {id} revoked")),
    }
    Ok(Exit::Done)
}
