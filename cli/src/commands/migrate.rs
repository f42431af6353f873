//! `longshore migrate`: brings the database's schema to the version of this binary. The only command besides `up` that
//! changes it.

use anyhow::Context as _;
use clap::Args;
use longshore_base::pools::Pools;
use longshore_base::schema;

use crate::exit::Exit;
use crate::output::print_line;
use crate::settings::database::DatabaseSettings;

/// Arguments of `longshore migrate`.
#[derive(Args, Debug)]
pub(crate) struct MigrateArgs {
    #[command(flatten)]
    database: DatabaseSettings,
}

/// Applies what is missing.
pub(crate) async fn run(args: MigrateArgs) -> anyhow::Result<Exit> {
    let pools = Pools::connect(&args.database.config("longshore migrate")?).await?;
    let applied = schema::migrate(&pools.work)
        .await
        .context("the schema was not migrated")?;
    print_line(&match applied {
        0 => "the schema is up to date".to_owned(),
        1 => "1 migration applied".to_owned(),
        many => format!("{many} migrations applied"),
    });
    Ok(Exit::Done)
}
