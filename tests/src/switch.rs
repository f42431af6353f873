//! The machine's Docker engine behind a socket of a test's own, which can be taken away and given back.

use std::path::PathBuf;

use tokio::io::copy_bidirectional;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

const ENGINE: &str = "/var/run/docker.sock";

/// A socket that leads to the engine while it is on. While it is off, nobody listens there.
pub struct EngineSwitch {
    socket: PathBuf,
    on: watch::Sender<bool>,
    accepting: Option<JoinHandle<()>>,
    _place: tempfile::TempDir,
}

impl EngineSwitch {
    /// One that is on.
    ///
    /// # Panics
    /// When no socket can be made.
    #[must_use]
    pub fn on() -> Self {
        let place = tempfile::tempdir().unwrap();
        let mut switch = Self {
            socket: place.path().join("docker.sock"),
            on: watch::Sender::new(true),
            accepting: None,
            _place: place,
        };
        switch.turn_on();
        switch
    }

    /// What processes are given as `DOCKER_HOST`.
    #[must_use]
    pub fn host(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// Gives the engine back.
    ///
    /// # Panics
    /// When the socket cannot be made again.
    pub fn turn_on(&mut self) {
        let listener = UnixListener::bind(&self.socket).unwrap();
        self.on.send_replace(true);
        let on = self.on.subscribe();
        self.accepting = Some(tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, on.clone()));
            }
        }));
    }

    /// Takes the engine away: open connections are closed, new ones are refused.
    pub fn turn_off(&mut self) {
        if let Some(accepting) = self.accepting.take() {
            accepting.abort();
        }
        self.on.send_replace(false);
        std::fs::remove_file(&self.socket).ok();
    }
}

impl Drop for EngineSwitch {
    fn drop(&mut self) {
        self.turn_off();
    }
}

async fn carry(mut client: UnixStream, mut on: watch::Receiver<bool>) {
    let Ok(mut engine) = UnixStream::connect(ENGINE).await else {
        return;
    };
    tokio::select! {
        _ = copy_bidirectional(&mut client, &mut engine) => {}
        _ = on.wait_for(|on| !*on) => {}
    }
}
