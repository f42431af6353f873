//! Where the programs under test are.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The root of the repository.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the crate is a folder of the repository")
}

/// The binary with nothing of the developer's own settings.
#[must_use]
pub fn longshore() -> Command {
    let mut command = Command::new(binary());
    command.env_clear();
    for name in ["PATH", "HOME", "DOCKER_HOST"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command
}

fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let path = existing(
            "LONGSHORE_BIN",
            root().join("target/debug/longshore"),
            "cargo build -p longshore --features failpoints",
        );
        // Without the points a crash test would wait for a crash that never comes.
        let has_points = Command::new("grep")
            .args(["-q", "LONGSHORE_FAILPOINTS: cannot read"])
            .arg(&path)
            .status()
            .expect("grep is there");
        assert!(
            has_points.success(),
            "{} has no fail points: cargo build -p longshore --features failpoints",
            path.display()
        );
        path
    })
}

/// The reference agent.
#[must_use]
pub fn agent_binary() -> PathBuf {
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    existing(
        "LONGSHORE_AGENT_BIN",
        root().join(format!("agent/target/{triple}/release/longshore-agent")),
        "(cd agent && cargo build --release)",
    )
}

fn existing(variable: &str, default: PathBuf, build: &str) -> PathBuf {
    let path = std::env::var_os(variable).map_or(default, PathBuf::from);
    assert!(
        path.is_file(),
        "{} is not there ({variable}); build it: {build}",
        path.display()
    );
    path
}
