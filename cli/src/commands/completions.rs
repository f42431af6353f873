//! `longshore completions`: shell completion.

use clap::Args;
use clap_complete::Shell;

use crate::exit::Exit;

/// Arguments of `longshore completions`.
#[derive(Args, Debug)]
pub(crate) struct CompletionsArgs {
    /// The shell to print for.
    shell: Shell,
}

/// Prints the script.
pub(crate) fn run(args: &CompletionsArgs, mut definition: clap::Command) -> Exit {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut definition, "longshore", &mut script);
    crate::output::print_line(String::from_utf8_lossy(&script).trim_end());
    Exit::Done
}
