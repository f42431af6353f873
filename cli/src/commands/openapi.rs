//! `longshore openapi`: the API description, from the code alone.

use crate::exit::Exit;
use crate::output::print_line;

/// Prints it.
pub(crate) fn run() -> anyhow::Result<Exit> {
    print_line(longshore_api::openapi_document().trim_end());
    Ok(Exit::Done)
}
