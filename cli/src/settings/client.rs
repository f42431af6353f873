//! Where the operator's commands find a server, and who they are to it.

use std::path::PathBuf;

use clap::Args;

/// Settings of the commands that are clients of the API.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Server")]
pub(crate) struct ClientSettings {
    /// Address of the API. Unset: what the `longshore up` of the data directory wrote to `<data>/address`.
    #[arg(id = "server-url", long = "url", env = "LONGSHORE_URL", value_name = "URL", value_parser = super::parse::http_url, global = true)]
    pub(crate) url: Option<String>,

    /// Bearer token; better given by environment than by flag, which other users of the machine can see. Unset:
    /// `<data>/admin-token`.
    #[arg(
        id = "server-token",
        long = "token",
        env = "LONGSHORE_TOKEN",
        value_name = "TOKEN",
        hide_env_values = true,
        global = true
    )]
    pub(crate) token: Option<String>,

    /// The hosted organisation that the server serves, if it serves one.
    #[arg(id = "server-org", long = "org-id", env = "LONGSHORE_ORG_ID", value_name = "ID", value_parser = super::parse::org_id, global = true)]
    pub(crate) org_id: Option<String>,

    /// Data directory of a `longshore up` on this machine.
    #[arg(
        id = "server-data",
        long = "data",
        env = "LONGSHORE_DATA",
        value_name = "DIR",
        default_value = ".longshore",
        global = true
    )]
    pub(crate) data: PathBuf,
}
