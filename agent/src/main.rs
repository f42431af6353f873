//! A small reference agent: what a workspace runs when it only has to show that everything works.
//!
//! It registers with the platform, beats, shows an agent card, and answers A2A messages with its name and an echo.
//! Switches in its environment make it misbehave for tests. The binary is static and is the whole image; see the
//! README. It leaves out on purpose: TLS towards the platform, chat files, tools, memory.
//!
//! In reading order: `settings`, `privileges`, `token`, then `platform` (what it asks) and `server` (what it
//! answers), with `a2a`, `activity` and `resolver` beneath them.

mod a2a;
mod activity;
mod platform;
mod privileges;
mod resolver;
mod server;
mod settings;
mod token;

use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use crate::activity::Activity;
use crate::settings::{Identity, Settings};
use crate::token::TokenFile;

#[cfg(all(
    target_os = "linux",
    target_env = "gnu",
    not(target_feature = "crt-static"),
    not(debug_assertions)
))]
compile_error!(
    "build from inside agent/ and without RUSTFLAGS, so that .cargo/config.toml makes the binary static"
);

/// Like a panic, for a crash on request.
const CRASHED: u8 = 101;
/// As shells say "wrong usage".
const WRONG_SETTINGS: u8 = 2;

/// What the parts share.
struct Agent {
    settings: Settings,
    identity: Identity,
    /// Where other workspaces and the platform reach it.
    url: String,
    card: Value,
    token: TokenFile,
    activity: Activity,
    started: Instant,
}

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_target(false)
        .init();
    let settings = match Settings::read(|name| std::env::var(name).ok()) {
        Ok(settings) => settings,
        Err(error) => {
            tracing::error!("{error}");
            return ExitCode::from(WRONG_SETTINGS);
        }
    };
    privileges::leave_root(&settings.configs);
    run(settings).unwrap_or_else(|error| {
        tracing::error!(%error, "cannot start");
        ExitCode::FAILURE
    })
}

/// Serves first, so that whoever hears of the registration finds an open door; ends with whichever end comes first.
#[tokio::main(flavor = "current_thread")]
async fn run(settings: Settings) -> io::Result<ExitCode> {
    let started = Instant::now();
    // The first process of a container has no default for these: without a handler it could not be asked to stop.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let listener = TcpListener::bind(settings.listen).await?;
    let port = listener.local_addr()?.port();
    let url = format!("http://{}:{port}", settings.hostname);
    let identity = Identity::read(&settings.configs);
    let agent = Arc::new(Agent {
        card: a2a::card(&identity, &url),
        token: TokenFile::open(&settings.configs),
        activity: Activity::default(),
        settings,
        identity,
        url,
        started,
    });
    tracing::info!(workspace.id = %agent.settings.workspace_id, name = %agent.identity.name, port, "serving");

    Ok(tokio::select! {
        never = server::serve(listener, Arc::clone(&agent)) => match never {},
        platform::Removed = platform::live(&agent) => ExitCode::SUCCESS,
        () = passed(agent.settings.switches.crash_after) => {
            tracing::error!("AGENT_CRASH_AFTER_SECONDS has passed: crashing");
            ExitCode::from(CRASHED)
        }
        _ = terminate.recv() => stopped("SIGTERM"),
        _ = interrupt.recv() => stopped("SIGINT"),
    })
}

async fn passed(after: Option<Duration>) {
    match after {
        Some(after) => tokio::time::sleep(after).await,
        None => std::future::pending().await,
    }
}

fn stopped(signal: &str) -> ExitCode {
    tracing::info!(signal, "stopped");
    ExitCode::SUCCESS
}
