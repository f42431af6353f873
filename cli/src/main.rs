//! The `longshore` binary: the servers of the control plane, and the operator's commands, which are clients of its API.
//!
//! Configuration is read here and only here ([`settings`]); everything below gets it as values.

mod assembly;
mod client;
mod commands;
mod exit;
mod listen;
mod logging;
mod output;
mod settings;
mod signals;
mod when;

use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use longshore_base::redact::Redactor;

use commands::{
    api, bundles, completions, config, holds, images, jobs, leaks, lifecycle, migrate, models,
    openapi, orgs, queues, reconcilers, secrets, templates, tokens, top, up, worker, workers,
    workspaces,
};
use exit::Exit;
use settings::log::LogSettings;
use settings::reflect;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Control plane for fleets of AI-agent workspaces.
#[derive(Parser, Debug)]
#[command(name = "longshore", version, after_help = exit::HELP, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    log: LogSettings,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Run everything on this machine: Postgres and Redis of its own, API, worker.
    Up(Box<up::UpArgs>),
    /// Run an API server.
    Api(Box<api::ApiArgs>),
    /// Run a worker.
    Worker(Box<worker::WorkerArgs>),
    /// Bring the database's schema to this version.
    Migrate(migrate::MigrateArgs),
    /// Print the API description.
    Openapi,
    /// Explain every setting.
    Config(config::ConfigArgs),
    /// Create, list, show and delete workspaces.
    Workspaces(workspaces::WorkspacesArgs),
    /// Stop a workspace and bring it up again with its newest secrets, model and image.
    Restart(lifecycle::RestartArgs),
    /// Stop a workspace and everything below it until it is resumed; what they have written stays.
    Pause(lifecycle::LifecycleArgs),
    /// Bring a paused workspace up again, with what was paused below it.
    Resume(lifecycle::LifecycleArgs),
    /// Stop a workspace that has nothing to do until somebody sends it a message.
    Hibernate(lifecycle::HibernateArgs),
    /// Put below a workspace the team that the template of its name lists, and bring it up.
    Expand(lifecycle::LifecycleArgs),
    /// Delete everything below a workspace, which stays.
    Collapse(lifecycle::CollapseArgs),
    /// List, set and delete secrets, of one workspace or of all.
    Secrets(secrets::SecretsArgs),
    /// Show or set the model of a workspace's agent.
    Model(models::ChoiceArgs),
    /// Show or set the provider of a workspace's model.
    Provider(models::ChoiceArgs),
    /// List, issue and revoke tokens, of one workspace or of the organisation.
    Tokens(tokens::TokensArgs),
    /// List the templates and what is wrong with others; add one.
    Templates(templates::TemplatesArgs),
    /// Take workspaces out as documents, with all below them, and bring such documents in.
    Bundles(bundles::BundlesArgs),
    /// Make whole organisations of templates.
    Orgs(orgs::OrgsArgs),
    /// List, show, follow, cancel, retry and discard jobs.
    Jobs(Box<jobs::JobsArgs>),
    /// Look at queues; pause, drain, close, resume and limit them.
    Queues(queues::QueuesArgs),
    /// List, set and lift holds on kinds, engines, organisations, workspaces, or everything.
    Holds(holds::HoldsArgs),
    /// Pin the images of runtimes, roll a new one out ring by ring, and take it back.
    Images(images::ImagesArgs),
    /// In an emergency: `hold all` stops everything from starting, like `holds set --all`.
    Hold(holds::HoldArgs),
    /// Look at workers, and keep one from taking jobs.
    Workers(workers::WorkersArgs),
    /// Look at reconcilers; enable and disable them, and approve what they hold back.
    Reconcilers(reconcilers::ReconcilersArgs),
    /// Let a reconciler make a pass now, or say what it would do.
    Reconcile(reconcilers::ReconcileArgs),
    /// Look at what was left behind, remove it, or let it stay.
    Leaks(leaks::LeaksArgs),
    /// Watch queues, workers and failures as they change.
    Top(top::TopArgs),
    /// Print a completion script for a shell.
    Completions(completions::CompletionsArgs),
}

fn main() -> ExitCode {
    let definition = Cli::command();
    let matches = reflect::without_empty_variables(definition.clone()).get_matches();
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    let ended = run(cli, &definition, &matches);
    match ended {
        Ok(exit) => exit.into(),
        Err(error) => {
            eprintln!("longshore: {error:#}");
            exit::of_error(&error).into()
        }
    }
}

fn run(cli: Cli, definition: &clap::Command, matches: &clap::ArgMatches) -> anyhow::Result<Exit> {
    let redactor = Redactor::default();
    logging::start(&cli.log, &redactor)?;
    if let Some((name, values)) = matches.subcommand()
        && let Some(command) = definition.find_subcommand(name)
    {
        reflect::log_values(command, values);
    }
    // The one TLS provider of everything below; set once, so that no library has to guess.
    if rustls::crypto::ring::default_provider()
        .install_default()
        .is_err()
    {
        anyhow::bail!("the TLS provider was already chosen");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let ended = runtime.block_on(async {
        match cli.command {
            Command::Up(args) => Box::pin(up::run(*args, redactor)).await,
            Command::Api(args) => Box::pin(api::run(*args, redactor)).await,
            Command::Worker(args) => Box::pin(worker::run(*args, redactor)).await,
            Command::Migrate(args) => migrate::run(args).await,
            Command::Openapi => openapi::run(),
            Command::Config(args) => config::run(&args, definition),
            Command::Workspaces(args) => Box::pin(workspaces::run(args)).await,
            Command::Restart(args) => Box::pin(lifecycle::restart(args)).await,
            Command::Pause(args) => Box::pin(lifecycle::pause(args)).await,
            Command::Resume(args) => Box::pin(lifecycle::resume(args)).await,
            Command::Hibernate(args) => Box::pin(lifecycle::hibernate(args)).await,
            Command::Expand(args) => Box::pin(lifecycle::expand(args)).await,
            Command::Collapse(args) => Box::pin(lifecycle::collapse(args)).await,
            Command::Secrets(args) => Box::pin(secrets::run(args)).await,
            Command::Model(args) => Box::pin(models::run("model", args)).await,
            Command::Provider(args) => Box::pin(models::run("provider", args)).await,
            Command::Tokens(args) => Box::pin(tokens::run(args)).await,
            Command::Templates(args) => Box::pin(templates::run(args)).await,
            Command::Bundles(args) => Box::pin(bundles::run(args)).await,
            Command::Orgs(args) => Box::pin(orgs::run(args)).await,
            Command::Jobs(args) => Box::pin(jobs::run(*args)).await,
            Command::Queues(args) => Box::pin(queues::run(args)).await,
            Command::Holds(args) => Box::pin(holds::run(args)).await,
            Command::Images(args) => Box::pin(images::run(args)).await,
            Command::Hold(args) => Box::pin(holds::run_hold(args)).await,
            Command::Workers(args) => Box::pin(workers::run(args)).await,
            Command::Reconcilers(args) => Box::pin(reconcilers::run(args)).await,
            Command::Reconcile(args) => Box::pin(reconcilers::run_reconcile(args)).await,
            Command::Leaks(args) => Box::pin(leaks::run(args)).await,
            Command::Top(args) => Box::pin(top::run(args)).await,
            Command::Completions(args) => Ok(completions::run(&args, definition.clone())),
        }
    });
    // What still runs then has been told to stop and was given its time.
    runtime.shutdown_background();
    ended
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound_and_every_setting_is_documented() {
        let mut definition = Cli::command();
        definition.build();
        definition.clone().debug_assert();
        let settings = reflect::server_settings(&definition);
        assert!(settings.len() > 30, "{}", settings.len());
        for setting in settings {
            assert!(
                setting.meaning.len() > 20,
                "{}: {}",
                setting.flag,
                setting.meaning
            );
            assert_ne!(setting.group, "Other", "{} has no group", setting.flag);
            assert!(setting.env.is_some(), "{} has no variable", setting.flag);
        }
    }
}
