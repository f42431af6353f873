//! What is logged, and in which form.

use clap::{Args, ValueEnum};

/// Settings of the log. It goes to standard error, a line per event.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Logging")]
pub(crate) struct LogSettings {
    /// Which events are logged: a level (`error`, `warn`, `info`, `debug`, `trace`) or a filter such as
    /// `info,longshore_ledger=debug`.
    #[arg(
        long = "log",
        env = "LONGSHORE_LOG",
        value_name = "FILTER",
        default_value = "info,sqlx=warn,poem=warn",
        global = true
    )]
    pub(crate) filter: String,

    /// Form of the log: `text` for people, `json` for machines; `auto` is `text` on a terminal and `json` elsewhere.
    #[arg(
        long = "log-format",
        env = "LONGSHORE_LOG_FORMAT",
        value_name = "FORMAT",
        value_enum,
        default_value = "auto",
        global = true
    )]
    pub(crate) format: LogFormat,
}

/// See [`LogSettings::format`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// `text` on a terminal, `json` elsewhere.
    Auto,
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}
